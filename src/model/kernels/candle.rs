//! The operations as compositions of candle's; those that a gradient has to pass are in [`learning`].

use candle_core::{D, DType, Tensor};
use candle_nn::ops::{rms_norm, sigmoid, softmax_last_dim};

use super::super::config::{Activation, Norm, NormKind};
use super::super::keys::{Param, Scale};
use super::learning;

type Result<T> = candle_core::Result<T>;

pub(super) fn linear(
    x: &Tensor,
    weight: &Param<'_>,
    branches: &[(Param<'_>, Scale)],
    bias: Option<&Param<'_>>,
    function: Option<Activation>,
) -> Result<Tensor> {
    let (mut shape, inputs) = (x.dims().to_vec(), x.dim(D::Minus1)?);
    let rows = x.reshape(((), inputs))?;
    let learned = branches.iter().any(|(_, scale)| matches!(scale, Scale::Learned(_)));
    let y = if learned || x.track_op() {
        learning::linear(&rows, weight, branches, bias)?
    } else {
        let mut y = rows.matmul(&weight.tensor()?.t()?)?;
        for (aux, lambda) in branches {
            y = (y + (rows.matmul(&aux.tensor()?.t()?)? * f64::from(lambda.value()?))?)?;
        }
        match bias {
            Some(bias) => y.broadcast_add(bias.tensor()?)?,
            None => y,
        }
    };
    if let Some(last) = shape.last_mut() {
        *last = y.dim(D::Minus1)?;
    }
    let y = y.reshape(shape)?;
    function.map_or(Ok(y.clone()), |function| activation(&y, function))
}

pub(super) fn activation(x: &Tensor, function: Activation) -> Result<Tensor> {
    match function {
        Activation::Gelu if x.track_op() => learning::gelu(x),
        Activation::Gelu => x.gelu_erf(),
        // candle's `gelu` is the approximation.
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
    }
}

pub(super) fn norm(x: &Tensor, norm: Norm, weight: &Param<'_>, bias: Option<&Param<'_>>) -> Result<Tensor> {
    let x = x.contiguous()?;
    if x.track_op() {
        return learning::norm(&x, &normalised(&x.detach(), norm, weight, bias)?, norm, weight);
    }
    normalised(&x, norm, weight, bias)
}

fn normalised(x: &Tensor, norm: Norm, weight: &Param<'_>, bias: Option<&Param<'_>>) -> Result<Tensor> {
    match (norm.kind, bias) {
        (NormKind::LayerNorm, Some(bias)) => {
            candle_nn::ops::layer_norm(x, weight.tensor()?, bias.tensor()?, norm.eps as f32)
        }
        _ => rms_norm(x, weight.tensor()?, norm.eps as f32),
    }
}

/// `[batch, heads, tokens, head]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
    let scores = (q.contiguous()? * scale)?.matmul(&k.contiguous()?.t()?)?;
    if scores.track_op() {
        return learning::softmax(&scores)?.matmul(&v.contiguous()?);
    }
    // As PyTorch does, whatever the type of the scores.
    let weights = softmax_last_dim(&scores.to_dtype(DType::F32)?)?.to_dtype(scores.dtype())?;
    weights.matmul(&v.contiguous()?)
}

pub(super) fn residual(x: &Tensor, y: &Tensor, gamma: Option<&Param<'_>>) -> Result<Tensor> {
    match gamma {
        Some(gamma) => x + y.broadcast_mul(gamma.tensor()?)?,
        None => x + y,
    }
}
