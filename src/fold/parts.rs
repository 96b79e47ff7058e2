//! A fold whose shards are written one by one: by one process that may be killed and started again, or by several.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::{FoldReport, PlannedFold};
use crate::engine::{Computer, Progress, RunReport};
use crate::error::{Error, OutputProblem, Result};
use crate::provenance;
use crate::streaming::stream;
use crate::write::{Layout, Parts};

/// Which of the shards of an output are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All that are not there yet, and then the index.
    Rest,
    /// Of `of` parts the one with that number, from 1: its shards that are not there yet, and no index, which [`join`] writes.
    /// Part 0 is nothing but the plan that all parts compare with.
    Number {
        /// Which part.
        number: usize,
        /// How many parts there are.
        of: usize,
    },
}

impl Part {
    /// Whether the shard with that number, from 0, belongs to it.
    fn has(self, shard: usize) -> bool {
        match self {
            Part::Rest => true,
            Part::Number { number, of } => number.checked_sub(1) == Some(shard % of.max(1)),
        }
    }
}

/// What became of the shards of an output that is written in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsReport {
    /// The shards that were written now.
    pub written: Vec<PathBuf>,
    /// How many of the part were there already.
    pub found: usize,
    /// How many of the whole output are missing still.
    pub missing: usize,
    /// How many the output has.
    pub of: usize,
}

/// An output whose parts were joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The index that was written.
    pub index: PathBuf,
    /// How many shards there are.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
}

/// Writes the index of an output whose parts are all there, and removes its plan. `path` is the plan (`*.index.json.parts`), the folder
/// that it is in, or what was given as output of the fold.
///
/// # Errors
/// [`Error::Parts`] if shards are missing or are not those of the plan; then nothing is changed.
pub fn join(path: impl AsRef<Path>) -> Result<Joined> {
    let parts = Parts::find(path.as_ref())?;
    parts.finish()?;
    Ok(Joined { index: parts.index(), shards: parts.len(), bytes: parts.bytes() })
}

impl PlannedFold<'_> {
    /// Bytes of the tensors in the shards of that part.
    pub(super) fn bytes_of(&self, part: Part, layout: &Layout) -> u64 {
        let shards = (0..self.files.len().saturating_sub(1)).filter(|&shard| part.has(shard));
        shards.map(|shard| self.shard_bytes(layout, shard)).sum()
    }

    fn shard_bytes(&self, layout: &Layout, shard: usize) -> u64 {
        layout.shard_steps(shard).iter().map(|&step| self.plan.steps[step].bytes()).sum()
    }

    /// Writes the shards of a part, each of which appears when it is complete.
    pub(super) fn run_part(&self, part: Part, started: Instant, progress: &mut dyn Progress) -> Result<FoldReport> {
        let request = self.request();
        let checkpoints = self.inputs.checkpoints();
        let stamp = |(name, bytes, modified): (String, u64, Option<u128>)| json!({"name": name, "bytes": bytes, "modified_ns": modified.map(|time| time.to_string())});
        let stamps: Value =
            checkpoints.iter().map(|input| Value::from_iter(input.stamps().into_iter().map(stamp))).collect();
        // The last file of an output in parts is its index.
        let index = self.files.last().map_or(request.output.as_path(), |(path, _)| path);
        let hashes = match Parts::known_hashes(index, &stamps)? {
            Some(hashes) => {
                checkpoints.iter().for_each(|input| progress.advance(input.file_bytes()));
                hashes
            }
            None => provenance::hashes(&checkpoints, true, progress)?,
        };
        // The same bytes as of a fold in one go, which hashes only if it is told to.
        let unhashed = provenance::no_hashes(checkpoints.len(), false);
        let header =
            self.has_provenance().then(|| self.provenance(if self.hashes_inputs() { &hashes } else { &unhashed }));
        let layout = self.layout(header.as_ref())?;
        let parts = Parts::new(&layout, self.provenance(&hashes), stamps)?;
        parts.register(layout.folder())?;

        let mut todo = Vec::new();
        let mut report = PartsReport { written: Vec::new(), found: 0, missing: 0, of: parts.len() };
        for shard in (0..parts.len()).filter(|&shard| part.has(shard)) {
            if parts.is_there(shard)? {
                report.found += 1;
                progress.advance(self.shard_bytes(&layout, shard));
            } else {
                todo.push(shard);
            }
        }
        parts.check_room(&todo)?;
        let inputs = self.state_dicts();
        let computer = Computer::open(request.run.device, &self.plan);
        let mut run = RunReport { norms: vec![None; self.plan.steps.len()], ..RunReport::default() };
        let mut file_bytes = 0;
        for shard in todo {
            let begun = layout.shard(shard).create();
            let streamed = begun
                .and_then(|writer| stream(writer, &self.plan, &inputs, &request.run, &computer, progress, |_| Ok(())));
            match streamed {
                // Another process that runs the same part was faster.
                Err(Error::Output { problem: OutputProblem::Exists, .. }) if parts.is_there(shard)? => {
                    report.found += 1;
                    continue;
                }
                done => {
                    let done = done?;
                    run.norms.iter_mut().zip(done.norms).for_each(|(all, one)| *all = all.or(one));
                    run.non_finite.extend(done.non_finite);
                    run.lost.extend(done.lost);
                }
            }
            file_bytes += self.files[shard].1;
            report.written.push(parts.file(shard));
        }
        (run.device, run.notes) = (computer.device(), computer.notes());
        match part {
            Part::Rest => parts.finish()?,
            Part::Number { .. } => report.missing = parts.missing()?.len(),
        }
        Ok(FoldReport { run, file_bytes, parts: Some(report), elapsed: started.elapsed() })
    }
}
