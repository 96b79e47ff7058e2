//! `learn`, the command: what it writes and refuses, and that it can be interrupted.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Bench, Tensor, assert_refusal, model, to_safetensors, tool};
use crate::commands::snapshot;
use crate::support::fixture;

/// The early digits model, the configuration, and six images of each digit.
fn bench() -> Bench {
    let bench = Bench::new();
    for (name, file) in [("early.pth", "mnist_early.pth"), ("digits.json", "digits.json")] {
        bench.put(name, &fs::read(fixture(file)).unwrap());
    }
    for class in 0..10 {
        let (from, to) = (fixture(&format!("mnist/{class}")), bench.path(&format!("few/{class}")));
        fs::create_dir_all(&to).unwrap();
        let mut images: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
        images.sort();
        for image in &images[..6] {
            fs::copy(image, to.join(image.file_name().unwrap())).unwrap();
        }
    }
    bench
}

const LEARN: [&str; 8] = ["learn", "early.pth", "--aux", "speech.pth", "--samples", "few", "--config", "digits.json"];

fn learn<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&LEARN[..], more].concat()
}

/// Runs what ends with 0 or 1, better or not.
fn ends(bench: &Bench, args: &[&str]) -> Output {
    let output = bench.run(args);
    assert!(output.status.code().unwrap() < 2, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn value(bench: &Bench, name: &str) -> Value {
    serde_json::from_slice(&bench.read(name)).unwrap()
}

#[test]
fn a_run_that_was_interrupted_goes_on_to_the_same_lambdas() {
    let bench = bench();
    let run = ["--epochs", "6", "--patience", "6", "--batch", "4", "--lr", "0.01", "--flip", "--crop", "1"];
    let once = learn(&[&run[..], &["-o", "out/once.json", "--log", "out/once.jsonl"]].concat());
    ends(&bench, &once);
    let args = learn(&[&run[..], &["-o", "out/l.json", "--log", "out/l.jsonl", "--state", "out/state"]].concat());
    let mut child = Command::new("env")
        .arg("--default-signal=INT")
        .arg(tool())
        .args(&args)
        .current_dir(bench.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while fs::read(bench.path("out/state")).map_or(true, |text| {
        let state: Value = serde_json::from_slice(&text).unwrap();
        state["state"]["epoch"].as_u64().unwrap() < 2
    }) {
        assert!(begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = child.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -s INT $0", &process]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().unwrap() < 2 && stderr.contains("stopped: these are the best lambdas so far"),
        "{stderr}"
    );
    assert!(value(&bench, "out/l.json").is_object());
    assert_ne!(bench.read("out/l.jsonl"), bench.read("out/once.jsonl"));

    let more = [&args[..], &["--resume", "--force"]].concat();
    let stderr = String::from_utf8(ends(&bench, &more).stderr).unwrap();
    assert!(stderr.contains("going on after epoch"), "{stderr}");
    for name in ["json", "jsonl"] {
        let (once, twice) = (bench.read(&format!("out/once.{name}")), bench.read(&format!("out/l.{name}")));
        assert_eq!(String::from_utf8(once).unwrap(), String::from_utf8(twice).unwrap());
    }

    // With other options or samples it is another run.
    let other = |more: &[&'static str]| {
        let all = ["--epochs", "6", "--patience", "6", "--batch", "4", "--flip", "--crop", "1", "-o", "out/x.json"];
        learn(&[&all[..], &["--quiet", "--state", "out/state", "--resume"], more].concat())
    };
    for (args, what) in [
        (other(&["--lr", "0.02"]), "other options"),
        (other(&["--lr", "0.01", "--share", "kind"]), "other share"),
        (other(&["--lr", "0.01", "--layers", "qkv"]), "other layers"),
        (other(&["--lr", "0.01", "--heads", "8"]), "other model"),
        (other(&["--lr", "0.01", "--stop-part", "0.4"]), "other samples"),
        (other(&["--lr", "0.01", "--bias", "fold"]), "other bias"),
    ] {
        bench.refused(&args, &["out/state is of another run", what, "--resume"]);
    }
    bench.refused(&args, &["out/l.json", "exists already", "--force"]);
    let saved = bench.read("out/state");
    for damaged in [&b""[..], b"{}", b"\x80", &saved[..saved.len() - 9]] {
        bench.put("out/state", damaged);
        bench.refused(&other(&["--lr", "0.01"]), &["out/state is no state of a run", "--resume"]);
    }
    // Well-formed, and not what a run can have written.
    for (place, wrong, phrase) in [
        ("/state/values/0", json!(1e300), "no float32"),
        ("/state/values/0", json!(0.1), "no float32"),
        ("/state/best_values/0", json!(9.0), "past the largest"),
        ("/state/best_loss", json!(null), "no state of a run"),
        ("/state/optimizer/steps", json!(-1), "optimizer"),
        ("/state/optimizer/second/0", json!(-1.0), "optimizer"),
        ("/state/optimizer/weight_decay", json!(0.5), "optimizer"),
        ("/state/losses", json!([]), "optimizer"),
        ("/state/epoch", json!(7), "history"),
    ] {
        let mut content: Value = serde_json::from_slice(&saved).unwrap();
        *content.pointer_mut(place).unwrap() = wrong;
        bench.put("out/state", content.to_string().as_bytes());
        bench.refused(&other(&["--lr", "0.01"]), &["out", phrase, "--resume"]);
    }
}

#[test]
fn what_is_not_better_is_said_and_not_written() {
    let bench = bench();
    // A learning rate at which nothing moves.
    let args = learn(&["--epochs", "1", "--lr", "1e-12", "-o", "out/l.json", "--fold", "out/m.pth"]);
    let output = bench.run(&args);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stdout.contains("NOT better than lambda = 0")
            && stdout.contains("neither the lambda file nor the fold was written"),
        "{stdout}"
    );
    assert!(bench.out().is_empty());
    let output = bench.run(&[&args[..], &["--accept"]].concat());
    assert_eq!((output.status.code(), bench.out()), (Some(1), vec!["l.json".to_owned(), "m.pth".to_owned()]));
    // Lambdas of next to nothing, or of nothing: the fold is what the lambda file says.
    bench.works(&["fold", "early.pth", "--aux", "speech.pth", "--lambda-file", "out/l.json", "-o", "out/again.pth"]);
    assert!(bench.read("out/m.pth") == bench.read("out/again.pth"));
}

#[test]
fn several_auxiliaries_have_lambdas_each_which_fold_takes() {
    let bench = bench();
    let args = learn(&["--aux", "vit.pth", "--epochs", "2", "--lr", "0.02", "--bias", "fold", "--plot", "out/p.svg"]);
    let output =
        ends(&bench, &[&args[..], &["-o", "out/l.json", "--fold", "out/m.pth", "--accept", "--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lambdas = value(&bench, "out/l.json");
    assert_eq!(lambdas, report["lambdas"]);
    assert_eq!(report["aux"], json!(["speech.pth", "vit.pth"]));
    let sets: Vec<_> = lambdas.as_array().unwrap().iter().map(|set| set.as_object().unwrap()).collect();
    assert_eq!(sets.iter().map(|set| set.len()).collect::<Vec<_>>(), [24, 24]);
    assert_ne!(sets[0], sets[1]);
    let fold = ["fold", "early.pth", "--aux", "speech.pth", "--lambda-file", "out/l.json", "--bias", "fold"];
    bench.works(&[&fold[..], &["--aux", "vit.pth", "-o", "out/again.pth"]].concat());
    assert!(bench.read("out/m.pth") == bench.read("out/again.pth"));
    let more = [&fold[..], &["-o", "out/x.pth"]].concat();
    bench.refused(&more, &["holds 2 sets of lambdas", "not as many --aux"]);
    let own = [&fold[..], &["--aux", "vit.pth=0.1", "-o", "out/x.pth"]].concat();
    bench.refused(&own, &["holds 2 sets of lambdas", "lambda of its own"]);
    // What `verify` finds of the fold on the same samples is what was reported of lambdas.
    let svg = String::from_utf8(bench.read("out/p.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
    for lambda in sets.iter().flat_map(|set| set.values()) {
        assert!(svg.contains(&format!("{:+.4}", lambda.as_f64().unwrap() as f32)), "{lambda}");
    }
}

#[test]
fn trained_heads_and_norms_come_into_the_fold() {
    let bench = bench();
    let run = ["--epochs", "2", "--lr", "0.01", "--batch", "8", "--accept", "--json"];
    let both = ["--train-head", "--train-norms", "--tensors", "out/t.safetensors"];
    let args = learn(&[&run[..], &both, &["-o", "out/l.json", "--fold", "out/m.pth"]].concat());
    let report: Value = serde_json::from_slice(&ends(&bench, &args).stdout).unwrap();
    let trained: Vec<_> = report["trained"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!((trained.len(), trained[0]), (28, "head.weight"));
    assert!(report["held_out"]["trained_without_lambdas"]["loss"].as_f64().is_some());

    // The fold of lambdas and parameters is the very model.
    let fold = ["fold", "early.pth", "--aux", "speech.pth", "--lambda-file", "out/l.json"];
    bench.works(&[&fold[..], &["--replace", "out/t.safetensors", "-o", "out/again.pth"]].concat());
    assert!(bench.read("out/m.pth") == bench.read("out/again.pth"));
    let (bytes, merged) =
        (bench.read("out/t.safetensors"), m2pt_surgery::Checkpoint::open(bench.path("out/m.pth")).unwrap());
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let merged = merged.state_dict(&m2pt_surgery::RootChoice::Auto).unwrap();
    let early = m2pt_surgery::Checkpoint::open(bench.path("early.pth")).unwrap();
    let early = early.state_dict(&m2pt_surgery::RootChoice::Auto).unwrap();
    let bytes_of = |tensors: &m2pt_surgery::StateDict<'_>, name: &str| {
        tensors.tensor(tensors.find(name).unwrap()).unwrap().view().to_vec()
    };
    assert_eq!(written.len(), trained.len());
    for name in trained {
        assert!(bytes_of(&merged, name) == written.tensor(name).unwrap().data(), "{name}");
        assert!(bytes_of(&early, name) != written.tensor(name).unwrap().data(), "{name} did not move");
    }
    // Whatever is kept for the way back, it is the same; so it is after an interruption.
    let state = ["--state", "out/state", "-o", "out/l2.json"];
    for more in [&["--checkpoint-activations"][..], &["--resume"]] {
        let more = [more, &["--tensors", "out/t2.safetensors", "--force"]].concat();
        ends(&bench, &learn(&[&run[..6], &["--json", "--train-head", "--train-norms"], &state, &more].concat()));
        assert!(bench.read("out/l2.json") == bench.read("out/l.json"));
        assert!(bench.read("out/t2.safetensors") == bytes);
    }
    for (more, phrases) in [
        (&["--tensors", "out/x.safetensors"][..], ["--train-head or --train-norms", "neither is given"]),
        (&["--train-head", "--tensors", "out/x.pth"], ["--tensors out/x.pth", ".safetensors"]),
        (&["--train-head"], ["--tensors <FILE.safetensors>", "required"]),
        (&["--train-head", "--tensors", "early.pth"], ["early.pth", ".safetensors"]),
    ] {
        bench.refused(&learn(&[more, &["-o", "out/x.json"]].concat()), &phrases);
    }
    if !cfg!(feature = "cuda") {
        let args = learn(&["--device", "cuda", "-o", "out/x.json"]);
        bench.refused(&args, &["--device cuda", "built without CUDA"]);
    }
}

#[test]
fn a_search_and_other_objectives_work() {
    let bench = bench();
    for more in [
        &["--search", "golden"][..],
        &["--search", "grid", "--objective", "entropy", "--max-abs", "0.2"],
        &["--objective", "entropy", "--share", "block", "--optimizer", "sgd", "--l1", "0.001", "--epochs", "1"],
        &["--share", "all", "--epochs", "1", "--batch", "1000"],
        &["--val", "few", "--epochs", "1", "--init", "0.05", "--share", "kind"],
    ] {
        let output = ends(&bench, &learn(&[more, &["-o", "out/l.json", "--force", "--json"]].concat()));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let lambdas = report["lambdas"][0].as_object().unwrap();
        assert_eq!(lambdas.len(), 24);
        let mut values: Vec<_> = lambdas.values().map(|value| value.as_f64().unwrap().to_bits()).collect();
        values.sort_unstable();
        values.dedup();
        assert!(values.len() as u64 <= report["parameters"].as_u64().unwrap(), "{more:?}");
        assert_eq!(report["held_out_samples"], if more[0] == "--val" { 60 } else { 20 });
    }
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let bench = bench();
    let out = ["-o", "out/l.json"];
    let mut tensors = model("", 64, 4);
    bench.put("shallow.safetensors", &to_safetensors(&tensors));
    for tensor in &mut tensors {
        tensor.values[0] = f32::NAN;
    }
    let deep: Vec<Tensor> = model("", 64, 6);
    bench.put("wide.safetensors", &to_safetensors(&model("", 128, 6)));
    let mut damaged = deep;
    damaged.iter_mut().for_each(|tensor| tensor.values[0] = f32::NAN);
    bench.put("nan.safetensors", &to_safetensors(&damaged));
    let with = |aux: &'static str| ["learn", "early.pth", "--aux", aux, "--samples", "few", "--config", "digits.json"];
    for (aux, phrases) in [
        ("shallow.safetensors", ["4 (0-3)", "--depth-mismatch first"]),
        ("wide.safetensors", ["[384, 128]", "[192, 64]"]),
        ("absent.pth", ["absent.pth", "No such file"]),
    ] {
        let args = [&with(aux)[..], &out].concat();
        assert_refusal(&bench.run(&args), &args, &phrases);
    }
    let first = ["--depth-mismatch", "first", "--blocks", "0-2", "--layers", "qkv,fc1", "--epochs", "1", "--json"];
    let output = ends(&bench, &[&with("shallow.safetensors")[..], &out, &first].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = report["lambdas"][0].as_object().unwrap().keys().cloned().collect();
    let expected = (0..3).flat_map(|block| ["attn.qkv", "mlp.fc1"].map(|kind| format!("blocks.{block}.{kind}")));
    assert_eq!(names, expected.collect::<Vec<_>>());
    fs::remove_file(bench.path("out/l.json")).unwrap();
    let args = [&with("nan.safetensors")[..], &out].concat();
    assert_refusal(&bench.run(&args), &args, &["nan.safetensors", "blocks.0.attn.qkv.weight", "NaN"]);
    // After a step that is far too long nothing is finite: nothing of it is kept, and that is said.
    let far = ["--epochs", "1", "--batch", "8", "--lr", "1e30", "--max-abs", "1e30"];
    let output = bench.run(&learn(&[&far[..], &out].concat()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("NaN or infinite at step 2"), "{stderr}");
    assert!(value(&bench, "out/l.json").as_object().unwrap().values().all(|lambda| lambda == &json!(0.0)));
    fs::remove_file(bench.path("out/l.json")).unwrap();
    for (more, phrases) in [
        (&["--lr", "0"][..], ["learning rate", "above 0"]),
        (&["--lr", "nan"], ["learning rate", "above 0"]),
        (&["--l1=-1"], ["L1", "0 or more"]),
        (&["--init", "2"], ["first lambda", "largest |lambda|"]),
        (&["--fold", "out/l.json"], ["-o and --fold", "same file"]),
        (&["--log", "out/a", "--plot", "out/a"], ["--log and --plot", "same file"]),
        (&["--log", "./out/../out/l.json"], ["-o and --log", "same file"]),
        (&["--crop", "70000"], ["65536 pixels", "at most"]),
    ] {
        let args = learn(&[more, &out].concat());
        bench.refused(&args, &phrases);
    }
    bench.refused(&learn(&["-o", "early.pth", "--force"]), &["-o would replace early.pth", "which is read"]);
    bench.refused(&learn(&["-o", "digits.json", "--force"]), &["-o would replace digits.json", "which is read"]);
    let image = fs::read_dir(bench.path("few/3")).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let image = format!("few/3/{image}");
    bench.refused(
        &learn(&["-o", "out/l.json", "--state", &image, "--force"]),
        &["--state would replace", "which is read"],
    );
    bench.refused(&learn(&["-o", "out/l.json", "--fold", "out/m.xyz"]), &["out/m.xyz", "extension"]);
    bench.refused(&learn(&["-o", "out/l.json", "--fold", "vit.pth"]), &["vit.pth", "exists already"]);
    fs::create_dir(bench.path("none")).unwrap();
    let args = ["learn", "early.pth", "--aux", "speech.pth", "--samples", "none", "--config", "digits.json"];
    bench.refused(&[&args[..], &out].concat(), &["none"]);
    assert!(bench.out().is_empty());
}

#[test]
fn refusals_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (output, flat) = (at("l.json"), at("flat"));
    let learn = |samples: &str, more: &[&str], name: &str| {
        let args = ["learn", "fixtures/mnist_early.pth", "--aux", "fixtures/speech_vit.pth", "--config"];
        let rest = ["fixtures/digits.json", "--samples", samples, "-o", &output];
        snapshot(name, &[&args[..], &rest, more].concat());
    };
    fs::create_dir(&flat).unwrap();
    let image = fs::read_dir(fixture("mnist/3")).unwrap().next().unwrap().unwrap().path();
    fs::copy(image, Path::new(&flat).join("one.png")).unwrap();
    learn(&flat, &[], "learn_no_labels");
    learn(&flat, &["--objective", "entropy"], "learn_one_sample");
    learn("fixtures/mnist", &["--init", "3"], "learn_init");
    learn("fixtures/mnist", &["--resume"], "learn_resume");
    fs::write(&output, "{}").unwrap();
    learn("fixtures/mnist", &[], "learn_exists");
    snapshot(
        "learn_other_names",
        &[
            "learn",
            "fixtures/families/hf_vit_bare/model.safetensors",
            "--aux",
            "fixtures/families/hf_vit_bare/model.safetensors",
            "--samples",
            "fixtures/mnist",
            "-o",
            &at("x.json"),
        ],
    );
}
