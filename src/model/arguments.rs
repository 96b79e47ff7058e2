//! The arguments of timm's `VisionTransformer`, as entry points and `config.json` give them.

use serde::{Deserialize, Deserializer};

use super::ModelError;
use super::config::{Activation, BlockKind, Config, MlpKind, Norm, NormKind, Pool, Positions};

/// One side for both, or two.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Sides {
    Both(usize),
    Two((usize, usize)),
}

impl From<Sides> for (usize, usize) {
    fn from(sides: Sides) -> Self {
        match sides {
            Sides::Both(side) => (side, side),
            Sides::Two(sides) => sides,
        }
    }
}

/// The arguments, each with timm's default. Unknown ones are errors: they might change what the model computes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Arguments {
    #[serde(deserialize_with = "sides")]
    img_size: (usize, usize),
    #[serde(deserialize_with = "sides")]
    patch_size: (usize, usize),
    in_chans: usize,
    num_classes: usize,
    global_pool: String,
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
    mlp_ratio: f64,
    qkv_bias: bool,
    qk_norm: bool,
    scale_attn_norm: bool,
    scale_mlp_norm: bool,
    proj_bias: bool,
    layer_scale: bool,
    init_values: Option<f64>,
    class_token: bool,
    pos_embed: String,
    no_embed_class: bool,
    reg_tokens: usize,
    pre_norm: bool,
    final_norm: bool,
    fc_norm: Option<bool>,
    pool_include_prefix: bool,
    dynamic_img_size: bool,
    #[serde(deserialize_with = "norm")]
    norm_layer: Option<Norm>,
    #[serde(deserialize_with = "norm")]
    embed_norm_layer: Option<Norm>,
    #[serde(deserialize_with = "activation")]
    act_layer: Option<Activation>,
    block_fn: BlockKind,
    mlp_layer: MlpKind,
    attn_layer: String,
    // What follows changes training only.
    drop_rate: f64,
    pos_drop_rate: f64,
    patch_drop_rate: f64,
    proj_drop_rate: f64,
    attn_drop_rate: f64,
    drop_path_rate: f64,
    weight_init: String,
    fix_init: bool,
}

fn sides<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(usize, usize), D::Error> {
    Sides::deserialize(deserializer).map(Into::into)
}

fn activation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Activation>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let unknown = || serde::de::Error::custom(format!("the activation {name:?} is not supported"));
    Activation::parse(&name).map(Some).ok_or_else(unknown)
}

/// A normalisation by its name in timm, or with its epsilon.
fn norm<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Norm>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Name(String),
        Whole(Norm),
    }
    Ok(match Option::<Given>::deserialize(deserializer)? {
        None => None,
        Some(Given::Whole(norm)) => Some(norm),
        Some(Given::Name(name)) => {
            let kind = match name.to_ascii_lowercase().as_str() {
                "layernorm" => NormKind::LayerNorm,
                "rmsnorm" => NormKind::RmsNorm,
                _ => return Err(serde::de::Error::custom(format!("the normalisation {name:?} is not supported"))),
            };
            Some(Norm { kind, eps: 1e-6 })
        }
    })
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments {
            img_size: (224, 224),
            patch_size: (16, 16),
            in_chans: 3,
            num_classes: 1000,
            global_pool: "token".to_owned(),
            embed_dim: 768,
            depth: 12,
            num_heads: 12,
            mlp_ratio: 4.0,
            qkv_bias: true,
            qk_norm: false,
            scale_attn_norm: false,
            scale_mlp_norm: false,
            proj_bias: true,
            layer_scale: false,
            init_values: None,
            class_token: true,
            pos_embed: "learn".to_owned(),
            no_embed_class: false,
            reg_tokens: 0,
            pre_norm: false,
            final_norm: true,
            fc_norm: None,
            pool_include_prefix: false,
            dynamic_img_size: false,
            norm_layer: None,
            embed_norm_layer: None,
            act_layer: None,
            block_fn: BlockKind::PreNorm,
            mlp_layer: MlpKind::Plain,
            attn_layer: String::new(),
            drop_rate: 0.0,
            pos_drop_rate: 0.0,
            patch_drop_rate: 0.0,
            proj_drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate: 0.0,
            weight_init: String::new(),
            fix_init: false,
        }
    }
}

impl Arguments {
    /// The model that timm makes with these arguments.
    ///
    /// # Errors
    /// [`ModelError::Config`] if timm has no such choice.
    pub(super) fn config(&self) -> Result<Config, ModelError> {
        let unknown = |what: &str, found: &str| ModelError::Config(format!("{what} {found:?} is not supported"));
        let pool = Pool::parse(&self.global_pool).ok_or_else(|| unknown("global_pool", &self.global_pool))?;
        let differential = match self.attn_layer.as_str() {
            "" | "attn" => false,
            "diff" => true,
            other => return Err(unknown("attn_layer", other)),
        };
        let positions = match self.pos_embed.as_str() {
            "" | "none" => Positions::None,
            // Without prefix tokens it is all the same.
            "learn" if self.no_embed_class || (!self.class_token && self.reg_tokens == 0) => Positions::Patches,
            "learn" => Positions::All,
            other => return Err(unknown("pos_embed", other)),
        };
        // Python's int(embed_dim * mlp_ratio)
        let hidden = (self.embed_dim as f64 * self.mlp_ratio) as usize;
        let config = Config {
            image: self.img_size,
            patch: self.patch_size,
            channels: self.in_chans,
            classes: Some(self.num_classes).filter(|&n| n > 0),
            width: self.embed_dim,
            depth: self.depth,
            heads: self.num_heads,
            hidden,
            pool_hidden: hidden,
            block: self.block_fn,
            mlp: self.mlp_layer,
            differential,
            activation: self.act_layer.unwrap_or(Activation::Gelu),
            norm: self.norm_layer.unwrap_or(Norm { kind: NormKind::LayerNorm, eps: 1e-6 }),
            embed_norm: self.embed_norm_layer,
            qkv_bias: self.qkv_bias,
            proj_bias: self.proj_bias,
            qk_norm: self.qk_norm,
            scale_attn_norm: self.scale_attn_norm,
            scale_mlp_norm: self.scale_mlp_norm,
            // timm's ResPostBlock has none: the value starts its normalisations.
            layer_scale: (self.layer_scale || self.init_values.is_some_and(|v| v != 0.0))
                && self.block_fn != BlockKind::ResPost,
            class_token: self.class_token,
            distilled: false,
            registers: self.reg_tokens,
            positions,
            norm_pre: self.pre_norm,
            final_norm: self.final_norm,
            fc_norm: self.fc_norm.unwrap_or(matches!(pool, Pool::Average | Pool::AverageMax | Pool::Max)),
            pool,
            // timm's AttentionPoolPrr always takes all tokens.
            pool_prefix: self.pool_include_prefix || pool == Pool::Prr,
            dynamic: self.dynamic_img_size,
            probe: false,
        };
        config.check()?;
        Ok(config)
    }
}
