//! Lambdas are learned from samples: gradients of a loss with respect to them, everything else frozen.
//!
//! [`Learner`] pairs the layers of a target and an auxiliary as a fold does, and runs the target's model with
//! `W + lambda * W'` in each. [`Learner::fit`] follows the gradients with an [`Optimizer`], [`Learner::search`] tries one lambda for all
//! layers with forward passes only. [`Learner::evaluate`] runs the folded model as `verify` does: what is reported of lambdas
//! is what the fold does.

mod augment;
mod file;
mod fit;
mod learner;
mod objective;
mod optimizer;
mod samples;
mod trained;

use std::path::PathBuf;

pub use augment::Augment;
pub use file::TextFile;
pub use fit::{Ended, Epoch, FitOptions, Fitted, Heard, Search, State};
pub use learner::{Differentiable, Evaluation, Learner, Share, Slope};
pub use objective::Objective;
pub use optimizer::{Method, Optimizer, clip, cosine};
pub use samples::{Samples, split};
pub use trained::{Train, Trained, safetensors};

use crate::data::SampleError;
use crate::model::ModelError;
use crate::verify::VerifyError;

/// Why lambdas cannot be learned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// A file, a model or samples cannot be used.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A sample cannot be read.
    #[error("every sample has to be readable; take it out of the set, or repair it")]
    Sample(#[source] Box<SampleError>),
    /// The model has no head.
    #[error("{} has no head: without logits there is no loss", path.display())]
    NoHead {
        /// The target.
        path: PathBuf,
    },
    /// A sample has no label, which cross-entropy needs.
    #[error("sample {name:?} has no label, which cross-entropy needs; entropy needs none")]
    NoLabel {
        /// The sample.
        name: String,
    },
    /// A sample has a label that is no class of the model.
    #[error("sample {name:?} has the class {label}, and the model has {classes} (0 to {})", classes.saturating_sub(1))]
    Label {
        /// The sample.
        name: String,
        /// Its class.
        label: usize,
        /// How many classes the model has.
        classes: usize,
    },
    /// Too few samples to hold some out.
    #[error(
        "{samples} samples cannot be split: {fit} would be fitted and {held_out} held out; give more, or others to hold out"
    )]
    Split {
        /// All samples.
        samples: usize,
        /// Those to fit.
        fit: usize,
        /// Those held out.
        held_out: usize,
    },
    /// The model computes NaN or infinity before anything is learned.
    #[error("the loss is not finite before the first step: the weights, the samples or the first lambda make it so")]
    NotFinite,
    /// A state to go on from is of another run.
    #[error("the saved state does not fit: {what}; leave out --resume to begin anew")]
    State {
        /// What does not fit.
        what: String,
    },
    /// A layer is asked for that cannot be learned.
    #[error("{name:?} works beside an auxiliary weight of the target's own; fold that first")]
    OwnPathway {
        /// The weight.
        name: String,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Option(String),
}

impl From<crate::Error> for LearnError {
    fn from(error: crate::Error) -> LearnError {
        LearnError::Verify(error.into())
    }
}

impl LearnError {
    fn model(path: &std::path::Path, source: impl Into<ModelError>) -> LearnError {
        VerifyError::Model { path: path.to_owned(), source: Box::new(source.into()) }.into()
    }
}
