//! A folder that `timm.create_model("local-dir:DIR", pretrained=True)` opens: `model.safetensors` and `config.json`.

use serde_json::{Map, Value, json};

use super::ConvertProblem;
use crate::model::{Activation, BlockKind, Config, Detected, MlpKind, NormKind, Positions};

/// The file of the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The file that names the architecture.
pub(super) const CONFIG: &str = "config.json";

/// The architecture whose arguments are given one by one, where timm has none of that name.
const PLAIN: &str = "vit_base_patch16_224";

/// The `config.json` of a model, as timm's `load_model_config_from_path` reads it: the architecture, and the arguments in which the
/// model is another one.
///
/// # Errors
/// [`ConvertProblem::NotInJson`] if timm has no name for the architecture and JSON none for one of its arguments;
/// [`ConvertProblem::Labels`] if there are not as many as classes.
pub(super) fn config(model: &Detected, labels: Option<&[String]>) -> Result<String, ConvertProblem> {
    let config = &model.config;
    let classes = config.classes.unwrap_or(0);
    if let Some(labels) = labels.map(<[String]>::len).filter(|&labels| labels != classes) {
        return Err(ConvertProblem::Labels { labels, classes });
    }
    let (architecture, arguments, mut preprocessing) = match &model.known {
        Some(known) => (known.name.as_str(), differences(config, &known.config), known.preprocessing.clone()),
        None => (PLAIN, arguments(config)?, Map::new()),
    };
    let defaults = [
        ("interpolation", json!("bicubic")),
        ("crop_pct", json!(0.9)),
        ("crop_mode", json!("center")),
        ("mean", json!([0.5, 0.5, 0.5])),
        ("std", json!([0.5, 0.5, 0.5])),
    ];
    for (key, value) in defaults {
        preprocessing.entry(key).or_insert(value);
    }
    if config.channels != 3 {
        // Those of the first channel, for each: timm wants as many as there are channels.
        for key in ["mean", "std"] {
            let first = preprocessing.get(key).and_then(|all| all.get(0)).cloned().unwrap_or(json!(0.5));
            preprocessing.insert(key.into(), Value::Array(vec![first; config.channels]));
        }
    }
    preprocessing.insert("input_size".into(), json!([config.channels, config.image.0, config.image.1]));
    preprocessing.insert("fixed_input_size".into(), json!(!config.dynamic));
    preprocessing.insert("num_classes".into(), json!(classes));
    preprocessing.insert("pool_size".into(), Value::Null);
    preprocessing.insert("first_conv".into(), json!("patch_embed.proj"));
    let classifier = if config.distilled { json!(["head", "head_dist"]) } else { json!("head") };
    preprocessing.insert("classifier".into(), classifier);
    let mut whole = json!({
        "architecture": architecture,
        "num_classes": classes,
        "num_features": config.width,
        "global_pool": config.pool.name(),
        "model_args": arguments,
        "pretrained_cfg": preprocessing,
    });
    if let Some(labels) = labels {
        // Where timm's hub has them, by number of the class.
        whole["label_names"] = json!(labels);
    }
    Ok(format!("{whole:#}\n"))
}

/// The arguments in which a model is not the architecture as timm makes it.
fn differences(config: &Config, known: &Config) -> Map<String, Value> {
    let mut arguments = Map::new();
    if config.image != known.image {
        arguments.insert("img_size".into(), json!([config.image.0, config.image.1]));
    }
    if config.channels != known.channels {
        arguments.insert("in_chans".into(), json!(config.channels));
    }
    if config.heads != known.heads {
        arguments.insert("num_heads".into(), json!(config.heads));
    }
    if config.pool != known.pool {
        // timm reads the pooling of the arguments, not the one beside them.
        arguments.insert("global_pool".into(), json!(config.pool.name()));
        arguments.insert("fc_norm".into(), json!(config.fc_norm));
    }
    arguments
}

/// All the arguments of a model.
fn arguments(config: &Config) -> Result<Map<String, Value>, ConvertProblem> {
    let no = |what| Err(ConvertProblem::NotInJson { what });
    if config.norm.eps != 1e-6 || config.embed_norm.is_some() {
        // A normalisation with its epsilon is a Python object.
        return no("normalisation");
    }
    if config.block != BlockKind::PreNorm || config.mlp != MlpKind::Plain || config.differential {
        return no("kind of block");
    }
    if config.distilled || config.activation == Activation::QuickGelu {
        return no(if config.distilled { "distillation token" } else { "activation" });
    }
    let all = json!({
        "img_size": [config.image.0, config.image.1],
        "patch_size": [config.patch.0, config.patch.1],
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.hidden as f64 / config.width as f64,
        "qkv_bias": config.qkv_bias,
        "proj_bias": config.proj_bias,
        "qk_norm": config.qk_norm,
        "scale_attn_norm": config.scale_attn_norm,
        "scale_mlp_norm": config.scale_mlp_norm,
        "init_values": if config.layer_scale { json!(1e-5) } else { Value::Null },
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "pos_embed": if config.positions == Positions::None { "none" } else { "learn" },
        "no_embed_class": config.positions == Positions::Patches,
        "pre_norm": config.norm_pre,
        "final_norm": config.final_norm,
        "global_pool": config.pool.name(),
        "fc_norm": config.fc_norm,
        "pool_include_prefix": config.pool_prefix,
        "act_layer": config.activation.name(),
        "norm_layer": if config.norm.kind == NormKind::RmsNorm { json!("rmsnorm") } else { Value::Null },
    });
    Ok(all.as_object().cloned().unwrap_or_default())
}
