//! Valid files around a fuzzer's input, so that it gets past magic numbers, checksums and directories.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::DeflateEncoder;

/// One entry of an archive, from the input.
struct Record<'i> {
    flags: u8,
    name: String,
    data: &'i [u8],
}

/// The input as entries: a byte that chooses the name (from `names`; the first line of the data if it is past their
/// end), a byte of flags, two bytes of length, and the data. A length past the end means all of the rest.
fn records<'i>(mut input: &'i [u8], names: &[&str]) -> Vec<Record<'i>> {
    /// More entries than any rule about them needs.
    const MOST: usize = 64;
    let mut records = Vec::new();
    while let ([choice, flags, low, high, rest @ ..], true) = (input, records.len() < MOST) {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (mut data, tail) = rest.split_at(length);
        let name = match names.get(usize::from(*choice)) {
            Some(name) => (*name).to_owned(),
            None => {
                let end = data.iter().position(|&b| b == b'\n').unwrap_or(data.len());
                let line = String::from_utf8_lossy(&data[..end]).into_owned();
                data = data.get(end + 1..).unwrap_or_default();
                line
            }
        };
        records.push(Record { flags: *flags, name, data });
        input = tail;
    }
    records
}

/// The entries of PyTorch's archives.
const ZIP_NAMES: &[&str] = &[
    "a/data.pkl",
    "a/data/0",
    "a/data/1",
    "a/data/2",
    "a/byteorder",
    "a/version",
    "a/constants.pkl",
    "a/constants/0",
    "a/code/__torch__.py",
    "a/.data/serialization_id",
    "a/.data/extern_modules",
    "a/.data/0.storage",
    "a/m/m.pkl",
];

/// Entry flags of [`zip`]: the data is compressed; its checksum is left out; it is aligned as PyTorch does; its sizes are in
/// a zip64 field; its checksum is wrong.
const DEFLATED: u8 = 1;
const NO_CHECKSUM: u8 = 2;
const ALIGNED: u8 = 4;
const ZIP64: u8 = 8;
const WRONG_CHECKSUM: u8 = 16;

/// A correct zip archive of the entries that the input describes.
pub(super) fn zip(input: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    let records = records(input, ZIP_NAMES);
    for Record { flags, name, data } in &records {
        let has = |flag| flags & flag != 0;
        let packed = if has(DEFLATED) { deflate(data) } else { data.to_vec() };
        let crc = match crc32fast::hash(data) {
            _ if has(NO_CHECKSUM) => 0,
            crc if has(WRONG_CHECKSUM) => crc ^ 1,
            crc => crc,
        };
        let start = file.len();
        let padding = if has(ALIGNED) { (file.len() + 30 + name.len() + 4).wrapping_neg() % 64 } else { 0 };
        let mut local_extra = Vec::new();
        if has(ALIGNED) {
            local_extra.extend_from_slice(b"FB");
            local_extra.extend_from_slice(&(padding as u16).to_le_bytes());
            local_extra.resize(4 + padding, b'Z');
        }
        let sizes = |out: &mut Vec<u8>| {
            for size in [packed.len(), data.len()] {
                out.extend_from_slice(&(if has(ZIP64) { u32::MAX } else { size as u32 }).to_le_bytes());
            }
        };
        let method = if has(DEFLATED) { 8u16 } else { 0 };
        let mut head = vec![20, 0, 0, 0];
        head.extend_from_slice(&method.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&crc.to_le_bytes());
        sizes(&mut head);
        head.extend_from_slice(&(name.len() as u16).to_le_bytes());
        file.extend_from_slice(b"PK\x03\x04");
        file.extend_from_slice(&head);
        file.extend_from_slice(&(local_extra.len() as u16).to_le_bytes());
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(&local_extra);
        file.extend_from_slice(&packed);
        let mut extra = Vec::new();
        if has(ZIP64) {
            extra.extend_from_slice(&[1, 0, 16, 0]);
            extra.extend_from_slice(&(data.len() as u64).to_le_bytes());
            extra.extend_from_slice(&(packed.len() as u64).to_le_bytes());
        }
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&head);
        directory.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&(start as u32).to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
        directory.extend_from_slice(&extra);
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend_from_slice(&directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        file.extend_from_slice(&(records.len() as u16).to_le_bytes());
    }
    file.extend_from_slice(&size.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0; 2]);
    file
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(data);
    encoder.finish().unwrap_or_default()
}

/// A legacy stream: magic number, protocol 1001 and what the first byte says of the machine, then the rest of the input.
pub(super) fn legacy(input: &[u8]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    let (machine, rest) = input.split_first().unwrap_or((&0, &[]));
    let little = if machine & 1 == 0 { b'\x88' } else { b'\x89' };
    file.extend_from_slice(b"\x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\x0d\0\0\0little_endian");
    file.push(little);
    file.extend_from_slice(b"X\x0a\0\0\0type_sizes}(X\x05\0\0\0shortK\x02X\x03\0\0\0intK\x04X\x04\0\0\0longK\x04uu.");
    file.extend_from_slice(rest);
    file
}

/// The members of PyTorch's first format.
const TAR_NAMES: &[&str] = &["sys_info", "pickle", "tensors", "storages"];

/// The files of a distributed checkpoint of two processes.
const DCP_NAMES: &[&str] = &[".metadata", "__0_0.distcp", "__1_0.distcp"];

/// A correct tar archive of the members that the input describes.
pub(super) fn tar(input: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for Record { flags, name, data } in records(input, TAR_NAMES) {
        let mut header = [0; 512];
        let length = name.len().min(100);
        header[..length].copy_from_slice(&name.as_bytes()[..length]);
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        // The flags are the type: a file, unless the fuzzer has another idea.
        header[156] = if flags == 0 { b'0' } else { flags };
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        file.extend_from_slice(&header);
        file.extend_from_slice(data);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file.resize(file.len() + 1024, 0);
    file
}

/// Text before the first zero byte, and what follows it.
fn text_and_data(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|&b| b == 0).unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}

/// A NumPy file, version 1.0.
pub(super) fn npy(input: &[u8]) -> Vec<u8> {
    let (header, data) = text_and_data(input);
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header);
    file.extend_from_slice(data);
    file
}

/// A safetensors file.
pub(super) fn safetensors(input: &[u8]) -> Vec<u8> {
    let (header, data) = text_and_data(input);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(data);
    file
}

/// A folder, in memory where there is such a place, that goes with this value.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("m2pt-surgery-fuzz-{}-{number}", std::process::id()));
        let _ = std::fs::create_dir(&folder);
        for (name, bytes) in files {
            let _ = std::fs::write(folder.join(name), bytes);
        }
        Folder(folder)
    }

    /// Shards, as the seeds of `index_json` name them: two of safetensors with three tensors, and a damaged one.
    pub(super) fn of_shards() -> Folder {
        let first = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]}}"#;
        let second = br#"{"c":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
        let shard = |header: &[u8], data: &[u8]| safetensors(&[header, b"\0", data].concat());
        Folder::new(&[
            ("model-00001-of-00002.safetensors", &shard(first, &[7; 12])),
            ("model-00002-of-00002.safetensors", &shard(second, &[9; 3])),
            ("damaged.safetensors", &shard(second, &[9; 2])),
        ])
    }

    /// The files that the input describes; no name leads out of the folder.
    pub(super) fn of_parts(input: &[u8]) -> Folder {
        let mut records = records(input, DCP_NAMES);
        records.retain(|record| !record.name.contains(['/', '\0']) && !matches!(record.name.as_str(), "" | "." | ".."));
        let files: Vec<_> = records.iter().map(|record| (record.name.as_str(), record.data)).collect();
        Folder::new(&files)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
