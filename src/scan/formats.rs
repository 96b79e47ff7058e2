//! What bytes are, by their beginning, and the formats that hold other things.

use std::borrow::Cow;

use super::archive;
use super::entry;
use super::inflate::Wrap;
use super::report::{Level, Rule};
use super::scanner::{Place, Role, Scanner, promises_pickle};
use super::stream::{self, prefix};

/// Compressed formats that are not looked into: first bytes, name, and what unpacks them.
const CLOSED: &[(&[u8], &str, &str)] = &[
    (b"7z\xbc\xaf\x27\x1c", "7-Zip archive", "7z x"),
    (b"Rar!\x1a\x07", "RAR archive", "unrar x"),
    (b"BZh", "bzip2 data", "bunzip2"),
    (b"\xfd7zXZ\0", "xz data", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unzstd"),
    (b"\x04\x22\x4d\x18", "lz4 data", "unlz4"),
    (b"\x5d\0\0\x80\0", "lzma data", "unlzma"),
];

/// Whether bytes begin like a zlib stream.
pub(super) fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [0x78, second, ..] if (0x78 * 256 + u32::from(*second)) % 31 == 0 && second & 0x20 == 0)
}

/// Looks at bytes of a known format; says which. `None` if they are of none.
pub(super) fn look(scanner: &mut Scanner, bytes: &[u8], place: &Place, role: Role) -> Option<Cow<'static, str>> {
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") || bytes.starts_with(b"PK\x07\x08") {
        if role == Role::Entry {
            let message = "an entry is a zip archive itself".to_owned();
            scanner.find(Level::Suspicious, Rule::Polyglot, place, 0, message);
        }
        return Some(archive::look(scanner, bytes, place));
    }
    if let Some((_, name, tool)) = CLOSED.iter().find(|(magic, ..)| bytes.starts_with(magic))
        // Weights may begin so by chance.
        && (role != Role::Entry || bytes.len() > 32 && bytes.starts_with(b"7z\xbc\xaf"))
    {
        scanner.skip(format!("{}it is {name}: unpack it with `{tool}` and scan what comes out", prefix(place)));
        scanner.search(bytes, 0, place, role);
        return Some((*name).into());
    }
    if bytes.starts_with(&[0x1f, 0x8b, 8]) {
        return compressed(scanner, bytes, Wrap::Gzip, "gzip data", place, role);
    }
    if is_zlib(bytes) {
        return compressed(scanner, bytes, Wrap::Zlib, "zlib data", place, role);
    }
    if bytes.starts_with(b"\x93NUMPY") {
        return Some(npy(scanner, bytes, place));
    }
    if role != Role::Payload && is_tar(bytes) {
        return Some(tar(scanner, bytes, place));
    }
    if role == Role::File && is_safetensors(bytes) {
        return Some(safetensors(scanner, bytes, place));
    }
    None
}

/// Looks into gzip or zlib data; `None` if it only begins like some.
fn compressed(
    scanner: &mut Scanner,
    bytes: &[u8],
    wrap: Wrap,
    name: &'static str,
    place: &Place,
    role: Role,
) -> Option<Cow<'static, str>> {
    let inner = Place { base: None, ..place.entry("unpacked", None) };
    let mut kind = None;
    let out = entry::expand(scanner, bytes, wrap, &inner, &mut |scanner, head, total| {
        if total > 0 {
            let role = if role == Role::Pickle || promises_pickle(&inner.path) { Role::Pickle } else { Role::File };
            kind = Some(scanner.look(head, &inner, role));
        }
    });
    let real = out.complete || wrap == Wrap::Gzip || out.total > 1 << 16;
    if !real {
        return None;
    }
    if !out.complete && !out.bomb {
        scanner.skip(format!("{}its {name} is cut off or damaged", prefix(place)));
    }
    if out.complete && out.used < bytes.len() {
        let message = format!("{} bytes follow the {name}", bytes.len() - out.used);
        scanner.find(Level::Suspicious, Rule::AfterStop, place, out.used, message);
        scanner.search(bytes, out.used, place, Role::Payload);
    }
    Some(format!("{name}: {}", kind.unwrap_or("nothing".into())).into())
}

/// An array of NumPy: a header, then numbers, or a pickle where the elements are objects.
fn npy(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> Cow<'static, str> {
    let wide = bytes.get(6).is_some_and(|&version| version >= 2);
    let (at, length) = if wide {
        (12, bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize))
    } else {
        (10, bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))))
    };
    let header = length.and_then(|length| at_most(bytes, at, length));
    let Some(header) = header else {
        scanner.skip(format!("{}its NumPy header is cut off", prefix(place)));
        scanner.search(bytes, 6, place, Role::Payload);
        return "NumPy array".into();
    };
    let data = at + header.len();
    if data >= bytes.len() {
        return "NumPy array".into();
    }
    // Objects are marked by O in the type; a pickle is looked for whatever the header says.
    let objects = memchr::memmem::find(header, b"O").is_some();
    if objects || bytes[data] == 0x80 && stream::is_pickle(&bytes[data..], Role::Entry, false) {
        stream::look(scanner, &bytes[data..], &place.part(data), Role::Pickle);
        return "NumPy array of objects (a pickle)".into();
    }
    scanner.search(bytes, data, place, Role::Entry);
    "NumPy array".into()
}

fn at_most(bytes: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(length)?)
}

/// The number in an octal field of a tar header, or in its binary form.
fn tar_number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        return field[1..].iter().try_fold(0u64, |n, &b| n.checked_mul(256)?.checked_add(b.into()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Whether a block is a tar header, by its checksum.
fn tar_header(block: &[u8]) -> bool {
    let Some(stored) = block.get(148..156).and_then(tar_number) else { return false };
    let sum = |signed: bool| -> i64 {
        let value = |b: u8| if signed { i64::from(b as i8) } else { i64::from(b) };
        block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { value(b) }).sum()
    };
    block.len() == 512 && block[0] != 0 && (stored as i64 == sum(false) || stored as i64 == sum(true))
}

/// Whether bytes are a tar archive.
pub(super) fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(..512).is_some_and(tar_header)
}

/// A tar archive: its members, whatever their names.
fn tar(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> Cow<'static, str> {
    let mut at = 0;
    let mut old_torch = false;
    let mut count = 0;
    while let Some(block) = bytes.get(at..at + 512) {
        if block.iter().all(|&b| b == 0) {
            break;
        }
        if !tar_header(block) {
            let message = "a header of the tar archive is damaged".to_owned();
            scanner.find(Level::Suspicious, Rule::Tar, place, at, message);
            break;
        }
        count += 1;
        if count > super::MAX_ENTRIES {
            scanner.skip(format!("{}it has more than {} members", prefix(place), super::MAX_ENTRIES));
            break;
        }
        let name = String::from_utf8_lossy(&block[..100]).trim_end_matches('\0').to_owned();
        let size = tar_number(&block[124..136]).and_then(|size| usize::try_from(size).ok());
        let data = size.and_then(|size| at_most(bytes, at + 512, size));
        let Some(data) = data else {
            scanner.skip(format!("{}{name}: it reaches past the end of the tar archive", prefix(place)));
            scanner.search(bytes, at + 512, place, Role::Payload);
            return "tar archive, cut off".into();
        };
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            scanner.find(
                Level::Suspicious,
                Rule::Tar,
                place,
                at,
                format!("the name {name:?} leads out of the archive"),
            );
        }
        if matches!(block[156], b'1' | b'2') {
            scanner.find(Level::Suspicious, Rule::Tar, place, at, format!("{name:?} is a link"));
        }
        old_torch |= name == "pickle";
        let streams = ["storages", "tensors", "pickle"].contains(&name.as_str());
        let inner = place.entry(&name, Some(at + 512));
        if streams && !data.is_empty() {
            let summary = scanner.pickle(data, 0, &inner);
            scanner.search(data, summary.end, &inner, Role::Entry);
        } else {
            scanner.look(data, &inner, if promises_pickle(&name) { Role::Pickle } else { Role::File });
        }
        at = at + 512 + data.len().div_ceil(512) * 512;
    }
    let rest = bytes.get(at..).unwrap_or(&[]);
    if let Some(found) = rest.iter().position(|&b| b != 0) {
        let message = "data follows the end of the tar archive".to_owned();
        scanner.find(Level::Suspicious, Rule::Tar, place, at + found, message);
        scanner.search(bytes, at + found, place, Role::Entry);
    }
    if old_torch {
        let message =
            "it is a checkpoint of PyTorch 0.1: torch.load before 2.6 executes its pickles even with weights_only=True"
                .to_owned();
        scanner.find(Level::Suspicious, Rule::Tar, place, 0, message);
        return "PyTorch tar archive (PyTorch 0.1)".into();
    }
    "tar archive".into()
}

/// Whether bytes begin like a safetensors file: the length of a header, then an object of JSON.
pub(super) fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    bytes.get(8) == Some(&b'{') && length.is_some_and(|length| length < 1 << 40)
}

/// A safetensors file: nothing in it is executed, but something can hide in it.
fn safetensors(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> Cow<'static, str> {
    let find = |scanner: &mut Scanner, at: usize, message: &str| {
        scanner.find(Level::Suspicious, Rule::Safetensors, place, at, message.to_owned());
    };
    let length = bytes.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
    let header = usize::try_from(length)
        .ok()
        .filter(|&length| length <= crate::container::MAX_HEADER_BYTES)
        .and_then(|length| at_most(bytes, 8, length));
    let parsed =
        header.and_then(|header| serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(header).ok());
    let (Some(header), Some(parsed)) = (header, parsed) else {
        find(scanner, 0, "its header cannot be read: it is no safetensors file, or a damaged one");
        scanner.search(bytes, 8, place, Role::Entry);
        return "safetensors, damaged".into();
    };
    let start = 8 + header.len();
    let mut ranges: Vec<(u64, u64)> = vec![];
    let mut bad = false;
    for (_, tensor) in parsed.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = tensor.get("data_offsets").and_then(|offsets| offsets.as_array());
        match offsets.map(Vec::as_slice) {
            Some([begin, end]) => match (begin.as_u64(), end.as_u64()) {
                (Some(begin), Some(end)) if begin <= end => ranges.push((begin, end)),
                _ => bad = true,
            },
            _ => bad = true,
        }
    }
    if bad {
        find(scanner, 8, "its header has an entry without the place of its data");
    }
    ranges.sort_unstable();
    let mut at = 0;
    for (begin, end) in ranges {
        if begin > at {
            find(
                scanner,
                start.saturating_add(usize::try_from(at).unwrap_or(0)),
                "bytes between its tensors belong to none",
            );
        } else if begin < at {
            find(scanner, start, "its tensors share bytes");
        }
        at = at.max(end);
    }
    let data = (bytes.len() - start) as u64;
    if at < data {
        find(scanner, start + usize::try_from(at).unwrap_or(0), "bytes follow its last tensor");
    } else if at > data {
        find(scanner, bytes.len(), "its tensors reach past the end of the file");
    }
    scanner.search(bytes, 8, place, Role::Entry);
    "safetensors".into()
}
