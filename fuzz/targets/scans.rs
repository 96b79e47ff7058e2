//! The scan: what must hold of what it says about any bytes.

use m2pt_surgery::pickle::{Node, parse};
use m2pt_surgery::scan::{FileReport, Level, UseKind, Verdict, scan_bytes};

use super::{build, pickles};

/// Scans the input, or an archive that is built around what follows its first byte if that is 0xff ([`build::zip`]).
///
/// Every global that the pickle machine meets in a pickle without an error must be reported, or that the scan did not look
/// at all of it.
pub(crate) fn scan(input: &[u8]) -> bool {
    let report = match input.strip_prefix(b"\xff") {
        Some(entries) => {
            let file = build::zip(entries);
            consistent(&file)
        }
        None => {
            let report = consistent(input);
            nothing_is_missed(input, &report);
            report
        }
    };
    !report.pickles.is_empty()
}

/// Scans, and checks that what the scan says fits together.
fn consistent(file: &[u8]) -> FileReport {
    let report = scan_bytes("input", file);
    assert_eq!(report.bytes, file.len() as u64);
    assert!(!report.kind.is_empty() && !report.weights_only.because.is_empty());
    assert_eq!(report.verdict() == Verdict::Clean, report.findings.is_empty() && report.not_scanned.is_empty());
    assert!(report.findings.is_sorted_by(|one, next| one.level >= next.level));
    for finding in &report.findings {
        assert!(finding.level > Level::Allowed && !finding.message.is_empty());
        assert!(finding.file_offset.is_none_or(|offset| offset <= file.len() as u64), "{finding:?}");
    }
    for pickle in &report.pickles {
        for one in &pickle.uses {
            assert!((pickle.offset..pickle.offset + pickle.length).contains(&one.offset), "{one:?}");
            let name = &pickle.names[one.name as usize];
            // What is not allowed is a finding, or there are too many to list.
            let level = |known: Level| report.findings.iter().any(|finding| finding.level >= known);
            assert!(name.level == Level::Allowed || level(name.level) || !report.not_scanned.is_empty(), "{name:?}");
        }
    }
    report
}

fn nothing_is_missed(input: &[u8], report: &FileReport) {
    let Ok(pickle) = parse(input) else { return };
    let ids = pickles::reachable(&pickle);
    // The machine records calls at which Python stops; what comes after them is never imported.
    let stops = ids.iter().any(|&id| match pickle.node(id) {
        Node::Object(object) => {
            let callable = matches!(pickle.node(object.callable), Node::Global(_) | Node::Object(_));
            !callable || !matches!(pickle.node(object.args), Node::Tuple(_))
        }
        _ => false,
    });
    // Of values that the pickle throws away again, the machine tells nothing.
    if stops || ids.len() < pickle.len() || !report.not_scanned.is_empty() {
        return;
    }
    let uses = report.pickles.iter().filter(|found| found.path.is_empty());
    let uses = uses.flat_map(|found| found.uses.iter().filter(|one| one.kind == UseKind::Global));
    let mut uses: Vec<u64> = uses.map(|one| one.offset).collect();
    uses.sort_unstable();
    for id in ids {
        if let Node::Global(global) = pickle.node(id) {
            let known = uses.binary_search(&pickle.offset(id)).is_ok();
            assert!(known, "{} {} is not reported: {report:?}", global.module(), global.name());
        }
    }
}
