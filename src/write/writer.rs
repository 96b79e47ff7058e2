//! The files of an output, one after the other.

use std::vec::IntoIter;

use super::layout::{FileLayout, FileToBe, Layout};
use super::pth::PthSink;
use super::publish::{MadeFolder, publish};
use super::safetensors::SafetensorsSink;
use super::{ScratchFile, Sink};
use crate::error::Result;

/// A file being written.
#[derive(Debug)]
enum FileSink {
    Pth(PthSink),
    Safetensors(SafetensorsSink),
}

impl FileSink {
    fn create(file: FileToBe, replace: bool) -> Result<FileSink> {
        let scratch = ScratchFile::create(&file.path, replace)?;
        match file.layout {
            FileLayout::Pth(layout) => PthSink::new(scratch, layout).map(FileSink::Pth),
            FileLayout::Safetensors(layout) => SafetensorsSink::new(scratch, &layout).map(FileSink::Safetensors),
        }
    }

    /// Writes what follows the last step.
    fn finish(self) -> Result<ScratchFile> {
        match self {
            FileSink::Pth(sink) => sink.finish(),
            FileSink::Safetensors(sink) => Ok(sink.finish()),
        }
    }
}

/// An output being written. What is dropped unpublished leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Writer {
    order: Vec<usize>,
    /// Files that are not begun.
    waiting: IntoIter<FileToBe>,
    current: Option<FileSink>,
    /// Steps of the current file that are not begun.
    left: usize,
    /// Files that are complete, and on the disk.
    done: Vec<ScratchFile>,
    /// The index, also complete.
    index: Option<ScratchFile>,
    replace: bool,
    /// After the files, which are dropped first: a folder that was made for them goes if it is empty.
    folder: MadeFolder,
}

impl Writer {
    pub(super) fn new(layout: Layout) -> Result<Writer> {
        let Layout { destination, files, index, order } = layout;
        let replace = destination.replace;
        let folder = MadeFolder::make(destination.folder())?;
        let index = match index {
            Some((path, content)) => {
                let mut file = ScratchFile::create(&path, replace)?;
                file.write(&content)?;
                file.complete()?;
                Some(file)
            }
            None => None,
        };
        let waiting = files.into_iter();
        let mut writer = Writer { order, waiting, current: None, left: 0, done: Vec::new(), index, replace, folder };
        // Now, so that a file that cannot be made is noticed before anything is computed.
        writer.next_file()?;
        Ok(writer)
    }

    /// Completes the current file, and begins the next one.
    fn next_file(&mut self) -> Result<()> {
        if let Some(current) = self.current.take() {
            let mut file = current.finish()?;
            // On the disk, and closed: there may be more shards than a process may have files open.
            file.complete()?;
            self.done.push(file);
        }
        if let Some(next) = self.waiting.next() {
            self.left = next.steps;
            self.current = Some(FileSink::create(next, self.replace)?);
        }
        Ok(())
    }

    /// Completes all files, makes them durable and gives them their names, the index last.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Output`]; then no file has its name, and those that were replaced are back.
    /// [`crate::Error::NotRestored`] if they could not be put back.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.next_file()?;
        self.done.extend(self.index);
        publish(self.done)?;
        self.folder.keep();
        Ok(())
    }
}

impl Sink for Writer {
    fn order(&self) -> &[usize] {
        &self.order
    }

    fn begin(&mut self, _: usize) -> Result<()> {
        if self.left == 0 {
            self.next_file()?;
        }
        self.left = self.left.saturating_sub(1);
        match &mut self.current {
            Some(FileSink::Pth(sink)) => sink.open(),
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.current {
            Some(FileSink::Pth(sink)) => sink.write(bytes),
            Some(FileSink::Safetensors(sink)) => sink.write(bytes),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        match &mut self.current {
            Some(FileSink::Pth(sink)) => sink.end(),
            _ => Ok(()),
        }
    }
}
