//! The layers of a block.

use candle_core::{D, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::{Keys, ModelError};
use crate::naming::{AUX_WEIGHT, SCALE};

/// A linear layer, with a pathway through an auxiliary weight if the checkpoint has one.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    pathway: Option<(Tensor, Tensor)>,
}

impl Linear {
    /// The layer `name` of shape `[outputs, inputs]`.
    ///
    /// # Errors
    /// [`ModelError`].
    pub(crate) fn new(keys: &mut Keys<'_, '_>, name: &str, outputs: usize, inputs: usize) -> Result<Self, ModelError> {
        let weight = keys.take(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = keys.take_if_there(&format!("{name}.bias"), &[outputs])?;
        let pathway = match keys.take_if_there(&format!("{name}.{AUX_WEIGHT}"), &[outputs, inputs])? {
            Some(aux) => {
                let scale = format!("{name}.{SCALE}");
                // A scalar, or the reference module's tensor of one element.
                let shape = if keys.shape(&scale)?.is_empty() { &[][..] } else { &[1] };
                Some((aux, keys.take(&scale, shape)?))
            }
            None => None,
        };
        Ok(Linear { weight, bias, pathway })
    }

    /// A convolution whose stride is its kernel, `[outputs, channels, height, width]`, as a layer over whole patches.
    pub(super) fn from_patches(keys: &mut Keys<'_, '_>, name: &str, shape: &[usize; 4]) -> Result<Self, ModelError> {
        let weight = keys.take(&format!("{name}.weight"), shape)?.flatten_from(1)?;
        let bias = keys.take_if_there(&format!("{name}.bias"), &shape[..1])?;
        Ok(Linear { weight, bias, pathway: None })
    }

    /// `x W^T + lambda (x W'^T) + b` of `x` with the shape `[..., inputs]`: the two branches as they are trained, never
    /// their sum folded.
    ///
    /// # Errors
    /// candle's.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (shape, inputs) = (x.dims(), x.dim(D::Minus1)?);
        let rows = x.reshape(((), inputs))?;
        let mut y = rows.matmul(&self.weight.t()?)?;
        if let Some((aux, scale)) = &self.pathway {
            y = (y + rows.matmul(&aux.t()?)?.broadcast_mul(scale)?)?;
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        let mut shape = shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last = y.dim(D::Minus1)?;
        }
        y.reshape(shape)
    }
}

/// LayerNorm over the last dimension.
#[derive(Clone, Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(super) fn new(keys: &mut Keys<'_, '_>, name: &str, width: usize, eps: f32) -> Result<Self, ModelError> {
        let weight = keys.take(&format!("{name}.weight"), &[width])?;
        Ok(LayerNorm { weight, bias: keys.take(&format!("{name}.bias"), &[width])?, eps })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.eps)
    }
}

/// Multi-head self-attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    pub(super) fn new(keys: &mut Keys<'_, '_>, name: &str, width: usize, heads: usize) -> Result<Self, ModelError> {
        let qkv = Linear::new(keys, &format!("{name}.qkv"), 3 * width, width)?;
        Ok(Attention { qkv, proj: Linear::new(keys, &format!("{name}.proj"), width, width)?, heads })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let head = width / self.heads;
        // [batch, tokens, 3 * width] -> 3 x [batch, heads, tokens, head]
        let qkv = self.qkv.forward(x)?.reshape((batch, tokens, 3, self.heads, head))?.permute((2, 0, 3, 1, 4))?;
        let part = |i: usize| qkv.get(i)?.contiguous();
        let q = (part(0)? * (head as f64).powf(-0.5))?;
        let attention = softmax_last_dim(&q.matmul(&part(1)?.t()?)?)?;
        let mixed = attention.matmul(&part(2)?)?.transpose(1, 2)?.reshape((batch, tokens, width))?;
        self.proj.forward(&mixed)
    }
}

/// The two-layer perceptron of a block, with exact (erf) GELU.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    pub(super) fn new(keys: &mut Keys<'_, '_>, name: &str, width: usize) -> Result<Self, ModelError> {
        let hidden = match keys.shape(&format!("{name}.fc1.weight"))? {
            &[hidden, _] => hidden,
            found => {
                let (name, needed) = (format!("{name}.fc1.weight"), "two dimensions".to_owned());
                return Err(ModelError::Shape { name, found: found.to_vec(), needed });
            }
        };
        let fc1 = Linear::new(keys, &format!("{name}.fc1"), hidden, width)?;
        Ok(Mlp { fc1, fc2: Linear::new(keys, &format!("{name}.fc2"), width, hidden)? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.fc2.forward(&self.fc1.forward(x)?.gelu_erf()?)
    }
}

/// A pre-norm transformer block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    pub(super) fn new(
        keys: &mut Keys<'_, '_>,
        name: &str,
        width: usize,
        heads: usize,
        eps: f32,
    ) -> Result<Self, ModelError> {
        Ok(Block {
            norm1: LayerNorm::new(keys, &format!("{name}.norm1"), width, eps)?,
            attn: Attention::new(keys, &format!("{name}.attn"), width, heads)?,
            norm2: LayerNorm::new(keys, &format!("{name}.norm2"), width, eps)?,
            mlp: Mlp::new(keys, &format!("{name}.mlp"), width)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = (x + self.attn.forward(&self.norm1.forward(x)?)?)?;
        &x + self.mlp.forward(&self.norm2.forward(&x)?)?
    }
}
