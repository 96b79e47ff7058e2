//! Whether a model does what it should: how often it is right, whether two models differ, whether logits are the same.
//!
//! [`statistics`] says what counts mean, [`Accuracy`] scores logits against labels, [`Paired`] compares two models on the
//! same samples, [`Comparison`] says how far apart two matrices of numbers are. All of them are pure functions of logits.
//! [`Reference`] reads logits that were computed elsewhere, [`SavedLogits`] writes them.

mod accuracy;
mod compare;
mod error;
mod files;
mod logits;
mod npz;
mod paired;
pub mod statistics;
#[cfg(test)]
mod tests;

pub use accuracy::{Accuracy, ClassAccuracy, Rate, TOP};
pub use compare::Comparison;
pub use error::{ReferenceProblem, VerifyError};
pub use files::{Inputs, Reference, SavedLogits};
pub use logits::Logits;
pub use paired::{Flip, Paired, SIGNIFICANT, flips};
