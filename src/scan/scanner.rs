//! The look at one file: what is in it, and in that, and so on.

use std::borrow::Cow;

use super::carve::{Budget, Hit, carve};
use super::formats;
use super::report::{FileReport, Finding, Level, PickleReport, Rule};
use super::trace::{MAX_USES, Options, Outcome, Payload, trace};
use super::verdict;
use super::{archive, entry, stream};

/// The most pickles that are reported of a file.
pub const MAX_PICKLES: usize = 10_000;
/// The most findings that are reported of a file.
pub const MAX_FINDINGS: usize = 5_000;
/// The most entries of an archive.
pub const MAX_ENTRIES: usize = 1 << 18;
/// How deep containers in containers are looked into.
pub const MAX_NESTING: usize = 8;
/// Bytes of a compressed entry that are held in memory to be followed; the rest of it is only searched.
pub const MAX_EXPANDED_HEAD: usize = 48 << 20;
/// Bytes that the compressed data of a file may expand to at least.
pub const MAX_EXPANDED: u64 = 1 << 28;
/// Times the size of the file that its compressed data may expand to.
pub const MAX_EXPANSION: u64 = 64;

/// Where something is: the entries that lead to it, and where it begins in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) path: String,
    /// `None` in compressed data.
    pub(super) base: Option<u64>,
    pub(super) depth: usize,
    /// Added to offsets: the place is a part of what the path names.
    pub(super) shift: u64,
}

impl Place {
    /// An entry of this place, its bytes beginning at `at` here; `None` if it is compressed.
    pub(super) fn entry(&self, name: &str, at: Option<usize>) -> Place {
        const LONGEST: usize = 300;
        let mut name = if self.path.is_empty() { name.to_owned() } else { format!("{}!{name}", self.path) };
        if name.chars().count() > LONGEST {
            name = name.chars().take(LONGEST).chain(['…']).collect();
        }
        Place { path: name, base: at.and_then(|at| Some(self.base? + at as u64)), depth: self.depth + 1, shift: 0 }
    }

    /// A part of this place from `at` on.
    pub(super) fn part(&self, at: usize) -> Place {
        let shift = at as u64;
        Place { base: self.base.map(|base| base + shift), shift: self.shift + shift, ..self.clone() }
    }
}

/// What bytes are there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The file itself, or something unpacked that stands for it.
    File,
    /// An entry whose name says that it is a pickle.
    Pickle,
    /// Any other entry: a storage, a text.
    Entry,
    /// Bytes in a pickle.
    Payload,
}

/// Names that promise anything but a pickle.
const HARMLESS_EXTENSIONS: &[&str] = &[
    "txt",
    "md",
    "json",
    "csv",
    "tsv",
    "png",
    "jpg",
    "jpeg",
    "gif",
    "webp",
    "svg",
    "pdf",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "log",
    "html",
    "htm",
    "xml",
    "safetensors",
    "py",
    "c",
    "h",
    "rs",
    "sh",
    "mp3",
    "wav",
    "mp4",
    "gguf",
    "onnx",
    "lock",
];

/// Whether a name promises anything but a pickle.
pub(super) fn promises_no_pickle(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| HARMLESS_EXTENSIONS.contains(&extension.as_str()))
}

/// Whether a name promises a pickle.
pub(super) fn promises_pickle(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    [".pkl", ".pickle", ".joblib", ".dill", ".p"].iter().any(|end| lower.ends_with(end))
}

/// One file being scanned.
pub(super) struct Scanner {
    pub(super) findings: Vec<Finding>,
    /// No finding is known to be of a lower level.
    floor: Level,
    pub(super) not_scanned: Vec<String>,
    pub(super) pickles: Vec<PickleReport>,
    uses: usize,
    carving: Budget,
    /// Bytes of entries that may still be read: entries can share their bytes.
    reading: u64,
    /// Bytes that compressed data may still expand to.
    pub(super) expand: u64,
    /// Bytes of expanded data that may still be held in memory.
    pub(super) hold: usize,
    /// It is a TorchScript archive.
    pub(super) script: bool,
}

/// Scans the content of a file of that name.
pub(super) fn scan(name: &str, bytes: &[u8]) -> FileReport {
    let length = bytes.len() as u64;
    let mut scanner = Scanner {
        findings: vec![],
        floor: Level::Suspicious,
        not_scanned: vec![],
        pickles: vec![],
        uses: MAX_USES,
        carving: Budget(length.saturating_mul(2) + (16 << 20)),
        reading: length.saturating_mul(16) + (64 << 20),
        expand: MAX_EXPANDED.max(length.saturating_mul(MAX_EXPANSION)),
        hold: MAX_EXPANDED_HEAD,
        script: false,
    };
    let place = Place { base: Some(0), ..Place::default() };
    let role = if promises_pickle(name) { Role::Pickle } else { Role::File };
    let kind = match archive::one_after_another(name, bytes) {
        Some(parts) => {
            for part in parts {
                scanner.look(&bytes[part.clone()], &place.part(part.start), Role::File);
            }
            "zip archives one after another (torch.distributed.checkpoint)".into()
        }
        None => scanner.look(bytes, &place, role),
    };
    if promises_no_pickle(name) && scanner.pickles.iter().any(|pickle| pickle.path.is_empty() && pickle.offset == 0) {
        let message = format!("it is a pickle, although its name {name:?} promises something else");
        scanner.find(Level::Suspicious, Rule::Misnamed, &place, 0, message);
    }
    if scanner.carving.0 == 0 {
        scanner.skip("too many places in it look like pickles to follow them all".to_owned());
    }
    let weights_only = verdict::weights_only(name, bytes);
    scanner.findings.sort_by(|a, b| b.level.cmp(&a.level).then_with(|| (&a.path, a.offset).cmp(&(&b.path, b.offset))));
    scanner.findings.dedup();
    FileReport {
        bytes: length,
        kind,
        weights_only,
        findings: scanner.findings,
        not_scanned: scanner.not_scanned,
        pickles: scanner.pickles,
    }
}

impl Scanner {
    /// Notes a finding at `offset` of `place`.
    pub(super) fn find(&mut self, level: Level, rule: Rule, place: &Place, offset: usize, message: String) {
        if self.findings.len() >= MAX_FINDINGS {
            // The worst ones are never dropped for want of room.
            let worse = |finding: &Finding| finding.level < level;
            let Some(at) = (level > self.floor).then(|| self.findings.iter().rposition(worse)).flatten() else {
                self.floor = self.floor.max(level);
                return self.skip(format!("it has more than {MAX_FINDINGS} findings, of which the worst are listed"));
            };
            self.findings.swap_remove(at);
        }
        let offset = offset as u64;
        let file_offset = place.base.map(|base| base + offset);
        self.findings.push(Finding {
            level,
            rule,
            path: place.path.clone(),
            offset: offset + place.shift,
            file_offset,
            message,
        });
    }

    /// Notes something that could not be looked at.
    pub(super) fn skip(&mut self, why: String) {
        const MAX: usize = 100;
        if self.not_scanned.len() < MAX && !self.not_scanned.contains(&why) {
            self.not_scanned.push(why);
        }
    }

    /// Whether so many more bytes of an entry may be read.
    pub(super) fn read(&mut self, bytes: usize) -> bool {
        let left = self.reading.checked_sub(bytes as u64);
        self.reading = left.unwrap_or(0);
        left.is_some()
    }

    /// Looks at bytes, whatever they are; says what they are.
    pub(super) fn look(&mut self, bytes: &[u8], place: &Place, role: Role) -> Cow<'static, str> {
        if place.depth > MAX_NESTING {
            self.skip(format!("{}: nested more than {MAX_NESTING} deep", place.path));
            return "nested too deep".into();
        }
        if bytes.is_empty() {
            return "empty".into();
        }
        if let Some(kind) = formats::look(self, bytes, place, role) {
            // A zip archive is found by its end, whatever comes before.
            if !kind.contains("zip archive") && matches!(role, Role::File | Role::Pickle) {
                self.polyglot(bytes, place, &kind);
            }
            return kind;
        }
        if matches!(role, Role::File | Role::Pickle) && self.polyglot(bytes, place, "something else") {
            return "something with a zip archive behind it".into();
        }
        if stream::is_pickle(bytes, role, self.script) {
            return stream::look(self, bytes, place, role);
        }
        self.search(bytes, 0, place, role);
        match role {
            Role::File if bytes.iter().take(1024).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
                "text".into()
            }
            _ => "data without a pickle".into(),
        }
    }

    /// A zip archive at the end of something else.
    fn polyglot(&mut self, bytes: &[u8], place: &Place, kind: &str) -> bool {
        if !archive::ends_in_archive(bytes) {
            return false;
        }
        let message = format!("it begins as {kind} and ends as a zip archive: readers disagree on which it is");
        self.find(Level::Suspicious, Rule::Polyglot, place, 0, message);
        archive::look(self, bytes, place);
        true
    }

    /// Searches bytes that should hold no pickle, from `from` on.
    pub(super) fn search(&mut self, bytes: &[u8], from: usize, place: &Place, role: Role) {
        let options = self.options();
        let mut hits: Vec<Hit> = vec![];
        const MAX_HITS: usize = 1000;
        let mut budget = self.carving;
        carve(bytes, from, options, &mut budget, &mut |hit| {
            if hits.len() < MAX_HITS {
                hits.push(hit);
            }
        });
        self.carving = budget;
        for Hit { at, outcome } in hits {
            let worst = outcome.names.iter().map(|name| name.level).max().unwrap_or(Level::Allowed);
            let names: Vec<&str> =
                outcome.names.iter().filter(|n| n.level == worst).take(3).map(|n| n.name.as_str()).collect();
            let wherein = match role {
                Role::Payload => "in bytes of another pickle",
                _ => "in data that should hold none",
            };
            let message = format!("a pickle that uses {} lies {wherein}", names.join(", "));
            self.find(worst.max(Level::Suspicious), Rule::HiddenPickle, place, at, message);
            self.record(bytes, at, outcome, place);
        }
        if role != Role::Payload {
            self.hidden_archives(bytes, from, place);
        }
    }

    /// Zip archives in the middle of other data.
    fn hidden_archives(&mut self, bytes: &[u8], from: usize, place: &Place) {
        const MAX: usize = 16;
        let mut seen = 0;
        let mut at = from.max(1);
        while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memmem::find(rest, super::zip::LOCAL)) {
            let start = at + found;
            at = start + 4;
            let Some(local) = super::zip::local_at(bytes, start) else { continue };
            let sensible = [0, 8].contains(&local.method)
                && (1..512).contains(&local.name.len())
                && local.name.iter().all(|b| (0x20..0x7f).contains(b));
            if !sensible {
                continue;
            }
            seen += 1;
            if seen > MAX {
                return self.skip(format!("{}: more than {MAX} zip entries lie in its data", place.path));
            }
            let message =
                format!("a zip entry {:?} lies in data that should hold none", String::from_utf8_lossy(&local.name));
            self.find(Level::Suspicious, Rule::Polyglot, place, start, message);
            let inner = place.part(start);
            let inner = Place { depth: inner.depth + 1, ..inner };
            at = start + entry::look_entry(self, &bytes[start..], &inner).max(4);
        }
    }

    fn options(&self) -> Options {
        Options { script: self.script, patience: None, uses: self.uses }
    }

    /// Follows the pickle at `at`, and notes all there is to it. Just past its last opcode, and the outcome.
    pub(super) fn pickle(&mut self, bytes: &[u8], at: usize, place: &Place) -> Summary {
        let outcome = trace(bytes, at, self.options());
        self.record(bytes, at, outcome, place)
    }

    /// Notes what came of following a pickle.
    fn record(&mut self, bytes: &[u8], at: usize, outcome: Outcome, place: &Place) -> Summary {
        for finding in outcome.findings {
            self.find(finding.level, finding.rule, place, finding.offset, finding.message);
        }
        if let Some((offset, why)) = &outcome.broken {
            let message = format!("it breaks off: {why}; what comes before is executed all the same");
            self.find(Level::Suspicious, Rule::BrokenPickle, place, *offset, message);
        }
        if let Some(limit) = outcome.limit {
            self.skip(format!("{}: the pickle at byte {}: {limit}", place.path, place.shift + at as u64));
        }
        for payload in outcome.payloads {
            match payload {
                Payload::Range(start, end) => {
                    if let Some(inner) = bytes.get(start..end) {
                        self.payload(inner, &place.part(start), start);
                    }
                }
                Payload::Decoded(offset, inner) => {
                    let inside = Place { base: None, ..place.part(offset) };
                    self.payload(&inner, &inside, offset);
                }
            }
        }
        let summary =
            Summary { end: outcome.end, complete: outcome.complete, top: outcome.top, storages: outcome.storages };
        if self.pickles.len() >= MAX_PICKLES {
            self.skip(format!("it holds more than {MAX_PICKLES} pickles; the rest are judged, but not listed"));
            return summary;
        }
        self.uses = self.uses.saturating_sub(outcome.uses.len());
        let shift = place.shift;
        let mut uses = outcome.uses;
        for used in &mut uses {
            used.offset += shift;
        }
        self.pickles.push(PickleReport {
            path: place.path.clone(),
            offset: shift + at as u64,
            length: (outcome.end - at) as u64,
            protocol: outcome.protocol,
            complete: outcome.complete,
            names: outcome.names,
            uses,
        });
        summary
    }

    /// Bytes in a pickle.
    fn payload(&mut self, inner: &[u8], place: &Place, offset: usize) {
        let inside = Place { depth: place.depth + 1, ..place.entry(&format!("bytes@{offset}"), Some(0)) };
        let begins = |magic: &[u8]| inner.starts_with(magic);
        if begins(b"PK\x03\x04")
            || begins(&[0x1f, 0x8b, 8])
            || begins(&[0x80])
            || formats::is_zlib(inner)
            || begins(b"\x93NUMPY")
        {
            let before = self.pickles.len();
            self.look(inner, &inside, Role::Payload);
            if self.pickles.len() > before {
                let message =
                    "bytes in it are a pickle or archive themselves: they are there to be loaded by something"
                        .to_owned();
                self.find(Level::Suspicious, Rule::HiddenPickle, place, 0, message);
            }
        } else {
            self.search(inner, 0, &inside, Role::Payload);
        }
    }
}

/// What the readers of streams need to know of a pickle.
pub(super) struct Summary {
    pub(super) end: usize,
    pub(super) complete: bool,
    pub(super) top: super::trace::Top,
    pub(super) storages: Vec<super::trace::StorageRef>,
}
