//! Writers: a plan becomes one file of known layout, or several, streamed into scratch files and published whole.

mod destination;
mod layout;
mod parts;
mod pth;
mod publish;
mod safetensors;
mod scratch;
mod shards;
mod writeback;
mod writer;

use std::path::Path;

use crate::plan::Sharing;

pub(crate) use destination::{Destination, left_notes};
pub(crate) use layout::Layout;
pub use layout::LayoutProblem;
pub(crate) use parts::Parts;
pub use parts::PartsProblem;
pub(crate) use scratch::{ScratchFile, check_target};
pub(crate) use writer::{OpenFile, Writer};

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
