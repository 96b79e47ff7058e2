//! A file that is published whole or not at all.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::writeback;
use crate::container::{Watch, watch_scratch};
use crate::error::{Error, OutputProblem, Result};

/// Bytes gathered before they are written; larger pieces are written at once.
const BUFFER: usize = 1 << 20;

/// Bytes from which on a file is large: there may not be as much free memory, so that the system has to make room for what is written.
const LARGE: u64 = 1 << 30;
/// Bytes that are written at a time to a large file. The system takes a page as large as what it is given, and pages of 512 KiB are hard to
/// get when memory has to be made free for them; for those of 128 KiB it still moves others out of the way now and then.
///
/// Local file systems let one thread at a time into a file. Threads that wait for that spin, and with pieces they would do so for each one
/// of their pieces, when the system's own thread that makes room needs a processor: they take turns by themselves, and sleep meanwhile.
const PIECE: u64 = 64 << 10;

/// A sibling of the file to be: `.NAME.m2pt-surgery-PID-N.tmp`. It takes the name with [`ScratchFile::publish`], and is
/// removed when dropped before that. Only a killed process leaves it behind, under a name that tells what it is.
#[derive(Debug)]
pub(crate) struct ScratchFile {
    file: Option<BufWriter<File>>,
    /// `None` once it has become the target.
    scratch: Option<PathBuf>,
    _watch: Option<Watch>,
    target: PathBuf,
    replace: bool,
    sync: bool,
    /// Positioned writes go no further than to the next multiple of this.
    piece: u64,
    /// Held by the thread that writes pieces.
    turn: Mutex<()>,
}

/// Checks that a file can be published at `path`: its folder exists, and it is no folder or device; that nothing is there
/// yet, unless it may be replaced. Returns what is known of the file that is there.
///
/// # Errors
/// [`Error::Output`] saying which; [`Error::Io`] if the operating system does not tell.
pub(crate) fn check_target(path: &Path, replace: bool) -> Result<Option<Metadata>> {
    let wrong = |problem| Err(Error::Output { path: path.to_owned(), problem });
    // `Path` ignores a slash at the end; the operating system does not.
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return wrong(OutputProblem::NoName);
    }
    let folder = folder_of(path);
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return wrong(OutputProblem::NotAFolder { folder: folder.to_owned() }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return wrong(OutputProblem::NoFolder { folder: folder.to_owned() });
        }
        Err(source) => return Err(Error::Io { action: "look into", path: folder.to_owned(), source }),
    }
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => wrong(OutputProblem::NotAFile),
        Ok(_) if !replace => wrong(OutputProblem::Exists),
        Ok(metadata) => Ok(Some(metadata)),
        // A link that leads nowhere is a name that is taken.
        Err(_) if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) => wrong(OutputProblem::BrokenLink),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // Not knowing what is there is no licence to replace it.
        Err(source) => Err(Error::Io { action: "look at", path: path.to_owned(), source }),
    }
}

/// The start of the names of the scratch files of `target`.
fn scratch_prefix(target: &Path) -> String {
    // File systems take names of 255 bytes; what is added here takes less than 100.
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    format!(".{}.m2pt-surgery-", &name[..name.floor_char_boundary(150)])
}

/// A name beside `target` that this process has not given yet: `.NAME.m2pt-surgery-PID-N` and the ending.
fn sibling(target: &Path, ending: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    folder_of(target).join(format!("{}{}-{number}{ending}", scratch_prefix(target), std::process::id()))
}

/// What the names of scratch files end in.
const SCRATCH: &str = ".tmp";
/// What the names of files end in that were set aside until those that replace them are all there.
const ASIDE: &str = ".old";

/// The scratch files of `path` that are there now: left behind by a killed process, or being written by another one.
///
/// Which of the two cannot be told safely (its process may live on another machine that shares the folder, or in another
/// container), and so they are never removed.
pub(super) fn leftovers(path: &Path) -> Vec<PathBuf> {
    named_like_scratch(path, SCRATCH)
}

/// The old files of `path` that a killed process had set aside, or that another one sets aside now.
pub(super) fn asides(path: &Path) -> Vec<PathBuf> {
    named_like_scratch(path, ASIDE)
}

fn named_like_scratch(path: &Path, ending: &str) -> Vec<PathBuf> {
    let link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let target = link.then(|| fs::canonicalize(path).ok()).flatten().unwrap_or_else(|| path.to_owned());
    let prefix = scratch_prefix(&target);
    // Where the folder may not be read, nothing can be said.
    let entries = fs::read_dir(folder_of(&target)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(ending))
        })
        .map(|entry| target.with_file_name(entry.file_name()))
        .collect();
    found.sort();
    found
}

/// The folder that a path names a file in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl ScratchFile {
    /// Starts a file that will be published at `path`; a link there is followed. A file that is there already is only
    /// replaced if `replace`, and passes on its mode.
    ///
    /// # Errors
    /// As [`check_target`], and [`Error::Io`].
    pub(crate) fn create(path: &Path, replace: bool) -> Result<ScratchFile> {
        let existing = check_target(path, replace)?;
        let target = match existing {
            Some(_) => fs::canonicalize(path).map_err(|source| Error::Io {
                action: "follow",
                path: path.to_owned(),
                source,
            })?,
            None => path.to_owned(),
        };
        loop {
            let scratch = sibling(&target, SCRATCH);
            let opened = OpenOptions::new().write(true).create_new(true).open(&scratch);
            let file = match opened {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                other => other.map_err(|source| Error::Io { action: "create", path: target.clone(), source })?,
            };
            let watch = watch_scratch(&scratch);
            let mode = existing.map(|metadata| fs::set_permissions(&scratch, metadata.permissions()));
            let file = Some(BufWriter::with_capacity(BUFFER, file));
            let (scratch, sync, piece) = (Some(scratch), true, u64::MAX);
            let turn = Mutex::default();
            let created = ScratchFile { file, scratch, _watch: watch, target, replace, sync, piece, turn };
            mode.transpose().map_err(|source| created.error("set the mode of", source))?;
            return Ok(created);
        }
    }

    /// Whether the file, and the name that it gets, are made durable; they are unless this says otherwise.
    pub(super) fn synced(mut self, sync: bool) -> ScratchFile {
        self.sync = sync;
        self
    }

    fn error(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io { action, path: self.target.clone(), source }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that was to be published.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|source| self.error("write", source)),
            None => Ok(()),
        }
    }

    /// Takes the room on the disk that a file of that size needs, so that a full disk is noticed before anything is computed;
    /// where the system cannot do that, nothing happens.
    ///
    /// # Errors
    /// [`Error::NoRoom`]; [`Error::Io`].
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        self.piece = if bytes > LARGE { PIECE } else { u64::MAX };
        match reserve(file.get_ref(), bytes) {
            Err(source) if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                Err(Error::NoRoom { path: self.target.clone(), bytes, source })
            }
            other => other.map_err(|source| self.error("write", source)),
        }
    }

    /// Writes bytes at a place of the file, from any thread. Not to be mixed with [`ScratchFile::write`].
    ///
    /// # Errors
    /// As [`ScratchFile::write`].
    pub(super) fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (file, mut place, mut rest) = (file.get_ref(), at, bytes);
        let turn = (self.piece < u64::MAX).then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        while !rest.is_empty() {
            let room = self.piece - place % self.piece;
            let (piece, more) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            write_all_at(file, piece, place).map_err(|source| self.error("write", source))?;
            (place, rest) = (place + piece.len() as u64, more);
        }
        drop(turn);
        if self.sync {
            writeback::begin(file, at, bytes.len());
        }
        Ok(())
    }

    /// Makes what was written durable; nothing can be written afterwards.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn complete(&mut self) -> Result<()> {
        if let Some(file) = self.file.take() {
            let file = file.into_inner().map_err(|error| self.error("write", error.into_error()))?;
            if self.sync {
                file.sync_all().map_err(|source| self.error("write", source))?;
            }
        }
        Ok(())
    }

    /// The file that this will be.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Where the file that is to be replaced, if there is one, can be put meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system does not tell what is there.
    pub(super) fn aside(&self) -> Result<Option<PathBuf>> {
        if !self.replace || !self.taken(&self.target)? {
            return Ok(None);
        }
        loop {
            let aside = sibling(&self.target, ASIDE);
            if !self.taken(&aside)? {
                return Ok(Some(aside));
            }
        }
    }

    fn taken(&self, path: &Path) -> Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(self.error("look at", source)),
        }
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Output`] if another file took the name meanwhile.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.complete()?;
        // The renaming itself is made durable by syncing the folder, where that may be opened: a folder that can be
        // written but not read is no reason to fail.
        #[cfg(unix)]
        let folder = if self.sync { File::open(folder_of(&self.target)).ok() } else { None };
        let Some(scratch) = self.scratch.clone() else { return Ok(()) };
        if self.replace {
            fs::rename(&scratch, &self.target).map_err(|source| self.error("replace", source))?;
            self.scratch = None;
        } else {
            // A link, unlike a renaming, fails if the name was taken meanwhile.
            match fs::hard_link(&scratch, &self.target) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(Error::Output { path: self.target.clone(), problem: OutputProblem::Exists });
                }
                // Some file systems have no links.
                Err(_) => {
                    check_target(&self.target, false)?;
                    fs::rename(&scratch, &self.target).map_err(|source| self.error("create", source))?;
                    self.scratch = None;
                }
            }
        }
        #[cfg(unix)]
        if let Some(folder) = folder {
            // The file is there; that it may be gone after a power failure is no reason to call it absent.
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::INTR) => {}
            // Not every file system can.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
            other => return Ok(other?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Checks that `bytes` more bytes have room where the file `path` is to be, as far as the system tells.
///
/// # Errors
/// [`Error::NoRoom`].
pub(super) fn check_room(path: &Path, bytes: u64) -> Result<()> {
    #[cfg(target_os = "linux")]
    if let Ok(system) = rustix::fs::statvfs(folder_of(path))
        && system.f_bavail.saturating_mul(system.f_frsize) < bytes
    {
        return Err(Error::NoRoom { path: path.to_owned(), bytes, source: ErrorKind::StorageFull.into() });
    }
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => (bytes, at) = (&bytes[written..], at + written as u64),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            // Where removing fails there is nobody to tell.
            let _ = fs::remove_file(scratch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_left_unless_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pth");
        let mut file = ScratchFile::create(&path, false).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        assert!(!path.exists());
        drop(file);
        assert!(names(folder.path()).is_empty());
        let mut file = ScratchFile::create(&path, false).unwrap();
        file.write(b"whole").unwrap();
        file.publish().unwrap();
        assert_eq!(names(folder.path()), ["a.pth"]);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn bytes_are_written_to_their_places_whatever_the_size_of_the_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..200_000).map(|i| (i % 251) as u8).collect();
        for (piece, sync) in [(1000, true), (1000, false), (u64::MAX, true), (u64::MAX, false)] {
            let path = folder.path().join("a.pth");
            let mut file = ScratchFile::create(&path, true).unwrap().synced(sync);
            file.reserve(200_000).unwrap();
            assert_eq!(file.piece, u64::MAX);
            file.piece = piece;
            std::thread::scope(|scope| {
                for (from, to) in [(70_001, 200_000), (0, 999), (999, 1000), (1000, 70_001), (5, 5)] {
                    let (file, bytes) = (&file, &bytes[from..to]);
                    scope.spawn(move || file.write_at(from as u64, bytes).unwrap());
                }
            });
            file.publish().unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{piece}");
        }
    }

    #[test]
    fn a_name_taken_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pth");
        let file = ScratchFile::create(&path, false).unwrap();
        fs::write(&path, b"somebody else's").unwrap();
        assert!(matches!(file.publish(), Err(Error::Output { problem: OutputProblem::Exists, .. })));
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
        assert_eq!(names(folder.path()), ["a.pth"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_passes_on_its_mode_and_links_are_followed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a.pth"), folder.path().join("link.pth"));
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        assert!(matches!(ScratchFile::create(&link, false), Err(Error::Output { problem: OutputProblem::Exists, .. })));
        let mut file = ScratchFile::create(&link, true).unwrap();
        file.write(b"new").unwrap();
        file.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn rejects_folders_and_missing_folders() {
        let folder = tempfile::tempdir().unwrap();
        let problem = |path: &Path| match ScratchFile::create(path, true) {
            Err(Error::Output { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert!(matches!(problem(folder.path()), OutputProblem::NotAFile));
        assert!(matches!(problem(&folder.path().join("none/a.pth")), OutputProblem::NoFolder { .. }));
        assert!(matches!(problem(Path::new("/")), OutputProblem::NoName));
        let slash = format!("{}/", folder.path().join("a.pth").display());
        assert!(matches!(problem(Path::new(&slash)), OutputProblem::NoName));
    }
}
