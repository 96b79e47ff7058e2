//! Zip archives, seen by every reader at once: by the directory as PyTorch reads it, as Python's zipfile reads it, and by the
//! entries themselves. Where the readers would differ is a finding; what any of them would read is looked at.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::entry::{look_entry, look_listed};
use super::inflate::{Wrap, inflate};
use super::report::{Level, Rule};
use super::scanner::{MAX_ENTRIES, MAX_EXPANDED_HEAD, Place, Role, Scanner};
use super::stream::prefix;
use super::zip::{Central, EndRecord, LOCAL, ends, entries, local_at};

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
    if end.count != end.count_here || ![[0, 0], [1, 1]].contains(&end.disks) {
        return Err("its zip directory is split over several files".to_owned());
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
        if entry.disk != end.disks[0] && entry.disk != 1 || entry.disk == u16::MAX {
            return Err("its entries are split over several files".to_owned());
        }
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
    if entry.folder || entry.name.ends_with(b"/") {
        return Err(format!("its entry {name:?} is marked as a folder"));
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
pub(super) struct Listed {
    pub(super) entry: Central,
    pub(super) header: usize,
}

/// The archives in a file of `torch.distributed.checkpoint` (`*.distcp`), which holds one for each tensor, end to end, and
/// is only ever read one by one. Under any other name that would be a trick, and so it is here unless every byte belongs
/// to a sound archive.
pub(super) fn one_after_another(name: &str, bytes: &[u8]) -> Option<Vec<Range<usize>>> {
    /// The most archives in a file, and the most places tried as the end of one.
    const MAX: usize = 1 << 16;
    if !name.ends_with(".distcp") {
        return None;
    }
    let (mut parts, mut start, mut tried) = (Vec::new(), 0, 0);
    while start < bytes.len() {
        let mut ends = memchr::memmem::find_iter(&bytes[start..], b"PK\x05\x06").map(|at| start + at);
        let stop = loop {
            tried += 1;
            let end = ends.next().filter(|_| tried <= MAX)?;
            let comment = u16::from_le_bytes(*bytes.get(end + 20..)?.first_chunk()?);
            let stop = end + 22 + usize::from(comment);
            if bytes
                .get(start..stop)
                .is_some_and(|part| crate::container::zip::read(part, &mut crate::pickle::Budget::default()).is_ok())
            {
                break stop;
            }
        };
        parts.push(start..stop);
        start = stop;
    }
    (parts.len() > 1).then_some(parts)
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
    if end.count != end.count_here || end.disks != [0, 0] {
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
        look_listed(scanner, bytes, listed, place, &mut used, &mut seen);
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
