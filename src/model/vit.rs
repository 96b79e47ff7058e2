//! The vision transformer.

use candle_core::{Device, IndexOp, Tensor};

use super::layers::{Block, LayerNorm, Linear};
use super::{Keys, ModelError};
use crate::checkpoint::StateDict;

/// How token features become one feature for the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The class token, after `norm`.
    Token,
    /// The mean of the patch tokens, then `fc_norm`.
    Average,
}

/// The dimensions of a plain ViT.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks.
    pub depth: usize,
    /// Width of a token.
    pub width: usize,
    /// Attention heads; not in the weights.
    pub heads: usize,
    /// Input channels.
    pub channels: usize,
    /// Height and width of a patch, in pixels.
    pub patch: (usize, usize),
    /// Tokens, the class token included.
    pub tokens: usize,
    /// Whether there is a class token.
    pub class_token: bool,
    /// How tokens are pooled.
    pub pool: Pool,
    /// Classes of the head; `None` without a head.
    pub classes: Option<usize>,
    /// The epsilon of every LayerNorm: 1e-6 in timm.
    pub eps: f32,
}

impl Config {
    /// The configuration that the shapes of `tensors` tell, with that number of heads and timm's epsilon.
    ///
    /// # Errors
    /// [`ModelError::Missing`] and [`ModelError::Shape`] if they are not those of a plain ViT.
    pub fn new(tensors: &StateDict<'_>, heads: usize) -> Result<Config, ModelError> {
        let keys = Keys::new(tensors, &Device::Cpu);
        let wrong = |name: &str, found: &[usize], needed: &str| {
            let (name, found, needed) = (name.to_owned(), found.to_vec(), needed.to_owned());
            ModelError::Shape { name, found, needed }
        };
        let embedding = keys.shape("patch_embed.proj.weight")?;
        let &[width, channels, high, wide] = embedding else {
            return Err(wrong("patch_embed.proj.weight", embedding, "[width, channels, height, width of a patch]"));
        };
        let positions = keys.shape("pos_embed")?;
        let &[1, tokens, _] = positions else {
            return Err(wrong("pos_embed", positions, "[1, tokens, width]"));
        };
        let depth = (0..).take_while(|n| keys.has(&format!("blocks.{n}.attn.qkv.weight"))).count();
        let classes = if keys.has("head.weight") { keys.shape("head.weight")?.first().copied() } else { None };
        Ok(Config {
            depth,
            width,
            heads,
            channels,
            patch: (high, wide),
            tokens,
            class_token: keys.has("cls_token"),
            pool: if keys.has("fc_norm.weight") { Pool::Average } else { Pool::Token },
            classes,
            eps: 1e-6,
        })
    }
}

/// A plain vision transformer, in float32.
#[derive(Clone, Debug)]
pub struct Vit {
    config: Config,
    patch_embed: Linear,
    cls_token: Option<Tensor>,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Option<Linear>,
}

impl Vit {
    /// The model of which `tensors` are the weights; each of them is used exactly once.
    ///
    /// # Errors
    /// [`ModelError`]: a tensor is missing, left over, or of the wrong shape or type.
    pub fn new(config: &Config, tensors: &StateDict<'_>, device: &Device) -> Result<Vit, ModelError> {
        let Config { heads, width, patch, .. } = *config;
        if heads == 0 || !width.is_multiple_of(heads) || patch.0 == 0 || patch.1 == 0 {
            return Err(ModelError::Config { heads, width, patch });
        }
        let mut owned = Keys::new(tensors, device);
        let keys = &mut owned;
        let (width, (high, wide)) = (config.width, config.patch);
        let patch_embed = Linear::from_patches(keys, "patch_embed.proj", &[width, config.channels, high, wide])?;
        let norm = match config.pool {
            Pool::Token => "norm",
            Pool::Average => "fc_norm",
        };
        let vit = Vit {
            config: config.clone(),
            patch_embed,
            cls_token: keys.take_if_there("cls_token", &[1, 1, width])?,
            pos_embed: keys.take("pos_embed", &[1, config.tokens, width])?,
            blocks: (0..config.depth)
                .map(|n| Block::new(keys, &format!("blocks.{n}"), width, config.heads, config.eps))
                .collect::<Result<_, _>>()?,
            norm: LayerNorm::new(keys, norm, width, config.eps)?,
            head: config.classes.map(|classes| Linear::new(keys, "head", classes, width)).transpose()?,
        };
        owned.finish()?;
        Ok(vit)
    }

    /// Logits `[batch, classes]` of preprocessed images `[batch, channels, height, width]` in float32; pooled features
    /// `[batch, width]` without a head.
    ///
    /// # Errors
    /// candle's, if the images do not fit the model.
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.patch_embed.forward(&self.patches(images)?)?;
        let batch = x.dim(0)?;
        if let Some(token) = &self.cls_token {
            x = Tensor::cat(&[&token.broadcast_as((batch, 1, self.config.width))?, &x], 1)?;
        }
        x = x.broadcast_add(&self.pos_embed)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let prefix = usize::from(self.cls_token.is_some());
        let pooled = match self.config.pool {
            Pool::Token => self.norm.forward(&x.i((.., 0))?)?,
            Pool::Average => self.norm.forward(&x.i((.., prefix..))?.mean(1)?)?,
        };
        match &self.head {
            Some(head) => head.forward(&pooled),
            None => Ok(pooled),
        }
    }

    /// Images cut into patches, row-major: `[batch, tokens, channels * patch height * patch width]`.
    fn patches(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, channels, height, width) = images.dims4()?;
        let (high, wide) = self.config.patch;
        let (rows, columns) = (height / high, width / wide);
        images.reshape((batch, channels, rows, high, columns, wide))?.permute((0, 2, 4, 1, 3, 5))?.reshape((
            batch,
            rows * columns,
            channels * high * wide,
        ))
    }
}
