//! The plan of a fold: `W + lambda * W'` for every chosen linear layer, everything else as it is.

mod build;
mod options;
mod problem;

pub(crate) use options::FoldOptions;
pub use options::{BiasMode, BlockSet, DepthMismatch};
pub use problem::{FoldProblem, NotInTarget, ReplaceMismatch, ShapeMismatch};

use super::{LambdaSpec, Plan, TensorRef};
use crate::checkpoint::Placement;
use crate::naming::{Layer, LayerId, LayerKind, Layers};
use crate::tensor::{DType, TensorSpec};

/// One model that takes part in a fold.
#[derive(Clone, Debug)]
pub(crate) struct Side<'a> {
    /// The file, as the user gave it.
    pub(crate) file: String,
    /// Its tensors.
    pub(crate) specs: &'a [TensorSpec],
    /// Where each of them lies in its storage.
    pub(crate) placements: Vec<Placement<'a>>,
    /// The linear layers among them.
    pub(crate) layers: Layers,
}

/// An auxiliary model and its lambda.
#[derive(Clone, Debug)]
pub(crate) struct AuxSide<'a> {
    /// The model.
    pub(crate) side: Side<'a>,
    /// Its lambda; `None` where the target carries learned ones.
    pub(crate) lambda: Option<LambdaSpec>,
}

/// Which parameter of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The weight.
    Weight,
    /// The bias.
    Bias,
}

/// A parameter that the plan folds.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedLayer {
    /// The layer.
    pub id: LayerId,
    /// Which of its parameters.
    pub parameter: Parameter,
    /// The tensor's name in the target, and in the output.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type in the target.
    pub dtype: DType,
    /// The step that computes it.
    pub step: usize,
    /// What is added, from left to right.
    pub terms: Vec<FoldedTerm>,
}

/// What is added to a folded parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedTerm {
    /// The auxiliary tensor's name.
    pub name: String,
    /// The auxiliary tensor.
    pub source: TensorRef,
    /// Its scale; may be 0, and then nothing is added.
    pub lambda: f64,
}

impl FoldedLayer {
    /// Whether anything is added: some lambda is not 0.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.terms.iter().any(|term| term.lambda != 0.0)
    }
}

/// A tensor of the target that the output lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: &'static str,
    /// Whether its values are part of a folded weight.
    pub folded: bool,
}

/// Plans a fold of `aux` into `target`; `scales` are the learned lambdas of the target's layers, in their order.
///
/// Inputs of the plan are numbered from 0, the target, through the auxiliaries in order.
///
/// # Errors
/// [`FoldProblem`].
pub(crate) fn fold(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    scales: &[Option<f64>],
    options: &FoldOptions,
) -> Result<Plan, FoldProblem> {
    let chosen = choose(target, options)?;
    let mut folded = Vec::new();
    let learned = target.layers.as_slice().iter().any(|layer| layer.scale.is_some() || layer.aux_weight.is_some());
    let pairs = if learned {
        learned_pairs(target, aux, scales, &chosen, options)?
    } else {
        given_pairs(target, aux, &chosen, options)?
    };
    for (layer, terms) in chosen.iter().zip(pairs) {
        if terms.is_empty() {
            continue;
        }
        folded.push(weight(target, aux, layer, &terms)?);
        if options.bias == BiasMode::Fold {
            folded.extend(bias(target, aux, layer, &terms)?);
        }
    }
    if folded.is_empty() {
        return Err(FoldProblem::NothingFolded { target: target.file.clone() });
    }
    Ok(build::plan(target, aux, options, folded))
}

/// A term before it is checked: the auxiliary's input number, its layer, its tensor, lambda.
struct Pair<'a> {
    input: usize,
    layer: &'a Layer,
    tensor: usize,
    lambda: f64,
}

fn choose<'a>(target: &'a Side<'_>, options: &FoldOptions) -> Result<Vec<&'a Layer>, FoldProblem> {
    let blocks = target.layers.blocks();
    if let Some(BlockSet(wanted)) = &options.blocks
        && let Some(&block) = wanted.iter().find(|block| !blocks.contains(block))
    {
        let (target, blocks) = (target.file.clone(), BlockSet::of(&blocks).to_string());
        return Err(FoldProblem::NoSuchBlock { target, block, blocks });
    }
    let wanted = |layer: &&Layer| {
        options.kinds.as_ref().is_none_or(|kinds| kinds.contains(&layer.id.kind))
            && options.blocks.as_ref().is_none_or(|BlockSet(blocks)| blocks.contains(&layer.id.block))
    };
    let chosen: Vec<&Layer> = target.layers.as_slice().iter().filter(wanted).collect();
    if chosen.is_empty() {
        let (target, blocks) = (target.file.clone(), BlockSet::of(&blocks).to_string());
        return Err(FoldProblem::NothingChosen { target, blocks });
    }
    let missing = |kind: &&LayerKind| !chosen.iter().any(|layer| layer.id.kind == **kind);
    if let Some(&kind) = options.kinds.iter().flatten().find(missing) {
        return Err(FoldProblem::NoSuchKind { target: target.file.clone(), kind });
    }
    Ok(chosen)
}

fn learned_pairs<'a>(
    target: &'a Side<'_>,
    aux: &'a [AuxSide<'_>],
    scales: &[Option<f64>],
    chosen: &[&'a Layer],
    options: &FoldOptions,
) -> Result<Vec<Vec<Pair<'a>>>, FoldProblem> {
    let file = || target.file.clone();
    let scaleless = target.layers.as_slice().iter().find(|layer| layer.aux_weight.is_some() && layer.scale.is_none());
    if let Some(layer) = scaleless {
        let (module, way_out) = (layer.module.clone(), "; the file is incomplete");
        return Err(FoldProblem::IncompletePathway { target: file(), module, lacking: "cross_modal_scale", way_out });
    }
    if aux.iter().any(|a| a.lambda.is_some()) {
        return Err(FoldProblem::LambdaOnLearned { target: file() });
    }
    if aux.len() > 1 {
        return Err(FoldProblem::OneAuxOnly { target: file(), count: aux.len() });
    }
    let own = target.layers.as_slice().iter().any(|layer| layer.aux_weight.is_some());
    if own && !aux.is_empty() {
        return Err(FoldProblem::AuxOnLearned { target: file() });
    }
    let lacking = |layer: &Layer, lacking, way_out| FoldProblem::IncompletePathway {
        target: file(),
        module: layer.module.clone(),
        lacking,
        way_out,
    };
    if let Some(aux) = aux.first() {
        check_depth(target, &aux.side, options)?;
    }
    let lambda_of = |layer: &Layer| {
        let position = target.layers.as_slice().iter().position(|l| l.weight == layer.weight)?;
        scales.get(position).copied().flatten()
    };
    chosen
        .iter()
        .map(|&layer| {
            let lambda = lambda_of(layer);
            match (lambda, layer.aux_weight, aux.first()) {
                // Pathways may have been trained for some layers only; a note names the others.
                (None, _, _) => Ok(vec![]),
                (Some(lambda), Some(tensor), None) => Ok(vec![Pair { input: 0, layer, tensor, lambda }]),
                (Some(lambda), None, Some(aux)) => Ok(counterpart(target, layer, &aux.side, options, false)?
                    .map(|found| Pair { input: 1, layer: found, tensor: found.weight, lambda })
                    .into_iter()
                    .collect()),
                (Some(_), _, _) if own => {
                    Err(lacking(layer, "aux_weight", "; other layers have theirs, the file is incomplete"))
                }
                (Some(_), _, _) => Err(lacking(layer, "aux_weight", "; give the auxiliary checkpoint with --aux FILE")),
            }
        })
        .collect()
}

fn given_pairs<'a>(
    target: &'a Side<'_>,
    aux: &'a [AuxSide<'_>],
    chosen: &[&'a Layer],
    options: &FoldOptions,
) -> Result<Vec<Vec<Pair<'a>>>, FoldProblem> {
    if aux.is_empty() {
        return Err(FoldProblem::NoAux { target: target.file.clone() });
    }
    let blocks = target.layers.blocks();
    let mut pairs: Vec<Vec<Pair<'_>>> = chosen.iter().map(|_| Vec::new()).collect();
    for (input, AuxSide { side, lambda }) in aux.iter().enumerate().map(|(i, a)| (i + 1, a)) {
        let lambda = lambda.as_ref().ok_or_else(|| FoldProblem::NoLambda { aux: side.file.clone() })?;
        check_depth(target, side, options)?;
        let lambdas = lambda
            .resolve(chosen, &blocks, options.kinds.as_deref())
            .map_err(|problem| FoldProblem::Lambda { source_name: lambda.origin(&side.file).to_owned(), problem })?;
        for ((layer, value), pairs) in chosen.iter().zip(lambdas).zip(&mut pairs) {
            let Some(value) = value else { continue };
            let named = matches!(lambda, LambdaSpec::Layers { .. });
            if let Some(found) = counterpart(target, layer, side, options, named)? {
                pairs.push(Pair { input, layer: found, tensor: found.weight, lambda: value });
            }
        }
    }
    Ok(pairs)
}

/// Checks that the blocks of both models can be paired: by their numbers, which are also their places in both.
fn check_depth(target: &Side<'_>, aux: &Side<'_>, options: &FoldOptions) -> Result<(), FoldProblem> {
    let (target_blocks, aux_blocks) = (target.layers.blocks(), aux.layers.blocks());
    let fits = match &options.blocks {
        // Blocks that were chosen by number have to be there, whatever else may be left out.
        Some(BlockSet(chosen)) => chosen.iter().all(|block| aux_blocks.contains(block)),
        None => {
            if target_blocks.iter().zip(&aux_blocks).any(|(target, aux)| target != aux) {
                let (target_blocks, aux_blocks) = (BlockSet::of(&target_blocks), BlockSet::of(&aux_blocks));
                let (target, aux) = (target.file.clone(), aux.file.clone());
                return Err(FoldProblem::Numbering { target, target_blocks, aux, aux_blocks });
            }
            target_blocks.len() == aux_blocks.len() || options.depth_mismatch == DepthMismatch::First
        }
    };
    if fits {
        return Ok(());
    }
    Err(FoldProblem::Depth { target: target.file.clone(), target_blocks, aux: aux.file.clone(), aux_blocks })
}

/// The auxiliary's layer for the target's; `None` if it lacks the whole block and that was allowed, which it is not for a
/// layer that was `named` by itself.
fn counterpart<'a>(
    target: &Side<'_>,
    layer: &Layer,
    aux: &'a Side<'_>,
    options: &FoldOptions,
    named: bool,
) -> Result<Option<&'a Layer>, FoldProblem> {
    if let Some(found) = aux.layers.get(layer.id, layer.part) {
        return Ok(Some(found));
    }
    if !named && options.depth_mismatch == DepthMismatch::First && !aux.layers.blocks().contains(&layer.id.block) {
        return Ok(None);
    }
    let (aux, target) = (aux.file.clone(), target.file.clone());
    Err(FoldProblem::NoAuxLayer { aux, layer: layer.id, module: layer.module.clone(), target })
}

fn side<'s, 'a>(target: &'s Side<'a>, aux: &'s [AuxSide<'a>], input: usize) -> &'s Side<'a> {
    if input == 0 { target } else { &aux[input - 1].side }
}

fn checked(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    layer: &Layer,
    parameter: Parameter,
    tensor: usize,
    terms: &[(usize, usize, f64)],
) -> Result<FoldedLayer, FoldProblem> {
    let spec = &target.specs[tensor];
    let foldable = |spec: &TensorSpec, file: &str| {
        let (name, file, dtype) = (spec.name.clone(), file.to_owned(), spec.dtype);
        if dtype.is_foldable() { Ok(()) } else { Err(FoldProblem::Type { name, file, dtype }) }
    };
    foldable(spec, &target.file)?;
    let terms = terms
        .iter()
        .map(|&(input, tensor, lambda)| {
            let side = side(target, aux, input);
            let found = &side.specs[tensor];
            if found.shape != spec.shape {
                return Err(FoldProblem::Shape(Box::new(ShapeMismatch {
                    name: spec.name.clone(),
                    target: target.file.clone(),
                    shape: spec.shape.clone(),
                    aux_name: found.name.clone(),
                    aux: side.file.clone(),
                    aux_shape: found.shape.clone(),
                })));
            }
            foldable(found, &side.file)?;
            let narrow = spec.dtype != DType::F64 && found.dtype != DType::F64;
            if narrow && (lambda as f32).is_infinite() {
                return Err(FoldProblem::LambdaTooLarge { lambda: lambda.to_string(), name: spec.name.clone() });
            }
            Ok(FoldedTerm { name: found.name.clone(), source: TensorRef { input, tensor }, lambda })
        })
        .collect::<Result<_, _>>()?;
    let (name, shape) = (spec.name.clone(), spec.shape.clone());
    Ok(FoldedLayer { id: layer.id, parameter, name, shape, dtype: spec.dtype, step: 0, terms })
}

fn weight(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    layer: &Layer,
    pairs: &[Pair<'_>],
) -> Result<FoldedLayer, FoldProblem> {
    let terms: Vec<_> = pairs.iter().map(|pair| (pair.input, pair.tensor, pair.lambda)).collect();
    checked(target, aux, layer, Parameter::Weight, layer.weight, &terms)
}

/// `b + lambda * b'`. An auxiliary layer without any bias adds nothing; a target layer without one cannot take any.
fn bias(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    layer: &Layer,
    pairs: &[Pair<'_>],
) -> Result<Option<FoldedLayer>, FoldProblem> {
    let mut terms = Vec::new();
    for pair in pairs {
        let side = side(target, aux, pair.input);
        let wrong = |file: &str, module: &str, what| {
            Err(FoldProblem::Bias { file: file.to_owned(), module: module.to_owned(), what })
        };
        if pair.input == 0 {
            return wrong(&side.file, &layer.module, "has an auxiliary weight, but no auxiliary bias");
        }
        match (layer.bias, pair.layer.bias) {
            (Some(_), Some(bias)) => terms.push((pair.input, bias, pair.lambda)),
            (_, None) if has_split_bias(side, pair.layer) => {
                return wrong(&side.file, &pair.layer.module, "keeps its bias as q_bias and v_bias");
            }
            (None, Some(_)) => return wrong(&target.file, &layer.module, "has no bias to add one to"),
            (_, None) => {}
        }
    }
    match layer.bias {
        Some(tensor) if !terms.is_empty() => checked(target, aux, layer, Parameter::Bias, tensor, &terms).map(Some),
        _ => Ok(None),
    }
}

/// Whether the attention of that layer keeps its bias in pieces (VideoMAE, BEiT).
fn has_split_bias(side: &Side<'_>, layer: &Layer) -> bool {
    let parent = layer.module.rsplit_once('.').map_or("", |(parent, _)| parent);
    layer.id.kind == LayerKind::Qkv && side.specs.iter().any(|s| s.name == format!("{parent}.q_bias"))
}
