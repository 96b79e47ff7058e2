//! Outputs in parts: shards that appear one by one, written by several processes if need be, and an index at the end.
//!
//! Beside the index to be lies a plan file, `NAME.index.json.parts`: what all who write shards have to agree on. Whoever comes first
//! publishes it, everybody else compares. It goes when the index appears.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ScratchFile;
use super::layout::Layout;
use super::publish::MadeFolder;
use super::scratch::{check_room, folder_of};
use crate::container::{MAX_FILES, MAX_INDEX_BYTES};
use crate::error::{Error, OutputProblem, Result};
use crate::tensor::sha256_bytes;

/// What the names of plan files end in.
const ENDING: &str = ".parts";
/// And those of the indexes beside them.
const INDEX: &str = ".index.json";
/// The version of plan files.
const VERSION: u32 = 1;

/// What is wrong with an output in parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartsProblem {
    /// There is only one file.
    #[error(
        "all fits into one file, which has no parts; leave out --shard and --resume, or give a smaller --max-shard-size"
    )]
    OneFile,
    /// The plan file is of another fold.
    #[error("it is the plan of another fold, with other {what}; go on with that one, or remove it and its shards")]
    Other {
        /// What differs.
        what: String,
    },
    /// The plan file is none.
    #[error("it is no plan of an output in parts ({reason}); remove it and begin again")]
    Damaged {
        /// Why.
        reason: String,
    },
    /// There is no plan file where it was looked for.
    #[error(
        "no plan of an output in parts is there; it is called *.index.json.parts, and goes when the output is complete"
    )]
    NoPlan,
    /// There are several plan files.
    #[error("there are several plans of outputs in parts: {names}; name one")]
    Several {
        /// The plan files.
        names: String,
    },
    /// A file that has the name of a shard is none.
    #[error("it is there, but is not the shard that is planned; remove it and run its part again")]
    NotTheShard,
    /// There is an index with other content.
    #[error("it is there, but is not the index that is planned; remove it and try again")]
    NotTheIndex,
    /// Shards are missing.
    #[error("{missing} of {of} shards are missing: {names}; run their parts, or the fold with --resume")]
    Missing {
        /// How many.
        missing: usize,
        /// Of how many.
        of: usize,
        /// The names of the first.
        names: String,
    },
}

/// A file of the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    file: String,
    bytes: u64,
    /// How many bytes before the data of the first tensor, and their SHA-256.
    front_bytes: u64,
    front_sha256: String,
}

/// The content of a plan file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    m2pt_surgery_parts: u32,
    /// What the output is made from, with SHA-256 of the inputs, and how.
    provenance: Value,
    /// Sizes and times of the inputs, where whoever wrote this saw them.
    stamps: Value,
    shards: Vec<Shard>,
    /// The content of the index.
    index: String,
}

/// An output in parts.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The plan file.
    path: PathBuf,
    record: Record,
}

/// The plan file beside the index `index`.
pub(super) fn beside(index: &Path) -> PathBuf {
    let mut name = index.as_os_str().to_owned();
    name.push(ENDING);
    name.into()
}

fn wrong(path: &Path, problem: PartsProblem) -> Error {
    Error::Parts { path: path.to_owned(), problem: Box::new(problem) }
}

impl Parts {
    /// The output that `layout` lays out.
    ///
    /// # Errors
    /// [`PartsProblem::OneFile`].
    pub(crate) fn new(layout: &Layout, provenance: Value, stamps: Value) -> Result<Parts> {
        let Some((index, content)) = &layout.index else {
            return Err(wrong(&layout.destination.path, PartsProblem::OneFile));
        };
        let shard = |file: &super::layout::FileToBe| {
            let front = file.layout.front();
            Shard {
                file: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: file.layout.bytes(),
                front_bytes: front.len() as u64,
                front_sha256: sha256_bytes(&front),
            }
        };
        let shards = layout.files.iter().map(shard).collect();
        let index_text = String::from_utf8_lossy(content).into_owned();
        let record = Record { m2pt_surgery_parts: VERSION, provenance, stamps, shards, index: index_text };
        Ok(Parts { path: beside(index), record })
    }

    /// The plan of an unfinished output: a plan file, the folder it is in, or the name that was given for the output.
    ///
    /// # Errors
    /// [`Error::Parts`] if there is none, or several, or it is damaged.
    pub(crate) fn find(path: &Path) -> Result<Parts> {
        let mut found = Vec::new();
        if path.is_dir() {
            let io = |source| Error::Io { action: "look into", path: path.to_owned(), source };
            for entry in fs::read_dir(path).map_err(io)? {
                let name = entry.map_err(io)?.file_name();
                let ends = |ending: &str| name.as_encoded_bytes().ends_with(ending.as_bytes());
                // Not a scratch file of one.
                if ends(&format!("{INDEX}{ENDING}")) && !name.as_encoded_bytes().starts_with(b".") {
                    found.push(path.join(name));
                }
            }
            found.sort();
        } else {
            let name = path.as_os_str().as_encoded_bytes();
            let mut plan = path.as_os_str().to_owned();
            if !name.ends_with(ENDING.as_bytes()) {
                plan.push(if name.ends_with(INDEX.as_bytes()) { "" } else { INDEX });
                plan.push(ENDING);
            }
            found.push(plan.into());
        }
        match found.as_slice() {
            [] => Err(wrong(path, PartsProblem::NoPlan)),
            [plan] => Parts::read(plan)?.ok_or_else(|| wrong(path, PartsProblem::NoPlan)),
            several => {
                let names: Vec<_> = several.iter().take(4).map(|path| path.display().to_string()).collect();
                Err(wrong(path, PartsProblem::Several { names: names.join(", ") }))
            }
        }
    }

    /// Reads a plan file; `None` if there is none.
    ///
    /// # Errors
    /// [`PartsProblem::Damaged`]; [`Error::Io`].
    fn read(path: &Path) -> Result<Option<Parts>> {
        /// An index as text in JSON may take twice its bytes.
        const LONGEST: u64 = 4 * MAX_INDEX_BYTES as u64;
        let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let damaged = |reason: &dyn ToString| wrong(path, PartsProblem::Damaged { reason: reason.to_string() });
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other if !other.as_ref().is_ok_and(fs::Metadata::is_file) => {
                other.map_err(io)?;
                return Err(damaged(&"it is no file"));
            }
            Ok(_) | Err(_) => {}
        }
        let mut text = Vec::new();
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io)?,
        };
        file.take(LONGEST + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > LONGEST {
            return Err(damaged(&"it is too long"));
        }
        let record: Record = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
        if record.m2pt_surgery_parts != VERSION {
            return Err(damaged(&"it is of another version"));
        }
        if record.shards.is_empty() || record.shards.len() > MAX_FILES {
            return Err(damaged(&"it has no shards, or too many"));
        }
        // Nothing outside of the folder is touched, whoever wrote the plan.
        let plain = |name: &str| Path::new(name).file_name() == Some(name.as_ref());
        if !record.shards.iter().all(|shard| plain(&shard.file)) {
            return Err(damaged(&"a shard is in another folder"));
        }
        Ok(Some(Parts { path: path.to_owned(), record }))
    }

    /// SHA-256 of the inputs, from the plan file that is beside that index, if it was written by someone who saw inputs of these sizes and
    /// times.
    ///
    /// # Errors
    /// As [`Parts::find`], but for [`PartsProblem::NoPlan`].
    pub(crate) fn known_hashes(index: &Path, stamps: &Value) -> Result<Option<Vec<Value>>> {
        let Some(known) = Parts::read(&beside(index))?.filter(|known| known.record.stamps == *stamps) else {
            return Ok(None);
        };
        let inputs = known.record.provenance["inputs"].as_array().cloned().unwrap_or_default();
        let hashes: Vec<Value> = inputs.into_iter().map(|input| input["sha256"].clone()).collect();
        Ok((Some(hashes.len()) == stamps.as_array().map(Vec::len)).then_some(hashes))
    }

    /// Publishes the plan file, or checks that the one that is there is the same.
    ///
    /// # Errors
    /// [`PartsProblem::Other`]; [`PartsProblem::NotTheIndex`] if another index is there; [`Error::Io`]; [`Error::Output`].
    pub(crate) fn register(&self, folder: Option<&Path>) -> Result<()> {
        let folder = MadeFolder::make(folder)?;
        if !self.is_registered()? {
            let text = serde_json::to_string_pretty(&self.record).unwrap_or_default();
            let published = ScratchFile::create(&self.path, false).and_then(|mut file| {
                file.write(text.as_bytes())?;
                file.write(b"\n")?;
                file.publish()
            });
            match published {
                // Somebody else was faster.
                Err(Error::Output { problem: OutputProblem::Exists, .. }) => {
                    self.is_registered()?;
                }
                published => published?,
            }
        }
        folder.keep();
        self.has_index().map(|_| ())
    }

    /// Whether the index is there.
    ///
    /// # Errors
    /// [`PartsProblem::NotTheIndex`]; [`Error::Io`].
    fn has_index(&self) -> Result<bool> {
        let index = self.index();
        match fs::read(&index) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "read", path: index, source }),
            Ok(there) if there == self.record.index.as_bytes() => Ok(true),
            Ok(_) => Err(wrong(&index, PartsProblem::NotTheIndex)),
        }
    }

    /// Whether the plan file is there, and this one.
    fn is_registered(&self) -> Result<bool> {
        let Some(other) = Parts::read(&self.path)? else { return Ok(false) };
        let (ours, theirs) = (&self.record, &other.record);
        let mut what = Vec::new();
        for (key, name) in [("inputs", "inputs"), ("options", "options"), ("lambdas", "lambdas")] {
            if ours.provenance[key] != theirs.provenance[key] {
                what.push(name);
            }
        }
        if what.is_empty() && ours.provenance != theirs.provenance {
            what.push("versions of the program");
        }
        if what.is_empty() && ours.index != theirs.index {
            what.push("tensors or sizes of shards");
        }
        if what.is_empty() && ours.shards != theirs.shards {
            what.push("headers of shards");
        }
        if what.is_empty() {
            return Ok(true);
        }
        Err(wrong(&self.path, PartsProblem::Other { what: what.join(", ") }))
    }

    /// How many shards there are.
    pub(crate) fn len(&self) -> usize {
        self.record.shards.len()
    }

    /// Bytes of all shards.
    pub(crate) fn bytes(&self) -> u64 {
        self.record.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// The shard with that number, from 0.
    pub(crate) fn file(&self, number: usize) -> PathBuf {
        self.path.with_file_name(&self.record.shards[number].file)
    }

    /// The index to be.
    pub(crate) fn index(&self) -> PathBuf {
        self.path.with_extension("")
    }

    /// Whether the shard with that number is there: it appears whole, and so its size and what is before its data tell.
    ///
    /// # Errors
    /// [`PartsProblem::NotTheShard`]; [`Error::Io`].
    pub(crate) fn is_there(&self, number: usize) -> Result<bool> {
        let (shard, path) = (&self.record.shards[number], self.file(number));
        let io = |source| Error::Io { action: "read", path: path.clone(), source };
        let mut front = Vec::new();
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io(error)),
            Ok(metadata) if metadata.is_file() && metadata.len() == shard.bytes => {
                File::open(&path).and_then(|file| file.take(shard.front_bytes).read_to_end(&mut front)).map_err(io)?;
            }
            Ok(_) => return Err(wrong(&path, PartsProblem::NotTheShard)),
        }
        if sha256_bytes(&front) == shard.front_sha256 {
            return Ok(true);
        }
        Err(wrong(&path, PartsProblem::NotTheShard))
    }

    /// The shards that are not there.
    ///
    /// # Errors
    /// As [`Parts::is_there`].
    pub(crate) fn missing(&self) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for number in 0..self.len() {
            if !self.is_there(number)? {
                missing.push(number);
            }
        }
        Ok(missing)
    }

    /// Checks that there is room for the shards with these numbers.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub(crate) fn check_room(&self, numbers: &[usize]) -> Result<()> {
        check_room(&self.path, numbers.iter().map(|&number| self.record.shards[number].bytes).sum())
    }

    /// All shards are there: publishes the index, and removes the plan file.
    ///
    /// # Errors
    /// [`PartsProblem::Missing`], [`PartsProblem::NotTheShard`], [`PartsProblem::NotTheIndex`]; [`Error::Io`].
    pub(crate) fn finish(&self) -> Result<()> {
        let missing = self.missing()?;
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().take(4).map(|&n| self.record.shards[n].file.as_str()).collect();
            let more = if missing.len() > names.len() { ", ..." } else { "" };
            let names = names.join(", ") + more;
            return Err(wrong(&self.path, PartsProblem::Missing { missing: missing.len(), of: self.len(), names }));
        }
        if !self.has_index()? {
            let published = ScratchFile::create(&self.index(), false).and_then(|mut file| {
                file.write(self.record.index.as_bytes())?;
                file.publish()
            });
            match published {
                // Somebody else has finished it meanwhile.
                Err(Error::Output { problem: OutputProblem::Exists, .. }) if self.has_index()? => {}
                published => published?,
            }
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.map_err(|source| Error::Io { action: "remove", path: self.path.clone(), source })?,
        }
        // As for files: what is gone is gone.
        let _ = File::open(folder_of(&self.path)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Layout {
    /// Only the shard with that number, and no index.
    pub(crate) fn shard(&self, number: usize) -> Layout {
        Layout { destination: self.destination.clone(), files: vec![self.files[number].clone()], index: None }
    }

    /// The steps of the plan that the shard with that number holds.
    pub(crate) fn shard_steps(&self, number: usize) -> &[usize] {
        &self.files[number].steps
    }

    /// The folder that may have to be made.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.destination.folder()
    }

    /// Checks that the output can be written in parts where it should go; returns what the user should know of what is there.
    ///
    /// # Errors
    /// [`PartsProblem::OneFile`]; [`Error::Output`] and [`Error::Io`].
    pub(crate) fn check_parts(&self) -> Result<Vec<String>> {
        let Some((index, _)) = &self.index else {
            return Err(wrong(&self.destination.path, PartsProblem::OneFile));
        };
        let plan = beside(index);
        // The index appears last: if it is there without a plan, the output is complete, or another one.
        if fs::symlink_metadata(&plan).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return self.check();
        }
        let shards = self.files.iter().map(|file| file.path.as_path());
        let paths: Vec<&Path> = shards.chain([index.as_path()]).collect();
        Ok(self.destination.taken_first(&paths)?.into_iter().collect())
    }
}
