//! Why a fold cannot be planned.

use super::BlockSet;
use crate::naming::{LayerId, LayerKind};
use crate::plan::LambdaProblem;
use crate::tensor::{DType, TensorSpec, shape_text};

/// Why a fold cannot be planned. Files are named as the user gave them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FoldProblem {
    /// A fold without an auxiliary.
    #[error("{target} carries no learned pathway, so that a fold needs an auxiliary: add --aux FILE")]
    NoAux {
        /// The target.
        target: String,
    },
    /// An auxiliary without a lambda.
    #[error("no lambda is given for {aux}: add --lambda NUMBER or write --aux {aux}=NUMBER")]
    NoLambda {
        /// The auxiliary.
        aux: String,
    },
    /// A lambda on top of learned ones.
    #[error("{target} carries learned lambdas; leave out --lambda, --lambda-file and FILE=LAMBDA to fold with them")]
    LambdaOnLearned {
        /// The target.
        target: String,
    },
    /// An auxiliary on top of auxiliary weights in the target.
    #[error("{target} holds its own auxiliary weights; leave out --aux to fold with them")]
    AuxOnLearned {
        /// The target.
        target: String,
    },
    /// A graft onto a target that has pathways.
    #[error("{target} has trainable pathways already; fold them into its weights first (m2pt-surgery fold)")]
    GraftOnPathway {
        /// The target.
        target: String,
    },
    /// Several auxiliaries for one set of learned lambdas.
    #[error("{target} carries one learned lambda for each layer, but {count} auxiliaries are given; give one")]
    OneAuxOnly {
        /// The target.
        target: String,
        /// How many were given.
        count: usize,
    },
    /// A trained pathway is incomplete.
    #[error("{target}: layer {module} lacks its {lacking}, so that its learned pathway cannot be folded{way_out}")]
    IncompletePathway {
        /// The target.
        target: String,
        /// The layer's module.
        module: String,
        /// What is missing.
        lacking: &'static str,
        /// What to do, after a semicolon; or nothing.
        way_out: &'static str,
    },
    /// A lambda is wrong.
    #[error("{source_name}: {problem}")]
    Lambda {
        /// The file or auxiliary that the lambda is for.
        source_name: String,
        /// What is wrong.
        problem: LambdaProblem,
    },
    /// No layer is left after --layers and --blocks.
    #[error("--layers and --blocks leave no layer to fold; {target} has the blocks {blocks}")]
    NothingChosen {
        /// The target.
        target: String,
        /// Its blocks.
        blocks: String,
    },
    /// The choices that were made leave nothing to add to any layer.
    #[error(
        "nothing would be folded: no chosen layer of {target} has a lambda and a counterpart; choose others with --layers or --blocks"
    )]
    NothingFolded {
        /// The target.
        target: String,
    },
    /// A lambda that float32 cannot hold.
    #[error("lambda {lambda} is too large for float32, in which {name} is folded")]
    LambdaTooLarge {
        /// The lambda.
        lambda: String,
        /// The target's tensor.
        name: String,
    },
    /// An option that has nothing to apply to.
    #[error("{option} has nothing to apply to: {why}; leave it out")]
    Unused {
        /// The option.
        option: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A chosen block does not exist.
    #[error("--blocks names block {block}, but {target} has the blocks {blocks}")]
    NoSuchBlock {
        /// The target.
        target: String,
        /// The block.
        block: usize,
        /// Its blocks.
        blocks: String,
    },
    /// Target and auxiliary have different blocks.
    #[error(
        "the models differ in depth: {target} has {} blocks ({}), {aux} has {} ({}); --depth-mismatch first folds the \
         blocks that both have, --blocks chooses some of them",
        target_blocks.len(), BlockSet::of(target_blocks), aux_blocks.len(), BlockSet::of(aux_blocks)
    )]
    Depth {
        /// The target.
        target: String,
        /// The numbers of its blocks.
        target_blocks: Vec<usize>,
        /// The auxiliary.
        aux: String,
        /// The numbers of its blocks.
        aux_blocks: Vec<usize>,
    },
    /// Target and auxiliary number their blocks differently, so that numbers and places would pair them differently.
    #[error(
        "the blocks are numbered differently: {target} has {target_blocks}, {aux} has {aux_blocks}; write an --aux-pattern or \
         --target-pattern whose group `block` captures the same numbers in both"
    )]
    Numbering {
        /// The target.
        target: String,
        /// The numbers of its blocks.
        target_blocks: BlockSet,
        /// The auxiliary.
        aux: String,
        /// The numbers of its blocks.
        aux_blocks: BlockSet,
    },
    /// A chosen kind of layer does not exist among the chosen blocks.
    #[error("--layers names {kind}, but {target} has no such layer in the chosen blocks")]
    NoSuchKind {
        /// The target.
        target: String,
        /// The kind.
        kind: LayerKind,
    },
    /// The auxiliary lacks a layer in a block that it has.
    #[error(
        "{aux} has no layer {layer} to fold into {module} of {target}; leave it out with --layers, or name it with --aux-pattern"
    )]
    NoAuxLayer {
        /// The auxiliary.
        aux: String,
        /// The layer.
        layer: LayerId,
        /// The target's module.
        module: String,
        /// The target.
        target: String,
    },
    /// Two tensors that belong together have different shapes.
    #[error("{0}")]
    Shape(Box<ShapeMismatch>),
    /// Tensors that should replace some of the target's, and have no counterpart.
    #[error("{0}")]
    NotInTarget(Box<NotInTarget>),
    /// A tensor that should replace one of another kind.
    #[error("{0}")]
    Replace(Box<ReplaceMismatch>),
    /// A tensor is of a type that is not computed with.
    #[error("{name} of {file} is {dtype}; a fold needs float64, float32, float16 or bfloat16: convert it first")]
    Type {
        /// The tensor.
        name: String,
        /// Its file.
        file: String,
        /// Its type.
        dtype: DType,
    },
    /// Biases cannot be folded, because one side lacks them.
    #[error("--bias fold: {module} of {file} {what}; use --bias keep, or leave the layer out with --layers")]
    Bias {
        /// The file.
        file: String,
        /// The layer's module.
        module: String,
        /// What is missing.
        what: &'static str,
    },
}

/// Two tensors that belong together, but have different shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} of {target} is {}, but {aux_name} of {aux} is {}: layers fold into layers of the same shape only",
    shape_text(shape),
    shape_text(aux_shape)
)]
pub struct ShapeMismatch {
    /// The target's tensor.
    pub name: String,
    /// The target.
    pub target: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// The auxiliary's tensor.
    pub aux_name: String,
    /// The auxiliary.
    pub aux: String,
    /// Its shape.
    pub aux_shape: Vec<usize>,
}

/// Tensors that should take the place of the target's, which has none of their names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file} has tensors of names that {target} has not: {}; a tensor takes the place of one of the same name, and \
     --replace-root chooses another part of the file",
    names_text(names, *count)
)]
pub struct NotInTarget {
    /// The target.
    pub target: String,
    /// The file.
    pub file: String,
    /// The first names, each with one of the target's that is like it.
    pub names: Vec<(String, Option<String>)>,
    /// How many there are.
    pub count: usize,
}

fn names_text(names: &[(String, Option<String>)], count: usize) -> String {
    let text = |(name, near): &(String, Option<String>)| match near {
        Some(near) => format!("{name} (near it is {near})"),
        None => name.clone(),
    };
    let all = names.iter().map(text).collect::<Vec<_>>().join(", ");
    let more = count.saturating_sub(names.len());
    if more > 0 { format!("{all} and {more} more") } else { all }
}

/// A tensor that should take the place of one of another shape, or of a type that is none of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is {} {} in {file}, but {} {} in {target}: a tensor takes the place of one of the same shape, and of the same type or \
     both of float64, float32, float16 and bfloat16",
    tensor.name,
    other.dtype,
    shape_text(&other.shape),
    tensor.dtype,
    shape_text(&tensor.shape)
)]
pub struct ReplaceMismatch {
    /// The target.
    pub target: String,
    /// The file.
    pub file: String,
    /// The target's tensor.
    pub tensor: TensorSpec,
    /// The one that should take its place.
    pub other: TensorSpec,
}
