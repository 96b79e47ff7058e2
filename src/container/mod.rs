//! The containers: files that hold tensors. Each is recognised by its content, never by its name.
//!
//! A container yields an inert tree of values, the tensors in it, and where their bytes lie in the map of the file;
//! nothing of the data is read before it is asked for.

mod archive;
mod dcp;
mod folder;
mod gather;
mod header;
mod index;
mod legacy;
mod map;
mod numpy;
mod other;
mod package;
mod pages;
mod part;
mod rebuild;
mod safetensors;
mod sharded;
mod shrunk;
mod sniff;
mod tar;
mod torchscript;
mod tree;
pub(crate) mod zip;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::pickle::{self, Budget, Full};
use crate::tensor::{ByteOrder, DType};

pub use dcp::DcpProblem;
pub use folder::FolderProblem;
pub use gather::MAX_FILES;
pub use header::{MAX_METADATA_BYTES, MAX_METADATA_ENTRIES};
pub use legacy::LegacyProblem;
pub(crate) use map::Map;
pub use numpy::{MAX_NPZ_HEADERS_BYTES, MAX_NUMPY_HEADER_BYTES, NumpyProblem};
pub use other::{OtherKind, OtherTensor};
pub(crate) use part::Part;
pub use rebuild::RebuildProblem;
pub use safetensors::{MAX_HEADER_BYTES, SafetensorsProblem};
pub use sharded::{MAX_INDEX_BYTES, ShardedProblem};
pub use shrunk::exit_on_shrunk_file;
pub(crate) use shrunk::{Watch, watch_scratch};
use sniff::Kind;
pub use tar::TarProblem;
pub use tree::{MAX_ALL_NAMES_BYTES, MAX_DEPTH, MAX_NAME_BYTES, MAX_TENSORS, MAX_VISITS, TreeLimit};
pub(crate) use tree::{Module, Object, Reached, Tree, Value, ValueId};
pub use zip::{MAX_DIRECTORY_BYTES, MAX_ENTRIES, ZipProblem};

/// The largest storage that is decompressed into memory, or put together there from parts, in bytes.
pub const MAX_INFLATED_BYTES: u64 = 8 << 30;

/// The kinds of file that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// The zip archive that `torch.save` has written since PyTorch 1.6.
    TorchZip,
    /// The stream of pickles that `torch.save` wrote from PyTorch 0.1.10 to 1.5, and still writes when it is asked to.
    TorchLegacy,
    /// The tar archive that `torch.save` wrote before PyTorch 0.1.10.
    TorchTar,
    /// The archive of `torch.jit.save`.
    TorchScript,
    /// The archive of `torch.package`.
    TorchPackage,
    /// A safetensors file.
    Safetensors,
    /// One NumPy array (`numpy.save`).
    Npy,
    /// A zip archive of NumPy arrays (`numpy.savez`).
    Npz,
    /// Several files, and an index that tells which tensor is in which, as the Hugging Face libraries write them.
    Sharded,
    /// A folder of `torch.distributed.checkpoint`.
    Dcp,
}

impl Container {
    /// The stable name used in JSON: `torch-zip`, `torch-legacy`, `torch-tar`, `torchscript`, `torch-package`,
    /// `safetensors`, `npy`, `npz`, `sharded`, `torch-distributed`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Container::TorchZip => "torch-zip",
            Container::TorchLegacy => "torch-legacy",
            Container::TorchTar => "torch-tar",
            Container::TorchScript => "torchscript",
            Container::TorchPackage => "torch-package",
            Container::Safetensors => "safetensors",
            Container::Npy => "npy",
            Container::Npz => "npz",
            Container::Sharded => "sharded",
            Container::Dcp => "torch-distributed",
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::TorchZip => "PyTorch zip (torch.save since 1.6)",
            Container::TorchLegacy => "PyTorch legacy stream (torch.save 0.1.10 to 1.5)",
            Container::TorchTar => "PyTorch tar (torch.save before 0.1.10)",
            Container::TorchScript => "TorchScript (torch.jit.save)",
            Container::TorchPackage => "torch.package",
            Container::Safetensors => "safetensors",
            Container::Npy => "NumPy array (numpy.save)",
            Container::Npz => "NumPy archive (numpy.savez)",
            Container::Sharded => "sharded (Hugging Face)",
            Container::Dcp => "distributed (torch.distributed.checkpoint)",
        })
    }
}

/// A file that holds some of the contents, mapped.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) map: Map,
}

impl Source {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// As [`Map::open`].
    fn open(path: &Path) -> Result<Source> {
        Ok(Source { path: path.to_owned(), map: Map::open(path)? })
    }
}

/// Where the bytes of a storage are.
#[derive(Clone, Debug)]
pub(crate) enum Extent {
    /// In the map of a source, as they are.
    Mapped(Range<usize>),
    /// A zip entry of a source, stored or compressed, without its first `skip` bytes.
    Member { entry: zip::Entry, skip: usize },
    /// In several other tensors, to be put together.
    Assembled(Assembly),
    /// Nowhere: the file lacks them.
    Missing,
}

/// A tensor that is stored in parts, which fill it exactly; put together, it is contiguous and little-endian.
#[derive(Clone, Debug)]
pub(crate) struct Assembly {
    pub(crate) shape: Vec<usize>,
    pub(crate) chunks: Vec<Chunk>,
}

/// A part of a tensor, of the same type.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// The number of the dense tensor that it is; none that the tree leads to.
    pub(crate) tensor: usize,
    /// Where its first element is in the whole.
    pub(crate) at: Vec<usize>,
}

/// A run of bytes that tensors are views of.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// What the container calls it, for messages.
    pub(crate) label: Arc<str>,
    /// The file it is in, by its place among the sources.
    pub(crate) source: usize,
    /// Bytes that the object tree says it has.
    pub(crate) declared: u64,
    /// Bytes that the container holds.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    pub(crate) order: ByteOrder,
}

/// A tensor as stored: a view of a storage. Strides and offset count elements.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
    pub(crate) storage: usize,
}

/// What stands where a tensor is expected.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// Elements in a storage.
    Dense(StoredTensor),
    /// A tensor that is no plain array of elements, or whose elements are not in the file.
    Other(OtherTensor),
}

/// All that a container yields.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) container: Container,
    pub(crate) sources: Vec<Source>,
    pub(crate) tree: Tree,
    pub(crate) tensors: Vec<Stored>,
    pub(crate) storages: Vec<Storage>,
    /// Memory that all of it takes.
    pub(crate) budget: Budget,
}

impl Contents {
    /// What messages call a storage: where there are several files, with the name of the one that it is in.
    pub(crate) fn label(&self, storage: &Storage) -> String {
        match self.sources.as_slice() {
            [_] => storage.label.to_string(),
            sources => {
                let name = sources[storage.source].path.file_name().unwrap_or_default();
                format!("{}: {}", name.to_string_lossy(), storage.label)
            }
        }
    }
}

/// Recognises the container at `path`, a file or a folder, and reads its directory and object tree.
pub(crate) fn open(path: &Path) -> Result<Contents> {
    if path.is_dir() { folder::open(path) } else { of_source(Source::open(path)?) }
}

/// As [`open`], of a file that is in memory; `path` is for messages.
pub(crate) fn of_bytes(path: &Path, bytes: Vec<u8>) -> Result<Contents> {
    of_part(Source { path: path.to_owned(), map: Map::Memory(bytes) })
}

fn of_source(source: Source) -> Result<Contents> {
    if sharded::is_index(&source.map) { sharded::open(source) } else { of_part(source) }
}

/// Reads a file that has to be a checkpoint by itself.
fn of_part(source: Source) -> Result<Contents> {
    let mut budget = Budget::default();
    let Part { container, tree, tensors, storages } = part(&source.path, &source.map, &mut budget)?;
    Ok(Contents { container, sources: vec![source], tree, tensors, storages, budget })
}

/// Reads the directory and object tree of one file; `path` is for messages. What is kept stays taken from `budget`.
pub(crate) fn part(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    match sniff::container(path, file)? {
        Kind::Zip => archive::open(path, file, budget),
        Kind::Legacy => legacy::open(path, file, budget),
        Kind::Tar => tar::open(path, file, budget),
        Kind::Safetensors => safetensors::open(path, file, budget),
        Kind::Numpy => numpy::open(path, file, budget),
    }
}

/// What is said of a file for which there is not enough memory.
fn too_large(path: &Path) -> impl Fn(Full) -> Error {
    let limit = TreeLimit { what: "bytes of memory", limit: pickle::MAX_VALUE_BYTES };
    move |Full| Error::Tree { path: path.to_owned(), limit }
}
