//! Shards that are written one by one: by a run that was killed and goes on, or by several processes.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::{Bench, model, to_safetensors, tool};

const FOLD: [&str; 6] = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1"];

fn fold<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FOLD[..], &["--max-shard-size", "200KB"], more].concat()
}

/// All files of a folder, hidden ones included.
fn files(bench: &Bench, folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(bench.path(folder)).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect();
    files.sort();
    files
}

const PLAN: &str = "model.safetensors.index.json.parts";

#[test]
fn parts_make_the_files_of_a_fold_in_one_go() {
    let bench = Bench::new();
    for (format, more) in [
        ("safetensors", &[][..]),
        ("pth", &[]),
        ("safetensors", &["--hash-inputs"]),
        ("safetensors", &["--no-metadata"]),
    ] {
        let run = |more: &[&str], output: &str| {
            bench.works(&[&fold(&["-o", output, "--format", format]), more].concat());
        };
        run(more, "whole");
        run(&[&["--resume"], more].concat(), "rest");
        for part in ["0/3", "2/3", "3/3", "1/3"] {
            run(&[&["--shard", part], more].concat(), "parts");
            let refused = bench.run(&["join", "parts"]);
            assert_eq!(refused.status.code(), Some(if part == "1/3" { 0 } else { 2 }));
        }
        let whole = files(&bench, "whole");
        assert!(whole.len() > 6, "{}", whole.len());
        assert!(whole == files(&bench, "rest") && whole == files(&bench, "parts"), "{format} {more:?}");
        for folder in ["whole", "rest", "parts"] {
            fs::remove_dir_all(bench.path(folder)).unwrap();
        }
    }
}

#[test]
fn what_is_there_stays_and_what_is_missing_is_written() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "whole"]));
    bench.works(&fold(&["-o", "some/", "--shard", "1/2"]));
    bench.refused(&["join", "some"], &["some/", "shards are missing", "model-00002-of-0000", "--resume"]);
    let first = bench.path("some/model-00001-of-00007.safetensors");
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    bench.works(&fold(&["-o", "some", "--resume"]));
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), before);
    assert!(files(&bench, "whole") == files(&bench, "some"));
    // It is complete: there is nothing to go on with, or to join.
    bench.refused(&fold(&["-o", "some", "--resume"]), &["some/", "exists already"]);
    bench.refused(&["join", "some"], &["some", "no plan of an output in parts"]);
    // Other names for the same output.
    for name in ["out/m.safetensors", "out/m.safetensors.index.json", "out/m.safetensors.index.json.parts"] {
        bench.works(&fold(&["-o", "out/m.safetensors", "--shard", "1/1"]));
        bench.works(&["join", name]);
        assert_eq!(bench.out().len(), files(&bench, "whole").len());
        fs::remove_dir_all(bench.path("out")).unwrap();
        fs::create_dir(bench.path("out")).unwrap();
    }
}

#[test]
fn another_fold_does_not_go_on_with_it() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "m", "--shard", "1/2"]));
    let before = files(&bench, "m");
    let plan = format!("m/{PLAN}");
    bench.put("speech2.pth", &bench.read("vit.pth"));
    let other = |lambda: &'static str, aux: &'static str, size: &'static str| {
        ["fold", "vit.pth", "--aux", aux, "--lambda", lambda, "--max-shard-size", size, "-o", "m", "--shard", "2/2"]
    };
    for (args, what) in [
        (other("0.2", "speech.pth", "200KB"), "lambdas"),
        (other("0.1", "speech2.pth", "200KB"), "inputs"),
        (other("0.1", "speech.pth", "150KB"), "sizes of shards"),
    ] {
        bench.refused(&args, &[&plan, "plan of another fold", what]);
    }
    bench.refused(&fold(&["-o", "m", "--shard", "2/2", "--no-metadata"]), &[&plan, "plan of another fold", "headers"]);
    bench.refused(
        &fold(&["-o", "m", "--shard", "2/2", "--allow-non-finite"]),
        &[&plan, "plan of another fold", "options"],
    );
    assert!(before == files(&bench, "m"));
    // The same inputs under other names and with other times are the same.
    bench.put("copied-vit.pth", &bench.read("vit.pth"));
    bench.put("copied-speech.pth", &bench.read("speech.pth"));
    let args = ["fold", "copied-vit.pth", "--aux", "copied-speech.pth", "--lambda", "0.1", "--max-shard-size", "200KB"];
    bench.works(&[&args[..], &["-o", "m", "--resume"]].concat());
    bench.works(&fold(&["-o", "whole"]));
    assert!(files(&bench, "whole") == files(&bench, "m"));
}

#[test]
fn inputs_that_changed_under_their_name_are_noticed() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "m", "--shard", "1/2"]));
    bench.put("speech.pth", &bench.read("vit.pth"));
    bench.refused(&fold(&["-o", "m", "--shard", "2/2"]), &["plan of another fold", "inputs"]);
}

#[test]
fn damaged_shards_and_plans_are_refused() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "m", "--shard", "1/2"]));
    let (shard, plan) = ("m/model-00003-of-00007.safetensors", format!("m/{PLAN}"));
    let (whole, written) = (bench.read(shard), bench.read(&plan));
    for damaged in [whole[..whole.len() - 1].to_vec(), {
        let mut other = whole.clone();
        other[20] ^= 1;
        other
    }] {
        bench.put(shard, &damaged);
        for args in [fold(&["-o", "m", "--shard", "1/2"]), fold(&["-o", "m", "--resume"]), vec!["join", "m"]] {
            bench.refused(&args, &[shard, "is not the shard that is planned"]);
        }
    }
    bench.put(shard, &whole);
    let text = String::from_utf8(written.clone()).unwrap();
    for (damaged, reason) in [
        (text[..text.len() / 2].to_owned(), "EOF"),
        (String::new(), "EOF"),
        ("{}".to_owned(), "missing field"),
        (text.replace("\"m2pt_surgery_parts\": 1", "\"m2pt_surgery_parts\": 2"), "another version"),
        (text.replace("model-00001-of-00007", "../model-00001-of-00007"), "another folder"),
    ] {
        bench.put(&plan, damaged.as_bytes());
        for args in [fold(&["-o", "m", "--resume"]), vec!["join", "m"]] {
            bench.refused(&args, &[&plan, "no plan of an output in parts", reason]);
        }
    }
    bench.put(&plan, &written);
    bench.put("m/model.safetensors.index.json", b"{}");
    bench.refused(
        &fold(&["-o", "m", "--resume"]),
        &["model.safetensors.index.json", "is not the index that is planned"],
    );
    fs::remove_file(bench.path("m/model.safetensors.index.json")).unwrap();
    bench.works(&fold(&["-o", "m", "--resume"]));
    bench.works(&fold(&["-o", "whole"]));
    assert!(files(&bench, "whole") == files(&bench, "m"));
}

#[test]
fn an_index_whose_plan_was_not_removed_is_complete() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "m", "--shard", "1/1"]));
    let plan = bench.read(&format!("m/{PLAN}"));
    bench.works(&["join", "m"]);
    let complete = files(&bench, "m");
    for args in [fold(&["-o", "m", "--resume"]), vec!["join", "m"]] {
        bench.put(&format!("m/{PLAN}"), &plan);
        bench.works(&args);
        assert!(complete == files(&bench, "m"));
    }
}

#[test]
fn flags_without_a_meaning_are_refused() {
    let bench = Bench::new();
    let one = ["--max-shard-size", "2GB", "-o", "m"];
    bench.refused(&[&FOLD[..], &one, &["--resume"]].concat(), &["m", "all fits into one file", "--max-shard-size"]);
    bench.refused(&[&FOLD[..], &one, &["--shard", "1/2"]].concat(), &["m", "all fits into one file"]);
    assert!(!bench.path("m").exists());
    for part in ["3/2", "1/0", "1", "a/b", "-1/2", "1/2/3", "+1/2"] {
        let output = bench.run(&fold(&["-o", "m", &format!("--shard={part}")]));
        assert_eq!(output.status.code(), Some(2), "{part}");
    }
    for more in [&["--resume", "--force"][..], &["--resume", "--report"], &["--resume", "--shard", "1/2"]] {
        assert_eq!(bench.run(&fold(&[&["-o", "m"], more].concat())).status.code(), Some(2), "{more:?}");
    }
    assert_eq!(bench.run(&[&FOLD[..], &["-o", "m.safetensors", "--resume"]].concat()).status.code(), Some(2));
    bench.refused(&["join", "nowhere"], &["nowhere", "no plan"]);
    bench.refused(&["join", "."], &["no plan"]);
}

/// A fold of two models of 13 MB in shards of 1 MB, at a rate that leaves time to kill it.
struct Slow(Bench);

impl Slow {
    fn new() -> Slow {
        let bench = Bench::new();
        bench.put("big.safetensors", &to_safetensors(&model("", 256, 4)));
        Slow(bench)
    }

    fn args<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let fold = ["fold", "big.safetensors", "--aux", "big.safetensors", "--lambda", "0.5"];
        [&fold[..], &["--max-shard-size", "1MB"], more].concat()
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = Command::new(tool());
        command.args(self.args(more)).current_dir(self.0.path("")).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Kills it once there are so many shards.
    fn kill_after(&self, child: &mut Child, folder: &str, shards: usize) {
        let begin = Instant::now();
        let count = || {
            let entries = fs::read_dir(self.0.path(folder)).into_iter().flatten();
            entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("model-")).count()
        };
        while count() < shards {
            assert!(begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The files of a folder, but for what a killed process may leave.
    fn files(&self, folder: &str) -> Vec<(String, Vec<u8>)> {
        files(&self.0, folder).into_iter().filter(|(name, _)| !name.ends_with(".tmp")).collect()
    }
}

#[test]
fn a_fold_that_was_killed_goes_on_at_the_first_missing_shard() {
    let slow = Slow::new();
    slow.0.works(&slow.args(&["-o", "whole"]));
    let whole = slow.files("whole");
    for shards in [0, 1, 5] {
        let mut child = slow.start(&["-o", "m", "--resume", "--limit-rate", "3MB"]);
        slow.kill_after(&mut child, "m", shards);
        let left = if slow.0.path("m").exists() { slow.files("m") } else { vec![] };
        assert!(left.len() < whole.len() && !left.iter().any(|(name, _)| name.ends_with("index.json")));
        assert!(left.iter().all(|file| file.0 == PLAN || whole.contains(file)), "a shard is not whole");
        slow.0.works(&slow.args(&["-o", "m", "--resume"]));
        assert!(slow.files("m") == whole);
        fs::remove_dir_all(slow.0.path("m")).unwrap();
    }
}

#[test]
fn several_processes_write_one_output_though_one_is_killed() {
    let slow = Slow::new();
    slow.0.works(&slow.args(&["-o", "whole"]));
    // All at once, the first that comes writing the plan.
    let parts = ["1/4", "2/4", "3/4", "4/4"];
    let mut children: Vec<Child> =
        parts.iter().map(|part| slow.start(&["-o", "m", "--shard", part, "--limit-rate", "2MB"])).collect();
    slow.kill_after(&mut children[2], "m", 1);
    for (number, child) in children.iter_mut().enumerate() {
        assert_eq!(child.wait().unwrap().success(), number != 2);
    }
    slow.0.refused(&["join", "m"], &["shards are missing", "model-0000"]);
    // Started again, and twice: the second finds what the first has written, or is written while it looks.
    let mut again = [0, 1].map(|_| slow.start(&["-o", "m", "--shard", "3/4"]));
    assert!(again.iter_mut().all(|child| child.wait().unwrap().success()));
    slow.0.works(&["join", "m"]);
    assert!(slow.files("m") == slow.files("whole"));
}
