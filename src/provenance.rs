//! What an output was made from: hashes of the inputs, and what is written of them into a header.

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::engine::Progress;
use crate::error::{Error, Result};
use crate::parallel::{self, Watched};

/// Under which key it is in the header of a safetensors file.
pub(crate) const KEY: &str = "m2pt_surgery";

/// SHA-256 of each input, computed side by side; null for each if that is not wanted, being a matter of seconds.
pub(crate) fn hashes(inputs: &[&Checkpoint], wanted: bool, progress: &mut dyn Progress) -> Result<Vec<Value>> {
    if !wanted {
        return Ok(vec![Value::Null; inputs.len()]);
    }
    let watched = Watched::default();
    let hash =
        |(): &mut (), number: usize| inputs[number].sha256_watched(&watched).map(Value::from).ok_or(Error::Cancelled);
    parallel::run(inputs.len(), parallel::threads(None), &watched, progress, || (), hash)
}

/// In place of the hashes of so many inputs: of the same length, so that a dry run tells the size.
pub(crate) fn no_hashes(inputs: usize, wanted: bool) -> Vec<Value> {
    vec![if wanted { Value::from("0".repeat(64)) } else { Value::Null }; inputs]
}

/// What an operation made of `inputs` with `options`: no paths and no dates, so that the same inputs give the same bytes.
pub(crate) fn record(operation: &str, inputs: Vec<Value>, options: &Value) -> Value {
    json!({
        "tool": "m2pt-surgery",
        "version": env!("CARGO_PKG_VERSION"),
        "operation": operation,
        "inputs": inputs,
        "options": options,
    })
}
