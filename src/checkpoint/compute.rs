//! Tensors that are computed from others.

use std::fmt;

use crate::remodel::{
    self, Channels, Collapse, MAX_PATCH_SIDE, Positions, RemodelError, Resampling, ast_positions, conv2d_to_conv3d,
    conv3d_to_conv2d, fold_batch_norm, input_channels, patch_embedding, position_embedding, sinusoid_table,
};

/// What is computed, in float32, from which tensors. Each is a function of [`crate::remodel`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// The sum of tensors of one shape.
    Sum,
    /// A patch embedding over frames `[width, channels, frames, height, width]` as one of images.
    Collapse(Collapse),
    /// A patch embedding of images as one over frames.
    Inflate {
        /// How many.
        frames: usize,
        /// How the weight is spread over them.
        how: remodel::Inflate,
    },
    /// A patch embedding `[width, channels, height, width]` for another number of channels.
    Channels {
        /// How many.
        to: usize,
        /// By which rule.
        rule: Channels,
    },
    /// A patch embedding for patches of other sides, bicubic with antialiasing.
    Patch {
        /// The new sides.
        to: (usize, usize),
    },
    /// A position embedding `[1, prefix + grid, width]` for another grid, bicubic with antialiasing.
    Positions {
        /// Positions before those of the grid.
        prefix: usize,
        /// The grid that there is.
        from: (usize, usize),
        /// The grid that is wanted.
        to: (usize, usize),
        /// Whether sides are cut or interpolated bilinearly, as AST does it.
        ast: bool,
    },
    /// The fixed table of VideoMAE, `[1, positions, width]`, from nothing.
    Sinusoid {
        /// How many positions.
        positions: usize,
        /// The width of the model.
        width: usize,
    },
    /// From the weight `[classes, width]`, bias, running mean and running variance of a linear-probe head: the weight of one linear layer.
    ProbeWeight,
    /// The same: its bias.
    ProbeBias,
}

/// Why something cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
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
    /// A tensor that the operation is not for.
    #[error("{operation} is not for tensors of the shape {shape:?}")]
    Shape {
        /// The operation.
        operation: String,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The numbers do not fit.
    #[error(transparent)]
    Remodel(#[from] RemodelError),
}

/// Epsilon of the BatchNorm in MAE's linear-probe head.
const PROBE_EPS: f64 = 1e-6;

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Sum => f.write_str("sum"),
            Operation::Collapse(how) => write!(f, "frames taken together ({how:?})"),
            Operation::Inflate { frames, .. } => write!(f, "spread over {frames} frames"),
            Operation::Channels { to, rule } => write!(f, "made for {to} input channels ({rule:?})"),
            Operation::Patch { to } => write!(f, "resampled to patches of {} x {}", to.0, to.1),
            Operation::Positions { from, to, ast, .. } => {
                let how = if *ast { "cut and interpolated" } else { "resampled" };
                write!(f, "{how} from a grid of {} x {} to {} x {}", from.0, from.1, to.0, to.1)
            }
            Operation::Sinusoid { positions, .. } => write!(f, "the fixed sin-cos table of {positions} positions"),
            Operation::ProbeWeight | Operation::ProbeBias => f.write_str("the BatchNorm before it taken in"),
        }
    }
}

/// How timm resamples: bicubic, with antialiasing.
const TIMM: Resampling = Resampling { mode: remodel::Mode::Bicubic, antialias: true };

impl Operation {
    /// The shape of the result for inputs of those shapes.
    ///
    /// # Errors
    /// [`OperationProblem`].
    pub fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, OperationProblem> {
        let first = inputs.first().copied().unwrap_or_default();
        let wrong = || OperationProblem::Shape { operation: self.to_string(), shape: first.to_vec() };
        Ok(match (self, first) {
            (Operation::Sum, _) => match inputs.iter().find(|other| **other != first) {
                Some(other) => return Err(OperationProblem::Sum { first: first.to_vec(), other: other.to_vec() }),
                None => first.to_vec(),
            },
            (Operation::Collapse(_), &[out, input, _, high, wide]) => vec![out, input, high, wide],
            (Operation::Inflate { frames, .. }, &[out, input, high, wide]) => vec![out, input, *frames, high, wide],
            (Operation::Channels { to, rule }, &[out, input, high, wide]) => {
                vec![out, rule.count(input, *to)?, high, wide]
            }
            (Operation::Patch { to: (height, width) }, &[out, input, _, _]) => {
                let (height, width) = (*height, *width);
                if height.max(width) > MAX_PATCH_SIDE {
                    return Err(RemodelError::Side { what: "patch", height, width, limit: MAX_PATCH_SIDE }.into());
                }
                vec![out, input, height, width]
            }
            (Operation::Positions { to, .. }, _) if to.0 == 0 || to.1 == 0 => {
                return Err(RemodelError::Empty { what: "grid of positions", shape: [to.0, to.1].into() }.into());
            }
            (Operation::Positions { prefix, to, .. }, &[one, _, width]) => {
                let tokens = to.0.checked_mul(to.1).and_then(|grid| grid.checked_add(*prefix)).ok_or_else(wrong)?;
                vec![one, tokens, width]
            }
            (Operation::Sinusoid { positions: 0, width }, _) => {
                return Err(RemodelError::Empty { what: "table of positions", shape: [0, *width].into() }.into());
            }
            (Operation::Sinusoid { positions, width }, &[]) => vec![1, *positions, *width],
            (Operation::ProbeWeight, &[classes, width]) => vec![classes, width],
            (Operation::ProbeBias, &[classes, _]) => vec![classes],
            _ => return Err(wrong()),
        })
    }

    /// The result for inputs of elements and shapes, row-major.
    ///
    /// # Errors
    /// [`OperationProblem`].
    pub(super) fn apply(&self, inputs: &[(&[f32], &[usize])]) -> Result<Vec<f32>, OperationProblem> {
        let (values, shape) = inputs.first().copied().unwrap_or_default();
        let wrong = || OperationProblem::Shape { operation: self.to_string(), shape: shape.to_vec() };
        let four = || <[usize; 4]>::try_from(shape).map_err(|_| wrong());
        Ok(match self {
            Operation::Sum => {
                let mut sum = values.to_vec();
                for (other, _) in inputs.iter().skip(1) {
                    sum.iter_mut().zip(*other).for_each(|(x, y)| *x += y);
                }
                sum
            }
            Operation::Collapse(how) => {
                conv3d_to_conv2d(values, <[usize; 5]>::try_from(shape).map_err(|_| wrong())?, *how)?
            }
            Operation::Inflate { frames, how } => conv2d_to_conv3d(values, four()?, *frames, *how)?,
            Operation::Channels { to, rule } => input_channels(values, four()?, *to, *rule)?,
            Operation::Patch { to } => patch_embedding(values, four()?, *to, TIMM)?,
            Operation::Positions { prefix, from, to, ast } => {
                let width = shape.last().copied().unwrap_or(0);
                let table = Positions { prefix: *prefix, grid: *from, width };
                if *ast { ast_positions(values, table, *to)? } else { position_embedding(values, table, *to, TIMM)? }
            }
            Operation::Sinusoid { positions, width } => sinusoid_table(*positions, *width)?,
            Operation::ProbeWeight | Operation::ProbeBias => {
                let [(weight, _), (bias, _), (mean, _), (variance, _)] = inputs else { return Err(wrong()) };
                let (weight, bias) = fold_batch_norm(weight, bias, mean, variance, PROBE_EPS)?;
                if *self == Operation::ProbeWeight { weight } else { bias }
            }
        })
    }
}
