//! The configuration that a state dict's names and shapes tell, and what to do about what they do not.

use super::ModelError;
use super::catalogue::Known;
use super::config::{Activation, BlockKind, Config, MlpKind, Norm, NormKind, Pool, Positions};
use super::prefix_of;
use crate::checkpoint::StateDict;

/// What is known besides the weights.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// What the user or a `config.json` says that the architecture is.
    pub known: Option<Known>,
    /// The name of an architecture that the checkpoint itself mentions (`arch`); taken if its weights fit.
    pub mentioned: Option<String>,
    /// Attention heads.
    pub heads: Option<usize>,
    /// The function in the MLPs.
    pub activation: Option<Activation>,
    /// Pooling.
    pub pool: Option<Pool>,
    /// Height and width of the images.
    pub image: Option<(usize, usize)>,
}

/// A configuration, and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Detected {
    /// The configuration.
    pub config: Config,
    /// The architecture in timm, if it is one of those.
    pub known: Option<Known>,
    /// What had to be guessed, in sentences for a user; empty if everything is certain.
    pub guesses: Vec<String>,
}

impl Config {
    /// The configuration of the model whose weights `tensors` are.
    ///
    /// Names and shapes tell nearly everything. Heads, the function in the MLPs, epsilons and some ways of pooling are those of the
    /// architectures of timm that have these weights; if they do not agree, or there is none, the commonest is taken,
    /// which [`Detected::guesses`] says.
    ///
    /// # Errors
    /// [`ModelError`] if they are no weights of a ViT, or not of the one in `hints`.
    pub fn detect(tensors: &StateDict<'_>, hints: &Hints) -> Result<Detected, ModelError> {
        let seen = Shapes::new(tensors, hints).config()?;
        let mut detected = match &hints.known {
            Some(known) => Detected {
                config: Config {
                    // The user's head, channels and images: timm's `num_classes`, `in_chans` and `img_size`.
                    classes: seen.classes,
                    channels: seen.channels,
                    probe: seen.probe,
                    image: image_of(&seen, &known.config),
                    ..known.config.clone()
                },
                known: Some(known.clone()),
                guesses: Vec::new(),
            },
            None => recognise(seen, hints),
        };
        let config = &mut detected.config;
        config.heads = hints.heads.unwrap_or(config.heads);
        config.activation = hints.activation.unwrap_or(config.activation);
        config.pool = hints.pool.unwrap_or(config.pool);
        if let Some(image) = hints.image {
            let grid = (image.0 / config.patch.0.max(1), image.1 / config.patch.1.max(1));
            let patches = config.patches();
            if config.positions != Positions::None && grid.0.saturating_mul(grid.1) != patches {
                return Err(ModelError::Config(format!(
                    "images of {} x {} have {} x {} patches, and the model has positions for {patches}; resampling them \
                     makes another model",
                    image.0, image.1, grid.0, grid.1
                )));
            }
            config.image = image;
        }
        config.check()?;
        Ok(detected)
    }
}

/// The image size of an architecture, if the weights have as many positions or none; otherwise the size that these tell.
fn image_of(seen: &Config, known: &Config) -> (usize, usize) {
    let fits = seen.positions == Positions::None || known.patches() == seen.patches();
    if fits && known.patch == seen.patch { known.image } else { seen.image }
}

/// The same weights: whether everything is equal that names and shapes tell, but for classes, channels and image.
fn same_weights(a: &Config, b: &Config) -> bool {
    let pools = |config: &Config| config.pool == Pool::Map;
    let visible = |config: &Config| Config {
        image: a.image,
        channels: a.channels,
        classes: a.classes,
        heads: a.heads,
        activation: a.activation,
        norm: Norm { eps: a.norm.eps, ..config.norm },
        embed_norm: config.embed_norm.map(|norm| Norm { eps: 1e-6, ..norm }),
        pool: a.pool,
        pool_prefix: a.pool_prefix,
        dynamic: a.dynamic,
        probe: a.probe,
        // The same names and shapes, in another order of work.
        block: if config.block == BlockKind::ResPost { BlockKind::PreNorm } else { config.block },
        pool_hidden: if pools(config) { config.pool_hidden } else { 0 },
        ..config.clone()
    };
    pools(a) == pools(b) && visible(a) == visible(b)
}

/// What only timm's name tells.
fn hidden(config: &Config) -> (usize, Activation, u64, Pool, (bool, BlockKind)) {
    let rest = (config.pool_prefix, config.block);
    (config.heads, config.activation, config.norm.eps.to_bits(), config.pool, rest)
}

/// `seen`, with what the architectures of timm say that have such weights.
fn recognise(seen: Config, hints: &Hints) -> Detected {
    let all = Known::names().filter_map(|name| Known::find(name).ok());
    let candidates: Vec<Known> = all.filter(|known| same_weights(&seen, &known.config)).collect();
    let mentioned = hints.mentioned.as_deref().map(|name| name.split('.').next().unwrap_or(name));
    // Among equals, the one whose images have as many patches.
    let fits = |known: &&Known| known.config.patches() == seen.patches();
    let named = candidates.iter().find(|known| Some(known.name.as_str()) == mentioned);
    let plain = |known: &&Known| {
        known.config.activation == Activation::Gelu && known.config.block != BlockKind::ResPost && fits(known)
    };
    let best = named
        .or_else(|| candidates.iter().find(plain))
        .or_else(|| candidates.iter().find(fits))
        .or_else(|| candidates.first());
    let mut guesses = Vec::new();
    if seen.positions == Positions::None && named.is_none() {
        guesses.push(
            "no positions among the weights: taken as a model that has none; if it should have them, give --arch"
                .to_owned(),
        );
    }
    let Some(best) = best else {
        let mut config = seen;
        if hints.heads.is_none() {
            let (width, heads) = (config.width, config.heads);
            guesses.push(format!(
                "heads are not in the weights, and no architecture of timm has these: {heads} of {} features taken; give \
                 --heads if that is wrong",
                width / heads.max(1)
            ));
        }
        if hints.activation.is_none() {
            guesses.push(format!(
                "the function of the MLPs is not in the weights: {} taken; give --act if that is wrong",
                config.activation.name()
            ));
        }
        if config.pool == Pool::Average && config.class_token && !config.fc_norm {
            config.pool = Pool::Token;
        }
        return Detected { config, known: None, guesses };
    };
    let told = |known: &Known| {
        let (heads, activation, eps, pool, rest) = hidden(&known.config);
        let heads = hints.heads.unwrap_or(heads);
        (heads, hints.activation.unwrap_or(activation), eps, hints.pool.unwrap_or(pool), rest)
    };
    let mut others: Vec<&Known> = Vec::new();
    for other in candidates.iter().filter(|other| told(other) != told(best)) {
        if !others.iter().any(|seen| told(seen) == told(other)) {
            others.push(other);
        }
    }
    if named.is_none() && !others.is_empty() {
        let differences = |other: &Known| {
            let (a, b) = (told(best), told(other));
            let mut parts = Vec::new();
            if a.0 != b.0 {
                parts.push(format!("{} heads", b.0));
            }
            if a.1 != b.1 {
                parts.push(b.1.name().to_owned());
            }
            if a.2 != b.2 {
                parts.push(format!("epsilon {:e}", other.config.norm.eps));
            }
            if (a.3, a.4.0) != (b.3, b.4.0) {
                parts.push(format!("pooling {}", b.3.name()));
            }
            if a.4.1 != b.4.1 {
                parts.push("normalisations in other places".to_owned());
            }
            format!("{} ({})", other.name, parts.join(", "))
        };
        let others: Vec<String> = others.into_iter().map(differences).collect();
        guesses.push(format!(
            "taken for {}; {} {} the same names and shapes: give --arch if it is {}",
            best.name,
            others.join(", "),
            if others.len() == 1 { "has" } else { "have" },
            if others.len() == 1 { "that" } else { "one of them" },
        ));
    }
    let config = Config {
        image: image_of(&seen, &best.config),
        channels: seen.channels,
        classes: seen.classes,
        probe: seen.probe,
        ..best.config.clone()
    };
    Detected { config, known: Some(best.clone()), guesses }
}

/// Looks up shapes by name.
struct Shapes<'s, 'c> {
    tensors: &'s StateDict<'c>,
    prefix: String,
    hints: &'s Hints,
}

impl<'s, 'c> Shapes<'s, 'c> {
    fn new(tensors: &'s StateDict<'c>, hints: &'s Hints) -> Self {
        Shapes { tensors, prefix: prefix_of(tensors), hints }
    }

    fn get(&self, name: &str) -> Option<&'s [usize]> {
        let index = self.tensors.find(&format!("{}{name}", self.prefix))?;
        Some(&self.tensors.specs()[index].shape)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The size of a tensor's first dimension.
    fn first(&self, name: &str) -> Option<usize> {
        self.get(name)?.first().copied()
    }

    fn norm(&self, name: &str) -> Norm {
        // The epsilons of timm's own layers and of most models.
        let kind = if self.has(&format!("{name}.bias")) { NormKind::LayerNorm } else { NormKind::RmsNorm };
        Norm { kind, eps: 1e-6 }
    }

    fn config(&self) -> Result<Config, ModelError> {
        const EMBEDDING: &str = "patch_embed.proj.weight";
        let wrong = |found: Option<&[usize]>| match found {
            None => ModelError::NoVit(format!("there is no {EMBEDDING:?}")),
            Some(found) => ModelError::NoVit(format!(
                "{EMBEDDING:?} is {found:?}, where a ViT has [width, channels, patch height, patch width]"
            )),
        };
        let embedding = self.get(EMBEDDING);
        let Some(&[width, channels, high, wide]) = embedding else { return Err(wrong(embedding)) };
        if high == 0 || wide == 0 || width == 0 {
            return Err(wrong(embedding));
        }
        let block = ["attn.qkv.weight", "in_proj.weight", "attns.0.attn.qkv.weight"];
        // More blocks than tensors cannot be, so the search ends.
        let depth = (0..self.tensors.specs().len())
            .take_while(|n| block.iter().any(|part| self.has(&format!("blocks.{n}.{part}"))))
            .count();
        if depth == 0 {
            return Err(ModelError::NoVit(
                "there is no blocks.0.attn.qkv.weight; convert the names to timm's first".to_owned(),
            ));
        }
        let here = |part: &str| format!("blocks.0.{part}");
        let kind = if self.has(&here("attns.0.attn.qkv.weight")) {
            BlockKind::Things
        } else if self.has(&here("out_proj.weight")) {
            BlockKind::DiffParallel
        } else if self.has(&here("in_proj.weight")) {
            BlockKind::Parallel
        } else {
            BlockKind::PreNorm
        };
        let (attn, mlp, norm) = match kind {
            BlockKind::Things => (here("attns.0.attn"), here("ffns.0.mlp"), here("attns.0.norm")),
            BlockKind::Parallel | BlockKind::DiffParallel => ("blocks.0".to_owned(), String::new(), here("in_norm")),
            _ => (here("attn"), here("mlp"), here("norm1")),
        };
        let parallel = matches!(kind, BlockKind::Parallel | BlockKind::DiffParallel);
        let differential = self.has(&format!("{attn}.lambda_q1"));
        let hidden = if parallel {
            self.first(&here("in_proj.weight")).map(|n| n.saturating_sub(3 * width))
        } else {
            self.first(&format!("{mlp}.fc1.weight")).or_else(|| self.first(&format!("{mlp}.fc1_g.weight")))
        };
        let inputs = self.get(&format!("{mlp}.fc2.weight")).and_then(|shape| shape.get(1).copied());
        let swiglu = self.has(&format!("{mlp}.fc1_g.weight"));
        let packed = !swiglu && !parallel && hidden.is_some() && inputs.map(|n| 2 * n) == hidden;
        let class_token = self.has("cls_token");
        let distilled = self.has("dist_token");
        let registers = self.get("reg_token").and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        let prefix = usize::from(class_token) + usize::from(distilled) + registers;
        let (positions, grid) = self.positions(prefix, (high, wide));
        let (norm_last, fc_norm) = (self.has("norm.weight"), self.has("fc_norm.weight"));
        let pool = match () {
            () if self.has("attn_pool.latent") => Pool::Map,
            () if class_token && !fc_norm => Pool::Token,
            () => Pool::Average,
        };
        let probe = self.has("head.0.running_mean") && self.has("head.1.weight");
        let head = self.first(&here("attn.q_norm.weight")).or_else(|| self.first(&here("q_norm.weight")));
        let head = head.map(|n| if differential { 2 * n } else { n }).filter(|&n| n > 0 && width.is_multiple_of(n));
        // Sixty-four features a head, as in nearly all models.
        let guessed = || (1..=width.div_ceil(64)).rev().find(|n| width.is_multiple_of(*n)).unwrap_or(1);
        Ok(Config {
            image: (grid.0.saturating_mul(high), grid.1.saturating_mul(wide)),
            patch: (high, wide),
            channels,
            classes: self.first(if probe { "head.1.weight" } else { "head.weight" }),
            width,
            depth,
            heads: head.map_or_else(guessed, |head| width / head),
            hidden: hidden.unwrap_or(0),
            pool_hidden: self.first("attn_pool.mlp.fc1.weight").unwrap_or(0),
            block: kind,
            mlp: match (swiglu, packed) {
                (true, _) => MlpKind::Swiglu,
                (_, true) => MlpKind::SwigluPacked,
                _ => MlpKind::Plain,
            },
            differential: differential && !parallel,
            activation: if swiglu || packed { Activation::Silu } else { Activation::Gelu },
            norm: self.norm(&norm),
            embed_norm: self.has("patch_embed.norm.weight").then(|| self.norm("patch_embed.norm")),
            qkv_bias: self.has(&if parallel { here("in_proj.bias") } else { format!("{attn}.qkv.bias") }),
            proj_bias: match kind {
                BlockKind::Parallel => self.has(&here("attn_out_proj.bias")),
                BlockKind::DiffParallel => self.has(&here("out_proj.bias")),
                _ => self.has(&format!("{attn}.proj.bias")),
            },
            qk_norm: self.has(&format!("{attn}.q_norm.weight")),
            scale_attn_norm: self.has(&format!("{attn}.norm.weight")),
            scale_mlp_norm: self.has(&format!("{mlp}.norm.weight")),
            layer_scale: [here("ls1.gamma"), here("ls.gamma"), here("attns.0.ls.gamma")].iter().any(|n| self.has(n)),
            class_token,
            distilled,
            registers,
            positions,
            norm_pre: self.has("norm_pre.weight"),
            final_norm: norm_last || fc_norm,
            fc_norm,
            pool,
            pool_prefix: false,
            dynamic: false,
            probe,
        })
    }

    /// Which tokens have positions, and the grid of the patches: as an architecture or images say that are given;
    /// otherwise square if it can be, or else all in one row.
    fn positions(&self, prefix: usize, patch: (usize, usize)) -> (Positions, (usize, usize)) {
        let Some(&[_, count, _]) = self.get("pos_embed") else { return (Positions::None, (14, 14)) };
        let square = |n: usize| n > 0 && n.isqrt().pow(2) == n;
        let of = |n: usize| if square(n) { (n.isqrt(), n.isqrt()) } else { (1, n) };
        let rest = count.saturating_sub(prefix);
        let given = self.hints.image.map(|(height, width)| (height / patch.0).saturating_mul(width / patch.1));
        let all = match &self.hints.known {
            _ if prefix == 0 || rest == 0 => false,
            Some(known) => known.config.positions == Positions::All,
            None if given == Some(count) => false,
            None if given == Some(rest) => true,
            None => square(rest) || !square(count),
        };
        if all { (Positions::All, of(rest)) } else { (Positions::Patches, of(count)) }
    }
}
