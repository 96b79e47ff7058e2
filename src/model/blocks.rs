//! The kinds of transformer blocks.

use candle_core::{D, Tensor};

use super::ModelError;
use super::config::{Activation, BlockKind, Config};
use super::kernels::Ops;
use super::keys::{Keys, Param};
use super::layers::{Attention, Linear, Mixing, Mlp, Norm};

type Result<T, E = ModelError> = std::result::Result<T, E>;

/// A transformer block: `[batch, tokens, width]` to the same.
#[derive(Clone, Debug)]
pub(super) enum Block<'c> {
    /// Attention, then MLP; [`BlockKind::PreNorm`] or [`BlockKind::ResPost`].
    Sequential(Box<Sequential<'c>>),
    /// [`BlockKind::Parallel`] or [`BlockKind::DiffParallel`].
    Parallel(Box<Parallel<'c>>),
    /// [`BlockKind::Things`].
    Things {
        attns: Vec<(Norm<'c>, Attention<'c>, Option<Param<'c>>)>,
        ffns: Vec<(Norm<'c>, Mlp<'c>, Option<Param<'c>>)>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Sequential<'c> {
    norm1: Norm<'c>,
    attn: Attention<'c>,
    ls1: Option<Param<'c>>,
    norm2: Norm<'c>,
    mlp: Mlp<'c>,
    ls2: Option<Param<'c>>,
    post: bool,
}

/// What is in the commonest kind of block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain<'b, 'c> {
    pub(super) norm1: &'b Norm<'c>,
    pub(super) qkv: &'b Linear<'c>,
    pub(super) heads: usize,
    pub(super) proj: &'b Linear<'c>,
    pub(super) ls1: Option<&'b Param<'c>>,
    pub(super) norm2: &'b Norm<'c>,
    pub(super) fc1: &'b Linear<'c>,
    pub(super) activation: Activation,
    pub(super) fc2: &'b Linear<'c>,
    pub(super) ls2: Option<&'b Param<'c>>,
}

#[derive(Clone, Debug)]
pub(super) struct Parallel<'c> {
    in_norm: Norm<'c>,
    in_proj: Linear<'c>,
    mlp_bias: Option<Param<'c>>,
    mixing: Mixing<'c>,
    /// Behind attention; behind both where attention is differential.
    out: Linear<'c>,
    /// Behind the MLP.
    mlp_out: Option<Linear<'c>>,
    ls: Option<Param<'c>>,
    activation: Activation,
    hidden: usize,
    width: usize,
}

impl<'c> Block<'c> {
    /// The block `name`, number `depth`.
    pub(super) fn new(keys: &mut Keys<'_, 'c>, name: &str, config: &Config, depth: usize) -> Result<Self> {
        let (width, norm) = (config.width, config.norm);
        match config.block {
            BlockKind::PreNorm | BlockKind::ResPost => Ok(Block::Sequential(Box::new(Sequential {
                norm1: Norm::new(keys, &format!("{name}.norm1"), width, norm)?,
                attn: Attention::new(keys, &format!("{name}.attn"), config, depth)?,
                ls1: keys.take_if(config.layer_scale, &format!("{name}.ls1.gamma"), &[width])?,
                norm2: Norm::new(keys, &format!("{name}.norm2"), width, norm)?,
                mlp: Mlp::new(keys, &format!("{name}.mlp"), config)?,
                ls2: keys.take_if(config.layer_scale, &format!("{name}.ls2.gamma"), &[width])?,
                post: config.block == BlockKind::ResPost,
            }))),
            BlockKind::Parallel | BlockKind::DiffParallel => {
                Parallel::new(keys, name, config, depth).map(|block| Block::Parallel(Box::new(block)))
            }
            BlockKind::Things => {
                let (mut attns, mut ffns) = (Vec::new(), Vec::new());
                for n in 0..2 {
                    let (attn, ffn) = (format!("{name}.attns.{n}"), format!("{name}.ffns.{n}"));
                    attns.push((
                        Norm::new(keys, &format!("{attn}.norm"), width, norm)?,
                        Attention::new(keys, &format!("{attn}.attn"), config, depth)?,
                        keys.take_if(config.layer_scale, &format!("{attn}.ls.gamma"), &[width])?,
                    ));
                    ffns.push((
                        Norm::new(keys, &format!("{ffn}.norm"), width, norm)?,
                        Mlp::new(keys, &format!("{ffn}.mlp"), config)?,
                        keys.take_if(config.layer_scale, &format!("{ffn}.ls.gamma"), &[width])?,
                    ));
                }
                Ok(Block::Things { attns, ffns })
            }
        }
    }

    /// Its parts, if they are those of the commonest kind of block: timm's `Block` with nothing that is optional in it but
    /// scales of its layers.
    pub(super) fn plain(&self) -> Option<Plain<'_, 'c>> {
        let Block::Sequential(block) = self else { return None };
        let Sequential { norm1, attn, ls1, norm2, mlp, ls2, post: false } = &**block else { return None };
        let ((qkv, proj, heads), (fc1, activation, fc2)) = (attn.plain()?, mlp.plain()?);
        let (ls1, ls2) = (ls1.as_ref(), ls2.as_ref());
        Some(Plain { norm1, qkv, heads, proj, ls1, norm2, fc1, activation, fc2, ls2 })
    }

    /// Takes `x`, of which there may be no other copy that is still needed.
    pub(super) fn forward(&self, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        match self {
            Block::Sequential(block) => block.forward(x, ops),
            Block::Parallel(block) => block.forward(x, ops),
            Block::Things { attns, ffns } => {
                let outputs = attns.iter().map(|(norm, attn, _)| attn.forward(&norm.forward(&x, ops)?, ops));
                let outputs = outputs.collect::<candle_core::Result<Vec<_>>>()?;
                let scales = attns.iter().map(|(_, _, ls)| ls.as_ref());
                let x = add_all(x, outputs.iter().zip(scales), ops)?;
                let outputs = ffns.iter().map(|(norm, mlp, _)| mlp.forward(&norm.forward(&x, ops)?, ops));
                let outputs = outputs.collect::<candle_core::Result<Vec<_>>>()?;
                let scales = ffns.iter().map(|(_, _, ls)| ls.as_ref());
                add_all(x, outputs.iter().zip(scales), ops)
            }
        }
    }
}

fn add_all<'t, 'c: 't>(
    x: Tensor,
    mut terms: impl Iterator<Item = (&'t Tensor, Option<&'t Param<'c>>)>,
    ops: Ops,
) -> candle_core::Result<Tensor> {
    terms.try_fold(x, |x, (y, gamma)| ops.residual(x, y, gamma))
}

impl Sequential<'_> {
    fn forward(&self, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        if self.post {
            let y = self.norm1.forward(&self.attn.forward(&x, ops)?, ops)?;
            let x = ops.residual(x, &y, None)?;
            let y = self.norm2.forward(&self.mlp.forward(&x, ops)?, ops)?;
            return ops.residual(x, &y, None);
        }
        let y = self.attn.forward(&self.norm1.forward(&x, ops)?, ops)?;
        let x = ops.residual(x, &y, self.ls1.as_ref())?;
        let y = self.mlp.forward(&self.norm2.forward(&x, ops)?, ops)?;
        ops.residual(x, &y, self.ls2.as_ref())
    }
}

impl<'c> Parallel<'c> {
    fn new(keys: &mut Keys<'_, 'c>, name: &str, config: &Config, depth: usize) -> Result<Self> {
        let Config { width, hidden, qkv_bias, proj_bias, norm, .. } = *config;
        let differential = config.block == BlockKind::DiffParallel;
        let in_proj = Linear::new(keys, &format!("{name}.in_proj"), hidden + 3 * width, width, qkv_bias)?;
        // Without a bias of the projection, its MLP's part has one.
        let mlp_bias = keys.take_if(!qkv_bias, &format!("{name}.mlp_bias"), &[hidden])?;
        let (out, inputs) = if differential { ("out_proj", width + hidden) } else { ("attn_out_proj", width) };
        let out = Linear::new(keys, &format!("{name}.{out}"), width, inputs, proj_bias)?;
        let mlp_out = if differential {
            None
        } else {
            Some(Linear::new(keys, &format!("{name}.mlp_out_proj"), width, hidden, proj_bias)?)
        };
        Ok(Parallel {
            in_norm: Norm::new(keys, &format!("{name}.in_norm"), width, norm)?,
            in_proj,
            mlp_bias,
            mixing: Mixing::new(keys, name, config, differential, depth)?,
            out,
            mlp_out,
            ls: keys.take_if(config.layer_scale, &format!("{name}.ls.gamma"), &[width])?,
            activation: config.activation,
            hidden,
            width,
        })
    }

    fn forward(&self, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let y = self.in_proj.forward(&self.in_norm.forward(&x, ops)?, ops)?;
        let mut inner = y.narrow(D::Minus1, 0, self.hidden)?;
        let part = |n: usize| y.narrow(D::Minus1, self.hidden + n * self.width, self.width);
        let mixed = self.mixing.forward(&part(0)?, &part(1)?, &part(2)?, ops)?;
        if let Some(bias) = &self.mlp_bias {
            inner = ops.rounded(inner.broadcast_add(&bias.tensor()?)?)?;
        }
        let inner = ops.activation(&inner, self.activation)?;
        let y = match &self.mlp_out {
            None => self.out.forward(&Tensor::cat(&[&mixed, &inner], D::Minus1)?, ops)?,
            Some(mlp) => ops.residual(self.out.forward(&mixed, ops)?, &mlp.forward(&inner, ops)?, None)?,
        };
        ops.residual(x, &y, self.ls.as_ref())
    }
}
