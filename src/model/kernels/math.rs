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
pub(in crate::model) fn exp(x: f32) -> f32 {
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
pub(in crate::model) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function within 2e-7: formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
pub(in crate::model) fn erf(x: f32) -> f32 {
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
        Activation::GeluTanh => x * sigmoid(1.595_769 * (x + 0.044_715 * x * x * x)),
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
pub(in crate::model) fn bias_activation(
    arch: Arch,
    values: &mut [f32],
    bias: Option<&[f32]>,
    kind: Option<Activation>,
) {
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
pub(in crate::model) fn layer_norm(
    arch: Arch,
    values: &[f32],
    out: &mut [f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
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
pub(in crate::model) fn rms_norm(arch: Arch, values: &[f32], out: &mut [f32], weight: &[f32], eps: f32) {
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
pub(in crate::model) fn softmax_unscaled(arch: Arch, scores: &mut [f32], width: usize, scale: f32, sums: &mut [f32]) {
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
pub(in crate::model) fn add_scaled(arch: Arch, x: &mut [f32], y: &[f32], gamma: Option<&[f32]>) {
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
pub(in crate::model) fn multiply(arch: Arch, x: &mut [f32], y: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, y)| *x *= y),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f32; 13] = [-30.0, -5.0, -3.0, -1.5, -0.7, -0.1, 0.0, 0.1, 0.7, 1.5, 3.0, 5.0, 30.0];

    #[test]
    fn functions_are_pytorchs() {
        // torch.nn.functional.gelu, its approximate='tanh', x * sigmoid(1.702 x), silu and relu of X in float64
        let expected: [(Activation, [f64; 13]); 5] = [
            (
                Activation::Gelu,
                [
                    -0.0,
                    -1.4332578593401202e-06,
                    -0.00404969409489031,
                    -0.10021080190328704,
                    -0.1693745565561511,
                    -0.0460172162722971,
                    0.0,
                    0.053982783727702904,
                    0.5306254434438489,
                    1.399789198096713,
                    2.99595030590511,
                    4.999998566742141,
                    30.0,
                ],
            ),
            (
                Activation::GeluTanh,
                [
                    -0.0,
                    -2.2917961972623857e-07,
                    -0.0036373920817729943,
                    -0.10042842301976707,
                    -0.16942986529488321,
                    -0.04601724895456484,
                    0.0,
                    0.053982751045435165,
                    0.5305701347051167,
                    1.3995715769802328,
                    2.996362607918227,
                    4.999999770820381,
                    30.0,
                ],
            ),
            (
                Activation::QuickGelu,
                [
                    -2.004679774500938e-21,
                    -0.0010070162673523693,
                    -0.01807130970778597,
                    -0.10833780155292341,
                    -0.16310604827684988,
                    -0.04575524191638182,
                    0.0,
                    0.054244758083618186,
                    0.5368939517231501,
                    1.3916621984470765,
                    2.981928690292214,
                    4.998992983732648,
                    30.0,
                ],
            ),
            (
                Activation::Silu,
                [
                    -2.8072868906517896e-12,
                    -0.03346425462142428,
                    -0.14227761953270035,
                    -0.2736382857095345,
                    -0.2322685594822837,
                    -0.047502081252106004,
                    0.0,
                    0.052497918747894,
                    0.46773144051771626,
                    1.2263617142904655,
                    2.8577223804672998,
                    4.966535745378576,
                    29.999999999997197,
                ],
            ),
            (Activation::Relu, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.7, 1.5, 3.0, 5.0, 30.0]),
        ];
        for (kind, expected) in expected {
            let mut values = X;
            bias_activation(Arch::new(), &mut values, None, Some(kind));
            for ((x, y), expected) in X.iter().zip(values).zip(expected) {
                assert!((f64::from(y) - expected).abs() < 4e-7 * f64::from(x.abs()).max(1.0), "{kind:?} of {x}: {y}");
            }
        }
    }

    #[test]
    fn exponentials_are_the_standard_librarys() {
        for n in -8700..=8800 {
            let x = n as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() < 3e-7 * expected, "{x}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 1e-37 && exp(-1e30) > 0.0);
    }

    #[test]
    fn softmax_is_pytorchs_and_keeps_nan() {
        // torch.softmax(0.5 * scores, -1)
        let mut scores = [1.0, 2.0, 3.0, 4.0, -100.0, 0.0, 100.0, 50.0, 0.0, f32::NAN, 1.0, 2.0];
        let mut sums = [0.0; 3];
        softmax_unscaled(Arch::new(), &mut scores, 4, 0.5, &mut sums);
        let expected = [
            0.1015363240915518,
            0.16740509727844333,
            0.27600434470659363,
            0.45505423392341127,
            3.7200759759691717e-44,
            1.9287498479371314e-22,
            0.999999999986112,
            1.3887943864771146e-11,
        ];
        for (n, expected) in expected.iter().enumerate() {
            assert!((f64::from(scores[n] / sums[n / 4]) - expected).abs() < 1e-6, "{n}");
        }
        assert!(scores[8..].iter().all(|&x| (x / sums[2]).is_nan()));
    }

    #[test]
    fn normalisations_are_pytorchs() {
        // layer_norm and rms_norm of torch.linspace(-2, 3, 37)^2, eps=1e-6: elements 0, 17 and 36
        let values: Vec<f32> = (0..37).map(|n| (-2.0 + 5.0 * n as f32 / 36.0).powi(2)).collect();
        let (ones, zeros, mut out) = ([1.0; 37], [0.0; 37], [0.0; 37]);
        let close = |out: &[f32; 37], expected: [f64; 3]| {
            for (n, expected) in [0, 17, 36].into_iter().zip(expected) {
                assert!((f64::from(out[n]) - expected).abs() < 1e-6, "{n}: {} {expected}", out[n]);
            }
        };
        layer_norm(Arch::new(), &values, &mut out, &ones, &zeros, 1e-6);
        close(&out, [0.6300552960799383, -0.9419483406568226, 2.6612783401585447]);
        rms_norm(Arch::new(), &values, &mut out, &ones, 1e-6);
        close(&out, [1.1519537043484775, 0.037554046303027167, 2.5918958347840744]);
    }
}
