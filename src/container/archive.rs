//! The zip archives of PyTorch: `ROOT/data.pkl` with the object tree, `ROOT/data/KEY` with the storages.

use std::collections::HashMap;
use std::path::Path;

use super::rebuild::{DeclaredStorage, Persistent, Rebuilt, ScriptClasses, rebuild};
use super::zip::{self, Method, ZipProblem};
use super::{Container, Extent, Part, Storage, numpy, package, torchscript};
use crate::error::{Error, Result};
use crate::pickle;
use crate::tensor::ByteOrder;

/// The largest small entry (`byteorder`, `version`) read, in bytes.
const MAX_NOTE_BYTES: u64 = 4096;

/// An open zip archive, mapped from `path`.
pub(super) struct Archive<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a [u8],
    pub(super) entries: &'a [zip::Entry],
    by_name: HashMap<&'a str, &'a zip::Entry>,
}

/// Reads the directory and object tree of the archive `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8]) -> Result<Part> {
    let entries = zip::read(file).map_err(|problem| Error::Zip { path: path.to_owned(), problem })?;
    if numpy::is_npz(&entries) {
        return numpy::open_npz(path, file, &entries);
    }
    let by_name: HashMap<&str, &zip::Entry> = entries.iter().map(|e| (&*e.name, e)).collect();
    let archive = Archive { path, file, entries: &entries, by_name };
    let mut pickles = entries.iter().filter(|e| e.name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"));
    let Some(object) = pickles.next() else {
        if let Some(root) = package::root(&archive) {
            return package::open(&archive, root);
        }
        return Err(
            archive.not("a zip archive without a PyTorch object in it", "unpack it if the checkpoint is inside")
        );
    };
    if let Some(second) = pickles.next() {
        return Err(archive.error(ZipProblem::Duplicate { entry: second.name.to_string() }));
    }
    let root = object.name.strip_suffix("data.pkl").unwrap_or_default();
    if archive.find(&format!("{root}constants.pkl")).is_some() {
        return torchscript::open(&archive, object, root);
    }
    archive.part(Container::TorchZip, object, root, &ScriptClasses::new())
}

impl<'a> Archive<'a> {
    pub(super) fn find(&self, name: &str) -> Option<&'a zip::Entry> {
        self.by_name.get(name).copied()
    }

    pub(super) fn error(&self, problem: ZipProblem) -> Error {
        Error::Zip { path: self.path.to_owned(), problem }
    }

    pub(super) fn not(&self, found: &str, advice: &str) -> Error {
        Error::NotACheckpoint { path: self.path.to_owned(), found: found.to_owned(), advice: advice.to_owned() }
    }

    /// The one object of an archive that keeps storages in `ROOT/data/`.
    pub(super) fn part(
        &self,
        container: Container,
        object: &zip::Entry,
        root: &str,
        scripts: &ScriptClasses,
    ) -> Result<Part> {
        let order = self.byte_order(root)?;
        let Rebuilt { tree, tensors, storages } = self.object(object, scripts)?;
        let storages = storages.into_iter().map(|s| self.storage(format!("{root}data/{}", s.key), &s, order)).collect();
        Ok(Part { container, tree, tensors, storages })
    }

    /// Reads the pickle in an entry.
    pub(super) fn object(&self, entry: &zip::Entry, scripts: &ScriptClasses) -> Result<Rebuilt> {
        let bytes = self.read(entry, pickle::MAX_PICKLE_BYTES as u64)?;
        let (path, name) = (|| self.path.to_owned(), || entry.name.to_string());
        let parsed = pickle::parse(&bytes).map_err(|source| Error::Pickle { path: path(), entry: name(), source })?;
        rebuild(&parsed, Persistent::Storages, scripts).map_err(|(offset, problem)| Error::Rebuild {
            path: path(),
            entry: name(),
            offset,
            problem,
        })
    }

    /// The storage in the entry `label`.
    pub(super) fn storage(&self, label: String, declared: &DeclaredStorage, order: ByteOrder) -> Storage {
        let entry = self.find(&label);
        let extent = match entry {
            Some(entry) => Extent::Member { entry: entry.clone(), skip: 0 },
            None => Extent::Missing,
        };
        let size = entry.map_or(0, |e| e.size);
        Storage { label, source: 0, declared: declared.bytes, size, extent, order }
    }

    pub(super) fn byte_order(&self, root: &str) -> Result<ByteOrder> {
        let Some(entry) = self.find(&format!("{root}byteorder")) else { return Ok(ByteOrder::Little) };
        match &*self.read(entry, MAX_NOTE_BYTES)? {
            b"little" => Ok(ByteOrder::Little),
            b"big" => Ok(ByteOrder::Big),
            _ => Err(self.not("a PyTorch archive with an unknown byte order", "save it again with torch.save")),
        }
    }

    /// The data of an entry that is at most `limit` bytes large, checksum verified.
    pub(super) fn read(&self, entry: &zip::Entry, limit: u64) -> Result<Vec<u8>> {
        let read = || {
            if entry.size > limit {
                return Err(ZipProblem::TooLarge { entry: entry.name.to_string(), size: entry.size, limit });
            }
            match entry.method {
                Method::Stored => {
                    let data = entry.packed_bytes(self.file)?;
                    entry.check(data)?;
                    Ok(data.to_vec())
                }
                Method::Deflated => entry.inflate(self.file, limit),
            }
        };
        read().map_err(|problem| self.error(problem))
    }
}
