//! What a file is, from its first bytes; and what it is instead, where it is no checkpoint.

use std::path::Path;

use super::numpy;
use super::safetensors::MAX_HEADER_BYTES;
use super::{legacy, tar};
use crate::error::{Error, Result};

/// No checkpoint is shorter than this, in bytes: an empty safetensors file has 10, an archive far more.
const SHORTEST: usize = 10;

/// First bytes of files that are mistaken for checkpoints, what they are, and the way out.
const OTHERS: &[(&[u8], &str, &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with `gunzip` first"),
    (b"BZh", "compressed with bzip2", "unpack it with `bunzip2` first"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with `unxz` first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with `unzstd` first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (
        b"\x89HDF\r\n",
        "an HDF5 file (Keras, TensorFlow)",
        "load it in its own framework and save the weights as .safetensors",
    ),
    (b"GGUF", "a GGUF file", "use the original checkpoint it was made from"),
    (b"PK\x05\x06", "an empty zip archive", "download or copy the file again"),
    (b"%PDF", "a PDF document", "give the path of the checkpoint"),
];

/// The kinds of file, as far as their first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A zip archive of some kind.
    Zip,
    /// The legacy stream of `torch.save`.
    Legacy,
    /// A tar archive.
    Tar,
    /// A safetensors file.
    Safetensors,
    /// An array in NumPy's format.
    Numpy,
}

/// What `file` is.
///
/// # Errors
/// [`Error::Empty`], [`Error::NotACheckpoint`] with what the file seems to be.
pub(super) fn container(path: &Path, file: &[u8]) -> Result<Kind> {
    if file.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    if file.starts_with(b"PK\x03\x04") {
        return Ok(Kind::Zip);
    }
    if legacy::is_legacy(file) {
        return Ok(Kind::Legacy);
    }
    if tar::is_tar(file) {
        return Ok(Kind::Tar);
    }
    if file.starts_with(numpy::MAGIC) {
        return Ok(Kind::Numpy);
    }
    // Before all that is told by a few bytes: a header of 35615 bytes begins a file like gzip's.
    if let Some((length, rest)) = file.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length);
        if rest.first() == Some(&b'{') && length <= MAX_HEADER_BYTES as u64 {
            return Ok(Kind::Safetensors);
        }
    }
    let not = |found: &str, advice: &str| {
        Err(Error::NotACheckpoint { path: path.to_owned(), found: found.to_owned(), advice: advice.to_owned() })
    };
    if let Some((_, found, advice)) = OTHERS.iter().find(|(magic, ..)| file.starts_with(magic)) {
        return not(found, advice);
    }
    let head = file[..file.len().min(1024)].trim_ascii_start();
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let lower = head.to_ascii_lowercase();
    if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") || lower.starts_with(b"<?xml") {
        return not(
            "a web page, not a checkpoint: the download went wrong",
            "open it in a browser to see what it says, then download again",
        );
    }
    if file.starts_with(&[0x80]) && file.get(1).is_some_and(|&p| (1..=5).contains(&p)) {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("data.pkl") => {
                return not(
                    "a part of an archive of torch.save that was unpacked",
                    "zip its folder again without compression: `zip -0r model.pth FOLDER`",
                );
            }
            Some(".metadata") => {
                return not("the directory of a distributed checkpoint, or another pickle", "give the folder it is in");
            }
            _ => {}
        }
        return not(
            "a pickle that torch.save did not write (plain pickle, joblib, ...)",
            "load it in Python, and save its tensors with torch.save(obj, path)",
        );
    }
    if file.iter().take(4096).all(|&b| b == 0) {
        return not("nothing but zero bytes at its beginning: the copy or download was not finished", "get it again");
    }
    if file.len() < SHORTEST {
        let found = format!("only {} bytes long, too short for any checkpoint", file.len());
        return not(&found, "the copy or download broke off; get it again");
    }
    if file.iter().take(1024).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return not("text", "give the path of a .pth or .safetensors file");
    }
    not("no format that is known here", "give a file written by torch.save or safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_may_be_as_long_as_other_magic_numbers() {
        for magic in [b"\x1f\x8b\0\0", b"BZh\0"] {
            let file = [&magic[..], b"\0\0\0\0{"].concat();
            assert_eq!(container(Path::new("file"), &file).ok(), Some(Kind::Safetensors));
        }
    }
}
