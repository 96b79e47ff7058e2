//! A conversion that is decided on, and its run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{ConvertInputs, ConvertRequest, Decided, Item, Names, timm_dir};
use crate::checkpoint::{Checkpoint, StateDict};
use crate::engine::{Computer, Lost, Progress};
use crate::error::{Error, Result};
use crate::model::Detected;
use crate::naming::Recognised;
use crate::plan::Plan;
use crate::provenance;
use crate::streaming::stream;
use crate::write::{Destination, Format, Layout, ScratchFile};

/// A conversion that is planned, and only has to be run.
#[derive(Debug)]
pub struct PlannedConversion<'i> {
    inputs: &'i ConvertInputs,
    dict: StateDict<'i>,
    items: Vec<Item>,
    plan: Plan,
    decided: Decided,
    destination: Destination,
    /// That of a dry run, which knows no hashes yet.
    layout: Option<Layout>,
    /// The `config.json` beside the weights.
    config: Option<(PathBuf, String)>,
}

/// Under which key values are kept in a header.
const VALUES: &str = "m2pt_surgery_values";

/// What a file holds besides tensors: texts of the header of a safetensors file, which stay what they are, and other values.
/// Which library wrote the tensors is said anew.
fn described(input: &Checkpoint) -> (BTreeMap<String, String>, Map<String, Value>) {
    let mut values = input.values();
    let mut texts = BTreeMap::new();
    if let Some(header) = values.remove("__metadata__") {
        match header.as_object() {
            Some(all) if all.values().all(Value::is_string) => {
                let text = |(key, text): (&String, &Value)| Some((key.clone(), text.as_str()?.to_owned()));
                texts.extend(all.iter().filter(|(key, _)| *key != "format").filter_map(text));
            }
            _ => drop(values.insert("__metadata__".to_owned(), header)),
        }
    }
    (texts, values)
}

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct ConvertReport {
    /// The outputs that hold NaN or infinity; always empty unless these were allowed.
    pub non_finite: Vec<String>,
    /// The outputs that were cast to a type that cannot hold all of their numbers.
    pub lost: Vec<(String, Lost)>,
    /// Bytes of the output, all its files together.
    pub file_bytes: u64,
    /// Time from the first byte read to the file being published.
    pub elapsed: Duration,
}

impl<'i> PlannedConversion<'i> {
    pub(super) fn new(
        inputs: &'i ConvertInputs,
        dict: StateDict<'i>,
        items: Vec<Item>,
        mut plan: Plan,
        decided: Decided,
        destination: Destination,
    ) -> Result<Self> {
        let request = &inputs.request;
        let (texts, values) = described(&inputs.input);
        let kept = if request.format == Format::Safetensors { BTreeMap::new() } else { texts };
        let lost: Vec<&str> = kept.keys().map(String::as_str).chain(values.keys().map(String::as_str)).collect();
        if !lost.is_empty() && !request.keep_values {
            /// Names that are listed; a file may have thousands.
            const LISTED: usize = 12;
            let more = if lost.len() > LISTED { ", ..." } else { "" };
            let way = if request.format == Format::Safetensors { "; --keep-values keeps them as JSON" } else { "" };
            let lost = lost[..lost.len().min(LISTED)].join(", ");
            plan.notes.push(format!("not taken along, being no tensors: {lost}{more}{way}"));
        }
        let config = match (&decided.model, request.timm_dir) {
            (Some(model), true) => {
                let text = timm_dir::config(model, request.labels.as_deref());
                Some((request.output.join(timm_dir::CONFIG), text.map_err(|problem| inputs.wrong(problem))?))
            }
            _ => None,
        };
        let mut planned = PlannedConversion { inputs, dict, items, plan, decided, destination, layout: None, config };
        planned.layout =
            Some(planned.layout(&provenance::no_hashes(planned.checkpoints().len(), inputs.request.run.hash_inputs))?);
        Ok(planned)
    }

    /// The open files: the input, and the donor.
    fn checkpoints(&self) -> Vec<&Checkpoint> {
        std::iter::once(&self.inputs.input).chain(&self.inputs.donor).collect()
    }

    /// Whether the output says what it was made from.
    fn has_provenance(&self) -> bool {
        self.request().metadata && self.request().format == Format::Safetensors
    }

    /// Bytes that the run will report as progress: those of tensor data written, and those of inputs hashed.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let hashed =
            if self.has_provenance() && self.request().run.hash_inputs { self.checkpoints() } else { Vec::new() };
        self.plan.bytes() + hashed.into_iter().map(Checkpoint::file_bytes).sum::<u64>()
    }

    /// The layout of the output, where the inputs have those hashes.
    fn layout(&self, hashes: &[Value]) -> Result<Layout> {
        let request = self.request();
        let (mut texts, values) = described(&self.inputs.input);
        let mut metadata = vec![("format".to_owned(), "pt".to_owned())];
        let before = texts.remove(provenance::KEY);
        metadata.extend(texts);
        if request.keep_values && !values.is_empty() {
            metadata.retain(|(key, _)| key != VALUES);
            metadata.push((VALUES.to_owned(), Value::Object(values).to_string()));
        }
        if self.has_provenance() {
            metadata.push((provenance::KEY.to_owned(), self.provenance(hashes, before.as_deref()).to_string()));
        }
        let path = self.destination.path.clone();
        Layout::new(self.destination.clone(), &self.plan, &metadata).map_err(|problem| Error::Layout { path, problem })
    }

    /// What the output is made from; `before` is what the input says of itself.
    fn provenance(&self, hashes: &[Value], before: Option<&str>) -> Value {
        let request = self.request();
        let family = self.family().map(|found| found.family.name());
        let before = before.map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)));
        let inputs = hashes.iter().enumerate().map(|(number, hash)| match number {
            0 => json!({
                "role": "input", "sha256": hash, "root": self.dict.root(), "family": family, "provenance": before,
            }),
            _ => json!({"role": "donor", "sha256": hash}),
        });
        let names = match &request.names {
            Names::Keep => None,
            Names::Timm => Some("timm"),
            Names::Family(family) => Some(family.name()),
        };
        // Tensor by tensor: what became of the others is that they were renamed, or nothing.
        let changed = self.items.iter().filter(|item| !item.changes.is_empty());
        let changed = changed.map(|item| (item.name.clone(), Value::from(item.changes.join("; "))));
        let options = json!({
            "to": names,
            "architecture": self.model().and_then(|model| model.known.as_ref()).map(|known| known.name.clone()),
            "dtype": request.dtypes.iter().map(|(pattern, dtype)| match pattern {
                Some(pattern) => format!("{pattern}={}", dtype.name()),
                None => dtype.name().to_owned(),
            }).collect::<Vec<_>>(),
            "allow_non_finite": request.run.allow_non_finite,
        });
        let mut record = provenance::record("convert", inputs.collect(), &options);
        record["changed"] = Value::Object(changed.collect());
        record
    }

    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &'i ConvertRequest {
        &self.inputs.request
    }

    /// The tensors of the output, in order.
    #[must_use]
    pub fn tensors(&self) -> &[Item] {
        &self.items
    }

    /// What will be written.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The family that the input is of, and why.
    #[must_use]
    pub fn family(&self) -> Option<&Recognised> {
        self.decided.family.as_ref()
    }

    /// The model that the output is for, if it has timm's names.
    #[must_use]
    pub fn model(&self) -> Option<&Detected> {
        self.decided.model.as_ref()
    }

    /// Tensors of the input that the output lacks, and why.
    #[must_use]
    pub fn dropped(&self) -> &[(String, String)] {
        &self.decided.dropped
    }

    /// The tensors that the output is made of.
    #[must_use]
    pub fn input(&self) -> &StateDict<'i> {
        &self.dict
    }

    /// The files of the output with their sizes in bytes, in the order in which they appear.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let config = self.config.iter().map(|(path, text)| (path.clone(), text.len() as u64));
        self.layout.iter().flat_map(Layout::files).chain(config).collect()
    }

    /// The size of the output in bytes, all its files together.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Checks that the output can be put where it should go; returns what the user should know of what is there.
    ///
    /// # Errors
    /// [`Error::Output`] and [`Error::Io`].
    pub fn check_output(&self) -> Result<Vec<String>> {
        let folder = &self.request().output;
        if self.request().timm_dir && !folder.exists() {
            // It will be made, and then there is nothing in it.
            return Ok(Vec::new());
        }
        if let Some((path, _)) = &self.config {
            crate::write::check_target(path, self.request().force)?;
        }
        self.layout.as_ref().map_or(Ok(Vec::new()), Layout::check)
    }

    /// Runs the plan and publishes the output.
    ///
    /// # Errors
    /// [`Error`]; then the output was not published, and what was there before is untouched. The one exception is
    /// [`Error::Sidecar`]: the weights are there, whole, but their `config.json` could not take its name.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<ConvertReport> {
        let started = Instant::now();
        let request = self.request();
        let hashes = match self.has_provenance() {
            true => provenance::hashes(&self.checkpoints(), request.run.hash_inputs, progress)?,
            false => Vec::new(),
        };
        let layout = self.layout(&hashes)?;
        if request.timm_dir {
            let io = |source| Error::Io { action: "create", path: request.output.clone(), source };
            std::fs::create_dir_all(&request.output).map_err(io)?;
        }
        let file_bytes = self.file_bytes();
        let config = match &self.config {
            Some((path, text)) => {
                let mut file = ScratchFile::create(path, request.force)?;
                file.write(text.as_bytes())?;
                file.complete()?;
                Some(file)
            }
            None => None,
        };
        let inputs = [self.dict.clone()];
        let run =
            stream(layout.create()?, &self.plan, &inputs, &request.run, &Computer::default(), progress, |_| Ok(()))?;
        if let Some(config) = config {
            let output = self.destination.path.clone();
            config.publish().map_err(|source| Error::Sidecar { output, source: Box::new(source) })?;
        }
        Ok(ConvertReport { non_finite: run.non_finite, lost: run.lost, file_bytes, elapsed: started.elapsed() })
    }
}
