//! Inputs that are cut or changed while they are read.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bench::{Bench, assert_refusal, tool};

/// A safetensors file of `layers` layers of `rows` rows of 32 KiB each: holes, which take no space on the disk.
fn sparse(bench: &Bench, name: &str, layers: u64, rows: u64) {
    let size = rows * 8192 * 4;
    let tensors = (0..layers).map(|block| {
        let offsets = format!("[{},{}]", block * size, (block + 1) * size);
        format!(r#""blocks.{block}.mlp.fc1.weight":{{"dtype":"F32","shape":[{rows},8192],"data_offsets":{offsets}}}"#)
    });
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    let mut file = File::create(bench.path(name)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + layers * size).unwrap();
}

const FOLD: [&str; 8] =
    ["fold", "target.safetensors", "--aux", "aux.safetensors", "--lambda", "0.1", "-o", "out/merged.pth"];

/// Starts a fold of sparse files and waits until it is in the middle of writing.
fn start(bench: &Bench, more: &[&str]) -> Child {
    let mut command = Command::new(tool());
    command.args(FOLD).args(more).current_dir(bench.path(""));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none() {
        let writing = |name: &String| {
            name.ends_with(".tmp") && fs::metadata(bench.path("out").join(name)).is_ok_and(|file| file.len() > 1 << 20)
        };
        if bench.out().iter().any(writing) {
            return child;
        }
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    panic!("it wrote nothing: {:?}", child.wait_with_output().unwrap());
}

fn cut(bench: &Bench, name: &str) {
    OpenOptions::new().write(true).open(bench.path(name)).unwrap().set_len(4096).unwrap();
}

/// In the middle of a tensor: what is still to be read of it is gone when the next piece is.
#[test]
fn a_file_that_is_cut_while_a_tensor_is_read_is_an_error() {
    let bench = Bench::new();
    for name in ["target.safetensors", "aux.safetensors"] {
        for (old, flags) in [(false, &[][..]), (true, &["--force"])] {
            sparse(&bench, "target.safetensors", 1, 32768);
            sparse(&bench, "aux.safetensors", 1, 32768);
            if old {
                bench.put("out/merged.pth", b"precious");
            }
            let child = start(&bench, flags);
            cut(&bench, name);
            let output = child.wait_with_output().unwrap();
            assert_refusal(&output, &FOLD, &[name, "was made shorter while it was read", "try again"]);
            assert_eq!(output.stderr.iter().filter(|&&byte| byte == b'\n').count(), 1);
            if old {
                assert_eq!(
                    (bench.out(), bench.read("out/merged.pth")),
                    (vec!["merged.pth".into()], b"precious".into())
                );
            } else {
                assert!(bench.out().is_empty(), "left {:?}", bench.out());
            }
            let _ = fs::remove_file(bench.path("out/merged.pth"));
        }
    }
}

/// Between two tensors: the size is looked at before each.
#[test]
fn a_file_that_is_cut_before_a_tensor_is_read_is_an_error() {
    let bench = Bench::new();
    sparse(&bench, "target.safetensors", 3, 4096);
    sparse(&bench, "aux.safetensors", 3, 4096);
    let child = start(&bench, &["--report"]);
    let whole = fs::metadata(bench.path("aux.safetensors")).unwrap().len();
    // The last byte of the last tensor.
    OpenOptions::new().write(true).open(bench.path("aux.safetensors")).unwrap().set_len(whole - 1).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_refusal(&output, &FOLD, &["aux.safetensors", "was made shorter while it was read"]);
    assert!(bench.out().is_empty(), "left {:?}", bench.out());
}

/// As `torch.save` does to a file that it writes again: the same length in the end, and other values.
#[test]
fn a_file_that_is_changed_while_it_is_read_is_an_error() {
    let bench = Bench::new();
    sparse(&bench, "target.safetensors", 2, 4096);
    sparse(&bench, "aux.safetensors", 2, 4096);
    let child = start(&bench, &[]);
    let mut file = OpenOptions::new().append(true).open(bench.path("target.safetensors")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    let output = child.wait_with_output().unwrap();
    assert_refusal(&output, &FOLD, &["target.safetensors", "was changed while it was read", "try again"]);
    assert!(bench.out().is_empty(), "left {:?}", bench.out());
}

/// The handler is for mapped files only: a SIGBUS of another origin still ends the program.
#[test]
fn a_bus_error_of_another_origin_still_ends_the_program() {
    let bench = Bench::new();
    sparse(&bench, "target.safetensors", 2, 4096);
    sparse(&bench, "aux.safetensors", 2, 4096);
    let mut child = start(&bench, &[]);
    let process = child.id().to_string();
    // The first goes to the handler, the second to the one of Rust's runtime, the third to the system.
    for _ in 0..50 {
        let _ = Command::new("sh").args(["-c", "kill -s BUS $0", &process]).stderr(Stdio::null()).status().unwrap();
        sleep(Duration::from_millis(2));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(7), "{output:?}");
}

/// A library has no handler, but looks before each tensor.
#[test]
fn the_library_refuses_a_file_that_was_cut_or_changed() {
    use m2pt_surgery::{Checkpoint, Error};
    let bench = Bench::new();
    for name in ["vit.pth", "vit.safetensors"] {
        let checkpoint = Checkpoint::open(bench.path(name)).unwrap();
        let tensors = crate::support::whole(&checkpoint);
        assert!(tensors.tensor(0).is_ok());
        let whole = bench.read(name);
        OpenOptions::new().write(true).open(bench.path(name)).unwrap().set_len(4096).unwrap();
        assert!(matches!(tensors.tensor(0), Err(Error::Shorter { path }) if path == bench.path(name)));
        sleep(Duration::from_millis(20));
        bench.put(name, &whole);
        assert!(matches!(tensors.tensor(0), Err(Error::Changed { path }) if path == bench.path(name)));
    }
}
