//! The operations as compositions of candle's, through which gradients pass where anything is learned.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::{rms_norm, sigmoid, softmax_last_dim};

use super::super::config::{Activation, Norm, NormKind};
use super::super::keys::{Param, Scale};

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
    let (mut weight, mut bias) = (weight.tensor()?, bias.map(Param::tensor).transpose()?);
    for (aux, scale) in branches {
        // Folded, a gradient takes one product of matrices for each weight, and not one for each branch.
        let Some(lambda) = scale.learned() else { continue };
        let scaled = aux.tensor()?.broadcast_mul(lambda.tensor())?;
        match &mut bias {
            Some(bias) if aux.shape().len() == 1 => *bias = (&*bias + scaled)?,
            _ => weight = (weight + scaled)?,
        }
    }
    let mut y = rows.matmul(&weight.t()?)?;
    for (aux, scale) in branches {
        if let Scale::Fixed(lambda) = scale {
            y = (y + (rows.matmul(&aux.tensor()?.t()?)? * f64::from(*lambda))?)?;
        }
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias)?;
    }
    if let Some(last) = shape.last_mut() {
        *last = y.dim(D::Minus1)?;
    }
    let y = y.reshape(shape)?;
    function.map_or(Ok(y.clone()), |function| activation(&y, function))
}

pub(super) fn activation(x: &Tensor, function: Activation) -> Result<Tensor> {
    match function {
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
    let (weight, bias) = (weight.tensor()?, bias.map(Param::tensor).transpose()?);
    if x.track_op() || weight.track_op() {
        // candle's own have no backward pass.
        let x = match norm.kind {
            NormKind::LayerNorm => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::RmsNorm => x,
        };
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
        let y = x.broadcast_div(&deviation)?.broadcast_mul(&weight)?;
        return bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(&bias));
    }
    match (norm.kind, bias) {
        (NormKind::LayerNorm, Some(bias)) => candle_nn::ops::layer_norm(&x, &weight, &bias, norm.eps as f32),
        _ => rms_norm(&x, &weight, norm.eps as f32),
    }
}

/// `[batch, heads, tokens, head]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
    let scores = (q.contiguous()? * scale)?.matmul(&k.contiguous()?.t()?)?;
    let weights = if scores.track_op() {
        // candle's own has no backward pass. The largest score changes nothing, and needs no gradient.
        let raised = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?
    } else {
        // As PyTorch does, whatever the type of the scores.
        softmax_last_dim(&scores.to_dtype(DType::F32)?)?.to_dtype(scores.dtype())?
    };
    weights.matmul(&v.contiguous()?)
}

pub(super) fn residual(x: &Tensor, y: &Tensor, gamma: Option<&Param<'_>>) -> Result<Tensor> {
    match gamma {
        Some(gamma) => x + y.broadcast_mul(&gamma.tensor()?)?,
        None => x + y,
    }
}
