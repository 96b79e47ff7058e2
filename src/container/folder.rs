//! A folder in place of a file: which of the checkpoints in it is meant.
//!
//! First what transformers looks for, in its order; then the only index of shards, the only distributed checkpoint, or the
//! only file that is named like a checkpoint. Anything else is an error that lists what there is.

use std::fmt;
use std::path::Path;

use super::{Contents, dcp, of_source};
use crate::container::Source;
use crate::error::{Error, Result};

/// What transformers loads from a folder, the first that is there.
const USUAL: &[&str] =
    &["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// What indexes of shards end in.
const INDEX: &str = ".index.json";

/// What single checkpoints end in.
const EXTENSIONS: &[&str] = &["safetensors", "pth", "pt", "bin", "ckpt", "tar", "npz", "npy"];

/// Why a folder cannot be read as a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderProblem {
    /// A single file belongs in its place.
    NotAFile,
    /// There is nothing in it that is read.
    NoCheckpoint,
    /// Several checkpoints are in it, with these names.
    Several(Vec<String>),
    /// Each process of a distributed run saved its own metadata, with these names, and none for all.
    OwnMetadata(Vec<String>),
    /// Each process of a distributed run saved its parts of the tensors to safetensors files with these names. If one of them
    /// were missing, nobody could tell.
    Unconsolidated(Vec<String>),
}

impl fmt::Display for FolderProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Names listed.
        const SHOWN: usize = 20;
        let (what, names, advice) = match self {
            FolderProblem::NotAFile => {
                return f.write_str("where a file belongs; give the path of one checkpoint file");
            }
            FolderProblem::NoCheckpoint => {
                return f.write_str(
                    "without a checkpoint in it (*.safetensors, *.pth, *.bin and the like, an index of shards, or the \
                     .metadata of a distributed checkpoint); give the path of one checkpoint file",
                );
            }
            FolderProblem::Several(names) => {
                ("with several checkpoints in it", names, "give the path of one checkpoint file")
            }
            FolderProblem::OwnMetadata(names) => (
                "with a distributed checkpoint of which each process saved a part for itself",
                names,
                "load it in PyTorch with as many processes, and save it with torch.save",
            ),
            FolderProblem::Unconsolidated(names) => (
                "with parts of tensors that nothing tells the number of",
                names,
                "put them together with torch.distributed.checkpoint's consolidate_safetensors_files",
            ),
        };
        write!(f, "{what} (")?;
        for (index, name) in names.iter().take(SHOWN).enumerate() {
            write!(f, "{}{name:?}", if index == 0 { "" } else { ", " })?;
        }
        if names.len() > SHOWN {
            write!(f, " and {} more", names.len() - SHOWN)?;
        }
        write!(f, "); {advice}")
    }
}

/// Opens the checkpoint in the folder `path`.
pub(super) fn open(path: &Path) -> Result<Contents> {
    let io = |source| Error::Io { action: "list the folder", path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    let has = |name: &str| names.iter().any(|known| known == name);
    let file = |name: &str| Source::open(&path.join(name)).and_then(of_source);
    if let Some(name) = USUAL.iter().find(|name| has(name)) {
        return file(name);
    }
    let ending = |wanted: &dyn Fn(&str) -> bool| names.iter().filter(|name| wanted(name)).cloned().collect::<Vec<_>>();
    let folder = |problem| Err(Error::Directory { path: path.to_owned(), problem });
    match ending(&|name| name.ends_with(INDEX)).as_slice() {
        [] => {}
        [index] => return file(index),
        several => return folder(FolderProblem::Several(several.to_vec())),
    }
    if has(dcp::METADATA) {
        return dcp::open(path);
    }
    let own = ending(&|name| name.starts_with("__") && name.ends_with(dcp::METADATA));
    if !own.is_empty() {
        return folder(FolderProblem::OwnMetadata(own));
    }
    // As `HuggingFaceStorageWriter` of torch.distributed.checkpoint names them.
    let parts =
        ending(&|name| name.starts_with("shard-") && name.contains("-model-") && name.ends_with(".safetensors"));
    if !parts.is_empty() {
        return folder(FolderProblem::Unconsolidated(parts));
    }
    let is_checkpoint = |name: &str| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
    };
    match ending(&is_checkpoint).as_slice() {
        [] => folder(FolderProblem::NoCheckpoint),
        [only] => file(only),
        several => folder(FolderProblem::Several(several.to_vec())),
    }
}
