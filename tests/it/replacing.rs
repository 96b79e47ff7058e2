//! `fold --replace`: tensors of another file in place of the target's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;

use m2pt_surgery::{Checkpoint, DType, Error, FoldProblem, FoldRequest, LambdaSpec, NonFiniteOrigin, RootChoice};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::bench::{Bench, Tensor, model, tied, to_safetensors, values};
use crate::commands::snapshot;
use crate::support::{digests, expected, fixture, recorded};

const FOLD: [&str; 6] = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1"];

type Digests = BTreeMap<String, (String, Vec<u64>, String)>;

/// Type, shape and hash of each tensor of a file, by name.
fn tensors(path: &std::path::Path) -> Digests {
    let checkpoint = Checkpoint::open(path).unwrap();
    let found = digests(&checkpoint.state_dict(&RootChoice::Auto).unwrap());
    found.into_iter().map(|(name, dtype, shape, hash)| (name, (dtype, shape, hash))).collect()
}

/// Values that no fixture has.
fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.731 + 0.2).cos() * 3.0).collect();
    Tensor { name: name.into(), shape: shape.to_vec(), values }
}

/// A head and a norm of the digit model.
fn trained() -> Vec<Tensor> {
    vec![tensor("head.weight", &[10, 64]), tensor("blocks.3.norm1.weight", &[64]), tensor("head.bias", &[10])]
}

/// Some tensors of a checkpoint, as safetensors.
fn part(from: &std::path::Path, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let checkpoint = Checkpoint::open(from).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let found = tensors.specs().iter().enumerate().filter(|(_, spec)| wanted(&spec.name));
    let found: Vec<_> =
        found.map(|(index, spec)| (spec.clone(), tensors.tensor(index).unwrap().view().to_vec())).collect();
    let views = found.iter().map(|(spec, bytes)| {
        let dtype = if spec.dtype == DType::F16 { Dtype::F16 } else { Dtype::F32 };
        (spec.name.clone(), TensorView::new(dtype, spec.shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

#[test]
fn replaced_tensors_are_those_of_the_file_and_all_others_those_of_the_fold() {
    let bench = Bench::new();
    let file = to_safetensors(&trained());
    bench.put("trained.safetensors", &file);
    for output in ["out/a.pth", "out/a.safetensors"] {
        bench.works(&[&FOLD[..], &["-o", output]].concat());
        let plain = tensors(&bench.path(output));
        bench.works(&[&FOLD[..], &["--replace", "trained.safetensors", "--force", "-o", output]].concat());
        let found = tensors(&bench.path(output));
        let from = tensors(&bench.path("trained.safetensors"));
        assert_eq!((found.len(), from.len()), (80, 3));
        for (name, digest) in &found {
            assert_eq!(digest, from.get(name).unwrap_or(&plain[name]), "{name} of {output}");
        }
        assert!(from.iter().all(|(name, digest)| plain[name] != *digest));
    }
    // The safetensors library reads the numbers that the test made.
    for wanted in trained() {
        assert_eq!(values(&bench.read("out/a.safetensors"), &wanted.name), wanted.values);
    }
}

#[test]
fn a_file_that_replaces_everything_is_the_target() {
    let bench = Bench::new();
    bench.put("early.pth", &fs::read(fixture("mnist_early.pth")).unwrap());
    let rest = ["--aux", "speech.pth", "--lambda", "qkv=0.3,fc2=-0.2", "--bias", "fold", "--no-metadata"];
    for output in ["out/a.pth", "out/a.safetensors"] {
        let rest = if output.ends_with(".pth") { &rest[..6] } else { &rest[..] };
        // Linear layers and their biases are replaced first, and folded then.
        bench.works(&[&["fold", "vit.pth", "--replace", "early.pth", "-o", output], rest].concat());
        let replaced = bench.read(output);
        bench.works(&[&["fold", "early.pth", "--force", "-o", output], rest].concat());
        assert!(replaced == bench.read(output), "{output}");
    }
}

#[test]
fn types_are_those_of_the_file_unless_they_are_cast() {
    let bench = Bench::new();
    bench.put("half.pth", &fs::read(fixture("mnist_vit_f16.pth")).unwrap());
    let chosen = |name: &str| name.starts_with("head.") || name == "blocks.2.attn.qkv.weight";
    bench.put("wide.safetensors", &part(&fixture("mnist_vit.pth"), chosen));
    let args = ["fold", "half.pth", "--aux", "speech.pth", "--lambda", "0.1", "--force", "-o", "out/a.pth"];
    bench.works(&args);
    let half = tensors(&bench.path("out/a.pth"));
    bench.works(&[&["fold", "vit.pth"], &args[2..]].concat());
    let wide = tensors(&bench.path("out/a.pth"));
    let replacing = [&args[..], &["--replace", "wide.safetensors"]].concat();
    let note = bench.works(&replacing);
    let said = "of type float32 in wide.safetensors and float16 in half.pth, and written as float32: ";
    assert!(note.contains(said) && note.contains("blocks.2.attn.qkv.weight, head.weight, head.bias"), "{note}");
    let found = tensors(&bench.path("out/a.pth"));
    for (name, digest) in &found {
        assert_eq!(*digest, if chosen(name) { &wide } else { &half }[name], "{name}");
    }
    // PyTorch's rounding of the same numbers is the fixture.
    let note = bench.works(&[&replacing[..], &["--dtype", "float16"]].concat());
    assert!(!note.contains("written as"), "{note}");
    let (found, rounded) = (tensors(&bench.path("out/a.pth")), tensors(&bench.path("half.pth")));
    for name in ["head.weight", "head.bias"] {
        assert_eq!(found[name], rounded[name]);
    }
}

#[test]
fn names_may_lack_what_all_of_the_target_begin_with() {
    let bench = Bench::new();
    bench.put("target.safetensors", &to_safetensors(&model("module.vit.", 32, 2)));
    bench.put("aux.safetensors", &to_safetensors(&model("", 32, 2)));
    let args = ["fold", "target.safetensors", "--aux", "aux.safetensors", "--lambda", "0.1", "--force", "-o"];
    for prefix in ["", "vit.", "module.vit."] {
        let wanted = tensor(&format!("{prefix}head.weight"), &[10, 32]);
        bench.put("trained.safetensors", &to_safetensors(std::slice::from_ref(&wanted)));
        let note = bench.works(&[&args[..], &["out/a.safetensors", "--replace", "trained.safetensors"]].concat());
        let missing = format!("without the {:?} before them", &"module.vit."[..11 - prefix.len()]);
        assert_eq!(note.contains(&missing), prefix.len() < 11, "{note}");
        assert_eq!(values(&bench.read("out/a.safetensors"), "module.vit.head.weight"), wanted.values);
    }
    // One name of two is not enough.
    bench.put("trained.safetensors", &to_safetensors(&[tensor("head.weight", &[10, 32]), tensor("other", &[1])]));
    bench.refused(&[&args[..], &["out/b.pth", "--replace", "trained.safetensors"]].concat(), &["other"]);
}

/// Three tensors of one storage, of which `other.0` is replaced: the others keep their numbers, and share them as before.
#[test]
fn what_shares_its_storage_with_a_replaced_tensor_stays_as_it_is() {
    let bench = Bench::new();
    let own: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let names = |count: usize| (0..count).map(|number| format!("other.{number}")).collect::<Vec<_>>();
    bench.put("tied.pth", &tied(&[names(3), vec!["h.0.fc1".into()]].concat(), &own));
    let pattern =
        ["--target-pattern", r"h\.(?<block>\d+)\.(?<fc1>fc1)", "--aux-pattern", r"h\.(?<block>\d+)\.(?<fc1>fc1)"];
    let args = ["fold", "tied.pth", "--aux", "tied.pth", "--lambda", "1", "--force", "-o", "out/a.pth", "--replace"];
    let fold = |file: &str| bench.works(&[&args[..], &[file], &pattern].concat());
    let bits = |name: &str| {
        let checkpoint = Checkpoint::open(bench.path("out/a.pth")).unwrap();
        let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
        let index = tensors.find(name).unwrap();
        (tensors.placement(index).storage, tensors.tensor(index).unwrap().view().to_vec())
    };
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();

    let new = tensor("other.0", &[1000]);
    bench.put("trained.safetensors", &to_safetensors(std::slice::from_ref(&new)));
    let note = fold("trained.safetensors");
    assert!(note.contains("replaced, and written apart from the others of a storage in tied.pth: other.0;"), "{note}");
    let [first, second, third, folded] = ["other.0", "other.1", "other.2", "h.0.fc1"].map(bits);
    assert_eq!((&first.1, &second.1), (&bytes(&new.values), &bytes(&own)));
    assert_eq!(second, third);
    assert!(first.0 != second.0 && folded.0 != second.0);
    assert_eq!(folded.1, bytes(&own.iter().map(|value| value + value).collect::<Vec<_>>()));

    // All of those that are kept, by a file where they are apart, and by one where they share.
    let all: Vec<Tensor> = (0..3).map(|number| tensor(&format!("other.{number}"), &[1000])).collect();
    bench.put("trained.safetensors", &to_safetensors(&all));
    fold("trained.safetensors");
    let [first, second, third] = ["other.0", "other.1", "other.2"].map(bits);
    assert!(first.0 != second.0 && second.0 != third.0 && first.1 == second.1 && first.1 == bytes(&all[0].values));
    bench.put("trained.pth", &tied(&names(3), &all[0].values));
    fold("trained.pth");
    assert_eq!([bits("other.1"), bits("other.2")], [bits("other.0"), bits("other.0")]);
    assert_eq!(bits("other.0").1, bytes(&all[0].values));
}

#[test]
fn learned_lambdas_and_auxiliary_weights_are_replaced_before_the_fold() {
    let bench = Bench::new();
    bench.put("pathway.pth", &fs::read(fixture("mnist_pathway.pth")).unwrap());
    let name = "blocks.4.mlp.fc1.cross_modal_scale";
    let scale = |value: f32| to_safetensors(&[Tensor { name: name.into(), shape: vec![1], values: vec![value] }]);
    let fold = ["fold", "pathway.pth", "--force", "-o", "out/a.pth"];
    let replacing = [&fold[..], &["--replace", "scale.safetensors"]].concat();
    bench.put("scale.safetensors", &scale(0.0));
    bench.works(&replacing);
    let (found, own) = (tensors(&bench.path("out/a.pth")), tensors(&bench.path("pathway.pth")));
    let cases = expected("folds.json");
    let learned = cases.as_array().unwrap().iter().find(|case| case["name"] == "learned").unwrap();
    // PyTorch's fold with its own lambdas, but for the one that is now 0.
    for (name, dtype, shape, hash) in recorded(&learned["tensors"]) {
        let wanted = (dtype, shape, hash);
        assert_eq!(found[&name], if name == "blocks.4.mlp.fc1.weight" { own[&name].clone() } else { wanted }, "{name}");
    }
    bench.put("scale.safetensors", &scale(f32::NAN));
    bench.refused(&replacing, &["scale.safetensors", name, "one finite number"]);
}

#[test]
fn refusals_name_files_and_tensors() {
    let bench = Bench::new();
    let fold = [&FOLD[..], &["-o", "out/a.pth", "--replace", "trained.safetensors"]].concat();
    let refused = |file: &[u8], phrases: &[&str]| {
        bench.put("trained.safetensors", file);
        bench.refused(&fold, phrases);
        bench.refused(&[&fold[..], &["--dry-run"]].concat(), phrases);
    };
    let one = |name: &str, shape: &[usize]| to_safetensors(&[tensor(name, shape)]);
    refused(
        &one("head.wieght", &[10, 64]),
        &[
            "trained.safetensors has tensors of names that vit.pth has not: head.wieght (near it is head.weight)",
            "--replace-root",
        ],
    );
    refused(
        &one("head.weight", &[12, 64]),
        &["head.weight is float32 [12, 64] in trained.safetensors, but float32 [10, 64] in vit.pth"],
    );
    let integers = TensorView::new(Dtype::I32, vec![10], &[0; 40]).unwrap();
    refused(
        &serialize([("head.bias", integers)], None).unwrap(),
        &["head.bias is int32 [10] in trained.safetensors, but float32 [10] in vit.pth"],
    );
    refused(b"no checkpoint", &["trained.safetensors"]);
    let many: Vec<Tensor> = (0..20).map(|number| tensor(&format!("unknown.{number:02}"), &[1])).collect();
    refused(&to_safetensors(&many), &["unknown.07 and 12 more"]);
    fs::remove_file(bench.path("trained.safetensors")).unwrap();
    bench.refused(&fold, &["trained.safetensors"]);
    bench.refused(&[&FOLD[..], &["-o", "out/a.pth", "--replace-root", "x"]].concat(), &["--replace"]);
    bench.put("nested.pth", &fs::read(fixture("layouts/ema_only.pth")).unwrap());
    bench.refused(
        &[&FOLD[..], &["-o", "out/a.pth", "--replace", "nested.pth"]].concat(),
        &["nested.pth", "name them with --replace-root"],
    );
    // It replaces nothing where there is nothing to fold.
    bench.put("trained.safetensors", &one("head.bias", &[10]));
    bench.refused(
        &["fold", "vit.pth", "--replace", "trained.safetensors", "-o", "out/a.pth"],
        &["a fold needs an auxiliary"],
    );
}

#[test]
fn the_library_refuses_a_part_of_no_file() {
    let mut request = FoldRequest::new(fixture("mnist_vit.pth"), "unwritten.pth").unwrap();
    request.add_aux(fixture("speech_vit.pth"));
    request.lambda = LambdaSpec::parse("0.1").ok();
    request.replace_root = RootChoice::Path("model".into());
    let Err(Error::Fold(problem)) = request.open().unwrap().plan().map(drop) else { panic!("it is planned") };
    assert!(matches!(*problem, FoldProblem::Unused { option: "--replace-root", .. }));
}

#[test]
fn nan_is_found_in_the_file_that_it_is_in() {
    let bench = Bench::new();
    let mut tensors = vec![tensor("head.weight", &[10, 64])];
    tensors[0].values[7] = f32::NAN;
    bench.put("trained.safetensors", &to_safetensors(&tensors));
    // Two in one storage: a run of elements, where each is looked at by itself.
    bench.put("trained.pth", &tied(&["norm.weight".into(), "norm.bias".into()], &[f32::INFINITY; 64]));
    for (file, name, output) in [
        ("trained.safetensors", "head.weight", "out/a.pth"),
        ("trained.safetensors", "head.weight", "out/a.safetensors"),
        ("trained.pth", "norm.weight", "out/a.pth"),
    ] {
        let fold = [&FOLD[..], &["--replace", file, "-o", output]].concat();
        let source = format!("{name:?} of {file} holds some");
        bench.refused(&fold, &[&format!("{name:?} would hold NaN or infinity"), &source]);
    }
    let mut request = FoldRequest::new(bench.path("vit.pth"), bench.path("out/a.pth")).unwrap();
    request.add_aux(bench.path("speech.pth"));
    request.lambda = LambdaSpec::parse("0.1").ok();
    request.replace = Some(bench.path("trained.safetensors"));
    let inputs = request.open().unwrap();
    match inputs.plan().unwrap().run(&mut ()) {
        Err(Error::NonFinite { origin: NonFiniteOrigin::Input { path, tensor }, .. }) => {
            assert_eq!((path, tensor.as_str()), (bench.path("trained.safetensors"), "head.weight"));
        }
        other => panic!("{other:?}"),
    }
    let allowed = [&FOLD[..], &["--replace", "trained.safetensors", "-o", "out/a.safetensors", "--allow-non-finite"]];
    bench.works(&allowed.concat());
    assert!(values(&bench.read("out/a.safetensors"), "head.weight")[7].is_nan());
}

#[test]
fn a_file_that_changes_is_an_error_and_the_output_may_take_its_place() {
    let bench = Bench::new();
    let file = to_safetensors(&trained());
    bench.put("trained.safetensors", &file);
    let mut request = FoldRequest::new(bench.path("vit.pth"), bench.path("out/a.pth")).unwrap();
    request.add_aux(bench.path("speech.pth"));
    request.lambda = LambdaSpec::parse("0.1").ok();
    request.replace = Some(bench.path("trained.safetensors"));
    let inputs = request.open().unwrap();
    let fold = inputs.plan().unwrap();
    let mut open = OpenOptions::new().append(true).open(bench.path("trained.safetensors")).unwrap();
    open.write_all(b"more").unwrap();
    drop(open);
    match fold.run(&mut ()) {
        Err(Error::Changed { path, .. }) => assert_eq!(path, bench.path("trained.safetensors")),
        other => panic!("{other:?}"),
    }
    assert!(bench.out().is_empty());

    bench.put("trained.safetensors", &file);
    let fold = |output: &str, more: &[&str]| {
        bench.works(&[&FOLD[..], &["--replace", "trained.safetensors", "-o", output], more].concat());
    };
    fold("out/a.safetensors", &[]);
    fold("trained.safetensors", &["--force"]);
    assert!(bench.read("trained.safetensors") == bench.read("out/a.safetensors"));
}

#[test]
fn parts_of_a_fold_have_the_file_among_their_inputs() {
    let bench = Bench::new();
    bench.put("trained.safetensors", &to_safetensors(&trained()));
    let fold = |output: &'static str, more: &[&'static str]| {
        let args = ["--replace", "trained.safetensors", "--max-shard-size", "200KB", "-o", output];
        [&FOLD[..], &args, more].concat()
    };
    bench.works(&fold("whole", &[]));
    bench.works(&fold("parts", &["--shard", "1/2"]));
    let other = [tensor("head.weight", &[10, 64])];
    bench.put("trained.safetensors", &to_safetensors(&other));
    bench.refused(&fold("parts", &["--shard", "2/2"]), &["plan of another fold", "inputs"]);
    bench.refused(&fold("parts", &["--resume"]), &["plan of another fold", "inputs"]);
    let without = [&FOLD[..], &["--max-shard-size", "200KB", "-o", "parts", "--resume"]].concat();
    bench.refused(&without, &["plan of another fold", "inputs"]);
    bench.put("trained.safetensors", &to_safetensors(&trained()));
    bench.works(&fold("parts", &["--shard", "2/2"]));
    bench.works(&["join", "parts"]);
    bench.works(&fold("resumed", &["--resume"]));
    let files = |folder: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(bench.path(folder)).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    };
    let whole = files("whole");
    assert!(whole.len() > 6 && whole == files("parts") && whole == files("resumed"));
}

#[test]
fn provenance_and_json_name_the_file() {
    let bench = Bench::new();
    let file = to_safetensors(&trained());
    bench.put("trained.safetensors", &file);
    let names = json!(["blocks.3.norm1.weight", "head.weight", "head.bias"]);
    let fold =
        [&FOLD[..], &["--replace", "trained.safetensors", "-o", "out/a.safetensors", "--report", "--json"]].concat();
    let sizes = [true, false].map(|dry| {
        let dry = if dry { &["--dry-run"][..] } else { &["--hash-inputs"] };
        let output = bench.run(&[&fold[..], dry].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let replaced = json!({"file": "trained.safetensors", "root": "", "tensors": names, "outside": 0});
        assert_eq!(report["replaced"], replaced);
        report["output"]["bytes"].clone()
    });
    assert_eq!(sizes[0], sizes[1], "a dry run tells the size");
    assert_eq!(sizes[0], bench.read("out/a.safetensors").len());
    let mut sidecar: Value = serde_json::from_slice(&bench.read("out/a.safetensors.json")).unwrap();
    // What computed is in no header: the bytes are the same.
    assert_eq!(sidecar.as_object_mut().unwrap().remove("device"), Some("cpu".into()));
    let hash = m2pt_surgery::tensor::sha256_bytes(&file);
    let wanted = json!({"role": "replacement", "sha256": hash, "root": "", "tensors": names});
    let roles =
        |record: &Value| record["inputs"].as_array().unwrap().iter().map(|i| i["role"].clone()).collect::<Vec<_>>();
    assert_eq!(
        (&sidecar["inputs"][2], roles(&sidecar)),
        (&wanted, vec!["target".into(), "auxiliary".into(), "replacement".into()])
    );
    let written = bench.read("out/a.safetensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&written).unwrap();
    let header: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["m2pt_surgery"]).unwrap();
    assert_eq!(header, sidecar);
}

/// The trainable form of such a fold has the replaced tensors as well, and folds to the same.
#[test]
fn a_graft_of_the_library_folds_to_the_same() {
    let bench = Bench::new();
    bench.put("trained.safetensors", &to_safetensors(&trained()));
    let mut request = FoldRequest::new(bench.path("vit.pth"), bench.path("out/grafted.safetensors")).unwrap();
    request.add_aux(bench.path("speech.pth"));
    request.lambda = LambdaSpec::parse("0.1").ok();
    request.replace = Some(bench.path("trained.safetensors"));
    request.run.hash_inputs = true;
    let inputs = request.open().unwrap();
    let graft = inputs.graft().unwrap();
    let report = graft.run(&mut ()).unwrap();
    let written = bench.read("out/grafted.safetensors");
    assert_eq!(report.file_bytes, written.len() as u64, "what is planned is what is written");
    let hash = m2pt_surgery::tensor::sha256_bytes(&bench.read("trained.safetensors"));
    assert!(String::from_utf8_lossy(&written).contains(&hash));
    bench.works(&["fold", "out/grafted.safetensors", "-o", "out/a.pth"]);
    bench.works(&[&FOLD[..], &["--replace", "trained.safetensors", "-o", "out/b.pth"]].concat());
    assert_eq!(tensors(&bench.path("out/a.pth")), tensors(&bench.path("out/b.pth")));
}

#[test]
fn reads_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trained_head = at("trained.safetensors");
    fs::write(
        &trained_head,
        to_safetensors(&[trained(), vec![tensor("blocks.0.attn.qkv.weight", &[192, 64])]].concat()),
    )
    .unwrap();
    let output = at("merged.pth");
    let fold = ["fold", "fixtures/mnist_vit.pth", "--aux", "fixtures/speech_vit.pth", "--lambda", "0.1"];
    let fold = [&fold[..], &["--replace", &trained_head, "-o", &output]].concat();
    snapshot("fold_replace_dry_run", &[&fold[..], &["--dry-run", "--blocks", "0", "--layers", "qkv"]].concat());
    snapshot("fold_replace", &fold);
    for (name, tensors) in [
        ("names", vec![tensor("head.wieght", &[10, 64]), tensor("cls", &[1])]),
        ("shape", vec![tensor("head.weight", &[12, 64])]),
    ] {
        fs::write(&trained_head, to_safetensors(&tensors)).unwrap();
        snapshot(&format!("fold_replace_{name}"), &[&fold[..], &["--force"]].concat());
    }
}

#[cfg(feature = "verify")]
#[test]
fn verify_compares_with_the_pathway_whose_tensors_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (trained_head, merged) = (at("trained.safetensors"), at("merged.pth"));
    fs::write(&trained_head, to_safetensors(&trained())).unwrap();
    let how = ["--aux", "fixtures/speech_vit.pth", "--lambda", "0.3"];
    let replace = ["--replace", &trained_head];
    crate::support::succeed(&[&["fold", "fixtures/mnist_vit.pth", "-o", &merged], &how[..], &replace].concat());
    let config = ["--config", "fixtures/digits.json", "--quiet"];
    let verify = |more: &[&str]| {
        let args = [&["verify", &merged, "--pathway", "fixtures/mnist_vit.pth"], &how[..], &config, more].concat();
        crate::support::run(&args)
    };
    let sound = verify(&[&replace[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&sound.stdout).unwrap();
    assert_eq!((sound.status.code(), &report["sound"]), (Some(0), &json!(true)));
    let names = ["blocks.3.norm1.weight", "head.weight", "head.bias"];
    assert_eq!(report["pathway"]["replaced"], json!({"file": trained_head, "tensors": names}));
    let text = String::from_utf8(verify(&replace).stdout).unwrap();
    assert!(text.contains("trained.safetensors  3 tensors of the pathway"), "{text}");
    // The pathway as it was is another model.
    let without = verify(&[]);
    assert_eq!(without.status.code(), Some(1), "{}", String::from_utf8_lossy(&without.stdout));
}
