//! Writers: a plan becomes one file of known layout, or several, streamed into scratch files and published whole.

mod destination;
mod layout;
mod pth;
mod publish;
mod safetensors;
mod scratch;
mod shards;
mod writer;

use std::path::Path;

use crate::error::Result;
use crate::plan::Sharing;

pub(crate) use destination::{Destination, left_notes};
pub(crate) use layout::Layout;
pub use layout::LayoutProblem;
pub(crate) use scratch::{ScratchFile, check_target};
pub(crate) use writer::Writer;

/// Where the engine puts the bytes that it computes.
pub(crate) trait Sink {
    /// The steps of the plan in the order in which they are to be written.
    fn order(&self) -> &[usize];

    /// The bytes of that step follow.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Output`] if a file that begins here cannot be put where it should go.
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
