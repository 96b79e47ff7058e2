//! The files of an output, one after the other.

use std::vec::IntoIter;

use super::ScratchFile;
use super::layout::{FileLayout, FileToBe, Layout};
use super::publish::{MadeFolder, publish};
use super::scratch::check_room;
use crate::error::Result;

/// A file being written: every place in it is known, and the data of its steps may come in any order, from any thread.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: ScratchFile,
    layout: FileLayout,
    steps: Vec<usize>,
}

impl OpenFile {
    /// Starts the file, and writes what comes before the data of the first step.
    fn create(file: FileToBe, replace: bool, sync: bool) -> Result<OpenFile> {
        let FileToBe { path, layout, steps } = file;
        let mut file = ScratchFile::create(&path, replace)?.synced(sync);
        file.reserve(layout.bytes())?;
        file.write_at(0, &layout.front())?;
        Ok(OpenFile { file, layout, steps })
    }

    /// The steps of the plan that it holds, in the order in which they lie in it.
    pub(crate) fn steps(&self) -> &[usize] {
        &self.steps
    }

    /// Where the data of the step at that place of the order begins: contiguous little-endian elements.
    pub(crate) fn begin(&self, place: usize) -> u64 {
        self.layout.begin(place)
    }

    /// Whether the file holds checksums (CRC-32) of the steps' data.
    pub(crate) fn has_checksums(&self) -> bool {
        self.layout.has_checksums()
    }

    /// What has to be written right after the data of the step at that place, which has this checksum; it ends where the
    /// data of the next step begins.
    pub(crate) fn tail(&self, place: usize, crc: u32) -> Vec<u8> {
        self.layout.tail(place, crc)
    }

    /// Writes bytes at a place of the file.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub(crate) fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(at, bytes)
    }

    /// Writes what follows the data of all steps, given their checksums in order.
    fn finish(self, crcs: &[u32]) -> Result<ScratchFile> {
        let (at, end) = self.layout.end(crcs);
        if !end.is_empty() {
            self.file.write_at(at, &end)?;
        }
        Ok(self.file)
    }
}

/// An output being written. What is dropped unpublished leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Files that are not begun.
    waiting: IntoIter<FileToBe>,
    current: Option<OpenFile>,
    /// Files that are complete, and on the disk.
    done: Vec<ScratchFile>,
    /// The index, also complete.
    index: Option<ScratchFile>,
    replace: bool,
    sync: bool,
    /// After the files, which are dropped first: a folder that was made for them goes if it is empty.
    folder: MadeFolder,
}

impl Writer {
    pub(super) fn new(layout: Layout) -> Result<Writer> {
        let Layout { destination, files, index } = layout;
        let (replace, sync) = (destination.replace, destination.sync);
        let folder = MadeFolder::make(destination.folder())?;
        // One file takes its room when it is created; of several, all have to fit.
        if files.len() > 1 {
            check_room(&files[0].path, files.iter().map(|file| file.layout.bytes()).sum())?;
        }
        let index = match index {
            Some((path, content)) => {
                let mut file = ScratchFile::create(&path, replace)?.synced(sync);
                file.write(&content)?;
                file.complete()?;
                Some(file)
            }
            None => None,
        };
        let waiting = files.into_iter();
        let mut writer = Writer { waiting, current: None, done: Vec::new(), index, replace, sync, folder };
        // Now, so that a file that cannot be made is noticed before anything is computed.
        writer.begin_next()?;
        Ok(writer)
    }

    /// The file to be written now; `None` when all are complete.
    pub(crate) fn current(&self) -> Option<&OpenFile> {
        self.current.as_ref()
    }

    /// All data of the current file is written: completes it, given the checksums of its steps in their order (nothing, if it
    /// has none), and begins the next one.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Output`] if the next one cannot be put where it should go.
    pub(crate) fn next_file(&mut self, crcs: &[u32]) -> Result<()> {
        if let Some(current) = self.current.take() {
            let mut file = current.finish(crcs)?;
            // On the disk, and closed: there may be more shards than a process may have files open.
            file.complete()?;
            self.done.push(file);
        }
        self.begin_next()
    }

    fn begin_next(&mut self) -> Result<()> {
        self.current = self.waiting.next().map(|next| OpenFile::create(next, self.replace, self.sync)).transpose()?;
        Ok(())
    }

    /// Makes all files durable and gives them their names, the index last.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Output`]; then no file has its name, and those that were replaced are back.
    /// [`crate::Error::NotRestored`] if they could not be put back.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.done.extend(self.index);
        publish(self.done)?;
        self.folder.keep();
        Ok(())
    }
}
