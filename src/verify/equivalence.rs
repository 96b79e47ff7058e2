//! Whether two models compute the same.

use super::runner::{Run, Subject, trace};
use super::{Comparison, Source, VerifyError};
use crate::tensor::DType;

/// How far apart the logits of two models may be that compute the same in different orders, as a part of the largest
/// logit, where weights are stored or computed with in `dtype`.
///
/// | type | tolerance | measured, 6 blocks of width 64 | measured, ViT-B/16 |
/// | --- | --- | --- | --- |
/// | float64, float32 | 1e-4 | 1.0e-6 | 1.6e-6 |
/// | float16 | 4e-3 | 1.4e-3 | 1.8e-3 |
/// | bfloat16 | 3e-2 | 1.1e-2 | 1.4e-2 |
#[must_use]
pub fn default_tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        _ => 1e-4,
    }
}

/// How close the outputs of two models are that should be the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Equivalence {
    /// The logits.
    pub logits: Comparison,
    /// The input with the largest difference, or, before all, the first with a NaN or infinity on one side only.
    pub worst: Option<usize>,
    /// The output of each block for that input.
    pub blocks: Vec<Comparison>,
    /// What may be between them; see [`Comparison::within`].
    pub tolerance: f64,
}

impl Equivalence {
    /// Compares the logits that `run` has of two of its models, whose numbers are given, and the outputs of their blocks for
    /// the input with the largest difference. The reference comes first.
    ///
    /// # Errors
    /// As [`super::run`]; the input cannot be read any more.
    pub fn new(
        run: &Run,
        models: [(usize, Subject<'_>); 2],
        source: &Source,
        tolerance: f64,
    ) -> Result<Equivalence, VerifyError> {
        let [(first, reference), (second, tested)] = models;
        let logits = Comparison::of(&run.logits[first], &run.logits[second]);
        let row = logits.unordered_at.or(logits.at).map(|(row, _)| row);
        let worst = row.and_then(|row| run.read.get(row).copied());
        let blocks = match worst {
            None => Vec::new(),
            Some(index) => {
                let input = source.load(index).map_err(Box::new)?;
                trace(&reference, &tested, source, &input)?
            }
        };
        Ok(Equivalence { logits, worst, blocks, tolerance })
    }

    /// Whether the logits are within the tolerance.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.logits.within(self.tolerance)
    }

    /// The first block whose output is not.
    #[must_use]
    pub fn first_block(&self) -> Option<usize> {
        self.blocks.iter().position(|block| !block.within(self.tolerance))
    }
}
