//! The fold, end to end: open, match, plan, run, publish.

mod adapt;
mod graft;
mod parts;
mod provenance;
mod replace;
mod request;

pub use graft::{GraftReport, PlannedGraft};
pub use parts::{Joined, Part, PartsReport, join};
pub use replace::Replaced;
pub use request::{AuxRequest, FoldRequest};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::checkpoint::{Checkpoint, RootChoice, StateDict};
use crate::engine::{Computer, Progress, RunReport};
use crate::error::{Error, Result};
use crate::naming::{Family, Flags, Layers, Recognised, Selector};
use crate::plan::{self, AuxSide, DepthMismatch, FoldOptions, Plan, Side};
use crate::streaming::stream;
use crate::tensor::decode_f64;
use crate::write::{Format, ScratchFile, check_target, left_notes};

/// The open inputs of a fold.
#[derive(Debug)]
pub struct FoldInputs {
    request: FoldRequest,
    target: Checkpoint,
    aux: Vec<Checkpoint>,
    replacing: Option<Checkpoint>,
}

/// One model of a fold, as it was understood.
#[derive(Debug)]
pub struct Understood<'c> {
    /// Its tensors.
    pub tensors: StateDict<'c>,
    /// The family that it was recognised as, unless a pattern was given.
    pub family: Option<Recognised>,
    /// Its linear layers.
    pub layers: Layers,
    /// What took the place of some of its tensors: of a target, with [`FoldRequest::replace`].
    pub replaced: Option<Replaced<'c>>,
}

impl<'c> Understood<'c> {
    /// Takes the root `choice` of a checkpoint and finds its layers, by `pattern` or by its family's.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Match`].
    fn target(checkpoint: &'c Checkpoint, choice: &RootChoice, pattern: Option<&Selector>) -> Result<Self> {
        let (tensors, family) = Understood::open(checkpoint, choice, pattern)?;
        let layers = match (pattern, &family) {
            (Some(pattern), _) => Layers::find(tensors.specs(), pattern, Flags::TARGET),
            (None, Some(found)) => Layers::of_family(tensors.specs(), &found.family, Flags::TARGET),
            (None, None) => Layers::with_timm_names(tensors.specs(), Flags::TARGET),
        };
        let layers = layers.map_err(|problem| Error::Match { path: checkpoint.path().to_owned(), problem })?;
        Ok(Understood { tensors, family, layers, replaced: None })
    }

    /// The same for an auxiliary, whose layers are put in the form that those of the target have: stacked or apart.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Match`].
    fn aux(
        checkpoint: &'c Checkpoint,
        choice: &RootChoice,
        pattern: Option<&Selector>,
        target: &Layers,
    ) -> Result<Self> {
        let opened = Understood::open(checkpoint, choice, pattern);
        let (tensors, family) = opened.map_err(|error| error.root_chosen_by("--aux-root"))?;
        let wrong = |problem| Error::Match { path: checkpoint.path().to_owned(), problem };
        let Some(found) = &family else {
            let layers = match pattern {
                Some(pattern) => Layers::find(tensors.specs(), pattern, Flags::AUX),
                None => Layers::with_timm_names(tensors.specs(), Flags::AUX),
            };
            return Ok(Understood { layers: layers.map_err(wrong)?, tensors, family, replaced: None });
        };
        let mapping = Layers::mapping(tensors.specs(), &found.family, Flags::AUX).map_err(wrong)?;
        let (tensors, layers) = adapt::to(tensors, &mapping, target, Flags::AUX)?;
        Ok(Understood { tensors, family, layers, replaced: None })
    }

    /// The tensors, and the family that they are recognised as unless there is a pattern.
    fn open(
        checkpoint: &'c Checkpoint,
        choice: &RootChoice,
        pattern: Option<&Selector>,
    ) -> Result<(StateDict<'c>, Option<Recognised>)> {
        let tensors = checkpoint.state_dict(choice)?;
        tensors.require_dense()?;
        let family = if pattern.is_none() { Family::recognise(tensors.specs()) } else { None };
        Ok((tensors, family))
    }

    fn side(&self) -> Side<'_> {
        let specs = self.tensors.specs();
        Side {
            file: self.tensors.checkpoint().path().display().to_string(),
            specs,
            placements: (0..specs.len()).map(|i| self.tensors.placement(i)).collect(),
            layers: self.layers.clone(),
        }
    }
}

impl FoldInputs {
    /// The open files: the target, then the auxiliaries, then the one whose tensors replace the target's.
    fn checkpoints(&self) -> Vec<&Checkpoint> {
        std::iter::once(&self.target).chain(&self.aux).chain(&self.replacing).collect()
    }

    /// What is worth knowing of the inputs before anything is planned, so that it can be said beside an error as well: the
    /// notes of a plan begin with it.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let lone = |input: &Checkpoint| Some(format!("{}: {}", input.path().display(), input.lone_shard()?));
        self.checkpoints().into_iter().filter_map(lone).collect()
    }

    /// Matches the layers, plans the fold, lays out the output, and checks that it can be put where it should go.
    /// Reads nothing but learned lambdas, and writes nothing.
    ///
    /// # Errors
    /// [`Error`]: whatever stands in the way of the fold.
    pub fn plan(&self) -> Result<PlannedFold<'_>> {
        let request = &self.request;
        let (target, aux, plan) = self.matched()?;
        let mut planned = PlannedFold { inputs: self, target, aux, plan, files: Vec::new(), part_bytes: None };
        let layout = planned.layout(None)?;
        planned.files = layout.files();
        planned.note_left_behind();
        match request.part {
            Some(part) => {
                planned.plan.notes.extend(layout.check_parts()?);
                planned.part_bytes = Some(planned.bytes_of(part, &layout));
            }
            None => planned.plan.notes.extend(layout.check()?),
        }
        if request.sidecar {
            let path = request.sidecar_path();
            // Its folder may be one that is to be made.
            if path.parent().is_none_or(|folder| folder.as_os_str().is_empty() || folder.exists()) {
                check_target(&path, request.force)?;
            }
            planned.plan.notes.extend(left_notes(&path));
        }
        Ok(planned)
    }

    /// Matches the layers and plans the fold, whatever its output is.
    pub(crate) fn matched(&self) -> Result<(Understood<'_>, Vec<Understood<'_>>, Plan)> {
        let request = &self.request;
        let mut target = Understood::target(&self.target, &request.target_root, request.target_pattern.as_ref())?;
        let replaced = match &self.replacing {
            Some(file) => target.replace(file, &request.replace_root, request.dtype)?,
            None => Vec::new(),
        };
        let aux = self
            .aux
            .iter()
            .map(|aux| Understood::aux(aux, &request.aux_root, request.aux_pattern.as_ref(), &target.layers))
            .collect::<Result<Vec<_>>>()?;
        let scales = learned_scales(&target)?;
        let sides: Vec<AuxSide<'_>> = aux
            .iter()
            .zip(&request.aux)
            .map(|(aux, asked)| AuxSide { side: aux.side(), lambda: asked.lambda.clone().or(request.lambda.clone()) })
            .collect();
        self.check_used(&scales)?;
        let options = FoldOptions {
            kinds: request.kinds.clone(),
            blocks: request.blocks.clone(),
            bias: request.bias,
            depth_mismatch: request.depth_mismatch,
            dtype: request.dtype,
            sharing: request.format.sharing(),
        };
        let mut plan =
            plan::fold(&target.side(), &sides, &scales, &options).map_err(|problem| Error::Fold(Box::new(problem)))?;
        plan.notes.splice(..0, self.notes().into_iter().chain(replaced));
        for (aux, asked) in aux.iter().zip(&request.aux).filter(|(aux, _)| aux.layers.learned() > 0) {
            plan.notes.push(format!(
                "{} carries {} learned pathways of its own, which are not used: fold it first to take them along",
                asked.path.display(),
                aux.layers.learned()
            ));
        }
        drop(sides);
        Ok((target, aux, plan))
    }

    /// Refuses options that would be ignored silently.
    fn check_used(&self, scales: &[Option<f64>]) -> Result<()> {
        let request = &self.request;
        let unused = |option, why| Err(Error::Fold(Box::new(plan::FoldProblem::Unused { option, why })));
        let no_aux = "there is no --aux";
        if request.lambda.is_some() && request.aux.is_empty() && scales.iter().any(Option::is_some) {
            let target = request.target.display().to_string();
            return Err(Error::Fold(Box::new(plan::FoldProblem::LambdaOnLearned { target })));
        }
        if !request.metadata && request.format == Format::Pth {
            return unused("--no-metadata", "a .pth file has no header that provenance could be in");
        }
        if request.run.hash_inputs && request.format == Format::Pth && !request.sidecar {
            return unused("--hash-inputs", "a .pth file has no header that they could be in");
        }
        if request.lambda.is_some() && !request.aux.is_empty() && request.aux.iter().all(|aux| aux.lambda.is_some()) {
            return unused("--lambda", "every --aux has a lambda of its own");
        }
        if request.part.is_some() && request.force {
            return unused("--force", "shards that are written one by one replace none");
        }
        if request.part.is_some() && request.sidecar {
            return unused("--report", "shards that are written one by one have none");
        }
        if request.replace_root != RootChoice::Auto && request.replace.is_none() {
            return unused("--replace-root", "there is no --replace");
        }
        if request.aux_root != RootChoice::Auto && request.aux.is_empty() {
            return unused("--aux-root", no_aux);
        }
        if request.aux_pattern.is_some() && request.aux.is_empty() {
            return unused("--aux-pattern", no_aux);
        }
        if request.depth_mismatch == DepthMismatch::First && request.aux.is_empty() {
            return unused("--depth-mismatch", no_aux);
        }
        Ok(())
    }
}

/// The learned lambda of each layer, in order: one finite number each.
fn learned_scales(target: &Understood<'_>) -> Result<Vec<Option<f64>>> {
    let read = |scale: usize| -> Result<f64> {
        let spec = &target.tensors.specs()[scale];
        let (path, tensor) = target.tensors.origin(scale);
        let wrong = |what: String| Error::Scale { path: path.to_owned(), tensor: tensor.to_owned(), what };
        if spec.numel() != 1 {
            return Err(wrong(format!("has the shape {:?}", spec.shape)));
        }
        if !spec.dtype.is_foldable() {
            return Err(wrong(format!("is {}", spec.dtype)));
        }
        let mut value = Vec::new();
        let data = target.tensors.tensor(scale)?;
        decode_f64(spec.dtype, &data.view().to_vec(), &mut value).map_err(|error| wrong(error.to_string()))?;
        match value.as_slice() {
            &[value] if value.is_finite() => Ok(value),
            _ => Err(wrong(format!("is {value:?}"))),
        }
    };
    target.layers.as_slice().iter().map(|layer| layer.scale.map(read).transpose()).collect()
}

/// A fold that is planned, and only has to be run.
#[derive(Debug)]
pub struct PlannedFold<'i> {
    inputs: &'i FoldInputs,
    target: Understood<'i>,
    aux: Vec<Understood<'i>>,
    plan: Plan,
    files: Vec<(PathBuf, u64)>,
    /// Bytes of tensors in the shards of the part that is to be written.
    part_bytes: Option<u64>,
}

/// What a fold did.
#[derive(Clone, Debug)]
pub struct FoldReport {
    /// What the run found.
    pub run: RunReport,
    /// Bytes that were written, all files together.
    pub file_bytes: u64,
    /// What became of the shards, if they were written one by one.
    pub parts: Option<PartsReport>,
    /// Time from the first byte read to the file being published.
    pub elapsed: Duration,
}

impl<'i> PlannedFold<'i> {
    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &'i FoldRequest {
        &self.inputs.request
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Understood<'i> {
        &self.target
    }

    /// The auxiliaries, in order.
    #[must_use]
    pub fn aux(&self) -> &[Understood<'i>] {
        &self.aux
    }

    /// What will be written.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The size of the output in bytes, all its files together.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The files of the output with their sizes in bytes, in the order in which they appear: one file, or shards and then
    /// their index.
    #[must_use]
    pub fn files(&self) -> &[(PathBuf, u64)] {
        &self.files
    }

    /// Bytes that the run will report as progress: those of tensor data written, and those of inputs hashed.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let hashes = self.part_bytes.is_some() || self.hashes_inputs();
        let inputs = if hashes { self.inputs.checkpoints() } else { Vec::new() };
        let hashed: u64 = inputs.into_iter().map(Checkpoint::file_bytes).sum();
        self.part_bytes.unwrap_or(self.plan.bytes()) + hashed
    }

    /// The tensors that the plan refers to: those of the target, then those of the auxiliaries.
    fn state_dicts(&self) -> Vec<StateDict<'i>> {
        std::iter::once(&self.target).chain(&self.aux).map(|side| side.tensors.clone()).collect()
    }

    /// Notes what the target holds that is no tensor, and that the output therefore lacks.
    fn note_left_behind(&mut self) {
        let values = self.inputs.target.values();
        if !values.is_empty() {
            /// Names that are listed; a file may have thousands.
            const LISTED: usize = 12;
            let names: Vec<&str> = values.keys().map(String::as_str).take(LISTED).collect();
            let more = if values.len() > LISTED { ", ..." } else { "" };
            self.plan.notes.push(format!("not taken from the target, being no tensors: {}{more}", names.join(", ")));
        }
    }

    /// Runs the plan and publishes the output, and the sidecar if one was asked for.
    ///
    /// # Errors
    /// [`Error`]; then the output was not published, and what was there before is untouched. Two exceptions:
    /// [`Error::Sidecar`], the output is there, whole, but its sidecar could not take its name; and
    /// [`Error::NotRestored`], of several files that were to be replaced. With [`FoldRequest::part`], shards that were complete before
    /// the error stay.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<FoldReport> {
        let started = Instant::now();
        let request = self.request();
        if let Some(part) = request.part {
            return self.run_part(part, started, progress);
        }
        let provenance = match self.has_provenance() {
            true => Some(self.provenance(&self.hashes(progress)?)),
            false => None,
        };
        let layout = self.layout(provenance.as_ref())?;
        let writer = layout.create()?;
        let mut sidecar = match request.sidecar {
            true => Some(ScratchFile::create(&request.sidecar_path(), request.force)?),
            false => None,
        };
        let inputs = self.state_dicts();
        let computer = Computer::open(request.run.device, &self.plan);
        let before = |run: &RunReport| match (&mut sidecar, provenance) {
            (Some(sidecar), Some(provenance)) => write_sidecar(sidecar, provenance, run),
            _ => Ok(()),
        };
        let run = stream(writer, &self.plan, &inputs, &request.run, &computer, progress, before)?;
        if let Some(sidecar) = sidecar {
            sidecar
                .publish()
                .map_err(|source| Error::Sidecar { output: request.output.clone(), source: Box::new(source) })?;
        }
        Ok(FoldReport { run, file_bytes: self.file_bytes(), parts: None, elapsed: started.elapsed() })
    }
}

fn write_sidecar(file: &mut ScratchFile, mut provenance: Value, run: &RunReport) -> Result<()> {
    // In a header it would make other bytes of the same tensors, and it is known only now.
    provenance["device"] = Value::from(run.device.as_str());
    file.write(format!("{provenance:#}\n").as_bytes())?;
    // On the disk before the output is published, so that a full disk leaves neither.
    file.complete()
}
