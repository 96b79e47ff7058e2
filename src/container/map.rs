//! Read-only memory maps: with `shrunk.rs`, which deals with files that are cut meanwhile, most of the `unsafe` code.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::path::Path;
use std::time::{Instant, SystemTime};

use super::FolderProblem;
use super::pages::Pages;
use super::shrunk::{Watch, watch_map};
use crate::error::{Error, Result};

/// A whole file, mapped for reading; or bytes that are in memory already.
pub(crate) enum Map {
    Mapped(Mapped),
    Memory(Vec<u8>),
}

/// A file that is mapped and kept open.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// First, so that the handler forgets the file before it is unmapped and closed.
    _watch: Option<Watch>,
    map: memmap2::Mmap,
    file: File,
    modified: Option<SystemTime>,
    pages: Pages,
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
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Ok(Map::Memory(Vec::new()));
        }
        // SAFETY: the map is private to this value, read-only, and only ever seen as `&[u8]`, for which every bit
        // pattern is valid. What no program can rule out is another process changing the file meanwhile: then the
        // bytes may change between two reads (nothing here relies on reading the same value twice for memory safety),
        // and if the file is made shorter the operating system sends this process SIGBUS: see `shrunk.rs`.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature; see SAFETY above")]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let watch = watch_map(path, &file, &map);
        Ok(Map::Mapped(Mapped { _watch: watch, map, file, modified: modified(&metadata), pages: Pages::default() }))
    }

    /// Whether `bytes`, which lie in this map, are best used from there, where they are by now; else [`Map::read`] is faster.
    pub(crate) fn is_at_hand(&self, bytes: &[u8]) -> bool {
        let Map::Mapped(Mapped { pages, .. }) = self else { return true };
        // What mapping takes was measured on Linux, where some pages around the one that is asked for come with it.
        let at_hand = cfg!(target_os = "linux") && pages.map(bytes);
        if pages.is_much() {
            self.release();
        }
        at_hand
    }

    /// Unmaps all pages; those that are used again are mapped again.
    fn release(&self) {
        #[cfg(unix)]
        if let Map::Mapped(Mapped { map, .. }) = self {
            // SAFETY: the map is read-only and shared with the file, so that a page of it is the same after it was let go.
            #[expect(unsafe_code, reason = "`MADV_DONTNEED` would lose what was written to other kinds of maps")]
            // If it fails, the pages stay.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// Reads `bytes`, which lie in this map, from the file into `into`, which is as long; `path` is for messages. Returns whether it did:
    /// what is in memory already is not read.
    ///
    /// # Errors
    /// [`Error::Shorter`]; [`Error::Io`].
    pub(crate) fn read(&self, path: &Path, bytes: &[u8], into: &mut [u8]) -> Result<bool> {
        let Map::Mapped(Mapped { map, file, pages, .. }) = self else { return Ok(false) };
        let at = bytes.as_ptr().addr() - map.as_ptr().addr();
        let start = Instant::now();
        match read_exact_at(file, into, at as u64) {
            Ok(()) => {
                pages.read(into.len(), start.elapsed());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Error::Shorter { path: path.to_owned() }),
            Err(source) => Err(Error::Io { action: "read", path: path.to_owned(), source }),
        }
    }

    /// When the file was changed last, as it was opened; `None` if the system does not tell.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        match self {
            Map::Mapped(mapped) => mapped.modified,
            Map::Memory(_) => None,
        }
    }

    /// Checks that the file is still what it was when it was opened, as far as its size and its time tell; `path` is for
    /// messages.
    ///
    /// # Errors
    /// [`Error::Shorter`] and [`Error::Changed`]; [`Error::Io`].
    pub(crate) fn check_unchanged(&self, path: &Path) -> Result<()> {
        let Map::Mapped(Mapped { map, file, modified: before, .. }) = self else { return Ok(()) };
        let metadata =
            file.metadata().map_err(|source| Error::Io { action: "look at", path: path.to_owned(), source })?;
        if metadata.len() < map.len() as u64 {
            return Err(Error::Shorter { path: path.to_owned() });
        }
        if modified(&metadata) != *before {
            return Err(Error::Changed { path: path.to_owned() });
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, into, at) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => (into, at) = (&mut into[read..], at + read as u64),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// When the file was changed last, where the system tells.
fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({} bytes)", self.len())
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Map::Mapped(mapped) => &mapped.map,
            Map::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_the_file_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Map::open(&path).unwrap();
        let mut into = vec![0; 1000];
        assert!(map.read(&path, &map[4095..5095], &mut into).unwrap());
        assert_eq!(into, bytes[4095..5095]);
        assert!(map.read(&path, &map[9000..], &mut into).unwrap());
        assert_eq!(into, bytes[9000..]);
        assert!(!Map::Memory(bytes).read(&path, &[], &mut []).unwrap());
        File::options().write(true).open(&path).unwrap().set_len(9500).unwrap();
        assert!(matches!(map.read(&path, &map[9000..], &mut into), Err(Error::Shorter { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn bytes_at_hand_are_the_file_s_before_and_after_all_were_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Map::open(&path).unwrap();
        let piece = &map[100_000..200_000];
        let mut into = vec![0; piece.len()];
        // The first are read, to know how long that takes.
        for _ in 0..4 {
            assert!(!map.is_at_hand(piece));
            assert!(map.read(&path, piece, &mut into).unwrap());
        }
        assert!(map.is_at_hand(piece));
        assert!(!map.is_at_hand(&piece[..1000]));
        assert!(piece == &bytes[100_000..200_000]);
        map.release();
        assert!(*map == *bytes);
        assert!(Map::Memory(bytes).is_at_hand(&[]));
    }
}
