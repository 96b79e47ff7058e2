//! `scan`: what loading a file would execute.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Cell, Color};
use m2pt_surgery::scan::{FileReport, Finding, Level, PickleReport, Rule, UseKind, Verdict, scan_file};
use serde_json::{Value, json};

use super::printer::{Printer, right};
use super::text::{bytes, count, counted, printable, shortened};
use super::{DONE, FAILED, FINDING};

/// Find out what loading a file would execute: every import, call and id in every pickle, allowed or not
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  m2pt-surgery scan model.pth
  m2pt-surgery scan downloads/
  m2pt-surgery scan model.pth --full                   every name that its pickles use
  m2pt-surgery scan model.pth --json | jq '.files[].pickles[].uses'
  m2pt-surgery scan models/ --sarif > scan.sarif

Exit status: 0 clean; 1 findings; 2 something could not be scanned, which is never clean.")]
pub(super) struct Args {
    /// Files, and folders with all that is below them
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// List every name that is imported or called, the allowed ones too
    #[arg(long)]
    full: bool,

    /// One JSON object on standard output
    #[arg(long, conflicts_with_all = ["sarif", "full"])]
    json: bool,

    /// A SARIF 2.1.0 log on standard output
    #[arg(long, conflicts_with = "full")]
    sarif: bool,
}

/// A file and what came of it.
struct Scanned {
    path: PathBuf,
    report: Result<FileReport, String>,
}

impl Scanned {
    fn verdict(&self) -> Verdict {
        self.report.as_ref().map_or(Verdict::NotScannable, FileReport::verdict)
    }

    /// Whether it needs attention: an error, a finding, or a part that was not looked at.
    fn incomplete(&self) -> bool {
        self.report.as_ref().is_ok_and(|report| !report.not_scanned.is_empty())
    }
}

pub(super) fn run(args: &Args, printer: &mut Printer) -> Result<ExitCode> {
    let mut scanned: Vec<Scanned> = vec![];
    let several = args.paths.len() > 1 || args.paths.iter().any(|path| path.is_dir());
    let text = !args.json && !args.sarif;
    let mut total = Totals::default();
    let mut each = |one: Scanned, printer: &mut Printer| -> Result<()> {
        total.add(&one);
        if text {
            show(&one, args.full, several, printer)?;
        } else {
            scanned.push(one);
        }
        Ok(())
    };
    for path in &args.paths {
        if path.is_dir() {
            let mut links = 0;
            let mut found = vec![];
            let mut unreadable = vec![];
            walk(path, &mut found, &mut unreadable, &mut links);
            if links > 0 {
                let what = counted(links, "symbolic link");
                printer.note(&format!("{}: {what} not followed; give their targets to scan them", path.display()));
            }
            if found.is_empty() && unreadable.is_empty() {
                unreadable.push((path.clone(), "no regular file is in it, so that nothing was scanned".to_owned()));
            }
            for (path, why) in unreadable {
                each(Scanned { path, report: Err(why) }, printer)?;
            }
            for path in found {
                let report = scan(&path);
                each(Scanned { path, report }, printer)?;
            }
        } else {
            each(Scanned { path: path.clone(), report: scan(path) }, printer)?;
        }
    }
    if args.json {
        printer.json(&json!({"files": scanned.iter().map(file_json).collect::<Vec<_>>(), "summary": total.json()}))?;
    } else if args.sarif {
        printer.json(&sarif(&scanned))?;
    } else if several {
        printer.line(total.line())?;
    }
    Ok(match total.worst() {
        Verdict::Clean => DONE,
        Verdict::Finding => ExitCode::from(FINDING),
        Verdict::NotScannable => ExitCode::from(FAILED),
    })
}

fn scan(path: &Path) -> Result<FileReport, String> {
    scan_file(path).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}

/// Every regular file below a folder, in order of their names, links to such files included; other symbolic links are
/// counted, not followed.
fn walk(folder: &Path, found: &mut Vec<PathBuf>, unreadable: &mut Vec<(PathBuf, String)>, links: &mut usize) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                unreadable.push((folder, format!("the folder cannot be read: {error}")));
                continue;
            }
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                // Caches of downloads are folders of links to files. What leads to another folder may lead anywhere.
                Ok(kind) if kind.is_symlink() => match std::fs::metadata(entry.path()) {
                    Ok(target) if target.is_file() => found.push(entry.path()),
                    _ => *links += 1,
                },
                _ => {}
            }
        }
    }
    found.sort();
}

/// How many files came out how.
#[derive(Default)]
struct Totals {
    files: usize,
    clean: usize,
    finding: usize,
    not_scannable: usize,
    incomplete: usize,
    without: usize,
}

impl Totals {
    fn add(&mut self, one: &Scanned) {
        self.files += 1;
        match one.verdict() {
            Verdict::Clean => self.clean += 1,
            Verdict::Finding => self.finding += 1,
            Verdict::NotScannable => self.not_scannable += 1,
        }
        self.incomplete += usize::from(one.incomplete() && one.verdict() == Verdict::Finding);
        self.without += usize::from(
            one.report.as_ref().is_ok_and(|report| report.pickles.is_empty() && one.verdict() == Verdict::Clean),
        );
    }

    fn worst(&self) -> Verdict {
        match (self.not_scannable, self.finding) {
            (0, 0) => Verdict::Clean,
            (0, _) => Verdict::Finding,
            _ => Verdict::NotScannable,
        }
    }

    fn line(&self) -> String {
        let without = if self.without > 0 {
            format!(" ({} without a pickle)", count(self.without as u64))
        } else {
            String::new()
        };
        format!(
            "{}: {} clean{without}, {} with findings, {} not scannable.",
            counted(self.files, "file"),
            count(self.clean as u64),
            count(self.finding as u64),
            count(self.not_scannable as u64)
        )
    }

    fn json(&self) -> Value {
        json!({
            "files": self.files, "clean": self.clean, "finding": self.finding, "not_scannable": self.not_scannable,
            "incomplete": self.incomplete,
        })
    }
}

fn colour(level: Level) -> Color {
    match level {
        Level::Allowed => Color::Green,
        Level::Suspicious => Color::Yellow,
        Level::Unknown => Color::Magenta,
        Level::Dangerous => Color::Red,
    }
}

/// One file as a person reads it.
fn show(one: &Scanned, full: bool, several: bool, printer: &mut Printer) -> Result<()> {
    let name = printable(&one.path.display().to_string());
    let report = match &one.report {
        Ok(report) => report,
        Err(why) => {
            printer.line(format!("{name}  not scannable: {}\n", printable(why)))?;
            return Ok(());
        }
    };
    let verdict = report.verdict();
    if several && !full && verdict == Verdict::Clean {
        if !report.pickles.is_empty() {
            printer.line(format!("{name}  {}  {}: clean\n", bytes(report.bytes), report.kind))?;
        }
        return Ok(());
    }
    let word = match verdict {
        Verdict::Clean => "clean",
        Verdict::Finding => report.worst().name(),
        Verdict::NotScannable => "not scannable",
    };
    printer.line(format!("{name}  {}  {}: {word}", bytes(report.bytes), report.kind))?;
    let load = if report.weights_only.accepts { "accept" } else { "refuse" };
    let because = shortened(&printable(&report.weights_only.because), 200);
    printer.line(format!("  torch.load(weights_only=True) would {load} it: {because}"))?;
    printer.line(format!("  {}", uses_line(&report.pickles)))?;
    for why in &report.not_scanned {
        printer.line(format!("  not scanned: {}", printable(why)))?;
    }
    printer.line("")?;
    findings(&report.findings, printer)?;
    if full {
        names(&report.pickles, printer)?;
    }
    Ok(())
}

/// How many pickles, and what they use.
fn uses_line(pickles: &[PickleReport]) -> String {
    if pickles.is_empty() {
        return "no pickle in it: nothing would be executed".to_owned();
    }
    let of = |kind| pickles.iter().flat_map(|pickle| &pickle.uses).filter(|used| used.kind == kind).count();
    let (globals, calls, ids) = (of(UseKind::Global), of(UseKind::Call), of(UseKind::PersistentId));
    format!(
        "{}: {}, {}, {}",
        counted(pickles.len(), "pickle"),
        counted(globals, "import"),
        counted(calls, "call"),
        counted(ids, "persistent id")
    )
}

fn findings(findings: &[Finding], printer: &mut Printer) -> Result<()> {
    /// Findings of one file that are shown; --json has all.
    const SHOWN: usize = 50;
    const WIDTH: usize = 150;
    if findings.is_empty() {
        return Ok(());
    }
    let mut table = printer.new_table(&["level", "where", "byte", "finding"]);
    for finding in findings.iter().take(SHOWN) {
        let path = if finding.path.is_empty() { "(the file)" } else { &finding.path };
        table.add_row([
            Cell::new(finding.level).fg(colour(finding.level)),
            Cell::new(shortened(&printable(path), 60)),
            right(count(finding.offset)),
            Cell::new(shortened(&printable(&finding.message), WIDTH)),
        ]);
    }
    printer.table(&table)?;
    if findings.len() > SHOWN {
        printer.line(format!("and {}; --json lists all.\n", counted(findings.len() - SHOWN, "other finding")))?;
    }
    Ok(())
}

/// Every name that the pickles use.
fn names(pickles: &[PickleReport], printer: &mut Printer) -> Result<()> {
    for pickle in pickles {
        if pickle.names.is_empty() {
            continue;
        }
        let path = if pickle.path.is_empty() { "(the file)" } else { &pickle.path };
        let title = format!("{}, byte {}", shortened(&printable(path), 60), count(pickle.offset));
        let mut table = printer.new_table(&[title.as_str(), "level", "imports", "calls", "ids", "first", "because"]);
        for (index, name) in pickle.names.iter().enumerate() {
            let of = |kind| pickle.uses.iter().filter(|used| used.name as usize == index && used.kind == kind).count();
            let first = pickle.uses.iter().find(|used| used.name as usize == index).map_or(0, |used| used.offset);
            table.add_row([
                Cell::new(shortened(&printable(&name.name), 80)),
                Cell::new(name.level).fg(colour(name.level)),
                right(of(UseKind::Global)),
                right(of(UseKind::Call)),
                right(of(UseKind::PersistentId)),
                right(count(first)),
                Cell::new(&name.because),
            ]);
        }
        printer.table(&table)?;
    }
    Ok(())
}

fn file_json(one: &Scanned) -> Value {
    let name = one.path.display().to_string();
    let report = match &one.report {
        Ok(report) => report,
        Err(why) => return json!({"file": name, "verdict": Verdict::NotScannable.name(), "error": why}),
    };
    json!({
        "file": name,
        "bytes": report.bytes,
        "kind": report.kind,
        "verdict": report.verdict().name(),
        "worst": report.worst().name(),
        "weights_only": {"accepts": report.weights_only.accepts, "because": report.weights_only.because},
        "findings": report.findings.iter().map(|finding| json!({
            "level": finding.level.name(), "rule": finding.rule.id(), "path": finding.path, "offset": finding.offset,
            "file_offset": finding.file_offset, "message": finding.message,
        })).collect::<Vec<_>>(),
        "not_scanned": report.not_scanned,
        "pickles": report.pickles.iter().map(pickle_json).collect::<Vec<_>>(),
    })
}

fn pickle_json(pickle: &PickleReport) -> Value {
    let name = |index: u32| pickle.names.get(index as usize);
    json!({
        "path": pickle.path,
        "offset": pickle.offset,
        "length": pickle.length,
        "protocol": pickle.protocol,
        "complete": pickle.complete,
        "uses": pickle.uses.iter().map(|used| json!({
            "kind": used.kind.name(),
            "name": name(used.name).map(|name| &name.name),
            "level": name(used.name).map(|name| name.level.name()),
            "because": name(used.name).map(|name| &name.because),
            "offset": used.offset,
        })).collect::<Vec<_>>(),
    })
}

/// The rule of what could not be looked at.
const NOT_SCANNED: &str = "not-scanned";

/// A log as SARIF 2.1.0 describes it: <https://docs.oasis-open.org/sarif/sarif/v2.1.0/>.
fn sarif(scanned: &[Scanned]) -> Value {
    let mut rules: Vec<Value> =
        Rule::ALL.iter().map(|rule| json!({"id": rule.id(), "shortDescription": {"text": rule.title()}})).collect();
    rules.push(json!({"id": NOT_SCANNED, "shortDescription": {"text": "Part of a file could not be scanned."}}));
    let mut results = vec![];
    for one in scanned {
        let uri = uri(&one.path);
        let not_scanned = |why: &str| {
            json!({
                "ruleId": NOT_SCANNED, "ruleIndex": Rule::ALL.len(), "level": "error", "message": {"text": why},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}}}],
            })
        };
        match &one.report {
            Err(why) => results.push(not_scanned(why)),
            Ok(report) => {
                results.extend(report.findings.iter().map(|finding| result(finding, &uri)));
                results.extend(report.not_scanned.iter().map(|why| not_scanned(why)));
            }
        }
    }
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "m2pt-surgery", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "invocations": [{"executionSuccessful": scanned.iter().all(|one| one.report.is_ok())}],
            "artifacts": scanned.iter().map(|one| {
                let length = one.report.as_ref().ok().map(|report| report.bytes);
                match length {
                    Some(length) => json!({"location": {"uri": uri(&one.path)}, "length": length}),
                    None => json!({"location": {"uri": uri(&one.path)}}),
                }
            }).collect::<Vec<_>>(),
            "results": results,
        }],
    })
}

fn result(finding: &Finding, uri: &str) -> Value {
    let level = match finding.level {
        Level::Dangerous | Level::Unknown => "error",
        Level::Suspicious => "warning",
        Level::Allowed => "note",
    };
    let mut physical = json!({"artifactLocation": {"uri": uri}});
    if let Some(offset) = finding.file_offset {
        physical["region"] = json!({"byteOffset": offset});
    }
    let mut location = json!({"physicalLocation": physical});
    if !finding.path.is_empty() {
        location["logicalLocations"] = json!([{"fullyQualifiedName": finding.path, "kind": "member"}]);
    }
    json!({
        "ruleId": finding.rule.id(),
        "ruleIndex": Rule::ALL.iter().position(|rule| *rule == finding.rule),
        "level": level,
        "message": {"text": finding.message},
        "locations": [location],
        "properties": {"level": finding.level.name(), "offset": finding.offset},
    })
}

/// A path as a URI reference: percent-encoded, absolute ones with their scheme.
fn uri(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "/");
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let encoded: String =
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
    if path.is_absolute() {
        format!("file://{}{encoded}", if encoded.starts_with('/') { "" } else { "/" })
    } else {
        encoded
    }
}
