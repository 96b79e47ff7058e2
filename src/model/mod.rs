//! Vision transformers in candle: run a checkpoint, plain or with its pathways unfolded.
//!
//! The model is timm's `VisionTransformer` in all of the 163 forms that its module makes: tokenizer, prefix tokens, positions, the five
//! kinds of blocks, pooling, head. DeiT's distilled models and the heads of MAE's linear probing are there besides.
//!
//! [`Config::detect`] tells from the weights what the model is made of; [`Known`] from a name or a `config.json`.
//! [`Vit::new`] takes every tensor exactly once, as `load_state_dict(strict=True)` does.

mod arguments;
mod blocks;
mod catalogue;
mod config;
mod detect;
mod gradient;
mod kernels;
mod keys;
mod layers;
mod variable;
mod vit;

pub use catalogue::Known;
pub use config::{Activation, BlockKind, Config, MlpKind, Norm, NormKind, Pool, Positions};
pub use detect::{Detected, Hints};
pub use gradient::{Gradients, Slopes, Training};
pub use kernels::{Kernels, Precision};
pub(crate) use keys::read_f32;
pub use keys::{Branches, KeyProblems};
pub use variable::Variable;
pub use vit::{Load, Vit};

use crate::checkpoint::StateDict;
use crate::tensor::DType;

/// Why a model cannot be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The tensors are no ViT's.
    #[error(
        "these are not the weights of a ViT with timm's names: {0}; `m2pt-surgery convert` makes such from other families"
    )]
    NoVit(String),
    /// The tensors are not exactly those of the model.
    #[error("the tensors are not the model's: {0}")]
    Keys(Box<KeyProblems>),
    /// A configuration that no model has.
    #[error("{0}")]
    Config(String),
    /// No architecture of timm's `vision_transformer` module has that name.
    #[error("timm {} has no vision transformer {name:?}; there are, for example, {}", Known::timm_version(), near.join(", "))]
    Architecture {
        /// The name.
        name: String,
        /// Names that are nearly the same.
        near: Vec<String>,
    },
    /// An auxiliary weight does not fit.
    #[error("{0}")]
    Branch(String),
    /// A tensor is of a type that models are not run from.
    #[error("{name:?} is {dtype}; models run from float64, float32, float16 and bfloat16 weights")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// A tensor cannot be read.
    #[error("cannot read the weights")]
    Read(#[source] Box<crate::Error>),
    /// candle refuses.
    #[error("candle cannot run the model")]
    Candle(#[from] candle_core::Error),
}

impl Config {
    /// The names and shapes of the tensors of such a model, in the order of its modules. Tensors that it may have or not are among
    /// them if `tensors` has them.
    ///
    /// # Errors
    /// [`ModelError::Config`] if there is no such model.
    pub fn tensors(&self, tensors: &StateDict<'_>) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        self.check()?;
        vit::needed(self, tensors)
    }

    /// Checks that `tensors` are exactly those of such a model, as `load_state_dict(strict=True)` does.
    ///
    /// # Errors
    /// [`ModelError::Keys`].
    pub fn check_tensors(&self, tensors: &StateDict<'_>) -> Result<(), ModelError> {
        vit::compare(self, tensors, &Branches::default())
    }
}

/// What stands before the names of the model's tensors, such as `module.`: what stands before its patch embedding's.
pub(crate) fn prefix_of(tensors: &StateDict<'_>) -> String {
    const EMBEDDING: &str = "patch_embed.proj.weight";
    let mut names = tensors.specs().iter().filter_map(|spec| spec.name.strip_suffix(EMBEDDING));
    match (names.next(), names.next()) {
        (Some(prefix), None) if prefix.is_empty() || prefix.ends_with('.') => prefix.to_owned(),
        _ => String::new(),
    }
}
