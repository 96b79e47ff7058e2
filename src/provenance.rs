//! What an output was made from: hashes of the inputs, and what is written of them into a header.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::engine::Progress;
use crate::error::{Error, Result};

/// Under which key it is in the header of a safetensors file.
pub(crate) const KEY: &str = "m2pt_surgery";

/// SHA-256 of each input, computed side by side.
pub(crate) fn hashes(inputs: &[&Checkpoint], progress: &mut dyn Progress) -> Result<Vec<String>> {
    /// How often progress is told.
    const TICK: Duration = Duration::from_millis(10);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let hashes: Vec<Option<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = inputs.iter().map(|input| scope.spawn(|| input.sha256_watched(&done, &stop))).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(TICK);
            progress.advance(done.swap(0, Ordering::Relaxed));
            stop.store(progress.cancelled(), Ordering::Relaxed);
        }
        progress.advance(done.swap(0, Ordering::Relaxed));
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    hashes.into_iter().collect::<Option<Vec<_>>>().ok_or(Error::Cancelled)
}

/// In place of the hashes of so many inputs: of the same length, so that a dry run tells the size.
pub(crate) fn no_hashes(inputs: usize) -> Vec<String> {
    vec!["0".repeat(64); inputs]
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
