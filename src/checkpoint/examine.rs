//! Statistics and hashes of tensors, on all processors.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::StateDict;
use crate::engine::Progress;
use crate::error::Result;
use crate::parallel::{self, Watched};
use crate::tensor::{Stats, sha256};

/// What was found of a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examined {
    /// SHA-256 of its elements, if it was asked for.
    pub sha256: Option<String>,
    /// Statistics of its elements, if they were asked for and are real numbers.
    pub stats: Option<Stats>,
}

impl StateDict<'_> {
    /// Reads the tensors with those indices and computes their statistics and hashes, several at a time; `progress` is told
    /// of bytes that are read.
    ///
    /// # Errors
    /// As [`StateDict::tensor`]; [`crate::Error::Cancelled`].
    pub fn examine(
        &self,
        tensors: &[usize],
        stats: bool,
        hash: bool,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Examined>> {
        let watched = Watched::default();
        // What is expanded in memory is so one tensor at a time.
        let making = Mutex::new(());
        let look = |(): &mut (), number: usize| {
            let made = !self.is_in_place(tensors[number]);
            let _alone = made.then(|| making.lock().unwrap_or_else(PoisonError::into_inner));
            let data = self.tensor(tensors[number])?;
            let view = data.view();
            let stats = if stats { Stats::of(&view).ok() } else { None };
            let found = Examined { sha256: hash.then(|| sha256(&view)), stats };
            watched.done.fetch_add(self.specs()[tensors[number]].bytes(), Ordering::Relaxed);
            Ok(found)
        };
        parallel::run(tensors.len(), parallel::threads(None), &watched, progress, || (), look)
    }
}
