//! Writers: a plan becomes a file of known layout, streamed into a scratch file and published whole.

mod pth;
mod safetensors;
mod scratch;

use std::path::Path;

use crate::error::Result;
use crate::plan::{Plan, Sharing};

pub(crate) use pth::PthLayout;
pub use safetensors::LayoutProblem;
pub(crate) use safetensors::SafetensorsLayout;
pub(crate) use scratch::{ScratchFile, check_target, leftovers};

/// Where the engine puts the bytes that it computes.
pub(crate) trait Sink {
    /// The steps of the plan in the order in which they are to be written.
    fn order(&self) -> &[usize];

    /// The bytes of that step follow.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn begin(&mut self, step: usize) -> Result<()>;

    /// The next bytes of the current step: contiguous little-endian elements.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// The current step is complete.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn end(&mut self) -> Result<()>;
}

/// The kinds of file that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The zip archive of `torch.save`.
    Pth,
    /// safetensors.
    Safetensors,
}

impl Format {
    /// The format that a file's extension stands for: `.safetensors`, or PyTorch's `.pth`, `.pt`, `.bin`, `.ckpt`.
    #[must_use]
    pub fn from_extension(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "safetensors" => Some(Format::Safetensors),
            "pth" | "pt" | "bin" | "ckpt" => Some(Format::Pth),
            _ => None,
        }
    }

    /// `pth` or `safetensors`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Pth => "pth",
            Format::Safetensors => "safetensors",
        }
    }

    /// Whether tensors can share their data in this format.
    #[must_use]
    pub fn sharing(self) -> Sharing {
        match self {
            Format::Pth => Sharing::Keep,
            Format::Safetensors => Sharing::Copy,
        }
    }
}

/// The layout of a file to be: every offset is known.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Of a .pth file.
    Pth(PthLayout),
    /// Of a .safetensors file.
    Safetensors(SafetensorsLayout),
}

impl Layout {
    /// Lays out what `plan` will write; `metadata` goes into a safetensors header, .pth has no place for it.
    ///
    /// # Errors
    /// [`LayoutProblem`] if the format cannot hold a tensor.
    pub(crate) fn new(format: Format, plan: &Plan, metadata: &[(String, String)]) -> Result<Layout, LayoutProblem> {
        match format {
            Format::Pth => Ok(Layout::Pth(PthLayout::new(plan))),
            Format::Safetensors => SafetensorsLayout::new(plan, metadata).map(Layout::Safetensors),
        }
    }

    /// The size of the file, in bytes.
    #[must_use]
    pub(crate) fn file_bytes(&self) -> u64 {
        match self {
            Layout::Pth(layout) => layout.file_bytes(),
            Layout::Safetensors(layout) => layout.file_bytes(),
        }
    }

    /// Starts the file that will be published at `path`.
    ///
    /// # Errors
    /// [`crate::Error::Output`] and [`crate::Error::Io`].
    pub(crate) fn create(self, path: &Path, replace: bool) -> Result<Writer> {
        let file = ScratchFile::create(path, replace)?;
        match self {
            Layout::Pth(layout) => pth::PthSink::new(file, layout).map(Writer::Pth),
            Layout::Safetensors(layout) => safetensors::SafetensorsSink::new(file, layout).map(Writer::Safetensors),
        }
    }
}

/// A file being written.
#[derive(Debug)]
pub(crate) enum Writer {
    Pth(pth::PthSink),
    Safetensors(safetensors::SafetensorsSink),
}

impl Writer {
    pub(crate) fn sink(&mut self) -> &mut dyn Sink {
        match self {
            Writer::Pth(sink) => sink,
            Writer::Safetensors(sink) => sink,
        }
    }

    /// Completes the file, makes it durable and gives it its name.
    pub(crate) fn publish(self) -> Result<()> {
        match self {
            Writer::Pth(sink) => sink.finish()?.publish(),
            Writer::Safetensors(sink) => sink.finish().publish(),
        }
    }
}
