//! A conversion that is decided on, and its run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{ConvertInputs, ConvertRequest, Decided, Item, timm_dir};
use crate::checkpoint::StateDict;
use crate::engine::{Lost, Progress};
use crate::error::{Error, Result};
use crate::model::Detected;
use crate::naming::Recognised;
use crate::plan::Plan;
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
    layout: Layout,
    /// The `config.json` beside the weights.
    config: Option<(PathBuf, String)>,
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
        let mut metadata = vec![("format".to_owned(), "pt".to_owned())];
        let mut values = inputs.input.values();
        // Of another safetensors file: texts stay what they are, and which library wrote it is said anew.
        let texts = match values.remove("__metadata__") {
            Some(serde_json::Value::Object(texts)) if texts.values().all(serde_json::Value::is_string) => texts,
            Some(other) => {
                values.insert("__metadata__".to_owned(), other);
                serde_json::Map::new()
            }
            None => serde_json::Map::new(),
        };
        for (key, text) in texts.into_iter().filter(|(key, _)| key != "format") {
            match text.as_str() {
                Some(text) if request.keep_values => metadata.push((key, text.to_owned())),
                _ => drop(values.insert(key, text)),
            }
        }
        if request.keep_values && !values.is_empty() {
            metadata.push(("m2pt_surgery_values".to_owned(), serde_json::Value::Object(values).to_string()));
        } else if !values.is_empty() {
            /// Names that are listed; a file may have thousands.
            const LISTED: usize = 12;
            let names: Vec<&str> = values.keys().map(String::as_str).take(LISTED).collect();
            let more = if values.len() > LISTED { ", ..." } else { "" };
            let way = if request.format == Format::Safetensors { "; --keep-values keeps them as JSON" } else { "" };
            plan.notes.push(format!("not taken along, being no tensors: {}{more}{way}", names.join(", ")));
        }
        let path = destination.path.clone();
        let layout = Layout::new(destination, &plan, &metadata).map_err(|problem| Error::Layout { path, problem })?;
        let config = match (&decided.model, request.timm_dir) {
            (Some(model), true) => {
                let text = timm_dir::config(model).map_err(|problem| inputs.wrong(problem))?;
                Some((request.output.join(timm_dir::CONFIG), text))
            }
            _ => None,
        };
        let planned = PlannedConversion { inputs, dict, items, plan, decided, layout, config };
        Ok(planned)
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
        self.layout.files().into_iter().chain(config).collect()
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
        self.layout.check()
    }

    /// Runs the plan and publishes the output.
    ///
    /// # Errors
    /// [`Error`]; then the output was not published, and what was there before is untouched. The one exception is
    /// [`Error::Sidecar`]: the weights are there, whole, but their `config.json` could not take its name.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<ConvertReport> {
        let started = Instant::now();
        let request = self.request();
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
        let run = stream(self.layout.clone().create()?, &self.plan, &inputs, &request.run, progress)?;
        if let Some(config) = config {
            let output = request.output.clone();
            config.publish().map_err(|source| Error::Sidecar { output, source: Box::new(source) })?;
        }
        Ok(ConvertReport { non_finite: run.non_finite, lost: run.lost, file_bytes, elapsed: started.elapsed() })
    }
}
