//! The fold, end to end: open, match, plan, run, publish.
//!
//! ```no_run
//! use m2pt_surgery::{FoldRequest, LambdaSpec};
//!
//! # fn main() -> m2pt_surgery::Result<()> {
//! let mut request = FoldRequest::new("image.pth", "merged.pth")?;
//! request.add_aux("audio.pth");
//! request.lambda = LambdaSpec::parse("0.1").ok();
//! let inputs = request.open()?;
//! let fold = inputs.plan()?;
//! println!("{} parameters, {} bytes", fold.plan().folded.len(), fold.file_bytes());
//! let report = fold.run(&mut ())?;
//! # let _ = report; Ok(()) }
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, RootChoice, StateDict};
use crate::engine::{self, Progress, RunReport};
use crate::error::{Error, OutputProblem, Result};
use crate::naming::LayerKind;
use crate::naming::{Family, Flags, Layers, Recognised, Selector};
use crate::plan::{self, AuxSide, BiasMode, BlockSet, DepthMismatch, FoldOptions, LambdaSpec, Plan, Side};
use crate::tensor::{DType, decode_f64};
use crate::write::{Format, Layout, ScratchFile, check_target};

/// An auxiliary checkpoint of a fold.
#[derive(Clone, Debug)]
pub struct AuxRequest {
    /// The file.
    pub path: PathBuf,
    /// Its own lambda, in place of [`FoldRequest::lambda`].
    pub lambda: Option<LambdaSpec>,
}

/// What to fold, how, and where to.
#[derive(Clone, Debug)]
pub struct FoldRequest {
    /// The checkpoint that is improved.
    pub target: PathBuf,
    /// The auxiliaries, folded from left to right.
    pub aux: Vec<AuxRequest>,
    /// Which part of the target holds the model.
    pub target_root: RootChoice,
    /// Which part of every auxiliary holds the model.
    pub aux_root: RootChoice,
    /// Finds the target's layers, in place of its family's pattern.
    pub target_pattern: Option<Selector>,
    /// Finds every auxiliary's layers, in place of its family's pattern.
    pub aux_pattern: Option<Selector>,
    /// The lambda of auxiliaries that have none of their own.
    pub lambda: Option<LambdaSpec>,
    /// The kinds of layer to fold; all of them if `None`.
    pub kinds: Option<Vec<LayerKind>>,
    /// The blocks to fold; all of them if `None`.
    pub blocks: Option<BlockSet>,
    /// What happens to biases.
    pub bias: BiasMode,
    /// What happens if the models differ in depth.
    pub depth_mismatch: DepthMismatch,
    /// The type that the output's floating-point tensors are cast to after the fold.
    pub dtype: Option<DType>,
    /// Whether NaN and infinity may be in the result.
    pub allow_non_finite: bool,
    /// The file to write.
    pub output: PathBuf,
    /// Its format.
    pub format: Format,
    /// Whether files that are there already are replaced.
    pub force: bool,
    /// Whether provenance goes into the header of a safetensors file.
    pub metadata: bool,
    /// Whether provenance goes into a file beside the output, with `.json` appended to its name.
    pub sidecar: bool,
}

impl FoldRequest {
    /// A fold of `target` into `output`, with every choice at its default and no auxiliary yet; the extension of
    /// `output` tells its format.
    ///
    /// # Errors
    /// [`Error::Output`] if the extension of `output` tells no format.
    pub fn new(target: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Result<FoldRequest> {
        let output = output.into();
        match Format::from_extension(&output) {
            None if output.is_dir() => Err(Error::Output { path: output, problem: OutputProblem::NotAFile }),
            Some(format) => Ok(FoldRequest::with_format(target, output, format)),
            None => Err(Error::Output { path: output, problem: OutputProblem::UnknownFormat }),
        }
    }

    /// A fold of `target` into `output` in that format, with every choice at its default and no auxiliary yet.
    #[must_use]
    pub fn with_format(target: impl Into<PathBuf>, output: impl Into<PathBuf>, format: Format) -> FoldRequest {
        FoldRequest {
            target: target.into(),
            aux: Vec::new(),
            target_root: RootChoice::Auto,
            aux_root: RootChoice::Auto,
            target_pattern: None,
            aux_pattern: None,
            lambda: None,
            kinds: None,
            blocks: None,
            bias: BiasMode::Keep,
            depth_mismatch: DepthMismatch::Error,
            dtype: None,
            allow_non_finite: false,
            output: output.into(),
            format,
            force: false,
            metadata: true,
            sidecar: false,
        }
    }

    /// Adds an auxiliary without a lambda of its own.
    pub fn add_aux(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.aux.push(AuxRequest { path: path.into(), lambda: None });
        self
    }

    /// The file beside the output that provenance goes into.
    #[must_use]
    pub fn sidecar_path(&self) -> PathBuf {
        let mut name = self.output.clone().into_os_string();
        name.push(".json");
        name.into()
    }

    /// Opens the target and the auxiliaries.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(self) -> Result<FoldInputs> {
        let target = Checkpoint::open(&self.target)?;
        let aux = self.aux.iter().map(|aux| Checkpoint::open(&aux.path)).collect::<Result<_>>()?;
        Ok(FoldInputs { request: self, target, aux })
    }
}

/// The open inputs of a fold.
#[derive(Debug)]
pub struct FoldInputs {
    request: FoldRequest,
    target: Checkpoint,
    aux: Vec<Checkpoint>,
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
}

impl<'c> Understood<'c> {
    /// Takes the root `choice` of a checkpoint and finds its layers, by `pattern` or by its family's.
    ///
    /// # Errors
    /// [`Error::Root`], [`Error::Match`].
    fn new(checkpoint: &'c Checkpoint, choice: &RootChoice, pattern: Option<&Selector>, flags: Flags) -> Result<Self> {
        let tensors = checkpoint.state_dict(choice)?;
        let family = if pattern.is_none() { Family::recognise(tensors.specs()) } else { None };
        // Where no family is recognised, timm's names are what is looked for, and what an error speaks of.
        let fallback = || Family::all().iter().find(|f| f.name() == "timm").map(Family::selector);
        let selector = pattern.or(family.as_ref().map(|r| r.family.selector())).or_else(fallback);
        let layers = match selector {
            Some(selector) => Layers::find(tensors.specs(), selector, flags)
                .map_err(|problem| Error::Match { path: checkpoint.path().to_owned(), problem })?,
            None => Layers::default(),
        };
        Ok(Understood { tensors, family, layers })
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
    /// Matches the layers, plans the fold, lays out the output, and checks that it can be put where it should go.
    /// Reads nothing but learned lambdas, and writes nothing.
    ///
    /// # Errors
    /// [`Error`]: whatever stands in the way of the fold.
    pub fn plan(&self) -> Result<PlannedFold<'_>> {
        let request = &self.request;
        let target =
            Understood::new(&self.target, &request.target_root, request.target_pattern.as_ref(), Flags::TARGET)?;
        let aux = self
            .aux
            .iter()
            .map(|aux| Understood::new(aux, &request.aux_root, request.aux_pattern.as_ref(), Flags::AUX))
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
        for (aux, asked) in aux.iter().zip(&request.aux).filter(|(aux, _)| aux.layers.learned() > 0) {
            plan.notes.push(format!(
                "{} carries {} learned pathways of its own, which are not used: fold it first to take them along",
                asked.path.display(),
                aux.layers.learned()
            ));
        }
        let layout = self.layout(&plan, None)?;
        check_target(&request.output, request.force)?;
        if request.sidecar {
            check_target(&request.sidecar_path(), request.force)?;
        }
        Ok(PlannedFold { inputs: self, target, aux, plan, file_bytes: layout.file_bytes() })
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
        if request.lambda.is_some() && !request.aux.is_empty() && request.aux.iter().all(|aux| aux.lambda.is_some()) {
            return unused("--lambda", "every --aux has a lambda of its own");
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

    fn layout(&self, plan: &Plan, provenance: Option<&Value>) -> Result<Layout> {
        let mut metadata = vec![("format".to_owned(), "pt".to_owned())];
        if self.request.metadata && self.request.format == Format::Safetensors {
            // Of the right length before the inputs are hashed, so that a dry run tells the size of the file.
            let placeholder = || self.provenance(plan, &vec!["0".repeat(64); 1 + self.aux.len()]);
            let value = provenance.cloned().unwrap_or_else(placeholder);
            metadata.push(("m2pt_surgery".to_owned(), value.to_string()));
        }
        Layout::new(self.request.format, plan, &metadata)
            .map_err(|problem| Error::Layout { path: self.request.output.clone(), problem })
    }

    /// SHA-256 of each input, computed side by side.
    fn hashes(&self, progress: &mut dyn Progress) -> Result<Vec<String>> {
        /// How often progress is told.
        const TICK: Duration = Duration::from_millis(10);
        let inputs: Vec<&Checkpoint> = std::iter::once(&self.target).chain(&self.aux).collect();
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let hashes: Vec<Option<String>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                inputs.iter().map(|input| scope.spawn(|| input.sha256_watched(&done, &stop))).collect();
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

    /// Whether the run will hash the inputs.
    fn hashes_inputs(&self) -> bool {
        let request = &self.request;
        request.sidecar || request.metadata && request.format == Format::Safetensors
    }

    /// What the output was made from and how: no paths and no dates, so that the same inputs give the same bytes.
    fn provenance(&self, plan: &Plan, hashes: &[String]) -> Value {
        let request = &self.request;
        let root = |choice: &RootChoice| match choice {
            RootChoice::Auto => Value::Null,
            RootChoice::Path(path) => json!(path),
        };
        let inputs: Vec<Value> = hashes
            .iter()
            .enumerate()
            .map(|(number, hash)| {
                let (role, choice, pattern) = match number {
                    0 => ("target", &request.target_root, &request.target_pattern),
                    _ => ("auxiliary", &request.aux_root, &request.aux_pattern),
                };
                let pattern = pattern.as_ref().map(Selector::pattern);
                json!({"role": role, "sha256": hash, "root": root(choice), "pattern": pattern})
            })
            .collect();
        let lambdas: serde_json::Map<String, Value> = plan
            .folded
            .iter()
            .map(|folded| {
                let lambdas: Vec<f64> = folded.terms.iter().map(|term| term.lambda).collect();
                (
                    folded.name.clone(),
                    match lambdas.as_slice() {
                        [lambda] => json!(lambda),
                        _ => json!(lambdas),
                    },
                )
            })
            .collect();
        json!({
            "tool": "m2pt-surgery",
            "version": env!("CARGO_PKG_VERSION"),
            "operation": "fold",
            "inputs": inputs,
            "options": {
                "layers": request.kinds.as_ref().map(|kinds| kinds.iter().map(|k| k.name()).collect::<Vec<_>>()),
                "blocks": request.blocks.as_ref().map(ToString::to_string),
                "bias": match request.bias { BiasMode::Keep => "keep", BiasMode::Fold => "fold" },
                "depth_mismatch": match request.depth_mismatch {
                    DepthMismatch::Error => "error",
                    DepthMismatch::First => "first",
                },
                "dtype": request.dtype.map(DType::name),
                "allow_non_finite": request.allow_non_finite,
            },
            "lambdas": lambdas,
        })
    }
}

/// The learned lambda of each layer, in order: one finite number each.
fn learned_scales(target: &Understood<'_>) -> Result<Vec<Option<f64>>> {
    let read = |scale: usize| -> Result<f64> {
        let spec = &target.tensors.specs()[scale];
        let wrong = |what: String| Error::Scale {
            path: target.tensors.checkpoint().path().to_owned(),
            tensor: spec.name.clone(),
            what,
        };
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
    file_bytes: u64,
}

/// What a fold did.
#[derive(Clone, Debug)]
pub struct FoldReport {
    /// What the run found.
    pub run: RunReport,
    /// Bytes of the output.
    pub file_bytes: u64,
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

    /// The size of the output file, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes that the run will report as progress: those of tensor data written, and those of inputs hashed.
    #[must_use]
    pub fn work_bytes(&self) -> u64 {
        let inputs = std::iter::once(&self.inputs.target).chain(&self.inputs.aux);
        let hashed: u64 = inputs.filter(|_| self.inputs.hashes_inputs()).map(Checkpoint::file_bytes).sum();
        self.plan.bytes() + hashed
    }

    /// Runs the plan and publishes the output, and the sidecar if one was asked for.
    ///
    /// # Errors
    /// [`Error`]; then nothing was published, and what was there before is untouched.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<FoldReport> {
        let started = Instant::now();
        let request = self.request();
        let provenance = match self.inputs.hashes_inputs() {
            true => Some(self.inputs.provenance(&self.plan, &self.inputs.hashes(progress)?)),
            false => None,
        };
        let layout = self.inputs.layout(&self.plan, provenance.as_ref())?;
        let file_bytes = layout.file_bytes();
        let sidecar = match &provenance {
            Some(provenance) if request.sidecar => Some(sidecar(&request.sidecar_path(), request.force, provenance)?),
            _ => None,
        };
        let mut writer = layout.create(&request.output, request.force)?;
        let inputs: Vec<StateDict<'_>> =
            std::iter::once(&self.target).chain(&self.aux).map(|side| side.tensors.clone()).collect();
        let run = engine::run(&self.plan, &inputs, writer.sink(), request.allow_non_finite, progress)?;
        writer.publish()?;
        if let Some(sidecar) = sidecar {
            sidecar.publish()?;
        }
        Ok(FoldReport { run, file_bytes, elapsed: started.elapsed() })
    }
}

fn sidecar(path: &Path, force: bool, provenance: &Value) -> Result<ScratchFile> {
    let mut file = ScratchFile::create(path, force)?;
    file.write(format!("{provenance:#}\n").as_bytes())?;
    // On the disk before the output is published, so that a full disk leaves neither.
    file.complete()?;
    Ok(file)
}
