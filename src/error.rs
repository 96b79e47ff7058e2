//! What can go wrong, with where: file, tensor, byte offset, and the way out.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

use crate::checkpoint::{RootProblem, TensorProblem};
use crate::container::{
    DcpProblem, FolderProblem, LegacyProblem, NumpyProblem, RebuildProblem, SafetensorsProblem, ShardedProblem,
    TarProblem, TreeLimit, ZipProblem,
};
use crate::naming::MatchProblem;
use crate::pickle;
use crate::plan::{FoldProblem, LambdaProblem};
use crate::tensor::DType;
use crate::write::{LayoutProblem, PartsProblem};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `open`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// There is no room for the output.
    #[error("there is no room for {}, {bytes} bytes; make room, or choose another place", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// An input was made shorter after it was opened.
    #[error("{}", shorter(path.display()))]
    Shorter {
        /// The file.
        path: PathBuf,
    },
    /// An input was changed after it was opened.
    #[error("{} was changed while it was read; wait until whatever writes it is done, and try again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The path is a folder, and none that is a checkpoint.
    #[error("{} is a folder {problem}", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: FolderProblem,
    },
    /// The path is a device, socket or pipe.
    #[error("{} is no regular file, and cannot be mapped; copy it to a file first", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is empty.
    #[error("{} is empty: the copy or download that made it failed; get it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is {found}; {advice}", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
        /// What to do.
        advice: String,
    },
    /// A zip archive is damaged.
    #[error("{}: {problem}", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: ZipProblem,
    },
    /// A legacy stream is damaged.
    #[error("{}: {problem}", path.display())]
    Legacy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: LegacyProblem,
    },
    /// A tar archive is damaged.
    #[error("{}: {problem}", path.display())]
    Tar {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: TarProblem,
    },
    /// A safetensors file is damaged.
    #[error("{}: {problem}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: SafetensorsProblem,
    },
    /// An array in NumPy's format is damaged.
    #[error("{}: {}{problem}", path.display(), Member(member))]
    Numpy {
        /// The file.
        path: PathBuf,
        /// The member of an `.npz` archive; empty for an `.npy` file.
        member: String,
        /// What is wrong.
        problem: NumpyProblem,
    },
    /// A sharded checkpoint is damaged or not all there.
    #[error("{}: {problem}", path.display())]
    Sharded {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        problem: ShardedProblem,
    },
    /// A distributed checkpoint is damaged or not all there.
    #[error("{}: {problem}", path.display())]
    Dcp {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        problem: DcpProblem,
    },
    /// What a distributed checkpoint stores in one place is no PyTorch object.
    #[error("{}: {item:?}, stored from byte {offset} on, cannot be read", path.display())]
    DcpItem {
        /// The file.
        path: PathBuf,
        /// The tensor or object.
        item: String,
        /// Where it begins.
        offset: u64,
        /// What is wrong with it; its offsets count from there.
        source: Box<Error>,
    },
    /// A pickle is malformed.
    #[error("{}: {entry} cannot be read", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The entry that holds the pickle.
        entry: String,
        /// What is wrong, and where.
        source: pickle::Error,
    },
    /// A pickle is well-formed, but not what PyTorch writes.
    #[error("{}: {entry}, byte {offset} of the pickle: {problem}", path.display())]
    Rebuild {
        /// The file.
        path: PathBuf,
        /// The entry that holds the pickle.
        entry: String,
        /// The byte offset in the pickle of the value at fault.
        offset: u64,
        /// What is wrong.
        problem: RebuildProblem,
    },
    /// The object tree is larger than any honest one.
    #[error("{}: {limit}; no checkpoint that PyTorch writes comes near it", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: TreeLimit,
    },
    /// A tensor cannot be read.
    #[error("{}: tensor {tensor:?}: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        problem: TensorProblem,
    },
    /// No root can be taken.
    #[error("{}: {}", path.display(), problem.with(option))]
    Root {
        /// The file.
        path: PathBuf,
        /// What chooses the root of this file: `--root`, but for files that are not the first.
        option: &'static str,
        /// What is wrong.
        problem: RootProblem,
    },
    /// A checkpoint cannot be converted as asked for.
    #[cfg(feature = "verify")]
    #[error("{}: {problem}", path.display())]
    Convert {
        /// The file.
        path: PathBuf,
        /// What stands in the way.
        problem: Box<crate::convert::ConvertProblem>,
    },
    /// The linear layers cannot be found.
    #[error("{}: {problem}", path.display())]
    Match {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: MatchProblem,
    },
    /// A learned lambda cannot be used.
    #[error("{}: {tensor:?} should be a learned lambda, one finite number, but it {what}; train it again, or take it out in PyTorch", path.display())]
    Scale {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is instead.
        what: String,
    },
    /// A text is no lambda.
    #[error("{0}")]
    Lambda(LambdaProblem),
    /// A lambda file cannot be used.
    #[error("{}: {problem}", path.display())]
    LambdaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: LambdaProblem,
    },
    /// A fold cannot be planned.
    #[error("{0}")]
    Fold(Box<FoldProblem>),
    /// The output format cannot hold the result.
    #[error("{}: {problem}", path.display())]
    Layout {
        /// The output.
        path: PathBuf,
        /// What is wrong.
        problem: LayoutProblem,
    },
    /// The output cannot be put there.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// What is wrong.
        problem: OutputProblem,
    },
    /// The output cannot be written in parts, or its parts not be joined.
    #[error("{}: {problem}", path.display())]
    Parts {
        /// The output, a file of it, or its plan.
        path: PathBuf,
        /// What is wrong.
        problem: Box<PartsProblem>,
    },
    /// The output was published, but its sidecar was not.
    #[error("{} was written, but the report on it was not", output.display())]
    Sidecar {
        /// The output.
        output: PathBuf,
        /// What went wrong with the sidecar.
        source: Box<Error>,
    },
    /// Files could not be published together, and one that was to be replaced could not be put back.
    #[error(
        "{} could not be put back after an error: if there is a file {}, that is it, and has to be renamed, as all others of \
         this output that end in .old", path.display(), aside.display()
    )]
    NotRestored {
        /// The name that it had.
        path: PathBuf,
        /// The name that it has.
        aside: PathBuf,
        /// What went wrong before.
        source: Box<Error>,
    },
    /// A result holds NaN or infinity.
    #[error("{tensor:?} would hold NaN or infinity: {origin}; --allow-non-finite lets it pass")]
    NonFinite {
        /// The output tensor.
        tensor: String,
        /// Where it comes from.
        origin: NonFiniteOrigin,
    },
    /// The user stopped it.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// The message about an input that was made shorter.
pub(crate) fn shorter(path: impl Display) -> String {
    format!("{path} was made shorter while it was read; wait until whatever writes it is done, and try again")
}

/// Where a NaN or infinity comes from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NonFiniteOrigin {
    /// An input holds it.
    #[error("{tensor:?} of {} holds some", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// All inputs are finite, but the result is too large for its type.
    #[error("all inputs are finite, but the result is too large for {dtype}")]
    Overflow {
        /// The output's type.
        dtype: DType,
    },
}

/// Why an output cannot be put somewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutputProblem {
    /// There is a file of that name.
    #[error("it exists already; --force replaces it")]
    Exists,
    /// The path ends in no file name.
    #[error("it is no name for a file")]
    NoName,
    /// The folder does not exist.
    #[error("the folder {} does not exist; create it first", folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// What should be the folder is something else.
    #[error("{} is no folder", folder.display())]
    NotAFolder {
        /// The path of the supposed folder.
        folder: PathBuf,
    },
    /// There is a folder or device of that name.
    #[error("it is a folder or device; give the name of a file")]
    NotAFile,
    /// There is a symbolic link of that name that leads nowhere.
    #[error("it is a link that leads nowhere; remove it first")]
    BrokenLink,
    /// What is written to that folder would not be taken from it.
    #[error(
        "whoever loads the folder takes this file in place of {instead}; remove it, or --force writes all the same"
    )]
    TakenFirst {
        /// The name of what would be written.
        instead: String,
    },
    /// The extension tells no format.
    #[error("its extension tells no format; name it .pth or .safetensors, or give --format")]
    UnknownFormat,
}

/// The member of an archive before what is wrong with it, if there is one.
struct Member<'m>(&'m str);

impl fmt::Display for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{:?}: ", self.0) }
    }
}

impl Error {
    /// The same, where another option chooses the root.
    pub(crate) fn root_chosen_by(mut self, by: &'static str) -> Error {
        if let Error::Root { option, .. } = &mut self {
            *option = by;
        }
        self
    }
}

impl From<LambdaProblem> for Error {
    fn from(problem: LambdaProblem) -> Error {
        Error::Lambda(problem)
    }
}
