//! What each fuzz target does with its input: shared by the fuzzers and by the tests that replay their corpora.
//!
//! A target returns if all is well, and tells whether the input was read, and panics if not. An error that says what is
//! wrong with the input is all well.

mod build;
mod pickles;
mod scans;
mod walk;

use std::path::Path;

use m2pt_surgery::{Checkpoint, Container, Error, SafetensorsProblem};

pub(crate) use pickles::pickle;
pub(crate) use scans::scan;

/// A target: it panics if the product does what it must not.
pub(crate) type Target = fn(&[u8]) -> bool;

/// Every target by name; its seeds are in `fuzz/corpus/NAME/`.
pub(crate) const ALL: &[(&str, Target)] = &[
    ("pickle", pickle),
    ("torch_zip", torch_zip),
    ("legacy", legacy),
    ("tar", tar),
    ("safetensors", safetensors),
    ("index_json", index_json),
    ("dcp", dcp),
    ("npy", npy),
    ("scan", scan),
];

/// The largest data section that is made up for a header, in bytes.
const MAX_FILL: u64 = 1 << 20;

/// Opens a file and does everything with it that a user could; false if it is refused.
fn file(bytes: Vec<u8>) -> bool {
    opened(bytes).map(|checkpoint| walk::checkpoint(&checkpoint)).is_ok()
}

fn opened(bytes: Vec<u8>) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::from_bytes("input", bytes);
    if let Err(error) = &checkpoint {
        walk::error(error);
    }
    checkpoint
}

/// A zip archive: the input as it is if it begins like one, else one that is built around it ([`build::zip`]).
///
/// Second opinion: the `zip` crate. Elements that lie in one run must be in one of the entries that it reads.
pub(crate) fn torch_zip(input: &[u8]) -> bool {
    let bytes = built("torch_zip", input);
    let Ok(checkpoint) = opened(bytes.clone()) else { return false };
    let runs = walk::checkpoint(&checkpoint);
    let Some(entries) = zip_entries(&bytes) else { return true };
    for run in runs {
        let found = entries.iter().any(|entry| match checkpoint.container() {
            // A member has a header before its data.
            Container::Npz => entry.windows(run.bytes.len()).any(|part| part == run.bytes),
            _ => entry.get(run.start..).is_some_and(|rest| rest.starts_with(&run.bytes)),
        });
        assert!(found, "a tensor's {} bytes at {} are in no entry", run.bytes.len(), run.start);
    }
    true
}

/// The file that a target makes of its input.
pub(crate) fn built(target: &str, input: &[u8]) -> Vec<u8> {
    match target {
        "torch_zip" if !input.starts_with(b"PK") => build::zip(input),
        "legacy" if !input.starts_with(b"\x80") => build::legacy(input),
        "tar" if input.get(257..262) != Some(b"ustar") => build::tar(input),
        "npy" if !input.starts_with(b"\x93NUMPY") => build::npy(input),
        "safetensors" if input.starts_with(b"{") => build::safetensors(input),
        _ => input.to_vec(),
    }
}

/// The data of all entries as the `zip` crate reads them; `None` if it cannot.
fn zip_entries(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    /// Bytes of all entries together.
    const LIMIT: u64 = 4 << 20;
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).ok()?;
    let mut room = LIMIT;
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let mut data = Vec::new();
        let mut entry = std::io::Read::take(archive.by_index(index).ok()?, room);
        std::io::Read::read_to_end(&mut entry, &mut data).ok()?;
        room -= data.len() as u64;
        if room == 0 {
            return None;
        }
        entries.push(data);
    }
    Some(entries)
}

/// A legacy stream: the input as it is if it begins like a pickle, else what follows the three pickles of its head.
pub(crate) fn legacy(input: &[u8]) -> bool {
    file(built("legacy", input))
}

/// A tar archive: the input as it is if it is one, else one that is built around it ([`build::tar`]).
pub(crate) fn tar(input: &[u8]) -> bool {
    file(built("tar", input))
}

/// A NumPy file: the input as it is if it begins like one, else one whose header is the text before the first zero byte.
pub(crate) fn npy(input: &[u8]) -> bool {
    file(built("npy", input))
}

/// A safetensors file: the input as it is, or, if it begins with a brace, one whose header is the text before the first
/// zero byte. If only the size of its data is wrong, that is put right.
///
/// Second opinion: the `safetensors` crate must accept what is accepted here, and see the same in it.
pub(crate) fn safetensors(input: &[u8]) -> bool {
    let mut bytes = built("safetensors", input);
    let mut checkpoint = opened(bytes.clone());
    if let Err(Error::Safetensors { problem: SafetensorsProblem::DataLength { expected, found }, .. }) = checkpoint {
        if expected > MAX_FILL {
            return false;
        }
        let data = bytes.len() - found as usize;
        bytes.resize(data + expected as usize, 0xa5);
        checkpoint = opened(bytes.clone());
    }
    let theirs = safetensors::SafeTensors::deserialize(&bytes);
    match checkpoint {
        Err(error) => {
            if theirs.is_ok() {
                assert!(is_stricter(&error), "refused, where the safetensors crate accepts: {error}");
            }
            false
        }
        Ok(checkpoint) => {
            walk::checkpoint(&checkpoint);
            let theirs = theirs.unwrap_or_else(|error| panic!("the safetensors crate refuses it: {error}"));
            let Ok(ours) = checkpoint.state_dict(&m2pt_surgery::RootChoice::Path(String::new())) else {
                assert_eq!(theirs.len(), 0, "tensors were lost");
                return true;
            };
            assert_eq!(ours.specs().len(), theirs.len());
            for (index, spec) in ours.specs().iter().enumerate() {
                let Ok(view) = theirs.tensor(&spec.name) else { panic!("{:?} is not there", spec.name) };
                assert_eq!(view.shape(), spec.shape);
                assert_eq!(spec.dtype.safetensors_name(), Some(view.dtype().to_string().as_str()));
                let Ok(data) = ours.tensor(index) else { panic!("{:?} cannot be read", spec.name) };
                assert_eq!(data.view().as_bytes(), Some(view.data()));
            }
            true
        }
    }
}

/// Refusals of files that the `safetensors` crate reads: a name that occurs twice (it keeps the last), fields of a tensor
/// that the format does not have (it ignores them), types of less than a byte, limits, and a tensor as a list or `null` as
/// metadata (its JSON library takes both for what they stand for).
fn is_stricter(error: &Error) -> bool {
    match error {
        Error::Safetensors { problem: SafetensorsProblem::UnknownType { .. }, .. } => true,
        Error::Safetensors { problem: SafetensorsProblem::Header { reason }, .. } => {
            ["occurs twice", "more than", "is the limit", "is unknown", "invalid type"]
                .iter()
                .any(|of| reason.contains(of))
        }
        Error::Tensor { .. } | Error::Tree { .. } => true,
        _ => false,
    }
}

/// The index of a sharded model, in a folder with the shards it may name.
pub(crate) fn index_json(input: &[u8]) -> bool {
    let folder = build::Folder::of_shards();
    let mut accepted = false;
    for name in ["model.safetensors.index.json", "pytorch_model.bin.index.json"] {
        let path = folder.0.join(name);
        if std::fs::write(&path, input).is_err() {
            return false;
        }
        accepted |= open(&folder.0);
        accepted |= open(&path);
        let _ = std::fs::remove_file(&path);
    }
    accepted
}

/// A distributed checkpoint: a folder with the metadata and files that the input describes ([`build::Folder::of_parts`]).
pub(crate) fn dcp(input: &[u8]) -> bool {
    open(&build::Folder::of_parts(input).0)
}

fn open(path: &Path) -> bool {
    let checkpoint = Checkpoint::open(path);
    match &checkpoint {
        Ok(checkpoint) => drop(walk::checkpoint(checkpoint)),
        Err(error) => walk::error(error),
    }
    checkpoint.is_ok()
}
