//! Scanning: what loading a file would execute.
//!
//! [`scan_file`] looks at every pickle in a file, whatever it hides in, and judges each name that is imported or called by
//! two allow-lists: what `torch.load(weights_only=True)` accepts, and types that only hold data. Nothing is executed, and
//! nothing is believed: archives are read once by their directory and once by their entries, pickles as far as they
//! go, and what contradicts itself is a finding. Whatever could not be looked at is said, and is never clean.
//!
//! | limit | |
//! | --- | --- |
//! | [`MAX_STACK`], [`MAX_MEMO`], [`MAX_ITEMS`], [`MAX_NAMES`], [`MAX_DECODED`], [`MAX_PAYLOADS`] | of one pickle |
//! | [`MAX_USES`], [`MAX_PICKLES`], [`MAX_FINDINGS`], [`MAX_ENTRIES`] | of one file |
//! | [`MAX_NESTING`] | containers in containers |
//! | [`MAX_EXPANDED_HEAD`], [`MAX_EXPANDED`], [`MAX_EXPANSION`] | compressed data |
//!
//! What exceeds a limit is reported as not scanned.

mod archive;
mod calls;
mod carve;
mod entry;
mod formats;
mod inflate;
mod judge;
mod report;
mod scanner;
mod steps;
mod stream;
mod trace;
mod values;
mod verdict;
mod walk;
mod zip;

use std::path::Path;

use crate::container::Map;
use crate::error::Result;

pub use report::{FileReport, Finding, Level, Name, PickleReport, Rule, Use, UseKind, Verdict, WeightsOnly};
pub use scanner::{
    MAX_ENTRIES, MAX_EXPANDED, MAX_EXPANDED_HEAD, MAX_EXPANSION, MAX_FINDINGS, MAX_NESTING, MAX_PICKLES,
};
pub use trace::{MAX_DECODED, MAX_ITEMS, MAX_MEMO, MAX_NAMES, MAX_PAYLOADS, MAX_STACK, MAX_USES};

/// Scans the file at `path`, which is memory-mapped.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::Directory`](crate::Error::Directory) and
/// [`Error::NotAFile`](crate::Error::NotAFile) where the file cannot be opened. Whatever is in it is no error.
pub fn scan_file(path: &Path) -> Result<FileReport> {
    let map = Map::open(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(scan_bytes(&name, &map))
}

/// Scans the content of a file of that name. The name tells nothing but what it promises: a pickle behind `.txt` is a
/// finding.
#[must_use]
pub fn scan_bytes(name: &str, bytes: &[u8]) -> FileReport {
    scanner::scan(name, bytes)
}
