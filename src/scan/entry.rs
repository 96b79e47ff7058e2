//! One entry of a zip archive: its two headers compared, and whatever any reader would read of it looked at.

use std::collections::{BTreeMap, HashSet};

use super::archive::Listed;
use super::inflate::{Inflated, Wrap, inflate};
use super::report::{Level, Rule};
use super::scanner::{Place, Role, Scanner, promises_pickle};
use super::stream::prefix;
use super::zip::{Central, LOCAL, Local, local_at};

/// Compares the headers of an entry, and looks at what any reader would read of it.
pub(super) fn look_listed(
    scanner: &mut Scanner,
    bytes: &[u8],
    listed: &Listed,
    place: &Place,
    used: &mut BTreeMap<usize, (usize, String)>,
    seen: &mut HashSet<(usize, u64, u16)>,
) {
    let Listed { entry: central, header } = listed;
    let name = String::from_utf8_lossy(&central.name).into_owned();
    let Some(local) = local_at(bytes, *header) else {
        let message = format!("entry {name:?} is not where the directory says");
        scanner.find(Level::Suspicious, Rule::ZipMismatch, place, central.at, message);
        scanner.skip(format!("{}{name}: there is no entry where the directory points to", prefix(place)));
        return;
    };
    let differ = differences(central, &local);
    if !differ.is_empty() {
        let message = format!("the headers of entry {name:?} disagree: {}", differ.join("; "));
        scanner.find(Level::Suspicious, Rule::ZipMismatch, place, *header, message);
    }
    let strange = (central.flags | local.flags) & !(0x0800 | 0x000e | 0x0010);
    let mut extents = vec![(central.packed, central.method, central.size, central.crc)];
    let unsized_ = local.flags & 8 != 0 && local.packed == 0;
    if !unsized_ && (local.packed, local.method) != (central.packed, central.method) {
        extents.push((local.packed, local.method, local.size, local.crc));
    }
    let mut end = local.data;
    for (index, (packed, method, size, crc)) in extents.into_iter().enumerate() {
        if !seen.insert((local.data, packed, method)) {
            continue;
        }
        let shown = if index == 0 { name.clone() } else { format!("{name} (by its own header)") };
        let facts = Facts { name: &shown, packed, method, size, crc, marked: strange & 1 != 0, header: *header };
        let used = member(scanner, bytes, local.data, &facts, place);
        if index == 0 {
            end = used;
        }
    }
    if central.folder && central.size > 0 {
        let message = format!("entry {name:?} is marked as a folder, and has data: readers disagree on what it holds");
        scanner.find(Level::Suspicious, Rule::ZipFlags, place, *header, message);
    }
    if strange & !1 != 0 {
        let message =
            format!("entry {name:?} has the flags {:04x}, which some readers refuse", central.flags | local.flags);
        scanner.find(Level::Suspicious, Rule::ZipFlags, place, *header, message);
    }
    if local.flags & 8 != 0 || central.flags & 8 != 0 {
        end += descriptor(bytes, end, central);
    }
    if let Some((before, (stop, other))) = used.range(..=*header).next_back()
        && *stop > *header
        && (*before != *header || *other != name)
    {
        let message = format!("entries {other:?} and {name:?} share bytes");
        scanner.find(Level::Suspicious, Rule::ZipOverlap, place, *header, message);
    } else if let Some((_, (_, other))) = used.range(header + 1..end.max(header + 1)).next() {
        let message = format!("entries {name:?} and {other:?} share bytes");
        scanner.find(Level::Suspicious, Rule::ZipOverlap, place, *header, message);
    }
    let slot = used.entry(*header).or_insert((end, name));
    slot.0 = slot.0.max(end);
}

/// What the two headers of an entry disagree on.
fn differences(central: &Central, local: &Local) -> Vec<String> {
    let mut differ = vec![];
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    if central.name != local.name {
        differ.push(format!("its own name is {:?}", text(&local.name)));
    }
    if let Some(other) = central.other_name.as_ref().filter(|other| **other != central.name) {
        differ.push(format!("its Unicode name is {:?}", text(other)));
    }
    if central.method != local.method {
        differ.push(format!("compression {} and {}", central.method, local.method));
    }
    let meaning = 0x2061;
    if central.flags & meaning != local.flags & meaning {
        differ.push(format!("flags {:04x} and {:04x}", central.flags, local.flags));
    }
    let streamed = local.flags & 8 != 0;
    let pairs = [
        ("size", central.size, local.size),
        ("compressed size", central.packed, local.packed),
        ("checksum", central.crc.into(), local.crc.into()),
    ];
    for (what, ours, theirs) in pairs {
        if ours != theirs && !(streamed && theirs == 0) {
            differ.push(format!("{what} {ours} and {theirs}"));
        }
    }
    differ
}

/// Bytes of the data descriptor at `at`.
fn descriptor(bytes: &[u8], at: usize, central: &Central) -> usize {
    let wide = [&central.crc.to_le_bytes()[..], &central.packed.to_le_bytes(), &central.size.to_le_bytes()].concat();
    let narrow =
        [central.crc.to_le_bytes(), (central.packed as u32).to_le_bytes(), (central.size as u32).to_le_bytes()]
            .concat();
    let rest = bytes.get(at..).unwrap_or(&[]);
    let mark = if rest.starts_with(b"PK\x07\x08") { 4 } else { 0 };
    let rest = &rest[mark..];
    if rest.starts_with(&wide) {
        mark + wide.len()
    } else if rest.starts_with(&narrow) {
        mark + narrow.len()
    } else {
        0
    }
}

/// What a header says of an entry.
struct Facts<'a> {
    name: &'a str,
    packed: u64,
    method: u16,
    size: u64,
    crc: u32,
    /// It is marked as encrypted.
    marked: bool,
    header: usize,
}

/// Looks at the data of an entry, whatever its name; just past its last byte.
fn member(scanner: &mut Scanner, bytes: &[u8], start: usize, facts: &Facts<'_>, place: &Place) -> usize {
    let Facts { name, packed, method, size, crc, marked, header } = *facts;
    let available = bytes.len() - start.min(bytes.len());
    let length = usize::try_from(packed).unwrap_or(usize::MAX);
    let raw = &bytes[start.min(bytes.len())..][..length.min(available)];
    if !scanner.read(raw.len()) {
        scanner.skip(format!("{}its entries share bytes too often to look at all of them", prefix(place)));
        return start + raw.len();
    }
    if length > available {
        scanner.skip(format!("{}{name}: it is said to reach past the end of the file", prefix(place)));
    }
    let find =
        |scanner: &mut Scanner, rule, message: String| scanner.find(Level::Suspicious, rule, place, header, message);
    let found = match method {
        0 => {
            if size != packed {
                find(scanner, Rule::ZipMismatch, format!("entry {name:?} is stored, but its two sizes differ"));
            }
            content(scanner, raw, &place.entry(name, Some(start)), name);
            crc32fast::hash(raw)
        }
        8 => {
            let inner = place.entry(name, None);
            let out =
                expand(scanner, raw, Wrap::None, &inner, &mut |scanner, head, _| content(scanner, head, &inner, name));
            if out.complete && out.used < raw.len() {
                find(
                    scanner,
                    Rule::ZipOutside,
                    format!("{} bytes follow the compressed data of entry {name:?}", raw.len() - out.used),
                );
                scanner.search(&raw[out.used..], 0, &place.part(start + out.used), Role::Payload);
            } else if !out.complete && !out.bomb {
                scanner.skip(format!("{}{name}: its compressed data is damaged", prefix(place)));
            }
            if out.complete && out.total != size {
                find(
                    scanner,
                    Rule::ZipMismatch,
                    format!("entry {name:?} expands to {} bytes, and its header says {size}", out.total),
                );
            }
            if out.bomb { crc } else { out.crc }
        }
        other => {
            scanner.skip(format!(
                "{}{name}: its compression (method {other}) is neither 'stored' nor 'deflate'",
                prefix(place)
            ));
            scanner.search(raw, 0, &place.entry(name, Some(start)), Role::Payload);
            crc
        }
    };
    let sound = found == crc;
    if marked {
        find(
            scanner,
            Rule::ZipFlags,
            format!("entry {name:?} is marked as encrypted: some readers refuse it, others read it"),
        );
        if !sound {
            scanner.skip(format!(
                "{}{name}: it is marked as encrypted, and what is there is not what it says",
                prefix(place)
            ));
        }
    } else if !sound && crc != 0 {
        find(
            scanner,
            Rule::ZipChecksum,
            format!(
                "the checksum of entry {name:?} is {found:08x}, and its header says {crc:08x}: some readers refuse it, PyTorch reads it"
            ),
        );
    }
    start + raw.len()
}

/// Expands data and has its beginning looked at; the rest is searched.
pub(super) fn expand(
    scanner: &mut Scanner,
    raw: &[u8],
    wrap: Wrap,
    inner: &Place,
    look: &mut dyn FnMut(&mut Scanner, &[u8], u64),
) -> Inflated {
    let keep = scanner.hold;
    let limit = scanner.expand;
    let mut out = inflate(raw, wrap, keep, limit, &mut |piece, overlap| {
        scanner.search(piece, overlap.saturating_sub(1024), inner, Role::Payload);
    });
    scanner.expand = scanner.expand.saturating_sub(out.total);
    if out.bomb {
        let message = format!("its compressed data expands to more than {limit} bytes");
        scanner.find(Level::Suspicious, Rule::Bomb, inner, 0, message);
        scanner.skip(format!("{}: it expands to too much", inner.path));
    } else if out.total > out.head.len() as u64 {
        let piece = out.head.len();
        if out.head.starts_with(&[0x80]) || inner.path.ends_with(".pkl") {
            scanner.skip(format!("{}: only its first {piece} bytes were followed, the rest was searched", inner.path));
        }
    }
    let head = std::mem::take(&mut out.head);
    scanner.hold -= head.len().min(scanner.hold);
    look(scanner, &head, out.total);
    scanner.hold += head.len();
    out
}

/// Looks at the content of an entry.
fn content(scanner: &mut Scanner, data: &[u8], place: &Place, name: &str) {
    let role = if promises_pickle(name) || name.ends_with("_pkl") { Role::Pickle } else { Role::Entry };
    scanner.look(data, place, role);
    if scanner.script && name.ends_with(".py") {
        for call in ["from_file(", "torch.save(", "aten.save(", "aten::save", "aten::from_file", "torch.load("] {
            if let Some(at) = memchr::memmem::find(data, call.as_bytes()) {
                let message = format!("its TorchScript code has {call:?}: it can read or write any file when it runs");
                scanner.find(Level::Dangerous, Rule::Script, place, at, message);
            }
        }
    }
}

/// Looks at an entry by its own header, at the start of `bytes`; the bytes it takes.
pub(super) fn look_entry(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> usize {
    let Some(local) = local_at(bytes, 0) else { return 0 };
    let name = String::from_utf8_lossy(&local.name).into_owned();
    let mut packed = local.packed;
    if local.flags & 8 != 0 && packed == 0 {
        // Its length is only known to the directory: it goes on to the next record, at most.
        let rest = &bytes[local.data.min(bytes.len())..];
        let local = memchr::memmem::find(rest, LOCAL).unwrap_or(rest.len());
        let within = &rest[..local];
        let marks = [&b"PK\x07\x08"[..], b"PK\x01\x02"];
        let next = marks.iter().filter_map(|mark| memchr::memmem::find(within, mark)).min();
        packed = next.unwrap_or(local) as u64;
    }
    let size = if local.method == 0 { packed } else { local.size };
    let facts = Facts {
        name: &name,
        packed,
        method: local.method,
        size,
        crc: local.crc,
        marked: local.flags & 1 != 0,
        header: 0,
    };
    let before = scanner.findings.len();
    let end = member(scanner, bytes, local.data, &facts, place);
    if size == 0 && before < scanner.findings.len() {
        // Sizes that are not known cannot disagree.
        let new = scanner.findings.split_off(before);
        scanner.findings.extend(new.into_iter().filter(|finding| finding.rule != Rule::ZipMismatch));
    }
    end
}
