//! What was learned, as a file.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::write::{ScratchFile, check_target};

/// A file, of text mostly, that is published whole or not at all.
#[derive(Debug)]
pub struct TextFile {
    file: ScratchFile,
    path: PathBuf,
}

impl TextFile {
    /// Starts the file; one that is there is only replaced if `replace`.
    ///
    /// # Errors
    /// [`crate::Error`]: it exists, or cannot be made.
    pub fn create(path: &Path, replace: bool) -> Result<TextFile> {
        check_target(path, replace)?;
        Ok(TextFile { file: ScratchFile::create(path, replace)?, path: path.to_owned() })
    }

    /// The file that this will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends text.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.file.write(text.as_bytes())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write(bytes)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn publish(self) -> Result<()> {
        self.file.publish()
    }
}
