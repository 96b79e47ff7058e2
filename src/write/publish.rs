//! Several files that appear together, or not at all.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::ScratchFile;
use super::scratch::folder_of;
use crate::error::{Error, Result};

/// Gives complete files their names, in order, the one last that readers begin at.
///
/// One file takes the place of an old one in one step. Several cannot: their old files are set aside first, that last one
/// before all others, so that nobody who begins there finds old files and new ones.
///
/// # Errors
/// [`Error::Io`], [`Error::Output`]; then none has its name, and the old files are back. [`Error::NotRestored`] if they
/// could not be put back.
pub(super) fn publish(mut files: Vec<ScratchFile>) -> Result<()> {
    for file in &mut files {
        file.complete()?;
    }
    let mut undo = Undo { last: files.last().map(|file| file.target().to_owned()), ..Undo::default() };
    match undo.publish(files) {
        Ok(()) => {
            undo.remove_asides();
            Ok(())
        }
        Err(error) => Err(undo.restore(error)),
    }
}

/// What has to be taken back if publishing fails.
#[derive(Default)]
struct Undo {
    /// Where old files are, and their names.
    asides: Vec<(PathBuf, PathBuf)>,
    /// The names that new files were given.
    published: Vec<PathBuf>,
    /// The name that the last new file is to have.
    last: Option<PathBuf>,
    /// Whether all the others have theirs.
    at_last: bool,
}

impl Undo {
    fn publish(&mut self, files: Vec<ScratchFile>) -> Result<()> {
        if files.len() > 1 {
            for file in files.iter().rev() {
                let Some(aside) = file.aside()? else { continue };
                let target = file.target().to_owned();
                // A renaming may be carried out and called failed.
                self.asides.push((aside.clone(), target.clone()));
                fs::rename(&target, &aside).map_err(|source| io("set aside", &target, source))?;
            }
        }
        let count = files.len();
        for (index, file) in files.into_iter().enumerate() {
            let target = file.target().to_owned();
            self.at_last = index + 1 == count;
            file.publish()?;
            self.published.push(target);
        }
        Ok(())
    }

    /// Removes the old files.
    fn remove_asides(&self) {
        for (aside, _) in &self.asides {
            // The new files are all there; a name too many is no reason to call them absent.
            let _ = fs::remove_file(aside);
        }
    }

    /// Takes back what was done before `error`, the file that readers begin at last.
    fn restore(self, error: Error) -> Error {
        // A renaming may be carried out and called failed: then all files are there, and the old ones are of no use.
        if self.at_last && self.last.as_ref().is_some_and(|last| fs::symlink_metadata(last).is_ok()) {
            self.remove_asides();
            return error;
        }
        for path in self.published.iter().rev() {
            // Where removing fails there is nobody to tell; an old file may take its place.
            let _ = fs::remove_file(path);
        }
        for (aside, path) in self.asides.into_iter().rev() {
            match fs::rename(&aside, &path) {
                Err(other) if other.kind() != ErrorKind::NotFound => {
                    return Error::NotRestored { path, aside, source: Box::new(error) };
                }
                // It had not been set aside.
                _ => {}
            }
        }
        error
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}

/// A folder that was made for files to be, and goes with them if they are not published.
#[derive(Debug)]
pub(super) struct MadeFolder(Option<PathBuf>);

impl MadeFolder {
    /// Makes the folder, unless it is there or there is none to make.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn make(folder: Option<&Path>) -> Result<MadeFolder> {
        let Some(folder) = folder else { return Ok(MadeFolder(None)) };
        match fs::create_dir(folder) {
            Ok(()) => Ok(MadeFolder(Some(folder.to_owned()))),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(MadeFolder(None)),
            Err(source) => Err(io("make the folder", folder, source)),
        }
    }

    /// The folder stays.
    pub(super) fn keep(mut self) {
        if let Some(folder) = self.0.take()
            && cfg!(unix)
            && let Ok(parent) = File::open(folder_of(&folder))
        {
            // As for files: what is there is there.
            let _ = parent.sync_all();
        }
    }
}

impl Drop for MadeFolder {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Only where it is empty.
            let _ = fs::remove_dir(folder);
        }
    }
}
