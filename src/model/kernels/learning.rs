//! The operations that gradients pass through on their way to lambdas, on the CPU in float32.
//!
//! candle has no backward pass for its softmax and LayerNorm, and its matrix product computes the gradients of frozen weights
//! too, which is half of the work. Here every operation gives the gradients that lambda needs and no others. All sums are in
//! an order that does not depend on the threads: the same input gives the same bits.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::super::config::{Norm, NormKind};
use super::super::keys::{Param, Scale};
use super::gemm::{View, product};
use super::math::erf;

type Result<T> = candle_core::Result<T>;

/// An operation of which the result is known already, with its backward pass.
struct Done<F> {
    name: &'static str,
    /// Taken by the one forward pass.
    value: Mutex<Option<(Vec<f32>, Shape)>>,
    /// The gradient of the argument(s) from the arguments, the result and its gradient.
    backward: F,
}

impl<F> Done<F> {
    fn new(name: &'static str, value: Vec<f32>, shape: impl Into<Shape>, backward: F) -> Done<F> {
        Done { name, value: Mutex::new(Some((value, shape.into()))), backward }
    }

    fn take(&self) -> Result<(CpuStorage, Shape)> {
        let taken = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (value, shape) = taken.ok_or_else(|| candle_core::Error::msg("an operation is run once"))?;
        Ok((CpuStorage::F32(value), shape))
    }
}

impl<F: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>> CustomOp1 for Done<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(x, y, gradient).map(Some)
    }
}

impl<F: Fn(&Tensor, &Tensor) -> Result<(Option<Tensor>, Tensor)>> CustomOp2 for Done<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_lambdas) = (self.backward)(x, gradient)?;
        Ok((of_x, Some(of_lambdas)))
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// `x (W + sum of lambda A)^T + b + sum of lambda a` of `rows`, `[n, inputs]`, with gradients of `rows` and of the learned lambdas.
///
/// The sum is folded first. Then a step takes three products of matrices, `x V^T`, `g V` and `g^T x`, of which the last one's
/// inner product with each `A` is the gradient of its lambda, `<g, x A^T>`. As branches it would take two for each weight
/// forwards and two backwards. Folding itself is one pass over the weights, next to nothing for more than a few tokens.
pub(super) fn linear(
    rows: &Tensor,
    weight: &Param<'_>,
    branches: &[(Param<'_>, Scale)],
    bias: Option<&Param<'_>>,
) -> Result<Tensor> {
    let mut sum = weight.tensor()?.clone();
    let mut bias = bias.map(|bias| values(bias.tensor()?)).transpose()?;
    let (mut scales, mut auxiliaries) = (Vec::new(), Vec::new());
    for (aux, scale) in branches {
        match &mut bias {
            Some(bias) if aux.tensor()?.rank() == 1 => {
                let (scale, aux) = (scale.value()?, values(aux.tensor()?)?);
                bias.iter_mut().zip(aux).for_each(|(b, aux)| *b += scale * aux);
            }
            _ => sum = (sum + (aux.tensor()? * f64::from(scale.value()?))?)?,
        }
        if let Scale::Learned(scale) = scale {
            scales.push(scale.clone());
            auxiliaries.push(aux.tensor()?.clone());
        }
    }
    let rows = rows.contiguous()?;
    let (n, inputs) = rows.dims2()?;
    let outputs = sum.dim(0)?;
    let mut value = vec![0.0; n * outputs];
    let (x, w) = (values(&rows)?, values(&sum)?);
    let (x, w) = (View::rows(&x, inputs), View::transposed(&w, inputs));
    product(&mut value, outputs, (n, outputs, inputs), x, w, rayon::current_num_threads());
    if let Some(bias) = bias {
        value.par_chunks_mut(outputs.max(1)).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
    }
    if scales.is_empty() {
        let backward = move |_: &Tensor, _: &Tensor, gradient: &Tensor| gradient.matmul(&sum);
        return rows.apply_op1(Done::new("linear", value, (n, outputs), backward));
    }
    // What comes before the first lambda needs no gradient.
    let needed = rows.track_op();
    let backward = move |x: &Tensor, gradient: &Tensor| {
        let of_x = if needed { Some(gradient.matmul(&sum)?) } else { None };
        let outer = values(&gradient.t()?.matmul(x)?)?;
        let of_bias = values(&gradient.sum(0)?)?;
        let of_lambdas = auxiliaries.iter().map(|aux| {
            let other = if aux.rank() == 1 { &of_bias } else { &outer };
            Ok(inner(other, &values(aux)?) as f32)
        });
        let of_lambdas = of_lambdas.collect::<Result<Vec<f32>>>()?;
        let count = of_lambdas.len();
        Ok((of_x, Tensor::from_vec(of_lambdas, count, x.device())?))
    };
    rows.apply_op2(&Tensor::cat(&scales, 0)?, Done::new("linear with lambdas", value, (n, outputs), backward))
}

/// The inner product, summed in float64.
fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `gelu(x)`, whose slope is `phi(x) + x phi'(x)` of the normal distribution `phi`.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    let value = values(&x.detach().gelu_erf()?)?;
    let backward = |x: &Tensor, _: &Tensor, gradient: &Tensor| {
        let (x_values, mut gradient_values) = (values(x)?, values(gradient)?);
        gradient_values.par_iter_mut().with_min_len(1024).zip(&x_values).for_each(|(g, &x)| {
            let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            let density =
                (-0.5 * x * x).exp() * (std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 / 2.0);
            *g *= below + x * density;
        });
        Tensor::from_vec(gradient_values, x.shape(), x.device())
    };
    x.apply_op1(Done::new("gelu", value, x.shape(), backward))
}

/// Softmax over the last dimension: its gradient is `(g - <g, y>) y`.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let value = values(&candle_nn::ops::softmax_last_dim(&x.detach())?)?;
    let backward = |x: &Tensor, y: &Tensor, gradient: &Tensor| {
        let (y, mut gradient) = (values(y)?, values(gradient)?);
        let width = x.dim(D::Minus1)?.max(1);
        gradient.par_chunks_mut(width).zip(y.par_chunks(width)).for_each(|(g, y)| {
            let along: f32 = g.iter().zip(y).map(|(g, y)| g * y).sum();
            g.iter_mut().zip(y).for_each(|(g, y)| *g = (*g - along) * y);
        });
        Tensor::from_vec(gradient, x.shape(), x.device())
    };
    x.apply_op1(Done::new("softmax", value, x.shape(), backward))
}

/// The gradient through a normalisation with frozen weights, of which `y` is the result for `x`, contiguous and detached.
pub(super) fn norm(x: &Tensor, y: &Tensor, norm: Norm, weight: &Param<'_>) -> Result<Tensor> {
    let weight = values(&weight.tensor()?.to_dtype(DType::F32)?)?;
    let backward = move |x: &Tensor, _: &Tensor, gradient: &Tensor| {
        let (x_values, mut gradient_values) = (values(x)?, values(gradient)?);
        let width = weight.len().max(1);
        gradient_values
            .par_chunks_mut(width)
            .zip(x_values.par_chunks(width))
            .for_each(|(g, x)| norm_row(g, x, &weight, norm));
        Tensor::from_vec(gradient_values, x.shape(), x.device())
    };
    x.apply_op1(Done::new("norm", values(y)?, x.shape(), backward))
}

/// A row's gradient: with `h = g * weight` and the normalised `n`, `(h - mean(h) - n mean(h n)) / deviation`, where RMSNorm
/// has no `mean(h)`.
fn norm_row(g: &mut [f32], x: &[f32], weight: &[f32], norm: Norm) {
    let count = x.len() as f32;
    let centre = match norm.kind {
        NormKind::LayerNorm => x.iter().sum::<f32>() / count,
        NormKind::RmsNorm => 0.0,
    };
    let variance = x.iter().map(|x| (x - centre) * (x - centre)).sum::<f32>() / count;
    let scale = 1.0 / (variance + norm.eps as f32).sqrt();
    g.iter_mut().zip(weight).for_each(|(g, w)| *g *= w);
    let mean = match norm.kind {
        NormKind::LayerNorm => g.iter().sum::<f32>() / count,
        NormKind::RmsNorm => 0.0,
    };
    let along = g.iter().zip(x).map(|(g, x)| g * (x - centre) * scale).sum::<f32>() / count;
    g.iter_mut().zip(x).for_each(|(g, x)| *g = (*g - mean - (x - centre) * scale * along) * scale);
}
