//! Writing: what lands on the disk, byte for byte.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use m2pt_surgery::Checkpoint;
use serde_json::{Value, json};

use crate::support::{Digest, digests, expected, fixture, recorded, succeed, whole};

const FOLD: [&str; 6] = ["fold", "fixtures/mnist_vit.pth", "--aux", "fixtures/speech_vit.pth", "--lambda", "0.1"];

fn fold(output: &Path, more: &[&str]) {
    let output = output.to_str().unwrap();
    succeed(&[&FOLD[..], &["-o", output], more].concat());
}

#[test]
fn pth_archives_are_whole_aligned_and_laid_out_as_pytorchs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.pth");
    fold(&path, &[]);
    let bytes = std::fs::read(&path).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
    let mut names = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{name}");
        assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
        // Reading to the end verifies the checksum.
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        match name.as_str() {
            "archive/version" => assert_eq!(data, b"3\n"),
            "archive/byteorder" => assert_eq!(data, b"little"),
            "archive/.format_version" => assert_eq!(data, b"1"),
            "archive/.storage_alignment" => assert_eq!(data, b"64"),
            _ => {}
        }
        names.push(name);
    }
    let front = ["data.pkl", ".format_version", ".storage_alignment", "byteorder", "data/0", "data/1"];
    assert_eq!(names[..6], front.map(|name| format!("archive/{name}")));
    assert_eq!(names.last().unwrap(), "archive/version");
    assert_eq!(names.len(), 4 + 80 + 1);
}

#[test]
fn safetensors_files_are_read_by_the_safetensors_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.safetensors");
    fold(&path, &["--hash-inputs"]);
    let bytes = std::fs::read(&path).unwrap();
    let (size, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((8 + size) % 8, 0, "the data is aligned");
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let recorded = std::fs::read(fixture("expected/folded_0.1.safetensors")).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&recorded).unwrap();
    assert_eq!(theirs.len(), recorded.len());
    for (name, tensor) in theirs.tensors() {
        assert_eq!(tensor.data(), recorded.tensor(&name).unwrap().data(), "{name}");
    }
    let metadata = metadata.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "pt");
    let provenance: Value = serde_json::from_str(&metadata["m2pt_surgery"]).unwrap();
    assert_eq!(provenance["lambdas"]["blocks.0.attn.qkv.weight"], json!(0.1));
    assert_eq!(provenance["lambdas"].as_object().unwrap().len(), 24);
    // sha256sum fixtures/mnist_vit.pth fixtures/speech_vit.pth
    let hashes = [HASH_TARGET, HASH_AUX];
    for (input, hash) in provenance["inputs"].as_array().unwrap().iter().zip(hashes) {
        assert_eq!(input["sha256"], hash);
    }
    assert!(!metadata["m2pt_surgery"].contains("fixtures"), "no paths");
}

/// By `sha256sum`.
const HASH_TARGET: &str = "a2a5314cbcdfc8b281de561d9e05080436f32676bf4b9349663578e56d70591a";
/// By `sha256sum`.
const HASH_AUX: &str = "4c58450744a288eb8702d2ebe29cb2176b623cb730efe51fd6efa0b70c97988a";

#[test]
fn metadata_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.safetensors");
    fold(&path, &["--no-metadata"]);
    let values = Checkpoint::open(&path).unwrap().values();
    assert_eq!(Value::Object(values), json!({"__metadata__": {"format": "pt"}}));
}

#[test]
fn the_sidecar_holds_the_provenance() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.pth");
    fold(&path, &["--report"]);
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("merged.pth.json")).unwrap()).unwrap();
    let input = |role, hash, root, family| json!({"role": role, "sha256": hash, "root": root, "family": family, "pattern": null});
    assert_eq!(report["inputs"][0], input("target", HASH_TARGET, "", "timm"));
    assert_eq!(report["inputs"][1], input("auxiliary", HASH_AUX, "model", "audio-mae"));
    assert_eq!(report["options"]["bias"], "keep");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn provenance_tells_the_lambdas_of_several_auxiliaries_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.pth");
    let (qkv, all) = ("fixtures/speech_vit.pth=qkv=0.1", "fixtures/mnist_early.pth=0.2");
    let output = path.to_str().unwrap();
    succeed(&["fold", "fixtures/mnist_vit.pth", "--aux", qkv, "--aux", all, "--report", "-o", output]);
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("merged.pth.json")).unwrap()).unwrap();
    let (first, second) = (json!({"input": 1, "lambda": 0.1}), json!({"input": 2, "lambda": 0.2}));
    assert_eq!(report["lambdas"]["blocks.0.attn.qkv.weight"], json!([first, second]));
    assert_eq!(report["lambdas"]["blocks.0.mlp.fc1.weight"], json!([second]));
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    for extension in ["pth", "safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) =
            (folder.path().join(format!("a.{extension}")), folder.path().join(format!("b.{extension}")));
        fold(&first, &["--report"]);
        fold(&second, &["--report"]);
        assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "{extension}");
        let sidecar = |name: &str| std::fs::read(folder.path().join(format!("{name}.{extension}.json"))).unwrap();
        assert_eq!(sidecar("a"), sidecar("b"));
    }
}

#[test]
fn the_output_may_be_the_target() {
    let cases = expected("folds.json");
    let case = &cases.as_array().unwrap()[0];
    assert_eq!(case["name"], "lambda 0.1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    std::fs::copy(fixture("mnist_vit.pth"), &path).unwrap();
    let name = path.to_str().unwrap();
    succeed(&["fold", name, "--aux", "fixtures/speech_vit.pth", "--lambda", "0.1", "-o", name, "--force"]);
    assert_eq!(digests(&whole(&Checkpoint::open(&path).unwrap())), recorded(&case["tensors"]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Which names share a storage, as sorted groups.
fn sharing(path: &Path) -> Vec<Vec<String>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = whole(&checkpoint);
    let mut groups = BTreeMap::<usize, Vec<String>>::new();
    for (index, spec) in tensors.specs().iter().enumerate() {
        if spec.numel() > 0 {
            groups.entry(tensors.placement(index).storage).or_default().push(spec.name.clone());
        }
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

/// The layers of the part of `nested.pth` that occurs twice, once as `same`.
const LAYER: &str = r"^state_dict\.blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight$";

#[test]
fn shared_storages_stay_shared_in_pth_and_are_copied_in_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let original = fixture("layouts/nested.pth");
    let run = |name: &str, lambda: &str| {
        let (source, path) = ("fixtures/layouts/nested.pth", folder.path().join(name));
        let (target, aux) = (["--root", "", "--target-pattern", LAYER], ["--aux-root", "", "--aux-pattern", LAYER]);
        let rest = ["--lambda", lambda, "-o", path.to_str().unwrap()];
        succeed(&[&["fold", source, "--aux", source][..], &target, &aux, &rest].concat());
        path
    };
    let digests = |path: &Path| digests(&whole(&Checkpoint::open(path).unwrap()));
    assert_eq!(sharing(&original).len(), 32, "each tensor of `state_dict` is also one of `same`");
    let pth = run("zero.pth", "0");
    assert_eq!(sharing(&pth), sharing(&original));
    assert_eq!(digests(&pth), digests(&original));
    let flat = run("zero.safetensors", "0");
    assert_eq!(digests(&flat), digests(&original));
    assert_eq!(sharing(&flat), Vec::<Vec<String>>::new());

    // Folded tensors leave what they shared with tensors that are not folded, and those keep their values.
    let half = run("half.pth", "0.5");
    assert_eq!(sharing(&half).len(), 32 - 8);
    let apart = |(before, after): (&Digest, &Digest)| {
        assert_eq!(before.0, after.0);
        (before.3 != after.3).then(|| before.0.clone())
    };
    let (before, after) = (digests(&original), digests(&half));
    let changed: Vec<String> = before.iter().zip(&after).filter_map(apart).collect();
    assert_eq!(changed.len(), 8);
    assert!(changed.iter().all(|name| name.starts_with("state_dict.blocks.")));
}
