//! Archives made by the `zip` crate, whole and damaged.

use std::io::{Cursor, Write};

use ::zip::write::SimpleFileOptions;
use ::zip::{CompressionMethod, ZipWriter};

use super::{Entry, Method, ZipProblem};
use crate::pickle::Budget;

fn read(file: &[u8]) -> Result<Vec<Entry>, ZipProblem> {
    super::read(file, &mut Budget::default()).map(|directory| directory.entries)
}

fn archive(entries: &[(&str, &[u8], CompressionMethod)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data, method) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(*method)).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn two() -> Vec<u8> {
    archive(&[("a/x", b"stored data", CompressionMethod::Stored), ("a/y", &[7; 5000], CompressionMethod::Deflated)])
}

fn find(file: &[u8], what: &[u8]) -> usize {
    file.windows(what.len()).position(|w| w == what).unwrap()
}

fn problem(file: &[u8]) -> ZipProblem {
    read(file).map(|_| ()).unwrap_err()
}

#[test]
fn stored_and_deflated_entries_are_found() {
    let file = two();
    let entries = read(&file).unwrap();
    assert_eq!((&*entries[0].name, entries[0].method), ("a/x", Method::Stored));
    assert_eq!(entries[0].packed_bytes(&file).unwrap(), b"stored data");
    entries[0].check(b"stored data").unwrap();
    assert_eq!(entries[1].inflate(&file, 5000).unwrap(), [7; 5000]);
}

#[test]
fn entries_larger_than_a_step_are_inflated() {
    // Bytes that deflate leaves about as they are, and bytes that it makes very small.
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for data in [noise, vec![0; 5 << 20], vec![1; 1 << 20]] {
        let file = archive(&[("a/x", &data, CompressionMethod::Deflated)]);
        let entries = read(&file).unwrap();
        assert!(entries[0].inflate(&file, 1 << 30).unwrap() == data);
        for cut in [1, 100] {
            let mut short = entries[0].clone();
            short.packed -= cut;
            assert!(short.inflate(&file, 1 << 30).is_err());
        }
    }
}

#[test]
fn rejects_every_truncation() {
    let file = two();
    for end in 0..file.len() {
        assert!(read(&file[..end]).is_err(), "{end}");
    }
    assert_eq!(problem(&file[..file.len() / 2]), ZipProblem::Truncated { length: file.len() as u64 / 2 });
}

#[test]
fn rejects_bytes_after_the_end() {
    let mut file = two();
    let length = file.len() as u64;
    file.extend_from_slice(b"more");
    assert_eq!(problem(&file), ZipProblem::Trailing { length, extra: 4 });
}

#[test]
fn no_single_changed_byte_makes_a_panic() {
    let file = two();
    for at in 0..file.len() {
        for value in [0, 0x7f, 0xff, file[at] ^ 1] {
            let mut damaged = file.clone();
            damaged[at] = value;
            for entry in read(&damaged).unwrap_or_default() {
                let _ = entry.inflate(&damaged, 1 << 20);
            }
        }
    }
}

#[test]
fn rejects_damaged_data() {
    let file = two();
    let entries = read(&file).unwrap();
    assert!(matches!(entries[0].check(b"Stored data"), Err(ZipProblem::Checksum { .. })));
    assert!(matches!(entries[1].inflate(&file, 4999), Err(ZipProblem::TooLarge { limit: 4999, .. })));
    let mut longer = entries[1].clone();
    longer.size += 1;
    assert!(matches!(longer.inflate(&file, 1 << 20), Err(ZipProblem::Entry { .. })));
    let mut shorter = entries[1].clone();
    shorter.size -= 1;
    assert!(matches!(shorter.inflate(&file, 1 << 20), Err(ZipProblem::Entry { .. })));
    let mut wide = entries[1].clone();
    wide.limit += 4;
    wide.packed += 4;
    assert!(matches!(wide.inflate(&file, 1 << 20), Err(ZipProblem::Entry { what, .. }) if what.contains("follow")));
    let mut bomb = entries[1].clone();
    bomb.size = 1 << 40;
    assert!(matches!(bomb.inflate(&file, u64::MAX), Err(ZipProblem::Entry { .. })));
}

#[test]
fn rejects_a_local_header_that_differs() {
    let mut file = two();
    let at = find(&file, b"a/x");
    file[at] = b'b';
    let entries = read(&file).unwrap();
    let problem = entries[0].packed_bytes(&file).unwrap_err();
    assert!(matches!(problem, ZipProblem::Entry { entry, .. } if entry == "a/x"));
    // Said to have more between header and data than there is room for.
    file[at] = b'a';
    file[at - 1] = 0x7f;
    assert!(matches!(entries[0].packed_bytes(&file), Err(ZipProblem::Entry { what, .. }) if what.contains("follows")));
    file[at - 30] = b'Q';
    assert!(matches!(entries[0].packed_bytes(&file), Err(ZipProblem::Entry { what, .. }) if what.contains("no entry")));
}

#[test]
fn rejects_duplicate_names_and_overlaps() {
    let (central_x, central_y) = {
        let file = two();
        let first = find(&file, b"PK\x01\x02");
        (first, first + 46 + 3)
    };
    let mut file = two();
    // The second record of the directory is made to point at the first entry, under the same name.
    let offset: Vec<u8> = file[central_x + 42..central_x + 46].to_vec();
    let second = central_y + find(&file[central_y..], b"PK\x01\x02");
    file[second + 42..second + 46].copy_from_slice(&offset);
    file[second + 48] = b'x';
    assert_eq!(problem(&file), ZipProblem::Duplicate { entry: "a/x".into() });

    let mut file = two();
    // The first entry is made to reach into the second.
    file[central_x + 20..central_x + 24].copy_from_slice(&60u32.to_le_bytes());
    file[central_x + 24..central_x + 28].copy_from_slice(&60u32.to_le_bytes());
    assert!(matches!(problem(&file), ZipProblem::Overlap { first, second } if first == "a/x" && second == "a/y"));
}

#[test]
fn rejects_entries_outside_of_the_file() {
    let mut file = two();
    let central = find(&file, b"PK\x01\x02");
    file[central + 42..central + 46].copy_from_slice(&0x00ff_ffffu32.to_le_bytes());
    assert!(matches!(problem(&file), ZipProblem::Entry { .. }));
    let mut file = two();
    let end = find(&file, b"PK\x05\x06");
    file[end + 16..end + 20].copy_from_slice(&0xfff_ffffu32.to_le_bytes());
    assert!(matches!(problem(&file), ZipProblem::Directory { .. }));
}

#[test]
fn rejects_encryption_and_unknown_compression() {
    let mut file = two();
    let central = find(&file, b"PK\x01\x02");
    file[central + 8] |= 1;
    assert!(matches!(problem(&file), ZipProblem::Entry { what, .. } if what.contains("encrypted")));
    let mut file = two();
    file[central + 10] = 93;
    assert!(matches!(problem(&file), ZipProblem::Entry { what, .. } if what.contains("compression")));
}

#[test]
fn zip64_records_are_followed() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    writer.start_file("a/x", options).unwrap();
    writer.write_all(b"large").unwrap();
    let file = writer.finish().unwrap().into_inner();
    let entries = read(&file).unwrap();
    assert_eq!(entries[0].packed_bytes(&file).unwrap(), b"large");
}
