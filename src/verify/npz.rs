//! NumPy's `.npz`: a zip archive of stored `.npy` arrays, as `numpy.savez` writes it.
//!
//! Every entry has zip64 fields, in the directory too, so that there is one form for all sizes.

use crate::error::Result;
use crate::write::ScratchFile;

/// 1 January 1980, the earliest date of the format: nothing in the file depends on when it was made.
const DATE: u16 = 0x0021;
/// What a 32-bit field holds when the value is in a zip64 field.
const LARGE: u32 = u32::MAX;
/// The version of zip that has zip64 fields.
const VERSION: u16 = 45;

/// An array: its name, NumPy's description of its elements, its shape, and its bytes, row-major and little-endian.
pub(super) struct Array<'a> {
    pub(super) name: &'a str,
    pub(super) descr: String,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

impl Array<'_> {
    /// The header of the array in NumPy's format, version 1.0, padded so that the data is aligned to 64 bytes.
    fn header(&self) -> Vec<u8> {
        let shape = match self.shape.as_slice() {
            [only] => format!("({only},)"),
            shape => format!("({})", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}", self.descr);
        let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
        while text.len() + 1 < length {
            text.push(' ');
        }
        text.push('\n');
        [&b"\x93NUMPY\x01\x00"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
    }
}

/// Writes the archive of these arrays.
///
/// # Errors
/// [`crate::Error::Io`].
pub(super) fn write(file: &mut ScratchFile, arrays: &[Array<'_>]) -> Result<()> {
    let mut directory = Vec::new();
    let mut at = 0;
    for array in arrays {
        let (name, header) = (format!("{}.npy", array.name), array.header());
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&header);
        checksum.update(array.bytes);
        let size = (header.len() + array.bytes.len()) as u64;
        let common = common(checksum.finalize(), name.len());
        let local = [&b"PK\x03\x04"[..], &common, &20u16.to_le_bytes(), name.as_bytes()].concat();
        for piece in [&local[..], &zip64(&[size, size]), &header, array.bytes] {
            file.write(piece)?;
        }
        directory.extend(b"PK\x01\x02");
        directory.extend(VERSION.to_le_bytes());
        directory.extend(&common);
        directory.extend(28u16.to_le_bytes());
        // No comment, on the first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(LARGE.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend(zip64(&[size, size, at]));
        at += (local.len() + 20) as u64 + size;
    }
    file.write(&directory)?;
    file.write(&end(arrays.len() as u64, at, directory.len() as u64))
}

/// What local headers and the directory have in common: from the version needed to the length of the name.
fn common(checksum: u32, name: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [VERSION, 0, 0, 0, DATE] {
        out.extend(field.to_le_bytes());
    }
    for field in [checksum, LARGE, LARGE] {
        out.extend(field.to_le_bytes());
    }
    out.extend((name as u16).to_le_bytes());
    out
}

fn zip64(values: &[u64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    [&1u16.to_le_bytes()[..], &(values.len() as u16).to_le_bytes(), &values].concat()
}

/// The end records of an archive whose directory of `count` entries begins at `start`.
fn end(count: u64, start: u64, bytes: u64) -> Vec<u8> {
    let mut out = b"PK\x06\x06".to_vec();
    out.extend(44u64.to_le_bytes());
    out.extend([VERSION.to_le_bytes(), VERSION.to_le_bytes()].concat());
    out.extend([0; 8]);
    for field in [count, count, bytes, start] {
        out.extend(field.to_le_bytes());
    }
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend((start + bytes).to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([(count as u16).to_le_bytes(), (count as u16).to_le_bytes()].concat());
    out.extend([LARGE.to_le_bytes(), LARGE.to_le_bytes()].concat());
    out.extend(0u16.to_le_bytes());
    out
}
