//! The operations of a model: as compositions of candle's, for any device, and as kernels of this crate for float32 on
//! the CPU, which do without temporaries, copies and permutations.
//!
//! float16 and bfloat16 on the CPU are computed in float32 by the same kernels, and every operation's result is rounded to the type,
//! to nearest even.

mod candle;
mod fused;
pub(super) mod gemm;
pub(super) mod math;

use candle_core::{Device, Tensor};

use super::config::{Activation, Norm};
use super::keys::{Param, Scale};

/// The type that a model is run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// float32.
    #[default]
    F32,
    /// float16.
    F16,
    /// bfloat16.
    BF16,
}

impl Precision {
    pub(super) fn dtype(self) -> candle_core::DType {
        match self {
            Precision::F32 => candle_core::DType::F32,
            Precision::F16 => candle_core::DType::F16,
            Precision::BF16 => candle_core::DType::BF16,
        }
    }

    /// Rounds each value to the type, to nearest even.
    pub(super) fn round(self, values: &mut [f32]) {
        match self {
            Precision::F32 => {}
            Precision::F16 => values.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
            Precision::BF16 => values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        }
    }
}

/// Whose kernels compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Those of this crate: on the CPU.
    Fused,
    /// candle's, one by one: on any device. bfloat16 needs a GPU.
    Candle,
}

impl Kernels {
    /// The fastest on that device.
    #[must_use]
    pub fn best(device: &Device) -> Kernels {
        if device.is_cpu() { Kernels::Fused } else { Kernels::Candle }
    }
}

/// How operations are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ops {
    pub(super) kernels: Kernels,
    pub(super) precision: Precision,
    /// Threads that share one operation's work; not candle's own.
    pub(super) threads: usize,
}

type Result<T> = candle_core::Result<T>;

impl Ops {
    /// `x W^T + sum of lambda (x A^T) + b`, then the function: `x` is `[..., inputs]`, `W` and each `A` `[outputs, inputs]`.
    pub(super) fn linear(
        self,
        x: &Tensor,
        weight: &Param<'_>,
        branches: &[(Param<'_>, Scale)],
        bias: Option<&Param<'_>>,
        activation: Option<Activation>,
    ) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => fused::linear(self, x, weight, branches, bias, activation),
            Kernels::Candle => candle::linear(x, weight, branches, bias, activation),
        }
    }

    /// The function, of each element.
    pub(super) fn activation(self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => fused::activation(self, x, activation),
            Kernels::Candle => candle::activation(x, activation),
        }
    }

    /// A normalisation over the last dimension; LayerNorm has a bias.
    pub(super) fn norm(self, x: &Tensor, norm: Norm, weight: &Param<'_>, bias: Option<&Param<'_>>) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => fused::norm(self, x, norm, weight, bias),
            Kernels::Candle => candle::norm(x, norm, weight, bias),
        }
    }

    /// `softmax(q k^T / sqrt(head)) v` for each head: `[batch, heads, tokens, head]` to `[batch, tokens, heads * head]`.
    ///
    /// The last dimension of each has to be contiguous; `k` and `v` may have other tokens than `q`, `v` another width.
    pub(super) fn attention(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mixed = match self.kernels {
            Kernels::Fused => fused::attention(self, q, k, v)?,
            Kernels::Candle => candle::attention(q, k, v)?,
        };
        mixed.transpose(1, 2)?.flatten_from(2)
    }

    /// `x + gamma * y`, or `x + y`; takes `x`, of which there may be no other copy that is still needed.
    pub(super) fn residual(self, x: Tensor, y: &Tensor, gamma: Option<&Param<'_>>) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => fused::residual(self, x, y, gamma),
            Kernels::Candle => candle::residual(&x, y, gamma),
        }
    }

    /// `x * y`, element by element; takes `x`.
    pub(super) fn multiply(self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => fused::multiply(self, x, y),
            Kernels::Candle => &x * y,
        }
    }

    /// Rounds what candle computed in float32 for the kernels of this crate.
    pub(super) fn rounded(self, x: Tensor) -> Result<Tensor> {
        match (self.kernels, self.precision) {
            (Kernels::Candle, _) | (_, Precision::F32) => Ok(x),
            (Kernels::Fused, precision) => x.to_dtype(precision.dtype())?.to_dtype(candle_core::DType::F32),
        }
    }
}
