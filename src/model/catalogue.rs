//! What timm builds under each name of its `vision_transformer` module: facts, in `timm.json`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ModelError;
use super::arguments::Arguments;
use super::config::Config;

/// Written by `fixtures/generate/architectures.py`.
const DATA: &str = include_str!("timm.json");

#[derive(Deserialize)]
struct Catalogue {
    timm: String,
    architectures: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    arguments: Map<String, Value>,
    preprocessing: Map<String, Value>,
    tags: Map<String, Value>,
}

static CATALOGUE: LazyLock<Option<Catalogue>> = LazyLock::new(|| serde_json::from_str(DATA).ok());

/// An architecture as timm knows it: what it is made of, and how images are prepared for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// timm's name, without a tag.
    pub name: String,
    /// What it is made of.
    pub config: Config,
    /// The keys of timm's `pretrained_cfg` that say how images are prepared: `input_size`, `crop_pct`, `crop_mode`,
    /// `interpolation`, `mean`, `std`.
    pub preprocessing: Map<String, Value>,
}

impl Known {
    /// The version of timm that the names are of.
    #[must_use]
    pub fn timm_version() -> &'static str {
        CATALOGUE.as_ref().map_or("", |catalogue| &catalogue.timm)
    }

    /// All names, in alphabetical order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CATALOGUE.iter().flat_map(|catalogue| catalogue.architectures.keys().map(String::as_str))
    }

    /// The architecture of that name: `vit_base_patch16_224`, or with a tag `vit_base_patch16_224.augreg_in21k`; the tag says
    /// how images are prepared, and how many classes there are.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] if there is none, with names that are nearly the same.
    pub fn find(name: &str) -> Result<Known, ModelError> {
        let (base, tag) = name.split_once('.').map_or((name, None), |(base, tag)| (base, Some(tag)));
        let unknown = |near: Vec<String>| ModelError::Architecture { name: name.to_owned(), near };
        let Some(entry) = CATALOGUE.as_ref().and_then(|catalogue| catalogue.architectures.get(base)) else {
            let mut near: Vec<&str> = Known::names().collect();
            near.sort_by(|a, b| strsim::jaro_winkler(base, b).total_cmp(&strsim::jaro_winkler(base, a)));
            return Err(unknown(near.into_iter().take(3).map(str::to_owned).collect()));
        };
        let mut preprocessing = entry.preprocessing.clone();
        if let Some(tag) = tag {
            let Some(Value::Object(own)) = entry.tags.get(tag) else {
                return Err(unknown(entry.tags.keys().map(|tag| format!("{base}.{tag}")).collect()));
            };
            preprocessing.extend(own.clone());
        }
        let classes = preprocessing.remove("num_classes");
        let mut arguments = entry.arguments.clone();
        arguments.extend(classes.map(|classes| ("num_classes".to_owned(), classes)));
        Ok(Known { name: base.to_owned(), config: config(arguments, name)?, preprocessing })
    }

    /// What a `config.json` says, as timm and the Hugging Face hub write it beside a model: `architecture`, `model_args`,
    /// `num_classes`, and `pretrained_cfg` for how images are prepared.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] for a name that timm's `vision_transformer` module does not have, and
    /// [`ModelError::Config`] for arguments that are not understood.
    pub fn from_json(json: &Value) -> Result<Known, ModelError> {
        let wrong =
            |what: &str| ModelError::Config(format!("the configuration has no {what}; is it timm's config.json?"));
        let name = json.get("architecture").and_then(Value::as_str).ok_or_else(|| wrong("\"architecture\""))?;
        let mut known = Known::find(name)?;
        let entry = CATALOGUE.as_ref().and_then(|catalogue| catalogue.architectures.get(&known.name));
        let mut arguments = entry.map(|entry| entry.arguments.clone()).unwrap_or_default();
        let pretrained = json.get("pretrained_cfg").and_then(Value::as_object);
        // Each of them overrules those before it, as in timm's `create_model` on a folder.
        let sources = [pretrained.and_then(|cfg| cfg.get("num_classes")), json.get("num_classes")];
        if let Some(classes) = sources.into_iter().flatten().last() {
            arguments.insert("num_classes".to_owned(), classes.clone());
        }
        match json.get("model_args") {
            None | Some(Value::Null) => {}
            Some(Value::Object(own)) => arguments.extend(own.clone()),
            Some(_) => return Err(ModelError::Config("\"model_args\" of the configuration is no object".to_owned())),
        }
        known.config = config(arguments, name)?;
        if let Some(cfg) = pretrained {
            known.preprocessing.extend(cfg.clone());
            known.preprocessing.remove("num_classes");
        }
        Ok(known)
    }
}

fn config(arguments: Map<String, Value>, name: &str) -> Result<Config, ModelError> {
    let arguments: Arguments = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| ModelError::Config(format!("the arguments of {name}: {error}")))?;
    arguments.config()
}

#[cfg(test)]
mod tests {
    use super::super::config::{Activation, Pool};
    use super::*;

    #[test]
    fn all_names_of_timms_module_are_known() {
        assert_eq!(Known::names().count(), 163);
        for name in Known::names() {
            let known = Known::find(name).unwrap();
            assert_eq!(known.name, name);
            assert!(known.config.patches() > 0 && known.preprocessing.contains_key("mean"), "{name}");
        }
    }

    #[test]
    fn tags_say_how_images_are_prepared() {
        // timm.get_pretrained_cfg('vit_base_patch16_clip_224.openai')
        let openai = Known::find("vit_base_patch16_clip_224.openai").unwrap();
        assert_eq!(openai.config.classes, Some(512));
        let default = Known::find("vit_base_patch16_clip_224").unwrap();
        assert_eq!(
            (default.config.classes, &default.preprocessing["crop_pct"]),
            (Some(1000), &serde_json::json!(0.95))
        );
        assert!((default.config.norm.eps - 1e-5).abs() < 1e-12);
    }

    #[test]
    fn rejects_unknown_names_with_those_that_are_near() {
        let Err(ModelError::Architecture { near, .. }) = Known::find("vit_base_patch16_225") else { panic!() };
        assert!(near.contains(&"vit_base_patch16_224".to_owned()), "{near:?}");
        let Err(ModelError::Architecture { near, .. }) = Known::find("vit_base_patch8_224.nothing") else { panic!() };
        assert!(near.contains(&"vit_base_patch8_224.dino".to_owned()), "{near:?}");
    }

    #[test]
    fn a_configuration_overrules_the_architecture() {
        let json = serde_json::json!({
            "architecture": "vit_tiny_patch16_224", "num_classes": 10, "num_features": 64,
            "pretrained_cfg": {"mean": [0.1307], "num_classes": 1000, "tag": "x"},
            "model_args": {"img_size": [32, 64], "patch_size": 4, "in_chans": 1, "act_layer": "gelu_tanh", "global_pool": "avg"},
        });
        let known = Known::from_json(&json).unwrap();
        let Config { image, patch, channels, classes, activation, pool, fc_norm, .. } = known.config;
        assert_eq!((image, patch, channels, classes), ((32, 64), (4, 4), 1, Some(10)));
        assert_eq!((activation, pool, fc_norm), (Activation::GeluTanh, Pool::Average, true));
        assert_eq!(known.preprocessing["mean"], serde_json::json!([0.1307]));
        let with = |args: Value| {
            Known::from_json(&serde_json::json!({"architecture": "vit_tiny_patch16_224", "model_args": args}))
        };
        for args in [serde_json::json!({"no_such": 1}), serde_json::json!({"num_heads": 5}), serde_json::json!([])] {
            assert!(matches!(with(args), Err(ModelError::Config(_))));
        }
    }
}
