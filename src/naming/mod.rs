//! Which tensors of a checkpoint are the linear layers of its transformer blocks.
//!
//! A [`Selector`] is a regular expression over tensor names that tells the block and the layer; a [`Family`] is a
//! selector and what a checkpoint of that family is recognised by, read from a table file. [`Layers::find`] applies a
//! selector and checks that it finds each layer once.

mod architecture;
mod family;
mod layers;
mod mapping;
mod near;
mod pattern;
mod rules;
mod selector;
#[cfg(test)]
mod tables;
mod template;

pub use architecture::Architecture;
pub use family::{Family, Recognised};
pub use layers::{AUX_WEIGHT, Flags, Layer, Layers, MatchProblem, SCALE};
pub use mapping::{MapProblem, Mapped, Mapping};
pub(crate) use near::nearest;
pub use rules::Unmapped;
pub use selector::{PatternProblem, Selector};

use std::fmt;

/// The four linear layers of a transformer block, by the names that timm gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerKind {
    /// `attn.qkv`: queries, keys and values, stacked in that order; shape `[3 * width, width]`.
    Qkv,
    /// `attn.proj`: the output of the attention; shape `[width, width]`.
    Proj,
    /// `mlp.fc1`: the widening layer of the MLP; shape `[hidden, width]`.
    Fc1,
    /// `mlp.fc2`: the narrowing layer of the MLP; shape `[width, hidden]`.
    Fc2,
}

impl LayerKind {
    /// All four, in the order they are applied in a block.
    pub const ALL: [LayerKind; 4] = [LayerKind::Qkv, LayerKind::Proj, LayerKind::Fc1, LayerKind::Fc2];

    /// `qkv`, `proj`, `fc1` or `fc2`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LayerKind::Qkv => "qkv",
            LayerKind::Proj => "proj",
            LayerKind::Fc1 => "fc1",
            LayerKind::Fc2 => "fc2",
        }
    }

    /// The name of the module in timm's blocks: `attn.qkv`, `attn.proj`, `mlp.fc1` or `mlp.fc2`.
    #[must_use]
    pub fn timm_module(self) -> &'static str {
        match self {
            LayerKind::Qkv => "attn.qkv",
            LayerKind::Proj => "attn.proj",
            LayerKind::Fc1 => "mlp.fc1",
            LayerKind::Fc2 => "mlp.fc2",
        }
    }

    /// The kind with that name, alone or as the last part of a dotted one (`attn.qkv`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<LayerKind> {
        let last = name.rsplit('.').next()?;
        LayerKind::ALL.into_iter().find(|kind| kind.name() == last)
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One linear layer of a model: its block, counted from 0, and its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId {
    /// The number of the block.
    pub block: usize,
    /// Which of the block's four linear layers.
    pub kind: LayerKind,
}

impl LayerId {
    /// The layer that timm's tensor `name` (`blocks.3.attn.qkv.weight`) is the weight of.
    #[must_use]
    pub fn of_weight(name: &str) -> Option<LayerId> {
        let (block, layer) = name.strip_prefix("blocks.")?.strip_suffix(".weight")?.split_once('.')?;
        let kind = LayerKind::ALL.into_iter().find(|kind| kind.timm_module() == layer)?;
        Some(LayerId { block: block.parse().ok()?, kind })
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.block, self.kind))
    }
}
