//! The containers: files that hold tensors. Each is recognised by its content, never by its name.
//!
//! A container yields an inert tree of values, the tensors in it, and where their bytes lie in the map of the file;
//! nothing of the data is read before it is asked for.

mod header;
mod map;
mod rebuild;
mod safetensors;
mod sniff;
mod torch_zip;
mod tree;
pub(crate) mod zip;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::Result;
use crate::tensor::{ByteOrder, DType};

pub use header::{MAX_METADATA_BYTES, MAX_METADATA_ENTRIES};
pub(crate) use map::Map;
pub use rebuild::RebuildProblem;
pub use safetensors::{MAX_HEADER_BYTES, SafetensorsProblem};
pub use tree::{MAX_ALL_NAMES_BYTES, MAX_DEPTH, MAX_NAME_BYTES, MAX_TENSORS, MAX_VISITS, TreeLimit};
pub(crate) use tree::{Object, Reached, Tree, Value, ValueId};
pub use zip::{MAX_DIRECTORY_BYTES, MAX_ENTRIES, ZipProblem};

/// The largest storage that is decompressed into memory, in bytes.
pub const MAX_INFLATED_BYTES: u64 = 8 << 30;

/// The kinds of file that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// The zip archive that `torch.save` has written since PyTorch 1.6.
    TorchZip,
    /// A safetensors file.
    Safetensors,
}

impl Container {
    /// The stable name used in JSON: `torch-zip`, `safetensors`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Container::TorchZip => "torch-zip",
            Container::Safetensors => "safetensors",
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::TorchZip => "PyTorch zip (torch.save since 1.6)",
            Container::Safetensors => "safetensors",
        })
    }
}

/// Where the bytes of a storage are.
#[derive(Clone, Debug)]
pub(crate) enum Extent {
    /// In the map, as they are.
    Mapped(Range<usize>),
    /// A compressed zip entry.
    Deflated(zip::Entry),
    /// Nowhere: the file lacks them.
    Missing,
}

/// A run of bytes that tensors are views of.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// What the container calls it, for messages.
    pub(crate) label: String,
    /// Bytes that the object tree says it has.
    pub(crate) declared: u64,
    /// Bytes that the container holds.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    /// The zip entry, for its checksum.
    pub(crate) entry: Option<zip::Entry>,
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

/// All that a container yields.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) container: Container,
    pub(crate) tree: Tree,
    pub(crate) tensors: Vec<StoredTensor>,
    pub(crate) storages: Vec<Storage>,
}

/// Recognises the container in `file` and reads its directory and object tree; `path` is for messages.
pub(crate) fn open(path: &Path, file: &[u8]) -> Result<Contents> {
    match sniff::container(path, file)? {
        Container::TorchZip => torch_zip::open(path, file),
        Container::Safetensors => safetensors::open(path, file),
    }
}
