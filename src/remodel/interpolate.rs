//! Interpolation of grids, as `torch.nn.functional.interpolate(..., align_corners=False)` does it.
//!
//! Both modes are separable: each axis has one list of weights per new element. The positions and weights are computed
//! in float32, step by step as PyTorch's kernels for x86-64 do, fused multiplications and additions included: in f64
//! they would be more exact, and up to 1e-5 away from what everybody else has. The sums are computed in f64.

use super::{MAX_SIDE, Result, elements, expect, sides};

/// How values between those of a grid are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the two nearest along each axis.
    Bilinear,
    /// From the four nearest along each axis, by Keys' cubic convolution with a = -0.5 with antialiasing, and -0.75
    /// without.
    Bicubic,
}

/// The arguments `mode` and `antialias` of `torch.nn.functional.interpolate`. The default is timm's: bicubic, with
/// antialiasing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// How values between those of a grid are computed.
    pub mode: Mode,
    /// Whether the filter widens where a side gets shorter, so that every value counts.
    pub antialias: bool,
}

impl Default for Resampling {
    fn default() -> Resampling {
        Resampling { mode: Mode::Bicubic, antialias: true }
    }
}

/// The old elements of an axis that one new element is a weighted sum of.
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) weights: Vec<f64>,
}

/// A linear map of one axis of a tensor to another length.
pub(super) struct Axis {
    /// The old length.
    pub(super) from: usize,
    /// One for each new element.
    pub(super) spans: Vec<Span>,
}

impl Axis {
    /// The interpolation from one length to another, neither of them 0; `None` where nothing changes.
    pub(super) fn interpolation(from: usize, to: usize, how: Resampling) -> Option<Axis> {
        let scale = from as f32 / to as f32;
        let span = |at: usize| match how.antialias {
            true => filtered(from, scale, at as f32 + 0.5, how.mode),
            false => between(from, scale.mul_add(at as f32 + 0.5, -0.5), how.mode),
        };
        (from != to).then(|| Axis { from, spans: (0..to).map(span).collect() })
    }

    /// The elements from `start` on, as they are.
    pub(super) fn cut(from: usize, start: usize, to: usize) -> Axis {
        Axis { from, spans: (start..start + to).map(|first| Span { first, weights: vec![1.0] }).collect() }
    }

    /// The map along an axis of a tensor `[.., from, inner]`, where `inner` is the product of the sides behind it.
    fn map<T: Copy + Into<f64>>(&self, values: &[T], inner: usize) -> Vec<f64> {
        let mut out = Vec::with_capacity(values.len() / self.from * self.spans.len());
        for block in values.chunks_exact(self.from * inner) {
            for span in &self.spans {
                let at = out.len();
                // Added to -0.0, every value is itself; 0.0 would lose the sign of a zero.
                out.resize(at + inner, -0.0);
                let rows = block[span.first * inner..].chunks_exact(inner);
                for (row, &weight) in rows.zip(&span.weights) {
                    for (sum, &value) in out[at..].iter_mut().zip(row) {
                        *sum += weight * value.into();
                    }
                }
            }
        }
        out
    }
}

/// Maps the two middle axes of a tensor `[outer, height, width, inner]`; `None` leaves an axis of any length as it is.
///
/// `width` and `inner` are lengths of `values`, whose number is a multiple of all.
pub(super) fn map(values: &[f32], width: usize, inner: usize, down: Option<&Axis>, across: Option<&Axis>) -> Vec<f32> {
    let sums = match (down, across) {
        (None, None) => return values.to_vec(),
        (Some(down), None) => down.map(values, width * inner),
        (None, Some(across)) => across.map(values, inner),
        // What lies between the passes is never larger than both ends.
        (Some(down), Some(across)) if down.spans.len() * width <= down.from * across.spans.len() => {
            across.map(&down.map(values, width * inner), inner)
        }
        (Some(down), Some(across)) => down.map(&across.map(values, inner), across.spans.len() * inner),
    };
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The weights of an element without antialiasing, at a position between the old ones. Old elements beyond an end are
/// that end.
fn between(from: usize, position: f32, mode: Mode) -> Span {
    const A: f32 = -0.75;
    /// For distances from 1 to 2. The antialiasing filter factors it in another way, and rounds differently.
    fn far(x: f32) -> f32 {
        A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
    }
    let (position, reach) = match mode {
        Mode::Bilinear => (position.max(0.0), 0),
        Mode::Bicubic => (position, 1),
    };
    let below = position.floor();
    let part = position - below;
    let left = 1.0 - part;
    let weights = match mode {
        Mode::Bilinear => vec![left, part],
        Mode::Bicubic => vec![far(part + 1.0), near(part, A), near(left, A), far(left + 1.0)],
    };
    let clamped = |step: usize| (below as isize + step as isize - reach).clamp(0, from as isize - 1) as usize;
    let (first, last) = (clamped(0), clamped(weights.len() - 1));
    let mut span = Span { first, weights: vec![0.0; last + 1 - first] };
    for (step, weight) in weights.into_iter().enumerate() {
        span.weights[clamped(step) - first] += f64::from(weight);
    }
    span
}

/// The weights of an element with antialiasing: a filter around its centre, as wide as the scale where that is above 1.
fn filtered(from: usize, scale: f32, position: f32, mode: Mode) -> Span {
    let (filter, support): (fn(f32) -> f32, f32) = match mode {
        Mode::Bilinear => (triangle, 1.0),
        Mode::Bicubic => (cubic, 2.0),
    };
    let (support, inverse) = if scale >= 1.0 { (support * scale, 1.0 / scale) } else { (support, 1.0) };
    let center = scale * position;
    // Casts of floats saturate: below 0 becomes 0.
    let first = (center - support + 0.5) as usize;
    let end = ((center + support + 0.5) as usize).min(from);
    let weights: Vec<f32> = (first..end).map(|at| filter((at as f32 - center + 0.5) * inverse)).collect();
    let sum: f32 = weights.iter().sum();
    Span { first, weights: weights.iter().map(|weight| f64::from(weight / sum)).collect() }
}

fn triangle(x: f32) -> f32 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic convolution with a = -0.5.
fn cubic(x: f32) -> f32 {
    const A: f32 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        near(x, A)
    } else if x < 2.0 {
        (x - 5.0).mul_add(x, 8.0).mul_add(x, -4.0) * A
    } else {
        0.0
    }
}

/// Keys' cubic convolution at a distance of at most 1.
fn near(x: f32, a: f32) -> f32 {
    ((a + 2.0).mul_add(x, -(a + 3.0)) * x).mul_add(x, 1.0)
}

/// Resizes the planes of `values`, of shape `[channels, from.0, from.1]`, to `[channels, to.0, to.1]` (height, width),
/// as `torch.nn.functional.interpolate(values[None], size=to, mode=..., antialias=..., align_corners=False)`.
///
/// An axis that keeps its length is left as it is. PyTorch 2.15 differs from itself in two places. It has two kernels
/// for bilinear interpolation without antialiasing, whose positions are rounded differently; this is the one for small
/// outputs and for channels-last tensors. And with antialiasing, planes of width 1 that only change their height come out
/// as copies of one value on the CPU, unless they are channels-last; here they are interpolated like any others.
///
/// # Errors
/// A shape that the values do not have, a side of 0 or longer than [`MAX_SIDE`], more than
/// [`MAX_ELEMENTS`](super::MAX_ELEMENTS).
pub fn interpolate(
    values: &[f32],
    channels: usize,
    from: (usize, usize),
    to: (usize, usize),
    how: Resampling,
) -> Result<Vec<f32>> {
    sides("grid", from, MAX_SIDE)?;
    sides("new grid", to, MAX_SIDE)?;
    expect("stack of planes", values, &[channels, from.0, from.1])?;
    elements("resized stack of planes", &[channels, to.0, to.1])?;
    let down = Axis::interpolation(from.0, to.0, how);
    let across = Axis::interpolation(from.1, to.1, how);
    Ok(map(values, from.1, 1, down.as_ref(), across.as_ref()))
}
