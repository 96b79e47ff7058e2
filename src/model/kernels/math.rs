//! Elementwise functions and normalisations on slices, written so that the compiler makes vectors of them.
//!
//! Sums run over fixed lanes, and nothing is contracted to a fused multiply-add: the results do not depend on the width of
//! the machine's vectors.

use pulp::Arch;

use super::super::config::Activation;

/// Lanes of sums and maxima.
const LANES: usize = 16;

/// `e^x` within 2 units in the last place for `x` from -87 to 88; below, what -87 gives; NaN stays NaN.
///
/// Cody and Waite's reduction by powers of two, then the Taylor polynomial of degree 7 on [-0.35, 0.35].
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, of which the first has few enough bits that its product with n is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function within 2e-7: formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-a * a)).copysign(x)
}

#[inline(always)]
fn activation(x: f32, kind: Activation) -> f32 {
    match kind {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        // tanh(u) = 2 sigmoid(2u) - 1, and so 0.5 x (1 + tanh(u)) = x sigmoid(2u)
        Activation::GeluTanh => x * sigmoid(1.595_769_1 * (x + 0.044_715 * x * x * x)),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
    }
}

/// Adds `bias`, if any, to each row of `values`, and applies the function, if any.
pub(super) fn bias_activation(arch: Arch, values: &mut [f32], bias: Option<&[f32]>, kind: Option<Activation>) {
    // One loop for each function: a branch within it would keep it from becoming vectors.
    match kind {
        None => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| x),
        ),
        Some(Activation::Gelu) => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| activation(x, Activation::Gelu)),
        ),
        Some(Activation::GeluTanh) => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| activation(x, Activation::GeluTanh)),
        ),
        Some(Activation::QuickGelu) => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| activation(x, Activation::QuickGelu)),
        ),
        Some(Activation::Silu) => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| activation(x, Activation::Silu)),
        ),
        Some(Activation::Relu) => arch.dispatch(
            #[inline(always)]
            || each(values, bias, |x| activation(x, Activation::Relu)),
        ),
    }
}

#[inline(always)]
fn each(values: &mut [f32], bias: Option<&[f32]>, f: impl Fn(f32) -> f32) {
    match bias {
        Some(bias) if !bias.is_empty() => {
            for row in values.chunks_exact_mut(bias.len()) {
                for (x, b) in row.iter_mut().zip(bias) {
                    *x = f(*x + b);
                }
            }
        }
        _ => values.iter_mut().for_each(|x| *x = f(*x)),
    }
}

#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for lane in lanes {
        for (s, &x) in sums.iter_mut().zip(lane) {
            *s += f(x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}

/// LayerNorm of each row of `values` into `out`: `(x - mean) / sqrt(var + eps) * weight + bias`, `var` the mean of squares.
pub(super) fn layer_norm(arch: Arch, values: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len().max(1);
    arch.dispatch(
        #[inline(always)]
        || {
            for (row, out) in values.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let mean = sum(row, |x| x) / width as f32;
                let var = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
                let scale = 1.0 / (var + eps).sqrt();
                for (((y, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                    *y = (x - mean) * scale * w + b;
                }
            }
        },
    );
}

/// RMSNorm of each row of `values` into `out`: `x / sqrt(mean(x^2) + eps) * weight`.
pub(super) fn rms_norm(arch: Arch, values: &[f32], out: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len().max(1);
    arch.dispatch(
        #[inline(always)]
        || {
            for (row, out) in values.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let scale = 1.0 / (sum(row, |x| x * x) / width as f32 + eps).sqrt();
                for ((y, x), w) in out.iter_mut().zip(row).zip(weight) {
                    *y = x * scale * w;
                }
            }
        },
    );
}

/// Softmax of each row of `scores`, in place, but for the division by their sums, which go to `sums`.
///
/// A NaN anywhere in a row makes all of the row NaN.
pub(super) fn softmax_unscaled(arch: Arch, scores: &mut [f32], width: usize, scale: f32, sums: &mut [f32]) {
    arch.dispatch(
        #[inline(always)]
        || {
            for (row, total) in scores.chunks_exact_mut(width.max(1)).zip(sums) {
                let (lanes, rest) = row.as_chunks::<LANES>();
                let mut most = [f32::NEG_INFINITY; LANES];
                for lane in lanes {
                    for (m, &x) in most.iter_mut().zip(lane) {
                        *m = if x > *m { x } else { *m };
                    }
                }
                let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
                row.iter_mut().for_each(|x| *x = exp((*x - most) * scale));
                *total = sum(row, |x| x);
            }
        },
    );
}

/// `x += gamma * y` for each row, or `x += y`.
pub(super) fn add_scaled(arch: Arch, x: &mut [f32], y: &[f32], gamma: Option<&[f32]>) {
    arch.dispatch(
        #[inline(always)]
        || match gamma {
            Some(gamma) if !gamma.is_empty() => {
                for (x, y) in x.chunks_exact_mut(gamma.len()).zip(y.chunks_exact(gamma.len())) {
                    for ((x, y), g) in x.iter_mut().zip(y).zip(gamma) {
                        *x += y * g;
                    }
                }
            }
            _ => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        },
    );
}

/// `x *= y`.
pub(super) fn multiply(arch: Arch, x: &mut [f32], y: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, y)| *x *= y),
    );
}
