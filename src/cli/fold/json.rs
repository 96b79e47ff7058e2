//! The report as JSON: `docs/json.md`.

use m2pt_surgery::{FoldReport, Parameter, PlannedFold, Understood};
use serde_json::{Value, json};

use super::show::{architecture, relative};
use crate::cli::inspect::root_json;
use crate::cli::text::files;

pub(super) fn report(fold: &PlannedFold<'_>, done: Option<&FoldReport>) -> Value {
    let plan = fold.plan();
    let model = |model: &Understood<'_>| {
        json!({
            "file": model.tensors.checkpoint().path().to_string_lossy(),
            "root": model.tensors.root(),
            "family": model.family.as_ref().map(|r| r.family.name()),
            "architecture": architecture(model).map(|a| a.to_string()),
            "layers": model.layers.as_slice().len(),
            "outside": model.tensors.outside(),
            "roots": model.tensors.checkpoint().roots().iter().map(root_json).collect::<Vec<_>>(),
        })
    };
    let layers: Vec<Value> = plan
        .folded
        .iter()
        .map(|folded| {
            let norms = done.and_then(|done| done.run.norms.get(folded.step).copied().flatten());
            json!({
                "name": folded.name, "parameter": match folded.parameter {
                    Parameter::Weight => "weight",
                    Parameter::Bias => "bias",
                }, "block": folded.id.block, "kind": folded.id.kind.name(),
                "shape": folded.shape, "dtype": folded.dtype.name(), "bytes": plan.steps[folded.step].bytes(),
                "terms": folded.terms.iter().map(|term| json!({
                    "aux": term.name, "input": term.source.input, "lambda": term.lambda,
                })).collect::<Vec<_>>(),
                "relative_change": norms.and_then(relative),
            })
        })
        .collect();
    json!({
        "target": model(fold.target()),
        "aux": fold.aux().iter().map(model).collect::<Vec<_>>(),
        "replaced": fold.target().replaced.as_ref().map(|replaced| json!({
            "file": replaced.tensors.checkpoint().path().to_string_lossy(),
            "root": replaced.tensors.root(),
            "tensors": replaced.names,
            "outside": replaced.tensors.outside(),
        })),
        "output": {
            "file": fold.request().output.to_string_lossy(), "format": fold.request().format.name(),
            "tensors": plan.outputs.len(), "bytes": fold.file_bytes(), "written": done.is_some(),
            "files": files(fold.files()),
            "parts": done.and_then(|done| done.parts.as_ref()).map(|parts| json!({
                "written": parts.written.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
                "found": parts.found, "missing": parts.missing, "of": parts.of,
            })),
        },
        "layers": layers,
        "dropped": plan.dropped.iter().map(|d| json!({
            "name": d.name, "reason": d.reason, "folded": d.folded,
        })).collect::<Vec<_>>(),
        "notes": plan.notes.iter().chain(done.iter().flat_map(|done| &done.run.notes)).collect::<Vec<_>>(),
        "device": done.map(|done| &done.run.device),
        "non_finite": done.map(|done| done.run.non_finite.clone()),
        "seconds": done.map(|done| done.elapsed.as_secs_f64()),
    })
}
