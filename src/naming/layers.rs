//! The layers that a selector finds in a state dict.

use std::collections::{BTreeMap, BTreeSet};

use super::mapping::{MapProblem, Mapped, Mapping};
use super::{Family, LayerId, Selector};
use crate::tensor::TensorSpec;

/// The last part of the name of a trained pathway's scale: lambda, shape `[1]`.
pub const SCALE: &str = "cross_modal_scale";
/// The last part of the name of a trained pathway's auxiliary weight.
pub const AUX_WEIGHT: &str = "aux_weight";

/// How many near misses an error shows.
const NEAR_MISSES: usize = 6;

/// How many different names are compared for that: no model has more, once numbers are taken out.
const COMPARED: usize = 4096;

/// The longest name that an error shows, in bytes.
const LONGEST_NEAR_MISS: usize = 256;

/// The options that help where layers could not be matched, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// The option that chooses a part of the file.
    pub root: &'static str,
    /// The option that replaces the pattern.
    pub pattern: &'static str,
}

impl Flags {
    /// Those for the target.
    pub const TARGET: Flags = Flags { root: "--root", pattern: "--target-pattern" };
    /// Those for an auxiliary.
    pub const AUX: Flags = Flags { root: "--aux-root", pattern: "--aux-pattern" };
}

/// Why layers could not be matched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatchProblem {
    /// No tensor has a name that the pattern matches.
    #[error(
        "no tensor is named like a linear layer ({}); {}; name the layers with {}, or choose another part of the file \
         with {}",
        pattern, near_text(.near), flags.pattern, flags.root
    )]
    Nothing {
        /// The pattern, or the names that a family gives its layers.
        pattern: String,
        /// Names of tensors that are most like it, numbers replaced by `N`.
        near: Vec<String>,
        /// The options that help.
        flags: Flags,
    },
    /// Two tensors are matched as the same layer.
    #[error("both {first:?} and {second:?} are matched as layer {layer}; choose a part of the file with {}, or write a stricter {}", flags.root, flags.pattern)]
    Twice {
        /// The layer.
        layer: LayerId,
        /// The tensor that comes first in the file.
        first: String,
        /// The other one.
        second: String,
        /// The options that help.
        flags: Flags,
    },
    /// Several models in one part of the file.
    #[error(
        "there is a model under each of {}; choose a part of the file with {}, or write a stricter {}",
        prefixes.iter().map(|prefix| format!("{prefix:?}")).collect::<Vec<_>>().join(", "), flags.root, flags.pattern
    )]
    SeveralModels {
        /// What stands before their names.
        prefixes: Vec<String>,
        /// The options that help.
        flags: Flags,
    },
    /// The names are a family's, but do not fit together.
    #[error("{0}")]
    Names(Box<MapProblem>),
    /// A weight is not stored as PyTorch's linear layers have it.
    #[error(
        "{name:?} is stored in another form than PyTorch's linear layers; convert the file first (m2pt-surgery convert)"
    )]
    OtherForm {
        /// The tensor.
        name: String,
    },
    /// A trained pathway's tensor belongs to no layer that was matched.
    #[error("{name:?} belongs to no linear layer that was recognised; name the layers with {}", flags.pattern)]
    StrayPathway {
        /// The tensor.
        name: String,
        /// The options that help.
        flags: Flags,
    },
}

/// How timm names the layers, for messages.
const TIMM_LAYERS: &str = "blocks.N.attn.qkv, attn.proj, mlp.fc1, mlp.fc2";

fn near_text(near: &[String]) -> String {
    if near.is_empty() {
        return "it holds no weights with two dimensions at all".to_owned();
    }
    format!("the nearest names are: {}", near.join(", "))
}

/// A linear layer of a state dict; the numbers are indices into its specs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which layer it is.
    pub id: LayerId,
    /// Which of the layers stacked in it this one is, if they are kept apart: 0 the queries', 1 the keys', 2 the values'.
    pub part: Option<usize>,
    /// The name of the module: the weight's name without `.weight`.
    pub module: String,
    /// The weight.
    pub weight: usize,
    /// The bias, if it has one.
    pub bias: Option<usize>,
    /// The learned lambda of a trained pathway, if it has one.
    pub scale: Option<usize>,
    /// The auxiliary weight of a trained pathway, if it has one.
    pub aux_weight: Option<usize>,
}

/// The linear layers of a state dict, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    layers: Vec<Layer>,
}

impl Layers {
    /// Finds the layers that `selector` matches among `specs`; `flags` are the options that messages speak of.
    ///
    /// # Errors
    /// [`MatchProblem`] if nothing is matched, a layer is matched twice, or pathway tensors are left over.
    pub fn find(specs: &[TensorSpec], selector: &Selector, flags: Flags) -> Result<Layers, MatchProblem> {
        Layers::by_name(specs, |name| selector.layer(name), selector.pattern(), flags)
    }

    /// Finds the tensors that `layer` says are weights; `what` it looks for, for messages.
    fn by_name(
        specs: &[TensorSpec],
        layer: impl Fn(&str) -> Option<LayerId>,
        what: &str,
        flags: Flags,
    ) -> Result<Layers, MatchProblem> {
        let by_name: BTreeMap<&str, usize> = specs.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        let mut found: BTreeMap<LayerId, usize> = BTreeMap::new();
        let mut layers = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            if spec.name.ends_with(".bias") || is_pathway(&spec.name) {
                continue;
            }
            let Some(id) = layer(&spec.name) else { continue };
            if let Some(&first) = found.get(&id) {
                let (first, second) = (specs[first].name.clone(), spec.name.clone());
                return Err(MatchProblem::Twice { layer: id, first, second, flags });
            }
            found.insert(id, index);
            let module = spec.name.strip_suffix(".weight").unwrap_or(&spec.name).to_owned();
            let sibling = |part: &str| by_name.get(format!("{module}.{part}").as_str()).copied();
            let (bias, scale, aux_weight) = (sibling("bias"), sibling(SCALE), sibling(AUX_WEIGHT));
            layers.push(Layer { id, part: None, module, weight: index, bias, scale, aux_weight });
        }
        if layers.is_empty() {
            return Err(nothing(specs, what, flags));
        }
        Layers { layers }.without_strays(specs, flags)
    }

    /// Finds the layers of a checkpoint of that family. Queries, keys and values that it keeps apart are layers of their own.
    ///
    /// # Errors
    /// As [`Layers::find`]; [`MatchProblem::Names`], [`MatchProblem::OtherForm`].
    pub fn of_family(specs: &[TensorSpec], family: &Family, flags: Flags) -> Result<Layers, MatchProblem> {
        let mapping = Layers::mapping(specs, family, flags)?;
        let by_name: BTreeMap<&str, &Mapped> = mapping.tensors.iter().map(|m| (m.name.as_str(), m)).collect();
        let mut layers = Vec::new();
        for mapped in &mapping.tensors {
            let Some(id) = LayerId::of_weight(&mapped.name) else { continue };
            let beside = |leaf: &str, part: usize| {
                let name = format!("{}{leaf}", mapped.name.strip_suffix("weight").unwrap_or_default());
                // Where the weights are kept apart, the biases are, and the other way round.
                let sources = by_name.get(name.as_str()).map(|found| found.sources.as_slice());
                sources.filter(|sources| sources.len() == mapped.sources.len()).and_then(|sources| sources[part])
            };
            for (part, index) in mapped.sources.iter().enumerate() {
                let Some(index) = *index else { continue };
                let name = &specs[index].name;
                if !mapped.keeps_elements {
                    return Err(MatchProblem::OtherForm { name: name.clone() });
                }
                layers.push(Layer {
                    id,
                    part: (mapped.sources.len() > 1).then_some(part),
                    module: name.strip_suffix(".weight").unwrap_or(name).to_owned(),
                    weight: index,
                    bias: beside("bias", part),
                    scale: beside(SCALE, part),
                    aux_weight: beside(AUX_WEIGHT, part),
                });
            }
        }
        if layers.is_empty() {
            return Err(nothing(specs, TIMM_LAYERS, flags));
        }
        layers.sort_by_key(|layer| layer.weight);
        Layers { layers }.without_strays(specs, flags)
    }

    /// Finds layers with timm's names, of any kinds, where no family is recognised: what an error then speaks of.
    ///
    /// # Errors
    /// As [`Layers::find`].
    pub(crate) fn with_timm_names(specs: &[TensorSpec], flags: Flags) -> Result<Layers, MatchProblem> {
        let timm = Family::timm();
        let layer = |name: &str| {
            let (before, name) = name.split_at(name.find("blocks.")?);
            LayerId::of_weight(name).filter(|_| timm.is_prefix(before))
        };
        Layers::by_name(specs, layer, TIMM_LAYERS, flags)
    }

    /// What the tensors `specs` are in timm's names.
    pub(crate) fn mapping(specs: &[TensorSpec], family: &Family, flags: Flags) -> Result<Mapping, MatchProblem> {
        family.map(specs).map_err(|problem| match problem {
            MapProblem::NotThatFamily { .. } => nothing(specs, TIMM_LAYERS, flags),
            MapProblem::SeveralModels { prefixes } => MatchProblem::SeveralModels { prefixes, flags },
            problem => MatchProblem::Names(Box::new(problem)),
        })
    }

    /// Layers that were found otherwise.
    pub(crate) fn new(layers: Vec<Layer>) -> Layers {
        Layers { layers }
    }

    /// Checks that every tensor of a pathway belongs to one of them.
    fn without_strays(self, specs: &[TensorSpec], flags: Flags) -> Result<Layers, MatchProblem> {
        let claimed: BTreeSet<usize> = self.layers.iter().flat_map(|l| [l.scale, l.aux_weight]).flatten().collect();
        match specs.iter().enumerate().find(|(i, s)| is_pathway(&s.name) && !claimed.contains(i)) {
            Some((_, stray)) => Err(MatchProblem::StrayPathway { name: stray.name.clone(), flags }),
            None => Ok(self),
        }
    }

    /// The layers, in the order of their weights in the state dict.
    #[must_use]
    pub fn as_slice(&self) -> &[Layer] {
        &self.layers
    }

    /// The layer with that id, and that part of it.
    #[must_use]
    pub fn get(&self, id: LayerId, part: Option<usize>) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.id == id && layer.part == part)
    }

    /// The numbers of the blocks that have layers, ascending.
    #[must_use]
    pub fn blocks(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.id.block).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many layers carry a learned lambda.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.layers.iter().filter(|layer| layer.scale.is_some()).count()
    }
}

/// Whether a tensor of that name is part of a trained pathway.
pub(crate) fn is_pathway(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    last == SCALE || last == AUX_WEIGHT
}

fn nothing(specs: &[TensorSpec], pattern: &str, flags: Flags) -> MatchProblem {
    MatchProblem::Nothing { near: near_misses(specs, pattern), pattern: pattern.to_owned(), flags }
}

/// Every run of digits replaced by `N`.
fn generalise(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('N') {
            out.push('N');
        }
    }
    out
}

/// The names, generalised, of the weights with two dimensions that are most like the pattern's literal text.
fn near_misses(specs: &[TensorSpec], pattern: &str) -> Vec<String> {
    let literal: String = pattern
        .replace("(?<block>", "")
        .replace("(?P<block>", "")
        .replace(r"\d+", "N")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'))
        .collect();
    let names: BTreeSet<String> = specs
        .iter()
        .filter(|s| s.shape.len() == 2 && s.name.len() <= LONGEST_NEAR_MISS)
        .map(|s| generalise(&s.name))
        .collect();
    let mut names: Vec<(f64, String)> =
        names.into_iter().take(COMPARED).map(|name| (strsim::jaro_winkler(&name, &literal), name)).collect();
    names.sort_by(|(a, first), (b, second)| b.total_cmp(a).then_with(|| first.cmp(second)));
    names.into_iter().take(NEAR_MISSES).map(|(_, name)| name).collect()
}
