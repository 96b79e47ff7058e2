//! What to fold, how, and where to.

use std::path::PathBuf;

use super::{FoldInputs, Part};
use crate::checkpoint::{Checkpoint, RootChoice};
use crate::engine::RunOptions;
use crate::error::{Error, OutputProblem, Result};
use crate::naming::{LayerKind, Selector};
use crate::plan::{BiasMode, BlockSet, DepthMismatch, LambdaSpec};
use crate::tensor::DType;
use crate::write::{Destination, Format};

/// An auxiliary checkpoint of a fold.
#[derive(Clone, Debug)]
pub struct AuxRequest {
    /// The file.
    pub path: PathBuf,
    /// Its own lambda, in place of [`FoldRequest::lambda`].
    pub lambda: Option<LambdaSpec>,
}

/// What to fold, how, and where to.
///
/// ```no_run
/// use m2pt_surgery::{FoldRequest, LambdaSpec};
///
/// # fn main() -> m2pt_surgery::Result<()> {
/// let mut request = FoldRequest::new("image.pth", "merged.pth")?;
/// request.add_aux("audio.pth");
/// request.lambda = Some(LambdaSpec::parse("0.1")?);
/// let inputs = request.open()?;
/// let fold = inputs.plan()?;
/// println!("{} parameters, {} bytes", fold.plan().folded.len(), fold.file_bytes());
/// let report = fold.run(&mut ())?;
/// println!("{:?}", report.elapsed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct FoldRequest {
    /// The checkpoint that is improved.
    pub target: PathBuf,
    /// The auxiliaries, folded from left to right.
    pub aux: Vec<AuxRequest>,
    /// A file whose tensors take the place of the target's of the same names, before anything is folded: a head or norms that were
    /// trained with the lambdas. A linear layer among them is folded as if the target had it so.
    pub replace: Option<PathBuf>,
    /// Which part of the target holds the model.
    pub target_root: RootChoice,
    /// Which part of every auxiliary holds the model.
    pub aux_root: RootChoice,
    /// Which part of the file at [`FoldRequest::replace`] holds the tensors.
    pub replace_root: RootChoice,
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
    /// How it is run: on how many threads, how fast, and whether NaN and infinity are allowed.
    pub run: RunOptions,
    /// The file to write; with `shard_bytes`, where shards go.
    pub output: PathBuf,
    /// Its format.
    pub format: Format,
    /// The most bytes of tensors in one file, as `max_shard_size` of the Hugging Face libraries: if not all fits into one
    /// file, it is split into shards with an index. `output` is then the folder (it is made if need be), where the files
    /// have the names that transformers gives them, `model*.safetensors` or `pytorch_model*.bin`; or, if it has the
    /// extension of a format and is no folder, the name that theirs are made of: `a.safetensors`,
    /// `a-00001-of-00002.safetensors` and `a.safetensors.index.json`.
    pub shard_bytes: Option<u64>,
    /// Which of the shards are written now, one by one, as far as they are not there; all, to appear together, if `None`.
    pub part: Option<Part>,
    /// The key that the tensors go under in a .pth file, such as `model` for `{'model': {...}}`; several, outermost first,
    /// joined by dots; empty for none.
    pub wrap: String,
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
            replace: None,
            target_root: RootChoice::Auto,
            aux_root: RootChoice::Auto,
            replace_root: RootChoice::Auto,
            target_pattern: None,
            aux_pattern: None,
            lambda: None,
            kinds: None,
            blocks: None,
            bias: BiasMode::Keep,
            depth_mismatch: DepthMismatch::Error,
            dtype: None,
            run: RunOptions::default(),
            output: output.into(),
            format,
            shard_bytes: None,
            part: None,
            wrap: String::new(),
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

    /// Where the output goes, and how.
    pub(super) fn destination(&self) -> Destination {
        Destination {
            path: self.output.clone(),
            format: self.format,
            replace: self.force,
            sync: !self.run.no_sync,
            shard_bytes: self.shard_bytes,
            root: self.wrap.clone(),
        }
    }

    /// The file beside the output that provenance goes into: the output's name with `.json` appended, and for shards that of
    /// the file that they would be if they were one.
    #[must_use]
    pub fn sidecar_path(&self) -> PathBuf {
        let mut name = self.destination().main_file().into_os_string();
        name.push(".json");
        name.into()
    }

    /// Opens the target, the auxiliaries, and the file whose tensors replace some of the target's.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(self) -> Result<FoldInputs> {
        let target = Checkpoint::open(&self.target)?;
        let aux = self.aux.iter().map(|aux| Checkpoint::open(&aux.path)).collect::<Result<_>>()?;
        let replacing = self.replace.as_ref().map(Checkpoint::open).transpose()?;
        Ok(FoldInputs { request: self, target, aux, replacing })
    }
}
