//! The tar archive of `torch.save` before PyTorch 0.1.10: four files.
//!
//! ```text
//! sys_info  a pickle that describes the machine
//! pickle    the object; tensors are persistent ids, by key
//! tensors   pickled count; for each: pickled (key, storage, class), dimensions (i32), 4 bytes, sizes, strides, offset (i64)
//! storages  pickled count; for each: pickled (key, location, class), elements (i64), data; then pickled views
//! ```
//!
//! Follows `legacy_load` in `torch/serialization.py`. Numbers are little-endian.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::legacy::Stream;
use super::rebuild::{Persistent, Rebuilt, ScriptClasses, rebuild};
use super::{Container, Extent, MAX_TENSORS, Part, Storage, Stored, StoredTensor, too_large};
use crate::error::{Error, Result};
use crate::pickle::{Budget, Node, NodeId, Pickle, allocated};
use crate::tensor::{ByteOrder, DType, MAX_DIMENSIONS, check_view};

/// Why a tar archive cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// A header is malformed.
    #[error("the tar header at byte {offset} is malformed: {what}; get the file again")]
    Header {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A file of the archive reaches past its end.
    #[error(
        "{name:?} in the archive should have {needed} bytes from byte {offset} on, but the file ends after {available}: it was cut off; download or copy it again"
    )]
    Truncated {
        /// The file in the archive.
        name: String,
        /// Where its data begins.
        offset: u64,
        /// Bytes that it should have.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The archive holds more files than a checkpoint does.
    #[error(
        "the archive has more than {MAX_MEMBERS} files, the limit of this reader, where PyTorch writes four; unpack it if the checkpoint is inside"
    )]
    TooMany,
    /// One of the four files is missing.
    #[error(
        "the archive has no file {name:?}, so it is no checkpoint of PyTorch; unpack it if the checkpoint is inside"
    )]
    Missing {
        /// The file.
        name: &'static str,
    },
    /// A file occurs twice.
    #[error("the archive has two files {name:?}; get it again")]
    Duplicate {
        /// The file.
        name: &'static str,
    },
    /// A record of `tensors` or `storages` is malformed.
    #[error("the record at byte {offset}, in {name:?}, is malformed: {what}; the file is damaged, get it again")]
    Record {
        /// The file in the archive.
        name: &'static str,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

const BLOCK: usize = 512;

/// The largest number of files in an archive; PyTorch writes four.
const MAX_MEMBERS: usize = 1024;

/// Whether `file` begins with the header of a tar archive.
pub(super) fn is_tar(file: &[u8]) -> bool {
    file.first_chunk::<BLOCK>().is_some_and(|header| header[0] != 0 && checksum_is_right(header))
}

fn checksum_is_right(header: &[u8; BLOCK]) -> bool {
    let sum = |signed: bool| -> i64 {
        let byte = |(at, &byte): (usize, &u8)| match at {
            148..156 => i64::from(b' '),
            _ if signed => i64::from(byte as i8),
            _ => i64::from(byte),
        };
        header.iter().enumerate().map(byte).sum()
    };
    octal(&header[148..156]).is_some_and(|stored| [sum(false), sum(true)].contains(&(stored as i64)))
}

/// A number in octal digits, with spaces before and a space or zero after it; or in base 256, as GNU tar writes large ones.
fn octal(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest.iter().try_fold(0u64, |n, &b| n.checked_mul(256)?.checked_add(u64::from(b)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Where the four files lie.
fn files(file: &[u8]) -> std::result::Result<HashMap<&'static str, Range<usize>>, TarProblem> {
    let mut found = HashMap::new();
    let mut at = 0;
    let mut members = 0;
    while let Some(header) = file[at..].first_chunk::<BLOCK>() {
        let wrong = |what| TarProblem::Header { offset: at as u64, what };
        if header.iter().all(|&b| b == 0) {
            break;
        }
        members += 1;
        if members > MAX_MEMBERS {
            return Err(TarProblem::TooMany);
        }
        if !checksum_is_right(header) {
            return Err(wrong("its checksum is not right"));
        }
        let needed = octal(&header[124..136]).ok_or_else(|| wrong("its size is no number"))?;
        let name = header[..100].split(|&b| b == 0).next().unwrap_or(&[]);
        let name = name.strip_prefix(b"./").unwrap_or(name);
        let start = at + BLOCK;
        let available = (file.len() - start) as u64;
        if needed > available {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(TarProblem::Truncated { name, offset: start as u64, needed, available });
        }
        let end = start + needed as usize;
        // Ordinary files only; long names and other extensions are of other archives than PyTorch's.
        if matches!(header[156], b'0' | 0)
            && let Some(known) = FILES.iter().find(|known| known.as_bytes() == name)
            && found.insert(*known, start..end).is_some()
        {
            return Err(TarProblem::Duplicate { name: known });
        }
        at = end.next_multiple_of(BLOCK).min(file.len());
    }
    Ok(found)
}

const FILES: [&str; 4] = ["sys_info", "pickle", "tensors", "storages"];

/// Reads the tar archive `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    let error = |problem| Error::Tar { path: path.to_owned(), problem };
    let files = files(file).map_err(error)?;
    let stream = |name: &'static str| match files.get(name) {
        Some(range) => Ok(Stream { path, name, bytes: &file[range.clone()], start: range.start, at: 0 }),
        None => Err(error(TarProblem::Missing { name })),
    };
    let (storages, views, tensors, by_key) = (Vec::new(), HashMap::new(), Vec::new(), HashMap::new());
    let mut reader = Reader { storages, views, tensors, by_key, budget, by_keys: 0 };
    reader.storages(&mut stream("storages")?)?;
    reader.tensors(&mut stream("tensors")?)?;
    let Reader { storages, views, tensors, by_key, budget, by_keys } = reader;
    drop(views);
    let mut stream = stream("pickle")?;
    let entry = stream.entry();
    let object = stream.pickle(budget)?;
    let persistent = Persistent::Tensors { tensors, by_key: &by_key };
    let Rebuilt { tree, tensors, .. } = rebuild(object, persistent, &ScriptClasses::new(), budget)
        .map_err(|(offset, problem)| Error::Rebuild { path: path.to_owned(), entry, offset, problem })?;
    budget.give_back(by_keys);
    Ok(Part { container: Container::TorchTar, tree, tensors, storages })
}

/// A part of a storage that has a key of its own; offset and length count elements.
#[derive(Clone, Copy)]
struct View {
    storage: usize,
    dtype: DType,
    offset: usize,
    elements: usize,
}

struct Reader<'b> {
    storages: Vec<Storage>,
    views: HashMap<String, View>,
    tensors: Vec<Stored>,
    /// What the keys of the object's pickle stand for: tensors, or storages, of which there is nothing to show.
    by_key: HashMap<String, Option<usize>>,
    budget: &'b mut Budget,
    /// Bytes of memory taken for what is found by its key.
    by_keys: usize,
}

fn record(stream: &Stream<'_>, name: &'static str, what: &'static str) -> Error {
    Error::Tar { path: stream.path.to_owned(), problem: TarProblem::Record { name, offset: stream.offset(), what } }
}

fn key(pickle: &Pickle, id: NodeId) -> Option<String> {
    match pickle.node(id) {
        Node::Int(key) => Some(key.to_string()),
        Node::Str(key) => Some(key.to_string()),
        _ => None,
    }
}

fn number(pickle: &Pickle, id: NodeId) -> Option<usize> {
    match pickle.node(id) {
        Node::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// The pickled count that a file begins with.
fn count(stream: &mut Stream<'_>, name: &'static str, budget: &mut Budget) -> Result<usize> {
    let pickle = stream.pickle(budget)?;
    let count = number(&pickle, pickle.root()).filter(|&n| n <= MAX_TENSORS);
    budget.give_back(pickle.memory());
    count.ok_or_else(|| record(stream, name, "its count is no number, or past the limit"))
}

impl Reader<'_> {
    fn storages(&mut self, stream: &mut Stream<'_>) -> Result<()> {
        const NAME: &str = "storages";
        for _ in 0..count(stream, NAME, self.budget)? {
            let pickle = stream.pickle(self.budget)?;
            let Some(&[id, _, class]) = pickle.sequence(pickle.root()) else {
                return Err(record(stream, NAME, "it is no tuple of three"));
            };
            let id = key(&pickle, id).ok_or_else(|| record(stream, NAME, "its key is no number"))?;
            let dtype = pickle
                .global(class)
                .and_then(|(_, class)| DType::from_storage_class(class))
                .ok_or_else(|| record(stream, NAME, "its class is unknown"))?;
            let elements = stream.i64().and_then(|n| usize::try_from(n).ok());
            let begin = stream.start + stream.at;
            let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
            let Some(data) = bytes.and_then(|n| stream.take(n as u64)) else {
                return Err(record(stream, NAME, "its data reaches past the end"));
            };
            let size = data.len() as u64;
            let view = View { storage: self.storages.len(), dtype, offset: 0, elements: data.len() / dtype.size() };
            let label: Arc<str> = format!("storage {id}").into();
            self.take(stream, allocated(16 + label.len()))?;
            let (extent, order) = (Extent::Mapped(begin..begin + data.len()), ByteOrder::Little);
            let storage = Storage { label, source: 0, declared: size, size, extent, order };
            self.budget.push(&mut self.storages, storage).map_err(too_large(stream.path))?;
            self.add_view(stream, id, view)?;
            self.budget.give_back(pickle.memory());
        }
        let pickle = stream.pickle(self.budget)?;
        let views = pickle.sequence(pickle.root()).ok_or_else(|| record(stream, NAME, "the views are no list"))?;
        for &view in views {
            let parts = pickle.sequence(view).and_then(|parts| match parts {
                &[id, root, offset, elements] => {
                    let root = *self.views.get(&key(&pickle, root)?)?;
                    Some((key(&pickle, id)?, root, number(&pickle, offset)?, number(&pickle, elements)?))
                }
                _ => None,
            });
            let Some((id, root, offset, elements)) = parts else {
                return Err(record(stream, NAME, "a view is malformed"));
            };
            if offset.checked_add(elements).is_none_or(|end| end > root.elements) {
                return Err(record(stream, NAME, "a view reaches out of its storage"));
            }
            self.add_view(stream, id, View { offset: root.offset + offset, elements, ..root })?;
        }
        self.budget.give_back(pickle.memory());
        if stream.left() > 0 { Err(record(stream, NAME, "bytes follow the last record")) } else { Ok(()) }
    }

    fn take(&mut self, stream: &Stream<'_>, bytes: usize) -> Result<()> {
        self.budget.take(bytes).map_err(too_large(stream.path))
    }

    /// Accounts for something that is found by its key.
    fn take_key(&mut self, stream: &Stream<'_>, key: &str, value: usize) -> Result<()> {
        // A table has up to twice as many places as entries, and a little more while it grows.
        let (pieces, tables) = (allocated(key.len()), 5 * (size_of::<String>() + value) / 2);
        self.by_keys += pieces + tables;
        self.take(stream, pieces)?;
        self.budget.take_table(tables).map_err(too_large(stream.path))
    }

    fn add_view(&mut self, stream: &Stream<'_>, id: String, view: View) -> Result<()> {
        self.take_key(stream, &id, size_of::<View>())?;
        self.take_key(stream, &id, size_of::<Option<usize>>())?;
        self.by_key.insert(id.clone(), None);
        match self.views.insert(id, view) {
            None => Ok(()),
            Some(_) => Err(record(stream, "storages", "its key occurs twice")),
        }
    }

    fn tensors(&mut self, stream: &mut Stream<'_>) -> Result<()> {
        const NAME: &str = "tensors";
        for _ in 0..count(stream, NAME, self.budget)? {
            let pickle = stream.pickle(self.budget)?;
            let ids = pickle.sequence(pickle.root()).and_then(|parts| match parts {
                &[id, storage, _] => Some((key(&pickle, id)?, key(&pickle, storage)?)),
                _ => None,
            });
            let Some((id, storage)) = ids else { return Err(record(stream, NAME, "it is no tuple of three")) };
            let view = *self.views.get(&storage).ok_or_else(|| record(stream, NAME, "its storage does not exist"))?;
            let Some((shape, strides, offset)) = geometry(stream) else {
                return Err(record(stream, NAME, "its sizes, strides or offset are malformed"));
            };
            let bytes = (view.elements * view.dtype.size()) as u64;
            if check_view(view.dtype, &shape, &strides, offset, bytes).is_err() {
                return Err(record(stream, NAME, "it reaches out of its storage"));
            }
            let offset = view.offset.saturating_add(offset);
            self.take_key(stream, &id, size_of::<Option<usize>>())?;
            self.take(stream, 2 * allocated(size_of::<usize>() * shape.len()))?;
            let tensor = StoredTensor { dtype: view.dtype, shape, strides, offset, storage: view.storage };
            if self.by_key.insert(id, Some(self.tensors.len())).is_some() {
                return Err(record(stream, NAME, "its key occurs twice"));
            }
            self.budget.push(&mut self.tensors, Stored::Dense(tensor)).map_err(too_large(stream.path))?;
            self.budget.give_back(pickle.memory());
        }
        if stream.left() > 0 { Err(record(stream, NAME, "bytes follow the last record")) } else { Ok(()) }
    }
}

/// Sizes, strides and offset of a tensor.
fn geometry(stream: &mut Stream<'_>) -> Option<(Vec<usize>, Vec<usize>, usize)> {
    let dimensions = u32::from_le_bytes(*stream.take(4)?.as_array()?) as usize;
    stream.take(4)?;
    if dimensions > MAX_DIMENSIONS {
        return None;
    }
    let mut numbers = |count: usize| -> Option<Vec<usize>> {
        (0..count).map(|_| stream.i64().and_then(|n| usize::try_from(n).ok())).collect()
    };
    let (shape, strides, offset) = (numbers(dimensions)?, numbers(dimensions)?, numbers(1)?);
    Some((shape, strides, *offset.first()?))
}
