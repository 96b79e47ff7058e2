//! Backward passes of elementwise functions and normalisations on slices, written so that the compiler makes vectors of them: as
//! the forward passes, sums run over fixed lanes and nothing is contracted.

use pulp::Arch;

use super::super::config::{Activation, Norm, NormKind};
use super::super::kernels::math::{erf, exp, sigmoid};

/// Lanes of sums.
const LANES: usize = 16;

/// The sum of `f` of the elements of both, which are as many.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((s, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *s += f(a, b);
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b)).sum::<f32>()
}

/// The inner product, summed in float64.
pub(super) fn inner(arch: Arch, a: &[f32], b: &[f32]) -> f64 {
    arch.dispatch(
        #[inline(always)]
        || {
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            let mut sums = [0.0; LANES];
            for (a, b) in a.iter().zip(b) {
                for ((s, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                    *s += f64::from(a) * f64::from(b);
                }
            }
            let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b));
            sums.iter().sum::<f64>() + rest.sum::<f64>()
        },
    )
}

/// `out = a + scale * b`: multiply, then add.
pub(super) fn scaled_sum(arch: Arch, out: &mut [f32], a: &[f32], scale: f32, b: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a + scale * b),
    );
}

/// `sum += scale * b`: multiply, then add.
pub(super) fn add_scaled(arch: Arch, sum: &mut [f32], scale: f32, b: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || sum.iter_mut().zip(b).for_each(|(sum, b)| *sum += scale * b),
    );
}

/// Adds `bias` to each row.
pub(super) fn add_rows(arch: Arch, rows: &mut [f32], bias: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || rows.chunks_exact_mut(bias.len().max(1)).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b)),
    );
}

/// Scales each row by `gamma`, element by element.
pub(super) fn scale_rows(arch: Arch, rows: &mut [f32], gamma: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || {
            rows.chunks_exact_mut(gamma.len().max(1))
                .for_each(|row| row.iter_mut().zip(gamma).for_each(|(x, g)| *x *= g))
        },
    );
}

/// The sum of all rows of `rows`.
pub(super) fn column_sums(arch: Arch, rows: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    arch.dispatch(
        #[inline(always)]
        || rows.chunks_exact(sums.len().max(1)).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, x)| *s += x)),
    );
}

/// The function of each of `x` into `out`, and its slope in place of `x`.
pub(super) fn activation(arch: Arch, x: &mut [f32], out: &mut [f32], kind: Activation) {
    // One loop for each function, as for the forward pass.
    match kind {
        Activation::Gelu => arch.dispatch(
            #[inline(always)]
            || each(x, out, gelu),
        ),
        Activation::GeluTanh => arch.dispatch(
            #[inline(always)]
            || each(x, out, gelu_tanh),
        ),
        Activation::QuickGelu => arch.dispatch(
            #[inline(always)]
            || each(x, out, |x| silu(x, 1.702)),
        ),
        Activation::Silu => arch.dispatch(
            #[inline(always)]
            || each(x, out, |x| silu(x, 1.0)),
        ),
        Activation::Relu => arch.dispatch(
            #[inline(always)]
            || each(x, out, |x| if x > 0.0 { (x, 1.0) } else { (if x.is_nan() { x } else { 0.0 }, 0.0) }),
        ),
    }
}

#[inline(always)]
fn each(x: &mut [f32], out: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
    x.iter_mut().zip(out).for_each(|(x, out)| (*out, *x) = f(*x));
}

/// `x Phi(x)` of the normal distribution, and `Phi(x) + x phi(x)`.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    /// 1 / sqrt(2 pi)
    const DENSITY: f32 = 0.398_942_3;
    let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * below, below + x * DENSITY * exp(-0.5 * x * x))
}

/// `x s(u)` with the sigmoid `s` and `u = sqrt(8 / pi) (x + 0.044715 x^3)`, and its slope `s + x s (1 - s) u'`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let (inner, slope) = (1.595_769 * (x + 0.044_715 * x * x * x), 1.595_769 * (1.0 + 0.134_145 * x * x));
    let s = sigmoid(inner);
    (x * s, s + x * s * (1.0 - s) * slope)
}

/// `x s(a x)`, and its slope.
#[inline(always)]
fn silu(x: f32, a: f32) -> (f32, f32) {
    let s = sigmoid(a * x);
    (x * s, s + x * s * (1.0 - s) * a)
}

/// Divides each row by its sum.
pub(super) fn divide_rows(arch: Arch, rows: &mut [f32], width: usize, sums: &[f32]) {
    arch.dispatch(
        #[inline(always)]
        || {
            for (row, sum) in rows.chunks_exact_mut(width.max(1)).zip(sums) {
                let scale = 1.0 / *sum;
                row.iter_mut().for_each(|x| *x *= scale);
            }
        },
    );
}

/// The gradient of scores in place of that of their softmax `weights`: `weights (gradient - along) scale`, where `along` is the inner
/// product of a row's `weights` and `gradient`.
pub(super) fn softmax(arch: Arch, gradient: &mut [f32], weights: &[f32], width: usize, scale: f32) {
    let width = width.max(1);
    arch.dispatch(
        #[inline(always)]
        || {
            for (g, w) in gradient.chunks_exact_mut(width).zip(weights.chunks_exact(width)) {
                let along = sum(g, w, |g, w| g * w);
                g.iter_mut().zip(w).for_each(|(g, w)| *g = w * (*g - along) * scale);
            }
        },
    );
}

/// The gradients of a normalisation's weight and bias.
pub(super) struct OfNorm<'g> {
    pub(super) weight: &'g mut [f32],
    /// Empty without a bias.
    pub(super) bias: &'g mut [f32],
}

/// The gradient of the rows `x` in place of that of their normalisation: with `h = g * weight` and the normalised `n`,
/// `(h - mean(h) - n mean(h n)) / deviation`, where RMSNorm has no `mean(h)`. Adds the weight's and the bias's to `of`.
pub(super) fn norm(arch: Arch, g: &mut [f32], x: &[f32], weight: &[f32], norm: Norm, mut of: Option<OfNorm<'_>>) {
    let width = weight.len().max(1);
    let count = width as f32;
    let centred = norm.kind == NormKind::LayerNorm;
    arch.dispatch(
        #[inline(always)]
        || {
            for (g, x) in g.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let centre = if centred { sum(x, x, |x, _| x) / count } else { 0.0 };
                let variance = sum(x, x, |x, _| (x - centre) * (x - centre)) / count;
                let scale = 1.0 / (variance + norm.eps as f32).sqrt();
                if let Some(of) = &mut of {
                    of.weight.iter_mut().zip(&*g).zip(x).for_each(|((w, g), x)| *w += g * (x - centre) * scale);
                    of.bias.iter_mut().zip(&*g).for_each(|(b, g)| *b += g);
                }
                g.iter_mut().zip(weight).for_each(|(g, w)| *g *= w);
                let mean = if centred { sum(g, g, |g, _| g) / count } else { 0.0 };
                let along = sum(g, x, |g, x| g * (x - centre)) * scale / count;
                for (g, x) in g.iter_mut().zip(x) {
                    *g = (*g - mean - (x - centre) * scale * along) * scale;
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_pytorchs() {
        // torch.autograd.grad of gelu, its approximate='tanh', x * sigmoid(1.702 x), silu and relu at X, in float64
        const X: [f32; 7] = [-3.0, -1.5, -0.1, 0.0, 0.7, 1.5, 5.0];
        SLOPES.iter().for_each(|(kind, expected)| {
            let (mut x, mut y) = (X, [0.0; 7]);
            activation(Arch::new(), &mut x, &mut y, *kind);
            for (n, expected) in expected.iter().enumerate() {
                // Near 1, `1 - s` has few digits left.
                assert!((f64::from(x[n]) - expected).abs() < 2e-6, "{kind:?} at {}: {} {expected}", X[n], x[n]);
            }
            let mut forward = X;
            super::super::super::kernels::math::bias_activation(Arch::new(), &mut forward, None, Some(*kind));
            assert!(forward.iter().zip(y).all(|(a, b)| (a - b).abs() < 1e-6), "{kind:?}: {forward:?} {y:?}");
        });
    }

    const SLOPES: [(Activation, [f64; 7]); 5] = [
        (
            Activation::Gelu,
            [
                -0.01194564720418392,
                -0.1274691922299796,
                0.4204769079752698,
                0.5,
                0.9766141011336599,
                1.1274691922299795,
                1.000007146946002,
            ],
        ),
        (
            Activation::GeluTanh,
            [
                -0.011584166630969648,
                -0.12771079315143308,
                0.4204782107282433,
                0.5,
                0.976357218656104,
                1.127710793151433,
                1.000001546361988,
            ],
        ),
        (
            Activation::QuickGelu,
            [
                -0.024548323905652352,
                -0.09884806462410291,
                0.41530908503344544,
                0.5,
                0.9799131420008385,
                1.098848064624103,
                1.0015121932401314,
            ],
        ),
        (
            Activation::Silu,
            [
                -0.08810410601516962,
                -0.041294154299142946,
                0.4500832085017708,
                0.5,
                0.8233867834733425,
                1.041294154299143,
                1.0265474324296655,
            ],
        ),
        (Activation::Relu, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    ];
}
