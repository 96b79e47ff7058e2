//! The legacy stream of `torch.save` (PyTorch 0.1.10 to 1.5, and `_use_new_zipfile_serialization=False` of today's).
//!
//! ```text
//! pickle   the magic number 0x1950a86a20f9469cfc6c
//! pickle   the protocol, 1001
//! pickle   a dictionary that describes the machine
//! pickle   the object; tensors refer to storages by key
//! pickle   the list of storage keys
//! storage  for each key: the number of elements (i64), then the elements
//! ```
//!
//! Follows `_legacy_save` and `_legacy_load` in `torch/serialization.py`. Numbers are little-endian, whatever the
//! description of the machine says: `THPStorage_writeFileRaw` swaps on other machines.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::rebuild::{Persistent, Rebuilt, ScriptClasses, rebuild};
use super::{Container, Extent, Part, Storage, too_large};
use crate::error::{Error, Result};
use crate::pickle::{self, Budget, Node, Pickle, allocated};
use crate::tensor::ByteOrder;

/// 0x1950a86a20f9469cfc6c, least significant byte first.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The longest pickle of the magic number in any protocol, in bytes, with room to spare.
const MAX_MAGIC_BYTES: usize = 64;

const PROTOCOL: i64 = 1001;

/// Why a legacy stream cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyProblem {
    /// A protocol other than 1001, the only one PyTorch has ever written.
    #[error("it has the protocol {found}, and only {PROTOCOL} is known: the file is damaged, get it again")]
    Protocol {
        /// The protocol as stored.
        found: String,
    },
    /// The list of storages is not a list of different keys.
    #[error("the list of storages at byte {offset} is malformed: the file is damaged, get it again")]
    Keys {
        /// Where, in bytes from the start of the file.
        offset: u64,
    },
    /// A storage is in the stream that no tensor refers to, so that the size of its elements is unknown.
    #[error("storage {key:?} is in the file, but no tensor refers to it: the file is damaged, get it again")]
    Unused {
        /// The storage's key.
        key: String,
    },
    /// A storage reaches past the end of the file.
    #[error(
        "storage {key:?} takes {needed} bytes from byte {offset} on, but the file ends after {available}: it was cut off; download or copy it again"
    )]
    Truncated {
        /// The storage's key.
        key: String,
        /// Where its elements begin, in bytes from the start of the file.
        offset: u64,
        /// Bytes that it should have.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// Bytes follow the last storage.
    #[error(
        "{extra} bytes follow the last storage, from byte {offset} on: something was appended; get the file again, or cut it"
    )]
    Trailing {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// How many.
        extra: u64,
    },
}

/// Whether `file` begins with the magic number, pickled in whatever protocol.
pub(super) fn is_legacy(file: &[u8]) -> bool {
    let head = &file[..file.len().min(MAX_MAGIC_BYTES)];
    if !matches!(head.first(), Some(0x80 | b'L')) {
        return false;
    }
    pickle::parse(head).is_ok_and(|p| matches!(p.node(p.root()), Node::BigInt(bytes) if **bytes == MAGIC))
}

/// Pickles that follow each other in a file.
pub(super) struct Stream<'a> {
    pub(super) path: &'a Path,
    /// What messages call the stream.
    pub(super) name: &'a str,
    pub(super) bytes: &'a [u8],
    /// Where the stream begins in the file.
    pub(super) start: usize,
    pub(super) at: usize,
}

impl<'a> Stream<'a> {
    /// Reads the next pickle.
    pub(super) fn pickle(&mut self, budget: &mut Budget) -> Result<Pickle> {
        let rest = &self.bytes[self.at..];
        let parsed = pickle::parse_within(&rest[..rest.len().min(pickle::MAX_PICKLE_BYTES + 1)], budget)
            .map_err(|source| Error::Pickle { path: self.path.to_owned(), entry: self.entry(), source })?;
        self.at += parsed.end();
        Ok(parsed)
    }

    /// What messages call the pickle that begins here.
    pub(super) fn entry(&self) -> String {
        format!("{}, the pickle at byte {}", self.name, self.offset())
    }

    /// The place in the file.
    pub(super) fn offset(&self) -> u64 {
        (self.start + self.at) as u64
    }

    /// The next bytes, if there are so many.
    pub(super) fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let taken = self.bytes[self.at..].get(..usize::try_from(count).ok()?)?;
        self.at += taken.len();
        Some(taken)
    }

    /// The next eight bytes as a number.
    pub(super) fn i64(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(*self.take(8)?.as_array()?))
    }

    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }
}

/// Reads the pickles of the stream `file`, mapped from `path`, and finds its storages.
pub(super) fn open(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    let legacy = |problem| Error::Legacy { path: path.to_owned(), problem };
    let mut stream = Stream { path, name: "the legacy stream", bytes: file, start: 0, at: 0 };
    let magic = stream.pickle(budget)?;
    let protocol = stream.pickle(budget)?;
    match protocol.node(protocol.root()) {
        Node::Int(PROTOCOL) => {}
        Node::Int(other) => return Err(legacy(LegacyProblem::Protocol { found: other.to_string() })),
        other => return Err(legacy(LegacyProblem::Protocol { found: other.kind().to_owned() })),
    }
    let machine = stream.pickle(budget)?;
    for head in [magic, protocol, machine] {
        budget.give_back(head.memory());
    }

    let entry = stream.entry();
    let object = stream.pickle(budget)?;
    let Rebuilt { tree, tensors, storages: declared } =
        rebuild(object, Persistent::Storages, &ScriptClasses::new(), budget)
            .map_err(|(offset, problem)| Error::Rebuild { path: path.to_owned(), entry, offset, problem })?;

    let mut storages: Vec<Storage> = Vec::new();
    budget.reserve(&mut storages, declared.len()).map_err(too_large(path))?;
    for declared in &declared {
        let label: Arc<str> = format!("storage {}", declared.key).into();
        budget.take(allocated(16 + label.len())).map_err(too_large(path))?;
        let (declared, extent, order) = (declared.bytes, Extent::Missing, ByteOrder::Little);
        storages.push(Storage { label, source: 0, declared, size: 0, extent, order });
    }
    let offset = stream.offset();
    let keys = stream.pickle(budget)?;
    let by_key: HashMap<&str, usize> = declared.iter().enumerate().map(|(i, d)| (&*d.key, i)).collect();
    for &key in keys.sequence(keys.root()).ok_or_else(|| legacy(LegacyProblem::Keys { offset }))? {
        let key = match keys.node(key) {
            Node::Str(key) => key.to_string(),
            Node::Int(key) => key.to_string(),
            _ => return Err(legacy(LegacyProblem::Keys { offset })),
        };
        let Some(&index) = by_key.get(key.as_str()) else { return Err(legacy(LegacyProblem::Unused { key })) };
        let storage = &mut storages[index];
        if !matches!(storage.extent, Extent::Missing) {
            return Err(legacy(LegacyProblem::Keys { offset }));
        }
        let count = stream.i64().and_then(|n| u64::try_from(n).ok());
        let (begin, available) = (stream.at, stream.left());
        let needed = count.and_then(|n| n.checked_mul(declared[index].unit)).unwrap_or(u64::MAX);
        if stream.take(needed).is_none() {
            let (offset, needed) = (begin as u64, needed.min(storage.declared.max(8)));
            return Err(legacy(LegacyProblem::Truncated { key, offset, needed, available }));
        }
        storage.size = needed;
        storage.extent = Extent::Mapped(begin..stream.at);
    }
    budget.give_back(keys.memory());
    if stream.left() > 0 {
        return Err(legacy(LegacyProblem::Trailing { offset: stream.offset(), extra: stream.left() }));
    }
    Ok(Part { container: Container::TorchLegacy, tree, tensors, storages })
}
