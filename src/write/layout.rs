//! Layouts: what each file of an output will hold, every offset known.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::Destination;
use super::Format;
use super::pth::PthLayout;
use super::safetensors::SafetensorsLayout;
use super::shards;
use super::writer::Writer;
use crate::container::MAX_FILES;
use crate::error::Result;
use crate::plan::Plan;
use crate::tensor::DType;

/// Why a plan cannot be written as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutProblem {
    /// safetensors has no such type.
    #[error("safetensors has no type for {tensor}, which is {dtype}; write a .pth file instead")]
    Type {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// The name is reserved in safetensors.
    #[error("safetensors keeps the name \"__metadata__\" for itself; write a .pth file instead")]
    ReservedName,
    /// Nothing in safetensors can be nested.
    #[error(
        "a .safetensors file has no place for the key {key:?} above its tensors; write a .pth file, or leave out --wrap"
    )]
    Nested {
        /// The dotted path of keys.
        key: String,
    },
    /// Shards are flat: their index names tensors, and no path to them.
    #[error("shards have no place for the key {key:?} above their tensors; leave out --max-shard-size or --wrap")]
    NestedShards {
        /// The dotted path of keys.
        key: String,
    },
    /// One of the keys is empty.
    #[error("{key:?} is no key to put tensors under; write one like model, or several like state.model")]
    Key {
        /// The dotted path of keys.
        key: String,
    },
    /// More shards than are read again.
    #[error(
        "it would take {shards} shards, past the limit of {MAX_FILES} for one checkpoint; give a larger --max-shard-size"
    )]
    TooManyShards {
        /// How many.
        shards: usize,
    },
}

/// The layout of one file.
#[derive(Clone, Debug)]
pub(super) enum FileLayout {
    Pth(PthLayout),
    Safetensors(SafetensorsLayout),
}

impl FileLayout {
    fn new(format: Format, plan: &Plan, metadata: &[(String, String)], root: &[&str]) -> Result<Self, LayoutProblem> {
        match format {
            Format::Pth => Ok(FileLayout::Pth(PthLayout::new(plan, root))),
            Format::Safetensors => SafetensorsLayout::new(plan, metadata).map(FileLayout::Safetensors),
        }
    }

    /// The size of the file.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            FileLayout::Pth(layout) => layout.file_bytes(),
            FileLayout::Safetensors(layout) => layout.file_bytes(),
        }
    }

    fn order(&self) -> &[usize] {
        match self {
            FileLayout::Pth(layout) => layout.order(),
            FileLayout::Safetensors(layout) => layout.order(),
        }
    }

    /// All that comes before the data of the first step.
    pub(super) fn front(&self) -> Cow<'_, [u8]> {
        match self {
            FileLayout::Pth(layout) => layout.front().into(),
            FileLayout::Safetensors(layout) => layout.front().into(),
        }
    }

    /// Where the data of the step at that place of the file's order begins.
    pub(super) fn begin(&self, place: usize) -> u64 {
        match self {
            FileLayout::Pth(layout) => layout.begin(place),
            FileLayout::Safetensors(layout) => layout.begin(place),
        }
    }

    /// Whether the file holds checksums of the steps' data.
    pub(super) fn has_checksums(&self) -> bool {
        matches!(self, FileLayout::Pth(_))
    }

    /// What stands between the data of the step at that place, which has this checksum, and the data that follows.
    pub(super) fn tail(&self, place: usize, crc: u32) -> Vec<u8> {
        match self {
            FileLayout::Pth(layout) => layout.tail(place, crc),
            FileLayout::Safetensors(_) => Vec::new(),
        }
    }

    /// All that follows the last of these, and where it begins; `crcs` are the checksums of the steps, in the file's order.
    pub(super) fn end(&self, crcs: &[u32]) -> (u64, Vec<u8>) {
        match self {
            FileLayout::Pth(layout) => layout.end(crcs),
            FileLayout::Safetensors(layout) => (layout.file_bytes(), Vec::new()),
        }
    }
}

/// A file of an output to be.
#[derive(Clone, Debug)]
pub(super) struct FileToBe {
    pub(super) path: PathBuf,
    pub(super) layout: FileLayout,
    /// The steps of the plan that it holds, in the order in which they lie in it.
    pub(super) steps: Vec<usize>,
}

/// The layout of an output: one file, or shards and their index.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(super) destination: Destination,
    pub(super) files: Vec<FileToBe>,
    /// The index of the shards, with its content.
    pub(super) index: Option<(PathBuf, Vec<u8>)>,
}

impl Layout {
    /// Lays out what `plan` will write; `metadata` goes into the header of every safetensors file, .pth has no place for it.
    ///
    /// # Errors
    /// [`LayoutProblem`] if the format cannot hold the plan so.
    pub(crate) fn new(
        destination: Destination,
        plan: &Plan,
        metadata: &[(String, String)],
    ) -> Result<Layout, LayoutProblem> {
        let root = root(&destination)?;
        let format = destination.format;
        let shards = destination.shard_bytes.map(|most| shards::split(plan, most)).unwrap_or_default();
        if shards.len() > MAX_FILES {
            return Err(LayoutProblem::TooManyShards { shards: shards.len() });
        }
        if shards.len() < 2 {
            let layout = FileLayout::new(format, plan, metadata, &root)?;
            let steps = layout.order().to_vec();
            let files = vec![FileToBe { path: destination.main_file(), layout, steps }];
            return Ok(Layout { destination, files, index: None });
        }
        let mut files = Vec::with_capacity(shards.len());
        for (number, shard) in shards.iter().enumerate() {
            let layout = FileLayout::new(format, &shard.plan, metadata, &root)?;
            let steps = layout.order().iter().map(|&step| shard.steps[step]).collect();
            files.push(FileToBe { path: destination.shard(number + 1, shards.len()), layout, steps });
        }
        let name = |file: &FileToBe| file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = files.iter().map(name).collect();
        let index = Some((destination.index(), shards::index(&shards, &names)));
        Ok(Layout { destination, files, index })
    }

    /// The files that will be there, with their sizes in bytes, in the order in which they appear.
    pub(crate) fn files(&self) -> Vec<(PathBuf, u64)> {
        let index = self.index.iter().map(|(path, content)| (path.clone(), content.len() as u64));
        self.files.iter().map(|file| (file.path.clone(), file.layout.bytes())).chain(index).collect()
    }

    /// Checks that all files can be put where they should go; returns what the user should know of what is there.
    ///
    /// # Errors
    /// [`crate::Error::Output`] and [`crate::Error::Io`].
    pub(crate) fn check(&self) -> Result<Vec<String>> {
        let index = self.index.iter().map(|(path, _)| path.as_path());
        let paths: Vec<&Path> = self.files.iter().map(|file| file.path.as_path()).chain(index).collect();
        self.destination.check(&paths)
    }

    /// Starts the files.
    ///
    /// # Errors
    /// [`crate::Error::Output`] and [`crate::Error::Io`].
    pub(crate) fn create(self) -> Result<Writer> {
        Writer::new(self)
    }
}

/// The keys that the tensors go under, outermost first.
fn root(destination: &Destination) -> Result<Vec<&str>, LayoutProblem> {
    let key = || destination.root.clone();
    if destination.root.is_empty() {
        return Ok(Vec::new());
    }
    if destination.shard_bytes.is_some() {
        return Err(LayoutProblem::NestedShards { key: key() });
    }
    if destination.format == Format::Safetensors {
        return Err(LayoutProblem::Nested { key: key() });
    }
    let keys: Vec<&str> = destination.root.split('.').collect();
    if keys.len() > MAX_KEYS || keys.iter().any(|key| key.trim().is_empty()) {
        return Err(LayoutProblem::Key { key: key() });
    }
    Ok(keys)
}

/// Keys above the tensors, at most; nobody nests deeper, and readers limit it.
const MAX_KEYS: usize = 16;
