//! Tensors that are computed from others.

use std::fmt;

/// What is computed, in float32.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// The sum of tensors of one shape.
    Sum,
}

/// Why something cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationProblem {
    /// Tensors of different shapes.
    #[error("{first:?} and {other:?} cannot be added")]
    Sum {
        /// The first one's shape.
        first: Vec<usize>,
        /// The shape of one that is different.
        other: Vec<usize>,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Sum => f.write_str("sum"),
        }
    }
}

impl Operation {
    /// The shape of the result for inputs of those shapes.
    ///
    /// # Errors
    /// [`OperationProblem`].
    pub fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, OperationProblem> {
        match self {
            Operation::Sum => {
                let first = inputs.first().copied().unwrap_or_default().to_vec();
                match inputs.iter().find(|other| ***other != first) {
                    Some(other) => Err(OperationProblem::Sum { first, other: other.to_vec() }),
                    None => Ok(first),
                }
            }
        }
    }

    /// The result for inputs of elements and shapes, row-major.
    ///
    /// # Errors
    /// [`OperationProblem`].
    pub(super) fn apply(&self, inputs: &[(&[f32], &[usize])]) -> Result<Vec<f32>, OperationProblem> {
        match self {
            Operation::Sum => {
                let (first, others) = inputs.split_first().map_or((&[][..], &[][..]), |(first, rest)| (first.0, rest));
                let mut sum = first.to_vec();
                for (other, _) in others {
                    sum.iter_mut().zip(*other).for_each(|(x, y)| *x += y);
                }
                Ok(sum)
            }
        }
    }
}
