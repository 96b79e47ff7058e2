//! The directory of a zip archive, as far as checkpoints use it: stored and deflated entries, zip64.
//!
//! Sizes and offsets come from the central directory alone; the local header of an entry only tells where its data
//! begins (PyTorch writes zero sizes there, and pads with an extra field). Specification: PKWARE APPNOTE 6.3.10.

use std::ops::Range;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};

use super::{MAX_NAME_BYTES, MAX_TENSORS};
use crate::pickle::{self, Budget, Full};

/// Why an archive cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZipProblem {
    /// No end-of-central-directory record: nearly always a download or copy that broke off.
    #[error(
        "the zip directory that belongs at its end is missing, so the file was cut off after {length} bytes: download or copy it again"
    )]
    Truncated {
        /// Bytes in the file.
        length: u64,
    },
    /// The archive is whole, but more follows it.
    #[error(
        "{extra} bytes follow the end of the zip archive: something was appended to it; get the file again, or cut it to {length} bytes"
    )]
    Trailing {
        /// Bytes of the archive.
        length: u64,
        /// Bytes after it.
        extra: u64,
    },
    /// A record of the directory is malformed.
    #[error("its zip directory is damaged at byte {offset}: {what}")]
    Directory {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry's data is not where the directory says it is.
    #[error("zip entry {entry:?} at byte {offset}: {what}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// Where its local header is, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Two entries have the same name.
    #[error("zip entry {entry:?} occurs twice")]
    Duplicate {
        /// The name.
        entry: String,
    },
    /// Two entries share bytes.
    #[error("zip entries {first:?} and {second:?} overlap")]
    Overlap {
        /// The entry that begins first.
        first: String,
        /// The entry that begins inside it.
        second: String,
    },
    /// The checksum of the data is not the one that was stored with it.
    #[error(
        "zip entry {entry:?} is damaged: its CRC-32 is {found:08x}, the directory says {stored:08x}; get the file again"
    )]
    Checksum {
        /// The entry's name.
        entry: String,
        /// The checksum in the directory.
        stored: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The archive has more of something than this reader takes.
    #[error("its zip directory has more than {limit} {what}, the limit of this reader; no checkpoint comes near it")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// An entry is larger than this reader takes.
    #[error("zip entry {entry:?} claims {size} bytes, past the limit of {limit}")]
    TooLarge {
        /// The entry's name.
        entry: String,
        /// Its size uncompressed.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// How the data of an entry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
}

/// One file of the archive.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) method: Method,
    /// CRC-32 of the uncompressed data; 0 where the writer computed none.
    pub(crate) crc: u32,
    /// Uncompressed bytes.
    pub(crate) size: u64,
    /// Where its local header lies in the file.
    pub(crate) local: usize,
    /// Bytes as they are in the file.
    pub(crate) packed: usize,
    /// Where the next entry or the directory begins: its data ends before that.
    pub(crate) limit: usize,
}

/// The entries of an archive.
#[derive(Debug)]
pub(crate) struct Directory {
    /// As the archive lists them.
    pub(crate) entries: Vec<Entry>,
    /// Their places, in the order of their names.
    by_name: Vec<u32>,
}

impl Directory {
    /// The entry of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Entry> {
        let entry = |&place: &u32| &self.entries[place as usize];
        let found = self.by_name.binary_search_by(|place| (*entry(place).name).cmp(name)).ok()?;
        Some(entry(&self.by_name[found]))
    }
}

/// The largest number of entries in an archive: a storage for each tensor, and some more.
pub const MAX_ENTRIES: usize = MAX_TENSORS + 1024;

/// The largest directory of an archive, in bytes.
pub const MAX_DIRECTORY_BYTES: usize = 48 << 20;

/// Deflate cannot expand by more than this factor, so that larger claims are lies.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// How far back from the end of a file an end record is looked for, to tell an appended file from a truncated one.
const TRAILING: usize = 1 << 20;

const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const END64_LOCATOR: &[u8; 4] = b"PK\x06\x07";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";

/// Bytes of a local header before the name.
const LOCAL_BYTES: usize = 30;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

const SEVERAL: &str = "its parts do not stand where it says: several archives follow each other, or something stands before \
                       the archive; give the folder, if this is a part of a torch.distributed.checkpoint";

/// Where the central directory is, and how many entries it is said to have.
fn find_directory(file: &[u8]) -> Result<(Range<usize>, u64), ZipProblem> {
    let truncated = ZipProblem::Truncated { length: file.len() as u64 };
    let lowest = file.len().saturating_sub(22 + usize::from(u16::MAX));
    let mut end = None;
    for at in (lowest..file.len().saturating_sub(21)).rev() {
        if file[at..].starts_with(END) && u16_at(file, at + 20).is_some_and(|n| at + 22 + usize::from(n) == file.len())
        {
            end = Some(at);
            break;
        }
    }
    let Some(end) = end else {
        // An end record that is followed by more than its comment?
        let last = (0..file.len().saturating_sub(21)).rev().take(TRAILING).find(|&at| file[at..].starts_with(END));
        let length = last.and_then(|at| Some((at + 22 + usize::from(u16_at(file, at + 20)?)) as u64));
        return Err(match length.filter(|&length| length < file.len() as u64) {
            Some(length) => ZipProblem::Trailing { length, extra: file.len() as u64 - length },
            None => truncated,
        });
    };
    let damaged = |what| ZipProblem::Directory { offset: end as u64, what };
    let short = || damaged("a record is cut short");
    let mut count = u64::from(u16_at(file, end + 10).ok_or_else(short)?);
    let mut size = u64::from(u32_at(file, end + 12).ok_or_else(short)?);
    let mut start = u64::from(u32_at(file, end + 16).ok_or_else(short)?);
    let mut limit = end;
    if let Some(locator) = end.checked_sub(20).filter(|&at| file[at..].starts_with(END64_LOCATOR)) {
        let at = u64_at(file, locator + 8).and_then(|at| usize::try_from(at).ok()).ok_or_else(short)?;
        if !file.get(at..).is_some_and(|rest| rest.starts_with(END64)) || at >= locator {
            return Err(damaged(SEVERAL));
        }
        let record = u64_at(file, at + 4).and_then(|size| size.checked_add(12 + at as u64));
        if record != Some(locator as u64) {
            return Err(damaged(SEVERAL));
        }
        count = u64_at(file, at + 32).ok_or_else(short)?;
        size = u64_at(file, at + 40).ok_or_else(short)?;
        start = u64_at(file, at + 48).ok_or_else(short)?;
        limit = at;
    }
    let range = start
        .checked_add(size)
        .filter(|&stop| stop <= limit as u64)
        .map(|stop| start as usize..stop as usize)
        .ok_or_else(|| damaged("the directory is said to lie outside of the file"))?;
    if range.end != limit {
        return Err(damaged(SEVERAL));
    }
    Ok((range, count))
}

/// Reads the zip64 extra field for those of size, compressed size and offset that the record leaves to it.
fn zip64(extra: &[u8], values: [&mut u64; 3]) -> Option<()> {
    let mut at = 0;
    while let (Some(id), Some(length)) = (u16_at(extra, at), u16_at(extra, at + 2)) {
        let field = extra.get(at + 4..at + 4 + usize::from(length))?;
        if id == 1 {
            let mut from = 0;
            for value in values {
                if *value == u64::from(u32::MAX) {
                    *value = u64_at(field, from)?;
                    from += 8;
                }
            }
            return Some(());
        }
        at += 4 + usize::from(length);
    }
    values.iter().all(|v| **v != u64::from(u32::MAX)).then_some(())
}

/// Reads the directory of the archive `file`. The entries themselves are not looked at: they lie all over the file, and
/// reading a page of each is what opening a large file would cost.
///
/// # Errors
/// [`ZipProblem`]; entries that take more memory than `budget` has, overlap, repeat a name or reach past the directory are refused.
pub(crate) fn read(file: &[u8], budget: &mut Budget) -> Result<Directory, ZipProblem> {
    /// Bytes of memory that an entry takes, but for its name: among the entries, and in their order by place and by name.
    const ENTRY: usize = size_of::<Entry>() + size_of::<usize>() + size_of::<u32>();
    /// Bytes of the shortest record.
    const RECORD: usize = 46;
    let (directory, count) = find_directory(file)?;
    let limit = |what, limit| Err(ZipProblem::Limit { what, limit });
    if count > MAX_ENTRIES as u64 {
        return limit("entries", MAX_ENTRIES);
    }
    if directory.len() > MAX_DIRECTORY_BYTES {
        return limit("bytes of directory", MAX_DIRECTORY_BYTES);
    }
    let most = directory.len() / RECORD;
    let most = usize::try_from(count).map_or(most, |count| count.min(most));
    let full = |Full| ZipProblem::Limit { what: "bytes of memory", limit: pickle::MAX_VALUE_BYTES };
    budget.take_table(most * ENTRY).and_then(|()| budget.take(most * 32 + directory.len())).map_err(full)?;
    let mut entries = Vec::with_capacity(most);
    let mut at = directory.start;
    for _ in 0..count {
        let damaged = |what| ZipProblem::Directory { offset: at as u64, what };
        let record = &file[at..directory.end];
        if record.len() < RECORD || !record.starts_with(CENTRAL) {
            return Err(damaged("an entry's record is missing"));
        }
        let field16 = |at| u16_at(record, at).map_or(0, usize::from);
        let field32 = |at| u32_at(record, at).map_or(0, u64::from);
        let (name_end, extra_length, comment) = (RECORD + field16(28), field16(30), field16(32));
        let extra_end = name_end + extra_length;
        if extra_end + comment > record.len() {
            return Err(damaged("an entry's record is cut short"));
        }
        let name =
            std::str::from_utf8(&record[RECORD..name_end]).map_err(|_| damaged("an entry's name is not UTF-8"))?;
        if name.len() > MAX_NAME_BYTES {
            return limit("bytes in the name of an entry", MAX_NAME_BYTES);
        }
        let (mut packed, mut size, mut offset) = (field32(20), field32(24), field32(42));
        zip64(&record[name_end..extra_end], [&mut size, &mut packed, &mut offset])
            .ok_or_else(|| damaged("an entry's zip64 field is malformed"))?;
        let wrong = |what| ZipProblem::Entry { entry: name.to_owned(), offset, what };
        let flags = field16(8);
        if flags & 1 != 0 {
            return Err(wrong("it is encrypted; decrypt the archive first"));
        }
        let method = match field16(10) {
            0 if packed != size => return Err(wrong("it is stored, but its two sizes differ")),
            0 => Method::Stored,
            8 => Method::Deflated,
            _ => return Err(wrong("its compression is neither 'stored' nor 'deflate'; zip the archive again without")),
        };
        const OUTSIDE: &str = "it is said to lie outside of the file";
        let within = |n: u64| usize::try_from(n).ok().filter(|&n| n <= directory.start);
        let (local, packed) = (within(offset).ok_or(OUTSIDE), within(packed).ok_or(OUTSIDE));
        let (local, packed) = (local.map_err(wrong)?, packed.map_err(wrong)?);
        let (name, crc, limit) = (name.into(), field32(16) as u32, directory.start);
        entries.push(Entry { name, method, crc, size, local, packed, limit });
        at += extra_end + comment;
    }
    if at != directory.end {
        return Err(ZipProblem::Directory { offset: at as u64, what: "it holds more than its entries" });
    }
    // A table of hashes would take many times the memory.
    let mut by_name: Vec<u32> = (0..entries.len() as u32).collect();
    let name = |&entry: &u32| &entries[entry as usize].name;
    by_name.sort_unstable_by(|first, second| name(first).cmp(name(second)));
    if let Some([twice, _]) = by_name.array_windows().find(|[first, second]| name(first) == name(second)) {
        return Err(ZipProblem::Duplicate { entry: name(twice).to_string() });
    }
    set_limits(&mut entries, directory.start)?;
    Ok(Directory { entries, by_name })
}

/// Finds where each entry has to end.
fn set_limits(entries: &mut [Entry], directory: usize) -> Result<(), ZipProblem> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_unstable_by_key(|&index| entries[index].local);
    for (place, &index) in order.iter().enumerate() {
        let next = order.get(place + 1).map(|&next| &entries[next]);
        let limit = next.map_or(directory, |next| next.local);
        let entry = &entries[index];
        // The name is as long in the local header; there may be more before the data, which is checked when it is read.
        let end = entry.local.saturating_add(LOCAL_BYTES + entry.name.len()).saturating_add(entry.packed);
        match next {
            _ if end <= limit => entries[index].limit = limit,
            Some(next) => {
                return Err(ZipProblem::Overlap { first: entry.name.to_string(), second: next.name.to_string() });
            }
            None => return Err(entry.wrong("it is said to lie outside of the file")),
        }
    }
    Ok(())
}

/// What deflated heads of entries are read with, one after another.
pub(crate) struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Inflate {
        Inflate(Decompress::new(false))
    }
}

impl Entry {
    fn wrong(&self, what: &'static str) -> ZipProblem {
        ZipProblem::Entry { entry: self.name.to_string(), offset: self.local as u64, what }
    }

    /// The entry's bytes, as they are in `file`.
    ///
    /// # Errors
    /// [`ZipProblem::Entry`] if there is no such entry where the directory says, or it reaches into the next.
    pub(crate) fn packed_bytes<'f>(&self, file: &'f [u8]) -> Result<&'f [u8], ZipProblem> {
        let header = file.get(self.local..self.limit).filter(|header| header.starts_with(LOCAL));
        let header = header.filter(|header| header.len() >= LOCAL_BYTES);
        let header = header.ok_or_else(|| self.wrong("there is no entry where the directory points to"))?;
        let name_length = u16_at(header, 26).map_or(0, usize::from);
        let extra_length = u16_at(header, 28).map_or(0, usize::from);
        if header.get(LOCAL_BYTES..LOCAL_BYTES + name_length) != Some(self.name.as_bytes()) {
            return Err(self.wrong("the entry itself has another name than the directory gives it"));
        }
        let start = LOCAL_BYTES + name_length + extra_length;
        let data = header.get(start..).and_then(|data| data.get(..self.packed));
        data.ok_or_else(|| self.wrong("its data reaches into what follows it"))
    }

    /// Whether there is a checksum; 0 means that none was stored.
    pub(crate) fn has_checksum(&self) -> bool {
        self.crc != 0
    }

    /// Checks `bytes`, the uncompressed data, against the stored checksum.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), ZipProblem> {
        if self.has_checksum() { self.compare(crc32fast::hash(bytes)) } else { Ok(()) }
    }

    /// Checks the checksum of the uncompressed data against the one that is stored.
    pub(crate) fn compare(&self, found: u32) -> Result<(), ZipProblem> {
        if self.has_checksum() && found != self.crc {
            return Err(ZipProblem::Checksum { entry: self.name.to_string(), stored: self.crc, found });
        }
        Ok(())
    }

    /// The first `bytes` bytes of the uncompressed data, or all of it if it is shorter; the checksum is not verified.
    ///
    /// # Errors
    /// [`ZipProblem::Entry`] if the compressed data is damaged.
    pub(crate) fn head(&self, file: &[u8], bytes: usize, inflate: &mut Inflate) -> Result<Vec<u8>, ZipProblem> {
        let packed = self.packed_bytes(file)?;
        if self.method == Method::Stored {
            return Ok(packed[..bytes.min(packed.len())].to_vec());
        }
        let mut out = Vec::with_capacity(bytes);
        let Inflate(machine) = inflate;
        machine.reset(false);
        machine
            .decompress_vec(packed, &mut out, FlushDecompress::None)
            .map_err(|_| self.wrong("its compressed data is damaged"))?;
        out.truncate(bytes);
        Ok(out)
    }

    /// The uncompressed data of a deflated entry.
    ///
    /// Memory follows what the data really expands to, not what the directory claims.
    ///
    /// # Errors
    /// [`ZipProblem`] if it does not expand to exactly the size and checksum of the directory, or exceeds `limit`.
    pub(crate) fn inflate(&self, file: &[u8], limit: u64) -> Result<Vec<u8>, ZipProblem> {
        /// Bytes that the output grows by at a time.
        const STEP: usize = 1 << 20;
        if self.size > limit {
            return Err(ZipProblem::TooLarge { entry: self.name.to_string(), size: self.size, limit });
        }
        let packed = self.packed_bytes(file)?;
        if self.size > (packed.len() as u64).saturating_mul(MAX_DEFLATE_RATIO) + 64 {
            return Err(self.wrong("it claims to expand by more than deflate can"));
        }
        let size = self.size as usize;
        let mut out = Vec::new();
        let mut machine = Decompress::new(false);
        loop {
            let missing = size.saturating_sub(out.len());
            // One byte more than the size, so that data that goes on is noticed. By an eighth, not to twice the size:
            // what is reserved is memory too.
            if out.capacity() == out.len() {
                out.reserve_exact(missing.min(STEP.max(out.len() / 8)) + 1);
            }
            let before = (machine.total_in(), machine.total_out());
            let status = machine
                .decompress_vec(&packed[before.0 as usize..], &mut out, FlushDecompress::None)
                .map_err(|_| self.wrong("its compressed data is damaged"))?;
            if out.len() > size {
                return Err(self.wrong("it expands to more bytes than the directory says"));
            }
            if status == Status::StreamEnd {
                break;
            }
            if (machine.total_in(), machine.total_out()) == before && out.capacity() > out.len() {
                return Err(self.wrong("its compressed data ends too early"));
            }
        }
        if machine.total_in() != packed.len() as u64 {
            return Err(self.wrong("bytes follow its compressed data"));
        }
        if out.len() != size {
            return Err(self.wrong("it expands to fewer bytes than the directory says"));
        }
        self.check(&out)?;
        Ok(out)
    }
}

#[cfg(test)]
#[path = "zip_tests.rs"]
mod tests;
