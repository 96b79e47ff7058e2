//! Parameters of the target's own that are learned beside lambdas.

use std::ops::Range;

use super::LearnError;
use crate::checkpoint::StateDict;
use crate::model::{Config, ModelError, prefix_of, read_f32};

/// What of the target is learned beside lambdas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Train {
    /// Weight and bias of the head (of both heads, where there is one for distillation).
    pub head: bool,
    /// Weights and biases of every normalisation.
    pub norms: bool,
}

/// A parameter of the target that is learned.
#[derive(Clone, Debug)]
pub struct Trained {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
    start: Vec<f32>,
}

impl Trained {
    /// Its name in the target.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where its numbers are among all that is learned.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What it is before the first step, row-major.
    #[must_use]
    pub fn start(&self) -> &[f32] {
        &self.start
    }

    /// Weight decay is for matrices.
    pub(super) fn decays(&self) -> bool {
        self.shape.len() > 1
    }

    /// Those of a model with that configuration; the first number of the first is number `first`.
    pub(super) fn of(
        tensors: &StateDict<'_>,
        config: &Config,
        what: Train,
        first: usize,
    ) -> Result<Vec<Trained>, LearnError> {
        let wrong = |source: ModelError| LearnError::model(tensors.checkpoint().path(), source);
        let prefix = prefix_of(tensors);
        let mut chosen = config.tensors(tensors).map_err(wrong)?;
        chosen.retain(|(name, _)| what.head && is_head(name) || what.norms && is_norm(name));
        for (asked, is, text) in
            [(what.head, is_head as fn(&str) -> bool, "head"), (what.norms, is_norm, "normalisation")]
        {
            if asked && !chosen.iter().any(|(name, _)| is(name)) {
                return Err(LearnError::Option(format!("the model has no {text} to train")));
            }
        }
        // Those that decay first.
        chosen.sort_by_key(|(_, shape)| shape.len() < 2);
        let (mut trained, mut next) = (Vec::new(), first);
        for (name, shape) in chosen {
            let (name, numel) = (format!("{prefix}{name}"), shape.iter().product::<usize>());
            let start = match tensors.find(&name) {
                Some(index) => read_f32(tensors, index).map_err(wrong)?,
                None => Vec::new(),
            };
            if start.len() != numel {
                return Err(LearnError::Option(format!("{name:?} is not {shape:?}")));
            }
            trained.push(Trained { name, shape, range: next..next + numel, start });
            next += numel;
        }
        Ok(trained)
    }
}

/// A safetensors file of the learned parameters, as float32, under their names in the target: what `fold --replace` takes.
/// `values` are all that is learned.
#[must_use]
pub fn safetensors(trained: &[Trained], values: &[f32]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for parameter in trained {
        let begin = data.len();
        data.extend(values[parameter.range()].iter().flat_map(|value| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": parameter.shape, "data_offsets": [begin, data.len()]});
        header.insert(parameter.name.clone(), entry);
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json, &data].concat()
}

fn is_head(name: &str) -> bool {
    // Behind `head.0.` are the statistics of a batch norm, which are no parameters.
    let own = name.starts_with("head.") || name.starts_with("head_dist.");
    own && (name.ends_with(".weight") || name.ends_with(".bias"))
}

fn is_norm(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let last = matches!(parts.next(), Some("weight" | "bias"));
    last && parts.next().is_some_and(|module| module.contains("norm"))
}
