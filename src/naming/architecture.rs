//! What a state dict's shapes tell of the model.

use std::fmt;

use super::Layers;
use crate::tensor::TensorSpec;

/// The dimensions of a ViT, as far as its tensors tell; attention heads are not in the weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Architecture {
    /// The number of transformer blocks.
    pub depth: usize,
    /// The width of a token.
    pub width: usize,
    /// The sides of a patch, without the channels: `[4, 4]`, or `[2, 16, 16]` for video.
    pub patch: Vec<usize>,
    /// Input channels.
    pub channels: Option<usize>,
    /// Positions of patches, and of prefix tokens (class, register) in the position embedding.
    pub positions: Option<(usize, usize)>,
    /// Output classes of the head.
    pub classes: Option<usize>,
    /// How many layers carry a learned lambda.
    pub lambdas: usize,
}

impl Architecture {
    /// What `specs`, with the linear layers `layers` among them, are the tensors of; `None` if no layer has a shape
    /// that a ViT's has.
    #[must_use]
    pub fn guess(specs: &[TensorSpec], layers: &Layers) -> Option<Architecture> {
        let shape = |suffix: &str| {
            specs
                .iter()
                .filter(|s| s.name == suffix || s.name.strip_suffix(suffix).is_some_and(|p| p.ends_with('.')))
                .find(|s| !s.name.split('.').any(|part| part.to_ascii_lowercase().contains("decoder")))
                .map(|s| s.shape.as_slice())
        };
        let first = layers.as_slice().first()?;
        let &[_, width] = specs[first.weight].shape.as_slice() else { return None };
        let embedding = shape("patch_embed.proj.weight");
        let positions = match shape("pos_embed") {
            Some(&[_, tokens, _]) => {
                let tied = |t: &str| shape(t).is_some_and(|s| s.len() == 3 && s[1] <= tokens);
                let registers = shape("reg_token").and_then(|s| s.get(1)).copied().unwrap_or(0);
                let prefix = usize::from(tied("cls_token")) + usize::from(tied("dist_token"));
                // Registers share in the position embedding or not, depending on the model: the grid tells.
                let square = |n: usize| n.isqrt().pow(2) == n;
                let all = prefix + registers;
                let prefix = if registers > 0 && tokens > all && square(tokens - all) { all } else { prefix };
                Some((tokens.saturating_sub(prefix), prefix.min(tokens)))
            }
            _ => None,
        };
        let head = shape("head.weight").or_else(|| shape("head.1.weight"));
        Some(Architecture {
            depth: layers.blocks().len(),
            width,
            patch: embedding.and_then(|s| s.get(2..)).unwrap_or_default().to_vec(),
            channels: embedding.and_then(|s| s.get(1)).copied(),
            positions,
            classes: head.filter(|s| s.len() == 2).map(|s| s[0]),
            lambdas: layers.learned(),
        })
    }
}

impl fmt::Display for Architecture {
    /// For example `ViT: 6 blocks x 64, patch 4, 64+1 positions, 10 classes; pathway with 24 lambdas`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(f, "ViT: {} block{} x {}", self.depth, plural(self.depth), self.width)?;
        match self.patch.as_slice() {
            [] => {}
            [a, rest @ ..] if rest.iter().all(|b| a == b) => write!(f, ", patch {a}")?,
            sides => write!(f, ", patch {}", sides.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))?,
        }
        match self.positions {
            Some((grid, 0)) => write!(f, ", {grid} positions")?,
            Some((grid, prefix)) => write!(f, ", {grid}+{prefix} positions")?,
            None => {}
        }
        if let Some(channels) = self.channels.filter(|&c| c != 3) {
            write!(f, ", {channels} input channel{}", plural(channels))?;
        }
        match self.classes {
            Some(1) => write!(f, ", 1 class")?,
            Some(classes) => write!(f, ", {classes} classes")?,
            None => write!(f, ", no head")?,
        }
        if self.lambdas > 0 {
            write!(f, "; pathway with {} lambda{}", self.lambdas, plural(self.lambdas))?;
        }
        Ok(())
    }
}
