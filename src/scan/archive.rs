//! Zip archives, seen by every reader at once: by the directory as PyTorch reads it, as Python's zipfile reads it, and by the
//! entries themselves. Where the readers would differ is a finding; what any of them would read is looked at.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::inflate::{Wrap, inflate};
use super::report::{Level, Rule};
use super::scanner::{MAX_ENTRIES, MAX_EXPANDED_HEAD, Place, Role, Scanner, promises_pickle};
use super::stream::prefix;
use super::zip::{Central, EndRecord, LOCAL, Local, ends, entries, local_at};

/// Zero bytes between entries that count as padding.
const PADDING: usize = 1 << 16;

/// Where the directory begins: as PyTorch counts it, from the start of the file, and as Python does, back from its end.
fn starts(end: &EndRecord) -> (Option<usize>, Option<usize>) {
    let by_offset = usize::try_from(end.start).ok().filter(|&start| start <= end.at);
    let behind = if end.zip64.is_some() { 76 } else { 0 };
    let by_size = usize::try_from(end.size).ok().and_then(|size| end.at.checked_sub(behind)?.checked_sub(size));
    (by_offset, by_size)
}

/// Whether some reader finds an archive by the end of the bytes.
pub(super) fn ends_in_archive(bytes: &[u8]) -> bool {
    ends(bytes).first().is_some_and(|end| {
        let (by_offset, by_size) = starts(end);
        [by_offset, by_size].into_iter().flatten().any(|start| !entries(bytes, start, end.at).0.is_empty())
    })
}

/// The directory as PyTorch reads it.
///
/// # Errors
/// Why it would not.
pub(super) fn torch_directory(bytes: &[u8]) -> Result<Vec<Central>, String> {
    let end = ends(bytes).into_iter().next().ok_or("its zip directory is missing")?;
    if end.count != end.count_here {
        return Err("its zip directory is split".to_owned());
    }
    let start = usize::try_from(end.start).map_err(|_| "its zip directory lies outside of the file")?;
    let stop =
        end.start.checked_add(end.size).and_then(|stop| usize::try_from(stop).ok()).filter(|&stop| stop <= bytes.len());
    let stop = stop.ok_or("its zip directory lies outside of the file")?;
    let (mut found, _) = entries(bytes, start, stop);
    let count = usize::try_from(end.count).unwrap_or(usize::MAX);
    if found.len() < count {
        return Err("its zip directory is damaged".to_owned());
    }
    found.truncate(count);
    for entry in &found {
        if entry.flags & 0x2000 != 0 {
            return Err("its zip directory is masked".to_owned());
        }
        let stop = entry.offset.saturating_add(30).saturating_add(entry.packed);
        if entry.method == 0 && entry.size != entry.packed
            || entry.size != 0 && entry.packed == 0
            || stop > bytes.len() as u64
        {
            return Err("its zip directory is damaged".to_owned());
        }
    }
    Ok(found)
}

/// The data of an entry as PyTorch reads it.
///
/// # Errors
/// Why it would not.
pub(super) fn torch_record<'a>(bytes: &'a [u8], entry: &Central) -> Result<Cow<'a, [u8]>, String> {
    let name = String::from_utf8_lossy(&entry.name);
    if entry.flags & 0x61 != 0 {
        return Err(format!("its entry {name:?} is marked as encrypted or as a patch"));
    }
    let local = usize::try_from(entry.offset).ok().and_then(|at| local_at(bytes, at));
    let local = local.ok_or_else(|| format!("its entry {name:?} is not where the directory says"))?;
    let packed = usize::try_from(entry.packed).unwrap_or(usize::MAX);
    let raw = local.data.checked_add(packed).and_then(|stop| bytes.get(local.data..stop));
    let raw = raw.ok_or_else(|| format!("its entry {name:?} reaches past the end"))?;
    match entry.method {
        0 => Ok(raw.into()),
        8 => {
            let out = inflate(raw, Wrap::None, MAX_EXPANDED_HEAD, MAX_EXPANDED_HEAD as u64, &mut |_, _| {});
            if out.complete && out.total == entry.size {
                Ok(out.head.into())
            } else {
                Err(format!("its entry {name:?} does not expand to what the directory says"))
            }
        }
        _ => Err(format!("its entry {name:?} is compressed in a way that PyTorch does not know")),
    }
}

/// A directory entry with where its local header is.
struct Listed {
    entry: Central,
    header: usize,
}

/// Looks at a whole archive.
pub(super) fn look(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> Cow<'static, str> {
    let all_ends = ends(bytes);
    let Some(end) = all_ends.first() else {
        scanner.skip(format!(
            "{}the directory that belongs at the end of the zip archive is missing: it was cut off",
            prefix(place)
        ));
        gap(scanner, bytes, 0..bytes.len(), place, false);
        return "zip archive without its directory".into();
    };
    let mut find = |rule, at: usize, message: String| scanner.find(Level::Suspicious, rule, place, at, message);
    for other in &all_ends[1..] {
        find(Rule::ZipDirectory, other.at, "another end record: readers disagree on which one counts".to_owned());
    }
    if end.differs {
        find(Rule::ZipDirectory, end.at, "its end record and its zip64 end record say different things".to_owned());
    }
    if end.count != end.count_here {
        find(Rule::ZipDirectory, end.at, "it says that it is split over several files".to_owned());
    }
    let stop = end.at + 22 + end.comment;
    match stop.cmp(&bytes.len()) {
        std::cmp::Ordering::Less => {
            find(Rule::ZipOutside, stop, format!("{} bytes follow the end of the archive", bytes.len() - stop));
        }
        std::cmp::Ordering::Greater => {
            find(Rule::ZipDirectory, end.at, "its comment reaches past the end of the file".to_owned())
        }
        std::cmp::Ordering::Equal => {}
    }
    let (by_offset, by_size) = starts(end);
    if by_offset != by_size {
        let message = "its directory is at one place for readers that count from the start, and at another for those that count from the end";
        find(Rule::ZipDirectory, end.at, message.to_owned());
    }
    scanner.search(bytes, (end.at + 22).min(bytes.len()), place, Role::Payload);
    let listed = directory(scanner, bytes, end, place);
    if listed.is_empty() && end.count > 0 {
        scanner.skip(format!("{}the directory of the zip archive cannot be read", prefix(place)));
    }
    names(scanner, &listed, place);
    if listed
        .iter()
        .any(|listed| listed.entry.name.ends_with(b"/constants.pkl") || listed.entry.name == b"constants.pkl")
    {
        scanner.script = true;
    }
    if listed.iter().any(|listed| listed.entry.name.ends_with(b"/.data/extern_modules")) {
        let message = "it is a torch.package: PackageImporter executes the Python code in it".to_owned();
        scanner.find(Level::Unknown, Rule::Script, place, 0, message);
    }
    let mut used: BTreeMap<usize, (usize, String)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for listed in listed.iter().take(MAX_ENTRIES) {
        entry(scanner, bytes, listed, place, &mut used, &mut seen);
    }
    if listed.len() > MAX_ENTRIES {
        scanner.skip(format!("{}it has more than {MAX_ENTRIES} entries", prefix(place)));
    }
    let directory_start = listed.iter().map(|listed| listed.entry.at).min().unwrap_or(end.at);
    gaps(scanner, bytes, used, directory_start, place);
    let torch = listed.iter().any(|listed| listed.entry.name.ends_with(b"data.pkl"));
    match (scanner.script, torch) {
        (true, _) => "TorchScript zip archive".into(),
        (_, true) => "PyTorch zip archive (torch.save since 1.6)".into(),
        _ => "zip archive".into(),
    }
}

/// Every entry that some reader finds in the directory.
fn directory(scanner: &mut Scanner, bytes: &[u8], end: &EndRecord, place: &Place) -> Vec<Listed> {
    let (by_offset, by_size) = starts(end);
    let stop = end.zip64.filter(|&at| at < end.at).unwrap_or(end.at);
    let mut listed: Vec<Listed> = vec![];
    let mut seen = HashSet::new();
    for (start, shift) in [(by_offset, 0), (by_size, by_size.unwrap_or(0) as i128 - i128::from(end.start))] {
        let Some(start) = start else { continue };
        let (found, after) = entries(bytes, start, stop);
        if shift == 0 {
            let count = usize::try_from(end.count).unwrap_or(usize::MAX);
            if found.len() != count {
                let message = format!("its directory has {} entries, and its end record says {count}", found.len());
                scanner.find(Level::Suspicious, Rule::ZipDirectory, place, end.at, message);
            } else if after as u64 != end.start.saturating_add(end.size) {
                let message = "its directory is of another length than its end record says".to_owned();
                scanner.find(Level::Suspicious, Rule::ZipDirectory, place, end.at, message);
            }
            if after < stop {
                gap(scanner, bytes, after..stop, place, true);
            }
        }
        for entry in found {
            let header = usize::try_from(i128::from(entry.offset) + shift).unwrap_or(usize::MAX);
            if seen.insert((entry.at, header)) {
                listed.push(Listed { entry, header });
            }
        }
    }
    // Of two views, the one that leads nowhere is no reader's.
    let real = |listed: &Listed| local_at(bytes, listed.header).is_some();
    if by_offset != by_size && listed.iter().any(real) {
        listed.retain(real);
    }
    listed
}

/// Names that occur twice, and names that readers understand differently.
fn names(scanner: &mut Scanner, listed: &[Listed], place: &Place) {
    let mut exact: HashMap<&[u8], usize> = HashMap::new();
    let mut folded: HashMap<String, &[u8]> = HashMap::new();
    let mut roots: Vec<String> = vec![];
    for Listed { entry, .. } in listed {
        let shown = String::from_utf8_lossy(&entry.name);
        let mut odd = |rule, message: String| scanner.find(Level::Suspicious, rule, place, entry.at, message);
        if exact.insert(&entry.name, entry.at).is_some_and(|at| at != entry.at) {
            odd(
                Rule::ZipDuplicate,
                format!("there are several entries {shown:?}: readers disagree on which one counts"),
            );
        }
        let text = shown.replace('\\', "/");
        let plain: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let key = plain.join("/").to_lowercase();
        if folded.insert(key, &entry.name).is_some_and(|other| other != entry.name) {
            odd(Rule::ZipName, format!("the name {shown:?} is that of another entry, but for case or slashes"));
        }
        let what = if entry.name.contains(&0) {
            "holds a zero byte, where some readers cut it off"
        } else if entry.name.contains(&b'\\') {
            "holds a backslash, which some readers take for a slash"
        } else if entry.name.starts_with(b"/") || entry.name.get(1) == Some(&b':') {
            "is an absolute path"
        } else if plain.contains(&"..") {
            "leads out of the archive"
        } else if entry.name.iter().any(|b| *b < 0x20 || *b == 0x7f) {
            "holds control characters"
        } else {
            ""
        };
        if !what.is_empty() {
            odd(Rule::ZipName, format!("the name {shown:?} {what}"));
        }
        if plain.last().is_some_and(|last| last.eq_ignore_ascii_case("data.pkl")) {
            roots.push(shown.into_owned());
        }
    }
    if roots.len() > 1 {
        roots.dedup();
        let message = format!(
            "it has several data.pkl: {}",
            roots.iter().take(5).map(|root| format!("{root:?}")).collect::<Vec<_>>().join(", ")
        );
        scanner.find(
            Level::Suspicious,
            Rule::ZipName,
            place,
            listed.first().map_or(0, |listed| listed.entry.at),
            message,
        );
    }
}

/// Compares the headers of an entry, and looks at what any reader would read of it.
fn entry(
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
) -> super::inflate::Inflated {
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

/// Bytes that no entry of the directory covers.
fn gaps(scanner: &mut Scanner, bytes: &[u8], used: BTreeMap<usize, (usize, String)>, directory: usize, place: &Place) {
    let mut at = 0;
    for (header, (end, _)) in used {
        if header > at {
            gap(scanner, bytes, at..header, place, true);
        }
        at = at.max(end);
    }
    if at < directory {
        gap(scanner, bytes, at..directory, place, true);
    }
}

/// Looks at bytes between entries: entries that the directory does not list, and whatever else. `listed` says that there is a directory.
fn gap(scanner: &mut Scanner, bytes: &[u8], range: std::ops::Range<usize>, place: &Place, listed: bool) {
    let data = &bytes[range.clone()];
    if data.len() <= PADDING && data.iter().all(|&b| b == 0) {
        return;
    }
    if listed {
        let message = format!("{} bytes belong to no entry of the directory", data.len());
        scanner.find(Level::Suspicious, Rule::ZipOutside, place, range.start, message);
    }
    let mut from = range.start;
    let mut count = 0;
    while let Some(found) = memchr::memmem::find(&bytes[from..range.end], LOCAL) {
        let at = from + found;
        scanner.search(&bytes[from..at], 0, &place.part(from), Role::Payload);
        if count >= MAX_ENTRIES {
            break;
        }
        count += 1;
        from = at + look_entry(scanner, &bytes[at..range.end], &place.part(at)).max(4);
        from = from.min(range.end);
    }
    scanner.search(&bytes[from..range.end], 0, &place.part(from), Role::Payload);
}

/// Looks at an entry by its own header, at the start of `bytes`; the bytes it takes.
pub(super) fn look_entry(scanner: &mut Scanner, bytes: &[u8], place: &Place) -> usize {
    let Some(local) = local_at(bytes, 0) else { return 0 };
    let name = String::from_utf8_lossy(&local.name).into_owned();
    let mut packed = local.packed;
    if local.flags & 8 != 0 && packed == 0 {
        // Its length is only known to the directory: it goes on to the next record, at most.
        let rest = &bytes[local.data.min(bytes.len())..];
        let next =
            [&b"PK\x07\x08"[..], LOCAL, b"PK\x01\x02"].iter().filter_map(|mark| memchr::memmem::find(rest, mark)).min();
        packed = next.unwrap_or(rest.len()) as u64;
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
        let mut index = 0;
        scanner.findings.retain(|finding| {
            index += 1;
            index <= before || finding.rule != Rule::ZipMismatch
        });
    }
    end
}
