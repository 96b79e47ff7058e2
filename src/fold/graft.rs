//! The opposite of a fold: a target with trainable pathways beside its linear layers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::provenance::described;
use super::{FoldInputs, Understood};
use crate::checkpoint::{Checkpoint, Expr, StateDict};
use crate::engine::{Computer, Progress};
use crate::error::{Error, Result};
use crate::naming::{AUX_WEIGHT, SCALE};
use crate::plan::{self, FoldProblem, FoldedLayer, Plan, Sharing};
use crate::provenance;
use crate::streaming::stream;
use crate::tensor::DType;
use crate::write::{Format, Layout};

/// A graft that is planned, and only has to be run.
#[derive(Debug)]
pub struct PlannedGraft<'i> {
    inputs: &'i FoldInputs,
    target: Understood<'i>,
    aux: Vec<Understood<'i>>,
    layers: Vec<FoldedLayer>,
    dict: StateDict<'i>,
    plan: Plan,
    files: Vec<(PathBuf, u64)>,
}

/// What a graft did.
#[derive(Clone, Debug)]
pub struct GraftReport {
    /// Bytes of the output, all its files together.
    pub file_bytes: u64,
    /// Time from the first byte read to the file being published.
    pub elapsed: Duration,
}

impl FoldInputs {
    /// Plans the trainable form of what a fold of these inputs would compute: the tensors of the target as they are, and behind those of
    /// each chosen linear layer `aux_weight`, the auxiliary's weight, and `cross_modal_scale`, its lambda, of shape `[1]`.
    ///
    /// These are the names of the reference module of Multimodal Pathway; a fold of the output is the fold of these inputs.
    ///
    /// # Errors
    /// [`Error`]: whatever stands in the way.
    pub fn graft(&self) -> Result<PlannedGraft<'_>> {
        let request = &self.request;
        let (target, aux, folded) = self.matched().map_err(|error| match error {
            // What a fold says of it would not help here.
            Error::Fold(problem)
                if matches!(*problem, FoldProblem::LambdaOnLearned { .. } | FoldProblem::AuxOnLearned { .. }) =>
            {
                let target = request.target.display().to_string();
                Error::Fold(Box::new(FoldProblem::GraftOnPathway { target }))
            }
            error => error,
        })?;
        let wrong = |problem| Err(Error::Fold(Box::new(problem)));
        if aux.len() != 1 {
            return wrong(FoldProblem::OneAuxOnly { target: request.target.display().to_string(), count: aux.len() });
        }
        let mut items = Vec::new();
        let layers = target.layers.as_slice();
        let specs = target.tensors.specs();
        for (index, spec) in specs.iter().enumerate() {
            items.push((spec.name.clone(), Expr::tensor(index)));
            // Behind the last of a layer's own tensors.
            let Some(layer) = layers.iter().find(|layer| layer.weight.max(layer.bias.unwrap_or(0)) == index) else {
                continue;
            };
            let name = &specs[layer.weight].name;
            let Some(term) = folded.folded.iter().find(|folded| folded.name == *name).and_then(|f| f.terms.first())
            else {
                continue;
            };
            let aux = Expr::Tensor { input: term.source.input, tensor: term.source.tensor };
            items.push((format!("{}.{AUX_WEIGHT}", layer.module), aux));
            let dtype = specs[layer.weight].dtype;
            let dtype = if dtype == DType::F64 { dtype } else { DType::F32 };
            items.push((
                format!("{}.{SCALE}", layer.module),
                Expr::Filled { dtype, shape: vec![1], value: term.lambda },
            ));
        }
        let dict = target.tensors.clone().derived(aux.iter().map(|aux| aux.tensors.clone()).collect(), items)?;
        let placements: Vec<_> = (0..dict.specs().len()).map(|index| dict.placement(index)).collect();
        let dtypes: Vec<DType> = dict.specs().iter().map(|spec| spec.dtype).collect();
        let mut plan = plan::copy(dict.specs(), &placements, &dtypes, request.format.sharing());
        drop(placements);
        if request.format.sharing() == Sharing::Keep {
            plan.notes.splice(..0, folded.notes);
        }
        let mut planned =
            PlannedGraft { inputs: self, target, aux, layers: folded.folded, dict, plan, files: Vec::new() };
        let layout = planned.layout(&provenance::no_hashes(self.checkpoints().len(), request.run.hash_inputs))?;
        planned.files = layout.files();
        planned.plan.notes.extend(layout.check()?);
        Ok(planned)
    }
}

impl<'i> PlannedGraft<'i> {
    /// The target.
    #[must_use]
    pub fn target(&self) -> &Understood<'i> {
        &self.target
    }

    /// The auxiliary.
    #[must_use]
    pub fn aux(&self) -> &[Understood<'i>] {
        &self.aux
    }

    /// The linear layers that get a pathway, and their lambdas.
    #[must_use]
    pub fn layers(&self) -> &[FoldedLayer] {
        &self.layers
    }

    /// What will be written.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The files of the output with their sizes in bytes, in the order in which they appear.
    #[must_use]
    pub fn files(&self) -> &[(PathBuf, u64)] {
        &self.files
    }

    /// Bytes that the run will report as progress: those of tensor data written, and those of inputs hashed.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let hashed = if self.has_provenance() && self.inputs.request.run.hash_inputs {
            self.inputs.checkpoints()
        } else {
            Vec::new()
        };
        self.plan.bytes() + hashed.into_iter().map(Checkpoint::file_bytes).sum::<u64>()
    }

    /// Whether the output says what it was made from.
    fn has_provenance(&self) -> bool {
        self.inputs.request.metadata && self.inputs.request.format == Format::Safetensors
    }

    /// The layout of the output, where the inputs have those hashes.
    fn layout(&self, hashes: &[Value]) -> Result<Layout> {
        let request = &self.inputs.request;
        let mut metadata = vec![("format".to_owned(), "pt".to_owned())];
        if self.has_provenance() {
            let lambda = |layer: &FoldedLayer| Some((layer.name.clone(), layer.terms.first()?.lambda.into()));
            let inputs = described(request, &self.target, &self.aux, hashes);
            let mut record = provenance::record("graft", inputs, &serde_json::json!({}));
            record["lambdas"] = Value::Object(self.layers.iter().filter_map(lambda).collect());
            metadata.push((provenance::KEY.to_owned(), record.to_string()));
        }
        Layout::new(request.destination(), &self.plan, &metadata)
            .map_err(|problem| Error::Layout { path: request.output.clone(), problem })
    }

    /// Runs the plan and publishes the output.
    ///
    /// # Errors
    /// [`Error`]; then the output was not published, and what was there before is untouched.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<GraftReport> {
        let started = Instant::now();
        let inputs = [self.dict.clone()];
        let hashes = match self.has_provenance() {
            true => provenance::hashes(&self.inputs.checkpoints(), self.inputs.request.run.hash_inputs, progress)?,
            false => Vec::new(),
        };
        stream(
            self.layout(&hashes)?.create()?,
            &self.plan,
            &inputs,
            &self.inputs.request.run,
            &Computer::default(),
            progress,
            |_| Ok(()),
        )?;
        let file_bytes = self.files().iter().map(|(_, bytes)| bytes).sum();
        Ok(GraftReport { file_bytes, elapsed: started.elapsed() })
    }
}
