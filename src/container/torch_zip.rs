//! The zip archive of `torch.save`: `ROOT/data.pkl` with the object tree, `ROOT/data/KEY` with the storages.

use std::collections::HashMap;
use std::path::Path;

use super::rebuild::{Rebuilt, rebuild};
use super::zip::{self, Method, ZipProblem};
use super::{Container, Contents, Extent, Storage};
use crate::error::{Error, Result};
use crate::pickle;
use crate::tensor::ByteOrder;

/// The largest small entry (`byteorder`, `version`) read, in bytes.
const MAX_NOTE_BYTES: u64 = 4096;

/// Reads the directory and object tree of the archive `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8]) -> Result<Contents> {
    let zip_error = |problem| Error::Zip { path: path.to_owned(), problem };
    let entries = zip::read(file).map_err(zip_error)?;
    let not = |found: &str, advice: &str| {
        Err(Error::NotACheckpoint { path: path.to_owned(), found: found.to_owned(), advice: advice.to_owned() })
    };
    let by_name: HashMap<&str, &zip::Entry> = entries.iter().map(|e| (&*e.name, e)).collect();
    let mut pickles = entries.iter().filter(|e| e.name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"));
    let Some(object) = pickles.next() else {
        if entries.iter().any(|e| e.name.ends_with("/.data/extern_modules")) {
            return not("a torch.package archive", "import it in PyTorch and save its state_dict() with torch.save");
        }
        return not("a zip archive without a PyTorch object in it", "unpack it if the checkpoint is inside");
    };
    if let Some(second) = pickles.next() {
        let problem = ZipProblem::Duplicate { entry: second.name.to_string() };
        return Err(zip_error(problem));
    }
    let root = object.name.strip_suffix("data.pkl").unwrap_or_default();
    if by_name.contains_key(format!("{root}constants.pkl").as_str()) {
        return not("a TorchScript archive", "load it with torch.jit.load and save its state_dict() with torch.save");
    }

    let order = match by_name.get(format!("{root}byteorder").as_str()) {
        None => ByteOrder::Little,
        Some(entry) => match &*read(file, entry, MAX_NOTE_BYTES).map_err(zip_error)? {
            b"little" => ByteOrder::Little,
            b"big" => ByteOrder::Big,
            _ => return not("a PyTorch archive with an unknown byte order", "save it again with torch.save"),
        },
    };
    let bytes = read(file, object, pickle::MAX_PICKLE_BYTES as u64).map_err(zip_error)?;
    let parsed = pickle::parse(&bytes).map_err(|source| Error::Pickle {
        path: path.to_owned(),
        entry: object.name.to_string(),
        source,
    })?;
    let Rebuilt { tree, tensors, storages } = rebuild(&parsed).map_err(|(offset, problem)| Error::Rebuild {
        path: path.to_owned(),
        entry: object.name.to_string(),
        offset,
        problem,
    })?;

    // Nothing below needs them, and the storages need room.
    drop((parsed, bytes));
    let storages = storages
        .into_iter()
        .map(|declared| {
            let label = format!("{root}data/{}", declared.key);
            let entry = by_name.get(label.as_str());
            let extent = match entry {
                Some(entry) if entry.method == Method::Stored => Extent::Mapped(entry.data.clone()),
                Some(entry) => Extent::Deflated((*entry).clone()),
                None => Extent::Missing,
            };
            let size = entry.map_or(0, |e| e.size);
            Storage { label, declared: declared.bytes, size, extent, entry: entry.map(|e| (*e).clone()), order }
        })
        .collect();
    Ok(Contents { container: Container::TorchZip, tree, tensors, storages })
}

/// The data of a small entry, checksum verified.
fn read(file: &[u8], entry: &zip::Entry, limit: u64) -> Result<Vec<u8>, ZipProblem> {
    if entry.size > limit {
        return Err(ZipProblem::TooLarge { entry: entry.name.to_string(), size: entry.size, limit });
    }
    match entry.method {
        Method::Stored => {
            let data = &file[entry.data.clone()];
            entry.check(data)?;
            Ok(data.to_vec())
        }
        Method::Deflated => entry.inflate(file, limit),
    }
}
