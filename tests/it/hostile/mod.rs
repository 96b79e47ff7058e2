//! Hostile files: each is refused, or opened if it only looks dangerous, within bounded memory and time.
//!
//! The program runs under a limit of 256 MiB on all the memory that it may write to (`RLIMIT_DATA`): a file that makes
//! it ask for more ends it with a signal, which fails the test.

mod folders;
mod large;
mod make;
mod objects;
mod older;
mod pickles;
mod safetensors;
mod zips;

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support;

/// Memory of the program that is not mapped from files, in KiB.
const MEMORY: u64 = 256 << 10;

/// Processor time of a run. On an idle machine all stay below one second; others run tests at the same time.
const TIME: Duration = Duration::from_secs(5);

/// The longest message, in bytes: no text of a file is repeated at length.
const MESSAGE: u64 = 32 << 10;

/// What the program has to do with a file.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// End with status 2 and a message that holds this.
    Refused(&'static str),
    /// Show it: it is large or strange, but sound.
    Shown,
}

use Expect::{Refused, Shown};

/// A file: its name, what has to become of it, and how it is made.
type Bomb = (&'static str, Expect, fn() -> Vec<u8>);

/// A folder: its name, what has to become of it, and what writes its files.
type Folder = (&'static str, Expect, fn(&Path));

/// Shows each file in every way, and folds it.
fn defuse(bombs: &[Bomb]) {
    let folder = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    for (name, expect, make) in bombs {
        let path = folder.path().join(name);
        let bytes = make();
        std::fs::write(&path, &bytes).unwrap();
        eprintln!("{name}: {} bytes", bytes.len());
        drop(bytes);
        open(folder.path(), &path, *expect, &mut problems);
        std::fs::remove_file(path).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The same of folders.
fn defuse_folders(bombs: &[Folder]) {
    let mut problems = Vec::new();
    for (name, expect, make) in bombs {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        make(&path);
        eprintln!("{name}:");
        open(folder.path(), &path, *expect, &mut problems);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Shows the checkpoint at `path` in every way, and folds it.
fn open(folder: &Path, path: &Path, expect: Expect, problems: &mut Vec<String>) {
    let file = path.to_str().unwrap();
    let mut run = |args: &[&str], expect: Expect| {
        if let Err(problem) = run(folder, args, expect) {
            eprintln!("    {problem}");
            problems.push(format!("{args:?}: {problem}"));
        }
    };
    for args in [&["inspect", file][..], &["inspect", "--json", file], &["inspect", "--root", "", file]] {
        run(args, expect);
    }
    let fixture = support::fixture("mnist_vit.pth");
    let output = folder.join("out.pth");
    let (fixture, output) = (fixture.to_str().unwrap(), output.to_str().unwrap());
    // What can be shown is still no model.
    let expect = if let Refused(_) = expect { expect } else { Refused("") };
    run(&["fold", "--lambda", "0.1", "-o", output, fixture, "--aux", file], expect);
    run(&["fold", "--lambda", "0.1", "-o", output, file, "--aux", fixture], expect);
}

/// Runs the program within the limits.
///
/// # Errors
/// What it did that it should not.
fn run(folder: &Path, args: &[&str], expect: Expect) -> Result<(), String> {
    let (times, message) = (folder.join("times"), folder.join("message"));
    let seconds = 2 * TIME.as_secs();
    let script = format!("ulimit -d {MEMORY}; ulimit -t {seconds}; \"$@\"; code=$?; times > \"$TIMES\"; exit $code");
    let status = std::process::Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_m2pt-surgery")])
        .args(args)
        .env("TIMES", &times)
        .stdout(Stdio::null())
        .stderr(File::create(&message).unwrap())
        .status()
        .unwrap();
    let length = std::fs::metadata(&message).unwrap().len();
    if length > MESSAGE {
        return Err(format!("a message of {length} bytes"));
    }
    let message = std::fs::read_to_string(&message).unwrap();
    let time = processor_time(&std::fs::read_to_string(&times).unwrap());
    eprintln!("    {:5.2} s  {}", time.as_secs_f64(), args[..args.len() - 1].join(" "));
    let (code, phrase) = match expect {
        Shown => (0, ""),
        Refused(phrase) => (2, phrase),
    };
    let is_said = message.starts_with("error: ") || message.starts_with("note: ");
    if status.code() != Some(code) || code == 2 && !is_said {
        return Err(format!("status {:?}: {message}", status.code()));
    }
    if !message.contains(phrase) || message.contains("panicked") {
        return Err(format!("it does not say {phrase:?}: {message}"));
    }
    if time >= TIME { Err(format!("it took {time:?}")) } else { Ok(()) }
}

/// The user and system time of the shell's children: the second line that `times` prints, `0m1.230000s 0m0.050000s`.
fn processor_time(times: &str) -> Duration {
    let seconds = times.lines().nth(1).unwrap().split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    });
    Duration::from_secs_f64(seconds.sum())
}

#[test]
fn hostile_pickles_are_refused() {
    defuse(pickles::BOMBS);
}

#[test]
fn hostile_object_trees_are_refused() {
    defuse(pickles::TREES);
}

#[test]
fn hostile_objects_of_pytorch_and_numpy_are_refused() {
    defuse(objects::BOMBS);
}

#[test]
fn hostile_files_of_other_formats_are_refused() {
    defuse(older::BOMBS);
}

#[test]
fn hostile_folders_are_refused() {
    defuse_folders(folders::BOMBS);
}

#[test]
fn hostile_archives_are_refused() {
    defuse(zips::BOMBS);
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    defuse(safetensors::BOMBS);
}

#[test]
fn large_files_are_shown_within_the_limits() {
    defuse(large::FILES);
}
