//! Pickles one after the other: bare ones, and the legacy files of `torch.save` before PyTorch 1.6.

use std::borrow::Cow;
use std::collections::HashMap;

use super::report::{Level, Rule};
use super::scanner::{Place, Role, Scanner, Summary};
use super::trace::{Options, Top, trace};
use super::walk::Walk;
use crate::pickle::Op;

/// The first pickle of a legacy file, little-endian.
pub(super) const MAGIC: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The second.
pub(super) const PROTOCOL: i64 = 1001;

/// Whether bytes are to be followed as a pickle from their beginning.
pub(super) fn is_pickle(bytes: &[u8], role: Role, script: bool) -> bool {
    if role == Role::Pickle {
        return true;
    }
    /// Opcodes without a name after which bytes without PROTO are none, where no loader begins to read.
    const PATIENCE: usize = 2000;
    let marked = bytes[0] == 0x80 && bytes.get(1).is_some_and(|&protocol| protocol <= 5);
    if marked && role == Role::File {
        return true;
    }
    let patience = if role == Role::File { usize::MAX } else { PATIENCE };
    let outcome = trace(bytes, 0, Options { script, patience: Some(patience), uses: 1 << 16 });
    if outcome.uses.is_empty() {
        // Harmless, but a pickle if it says so and goes on for a while, or if it is all there is.
        let ends = outcome.complete && outcome.end == bytes.len() && outcome.ops >= 2;
        return match role {
            Role::File => ends,
            _ => marked && outcome.complete && outcome.ops >= 4,
        };
    }
    // What a file begins with is executed up to the first error, whatever its names look like.
    (outcome.plausible || role == Role::File) && (marked || outcome.complete || outcome.calls > 0)
}

/// Looks at the pickles that bytes begin with, and at what comes after them.
pub(super) fn look(scanner: &mut Scanner, bytes: &[u8], place: &Place, role: Role) -> Cow<'static, str> {
    if role == Role::Entry {
        let message = "an entry that should hold data is a pickle".to_owned();
        scanner.find(Level::Suspicious, Rule::HiddenPickle, place, 0, message);
    }
    let first = scanner.pickle(bytes, 0, place);
    if first.top == Top::Long(MAGIC.to_vec()) {
        legacy(scanner, bytes, first.end, place);
        return "PyTorch legacy file (torch.save before 1.6)".into();
    }
    let mut last = first;
    let mut count = 1;
    while last.complete && last.end < bytes.len() {
        let at = last.end;
        if !is_pickle(&bytes[at..], if bytes[at] == 0x80 { Role::File } else { Role::Entry }, scanner.script) {
            break;
        }
        if count == 1 {
            let message = "another pickle follows: whoever goes on reading executes it too".to_owned();
            scanner.find(Level::Suspicious, Rule::AfterStop, place, at, message);
        }
        count += 1;
        last = scanner.pickle(bytes, at, place);
    }
    rest(scanner, bytes, &last, place);
    match count {
        1 => "pickle".into(),
        n => format!("{n} pickles, one after the other").into(),
    }
}

/// What comes after the last pickle, or after its break.
fn rest(scanner: &mut Scanner, bytes: &[u8], last: &Summary, place: &Place) {
    if last.end >= bytes.len() {
        return;
    }
    if last.complete {
        let message = format!("{} bytes follow the end of the pickle", bytes.len() - last.end);
        scanner.find(Level::Suspicious, Rule::AfterStop, place, last.end, message);
    }
    scanner.search(bytes, last.end, place, Role::Payload);
}

/// The texts of a pickle, in order: the keys in the fifth pickle of a legacy file.
pub(super) fn texts(bytes: &[u8], start: usize) -> Vec<String> {
    /// More storages than any file has.
    const MAX: usize = 1 << 20;
    let mut walk = Walk { data: bytes, at: start };
    let mut found = vec![];
    while let Ok(step) = walk.next() {
        match step.op {
            Op::BINUNICODE | Op::SHORT_BINUNICODE | Op::BINSTRING | Op::SHORT_BINSTRING if found.len() < MAX => {
                found.push(String::from_utf8_lossy(step.a).into_owned());
            }
            Op::STOP => break,
            _ => {}
        }
    }
    found
}

/// The rest of a legacy file: four more pickles, then the storages in the order of the last.
fn legacy(scanner: &mut Scanner, bytes: &[u8], start: usize, place: &Place) {
    let wrong = |scanner: &mut Scanner, at: usize, message: String| {
        scanner.find(Level::Suspicious, Rule::Legacy, place, at, message);
    };
    let mut at = start;
    let mut sizes: HashMap<String, (u8, i64)> = HashMap::new();
    let mut keys = vec![];
    for index in 1..5 {
        if at >= bytes.len() {
            wrong(scanner, at, format!("it ends after {index} of its 5 pickles"));
            return;
        }
        let summary = scanner.pickle(bytes, at, place);
        if index == 1 && summary.top != Top::Int(PROTOCOL) {
            wrong(scanner, at, "its second pickle is not the number 1001".to_owned());
        }
        if index == 3 {
            sizes = summary.storages.iter().map(|s| (s.key.clone(), (s.element, s.numel))).collect();
        }
        if index == 4 {
            keys = texts(bytes, at);
        }
        at = summary.end;
        if !summary.complete {
            return scanner.search(bytes, at, place, Role::Payload);
        }
    }
    for key in keys {
        let Some(&(element, _)) = sizes.get(&key) else {
            wrong(scanner, at, format!("storage {key:?} is in its list, but belongs to no tensor"));
            break;
        };
        let numel = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|chunk| u64::from_le_bytes(*chunk));
        let end = numel
            .and_then(|n| n.checked_mul(u64::from(element)))
            .and_then(|n| usize::try_from(n).ok())
            .and_then(|n| n.checked_add(at + 8));
        let Some(data) = end.and_then(|end| bytes.get(at + 8..end)) else {
            scanner.skip(format!("{}storage {key:?} reaches past the end of the file: it was cut off", prefix(place)));
            return;
        };
        let begin = at + 8;
        scanner.look(data, &place.entry(&format!("storage {key}"), Some(begin)), Role::Entry);
        at = begin + data.len();
    }
    if at < bytes.len() {
        wrong(scanner, at, format!("{} bytes follow its last storage", bytes.len() - at));
        scanner.search(bytes, at, place, Role::Payload);
    }
}

/// The path for a message.
pub(super) fn prefix(place: &Place) -> String {
    if place.path.is_empty() { String::new() } else { format!("{}: ", place.path) }
}
