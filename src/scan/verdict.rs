//! What `torch.load(path, weights_only=True)` of PyTorch 2.15 would do with a file.

use std::path::Path;

use super::archive::{torch_directory, torch_record};
use super::formats::is_tar;
use super::report::WeightsOnly;
use super::stream::{MAGIC, PROTOCOL, texts};
use super::trace::{MAX_USES, Options, Outcome, Top, trace};
use super::zip::Central;

type Judged<T = String> = Result<T, String>;

/// The verdict on a file of that name.
pub(super) fn weights_only(name: &str, bytes: &[u8]) -> WeightsOnly {
    let judged = if name.ends_with(".safetensors") {
        safetensors(name, bytes)
    } else if bytes.starts_with(b"PK\x03\x04") {
        archive(bytes)
    } else if is_tar(bytes) {
        Err("it is a tar archive, which torch.load refuses with weights_only".to_owned())
    } else {
        legacy(bytes)
    };
    match judged {
        Ok(because) => WeightsOnly { accepts: true, because },
        Err(because) => WeightsOnly { accepts: false, because },
    }
}

fn safetensors(name: &str, bytes: &[u8]) -> Judged {
    if !super::formats::is_safetensors(bytes) {
        return Err("its name makes torch.load take it for safetensors, which it is not".to_owned());
    }
    match crate::container::part(Path::new(name), bytes, &mut crate::pickle::Budget::default()) {
        Ok(_) => {
            Ok("it is safetensors: torch.load hands it to the safetensors library, and no pickle is involved"
                .to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The outcome of a pickle that torch's restricted unpickler goes through.
fn follow(bytes: &[u8], at: usize) -> Judged<Outcome> {
    let outcome = trace(bytes, at, Options { uses: MAX_USES, ..Options::default() });
    match (&outcome.refused, &outcome.limit) {
        (Some((offset, why)), _) => Err(format!("{why} (byte {offset} of the pickle)")),
        (None, Some(limit)) => Err(limit.clone()),
        (None, None) => Ok(outcome),
    }
}

fn names(outcome: &Outcome) -> String {
    let count = outcome.names.iter().filter(|name| !name.name.starts_with('<')).count();
    match count {
        0 => "its pickle uses no names".to_owned(),
        1 => "the one name its pickle uses is allowed".to_owned(),
        n => format!("all {n} names its pickle uses are allowed"),
    }
}

/// How PyTorch's zip reader compares names: without regard to case.
fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let lower = |name: &[u8]| name.to_ascii_lowercase();
    lower(a).cmp(&lower(b))
}

/// The places of the entries in the order that PyTorch's zip reader sorts them in: a heap sort, so that which of several
/// entries of one name comes where depends on all the others.
fn sorted(directory: &[Central]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..directory.len()).collect();
    let less = |a: usize, b: usize| compare(&directory[a].name, &directory[b].name).is_lt();
    let sift = |order: &mut [usize], mut root: usize| {
        loop {
            let mut child = 2 * root + 1;
            if child >= order.len() {
                break;
            }
            child += usize::from(child + 1 < order.len() && less(order[child], order[child + 1]));
            if !less(order[root], order[child]) {
                break;
            }
            order.swap(root, child);
            root = child;
        }
    };
    for root in (0..order.len() / 2).rev() {
        sift(&mut order, root);
    }
    for end in (1..order.len()).rev() {
        order.swap(0, end);
        sift(&mut order[..end], 0);
    }
    order
}

/// The entry of that name that PyTorch's zip reader finds: by bisection.
fn search<'a>(directory: &'a [Central], order: &[usize], name: &[u8]) -> Option<&'a Central> {
    let place = {
        let (mut low, mut high) = (0, order.len());
        loop {
            if low >= high {
                break None;
            }
            // The middle of the first and the last that are left.
            let middle = low + (high - 1 - low) / 2;
            match compare(&directory[order[middle]].name, name) {
                std::cmp::Ordering::Equal => break Some(order[middle]),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
    };
    place.map(|place| &directory[place])
}

/// The zip archive of torch.save.
fn archive(bytes: &[u8]) -> Judged {
    let directory = torch_directory(bytes)?;
    let first = directory.first().ok_or("it is an empty archive")?;
    let root = match first.name.iter().position(|&b| b == b'/') {
        Some(slash) => &first.name[..=slash],
        None => return Err("its first entry lies in no folder".to_owned()),
    };
    if directory.iter().any(|entry| !entry.name.starts_with(root)) {
        return Err("its entries lie in different folders".to_owned());
    }
    let order = sorted(&directory);
    let find = |name: &str| -> Option<&Central> {
        let wanted = [root, name.as_bytes()].concat();
        search(&directory, &order, &wanted)
    };
    if find("constants.pkl").is_some() {
        return Err(
            "it has a constants.pkl: torch.load takes it for TorchScript, which weights_only refuses".to_owned()
        );
    }
    let version = find(".data/version").or_else(|| find("version")).ok_or("it has no entry `version`")?;
    let version = torch_record(bytes, version)?;
    let number: Option<u64> = std::str::from_utf8(&version).ok().and_then(|text| text.trim().parse().ok());
    match number {
        Some(1..=10) => {}
        _ => return Err("its version is none that PyTorch reads".to_owned()),
    }
    if let Some(order) = find("byteorder") {
        let order = torch_record(bytes, order)?;
        if ![&b"little"[..], b"big"].contains(&&order[..]) {
            return Err("its byte order is neither little nor big".to_owned());
        }
    }
    if let Some(format) = find(".format_version") {
        torch_record(bytes, format)?;
    }
    if let Some(alignment) = find(".storage_alignment") {
        let alignment = torch_record(bytes, alignment)?;
        if std::str::from_utf8(&alignment).ok().and_then(|text| text.trim().parse::<i64>().ok()).is_none() {
            return Err("its alignment of storages is no number".to_owned());
        }
    }
    let pickle = torch_record(bytes, find("data.pkl").ok_or("it has no entry `data.pkl`")?)?;
    let outcome = follow(&pickle, 0)?;
    for storage in &outcome.storages {
        if storage.fields != 5 {
            return Err("the id of a storage has not 5 parts".to_owned());
        }
        let entry =
            find(&format!("data/{}", storage.key)).ok_or_else(|| format!("storage {:?} is missing", storage.key))?;
        let declared = (storage.numel as u64).saturating_mul(u64::from(storage.element));
        if entry.size < declared {
            return Err(format!("storage {:?} has {} bytes instead of {declared}", storage.key, entry.size));
        }
        if entry.method != 8 {
            torch_record(bytes, entry)?;
        }
    }
    Ok(names(&outcome))
}

/// Five pickles and the storages.
fn legacy(bytes: &[u8]) -> Judged {
    let magic = follow(bytes, 0)?;
    if magic.top != Top::Long(MAGIC.to_vec()) {
        return Err(
            "it is neither a zip archive nor a legacy file of torch.save: its first pickle is not the magic number"
                .to_owned(),
        );
    }
    let protocol = follow(bytes, magic.end)?;
    if protocol.top != Top::Int(PROTOCOL) {
        return Err("its second pickle is not the number 1001".to_owned());
    }
    let system = follow(bytes, protocol.end)?;
    let outcome = follow(bytes, system.end)?;
    let list = follow(bytes, outcome.end)?;
    let mut at = list.end;
    for key in texts(bytes, outcome.end) {
        let Some(storage) = outcome.storages.iter().find(|storage| storage.key == key) else {
            return Err(format!("storage {key:?} is in its list, but belongs to no tensor"));
        };
        let numel = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| u64::from_le_bytes(*n));
        if numel != Some(storage.numel as u64) {
            return Err(format!("storage {key:?} is of another length than its pickle says"));
        }
        let length = (storage.numel as u64).saturating_mul(u64::from(storage.element));
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(at + 8))
            .filter(|&end| end <= bytes.len());
        at = end.ok_or_else(|| format!("storage {key:?} reaches past the end of the file"))?;
    }
    Ok(names(&outcome))
}
