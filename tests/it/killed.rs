//! What happens to files if the output cannot be written, or the program is stopped while it writes: the output is
//! there whole or not at all, and what was there before is untouched.

#![cfg(unix)]
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::bench::Bench;

const FOLD: [&str; 7] = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "-o"];

/// A fold of the fixtures into that file.
fn fold<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&FOLD, &[output][..], more].concat()
}

/// The same, and what the other commands write.
fn every<'a>(output: &'a str, more: &[&'a str]) -> [Vec<&'a str>; 3] {
    [
        fold(output, more),
        [&["graft", "vit.pth", "--aux", "speech.pth", "-o", output], more].concat(),
        [&["convert", "vit.pth", "--to", "timm", "--heads", "4", "-o", output], more].concat(),
    ]
}

fn set_mode(bench: &Bench, name: &str, mode: u32) {
    fs::set_permissions(bench.path(name), fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(bench: &Bench, name: &str) -> u32 {
    fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn rejects_an_output_in_a_folder_that_does_not_exist() {
    let bench = Bench::new();
    let phrases = ["nowhere/merged.pth", "the folder nowhere does not exist", "create it first"];
    bench.refused(&fold("nowhere/merged.pth", &[]), &phrases);
    bench.refused(&fold("nowhere/merged.pth", &["--force"]), &phrases);
    bench.refused(&fold("nowhere/merged.pth", &["--dry-run"]), &phrases);
}

#[test]
fn rejects_an_output_that_exists_unless_forced() {
    let bench = Bench::new();
    for name in ["out/merged.pth", "out/merged.safetensors"] {
        bench.put(name, b"precious");
        bench.refused(&fold(name, &[]), &[name, "exists already", "--force"]);
        bench.refused(&fold(name, &["--dry-run"]), &[name, "exists already", "--force"]);
        set_mode(&bench, name, 0o640);
        bench.works(&fold(name, &["--force"]));
        assert_eq!(mode(&bench, name), 0o640);
        let fresh = format!("{name}.fresh.{}", name.rsplit_once('.').unwrap().1);
        bench.works(&fold(&fresh, &[]));
        assert!(bench.read(name) == bench.read(&fresh), "{name} is not what a fold writes");
    }
}

#[test]
fn rejects_a_report_that_exists_unless_forced() {
    let bench = Bench::new();
    bench.put("out/merged.pth.json", b"precious");
    bench.refused(&fold("out/merged.pth", &["--report"]), &["out/merged.pth.json", "exists already", "--force"]);
    bench.works(&fold("out/merged.pth", &["--report", "--force"]));
    assert_eq!(bench.out(), ["merged.pth", "merged.pth.json"]);
    assert!(bench.read("out/merged.pth.json").starts_with(b"{"));
}

#[test]
fn rejects_an_input_as_output_unless_forced() {
    let bench = Bench::new();
    for input in ["vit.pth", "speech.pth"] {
        bench.refused(&fold(input, &[]), &[input, "exists already", "--force"]);
    }
    bench.works(&fold("out/merged.pth", &[]));
    bench.works(&fold("vit.pth", &["--force"]));
    assert!(bench.read("vit.pth") == bench.read("out/merged.pth"));
}

#[test]
fn rejects_an_output_that_is_no_name_for_a_file() {
    let bench = Bench::new();
    fs::create_dir(bench.path("out/folder.pth")).unwrap();
    for (output, phrases) in [
        ("out/folder.pth", &["folder", "give the name of a file"][..]),
        ("out/merged.pth/", &["out/merged.pth"]),
        ("..", &[".."]),
    ] {
        bench.refused(&fold(output, &["--force", "--format", "pth"]), phrases);
    }
    fs::remove_dir(bench.path("out/folder.pth")).unwrap();
    for output in ["out/merged", "out/merged.onnx", "out/merged.pth.gz"] {
        bench.refused(&fold(output, &[]), &[output, ".pth or .safetensors", "--format"]);
    }
    bench.refused(&fold("out", &[]), &["out", "folder", "give the name of a file"]);
    bench.works(&fold("out/merged.onnx", &["--format", "pth"]));
    assert_eq!(bench.out(), ["merged.onnx"]);
}

#[test]
fn rejects_a_file_in_place_of_the_outputs_folder() {
    let bench = Bench::new();
    bench.refused(&fold("vit.pth/merged.pth", &[]), &["vit.pth is no folder"]);
    bench.refused(&fold("vit.pth/deeper/merged.pth", &[]), &["vit.pth/deeper", "Not a directory"]);
}

#[test]
fn rejects_a_link_that_leads_nowhere() {
    let bench = Bench::new();
    symlink("nothing.pth", bench.path("out/merged.pth")).unwrap();
    bench.refused(&fold("out/merged.pth", &[]), &["out/merged.pth", "a link that leads nowhere", "remove it"]);
    bench.refused(&fold("out/merged.pth", &["--force"]), &["out/merged.pth", "a link that leads nowhere", "remove it"]);
}

/// Root may write anywhere; for root, `rejects_a_read_only_file_system` tests the same.
#[test]
fn rejects_a_folder_that_it_may_not_write_to() {
    let bench = Bench::new();
    set_mode(&bench, "out", 0o555);
    if fs::write(bench.path("out/probe"), b"").is_ok() {
        fs::remove_file(bench.path("out/probe")).unwrap();
    } else {
        bench.refused(&fold("out/merged.pth", &[]), &["cannot create out/", "Permission denied"]);
    }
    set_mode(&bench, "out", 0o755);
}

/// Full disks, and signals: what there is no portable way to bring about.
#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command, Output, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::bench::{assert_refusal, tool};

    /// Runs the program with a file system of its own in the folder `out`, mounted with those options; says what was
    /// left there, one name a line, before it is gone again.
    ///
    /// Root and those who may make user namespaces can do this. Where nobody may (many containers), these tests cannot
    /// prove anything, and say so; they fail there if `M2PT_TEST_MOUNTS` is set, as it is where changes are checked. What
    /// a write that fails leaves behind is tested without any rights by `leaves_nothing_where_a_write_fails_halfway`.
    fn run_mounted(bench: &Bench, options: &str, args: &[&str]) -> Option<(Output, String)> {
        const SCRIPT: &str = r#"mount -t tmpfs -o "$1" tmpfs out || exit 99
            shift; "$@"; code=$?; ls -A out > left; exit $code"#;
        let tool = tool().to_str().unwrap();
        let mut tried = Vec::new();
        for unshare in ["-m", "-rm"] {
            let output =
                bench.run_program("unshare", &[&[unshare, "sh", "-c", SCRIPT, "sh", options, tool], args].concat());
            if fs::exists(bench.path("left")).unwrap() {
                let left = String::from_utf8(bench.read("left")).unwrap();
                fs::remove_file(bench.path("left")).unwrap();
                return Some((output, left));
            }
            tried.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let must = std::env::var_os("M2PT_TEST_MOUNTS").is_some();
        assert!(!must, "this environment lets nobody mount a tmpfs: {tried:?}");
        eprintln!("NOT TESTED: this environment lets nobody mount a tmpfs");
        None
    }

    #[test]
    fn leaves_nothing_on_a_full_disk() {
        let bench = Bench::new();
        for output in ["out/merged.pth", "out/merged.safetensors"] {
            let reported = fold(output, &["--report"]);
            for args in every(output, &[]).into_iter().chain(every(output, &["--force"])).chain([reported]) {
                let Some((refusal, left)) = run_mounted(&bench, "size=512k", &args) else { return };
                assert_refusal(&refusal, &args, &["no room for", output, "No space left"]);
                assert_eq!(left, "", "{args:?}");
            }
        }
        assert!(bench.out().is_empty());
    }

    #[test]
    fn leaves_no_output_where_only_its_report_does_not_fit() {
        let bench = Bench::new();
        bench.works(&fold("out/merged.pth", &[]));
        let pages = bench.read("out/merged.pth").len().div_ceil(4096);
        let args = fold("out/merged.pth", &["--report"]);
        let size = format!("size={}", pages * 4096);
        let Some((refusal, left)) = run_mounted(&bench, &size, &args) else { return };
        assert_refusal(&refusal, &args, &["cannot write", "out/merged.pth", "No space left"]);
        assert_eq!(left, "");
        // With room for both, both are there.
        let size = format!("size={}", (pages + 16) * 4096);
        let Some((output, left)) = run_mounted(&bench, &size, &args) else { return };
        assert_eq!((output.status.code(), left.as_str()), (Some(0), "merged.pth\nmerged.pth.json\n"));
    }

    #[test]
    fn rejects_a_read_only_file_system() {
        let bench = Bench::new();
        let args = fold("out/merged.pth", &[]);
        let Some((refusal, left)) = run_mounted(&bench, "ro", &args) else { return };
        assert_refusal(&refusal, &args, &["cannot create out/", "Read-only file system"]);
        assert_eq!(left, "");
    }

    /// A limit on the size of files makes a write fail halfway, as a full disk does, and needs no rights.
    #[test]
    fn leaves_nothing_where_a_write_fails_halfway() {
        let bench = Bench::new();
        let tool = tool().to_str().unwrap();
        // XFSZ would kill the program before it sees the error; the limit is in blocks of 512 bytes.
        let script = r#"trap "" XFSZ; ulimit -f 100; exec "$@""#;
        for output in ["out/merged.pth", "out/merged.safetensors"] {
            for (old, flags) in [(false, &[][..]), (true, &["--force"])] {
                if old {
                    bench.put(output, b"precious");
                }
                for args in every(output, flags) {
                    let refusal = bench.run_program("sh", &[&["-c", script, "sh", tool], &args[..]].concat());
                    assert_refusal(&refusal, &args, &["cannot write", output, "File too large"]);
                    let left: &[&str] = if old { &[output.strip_prefix("out/").unwrap()] } else { &[] };
                    assert_eq!(bench.out(), left);
                    assert!(!old || bench.read(output) == b"precious");
                }
                if old {
                    fs::remove_file(bench.path(output)).unwrap();
                }
            }
        }
    }

    /// A fold that takes long enough to be stopped: of two models of 400 MB, which are holes and take no space on the
    /// disk.
    struct Big(Bench);

    const BIG: [&str; 8] =
        ["fold", "big.safetensors", "--aux", "other.safetensors", "--lambda", "0.1", "-o", "out/merged.pth"];

    impl Big {
        const BYTES: u64 = 8 * 6144 * 2048 * 4;

        fn new() -> Big {
            let layer = Big::BYTES / 8;
            let tensors = (0..8).map(|block| {
                let offsets = format!("[{},{}]", block * layer, (block + 1) * layer);
                format!(
                    r#""blocks.{block}.attn.qkv.weight":{{"dtype":"F32","shape":[6144,2048],"data_offsets":{offsets}}}"#
                )
            });
            let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
            let bench = Bench::new();
            for name in ["big.safetensors", "other.safetensors"] {
                let mut file = File::create(bench.path(name)).unwrap();
                file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
                file.write_all(header.as_bytes()).unwrap();
                file.set_len(8 + header.len() as u64 + Big::BYTES).unwrap();
            }
            Big(bench)
        }

        /// Starts the fold and waits until it is in the middle of writing; also returns the name of the file it writes
        /// to. `ignored` is a signal that it inherits as ignored, as `nohup` and shell scripts make it.
        fn start(&self, more: &[&str], ignored: Option<&str>) -> (Child, String) {
            self.start_what(&BIG, more, ignored)
        }

        /// The same of any command.
        fn start_what(&self, what: &[&str], more: &[&str], ignored: Option<&str>) -> (Child, String) {
            // Whoever runs the tests may ignore signals, too.
            let mut command = Command::new("env");
            command.arg("--default-signal=HUP,INT,TERM");
            command.args(ignored.map(|signal| format!("--ignore-signal={signal}")));
            command.arg(tool()).args(what).args(more).current_dir(self.0.path(""));
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none() {
                let growing = self.0.out().into_iter().find(|name| {
                    name.starts_with(".merged.pth.m2pt-surgery-")
                        && fs::metadata(self.0.path("out").join(name)).is_ok_and(|file| file.len() > 1 << 20)
                });
                if let Some(name) = growing {
                    return (child, name);
                }
                sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            panic!("it wrote nothing that could be interrupted: {:?}", child.wait_with_output().unwrap());
        }

        fn send(child: &Child, signal: &str) {
            let process = child.id().to_string();
            let kill = Command::new("sh").args(["-c", "kill -s $0 $1", signal, &process]).status();
            assert!(kill.unwrap().success());
        }

        /// Sends that signal and waits for the end, which must come soon.
        fn stop(child: Child, signal: &str) -> Output {
            let sent = Instant::now();
            Big::send(&child, signal);
            let output = child.wait_with_output().unwrap();
            assert!(sent.elapsed() < Duration::from_secs(10), "{signal} took {:?}", sent.elapsed());
            output
        }

        /// Whether that is what the unfinished file of that process is called.
        fn assert_recognisable(name: &str, process: u32) {
            let start = format!(".merged.pth.m2pt-surgery-{process}-");
            assert!(name.starts_with(&start) && name.ends_with(".tmp"), "{name}");
        }
    }

    #[test]
    fn a_killed_fold_leaves_no_output_and_can_be_repeated() {
        let big = Big::new();
        let (child, scratch) = big.start(&[], None);
        let process = child.id();
        let output = Big::stop(child, "KILL");
        assert_eq!(output.status.signal(), Some(9));
        assert_eq!(big.0.out(), [scratch.as_str()]);
        Big::assert_recognisable(&scratch, process);

        big.0.works(&BIG);
        assert_eq!(big.0.out(), [scratch.as_str(), "merged.pth"]);
        assert!(fs::metadata(big.0.path("out/merged.pth")).unwrap().len() > Big::BYTES);
        big.0.works(&["inspect", "out/merged.pth"]);
    }

    #[test]
    fn a_killed_fold_leaves_the_old_output_as_it_was() {
        let big = Big::new();
        big.0.put("out/merged.pth", b"precious");
        set_mode(&big.0, "out/merged.pth", 0o600);
        let (child, scratch) = big.start(&["--force"], None);
        let process = child.id();
        let output = Big::stop(child, "KILL");
        assert_eq!(output.status.signal(), Some(9));
        assert_eq!(big.0.out(), [scratch.as_str(), "merged.pth"]);
        Big::assert_recognisable(&scratch, process);
        assert_eq!(big.0.read("out/merged.pth"), b"precious");
        // Whoever may not read the old file may not read what would have replaced it.
        assert_eq!(mode(&big.0, &format!("out/{scratch}")), 0o600);
    }

    #[test]
    fn a_fold_that_is_told_to_stop_cleans_up() {
        let big = Big::new();
        for signal in ["INT", "TERM", "HUP"] {
            let (child, _) = big.start(&[], None);
            assert_refusal(&Big::stop(child, signal), &[signal], &["stopped; nothing was written"]);
            assert!(big.0.out().is_empty(), "{signal} left {:?}", big.0.out());

            big.0.put("out/merged.pth", b"precious");
            let (child, _) = big.start(&["--force"], None);
            assert_refusal(&Big::stop(child, signal), &[signal, "--force"], &["stopped; nothing was written"]);
            assert_eq!(big.0.out(), ["merged.pth"], "{signal}");
            assert_eq!(big.0.read("out/merged.pth"), b"precious");
            fs::remove_file(big.0.path("out/merged.pth")).unwrap();
        }
    }

    #[test]
    fn a_conversion_or_graft_that_is_stopped_or_killed_leaves_no_output() {
        let big = Big::new();
        for what in [
            &["convert", "big.safetensors", "--dtype", "float64", "-o", "out/merged.pth"][..],
            &["graft", "big.safetensors", "--aux", "other.safetensors", "-o", "out/merged.pth"],
        ] {
            big.0.put("out/merged.pth", b"precious");
            let (child, _) = big.start_what(what, &["--force"], None);
            assert_refusal(&Big::stop(child, "TERM"), what, &["stopped; nothing was written"]);
            assert_eq!(big.0.out(), ["merged.pth"], "{what:?}");
            assert_eq!(big.0.read("out/merged.pth"), b"precious");
            fs::remove_file(big.0.path("out/merged.pth")).unwrap();
            let (child, scratch) = big.start_what(what, &[], None);
            let process = child.id();
            assert_eq!(Big::stop(child, "KILL").status.signal(), Some(9));
            assert_eq!(big.0.out(), [scratch.as_str()]);
            Big::assert_recognisable(&scratch, process);
            fs::remove_file(big.0.path("out").join(scratch)).unwrap();
        }
    }

    /// `nohup` ignores hangups, and scripts ignore interrupts of what they start in the background: that must stay so,
    /// and the other signals must still be heeded.
    #[test]
    fn a_fold_in_the_background_cleans_up_and_ignores_what_it_should() {
        let big = Big::new();
        for ignored in ["HUP", "INT"] {
            let (child, _) = big.start(&[], Some(ignored));
            let output = Big::stop(child, "TERM");
            assert_refusal(&output, &["TERM", "ignoring", ignored], &["stopped; nothing was written"]);
            assert!(big.0.out().is_empty(), "TERM left {:?} where {ignored} is ignored", big.0.out());
        }
        let (child, _) = big.start(&[], Some("HUP"));
        Big::send(&child, "HUP");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(big.0.out(), ["merged.pth"]);
    }
}
