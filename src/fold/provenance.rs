//! What an output was made from and how.

use serde_json::{Value, json};

use super::{FoldRequest, PlannedFold, Understood};
use crate::engine::Progress;
use crate::error::{Error, Result};
use crate::naming::Selector;
use crate::plan::{BiasMode, DepthMismatch};
use crate::provenance;
use crate::tensor::DType;
use crate::write::{Format, Layout};

impl PlannedFold<'_> {
    /// The layout of the output; without `provenance` with one of the same length, so that a dry run tells the size.
    pub(super) fn layout(&self, provenance: Option<&Value>) -> Result<Layout> {
        let mut metadata = vec![("format".to_owned(), "pt".to_owned())];
        let request = self.request();
        if request.metadata && request.format == Format::Safetensors {
            let placeholder =
                || self.provenance(&provenance::no_hashes(self.inputs.checkpoints().len(), self.hashes_inputs()));
            let value = provenance.cloned().unwrap_or_else(placeholder);
            metadata.push((provenance::KEY.to_owned(), value.to_string()));
        }
        Layout::new(request.destination(), &self.plan, &metadata)
            .map_err(|problem| Error::Layout { path: request.output.clone(), problem })
    }

    /// SHA-256 of each input, as far as it is wanted.
    pub(super) fn hashes(&self, progress: &mut dyn Progress) -> Result<Vec<Value>> {
        provenance::hashes(&self.inputs.checkpoints(), self.hashes_inputs(), progress)
    }

    /// Whether something that the run writes says what it was made from.
    pub(super) fn has_provenance(&self) -> bool {
        let request = self.request();
        request.sidecar || request.metadata && request.format == Format::Safetensors
    }

    /// Whether the run will hash the inputs.
    pub(super) fn hashes_inputs(&self) -> bool {
        self.request().sidecar || self.has_provenance() && self.request().run.hash_inputs
    }

    /// What the output was made from and how: no paths and no dates, so that the same inputs give the same bytes.
    pub(super) fn provenance(&self, hashes: &[Value]) -> Value {
        let request = self.request();
        let inputs = described(request, &self.target, &self.aux, hashes);
        let lambdas: serde_json::Map<String, Value> = self
            .plan
            .folded
            .iter()
            .map(|folded| {
                let terms = folded.terms.iter();
                let lambdas: Vec<Value> = match self.aux.len() {
                    0 | 1 => terms.map(|term| json!(term.lambda)).collect(),
                    _ => terms.map(|term| json!({"input": term.source.input, "lambda": term.lambda})).collect(),
                };
                let one = (self.aux.len() < 2).then(|| lambdas.first().cloned()).flatten();
                (folded.name.clone(), one.unwrap_or(Value::Array(lambdas)))
            })
            .collect();
        let options = json!({
            "layers": request.kinds.as_ref().map(|kinds| kinds.iter().map(|k| k.name()).collect::<Vec<_>>()),
            "blocks": request.blocks.as_ref().map(ToString::to_string),
            "bias": match request.bias { BiasMode::Keep => "keep", BiasMode::Fold => "fold" },
            "depth_mismatch": match request.depth_mismatch {
                DepthMismatch::Error => "error",
                DepthMismatch::First => "first",
            },
            "dtype": request.dtype.map(DType::name),
            "allow_non_finite": request.run.allow_non_finite,
        });
        let mut record = provenance::record("fold", inputs, &options);
        record["lambdas"] = Value::Object(lambdas);
        record
    }
}

/// Each input of a fold or a graft.
pub(super) fn described(
    request: &FoldRequest,
    target: &Understood<'_>,
    aux: &[Understood<'_>],
    hashes: &[Value],
) -> Vec<Value> {
    let models = std::iter::once(target).chain(aux);
    let mut inputs: Vec<Value> = models
        .zip(hashes)
        .enumerate()
        .map(|(number, (model, hash))| {
            let (role, pattern) = match number {
                0 => ("target", &request.target_pattern),
                _ => ("auxiliary", &request.aux_pattern),
            };
            json!({
                "role": role,
                "sha256": hash,
                "root": model.tensors.root(),
                "family": model.family.as_ref().map(|recognised| recognised.family.name()),
                "pattern": pattern.as_ref().map(Selector::pattern),
            })
        })
        .collect();
    if let Some((replaced, hash)) = target.replaced.as_ref().zip(hashes.get(inputs.len())) {
        let root = replaced.tensors.root();
        inputs.push(json!({"role": "replacement", "sha256": hash, "root": root, "tensors": replaced.names}));
    }
    inputs
}
