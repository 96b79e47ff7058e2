//! `verify`: what it says of the bundled models is what PyTorch computed.

use std::fs;
use std::path::Path;

use m2pt_surgery::verify::Reference;
use serde_json::{Value, json};

use crate::commands::snapshot;
use crate::support::{expected, fail, fixture, run, succeed};

/// The largest difference of a logit that is put down to another order of summation; logits are of the order of 10.
const TOLERANCE: f32 = 1e-4;

const DIGITS: [&str; 4] = ["--samples", "fixtures/mnist", "--config", "fixtures/digits.json"];
const TARGET: &str = "fixtures/mnist_vit.pth";
const SPEECH: &str = "fixtures/speech_vit.pth";

/// What `verify --json` prints, and its status.
fn verify(args: &[&str]) -> (Value, i32) {
    let output = run(&[&["verify", "--json", "--quiet"], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {stderr}"));
    (report, output.status.code().unwrap())
}

fn sound(args: &[&str]) -> Value {
    let (report, status) = verify(args);
    assert_eq!((status, &report["sound"]), (0, &json!(true)), "{args:?}: {report:#}");
    report
}

fn unsound(args: &[&str]) -> Value {
    let (report, status) = verify(args);
    assert_eq!((status, &report["sound"]), (1, &json!(false)), "{args:?}: {report:#}");
    report
}

/// Folds, and returns the path of what came of it.
fn fold(folder: &Path, name: &str, args: &[&str]) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    succeed(&[&["fold", "--quiet", "--output", &path], args].concat());
    path
}

#[test]
fn accuracies_and_logits_are_pytorchs_sample_by_sample() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let recorded = expected("predictions.json");
    let scaled =
        |lambda: &str| fold(folder.path(), &format!("{lambda}.pth"), &[TARGET, "--aux", SPEECH, "--lambda", lambda]);
    let models = [
        ("target", TARGET.to_owned()),
        ("early", "fixtures/mnist_early.pth".to_owned()),
        ("pathway", "fixtures/mnist_pathway.pth".to_owned()),
        ("pathway_folded", fold(folder.path(), "plain.pth", &["fixtures/mnist_pathway.pth"])),
        ("folded_0.1", scaled("0.1")),
        ("folded_0.3", scaled("0.3")),
    ];
    for (name, file) in models {
        let saved = at(&format!("{name}.safetensors"));
        let reference = ["--reference", "fixtures/expected/logits.safetensors", "--reference-array", name];
        let save = ["--save-logits", saved.as_str()];
        let report = sound(&[&[file.as_str()], &DIGITS[..], &reference, &save].concat());
        assert_eq!(report["accuracy"]["top1"]["right"], recorded["correct"][name], "{name}");
        assert_eq!(report["accuracy"]["top1"]["value"], recorded["accuracy"][name], "{name}");
        assert_eq!(report["reference"]["same_top1"], 520);
        let ours = Reference::open(saved.as_ref(), None).unwrap();
        let theirs = Reference::open(&fixture("expected/logits.safetensors"), Some(name)).unwrap();
        for (ours, theirs) in ours.logits.values().iter().zip(theirs.logits.values()) {
            assert!((ours - theirs).abs() < TOLERANCE, "{name}: {ours} {theirs}");
        }
        let predictions: Vec<usize> = ours.logits.predictions().into_iter().flatten().collect();
        assert_eq!(json!(predictions), recorded["predictions"][name], "{name}");
        let images: Vec<String> = ours.samples.unwrap().iter().map(|name| format!("mnist/{name}")).collect();
        assert_eq!(json!(images), recorded["images"]);
    }
}

#[test]
fn a_fold_computes_what_its_pathway_does() {
    let folder = tempfile::tempdir().unwrap();
    let by = ["--aux", SPEECH, "--lambda", "0.3"];
    let merged = fold(folder.path(), "merged.pth", &[&[TARGET][..], &by].concat());
    let plain = fold(folder.path(), "plain.pth", &["fixtures/mnist_pathway.pth"]);
    let of_target = [&["--pathway", TARGET][..], &by].concat();
    for (merged, pathway) in [(&merged, &of_target[..]), (&plain, &["--pathway", "fixtures/mnist_pathway.pth"])] {
        // On digits, and on noise.
        for inputs in [&DIGITS[..], &DIGITS[2..]] {
            let report = sound(&[&[merged.as_str()], pathway, inputs].concat());
            let found = &report["pathway"];
            assert_eq!(
                (&found["equivalent"], &found["layers"], &found["tolerance"]),
                (&json!(true), &json!(24), &json!(1e-4))
            );
            assert!(found["max_abs"].as_f64().unwrap() < f64::from(TOLERANCE), "{found:#}");
            assert!(found["max_abs"].as_f64().unwrap() > 0.0, "two orders of summation agree to the last bit");
            assert_eq!(found["same_top1"], found["rows"]);
            assert_eq!((found["blocks"].as_array().unwrap().len(), &found["first_block"]), (6, &Value::Null));
        }
    }
    // A trained pathway alone is folded in memory.
    let report = sound(&["fixtures/mnist_pathway.pth", DIGITS[2], DIGITS[3]]);
    assert_eq!((&report["folded_in_memory"], &report["pathway"]["layers"]), (&json!(true), &json!(24)));
    assert_eq!(report["inputs"]["noise"], json!({"images": 16, "seed": 0, "shape": [3, 32, 32]}));
    // Several auxiliaries, and lambdas of their own.
    let twice = ["--aux", &format!("{SPEECH}=0.1"), "--aux", "fixtures/mnist_early.pth=-0.05"];
    let both = fold(folder.path(), "both.pth", &[&[TARGET][..], &twice].concat());
    let report = sound(&[&[both.as_str(), "--pathway", TARGET, DIGITS[2], DIGITS[3]][..], &twice].concat());
    assert_eq!(report["pathway"]["aux"], json!([SPEECH, "fixtures/mnist_early.pth"]));
}

#[test]
fn folded_biases_belong_to_the_pathway_if_that_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let meant = ["--aux", SPEECH, "--lambda", "0.1"];
    let merged = fold(folder.path(), "merged.pth", &[&[TARGET, "--bias", "fold"], &meant[..]].concat());
    let pathway = [&[merged.as_str(), "--pathway", TARGET, "--heads", "4"], &meant[..]].concat();
    sound(&[&pathway[..], &["--bias", "fold"]].concat());
    unsound(&pathway);
}

#[test]
fn folds_that_are_not_what_was_meant_are_found_with_the_block() {
    let folder = tempfile::tempdir().unwrap();
    let config = &DIGITS[2..];
    let by = |lambda: &'static str| ["--aux", SPEECH, "--lambda", lambda];
    let merged = fold(folder.path(), "merged.pth", &[&[TARGET][..], &by("0.3")].concat());
    let without_4 = fold(folder.path(), "without_4.pth", &[&[TARGET, "--blocks", "0-3,5"][..], &by("0.3")].concat());
    let pathway = |lambda| [&["--pathway", TARGET][..], &by(lambda)].concat();
    let wrong = unsound(&[&[merged.as_str()], &pathway("0.29")[..], config].concat());
    assert_eq!(wrong["pathway"]["first_block"], 0);
    let wrong = unsound(&[&[without_4.as_str()], &pathway("0.3")[..], config].concat());
    assert_eq!(wrong["pathway"]["first_block"], 4);
    // The right flags say what was folded; and a tolerance says how wrong it may be.
    sound(&[&[without_4.as_str()], &pathway("0.3")[..], config, &["--blocks", "0-3,5"]].concat());
    sound(&[&[merged.as_str()], &pathway("0.29")[..], config, &["--tolerance", "0.1"]].concat());
    unsound(&[&[merged.as_str()], &pathway("0.3")[..], config, &["--tolerance", "0"]].concat());
    // In the 16-bit types too.
    for dtype in ["f16", "bf16"] {
        let report = sound(&[&[merged.as_str()], &pathway("0.3")[..], config, &["--dtype", dtype]].concat());
        assert!(report["pathway"]["tolerance"].as_f64().unwrap() > 1e-3);
        unsound(&[&[merged.as_str()], &pathway("0.1")[..], config, &["--dtype", dtype]].concat());
    }
    // Half-precision weights are rounded by the fold.
    let half = "fixtures/mnist_vit_f16.pth";
    let rounded = fold(folder.path(), "half.pth", &[&[half][..], &by("0.3")].concat());
    let report = sound(&[&[rounded.as_str(), "--pathway", half][..], &by("0.3"), config].concat());
    assert_eq!(report["pathway"]["tolerance"], 4e-3);
}

#[test]
fn two_models_are_compared_sample_by_sample() {
    let report = sound(&[&[TARGET, "--against", "fixtures/mnist_early.pth"], &DIGITS[..]].concat());
    let recorded = expected("predictions.json");
    let predictions = |name: &str| -> Vec<u64> {
        recorded["predictions"][name].as_array().unwrap().iter().map(|p| p.as_u64().unwrap()).collect()
    };
    let images: Vec<&str> = recorded["images"].as_array().unwrap().iter().map(|i| i.as_str().unwrap()).collect();
    let (ours, theirs) = (predictions("target"), predictions("early"));
    let flips: Vec<Value> = images
        .iter()
        .zip(ours.iter().zip(&theirs))
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(image, (ours, theirs))| {
            let sample = image.strip_prefix("mnist/").unwrap();
            let label: u64 = sample.split('/').next().unwrap().parse().unwrap();
            json!({"sample": sample, "label": label, "model": ours, "against": theirs})
        })
        .collect();
    let against = &report["against"][0];
    assert_eq!(against["flips"], json!(flips));
    let paired = &against["paired"];
    let counts = ["both", "only_model", "only_against", "neither"].map(|name| paired[name].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), 520);
    assert_eq!((counts[0] + counts[1], counts[0] + counts[2]), (505, 442));
    // scipy.stats.binomtest(66, 69, 0.5).pvalue
    assert_eq!((counts[1], counts[2]), (66, 3));
    assert!((paired["p"].as_f64().unwrap() / 1.857_035_033_560_328e-16 - 1.0).abs() < 1e-9, "{paired}");
    // A model of which nothing differs.
    let same = sound(&[&[TARGET, "--against", "fixtures/mnist_vit.safetensors"], &DIGITS[..]].concat());
    let same = &same["against"][0];
    assert_eq!((&same["paired"]["p"], &same["flips"]), (&json!(1.0), &json!([])));
}

#[test]
fn shuffled_and_limited_samples_are_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |name: &str, args: &[&str]| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        sound(&[&[TARGET], &DIGITS[..], &["--save-logits", &path], args].concat());
        (Reference::open(path.as_ref(), None).unwrap(), path)
    };
    let (all, _) = saved("all.npz", &[]);
    let (shuffled, _) = saved("shuffled.npz", &["--shuffle-seed", "3", "--batch", "17", "--threads", "1"]);
    assert_eq!(all.logits.len(), 520);
    for (a, b) in all.logits.values().iter().zip(shuffled.logits.values()) {
        assert!((a - b).abs() < TOLERANCE, "rows are in the order of the set, however it is shuffled");
    }
    let (some, path) = saved("some.safetensors", &["--shuffle-seed", "3", "--limit", "40"]);
    assert_eq!((some.logits.len(), some.samples.as_ref().map(Vec::len)), (40, Some(40)));
    // Whatever the order, saved logits find their samples again.
    let report =
        sound(&[&[TARGET, "--reference", &path], &DIGITS[..], &["--shuffle-seed", "3", "--limit", "10"]].concat());
    assert_eq!((&report["reference"]["rows"], &report["run"]["images"]), (&json!(10), &json!(10)));
    assert!(
        fail(&[&["verify", TARGET, "--reference", &path], &DIGITS[..]].concat()).contains("no logits of the sample")
    );
}

#[test]
fn inputs_can_come_with_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("expected/inputs_16.safetensors")).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let indices = recorded.tensor("indices").unwrap();
    let indices: Vec<usize> =
        indices.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as usize).collect();
    let logits =
        Reference::open(&fixture("expected/logits.safetensors"), Some("target")).unwrap().logits.select(&indices);
    let logits: Vec<u8> = logits.values().iter().flat_map(|x| x.to_le_bytes()).collect();
    let logits = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![16, 10], &logits).unwrap();
    let path = folder.path().join("reference.safetensors");
    let tensors = [("inputs", recorded.tensor("inputs").unwrap()), ("logits", logits)];
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let path = path.to_str().unwrap();
    let report = sound(&[TARGET, "--reference", path, DIGITS[2], DIGITS[3]]);
    assert_eq!((&report["reference"]["rows"], &report["accuracy"]), (&json!(16), &Value::Null));
    let report = unsound(&["fixtures/mnist_early.pth", "--reference", path, DIGITS[2], DIGITS[3]]);
    assert_eq!(report["reference"]["equivalent"], false);
}

/// A set of a few digits in class folders of these names.
fn some_digits(folder: &Path, classes: &[(&str, usize)]) -> String {
    for (name, class) in classes {
        let to = folder.join("set").join(name);
        fs::create_dir_all(&to).unwrap();
        let mut images: Vec<_> =
            fs::read_dir(fixture(&format!("mnist/{class}"))).unwrap().map(|e| e.unwrap().path()).collect();
        images.sort();
        for image in &images[..3] {
            fs::copy(image, to.join(image.file_name().unwrap())).unwrap();
        }
    }
    folder.join("set").to_str().unwrap().to_owned()
}

#[test]
fn samples_that_cannot_be_read_are_named_and_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let classes: Vec<String> = (0..10).map(|class| class.to_string()).collect();
    let classes: Vec<(&str, usize)> = classes.iter().enumerate().map(|(id, name)| (name.as_str(), id)).collect();
    let set = some_digits(folder.path(), &classes);
    fs::write(folder.path().join("set/4/broken.png"), b"no image").unwrap();
    fs::write(folder.path().join("set/7/empty.png"), b"").unwrap();
    let args = [TARGET, "--samples", &set, "--config", DIGITS[3]];
    let report = unsound(&args);
    assert_eq!((&report["run"]["images"], &report["accuracy"]["top1"]["samples"]), (&json!(30), &json!(30)));
    let names: Vec<&str> =
        report["unreadable"].as_array().unwrap().iter().map(|u| u["sample"].as_str().unwrap()).collect();
    assert_eq!(names, ["4/broken.png", "7/empty.png"]);
    let text = run(&[&["verify"], &args[..]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("2 samples cannot be read") && text.contains("set/4/broken.png: it is no PNG"), "{text}");
    // Nothing but broken images is no result at all.
    let broken = folder.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("a.png"), b"no image").unwrap();
    let error = fail(&["verify", TARGET, "--samples", broken.to_str().unwrap(), "--config", DIGITS[3]]);
    assert!(error.contains("none of 1 sample can be read") && error.contains("a.png"), "{error}");
}

#[test]
fn classes_that_cannot_be_mapped_are_errors_that_say_how() {
    let folder = tempfile::tempdir().unwrap();
    let set = some_digits(folder.path(), &[("four", 4), ("seven", 7)]);
    let args = [TARGET, "--samples", set.as_str(), "--config", DIGITS[3]];
    let with = |key, value| [&args[..], &[key, value]].concat();
    let error = fail(&[&["verify"], &args[..]].concat());
    assert!(error.contains("2 class folders") && error.contains("10 classes") && error.contains("--labels"), "{error}");
    let map = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = map("good.json", r#"{"four": 4, "seven": 7}"#);
    let report = sound(&with("--labels", &good));
    let name = |class: u64| {
        report["accuracy"]["classes"].as_array().unwrap().iter().find(|c| c["class"] == class).unwrap()["name"].clone()
    };
    assert_eq!((name(4), name(7)), (json!("four"), json!("seven")));
    // What PyTorch took the first three of each class for.
    let recorded = expected("predictions.json");
    let taken = |first: usize| recorded["predictions"]["target"].as_array().unwrap()[first..first + 3].to_vec();
    let taken = [taken(4 * 52), taken(7 * 52)].concat();
    let right = |labels: [u64; 6]| taken.iter().zip(labels).filter(|(taken, label)| **taken == json!(label)).count();
    assert_eq!(report["accuracy"]["top1"]["right"], right([4, 4, 4, 7, 7, 7]));
    let beyond = map("beyond.json", r#"{"four": 4, "seven": 17}"#);
    let error = fail(&[&["verify"], &with("--labels", &beyond)[..]].concat());
    assert!(error.contains("seven/") && error.contains("17") && error.contains("(0 to 9)"), "{error}");
    // Taken by their places, they are other digits.
    let report = sound(&with("--class-ids", "places"));
    assert_eq!(report["accuracy"]["top1"]["right"], right([0, 0, 0, 1, 1, 1]));
    // Without labels there is no accuracy, and equivalence works.
    let flat = folder.path().join("set/four").to_str().unwrap().to_owned();
    let report = sound(&["fixtures/mnist_pathway.pth", "--samples", &flat, "--config", DIGITS[3]]);
    assert_eq!((&report["accuracy"], &report["pathway"]["rows"]), (&Value::Null, &json!(3)));
}

#[test]
fn nan_is_a_finding_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let bytes = fs::read(fixture("mnist_vit.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bias: Vec<u8> = (0..10).flat_map(|class| if class == 3 { f32::NAN } else { 0.0 }.to_le_bytes()).collect();
    let bias = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![10], &bias).unwrap();
    let tensors = tensors.tensors().into_iter();
    let tensors = tensors.map(|(name, tensor)| if name == "head.bias" { (name, bias.clone()) } else { (name, tensor) });
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let path = path.to_str().unwrap();
    let args = [&[path, "--against", TARGET, "--limit", "9"], &DIGITS[..]].concat();
    let report = unsound(&args);
    assert_eq!((report["non_finite"].as_array().unwrap().len(), &report["accuracy"]["top1"]["right"]), (9, &json!(0)));
    assert_eq!((&report["accuracy"]["loss"], &report["against"][0]["flips"][0]["model"]), (&Value::Null, &Value::Null));
    let text = run(&[&["verify"], &args[..]].concat());
    assert_eq!(text.status.code(), Some(1));
    assert!(String::from_utf8(text.stdout).unwrap().contains("none (NaN)"));
}

#[test]
fn json_has_the_documented_names() {
    let report = sound(&[&["fixtures/mnist_pathway.pth", "--against", TARGET], &DIGITS[..]].concat());
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(&report),
        "model folded_in_memory inputs unreadable run accuracy against pathway reference non_finite saved sound"
    );
    let model =
        "file root architecture depth width heads patch image channels classes activation pool pathways guesses";
    assert_eq!((keys(&report["model"]), keys(&report["against"][0]["model"])), (model.into(), model.into()));
    assert_eq!(keys(&report["inputs"]), "file samples total preprocessing");
    assert_eq!(keys(&report["inputs"]["preprocessing"]), "input_size crop_pct crop_mode interpolation mean std from");
    assert_eq!(keys(&report["run"]), "images device dtype batch seconds images_per_second elapsed");
    assert_eq!(keys(&report["accuracy"]), "top1 top5 loss classes confusion");
    assert_eq!(keys(&report["accuracy"]["top5"]), "right samples value low high");
    assert_eq!(keys(&report["accuracy"]["loss"]), "mean low high without");
    assert_eq!(keys(&report["accuracy"]["classes"][0]), "class name right samples value predicted low high");
    assert_eq!(keys(&report["accuracy"]["confusion"][0]), "label predicted count");
    assert_eq!(keys(&report["against"][0]), "model seconds accuracy paired flips");
    assert_eq!(
        keys(&report["against"][0]["paired"]),
        "both only_model only_against neither difference p significant low high"
    );
    let distance = "max_abs mean_abs largest relative cosine same_top1 rows unordered tolerance equivalent";
    let pathway = &report["pathway"];
    assert_eq!(keys(pathway), format!("{distance} model aux replaced layers worst first_block blocks"));
    assert_eq!(keys(&pathway["blocks"][0]), format!("{distance} block"));
    let total: u64 =
        report["accuracy"]["confusion"].as_array().unwrap().iter().map(|c| c["count"].as_u64().unwrap()).sum();
    assert_eq!(total, 520);
}

#[test]
fn the_report_is_readable() {
    let folder = tempfile::tempdir().unwrap();
    let merged = fold(folder.path(), "merged.pth", &[TARGET, "--aux", SPEECH, "--lambda", "0.3"]);
    snapshot("verify_accuracy", &[&["verify", TARGET], &DIGITS[..]].concat());
    let against = ["--against", "fixtures/mnist_early.pth", "--top", "3"];
    snapshot("verify_against", &[&["verify", &merged, "--against", TARGET][..], &against, &DIGITS].concat());
    let pathway = ["--pathway", TARGET, "--aux", SPEECH, "--lambda"];
    snapshot("verify_pathway", &[&["verify", &merged][..], &pathway, &["0.3"], &DIGITS[2..]].concat());
    let wrong = run(&[&["verify", &merged], &pathway[..], &["0.1"], &DIGITS[..]].concat());
    let wrong = String::from_utf8(wrong.stdout).unwrap();
    assert!(wrong.contains("Not equivalent to the pathway, from block 0 on."), "{wrong}");
    assert!(wrong.contains("<- the first past the tolerance"), "{wrong}");
}

#[test]
fn refusals_say_what_to_do() {
    let config = &DIGITS[2..];
    for (args, words) in [
        (&[TARGET][..], &["nothing to verify", "--samples"][..]),
        (&[TARGET, "--against", TARGET], &["only be compared on samples"]),
        (&[TARGET, "--pathway", "fixtures/mnist_early.pth"], &["mnist_early.pth", "--aux"]),
        (&[TARGET, "--pathway", TARGET, "--aux", SPEECH], &["speech_vit.pth", "--lambda"]),
        (&[TARGET, "--aux", SPEECH], &["--pathway"]),
        (&[TARGET, "--samples", "fixtures/mnist", "--device", "tpu"], &["cpu, cuda, cuda:N, auto"]),
        (&[TARGET, "--samples", "fixtures/mnist", "--input-size", "40"], &["40 x 40"]),
        (&[TARGET, "--samples", "fixtures/mnist", "--save-logits", "a.csv"], &["a.csv", ".npz"]),
        (&[TARGET, "--samples", "fixtures/mnist", "--save-logits", TARGET], &["mnist_vit.pth", ".npz"]),
        (&[TARGET, "--samples", "fixtures/none"], &["fixtures/none"]),
        (&[TARGET, "--samples", "fixtures/mnist", "--std", "0"], &["std", "not 0"]),
        (&[TARGET, "--reference", "fixtures/expected/logits.safetensors"], &["target", "--reference-array"]),
        (
            &[TARGET, "--reference", "fixtures/expected/logits.safetensors", "--reference-array", "early"],
            &["--samples"],
        ),
        (&["fixtures/layouts/dtypes.pth", "--samples", "fixtures/mnist"], &["dtypes.pth", "patch_embed"]),
        (&[SPEECH, "--samples", "fixtures/mnist"], &["speech_vit.pth"]),
    ] {
        let stderr = fail(&[&["verify"], args, config].concat());
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is not in {stderr}");
        }
    }
    let unknown = fail(&["verify", TARGET, "--samples", "fixtures/mnist", "--arch", "vit_bse_patch16_224"]);
    assert!(unknown.contains("vit_base_patch16_224"), "{unknown}");
    let guessed = run(&["verify", TARGET, "--samples", "fixtures/mnist", "--limit", "2"]);
    let stderr = String::from_utf8(guessed.stderr).unwrap();
    assert!(stderr.contains("--heads") && stderr.contains("no architecture of timm"), "{stderr}");
    assert!(String::from_utf8(guessed.stdout).unwrap().contains("guessed: timm's defaults"));
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("logits.npz");
    let save = [&["verify", TARGET, "--limit", "2", "--save-logits", saved.to_str().unwrap()], &DIGITS[..]].concat();
    succeed(&save);
    assert!(fail(&save).contains("--force"));
    succeed(&[&save[..], &["--force"]].concat());
}
