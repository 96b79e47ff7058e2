//! Where an output goes, and how: names of files, and what is there already.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::scratch::{asides, folder_of, leftovers};
use super::{Format, check_target};
use crate::error::{Error, OutputProblem, Result};

/// Where an output goes, and how.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The file; with `shard_bytes`, the folder, or the name that those of the shards are made of.
    pub(crate) path: PathBuf,
    /// The format of every file.
    pub(crate) format: Format,
    /// Whether files that are there already are replaced.
    pub(crate) replace: bool,
    /// Whether files are made durable before they get their names.
    pub(crate) sync: bool,
    /// The most bytes of tensors in one file, as far as tensors fit; `None` for one file whatever its size.
    pub(crate) shard_bytes: Option<u64>,
    /// The keys that tensors go under in a .pth file, joined by dots; empty for none.
    pub(crate) root: String,
}

/// What transformers and this crate load from a folder, the first that is there.
const TAKEN: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

impl Destination {
    /// One file.
    #[cfg(feature = "verify")]
    pub(crate) fn file(path: &Path, format: Format, replace: bool) -> Destination {
        Destination { path: path.to_owned(), format, replace, sync: true, shard_bytes: None, root: String::new() }
    }

    /// The folder that holds the files under the names of transformers, if the path is no name of a file.
    pub(super) fn folder(&self) -> Option<&Path> {
        let slash = self.path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let named = Format::from_extension(&self.path).is_some() && !slash && !self.path.is_dir();
        (self.shard_bytes.is_some() && !named).then_some(&self.path)
    }

    /// The file that holds all tensors, if it is only one.
    pub(crate) fn main_file(&self) -> PathBuf {
        match (self.folder(), self.format) {
            (None, _) => self.path.clone(),
            (Some(folder), Format::Safetensors) => folder.join(TAKEN[0]),
            (Some(folder), Format::Pth) => folder.join(TAKEN[2]),
        }
    }

    /// The name of a shard: `model-00001-of-00002.safetensors`.
    pub(super) fn shard(&self, number: usize, of: usize) -> PathBuf {
        let file = self.main_file();
        let mut name = file.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{number:05}-of-{of:05}"));
        if let Some(extension) = file.extension() {
            name.push(".");
            name.push(extension);
        }
        file.with_file_name(name)
    }

    /// The index of the shards.
    pub(super) fn index(&self) -> PathBuf {
        with(self.main_file(), ".index.json")
    }

    /// Checks that files can be published under those names; returns what the user should know of what is there.
    pub(super) fn check(&self, paths: &[&Path]) -> Result<Vec<String>> {
        if let Some(folder) = self.folder().filter(|folder| is_absent(folder)) {
            // It will be made, and nothing is in it.
            return check_target(&trimmed(folder), false).map(|_| Vec::new());
        }
        let mut notes = Vec::new();
        for path in paths {
            check_target(path, self.replace)?;
            notes.extend(left_notes(path));
        }
        if self.shard_bytes.is_some() {
            notes.extend(self.taken_first(paths)?);
            notes.extend(self.stale(paths));
        }
        Ok(notes)
    }

    /// What readers of the folder would take in place of what is written, if it was written under a name of transformers.
    pub(super) fn taken_first(&self, paths: &[&Path]) -> Result<Option<String>> {
        let Some((last, name)) = paths.last().and_then(|path| Some((path, path.file_name()?.to_str()?))) else {
            return Ok(None);
        };
        let before = TAKEN.iter().take_while(|taken| **taken != name);
        if !TAKEN.contains(&name) {
            return Ok(None);
        }
        let first = before.map(|taken| last.with_file_name(taken)).find(|path| path.is_file());
        match first {
            Some(path) if !self.replace => {
                Err(Error::Output { path, problem: OutputProblem::TakenFirst { instead: name.to_owned() } })
            }
            Some(path) => {
                Ok(Some(format!("whoever loads the folder takes {} in place of {name}; remove it", path.display())))
            }
            None => Ok(None),
        }
    }

    /// Files of an output of the same name that was split otherwise, or not split.
    fn stale(&self, paths: &[&Path]) -> Option<String> {
        let file = self.main_file();
        let index = self.index();
        let is_own = |path: &Path| is_shard_of(&file, path) || path == index || path == file;
        // Where the folder may not be read, nothing can be said.
        let entries = fs::read_dir(folder_of(&file)).into_iter().flatten().flatten();
        let found = entries.map(|entry| file.with_file_name(entry.file_name()));
        let mut stale: Vec<_> = found.filter(|path| is_own(path) && !paths.contains(&path.as_path())).collect();
        stale.sort();
        let (first, rest) = stale.split_first()?;
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more like it", rest.len()) };
        Some(format!(
            "{}{more} are of another output of that name, and stay as they are; remove them if nobody needs them",
            first.display()
        ))
    }
}

/// Whether `path` is a shard of `file` by its name.
fn is_shard_of(file: &Path, path: &Path) -> bool {
    let shard = || {
        let rest = path.file_stem()?.to_str()?.strip_prefix(file.file_stem()?.to_str()?)?;
        let (number, of) = rest.strip_prefix('-')?.split_once("-of-")?;
        let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        Some(is_number(number) && is_number(of))
    };
    path.extension() == file.extension() && shard() == Some(true)
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The path without slashes at its end.
fn trimmed(path: &Path) -> PathBuf {
    path.components().collect()
}

fn with(path: PathBuf, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// What was left behind at `path` by runs that were killed, as notes.
pub(crate) fn left_notes(path: &Path) -> Vec<String> {
    let scratch = leftovers(path).into_iter().map(|left| {
        format!(
            "{} was left behind by a run that was killed, or is being written by another one now; if there is none, remove \
             it",
            left.display()
        )
    });
    let old = asides(path).into_iter().map(|aside| {
        format!(
            "{} is what {} was before a run that was killed while it replaced it; rename it to that, or remove it",
            aside.display(),
            path.display()
        )
    });
    scratch.chain(old).collect()
}
