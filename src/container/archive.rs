//! The zip archives of PyTorch: `ROOT/data.pkl` with the object tree, `ROOT/data/KEY` with the storages.

use std::borrow::Cow;
use std::path::Path;

use super::rebuild::{DeclaredStorage, Persistent, Rebuilt, ScriptClasses, rebuild};
use super::zip::{self, Method, ZipProblem};
use super::{Container, Extent, Part, Storage, numpy, package, too_large, torchscript};
use crate::error::{Error, Result};
use crate::pickle::{self, Budget, allocated};
use crate::tensor::ByteOrder;

/// The largest small entry (`byteorder`, `version`) read, in bytes.
const MAX_NOTE_BYTES: u64 = 4096;

/// An open zip archive, mapped from `path`.
pub(super) struct Archive<'a> {
    pub(super) path: &'a Path,
    pub(super) file: &'a [u8],
    pub(super) directory: &'a zip::Directory,
}

/// Reads the directory and object tree of the archive `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    let before = budget.taken();
    let directory = zip::read(file, budget).map_err(|problem| Error::Zip { path: path.to_owned(), problem })?;
    let memory = budget.taken() - before;
    let part = read(path, file, &directory, budget)?;
    budget.give_back(memory);
    Ok(part)
}

fn read(path: &Path, file: &[u8], directory: &zip::Directory, budget: &mut Budget) -> Result<Part> {
    let entries = &directory.entries;
    if numpy::is_npz(entries) {
        return numpy::open_npz(path, file, entries, budget);
    }
    let archive = Archive { path, file, directory };
    let mut pickles = entries.iter().filter(|e| e.name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"));
    let Some(object) = pickles.next() else {
        if let Some(root) = package::root(&archive) {
            return package::open(&archive, root, budget);
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
        return torchscript::open(&archive, object, root, budget);
    }
    archive.part(Container::TorchZip, object, &format!("{root}data/"), &ScriptClasses::new(), budget)
}

impl<'a> Archive<'a> {
    pub(super) fn find(&self, name: &str) -> Option<&'a zip::Entry> {
        self.directory.find(name)
    }

    pub(super) fn error(&self, problem: ZipProblem) -> Error {
        Error::Zip { path: self.path.to_owned(), problem }
    }

    pub(super) fn not(&self, found: &str, advice: &str) -> Error {
        Error::NotACheckpoint { path: self.path.to_owned(), found: found.to_owned(), advice: advice.to_owned() }
    }

    /// The object in an entry, whose storages are in the folder `data`.
    pub(super) fn part(
        &self,
        container: Container,
        object: &zip::Entry,
        data: &str,
        scripts: &ScriptClasses,
        budget: &mut Budget,
    ) -> Result<Part> {
        let root = object.name.rsplit_once('/').map_or("", |(root, _)| root);
        let order = self.byte_order(&format!("{root}/"))?;
        let Rebuilt { tree, tensors, storages: declared } = self.object(object, scripts, budget)?;
        let mut storages = Vec::new();
        budget.reserve(&mut storages, declared.len()).map_err(too_large(self.path))?;
        for declared in &declared {
            storages.push(self.storage(format!("{data}{}", declared.key), declared, order, budget)?);
        }
        let memory = declared.capacity() * size_of::<DeclaredStorage>();
        drop(declared);
        budget.give_back(memory);
        Ok(Part { container, tree, tensors, storages })
    }

    /// Reads the pickle in an entry.
    pub(super) fn object(&self, entry: &zip::Entry, scripts: &ScriptClasses, budget: &mut Budget) -> Result<Rebuilt> {
        let before = budget.taken();
        let bytes = self.read(entry, pickle::MAX_PICKLE_BYTES as u64, budget)?;
        let unpacked = budget.taken() - before;
        let (path, name) = (|| self.path.to_owned(), || entry.name.to_string());
        let parsed = pickle::parse_within(&bytes, budget).map_err(|source| Error::Pickle {
            path: path(),
            entry: name(),
            source,
        })?;
        drop(bytes);
        budget.give_back(unpacked);
        rebuild(parsed, Persistent::Storages, scripts, budget).map_err(|(offset, problem)| Error::Rebuild {
            path: path(),
            entry: name(),
            offset,
            problem,
        })
    }

    /// The storage in the entry `label`.
    pub(super) fn storage(
        &self,
        label: String,
        declared: &DeclaredStorage,
        order: ByteOrder,
        budget: &mut Budget,
    ) -> Result<Storage> {
        // Among others the name is that of the entry, of which only those of storages outlive the directory.
        budget.take(allocated(16 + label.len())).map_err(too_large(self.path))?;
        let (label, size, extent) = match self.find(&label) {
            Some(entry) => (entry.name.clone(), entry.size, Extent::Member { entry: entry.clone(), skip: 0 }),
            None => (label.into(), 0, Extent::Missing),
        };
        Ok(Storage { label, source: 0, declared: declared.bytes, size, extent, order })
    }

    pub(super) fn byte_order(&self, root: &str) -> Result<ByteOrder> {
        let Some(entry) = self.find(&format!("{root}byteorder")) else { return Ok(ByteOrder::Little) };
        match &*self.read(entry, MAX_NOTE_BYTES, &mut Budget::default())? {
            b"little" => Ok(ByteOrder::Little),
            b"big" => Ok(ByteOrder::Big),
            _ => Err(self.not("a PyTorch archive with an unknown byte order", "save it again with torch.save")),
        }
    }

    /// The data of an entry that is at most `limit` bytes large, checksum verified.
    pub(super) fn read(&self, entry: &zip::Entry, limit: u64, budget: &mut Budget) -> Result<Cow<'a, [u8]>> {
        if entry.size > limit {
            let problem = ZipProblem::TooLarge { entry: entry.name.to_string(), size: entry.size, limit };
            return Err(self.error(problem));
        }
        let stored = || {
            let data = entry.packed_bytes(self.file)?;
            entry.check(data)?;
            Ok(Cow::Borrowed(data))
        };
        let data = match entry.method {
            Method::Stored => stored(),
            Method::Deflated => {
                budget.take_table(entry.size as usize).map_err(too_large(self.path))?;
                entry.inflate(self.file, limit).map(Cow::Owned)
            }
        };
        data.map_err(|problem| self.error(problem))
    }
}
