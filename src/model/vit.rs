//! The vision transformer.

use candle_core::{D, Device, IndexOp, Tensor};
use rayon::prelude::*;

use super::blocks::Block;
use super::config::{Config, Pool, Positions};
use super::kernels::{Kernels, Ops, Precision};
use super::keys::{Branches, Holding, Keys, Param};
use super::layers::{Linear, Mlp, Norm, normed, split_heads};
use super::{ModelError, prefix_of};
use crate::checkpoint::StateDict;

/// Images that one thread takes through the model at a time: enough to use a weight often while it is in the cache.
const IMAGES: usize = 8;

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct Load<'s, 'c> {
    /// Where it runs.
    pub device: Device,
    /// The type that it is run in.
    pub precision: Precision,
    /// Whose kernels compute.
    pub kernels: Kernels,
    /// Auxiliary weights beside those of the checkpoint.
    pub branches: Branches<'s, 'c>,
    /// Whether pathways are folded into the weights, `W + lambda * W'`, when these are read. Otherwise they are run as branches.
    pub fold: bool,
}

impl Load<'_, '_> {
    /// float32 on `device`, with the fastest kernels, pathways as branches.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Load {
            device: device.clone(),
            precision: Precision::F32,
            kernels: Kernels::best(device),
            branches: Branches::default(),
            fold: false,
        }
    }
}

/// A vision transformer: timm's `VisionTransformer`, with the weights of a checkpoint.
///
/// float32 weights stay in the file's map where it has them contiguous.
#[derive(Clone, Debug)]
pub struct Vit<'c> {
    config: Config,
    pub(super) ops: Ops,
    device: Device,
    patch_embed: Linear<'c>,
    pub(super) patch_norm: Option<Norm<'c>>,
    prefix: Vec<Param<'c>>,
    pos_embed: Option<Param<'c>>,
    pub(super) norm_pre: Option<Norm<'c>>,
    pub(super) blocks: Vec<Block<'c>>,
    norm: Option<Norm<'c>>,
    attn_pool: Option<AttentionPool<'c>>,
    fc_norm: Option<Norm<'c>>,
    probe: Option<(Param<'c>, Param<'c>)>,
    head: Option<Linear<'c>>,
    head_dist: Option<Linear<'c>>,
}

/// Pooling by attention from a learned query: timm's `AttentionPoolLatent`.
#[derive(Clone, Debug)]
struct AttentionPool<'c> {
    latent: Param<'c>,
    q: Linear<'c>,
    kv: Linear<'c>,
    proj: Linear<'c>,
    norm: Norm<'c>,
    mlp: Mlp<'c>,
}

impl<'c> AttentionPool<'c> {
    fn new(keys: &mut Keys<'_, 'c>, config: &Config) -> Result<Self, ModelError> {
        let width = config.width;
        Ok(AttentionPool {
            latent: keys.take("attn_pool.latent", &[1, 1, width])?,
            q: Linear::new(keys, "attn_pool.q", width, width, true)?,
            kv: Linear::new(keys, "attn_pool.kv", 2 * width, width, true)?,
            proj: Linear::new(keys, "attn_pool.proj", width, width, true)?,
            norm: Norm::new(keys, "attn_pool.norm", width, config.norm)?,
            mlp: Mlp::of_pool(keys, "attn_pool.mlp", config)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize, ops: Ops) -> candle_core::Result<Tensor> {
        let (batch, _, width) = x.dims3()?;
        let latent = self.latent.tensor()?.to_device(x.device())?;
        let q = self.q.forward(&latent, ops)?.broadcast_as((batch, 1, width))?.contiguous()?;
        let kv = self.kv.forward(x, ops)?;
        let part = |n: usize| split_heads(&kv.narrow(D::Minus1, n * width, width)?, heads);
        let x = self.proj.forward(&ops.attention(&split_heads(&q, heads)?, &part(0)?, &part(1)?)?, ops)?;
        let y = self.mlp.forward(&self.norm.forward(&x, ops)?, ops)?;
        ops.residual(x, &y, None)?.i((.., 0))
    }
}

impl<'c> Vit<'c> {
    /// The model of which `tensors` are the weights, in float32; each of them is used exactly once.
    ///
    /// # Errors
    /// [`ModelError`]: a tensor is missing, left over, or of the wrong shape or type.
    pub fn new(config: &Config, tensors: &StateDict<'c>, device: &Device) -> Result<Vit<'c>, ModelError> {
        Vit::load(config, tensors, &Load::new(device))
    }

    /// The same, as `load` says.
    ///
    /// # Errors
    /// As [`Vit::new`]; [`ModelError::Branch`] for auxiliary weights that fit nowhere.
    pub fn load(config: &Config, tensors: &StateDict<'c>, load: &Load<'_, 'c>) -> Result<Vit<'c>, ModelError> {
        config.check()?;
        if load.kernels == Kernels::Fused && !load.device.is_cpu() {
            return Err(ModelError::Config("the fused kernels run on the CPU only".to_owned()));
        }
        // Everything is compared before anything is read.
        compare(config, tensors, &load.branches)?;
        let threads = rayon::current_num_threads();
        let ops = Ops { kernels: load.kernels, precision: load.precision, threads };
        let holding = Holding { device: load.device.clone(), ops, fold: load.fold };
        let mut keys = Keys::new(tensors, &prefix_of(tensors), &load.branches, Some(holding));
        let vit = Vit::build(config, &mut keys, ops, &load.device)?;
        keys.finish()?;
        Ok(vit)
    }

    fn build(config: &Config, keys: &mut Keys<'_, 'c>, ops: Ops, device: &Device) -> Result<Vit<'c>, ModelError> {
        let Config { width, norm, .. } = *config;
        let shape = [width, config.channels, config.patch.0, config.patch.1];
        let mut prefix = Vec::new();
        let tokens = [
            ("cls_token", usize::from(config.class_token)),
            ("dist_token", usize::from(config.distilled)),
            ("reg_token", config.registers),
        ];
        for (name, count) in tokens {
            prefix.extend(keys.take_if(count > 0, name, &[1, count, width])?);
        }
        let positions = match config.positions {
            Positions::None => None,
            Positions::Patches => Some(config.patches()),
            Positions::All => Some(config.patches() + config.prefix()),
        };
        let head = if config.probe { "head.1" } else { "head" };
        let classes = config.classes.unwrap_or_default();
        let has_head = config.classes.is_some();
        let linear = |keys: &mut Keys<'_, 'c>, there: bool, name: &str| {
            if there { Linear::new(keys, name, classes, width, true).map(Some) } else { Ok(None) }
        };
        let last = config.final_norm && !config.fc_norm;
        let pooled = config.final_norm && config.fc_norm;
        Ok(Vit {
            patch_embed: Linear::from_patches(keys, "patch_embed.proj", &shape, !config.norm_pre)?,
            patch_norm: match config.embed_norm {
                Some(norm) => Some(Norm::new(keys, "patch_embed.norm", width, norm)?),
                None => None,
            },
            prefix,
            pos_embed: match positions {
                Some(positions) => Some(keys.take("pos_embed", &[1, positions, width])?),
                None => None,
            },
            norm_pre: Norm::new_if(config.norm_pre, keys, "norm_pre", width, norm)?,
            blocks: (0..config.depth)
                .map(|n| Block::new(keys, &format!("blocks.{n}"), config, n))
                .collect::<Result<_, _>>()?,
            norm: Norm::new_if(last, keys, "norm", width, norm)?,
            attn_pool: if config.pool == Pool::Map { Some(AttentionPool::new(keys, config)?) } else { None },
            fc_norm: Norm::new_if(pooled, keys, "fc_norm", width, norm)?,
            probe: if config.probe {
                let mut take = |name: &str| keys.take(&format!("head.0.{name}"), &[width]);
                let found = Some((take("running_mean")?, take("running_var")?));
                keys.ignore("head.0.num_batches_tracked");
                found
            } else {
                None
            },
            head: linear(keys, has_head, head)?,
            head_dist: linear(keys, has_head && config.distilled, "head_dist")?,
            config: config.clone(),
            ops,
            device: device.clone(),
        })
    }

    /// What the model is made of.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Logits `[batch, classes]` in float32 of preprocessed images `[batch, channels, height, width]` in float32; pooled features
    /// `[batch, width]` without a head.
    ///
    /// # Errors
    /// candle's, if the images do not fit the model.
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, threads) = (images.dim(0)?, self.ops.threads);
        if self.ops.kernels == Kernels::Candle || threads < 2 || batch < threads {
            return self.run(images, self.ops, &mut |_, _| Ok(()));
        }
        // Every thread takes images of its own: nothing waits for anything.
        let ops = Ops { threads: 1, ..self.ops };
        let share = batch.div_ceil(threads).min(IMAGES);
        let starts: Vec<usize> = (0..batch).step_by(share).collect();
        let parts: Vec<Tensor> = starts
            .into_par_iter()
            .map(|first| {
                let part = images.narrow(0, first, share.min(batch - first))?;
                self.run(&part, ops, &mut |_, _| Ok(()))
            })
            .collect::<candle_core::Result<_>>()?;
        Tensor::cat(&parts, 0)
    }

    /// The same; `each` is called with the output `[batch, tokens, width]` of every block and its number.
    ///
    /// # Errors
    /// As [`Vit::forward`], and those of `each`.
    pub fn forward_traced(
        &self,
        images: &Tensor,
        each: &mut dyn FnMut(usize, &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        self.run(images, self.ops, each)
    }

    fn run(
        &self,
        images: &Tensor,
        ops: Ops,
        each: &mut dyn FnMut(usize, &Tensor) -> candle_core::Result<()>,
    ) -> candle_core::Result<Tensor> {
        let mut x = self.embed(images, ops)?;
        for (n, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, ops)?;
            each(n, &x)?;
        }
        self.finish(x, ops)
    }

    /// What the last block leaves, `[batch, tokens, width]`, to logits.
    pub(super) fn finish(&self, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let x = normed(self.norm.as_ref(), x, ops)?;
        let pooled = normed(self.fc_norm.as_ref(), self.pool(&x, ops)?, ops)?;
        let logits = match (&self.head, &self.head_dist) {
            (Some(head), Some(dist)) => {
                // DeiT: the mean of what class and distillation token say.
                let second = head.forward(&pooled, ops)?;
                let dist = dist.forward(&x.i((.., 1))?, ops)?;
                ((second + dist)? / 2.0)?
            }
            (Some(head), None) => head.forward(&self.probed(pooled, ops)?, ops)?,
            (None, _) => pooled,
        };
        logits.to_dtype(candle_core::DType::F32)
    }

    /// Tokens `[batch, prefix + patches, width]` as the first block takes them.
    pub(super) fn embed(&self, images: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let images = ops.rounded(match ops.kernels {
            Kernels::Fused => images.clone(),
            Kernels::Candle => images.to_dtype(ops.precision.dtype())?,
        })?;
        let x = self.patch_embed.forward(&self.patches(&images)?, ops)?;
        let mut x = normed(self.patch_norm.as_ref(), x, ops)?;
        let batch = x.dim(0)?;
        let positions = self.pos_embed.as_ref().map(Param::tensor).transpose()?;
        if let (Positions::Patches, Some(positions)) = (self.config.positions, &positions) {
            x = ops.rounded(x.broadcast_add(positions)?)?;
        }
        if !self.prefix.is_empty() {
            let mut parts = Vec::new();
            for token in &self.prefix {
                let token = token.tensor()?;
                let (_, count, width) = token.dims3()?;
                parts.push(token.broadcast_as((batch, count, width))?.contiguous()?);
            }
            parts.push(x);
            x = Tensor::cat(&parts, 1)?;
        }
        if let (Positions::All, Some(positions)) = (self.config.positions, &positions) {
            x = ops.rounded(x.broadcast_add(positions)?)?;
        }
        normed(self.norm_pre.as_ref(), x, ops)
    }

    /// Images cut into patches, row-major: `[batch, patches, channels * patch height * patch width]`.
    fn patches(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, channels, height, width) = images.dims4()?;
        let (high, wide) = self.config.patch;
        let (rows, columns) = (height / high, width / wide);
        // timm refuses other sizes than the model's. Of the same number of patches, though, the size may not be known.
        if channels != self.config.channels || rows * columns != self.config.patches() {
            let Config { image, channels: needed, .. } = self.config;
            candle_core::bail!(
                "images of {channels} x {height} x {width} do not fit a model for {needed} x {} x {}",
                image.0,
                image.1
            );
        }
        let images = images.narrow(2, 0, rows * high)?.narrow(3, 0, columns * wide)?.contiguous()?;
        images.reshape((batch, channels, rows, high, columns, wide))?.permute((0, 2, 4, 1, 3, 5))?.reshape((
            batch,
            rows * columns,
            channels * high * wide,
        ))
    }

    /// `[batch, tokens, width]` to `[batch, width]`.
    fn pool(&self, x: &Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        let prefix = if self.config.pool_prefix { 0 } else { self.config.prefix() };
        let patches = || x.narrow(1, prefix, x.dim(1)? - prefix);
        match self.config.pool {
            Pool::Token => x.i((.., 0)),
            Pool::Average => ops.rounded(patches()?.mean(1)?),
            Pool::Max => patches()?.max(1),
            Pool::AverageMax => {
                let patches = patches()?;
                ops.rounded(((patches.max(1)? + patches.mean(1)?)? * 0.5)?)
            }
            Pool::Map => match &self.attn_pool {
                Some(pool) => pool.forward(&patches()?.contiguous()?, self.config.heads, ops),
                None => x.i((.., 0)),
            },
            Pool::Prr => {
                let heads = split_heads(x, self.config.heads)?;
                let x = ops.attention(&heads, &heads, &heads)?;
                if self.config.class_token { x.i((.., 0)) } else { ops.rounded(x.mean(1)?) }
            }
        }
    }

    /// Through the BatchNorm without parameters that stands before the head in linear probing (MAE); its epsilon is 1e-6.
    fn probed(&self, x: Tensor, ops: Ops) -> candle_core::Result<Tensor> {
        match &self.probe {
            Some((mean, var)) => {
                let scale = (var.tensor()? + 1e-6)?.sqrt()?;
                ops.rounded(x.broadcast_sub(&mean.tensor()?)?.broadcast_div(&scale)?)
            }
            None => Ok(x),
        }
    }
}

/// The names and shapes of the tensors that the model needs. `tensors` tells what may be there or not.
pub(super) fn needed(config: &Config, tensors: &StateDict<'_>) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
    let branches = Branches::default();
    let mut keys = Keys::new(tensors, "", &branches, None);
    let ops = Ops { kernels: Kernels::Fused, precision: Precision::F32, threads: 1 };
    Vit::build(config, &mut keys, ops, &Device::Cpu)?;
    Ok(keys.into_needed())
}

/// Whether `tensors` are the weights of such a model: what `load_state_dict(strict=True)` checks.
///
/// # Errors
/// [`ModelError::Keys`], and [`ModelError::Branch`] for auxiliary weights that fit nowhere.
pub(super) fn compare<'c>(
    config: &Config,
    tensors: &StateDict<'c>,
    branches: &Branches<'_, 'c>,
) -> Result<(), ModelError> {
    let mut keys = Keys::new(tensors, &prefix_of(tensors), branches, None);
    let ops = Ops { kernels: Kernels::Fused, precision: Precision::F32, threads: 1 };
    Vit::build(config, &mut keys, ops, &Device::Cpu)?;
    keys.finish()
}
