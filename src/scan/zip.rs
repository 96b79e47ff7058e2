//! The records of a zip archive, read without believing any of them.

/// An entry of the central directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Central {
    pub(super) at: usize,
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) packed: u64,
    pub(super) size: u64,
    /// The number of the file it begins in, where an archive is split.
    pub(super) disk: u16,
    /// It is marked as a folder.
    pub(super) folder: bool,
    /// Where its local header is said to be.
    pub(super) offset: u64,
    /// The other name of the Info-ZIP extra field, if it has one.
    pub(super) other_name: Option<Vec<u8>>,
}

/// A local header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) at: usize,
    pub(super) name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) packed: u64,
    pub(super) size: u64,
    /// Where its data begins.
    pub(super) data: usize,
}

/// The end record, with the values of the zip64 record where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndRecord {
    pub(super) at: usize,
    /// The numbers of this file and of the one with the directory, where an archive is split.
    pub(super) disks: [u16; 2],
    pub(super) count: u64,
    pub(super) count_here: u64,
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) comment: usize,
    /// Where the zip64 record is, if there is one.
    pub(super) zip64: Option<usize>,
    /// What the classic record says where the zip64 record says something else.
    pub(super) differs: bool,
}

const CENTRAL: &[u8; 4] = b"PK\x01\x02";
pub(super) const LOCAL: &[u8; 4] = b"PK\x03\x04";
const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
/// How far from the end of a file readers look for the end record, in bytes.
pub(super) const REACH: usize = 22 + u16::MAX as usize;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Extra fields: id and content.
fn extras(extra: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (id, length) = (u16_at(extra, at)?, usize::from(u16_at(extra, at + 2)?));
        let field = extra.get(at + 4..at + 4 + length)?;
        at += 4 + length;
        Some((id, field))
    })
}

/// Puts the values of the zip64 field where the record leaves them out.
fn zip64(extra: &[u8], values: [&mut u64; 3]) {
    if let Some((_, field)) = extras(extra).find(|(id, _)| *id == 1) {
        let mut at = 0;
        for value in values {
            if *value == u64::from(u32::MAX)
                && let Some(wide) = u64_at(field, at)
            {
                *value = wide;
                at += 8;
            }
        }
    }
}

/// The central record at `at`, and where the next one begins.
pub(super) fn central_at(file: &[u8], at: usize) -> Option<(Central, usize)> {
    let record = file.get(at..).filter(|record| record.starts_with(CENTRAL))?;
    let (name, extra, comment) =
        (usize::from(u16_at(record, 28)?), usize::from(u16_at(record, 30)?), usize::from(u16_at(record, 32)?));
    let extra_bytes = record.get(46 + name..46 + name + extra)?;
    let mut entry = Central {
        at,
        name: record.get(46..46 + name)?.to_vec(),
        flags: u16_at(record, 8)?,
        method: u16_at(record, 10)?,
        crc: u32_at(record, 16)?,
        packed: u32_at(record, 20)?.into(),
        size: u32_at(record, 24)?.into(),
        disk: u16_at(record, 34)?,
        folder: u32_at(record, 38)? & 0x10 != 0,
        offset: u32_at(record, 42)?.into(),
        other_name: extras(extra_bytes)
            .find(|(id, field)| *id == 0x7075 && field.len() > 5)
            .map(|(_, field)| field[5..].to_vec()),
    };
    zip64(extra_bytes, [&mut entry.size, &mut entry.packed, &mut entry.offset]);
    let next = at + 46 + name + extra + comment;
    (next <= file.len()).then_some((entry, next))
}

/// The local header at `at`.
pub(super) fn local_at(file: &[u8], at: usize) -> Option<Local> {
    let record = file.get(at..).filter(|record| record.starts_with(LOCAL))?;
    let (name, extra) = (usize::from(u16_at(record, 26)?), usize::from(u16_at(record, 28)?));
    let extra_bytes = record.get(30 + name..30 + name + extra)?;
    let mut local = Local {
        at,
        name: record.get(30..30 + name)?.to_vec(),
        flags: u16_at(record, 6)?,
        method: u16_at(record, 8)?,
        crc: u32_at(record, 14)?,
        packed: u32_at(record, 18)?.into(),
        size: u32_at(record, 22)?.into(),
        data: at + 30 + name + extra,
    };
    let mut none = 0;
    zip64(extra_bytes, [&mut local.size, &mut local.packed, &mut none]);
    Some(local)
}

/// The end records that readers could find, the last one first.
pub(super) fn ends(file: &[u8]) -> Vec<EndRecord> {
    /// More of them say nothing more.
    const MAX: usize = 16;
    let lowest = file.len().saturating_sub(REACH);
    let places: Vec<usize> = memchr::memmem::find_iter(&file[lowest..], END).map(|at| lowest + at).collect();
    places.into_iter().rev().take(MAX).filter_map(|at| end_at(file, at)).collect()
}

fn end_at(file: &[u8], at: usize) -> Option<EndRecord> {
    let mut end = EndRecord {
        at,
        disks: [u16_at(file, at + 4)?, u16_at(file, at + 6)?],
        count: u16_at(file, at + 10)?.into(),
        count_here: u16_at(file, at + 8)?.into(),
        size: u32_at(file, at + 12)?.into(),
        start: u32_at(file, at + 16)?.into(),
        comment: u16_at(file, at + 20)?.into(),
        zip64: None,
        differs: false,
    };
    let locator = at.checked_sub(20).filter(|&at| file[at..].starts_with(LOCATOR));
    if let Some(record) = locator.and_then(|at| u64_at(file, at + 8)).and_then(|at| usize::try_from(at).ok())
        && file.get(record..).is_some_and(|rest| rest.starts_with(END64))
        && let (Some(count_here), Some(count), Some(size), Some(start)) =
            (u64_at(file, record + 24), u64_at(file, record + 32), u64_at(file, record + 40), u64_at(file, record + 48))
    {
        let same = |classic: u64, wide: u64, max: u64| classic == wide || classic == max;
        let (max16, max32) = (u64::from(u16::MAX), u64::from(u32::MAX));
        end.differs = !(same(end.count, count, max16) && same(end.size, size, max32) && same(end.start, start, max32));
        (end.count, end.count_here, end.size, end.start) = (count, count_here, size, start);
        end.zip64 = Some(record);
    }
    Some(end)
}

/// The entries of a directory from `start` to at most `stop`, and where they end.
pub(super) fn entries(file: &[u8], start: usize, stop: usize) -> (Vec<Central>, usize) {
    let (mut found, mut at) = (vec![], start);
    while let Some((entry, next)) = file.get(..stop).and_then(|file| central_at(file, at)) {
        found.push(entry);
        at = next;
    }
    (found, at)
}
