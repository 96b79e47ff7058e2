//! What to convert, into what, and where to.

use std::path::PathBuf;
use std::sync::Arc;

use regex::Regex;

use super::ConvertInputs;
use crate::checkpoint::{Checkpoint, RootChoice};
use crate::engine::RunOptions;
use crate::error::{Error, OutputProblem, Result};
use crate::model::{Activation, Known, Pool};
use crate::naming::Family;
use crate::remodel::{Channels, Collapse, Inflate};
use crate::tensor::DType;
use crate::write::Format;

/// The names that the output's tensors have.
#[derive(Clone, Debug)]
pub enum Names {
    /// Those of the input.
    Keep,
    /// timm's.
    Timm,
    /// Those of a family.
    Family(Arc<Family>),
}

/// What becomes of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It stays.
    Keep,
    /// It is left out: the model gives features.
    Drop,
    /// Weights and biases of zero, of as many classes as asked for or as it has.
    Zero,
}

/// Changes of names, in the order in which they are made.
#[derive(Clone, Debug, Default)]
pub struct Renames {
    /// Only tensors whose name in the input one of these matches are taken, if there are any.
    pub keep: Vec<Regex>,
    /// Tensors whose name in the input one of these matches are left out.
    pub drop: Vec<Regex>,
    /// Is taken from the beginning of names, before the family is looked for; names without it are left out.
    pub strip_prefix: Option<String>,
    /// Then, after the family's mapping: every match of the expression is replaced (`$1` stands for its first group).
    pub rename: Vec<(Regex, String)>,
    /// Is put before every name at last.
    pub add_prefix: Option<String>,
}

/// What to convert, into what, and where to.
///
/// ```no_run
/// use m2pt_surgery::convert::{ConvertRequest, Names};
///
/// # fn main() -> m2pt_surgery::Result<()> {
/// let mut request = ConvertRequest::new("pytorch_model.bin", "vit.safetensors")?;
/// request.names = Names::Timm;
/// let inputs = request.open()?;
/// let conversion = inputs.plan()?;
/// println!("{} tensors, {} bytes", conversion.tensors().len(), conversion.file_bytes());
/// conversion.run(&mut ())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ConvertRequest {
    /// The checkpoint that is converted.
    pub input: PathBuf,
    /// Which part of it holds the model.
    pub root: RootChoice,
    /// The family whose names it has; recognised if `None`.
    pub family: Option<Arc<Family>>,
    /// The names of the output.
    pub names: Names,
    /// Changes of names.
    pub renames: Renames,
    /// The architecture in timm that the output is for; told from the weights if `None`.
    pub arch: Option<Known>,
    /// A checkpoint that gives what the architecture needs and the input lacks.
    pub fill_from: Option<PathBuf>,
    /// Height and width of the images that position embeddings are resampled for.
    pub image: Option<(usize, usize)>,
    /// Height and width of the patches that the patch embedding is resampled to.
    pub patch: Option<(usize, usize)>,
    /// Rows and columns of the input's position embedding, if it is not square.
    pub grid: Option<(usize, usize)>,
    /// Whether positions are cut and interpolated as AST's are, and not resampled as timm does.
    pub ast_positions: bool,
    /// How frames become one, where patches reach over several.
    pub tubelet: Option<Collapse>,
    /// Over how many frames the patches of the output reach, and how the weight is spread over them.
    pub inflate: Option<(usize, Inflate)>,
    /// Input channels of the output, and how they are made.
    pub channels: Option<(usize, Channels)>,
    /// Classes of the output, if not those of the input.
    pub classes: Option<usize>,
    /// What becomes of the head.
    pub head: Head,
    /// Pooling of the output, which decides whether its last norm is called `norm` or `fc_norm`.
    pub pool: Option<Pool>,
    /// Attention heads, which the weights do not tell.
    pub heads: Option<usize>,
    /// The function in the MLPs, which the weights do not tell.
    pub activation: Option<Activation>,
    /// Types to cast to, the last that matches a name counts; without an expression it is for all.
    pub dtypes: Vec<(Option<Regex>, DType)>,
    /// How it is run: on how many threads, how fast, and whether NaN and infinity are allowed.
    pub run: RunOptions,
    /// Whether what the input holds besides tensors is kept, as JSON in the header of a safetensors file.
    pub keep_values: bool,
    /// The file to write, or with [`ConvertRequest::max_shard_bytes`] or [`ConvertRequest::timm_dir`] the folder.
    pub output: PathBuf,
    /// Its format.
    pub format: Format,
    /// The most bytes of tensors in one file, as far as tensors fit.
    pub max_shard_bytes: Option<u64>,
    /// The keys that tensors go under in a .pth file, joined by dots.
    pub wrap: Option<String>,
    /// Whether the output is a folder that timm opens by itself: `model.safetensors` and `config.json`.
    pub timm_dir: bool,
    /// The names of the classes, for the `config.json` of such a folder.
    pub labels: Option<Vec<String>>,
    /// Whether provenance goes into the header of a safetensors file.
    pub metadata: bool,
    /// Whether files that are there already are replaced.
    pub force: bool,
}

impl ConvertRequest {
    /// A conversion that changes the container and nothing else; the extension of `output` tells its format.
    ///
    /// # Errors
    /// [`Error::Output`] if the extension of `output` tells no format.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Result<ConvertRequest> {
        let output = output.into();
        match Format::from_extension(&output) {
            Some(format) => Ok(ConvertRequest::with_format(input, output, format)),
            None if output.is_dir() => Err(Error::Output { path: output, problem: OutputProblem::NotAFile }),
            None => Err(Error::Output { path: output, problem: OutputProblem::UnknownFormat }),
        }
    }

    /// The same, in that format.
    #[must_use]
    pub fn with_format(input: impl Into<PathBuf>, output: impl Into<PathBuf>, format: Format) -> ConvertRequest {
        ConvertRequest {
            input: input.into(),
            root: RootChoice::Auto,
            family: None,
            names: Names::Keep,
            renames: Renames::default(),
            arch: None,
            fill_from: None,
            image: None,
            patch: None,
            grid: None,
            ast_positions: false,
            tubelet: None,
            inflate: None,
            channels: None,
            classes: None,
            head: Head::Keep,
            pool: None,
            heads: None,
            activation: None,
            dtypes: Vec::new(),
            run: RunOptions::default(),
            keep_values: false,
            output: output.into(),
            format,
            max_shard_bytes: None,
            wrap: None,
            timm_dir: false,
            labels: None,
            metadata: true,
            force: false,
        }
    }

    /// Opens the input and the donor.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(self) -> Result<ConvertInputs> {
        let input = Checkpoint::open(&self.input)?;
        let donor = self.fill_from.as_ref().map(Checkpoint::open).transpose()?;
        Ok(ConvertInputs { request: self, input, donor })
    }
}
