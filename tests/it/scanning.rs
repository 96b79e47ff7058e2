//! `scan` against attacks that Python and PyTorch were seen to execute, and against honest files.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use m2pt_surgery::scan::{FileReport, Level, Verdict, scan_bytes, scan_file};
use serde_json::Value;

use crate::support::repository;

fn folder(name: &str) -> PathBuf {
    repository().join("tests/scan").join(name)
}

/// What the generator recorded of the files of a folder.
fn manifest(name: &str) -> Vec<Value> {
    let text = std::fs::read(folder(name).join("manifest.json")).unwrap();
    let value: Value = serde_json::from_slice(&text).unwrap();
    value["files"].as_array().unwrap().clone()
}

/// The word for a report: the level of its worst finding, `clean` or `not-scannable`.
fn word(report: &FileReport) -> &'static str {
    match report.verdict() {
        Verdict::Finding => report.worst().name(),
        other => other.name(),
    }
}

/// Every file of a folder with its report.
fn scanned(name: &str) -> Vec<(Value, FileReport)> {
    let rows = manifest(name);
    let files = std::fs::read_dir(folder(name)).unwrap().count();
    assert_eq!(files, rows.len() + 1, "every file of {name} is in its manifest");
    let scan = |row: Value| {
        let report = scan_file(&folder(name).join(row["file"].as_str().unwrap())).unwrap();
        (row, report)
    };
    rows.into_iter().map(scan).collect()
}

#[test]
fn every_attack_is_found() {
    let (mut executed, mut wrong) = (0, vec![]);
    for (row, report) in scanned("attacks") {
        let file = row["file"].as_str().unwrap();
        if row["level"] != word(&report) {
            wrong.push(format!("{file}: {} instead of {}", word(&report), row["level"]));
        }
        if let Some(rule) = row["rule"].as_str()
            && report.findings.iter().all(|finding| finding.rule.id() != rule)
        {
            wrong.push(format!("{file}: no finding {rule}"));
        }
        // What ran when Python or PyTorch loaded it is never less than dangerous.
        if row["executed"] == true {
            executed += 1;
            assert_eq!(report.worst(), Level::Dangerous, "{file}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(executed > 120, "{executed} payloads were seen to run");
}

#[test]
fn honest_files_are_clean() {
    for (row, report) in scanned("benign") {
        assert_eq!(row["level"], word(&report), "{}: {:#?}", row["file"], report.findings);
    }
    let mut clean = 0;
    for part in ["fixtures", "fixtures/layouts", "fixtures/expected"] {
        for entry in std::fs::read_dir(repository().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let report = scan_file(&path).unwrap();
                assert_eq!(report.verdict(), Verdict::Clean, "{}: {:#?}", path.display(), report);
                clean += usize::from(!report.pickles.is_empty());
            }
        }
    }
    assert!(clean > 15, "{clean} checkpoints");
}

#[test]
fn weights_only_does_what_the_verdict_says() {
    let mut accepted = 0;
    for name in ["attacks", "benign"] {
        for (row, report) in scanned(name) {
            let theirs = &row["weights_only"];
            let ours = &report.weights_only;
            assert_eq!(theirs["accepts"], ours.accepts, "{}: torch says {theirs}, we say {ours:?}", row["file"]);
            accepted += usize::from(ours.accepts);
        }
    }
    assert!(accepted > 25, "{accepted} files are accepted");
}

#[test]
fn offsets_lead_to_the_opcode() {
    for file in ["reduce_2.pkl", "plain_zip.pth", "inst.pkl", "legacy_3.pt", "storage_middle.pth", "two_archives.pth"] {
        let path = folder("attacks").join(file);
        let (bytes, report) = (std::fs::read(&path).unwrap(), scan_file(&path).unwrap());
        let mut seen = 0;
        for finding in report.findings.iter().filter(|finding| finding.rule.id() == "dangerous-global") {
            let opcode = bytes[usize::try_from(finding.file_offset.unwrap()).unwrap()];
            assert!(b"Ri".contains(&opcode), "{file}: {finding:?} points at {opcode:#04x}");
            seen += 1;
        }
        assert!(seen > 0, "{file}");
    }
}

/// A small generator of numbers, so that the same files are made every time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// A file with some of its bytes changed, cut, doubled or moved.
fn mutated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len());
        match random.below(6) {
            0 => out.truncate(at),
            1 => {
                let end = (at + random.below(40)).min(out.len());
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            2 => out.insert(at, random.below(256) as u8),
            3 if at + 4 <= out.len() => out[at..at + 4].fill([0, 0xff, 0x7f][random.below(3)]),
            _ if at < out.len() => out[at] = random.below(256) as u8,
            _ => {}
        }
    }
    out
}

/// Scans `count` mutations of every attack and honest file; the longest that any took.
fn mutate(count: usize, seed: u64) -> Duration {
    let mut longest = Duration::ZERO;
    let mut random = Random(seed);
    for name in ["attacks", "benign"] {
        for row in manifest(name) {
            let file = row["file"].as_str().unwrap();
            let bytes = std::fs::read(folder(name).join(file)).unwrap();
            // Bombs are slow by nature, and have a test of their own.
            for _ in 0..if file.starts_with("bomb") { 1 } else { count } {
                let changed = mutated(&bytes, &mut random);
                let start = Instant::now();
                let report = scan_bytes(file, &changed);
                longest = longest.max(start.elapsed());
                assert_eq!(report.bytes, changed.len() as u64);
            }
        }
    }
    longest
}

/// `SCAN_MUTATIONS=400 SCAN_SEED=2 cargo test --release no_file_makes_it_panic` takes minutes.
#[test]
fn no_file_makes_it_panic_or_hang() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let longest = mutate(number("SCAN_MUTATIONS").unwrap_or(12), number("SCAN_SEED").unwrap_or(1) as u64);
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

#[test]
fn hostile_sizes_cost_little() {
    let many = |piece: &[u8], times: usize| {
        [b"\x80\x02", &piece.repeat(times)[..], b"cos\nsystem\nX\x01\x00\x00\x00x\x85R."].concat()
    };
    for (what, file) in [
        ("values", many(b"N", 4 << 20)),
        ("marks", many(b"(", 4 << 20)),
        ("empty tuples", many(b")", 4 << 20)),
        ("memo entries", many(b"Nr\x00\x00\x00\x7f", 1 << 20)),
        ("nested tuples", many(b"\x85", 4 << 20)),
        ("protocols", b"\x80\x02".repeat(2 << 20)),
        ("globals", many(b"ca\nb\n", 2 << 20)),
        ("starts", [&b"\x80\x04N"[..], &b"\x80\x02cab\ncd\n".repeat(1 << 17)].concat()),
        ("entries", {
            let header = [&b"PK\x03\x04\x14\0\x08\0\0\0"[..], &[0; 16], b"\x01\0\0\0a"].concat();
            header.repeat(1 << 16)
        }),
        ("local headers", [b"PK\x03\x04".repeat(1 << 18), vec![0; 100]].concat()),
    ] {
        let start = Instant::now();
        let report = scan_bytes("x.bin", &file);
        let took = start.elapsed();
        assert_ne!(report.verdict(), Verdict::Clean, "{what}");
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
        eprintln!("{what}: {took:?}, {:?}", report.worst());
    }
}

#[test]
fn a_dangerous_name_is_found_behind_any_number_of_others() {
    let others: String = (0..40_000).map(|i| format!("cm{i}\nn\n0")).collect();
    let file = [&b"\x80\x02"[..], others.as_bytes(), b"cos\nsystem\n."].concat();
    let report = scan_bytes("x.pkl", &file);
    assert_eq!(report.worst(), Level::Dangerous);
    assert!(!report.not_scanned.is_empty());
}

/// Files that `torch.load(path, weights_only=False)` and `pickle.load` were seen to execute up to an error, or whole.
#[test]
fn what_a_file_begins_with_is_followed_whatever_it_looks_like() {
    let call: &[u8] = b"(S'echo executed'\ntR";
    let nothing = b"N0".repeat(3000);
    for file in [
        [b"cos\nsystem\n", call, b"0c!!\n!!\n."].concat(),
        [b"\x8c\x02os\x8c\x06system\x93", call, b"0c!!\n!!\n."].concat(),
        b"(S'echo executed'\nios\nsystem\n0c!!\n!!\n.".to_vec(),
        [b"ctorch.ops\n!!\n0cos\nsystem\n", call, b"."].concat(),
        [b"\x8c\x02os\x940\x8c\x06system\x940", &nothing[..], b"h\0h\x01\x93", call, b"."].concat(),
        [b"Vos\np0\n0Vsystem\np1\n0", &nothing[..], b"g0\ng1\n\x93", call, b"."].concat(),
    ] {
        let report = scan_bytes("model.pth", &file);
        let names: Vec<_> = report.pickles.iter().flat_map(|pickle| &pickle.names).map(|name| &*name.name).collect();
        assert_eq!(report.worst(), Level::Dangerous, "{}", file.escape_ascii());
        assert!(names.contains(&"os.system"), "{names:?}");
    }
}

#[cfg(feature = "cli")]
mod command {
    use serde_json::Value;

    use crate::support::{command, fail, repository, run, succeed};

    fn scan(args: &[&str]) -> (i32, Value) {
        let output = run(&[&["scan"], args].concat());
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    fn keys(value: &Value) -> String {
        value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_status_tells_clean_findings_and_what_could_not_be_scanned() {
        for (paths, status) in [
            (&["fixtures/mnist_vit.pth"][..], 0),
            (&["tests/scan/attacks/reduce_2.pkl"], 1),
            (&["tests/scan/attacks/seven_zip.pth"], 2),
            (&["tests/scan/attacks/reduce_2.pkl", "fixtures/mnist_vit.pth"], 1),
            (&["tests/scan/attacks/reduce_2.pkl", "tests/scan/attacks/seven_zip.pth"], 2),
            (&["tests/scan/attacks"], 2),
            (&["fixtures/layouts"], 0),
            (&["nothing.pth", "fixtures/mnist_vit.pth"], 2),
        ] {
            assert_eq!(run(&[&["scan"], paths].concat()).status.code(), Some(status), "{paths:?}");
        }
        let empty = tempfile::tempdir().unwrap();
        let output = run(&["scan", empty.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "an empty folder is not clean");
    }

    #[cfg(unix)]
    #[test]
    fn folders_are_scanned_whole_with_links_to_files_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::copy(repository().join("tests/scan/attacks/reduce_2.pkl"), deep.join("x.txt")).unwrap();
        for (target, name) in [("/dev/zero", "link"), (".", "loop"), ("nowhere", "gone"), ("a/b/x.txt", "model.bin")] {
            std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
        }
        let (status, report) = scan(&["--json", folder.path().to_str().unwrap()]);
        let files: Vec<_> = report["files"].as_array().unwrap().iter().map(|f| f["file"].as_str().unwrap()).collect();
        assert_eq!((status, files.len()), (1, 2));
        assert!(files[0].ends_with("a/b/x.txt") && files[1].ends_with("model.bin"), "{files:?}");
    }

    #[test]
    fn json_has_the_documented_names() {
        let (status, report) = scan(&["--json", "tests/scan/attacks/plain_zip.pth"]);
        assert_eq!(status, 1);
        assert_eq!(keys(&report), "files summary");
        assert_eq!(keys(&report["summary"]), "files clean finding not_scannable incomplete");
        let file = &report["files"][0];
        assert_eq!(keys(file), "file bytes kind verdict worst weights_only findings not_scanned pickles");
        assert_eq!(keys(&file["weights_only"]), "accepts because");
        assert_eq!(keys(&file["findings"][0]), "level rule path offset file_offset message");
        let pickle = &file["pickles"][0];
        assert_eq!(keys(pickle), "path offset length protocol complete uses");
        assert_eq!(keys(&pickle["uses"][0]), "kind name level because offset");
        assert_eq!(pickle["uses"][0]["name"], "os.system");
        assert_eq!(pickle["path"], "archive/data.pkl");
        let (_, report) = scan(&["--json", "nothing.pth"]);
        assert_eq!(keys(&report["files"][0]), "file verdict error");
        // Every use of an honest file, as pickletools counts them: 3 globals, 161 calls, 80 persistent ids.
        let (_, report) = scan(&["--json", "fixtures/mnist_vit.pth"]);
        let uses = report["files"][0]["pickles"][0]["uses"].as_array().unwrap();
        let count = |kind: &str| uses.iter().filter(|one| one["kind"] == kind).count();
        assert_eq!((count("global"), count("call"), count("persistent-id")), (3, 161, 80));
        assert!(uses.iter().all(|one| one["level"] == "allowed"));
    }

    /// What the schema of SARIF 2.1.0 requires, of the objects that are used.
    #[test]
    fn sarif_has_what_its_schema_requires() {
        let (status, log) = scan(&["--sarif", "tests/scan/attacks"]);
        assert_eq!(status, 2);
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        assert!(run["tool"]["driver"]["name"].is_string());
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        let mut ids: Vec<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
        assert!(rules.iter().all(|rule| rule["shortDescription"]["text"].is_string()));
        assert!(run["invocations"][0]["executionSuccessful"].is_boolean());
        let results = run["results"].as_array().unwrap();
        assert!(results.len() > 300);
        for result in results {
            assert!(result["message"]["text"].is_string());
            assert!(["error", "warning", "note", "none"].contains(&result["level"].as_str().unwrap()));
            let index = result["ruleIndex"].as_u64().unwrap() as usize;
            assert_eq!(result["ruleId"], ids[index]);
            let physical = &result["locations"][0]["physicalLocation"];
            assert!(physical["artifactLocation"]["uri"].as_str().unwrap().starts_with("tests/scan/attacks/"));
            if let Some(region) = physical.get("region") {
                assert!(region["byteOffset"].is_u64());
            }
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), rules.len(), "rules have different ids");
    }

    #[test]
    fn what_a_person_sees() {
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| {
            for (name, args) in [
                ("scan_clean", &["fixtures/mnist_vit.pth"][..]),
                ("scan_full", &["fixtures/mnist_vit.pth", "--full"]),
                ("scan_attack", &["tests/scan/attacks/local_name.pth"]),
                ("scan_not", &["tests/scan/attacks/seven_zip.pth"]),
                ("scan_several", &["fixtures/layouts", "tests/scan/attacks/nested_deflated.pth", "nothing.pth"]),
            ] {
                let output = run(&[&["scan"], args].concat());
                let text = format!(
                    "$ m2pt-surgery scan {}\n{}--- stderr\n{}--- status {}",
                    args.join(" "),
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr),
                    output.status.code().unwrap()
                );
                insta::assert_snapshot!(name, text);
            }
        });
    }

    #[test]
    fn names_from_a_file_cannot_steer_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pkl");
        std::fs::write(&path, b"\x80\x02c\x1b[31mos\nsys\x1b[0mtem\n.").unwrap();
        let output = command().args(["scan", path.to_str().unwrap(), "--full"]).output().unwrap();
        assert!(!output.stdout.contains(&0x1b));
        assert_eq!(output.status.code(), Some(1));
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        fail(&["scan", "x.pth", "--json", "--sarif"]);
        fail(&["scan"]);
        assert!(succeed(&["scan", "--help"]).contains("Examples:\n  m2pt-surgery "));
    }
}
