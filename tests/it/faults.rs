//! Faults around the output: every call to the operating system that concerns its folder fails in every way that it
//! can, or kills the program. Whatever happens, the old file is there or the new one, whole.
//!
//! `tests/faults/interpose.c`, which is compiled here and preloaded into the program, makes the faults.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use crate::bench::{Bench, FOLD, assert_refusal, fold, model, to_safetensors, tool};
use crate::support::repository;

/// Mode and content of files, by path.
type Files = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// The compiled interposer.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (made, library) = (folder.join(format!("faults-{}.so", std::process::id())), folder.join("faults.so"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut command = Command::new(&compiler);
    command.args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-o"]).arg(&made);
    let output = command.arg(repository().join("tests/faults/interpose.c")).arg("-ldl").output().unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    // Other test processes may be using the one that is there.
    fs::rename(made, &library).unwrap();
    library
});

/// A call that the program made: `write`, 1044736 bytes, of the file `.merged.pth.m2pt-surgery-123-0.tmp`.
#[derive(Debug)]
struct Call {
    /// From 1, in the order in which calls began.
    number: usize,
    function: String,
    bytes: usize,
    /// The process number replaced by `PID`.
    name: String,
}

/// What may befall a call of that kind.
fn faults(function: &str) -> Vec<&'static str> {
    let errors: &[&str] = match function {
        "stat" => &["EIO", "EACCES"],
        "open" => &["EIO", "EINTR"],
        "create" => &["EIO", "EINTR", "ENOSPC", "EPERM", "done+EIO"],
        "readlink" => &["EIO"],
        "chmod" => &["EPERM", "EIO"],
        "write" => &["EIO", "EINTR", "ENOSPC", "EDQUOT", "short", "short+ENOSPC", "short+EIO", "kill-within"],
        "fallocate" => &["EIO", "EINTR", "ENOSPC", "EDQUOT", "EOPNOTSUPP"],
        "sync_file_range" => &["EIO", "EINTR", "ENOSPC", "ENOSYS", "ESPIPE"],
        "fsync" => &["EIO", "EINTR", "ENOSPC"],
        "rename" => &["EIO", "EXDEV", "EPERM", "ENOSPC", "done+EIO"],
        "link" => &["EIO", "EXDEV", "EPERM", "EMLINK", "ENOSPC", "done+EIO"],
        "unlink" => &["EIO", "EPERM", "done+EIO"],
        other => panic!("the program calls {other}: say here how it can fail"),
    };
    [errors, &["EIO...", "kill-before", "kill-after"]].concat()
}

/// A fold to be disturbed, in a folder of its own.
struct Case {
    bench: Bench,
    args: Vec<&'static str>,
    /// The folder that is watched.
    folder: &'static str,
    /// The files that are written.
    targets: Vec<&'static str>,
    before: Files,
    /// After a run that nothing disturbed.
    done: Files,
    /// The calls of such a run.
    calls: Vec<Call>,
}

struct Run {
    process: u32,
    output: Output,
    calls: Vec<Call>,
}

impl Case {
    /// The run with these arguments, which writes `targets` in `folder`; with `old`, they are there already.
    fn new(args: &[&'static str], folder: &'static str, targets: &[&'static str], old: bool) -> Case {
        let bench = Bench::new();
        if args.contains(&"large.safetensors") {
            // Large enough for several writes.
            bench.put("large.safetensors", &to_safetensors(&model("", 128, 6)));
        }
        for target in targets.iter().filter(|_| old) {
            bench.put(target, b"precious");
            fs::set_permissions(bench.path(target), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let mut case = Case {
            before: bench.snapshot(),
            bench,
            args: args.to_vec(),
            folder,
            targets: targets.to_vec(),
            done: Files::new(),
            calls: Vec::new(),
        };
        let healthy = case.run(0, "");
        assert_eq!(healthy.output.status.code(), Some(0), "{}", String::from_utf8_lossy(&healthy.output.stderr));
        (case.calls, case.done) = (healthy.calls, case.bench.snapshot());
        case.check_healthy();
        case
    }

    /// Nothing went past the interposer; and a file has all of its bytes on the disk before it has its name.
    fn check_healthy(&self) {
        for target in &self.targets {
            let (_, new) = &self.done[&self.bench.path(target)];
            assert_ne!(Some(new), self.before.get(&self.bench.path(target)).map(|(_, old)| old));
            let name = Path::new(target).file_name().unwrap().to_str().unwrap();
            let scratch = |call: &Call| call.name.starts_with(&format!(".{name}.m2pt-surgery-PID-"));
            let find = |from: usize, what: &str, matches: &dyn Fn(&Call) -> bool| {
                let found = self.calls[from..].iter().position(matches);
                from + found.unwrap_or_else(|| panic!("no {what} of {name} after call {from}: {:?}", self.calls))
            };
            let writes: Vec<usize> = (0..self.calls.len())
                .filter(|&i| self.calls[i].function == "write" && scratch(&self.calls[i]))
                .collect();
            let written: usize = writes.iter().map(|&i| self.calls[i].bytes).sum();
            assert_eq!(written, new.len(), "not all writes of {name} are seen: {:?}", self.calls);
            let last = *writes.last().unwrap();
            let synced = find(last, "fsync", &|call| call.function == "fsync" && scratch(call));
            let named = find(synced, "name", &|call| {
                (call.function == "link" || call.function == "rename") && call.name == name
            });
            find(named, "fsync of the folder", &|call| call.function == "fsync" && call.name == "/");
            let names = self.calls.iter().filter(|call| call.name == name && call.function != "stat").count();
            assert!(names <= 3, "{name} itself is touched more often than it should be: {:?}", self.calls);
        }
    }

    /// Runs the fold; `kind` befalls call number `at`.
    fn run(&self, at: usize, kind: &str) -> Run {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = self.command();
        if self.args.contains(&"--threads") {
            command.env("FAULTS_EARLY", "1");
        }
        let child = command
            .env("LD_PRELOAD", LIBRARY.as_path())
            .env("FAULTS_FOLDER", fs::canonicalize(self.bench.path(self.folder)).unwrap())
            .env("FAULTS_LOG", log.path())
            .env("FAULTS_AT", at.to_string())
            .env("FAULTS_KIND", kind)
            .spawn()
            .unwrap();
        let process = child.id();
        let output = child.wait_with_output().unwrap();
        let text = fs::read_to_string(log.path()).unwrap().replace(&format!("-surgery-{process}-"), "-surgery-PID-");
        let call = |line: &str| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            Call {
                number: fields[0].parse().unwrap(),
                function: fields[1].into(),
                bytes: fields[2].parse().unwrap(),
                name: fields[3].into(),
            }
        };
        // Threads write their lines when they come to it, and one that another thread kills may not.
        let mut calls: Vec<Call> = text.lines().map(call).collect();
        calls.sort_by_key(|call| call.number);
        Run { process, output, calls }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(tool());
        command.args(&self.args).current_dir(fs::canonicalize(self.bench.path("")).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Puts everything back as it was before, given what is there now.
    fn restore(&self, now: &Files) {
        for path in now.keys().filter(|path| !self.before.contains_key(*path)) {
            fs::remove_file(path).unwrap();
        }
        for (path, state) in self.before.iter().filter(|(path, state)| now.get(*path) != Some(*state)) {
            fs::write(path, &state.1).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(state.0)).unwrap();
        }
    }

    /// Whether `state` is the file at `path` as it is after a run that nothing disturbed.
    fn is_new(&self, path: &Path, state: Option<&(u32, Vec<u8>)>) -> bool {
        state == self.done.get(path)
    }

    /// Checks what a run left behind that ended so, and puts everything back; `title` says which run. `may_leave` says
    /// whether scratch files of that process may be there, being all that a killed process leaves; `may_be_done`, whether
    /// the output may be there although the run failed.
    fn check(&self, title: &str, process: u32, output: &Output, may_leave: bool, may_be_done: bool) {
        let after = self.bench.snapshot();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let killed = output.status.signal() == Some(9);
        let title = format!("{:?}, {title}, ended with {}, saying {stderr:?}", self.args, output.status);
        let targets: Vec<PathBuf> = self.targets.iter().map(|target| self.bench.path(target)).collect();
        // Of several files, old ones may be set aside when the program is killed, or the disk takes no more.
        let is_set = self.is_set();
        let unrestored = stderr.contains("could not be put back");
        let may_be_aside = is_set && (killed || unrestored);
        for path in &targets {
            let (old, now) = (self.before.get(path), after.get(path));
            let fits = now == old || self.is_new(path, now) || may_be_aside && now.is_none();
            assert!(fits, "{title}: {} is neither old nor new", path.display());
        }
        if is_set {
            self.check_set(&title, &targets, &after, may_be_aside);
        }
        for (path, state) in self.before.iter().filter(|(path, _)| !targets.contains(path)) {
            assert!(after.get(path) == Some(state), "{title}: {} was changed", path.display());
        }
        for path in after.keys().filter(|path| !self.before.contains_key(*path) && !targets.contains(path)) {
            let is_scratch = targets.iter().any(|target| {
                let target = target.file_name().unwrap().to_str().unwrap();
                let middle = path.file_name().unwrap().to_str().unwrap();
                let middle = middle.strip_prefix(&format!(".{target}.m2pt-surgery-{process}-"));
                let old = middle.filter(|_| is_set).and_then(|middle| middle.strip_suffix(".old"));
                let number = middle.and_then(|middle| middle.strip_suffix(".tmp")).or(old);
                number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
            });
            assert!(is_scratch, "{title}: what is {}?", path.display());
            assert!(may_leave, "{title}: {} is left behind", path.display());
        }
        match output.status.code() {
            Some(0) => {
                for path in &targets {
                    assert!(self.is_new(path, after.get(path)), "{title}: {} is not written", path.display());
                }
            }
            Some(2) => {
                let files = self.before.keys().chain(&targets).filter(|path| !path.is_dir());
                let mut names = files.map(|path| path.file_name().unwrap().to_str().unwrap());
                let error = stderr.lines().find(|line| line.starts_with("error: "));
                assert!(error.is_some_and(|error| names.any(|name| error.contains(name))), "{title}: which file?");
                assert!(!stderr.contains("panicked"), "{title}");
                if is_set {
                    let as_before = targets.iter().all(|path| after.get(path) == self.before.get(path));
                    assert!(as_before || may_leave || may_be_done, "{title}: it is not as it was");
                    assert!(!unrestored || may_leave, "{title}: nothing kept it from being put back");
                    return self.restore(&after);
                }
                // It can fail after the output has its name only if there is more to write, and then says so.
                let (old, now) = (self.before.get(&targets[0]), after.get(&targets[0]));
                let says = stderr.contains(&format!("{} was written", self.targets[0]));
                assert!(!says || self.targets.len() > 1, "{title}");
                let fits = if says { self.is_new(&targets[0], now) } else { now == old };
                assert!(fits || may_be_done, "{title}: the output is there");
            }
            _ => assert!(killed, "{title}"),
        }
        self.restore(&after);
    }

    /// Whether it writes files that belong together.
    fn is_set(&self) -> bool {
        self.targets.last().is_some_and(|last| last.ends_with(".index.json"))
    }

    /// Whoever begins at the index finds what belongs to it; and no old file is lost but where all new ones are there.
    fn check_set(&self, title: &str, targets: &[PathBuf], after: &Files, may_be_aside: bool) {
        let (index, shards) = targets.split_last().unwrap();
        let all_new = shards.iter().all(|path| self.is_new(path, after.get(path)));
        if self.is_new(index, after.get(index)) {
            assert!(all_new, "{title}: the new index is without its shards");
            return;
        }
        let old = |path: &PathBuf| self.before.get(path);
        if after.contains_key(index) {
            assert!(
                shards.iter().all(|path| old(path) == after.get(path)),
                "{title}: the old index is without its shards"
            );
        }
        for path in targets.iter().filter(|path| old(path).is_some() && old(path) != after.get(*path)) {
            let start = format!(".{}.m2pt-surgery-", path.file_name().unwrap().to_str().unwrap());
            let kept = after.iter().any(|(other, state)| {
                let name = other.file_name().unwrap().to_str().unwrap();
                name.starts_with(&start) && name.ends_with(".old") && Some(state) == old(path)
            });
            assert!(may_be_aside && kept, "{title}: what {} was is lost", path.display());
        }
    }

    /// Every fault at every call; returns how many runs that were.
    fn disturb(&self) -> usize {
        let mut runs = 0;
        self.restore(&self.done);
        for (index, call) in self.calls.iter().enumerate() {
            for kind in faults(&call.function) {
                let run = self.run(index + 1, kind);
                let title = format!("{kind} at call {} ({} {})", index + 1, call.function, call.name);
                let met = run.calls.iter().find(|met| met.number == index + 1).map(|call| (&call.function, &call.name));
                assert_eq!(met, Some((&call.function, &call.name)), "{title}: the call is another one");
                let kill = kind.starts_with("kill");
                assert_eq!(run.output.status.signal().is_some(), kill, "{title}: {:?}", run.output);
                let done = kind == "done+EIO";
                let unremoved = call.function == "unlink" || kind == "EIO..." || done && call.function == "create";
                self.check(&title, run.process, &run.output, kill || unremoved, done);
                let succeeded = run.output.status.success();
                // What is only begun early can be begun later, and `fsync` tells of what went wrong.
                let early = call.function == "sync_file_range" && !kill && kind != "EIO...";
                if early || ["EINTR", "short"].contains(&kind) {
                    assert!(succeeded, "{title} is no reason to fail: {:?}", run.output);
                }
                if call.name != "/"
                    && ["write", "fsync"].contains(&&*call.function)
                    && !["EINTR", "short"].contains(&kind)
                {
                    assert!(!succeeded, "{title} is overlooked");
                }
                runs += 1;
            }
        }
        eprintln!("{:?}: {} calls, {runs} runs", self.args, self.calls.len());
        runs
    }
}

const LARGE: [&str; 8] = [
    "fold",
    "large.safetensors",
    "--aux",
    "large.safetensors=0.5",
    "--no-metadata",
    "-o",
    "out/merged.safetensors",
    "--quiet",
];

#[test]
fn a_new_pth_is_whole_or_absent_whatever_fails() {
    let case = Case::new(&FOLD, "out", &["out/merged.pth"], false);
    assert!(case.disturb() >= 40);
}

#[test]
fn a_new_safetensors_is_whole_or_absent_whatever_fails() {
    let case = Case::new(&LARGE, "out", &["out/merged.safetensors"], false);
    assert!(case.calls.iter().filter(|call| call.function == "write").count() >= 4);
    assert!(case.disturb() >= 60);
}

/// On one thread, what begins the way to the disk early is disturbed too.
#[test]
fn what_is_begun_early_may_fail() {
    let args = [&LARGE[..], &["--threads", "1"]].concat();
    let case = Case::new(&args, "out", &["out/merged.safetensors"], false);
    let early = |call: &&Call| call.function == "sync_file_range";
    let writes = case.calls.iter().filter(|call| call.function == "write" && call.bytes >= 64 << 10).count();
    // Once for what is written at once, in one piece or several.
    assert!((2..=writes).contains(&case.calls.iter().filter(early).count()), "{:?}", case.calls);
    assert!(case.disturb() >= 80);
}

/// What the other commands write goes the same way.
const OTHERS: [(&[&str], &str); 3] = [
    (&["graft", "vit.pth", "--aux", "speech.pth", "-o", "out/merged.pth"], "out/merged.pth"),
    (&["convert", "large.safetensors", "--no-metadata", "-o", "out/merged.safetensors"], "out/merged.safetensors"),
    (
        &["convert", "vit.pth", "--to", "timm", "--heads", "4", "--img-size", "56", "-o", "out/merged.pth"],
        "out/merged.pth",
    ),
];

#[test]
fn a_conversion_and_a_graft_are_whole_or_absent_whatever_fails() {
    for (args, target) in OTHERS {
        assert!(Case::new(args, "out", &[target], false).disturb() >= 40);
        assert!(Case::new(&[args, &["--force"]].concat(), "out", &[target], true).disturb() >= 40);
    }
}

#[test]
fn a_folder_for_timm_is_whole_or_said_to_be_written_whatever_fails() {
    let targets = ["out/model.safetensors", "out/config.json"];
    let args = ["convert", "vit.pth", "--timm-dir", "out", "--heads", "4"];
    assert!(Case::new(&args, "out", &targets, false).disturb() >= 60);
    assert!(Case::new(&[&args[..], &["--force"]].concat(), "out", &targets, true).disturb() >= 60);
}

#[test]
fn a_replaced_pth_is_the_old_or_the_new_one_whatever_fails() {
    let case = Case::new(&fold(&["--force"]), "out", &["out/merged.pth"], true);
    assert!(case.disturb() >= 40);
}

#[test]
fn a_replaced_safetensors_is_the_old_or_the_new_one_whatever_fails() {
    let args = [&LARGE[..], &["--force"]].concat();
    let case = Case::new(&args, "out", &["out/merged.safetensors"], true);
    assert!(case.disturb() >= 60);
}

#[test]
fn an_input_that_is_replaced_is_the_old_or_the_new_one_whatever_fails() {
    for input in ["vit.pth", "vit.safetensors"] {
        let args = ["fold", input, "--aux", "speech.pth", "--lambda", "0.1", "--force", "-o", input];
        assert!(Case::new(&args, "", &[input], false).disturb() >= 40);
    }
}

#[test]
fn an_output_and_its_report_are_whole_or_absent_whatever_fails() {
    let targets = ["out/merged.pth", "out/merged.pth.json"];
    assert!(Case::new(&fold(&["--report"]), "out", &targets, false).disturb() >= 60);
    assert!(Case::new(&fold(&["--report", "--force"]), "out", &targets, true).disturb() >= 60);
}

/// A fold into three shards, and what it writes.
const SHARDS: [&str; 4] = [
    "out/model-00001-of-00003.safetensors",
    "out/model-00002-of-00003.safetensors",
    "out/model-00003-of-00003.safetensors",
    "out/model.safetensors.index.json",
];

fn into_shards(more: &[&'static str]) -> Vec<&'static str> {
    let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "--max-shard-size", "500KB", "-o", "out"];
    [&fold, more].concat()
}

#[test]
fn shards_and_their_index_are_all_there_or_none_whatever_fails() {
    let case = Case::new(&into_shards(&[]), "out", &SHARDS, false);
    let names = case.calls.iter().filter(|call| call.function == "link").map(|call| call.name.as_str());
    let order = SHARDS.map(|path| path.strip_prefix("out/").unwrap());
    assert_eq!(names.collect::<Vec<_>>(), order, "the index comes last");
    assert!(case.disturb() >= 150);
}

#[test]
fn replaced_shards_are_the_old_or_the_new_ones_whatever_fails() {
    let case = Case::new(&into_shards(&["--force"]), "out", &SHARDS, true);
    let renamed = case.calls.iter().filter(|call| call.function == "rename");
    let renamed: Vec<_> = renamed.map(|call| call.name.ends_with(".old")).collect();
    assert_eq!(renamed, [true, true, true, true, false, false, false, false]);
    assert!(case.disturb() >= 200);
}

/// The numbers of a xorshift generator: the same in every run of the tests.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        for shift in [13, -7, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        self.0 % limit
    }
}

/// From outside, at any time: while it starts, reads, computes, writes, syncs, publishes.
#[test]
fn an_output_is_the_old_or_the_new_one_whenever_the_program_is_killed() {
    const RUNS: u64 = 200;
    let new = Case::new(&LARGE, "out", &["out/merged.safetensors"], false);
    let forced = [&LARGE[..], &["--force"]].concat();
    let replaced = Case::new(&forced, "out", &["out/merged.safetensors"], true);
    let shards = Case::new(&into_shards(&[]), "out", &SHARDS, false);
    let replaced_shards = Case::new(&into_shards(&["--force"]), "out", &SHARDS, true);
    let (mut random, mut killed) = (Random(0x5eed), 0);
    let mut longest = 1;
    for case in [&new, &replaced, &shards, &replaced_shards] {
        case.restore(&case.done);
        let started = Instant::now();
        assert!(case.command().output().unwrap().status.success());
        longest = longest.max(started.elapsed().as_micros() as u64);
        case.restore(&case.done);
    }
    for run in 0..RUNS {
        let case = [&new, &replaced, &shards, &replaced_shards][run as usize % 4];
        let wait = Duration::from_micros(random.below(longest));
        let mut child = case.command().spawn().unwrap();
        let process = child.id();
        sleep(wait);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        killed += u64::from(output.status.signal() == Some(9));
        case.check(&format!("run {run}, killed after {wait:?}"), process, &output, true, false);
    }
    eprintln!("{killed} of {RUNS} runs were killed, the others were faster");
    assert!(killed >= RUNS / 10, "only {killed} of {RUNS} runs were killed");
}

/// Which process a scratch file belongs to, and whether it lives, cannot be told safely where folders are shared.
#[test]
fn a_leftover_is_mentioned_and_left_alone() {
    let bench = Bench::new();
    let (left, other) = ("out/.merged.pth.m2pt-surgery-123-0.tmp", "out/.other.pth.m2pt-surgery-123-0.tmp");
    bench.put(left, b"half");
    bench.put(other, b"half");
    for flags in [&["--dry-run"][..], &[], &["--force"]] {
        let stderr = bench.works(&fold(flags));
        assert!(stderr.contains(left) && stderr.contains("left behind by a run that was killed"), "{stderr}");
        assert!(!stderr.contains(other), "{stderr}");
        assert_eq!((bench.read(left), bench.read(other)), (b"half".to_vec(), b"half".to_vec()));
    }
    // Where the output is reached through a link, its scratch files are beside the file itself.
    std::os::unix::fs::symlink("out/merged.pth", bench.path("link.pth")).unwrap();
    let args = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "--force", "-o", "link.pth"];
    assert!(bench.works(&args).contains(left));
}

#[test]
fn a_full_disk_behind_standard_output_does_not_hide_that_the_file_was_written() {
    let bench = Bench::new();
    for (output, flags) in [("out/merged.pth", &[][..]), ("out/merged.pth", &["--force", "--json"])] {
        let args = fold(flags);
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(tool());
        let result = command.args(&args).current_dir(bench.path("")).stdout(full).output().unwrap();
        let phrases = ["cannot write to standard output", "but out/merged.pth was written", "No space left"];
        assert_refusal(&result, &args, &phrases);
        assert_eq!(bench.out(), ["merged.pth"]);
        bench.works(&["inspect", output]);
    }
    // Nothing was written, and nothing of the kind is said.
    let args = fold(&["--dry-run", "--force"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let result = Command::new(tool()).args(&args).current_dir(bench.path("")).stdout(full).output().unwrap();
    assert_refusal(&result, &args, &["cannot write to standard output: No space left"]);
}
