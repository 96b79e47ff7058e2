//! Whether a model does what it should: how often it is right, whether two models differ, whether logits are the same.
//!
//! [`statistics`] says what counts mean, [`Accuracy`] scores logits against labels, [`Paired`] compares two models on the
//! same samples, [`Comparison`] says how far apart two matrices of numbers are. All of them are pure functions of logits.
//! [`run`] takes models through a [`Source`] of inputs; [`Equivalence`] compares two of them, block by block where they
//! differ most. [`Pathway`] pairs a target with auxiliaries as a fold does, to be run as branches.
//! [`Reference`] reads logits that were computed elsewhere, [`SavedLogits`] writes them.

mod accuracy;
mod compare;
mod equivalence;
mod error;
mod files;
mod logits;
mod npz;
mod paired;
mod pathway;
mod runner;
mod source;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use accuracy::{Accuracy, ClassAccuracy, Rate, TOP};
pub use compare::Comparison;
pub use equivalence::{Equivalence, default_tolerance};
pub use error::{ReferenceProblem, VerifyError};
pub use files::{Reference, SavedLogits};
pub use logits::Logits;
pub use paired::{Flip, Paired, SIGNIFICANT, flips};
pub use pathway::{Pair, Pathway};
pub use runner::{Run, Subject, run, trace};
pub use source::Source;
pub use statistics::Interval;
