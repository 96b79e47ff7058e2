//! Read-only memory maps: the one file of the crate with `unsafe` code.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use super::FolderProblem;
use crate::error::{Error, Result};

/// A whole file, mapped for reading; or bytes that are in memory already.
#[derive(Debug)]
pub(crate) enum Map {
    Mapped(memmap2::Mmap),
    Memory(Vec<u8>),
}

impl Map {
    /// Maps the file at `path`, which may be empty.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Directory`].
    pub(crate) fn open(path: &Path) -> Result<Map> {
        let io = |source| Error::Io { action: "open", path: path.to_owned(), source };
        // Looked at first by name: opening a pipe would wait for whoever writes to it.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_dir() {
            return Err(Error::Directory { path: path.to_owned(), problem: FolderProblem::NotAFile });
        }
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Ok(Map::Memory(Vec::new()));
        }
        // SAFETY: the map is private to this value, read-only, and only ever seen as `&[u8]`, for which every bit
        // pattern is valid. What no program can rule out is another process changing the file meanwhile: then the
        // bytes may change between two reads (nothing here relies on reading the same value twice for memory safety),
        // and if the file is made shorter the operating system ends this process with SIGBUS.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature; see SAFETY above")]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Map::Mapped(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Map::Mapped(map) => map,
            Map::Memory(bytes) => bytes,
        }
    }
}
