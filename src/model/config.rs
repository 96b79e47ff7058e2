//! What a vision transformer is made of: the arguments of timm's `VisionTransformer`.

use serde::Deserialize;

use super::ModelError;

/// The function between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Phi(x)`, with the error function: `torch.nn.GELU`.
    Gelu,
    /// GELU's approximation with a hyperbolic tangent.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The function that timm knows by this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Activation> {
        Some(match name.to_ascii_lowercase().as_str() {
            "gelu" => Activation::Gelu,
            "gelu_tanh" => Activation::GeluTanh,
            "quick_gelu" | "quickgelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            _ => return None,
        })
    }

    /// timm's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Silu => "silu",
            Activation::Relu => "relu",
        }
    }
}

/// A kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// LayerNorm, with weight and bias.
    LayerNorm,
    /// RMSNorm, with a weight.
    RmsNorm,
}

/// A normalisation over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Norm {
    /// Its kind.
    pub kind: NormKind,
    /// What is added to the variance: 1e-6 in timm, 1e-5 in CLIP models.
    pub eps: f64,
}

/// A kind of transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// timm's `Block`: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
    PreNorm,
    /// `ResPostBlock`: `x + norm1(attn(x))`, then `x + norm2(mlp(x))`.
    ResPost,
    /// `ParallelScalingBlock`: attention and MLP beside each other, with one projection in front of both.
    Parallel,
    /// `DiffParallelScalingBlock`: the same with differential attention, and one projection behind both.
    DiffParallel,
    /// `ParallelThingsBlock`: the sum of two attentions, then the sum of two MLPs.
    Things,
}

/// A kind of MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// `fc2(act(fc1(x)))`.
    Plain,
    /// `fc2(act(fc1_g(x)) * fc1_x(x))`.
    Swiglu,
    /// The same with `fc1_g` and `fc1_x` in one matrix.
    SwigluPacked,
}

/// How token features become one feature for the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The class token.
    Token,
    /// The mean of the patch tokens.
    Average,
    /// The greatest value of the patch tokens.
    Max,
    /// The mean of [`Pool::Average`] and [`Pool::Max`].
    AverageMax,
    /// Attention from a learned query: `attn_pool`, timm's `AttentionPoolLatent`.
    Map,
    /// Attention without parameters, then the class token or the mean: timm's `AttentionPoolPrr`.
    Prr,
}

impl Pool {
    /// The pooling that timm's `global_pool` calls so.
    #[must_use]
    pub fn parse(name: &str) -> Option<Pool> {
        Some(match name {
            "token" => Pool::Token,
            "avg" => Pool::Average,
            "max" => Pool::Max,
            "avgmax" => Pool::AverageMax,
            "map" => Pool::Map,
            "prr" => Pool::Prr,
            _ => return None,
        })
    }

    /// timm's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Pool::Token => "token",
            Pool::Average => "avg",
            Pool::Max => "max",
            Pool::AverageMax => "avgmax",
            Pool::Map => "map",
            Pool::Prr => "prr",
        }
    }
}

/// Which tokens have a position in `pos_embed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// None: there is no `pos_embed`.
    None,
    /// The patches, not the prefix tokens (`no_embed_class`).
    Patches,
    /// Prefix tokens and patches.
    All,
}

/// What a vision transformer is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the images, in pixels.
    pub image: (usize, usize),
    /// Height and width of a patch, in pixels.
    pub patch: (usize, usize),
    /// Input channels.
    pub channels: usize,
    /// Classes of the head; `None` without a head.
    pub classes: Option<usize>,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; not in the weights.
    pub heads: usize,
    /// Features between the layers of an MLP; of a packed SwiGLU, before they are halved.
    pub hidden: usize,
    /// Features between the layers of the MLP in `attn_pool`.
    pub pool_hidden: usize,
    /// The kind of the blocks.
    pub block: BlockKind,
    /// The kind of their MLPs.
    pub mlp: MlpKind,
    /// Whether attention is differential (`attn_layer='diff'`).
    pub differential: bool,
    /// The function in the MLPs.
    pub activation: Activation,
    /// The normalisation in and after the blocks.
    pub norm: Norm,
    /// A normalisation in the patch embedding.
    pub embed_norm: Option<Norm>,
    /// Whether `qkv` has a bias.
    pub qkv_bias: bool,
    /// Whether `proj` and the MLP's layers have one.
    pub proj_bias: bool,
    /// Whether queries and keys are normalised, head by head.
    pub qk_norm: bool,
    /// Whether there is a normalisation before `attn.proj`.
    pub scale_attn_norm: bool,
    /// Whether there is one before `mlp.fc2`.
    pub scale_mlp_norm: bool,
    /// Whether branches are scaled by a learned factor for each feature.
    pub layer_scale: bool,
    /// Whether there is a class token.
    pub class_token: bool,
    /// Whether there is a distillation token, with a head of its own (DeiT).
    pub distilled: bool,
    /// Register tokens.
    pub registers: usize,
    /// Which tokens have a position.
    pub positions: Positions,
    /// Whether there is a normalisation before the blocks; the patch embedding has no bias then.
    pub norm_pre: bool,
    /// Whether there is one after them.
    pub final_norm: bool,
    /// Whether that comes after the pooling.
    pub fc_norm: bool,
    /// How tokens are pooled.
    pub pool: Pool,
    /// Whether prefix tokens are pooled with the patches.
    pub pool_prefix: bool,
    /// Whether the model takes images of other sizes, for which timm resamples the positions.
    pub dynamic: bool,
    /// Whether the head is a BatchNorm without parameters and a linear layer, as MAE's linear probing has it.
    pub probe: bool,
}

impl Config {
    /// Tokens before those of the patches.
    #[must_use]
    pub fn prefix(&self) -> usize {
        usize::from(self.class_token) + usize::from(self.distilled) + self.registers
    }

    /// Rows and columns of patches.
    #[must_use]
    pub fn grid(&self) -> (usize, usize) {
        (self.image.0 / self.patch.0.max(1), self.image.1 / self.patch.1.max(1))
    }

    /// Tokens of the patches.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.grid().0.saturating_mul(self.grid().1)
    }

    /// Whether its blocks are of the commonest kind, timm's `Block` with nothing that is optional in it but scales of its layers.
    pub(crate) fn plain_blocks(&self) -> bool {
        let optional = self.differential || self.qk_norm || self.scale_attn_norm || self.scale_mlp_norm;
        self.block == BlockKind::PreNorm && self.mlp == MlpKind::Plain && !optional
    }

    /// Checks that such a model can exist.
    ///
    /// # Errors
    /// [`ModelError::Config`] says what does not fit.
    pub fn check(&self) -> Result<(), ModelError> {
        let error = |text: String| Err(ModelError::Config(text));
        let Config { heads, width, patch, image, .. } = *self;
        if heads == 0 || !width.is_multiple_of(heads) {
            return error(format!("{heads} attention heads do not divide a width of {width}; give others (--heads)"));
        }
        let differential = self.differential || self.block == BlockKind::DiffParallel;
        if differential && !(width / heads).is_multiple_of(2) {
            return error(format!("differential attention needs heads of an even width, and {} is not", width / heads));
        }
        if patch.0 == 0 || patch.1 == 0 || image.0 < patch.0 || image.1 < patch.1 {
            return error(format!("images of {} x {} have no patch of {} x {}", image.0, image.1, patch.0, patch.1));
        }
        if self.pool == Pool::Token && !self.class_token {
            return error("pooling by class token needs one, and the model has none".to_owned());
        }
        if matches!(self.block, BlockKind::Parallel | BlockKind::DiffParallel)
            && (self.scale_attn_norm || self.scale_mlp_norm)
        {
            return error("parallel blocks have no normalisation before their projections".to_owned());
        }
        if self.mlp == MlpKind::SwigluPacked && !self.hidden.is_multiple_of(2) {
            return error(format!("a packed SwiGLU halves its features, and {} are odd", self.hidden));
        }
        Ok(())
    }
}
