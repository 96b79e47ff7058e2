//! Distributed checkpoints of `torch.distributed.checkpoint`: a folder with `.metadata`, a pickle that tells what there is
//! and where, and files (`__0_0.distcp`, ...) that hold each tensor, part of a tensor or object as `torch.save` writes it.
//!
//! Follows `torch/distributed/checkpoint/{metadata,filesystem,default_planner}.py`. Tensors that are in several parts are put
//! together when they are read; when the folder is opened, it is checked that the parts fill each tensor exactly. What
//! `.metadata` has a place for but does not name is not there, as in PyTorch.

mod metadata;
mod nest;
mod tiling;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use self::metadata::{Item, Kind, Metadata, Part, Place, Region};
use self::nest::Nest;
use super::gather::{Gather, MAX_FILES, inside};
use super::{
    Assembly, Chunk, Container, Contents, Extent, Source, Storage, Stored, StoredTensor, Value, ValueId, part,
    too_large,
};
use crate::error::{Error, Result};
use crate::pickle::{self, allocated};
use crate::tensor::{ByteOrder, contiguous_strides};

/// The name of the file that tells what there is.
pub(super) const METADATA: &str = ".metadata";

/// Why a distributed checkpoint cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DcpProblem {
    /// The metadata is not what PyTorch writes.
    #[error("byte {offset} of .metadata: {what}; get it again, or save the checkpoint with a current PyTorch")]
    Metadata {
        /// The offset of the value at fault.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The metadata does not tell where something is.
    #[error(
        "{item:?} is listed in .metadata, but not where it is: the checkpoint was not saved to its end; get it again"
    )]
    NoPlace {
        /// The tensor or object.
        item: String,
    },
    /// More files than this reader opens.
    #[error("it is spread over more than {MAX_FILES} files, the limit of this reader; save it with fewer")]
    TooMany,
    /// The name of a file leads out of the folder.
    #[error("{item:?} is said to be in {file:?}, which is outside of the folder: get .metadata again")]
    Name {
        /// The tensor or object.
        item: String,
        /// The file.
        file: String,
    },
    /// A file is not in the folder.
    #[error(
        "the file {file:?}, which holds {item:?} (and more, maybe), is missing: get it, and put it beside .metadata"
    )]
    Missing {
        /// The tensor or object that needs it first.
        item: String,
        /// The file.
        file: String,
    },
    /// Something reaches past the end of its file.
    #[error(
        "{item:?} is said to take {length} bytes from byte {offset} on of {file:?}, which has {size}: the file was cut off, or is of another checkpoint; get it again"
    )]
    OutOfFile {
        /// The tensor or object.
        item: String,
        /// The file.
        file: String,
        /// Where it is said to begin.
        offset: u64,
        /// How long it is said to be.
        length: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Two things share bytes.
    #[error("{first:?} and {second:?} overlap in their file: get .metadata again")]
    Overlap {
        /// What begins first.
        first: String,
        /// What begins inside of it.
        second: String,
    },
    /// Something was transformed on its way to the file.
    #[error(
        "{item:?} is stored by way of {transforms:?}, which is not read here: load the checkpoint in PyTorch, and save it without"
    )]
    Transformed {
        /// The tensor or object.
        item: String,
        /// What was done with it: `stream.zstd/1`, for one.
        transforms: Vec<String>,
    },
    /// What is stored is not the tensor that the metadata speaks of.
    #[error(
        "tensor {tensor:?}: {found} is stored where .metadata says {expected}: files and .metadata are not of one checkpoint; get all of them again"
    )]
    Mismatch {
        /// The tensor.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A part of a tensor is no plain array.
    #[error(
        "tensor {tensor:?} is in several parts, and that at {at:?} is no plain array: load the checkpoint in PyTorch, and save it with torch.save"
    )]
    NotDense {
        /// The tensor.
        tensor: String,
        /// Where in the tensor the part is.
        at: Vec<usize>,
    },
    /// The parts of a tensor do not fill it exactly.
    #[error("tensor {tensor:?} of shape {shape:?}: {what}: get .metadata again, or save the checkpoint again")]
    Parts {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is wrong.
        what: &'static str,
    },
    /// A tensor in several parts is larger than this reader puts together.
    #[error(
        "tensor {tensor:?} is in several parts and takes {bytes} bytes, past the limit of {limit}: load the checkpoint in PyTorch, and save it with torch.save"
    )]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Two things have the same place in the nested object, or one is in the place of the mapping around another.
    #[error("{item:?} has a place in the saved object that is taken: get .metadata again")]
    Taken {
        /// The tensor or object.
        item: String,
    },
}

/// Opens the distributed checkpoint in the folder `path`.
pub(super) fn open(path: &Path) -> Result<Contents> {
    let mut gather = Gather::new(Container::Dcp, Source::open(&path.join(METADATA))?);
    let Gather { sources, budget, .. } = &mut gather;
    let parsed = pickle::parse_within(&sources[0].map, budget).map_err(|problem| Error::Pickle {
        path: sources[0].path.clone(),
        entry: "its pickle".into(),
        source: problem,
    })?;
    let error = |problem| Error::Dcp { path: path.to_owned(), problem };
    let Metadata { items, places, mut paths } = metadata::read(&parsed, budget).map_err(error)?;
    budget.give_back(parsed.memory());
    drop(parsed);
    check_overlaps(&places).map_err(error)?;
    let mut reader = Reader { folder: path, gather, places, files: HashMap::new(), comparisons: 0 };
    let mut nest = Nest::default();
    for item in items {
        let path = paths.remove(&item.name);
        let value = reader.item(&item)?;
        let budget = &mut reader.gather.budget;
        if !nest.insert(path.as_deref(), &item.name, value, budget).map_err(too_large(reader.folder))? {
            return Err(error(DcpProblem::Taken { item: item.name.to_string() }));
        }
    }
    let root = nest.finish(&mut reader.gather);
    Ok(reader.gather.contents(root))
}

struct Reader<'f> {
    folder: &'f Path,
    gather: Gather,
    places: HashMap<Part, Place>,
    /// The sources by name.
    files: HashMap<Arc<str>, usize>,
    /// How often parts of tensors were compared so far.
    comparisons: usize,
}

impl Reader<'_> {
    fn error(&self, problem: DcpProblem) -> Error {
        Error::Dcp { path: self.folder.to_owned(), problem }
    }

    fn item(&mut self, item: &Item) -> Result<ValueId> {
        match &item.kind {
            Kind::Object => self.stored(&item.name, None),
            Kind::Tensor { dtype, shape, chunks } => self.tensor(&item.name, dtype, shape, chunks),
        }
    }

    /// Reads what is stored of `item` at `offsets`; returns its top value.
    fn stored(&mut self, item: &Arc<str>, offsets: Option<&[usize]>) -> Result<ValueId> {
        let name = || item.to_string();
        let Some(place) = self.places.remove(&(Arc::clone(item), offsets.map(<[_]>::to_vec))) else {
            return Err(self.error(DcpProblem::NoPlace { item: name() }));
        };
        let Place { file, offset, length, transforms } = place;
        if !transforms.is_empty() {
            return Err(self.error(DcpProblem::Transformed { item: name(), transforms }));
        }
        let source = match self.files.get(&file) {
            Some(&source) => source,
            None => self.file(item, &file)?,
        };
        let file = file.to_string();
        let map = &self.gather.sources[source].map;
        let size = map.len() as u64;
        let Some(end) = offset.checked_add(length).filter(|&end| end <= size) else {
            return Err(self.error(DcpProblem::OutOfFile { item: name(), file, offset, length, size }));
        };
        let range = offset as usize..end as usize;
        let path = &self.gather.sources[source].path;
        let part = part(path, &map[range.clone()], &mut self.gather.budget).map_err(|source| Error::DcpItem {
            path: path.clone(),
            item: name(),
            offset,
            source: Box::new(source),
        })?;
        self.gather.absorb(part, source, range.start)
    }

    /// Maps a file of the folder.
    fn file(&mut self, item: &str, file: &Arc<str>) -> Result<usize> {
        let (item, name) = (|| item.to_owned(), || file.to_string());
        let Some(path) = inside(self.folder, file) else {
            return Err(self.error(DcpProblem::Name { item: item(), file: name() }));
        };
        if !path.exists() {
            return Err(self.error(DcpProblem::Missing { item: item(), file: name() }));
        }
        if self.gather.sources.len() > MAX_FILES {
            return Err(self.error(DcpProblem::TooMany));
        }
        self.gather.sources.push(Source::open(&path)?);
        let source = self.gather.sources.len() - 1;
        self.files.insert(Arc::clone(file), source);
        Ok(source)
    }

    /// The tensor of which `chunks` are the parts.
    fn tensor(&mut self, name: &Arc<str>, dtype: &str, shape: &[usize], chunks: &[Region]) -> Result<ValueId> {
        let wrong = |what| DcpProblem::Parts { tensor: name.to_string(), shape: shape.to_vec(), what };
        tiling::check(shape, chunks, &mut self.comparisons).map_err(|what| self.error(wrong(what)))?;
        let mut parts = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let value = self.stored(name, Some(&chunk.at))?;
            parts.push((value, self.part_of(name, dtype, chunk, value)?));
        }
        if let ([(value, _)], [chunk]) = (parts.as_slice(), chunks)
            && chunk.sizes == shape
        {
            return Ok(*value);
        }
        let part = size_of::<Chunk>() + allocated(size_of_val(shape));
        let whole = 2 * size_of::<Stored>() + 2 * size_of::<Value>() + 3 * allocated(size_of_val(shape));
        self.gather.take(2 * size_of::<Storage>() + whole + chunks.len() * part)?;
        let mut assembly = Assembly { shape: shape.to_vec(), chunks: Vec::with_capacity(parts.len()) };
        let mut element = crate::tensor::DType::ALL.iter().copied().find(|known| known.name() == dtype);
        for ((_, tensor), chunk) in parts.into_iter().zip(chunks) {
            let Stored::Dense(dense) = &self.gather.all.tensors[tensor] else {
                return Err(self.error(DcpProblem::NotDense { tensor: name.to_string(), at: chunk.at.clone() }));
            };
            element = Some(dense.dtype);
            assembly.chunks.push(Chunk { tensor, at: chunk.at.clone() });
        }
        let Some(dtype) = element else { return Err(self.error(wrong("it has no parts"))) };
        // The parts were checked to fill it, so that the product is that of their own sizes.
        let bytes = shape.iter().fold(dtype.size() as u64, |n, &d| n.saturating_mul(d as u64));
        let storage = self.gather.all.storages.len();
        self.gather.all.storages.push(Storage {
            label: Arc::clone(name),
            source: 0,
            declared: bytes,
            size: bytes,
            extent: Extent::Assembled(assembly),
            order: ByteOrder::Little,
        });
        let (shape, strides) = (shape.to_vec(), contiguous_strides(shape));
        self.gather.all.tensors.push(Stored::Dense(StoredTensor { dtype, shape, strides, offset: 0, storage }));
        let tensor = self.gather.all.tensors.len() - 1;
        Ok(self.gather.add(Value::Tensor(tensor)))
    }

    /// The number of the tensor that `value` is, if it is what the metadata says.
    fn part_of(&self, name: &str, dtype: &str, chunk: &Region, value: ValueId) -> Result<usize> {
        let mismatch = |expected: String, found: String| {
            Err(self.error(DcpProblem::Mismatch { tensor: name.to_owned(), expected, found }))
        };
        let Value::Tensor(tensor) = *self.gather.value(value) else {
            return mismatch("a tensor".into(), "another object".into());
        };
        let (found_dtype, found_shape) = match &self.gather.all.tensors[tensor] {
            Stored::Dense(dense) => (dense.dtype.name(), &dense.shape),
            Stored::Other(other) => (other.dtype.as_str(), &other.shape),
        };
        let found = format!("{found_dtype} of shape {found_shape:?}");
        if (found_dtype, found_shape) != (dtype, &chunk.sizes) {
            return mismatch(format!("{dtype} of shape {:?}", chunk.sizes), found);
        }
        if let Stored::Dense(dense) = &self.gather.all.tensors[tensor] {
            let bytes = dense.shape.iter().fold(dense.dtype.size() as u64, |n, &d| n.saturating_mul(d as u64));
            if self.gather.all.storages[dense.storage].declared < bytes {
                return mismatch("all of its elements".into(), "a view that repeats some".into());
            }
        }
        Ok(tensor)
    }
}

/// No two items may share bytes: a small file could stand for any number of tensors otherwise.
fn check_overlaps(places: &HashMap<Part, Place>) -> Result<(), DcpProblem> {
    let mut order: Vec<_> = places.iter().map(|((name, _), place)| (&place.file, place.offset, place, name)).collect();
    order.sort_by_key(|&(file, offset, place, _)| (file, offset, place.length));
    for pair in order.windows(2) {
        let ((file, offset, place, first), (other_file, other_offset, _, second)) = (pair[0], pair[1]);
        if file == other_file && offset.saturating_add(place.length) > other_offset {
            return Err(DcpProblem::Overlap { first: first.to_string(), second: second.to_string() });
        }
    }
    Ok(())
}
