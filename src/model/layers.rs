//! What blocks are made of.

use candle_core::{D, Tensor};

use super::ModelError;
use super::config::{Activation, Config, MlpKind, Norm as NormConfig, NormKind};
use super::kernels::Ops;
use super::keys::{Keys, Param, Scale};

type Result<T, E = ModelError> = std::result::Result<T, E>;

/// A linear layer, with its pathways through auxiliary weights.
#[derive(Clone, Debug)]
pub(super) struct Linear<'c> {
    pub(super) weight: Param<'c>,
    /// Weights, and biases whose lambdas are learned, which have one dimension.
    pub(super) branches: Vec<(Param<'c>, Scale)>,
    pub(super) bias: Option<Param<'c>>,
}

impl<'c> Linear<'c> {
    /// The layer `name` of shape `[outputs, inputs]`.
    pub(super) fn new(keys: &mut Keys<'_, 'c>, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        let (weight, mut branches) = keys.take_weight(name, &[outputs, inputs])?;
        let (bias, learned) = keys.take_bias(bias, name, outputs)?;
        branches.extend(learned);
        Ok(Linear { weight, branches, bias })
    }

    /// A convolution whose stride is its kernel, `[outputs, channels, height, width]`, as a layer over whole patches.
    pub(super) fn from_patches(keys: &mut Keys<'_, 'c>, name: &str, shape: &[usize; 4], bias: bool) -> Result<Self> {
        let weight = keys.take_matrix(&format!("{name}.weight"), shape)?;
        Ok(Linear { weight, branches: Vec::new(), bias: keys.take_if(bias, &format!("{name}.bias"), &shape[..1])? })
    }

    /// `x W^T + lambda (x W'^T) + b` of `x` with the shape `[..., inputs]`: the branches as they are trained, never
    /// their sum folded.
    pub(super) fn forward(&self, x: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        ops.linear(x, &self.weight, &self.branches, self.bias.as_ref(), None)
    }

    /// The same, with a function behind it.
    fn forward_then(&self, x: &Tensor, activation: Activation, ops: Ops) -> candle_core::Result<Tensor> {
        ops.linear(x, &self.weight, &self.branches, self.bias.as_ref(), Some(activation))
    }
}

/// A normalisation over the last dimension.
#[derive(Clone, Debug)]
pub(super) struct Norm<'c> {
    pub(super) norm: NormConfig,
    pub(super) weight: Param<'c>,
    pub(super) bias: Option<Param<'c>>,
}

impl<'c> Norm<'c> {
    pub(super) fn new(keys: &mut Keys<'_, 'c>, name: &str, width: usize, norm: NormConfig) -> Result<Self> {
        let weight = keys.take(&format!("{name}.weight"), &[width])?;
        let bias = keys.take_if(norm.kind == NormKind::LayerNorm, &format!("{name}.bias"), &[width])?;
        Ok(Norm { norm, weight, bias })
    }

    /// The same, if `there`.
    pub(super) fn new_if(
        there: bool,
        keys: &mut Keys<'_, 'c>,
        name: &str,
        width: usize,
        norm: NormConfig,
    ) -> Result<Option<Self>> {
        if there { Norm::new(keys, name, width, norm).map(Some) } else { Ok(None) }
    }

    pub(super) fn forward(&self, x: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        ops.norm(x, self.norm, &self.weight, self.bias.as_ref())
    }

    /// Whether it is learned.
    pub(super) fn learns(&self) -> bool {
        self.weight.learned().is_some() || self.bias.as_ref().is_some_and(|bias| bias.learned().is_some())
    }
}

/// `x` through `norm`, if there is one.
pub(super) fn normed(norm: Option<&Norm<'_>>, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x, ops),
        None => Ok(x),
    }
}

/// `[batch, tokens, heads * head]` as `[batch, heads, tokens, head]`.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    x.reshape((batch, tokens, heads, width / heads.max(1)))?.transpose(1, 2)
}

/// Multi-head self-attention: timm's `Attention`.
#[derive(Clone, Debug)]
pub(super) struct Attention<'c> {
    qkv: Linear<'c>,
    mixing: Mixing<'c>,
    norm: Option<Norm<'c>>,
    proj: Linear<'c>,
    width: usize,
}

impl<'c> Attention<'c> {
    pub(super) fn new(keys: &mut Keys<'_, 'c>, name: &str, config: &Config, depth: usize) -> Result<Self> {
        let width = config.width;
        Ok(Attention {
            qkv: Linear::new(keys, &format!("{name}.qkv"), 3 * width, width, config.qkv_bias)?,
            mixing: Mixing::new(keys, name, config, config.differential, depth)?,
            norm: Norm::new_if(config.scale_attn_norm, keys, &format!("{name}.norm"), width, config.norm)?,
            proj: Linear::new(keys, &format!("{name}.proj"), width, width, config.proj_bias)?,
            width,
        })
    }

    /// Its projections and the number of its heads, if nothing else is between them.
    pub(super) fn plain(&self) -> Option<(&Linear<'c>, &Linear<'c>, usize)> {
        let Mixing { heads, q_norm: None, k_norm: None, difference: None } = &self.mixing else { return None };
        self.norm.is_none().then_some((&self.qkv, &self.proj, *heads))
    }

    pub(super) fn forward(&self, x: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let qkv = self.qkv.forward(x, ops)?;
        let part = |n: usize| qkv.narrow(D::Minus1, n * self.width, self.width);
        let mixed = self.mixing.forward(&part(0)?, &part(1)?, &part(2)?, ops)?;
        self.proj.forward(&normed(self.norm.as_ref(), mixed, ops)?, ops)
    }
}

/// What happens between the projections of an attention: queries, keys and values `[batch, tokens, width]` to
/// `[batch, tokens, width]`.
#[derive(Clone, Debug)]
pub(super) struct Mixing<'c> {
    heads: usize,
    q_norm: Option<Norm<'c>>,
    k_norm: Option<Norm<'c>>,
    difference: Option<Difference<'c>>,
}

/// What differential attention has besides: `attn1 - lambda * attn2`, normalised, times `1 - lambda_init`.
#[derive(Clone, Debug)]
struct Difference<'c> {
    lambda: f64,
    lambda_init: f64,
    norm: Norm<'c>,
}

impl<'c> Difference<'c> {
    /// With half heads of the width `half`, in the block number `depth`.
    fn new(keys: &mut Keys<'_, 'c>, name: &str, half: usize, depth: usize) -> Result<Self> {
        let mut vector = |part: &str| keys.take_values(&format!("{name}.lambda_{part}"), &[half]);
        let (q1, k1, q2, k2) = (vector("q1")?, vector("k1")?, vector("q2")?, vector("k2")?);
        let product = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>().exp();
        let lambda_init = 0.8 - 0.6 * (-0.3 * depth as f64).exp();
        let lambda = f64::from(product(&q1, &k1) - product(&q2, &k2) + lambda_init as f32);
        // timm's RmsNorm with an epsilon of its own.
        let norm = NormConfig { kind: NormKind::RmsNorm, eps: 1e-5 };
        Ok(Difference { lambda, lambda_init, norm: Norm::new(keys, &format!("{name}.sub_norm"), 2 * half, norm)? })
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, ops: Ops) -> candle_core::Result<Tensor> {
        // [batch, 2 * heads, tokens, half]: neighbours are the two parts of one head.
        let part = |x: &Tensor, n: usize| {
            let (batch, _, tokens, half) = x.dims4()?;
            x.contiguous()?.reshape((batch, heads, 2, tokens, half))?.narrow(2, n, 1)?.squeeze(2)
        };
        let attn1 = ops.attention(&part(q, 0)?, &part(k, 0)?, v)?;
        let attn2 = ops.attention(&part(q, 1)?, &part(k, 1)?, v)?;
        let mixed = ops.rounded((attn1 - ops.rounded((attn2 * self.lambda)?)?)?)?;
        let (batch, tokens, width) = mixed.dims3()?;
        let mixed = self.norm.forward(&mixed.reshape((batch, tokens, heads, width / heads))?, ops)?;
        ops.rounded((mixed * (1.0 - self.lambda_init))?)?.reshape((batch, tokens, width))
    }
}

impl<'c> Mixing<'c> {
    pub(super) fn new(
        keys: &mut Keys<'_, 'c>,
        name: &str,
        config: &Config,
        differential: bool,
        depth: usize,
    ) -> Result<Self> {
        let head = config.width / config.heads;
        let head = if differential { head / 2 } else { head };
        let mut norm = |part: &str| Norm::new_if(config.qk_norm, keys, &format!("{name}.{part}"), head, config.norm);
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        let difference = if differential { Some(Difference::new(keys, name, head, depth)?) } else { None };
        Ok(Mixing { heads: config.heads, q_norm, k_norm, difference })
    }

    pub(super) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let parts = if self.difference.is_some() { 2 } else { 1 };
        let q = normed(self.q_norm.as_ref(), split_heads(q, parts * self.heads)?, ops)?;
        let k = normed(self.k_norm.as_ref(), split_heads(k, parts * self.heads)?, ops)?;
        let v = split_heads(v, self.heads)?;
        match &self.difference {
            Some(difference) => difference.forward(&q, &k, &v, self.heads, ops),
            None => ops.attention(&q, &k, &v),
        }
    }
}

/// The perceptron of a block.
#[derive(Clone, Debug)]
pub(super) struct Mlp<'c> {
    /// `fc1`, or the gate's part of it.
    fc1: Linear<'c>,
    /// `fc1_x`.
    other: Option<Linear<'c>>,
    kind: MlpKind,
    activation: Activation,
    norm: Option<Norm<'c>>,
    fc2: Linear<'c>,
}

impl<'c> Mlp<'c> {
    pub(super) fn new(keys: &mut Keys<'_, 'c>, name: &str, config: &Config) -> Result<Self> {
        Mlp::of_kind(keys, name, config, config.mlp, config.hidden, config.proj_bias, config.scale_mlp_norm)
    }

    /// The one in timm's `AttentionPoolLatent`.
    pub(super) fn of_pool(keys: &mut Keys<'_, 'c>, name: &str, config: &Config) -> Result<Self> {
        Mlp::of_kind(keys, name, config, MlpKind::Plain, config.pool_hidden, true, false)
    }

    fn of_kind(
        keys: &mut Keys<'_, 'c>,
        name: &str,
        config: &Config,
        kind: MlpKind,
        hidden: usize,
        bias: bool,
        norm: bool,
    ) -> Result<Self> {
        let width = config.width;
        let inner = if kind == MlpKind::SwigluPacked { hidden / 2 } else { hidden };
        let mut first = |part: &str| Linear::new(keys, &format!("{name}.{part}"), hidden, width, bias);
        let (fc1, other) = match kind {
            MlpKind::Swiglu => (first("fc1_g")?, Some(first("fc1_x")?)),
            MlpKind::Plain | MlpKind::SwigluPacked => (first("fc1")?, None),
        };
        let norm = Norm::new_if(norm, keys, &format!("{name}.norm"), inner, config.norm)?;
        let fc2 = Linear::new(keys, &format!("{name}.fc2"), width, inner, bias)?;
        Ok(Mlp { fc1, other, kind, activation: config.activation, norm, fc2 })
    }

    /// Its layers and the function between them, if there is nothing else.
    pub(super) fn plain(&self) -> Option<(&Linear<'c>, Activation, &Linear<'c>)> {
        let plain = self.kind == MlpKind::Plain && self.other.is_none() && self.norm.is_none();
        plain.then_some((&self.fc1, self.activation, &self.fc2))
    }

    pub(super) fn forward(&self, x: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let inner = match (self.kind, &self.other) {
            (MlpKind::SwigluPacked, _) => {
                let both = self.fc1.forward(x, ops)?;
                let half = both.dim(D::Minus1)? / 2;
                let gate = ops.activation(&both.narrow(D::Minus1, 0, half)?, self.activation)?;
                ops.multiply(gate, &both.narrow(D::Minus1, half, half)?)?
            }
            (_, Some(other)) => {
                let gate = self.fc1.forward_then(x, self.activation, ops)?;
                ops.multiply(gate, &other.forward(x, ops)?)?
            }
            (_, None) => self.fc1.forward_then(x, self.activation, ops)?,
        };
        self.fc2.forward(&normed(self.norm.as_ref(), inner, ops)?, ops)
    }
}
