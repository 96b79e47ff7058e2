//! Outputs in several files, as Hugging Face splits them; and tensors under a key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use m2pt_surgery::Checkpoint;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::support::{digests, expected, fixture, recorded, succeed, whole};

const FOLD: [&str; 6] = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1"];

fn fold<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FOLD, more].concat()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The layers of the part of `nested.pth` that occurs twice, once as `same`.
const LAYER: &str = r"^state_dict\.blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight$";

/// A fold by 0 of a fixture, which changes nothing, into a folder that it makes.
fn split(name: &str, format: &str, size: &str, folder: &Path) {
    let path = fixture(name);
    let file = path.to_str().unwrap();
    let whole: &[&str] = match name {
        "layouts/nested.pth" => {
            &["--root", "", "--target-pattern", LAYER, "--aux-root", "", "--aux-pattern", LAYER, "--quiet"]
        }
        _ => &[],
    };
    let output = ["-o", folder.to_str().unwrap(), "--max-shard-size", size, "--format", format];
    succeed(&[&["fold", file, "--aux", file, "--lambda", "0"], &output[..], whole].concat());
}

#[test]
fn files_and_index_are_those_of_huggingface_hub() {
    let cases = expected("shards.json");
    let tensors = expected("tensors.json");
    assert_eq!(cases.as_array().unwrap().len(), 5);
    for case in cases.as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let (file, size) = (text("file"), text("max_shard_size"));
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("made");
        split(file, text("format"), size, &folder);
        assert_eq!(json!(names(&folder)), case["files"], "{file} {size}");
        let index = names(&folder).into_iter().find(|name| name.ends_with(".index.json"));
        let index: Option<Value> =
            index.map(|name| serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap());
        assert_eq!(index.unwrap_or_default(), case["index"], "{file} {size}");
        // Read by ourselves, it is what PyTorch reads of the original.
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let (mut ours, mut theirs) = (digests(&whole(&checkpoint)), recorded(&tensors[file]));
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{file} {size}");
    }
}

#[test]
fn every_safetensors_shard_is_read_by_the_safetensors_library() {
    let bench = Bench::new();
    bench.works(&fold(&["--max-shard-size", "200KB", "-o", "out"]));
    bench.works(&fold(&["-o", "alone.safetensors"]));
    let alone = bench.read("alone.safetensors");
    let recorded = fs::read(fixture("expected/folded_0.1.safetensors")).unwrap();
    let recorded = SafeTensors::deserialize(&recorded).unwrap();
    let (_, header) = SafeTensors::read_metadata(&alone).unwrap();
    let index: Value = serde_json::from_slice(&bench.read("out/model.safetensors.index.json")).unwrap();
    let mut listed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in index["weight_map"].as_object().unwrap() {
        listed.entry(shard.as_str().unwrap()).or_default().insert(tensor);
    }
    assert_eq!(listed.len(), 7);
    for (shard, tensors) in listed {
        let bytes = bench.read(&format!("out/{shard}"));
        let (_, own) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(own.metadata(), header.metadata(), "provenance is in every shard");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.names().into_iter().collect::<BTreeSet<_>>(), tensors, "{shard}");
        for (name, tensor) in file.tensors() {
            assert_eq!(tensor.data(), recorded.tensor(&name).unwrap().data(), "{name}");
        }
    }
}

#[test]
fn a_name_of_a_file_is_what_names_of_shards_are_made_of() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "alone.pth"]));
    for (output, flags, expected) in [
        (
            "out/a.safetensors",
            &[][..],
            ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "a.safetensors"],
        ),
        ("out/a.v2.pth", &[], ["a.v2-00001-of-00002.pth", "a.v2-00002-of-00002.pth", "a.v2.pth"]),
        (
            "out",
            &["--format", "pth"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin"],
        ),
        ("new/", &[], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors"]),
        (
            "new.bin/",
            &[],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin"],
        ),
    ] {
        let folder = output.split('/').next().unwrap();
        let [first, second, whole] = expected;
        let args = fold(&[&["--max-shard-size", "1MB", "-o", output], flags].concat());
        let dry = fold(&[&["--max-shard-size", "1MB", "--dry-run", "-o", output], flags].concat());
        let before = bench.snapshot();
        bench.works(&dry);
        assert!(bench.snapshot() == before, "a dry run writes nothing");
        bench.works(&args);
        assert_eq!(names(&bench.path(folder)), [first, second, &format!("{whole}.index.json")], "{output}");
        bench.works(&["diff", "alone.pth", &format!("{folder}/{whole}.index.json")]);
        fs::remove_dir_all(bench.path(folder)).unwrap();
        if folder == "out" {
            fs::create_dir(bench.path("out")).unwrap();
        }
        // All in one.
        bench.works(&fold(&[&["--max-shard-size", "1GiB", "--report", "-o", output], flags].concat()));
        assert_eq!(names(&bench.path(folder)), [whole, &format!("{whole}.json")], "{output}");
        fs::remove_dir_all(bench.path(folder)).unwrap();
        fs::create_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn files_that_exist_are_refused_unless_forced_and_others_are_mentioned() {
    let bench = Bench::new();
    let args = fold(&["--max-shard-size", "500KB", "-o", "out"]);
    let forced = [&args[..], &["--force"]].concat();
    for name in ["model-00002-of-00003.safetensors", "model.safetensors.index.json"] {
        let path = format!("out/{name}");
        bench.put(&path, b"precious");
        bench.refused(&args, &[&path, "exists already", "--force"]);
        let stderr = bench.works(&forced);
        assert!(!stderr.contains("note"), "{stderr}");
        assert!(bench.read(&path) != b"precious");
        fs::remove_dir_all(bench.path("out")).unwrap();
        fs::create_dir(bench.path("out")).unwrap();
    }
    // Of a split into more.
    let (stale, other) = ("out/model-00001-of-00007.safetensors", "out/model-0001-of-00007.safetensors");
    bench.put(stale, b"stale");
    bench.put(other, b"other");
    let stderr = bench.works(&forced);
    assert!(
        stderr.contains(stale) && stderr.contains("another output") && !stderr.contains("more like it"),
        "{stderr}"
    );
    assert_eq!((bench.read(stale), bench.read(other)), (b"stale".to_vec(), b"other".to_vec()));
    // What a killed run had set aside.
    bench.put("out/.model.safetensors.index.json.m2pt-surgery-123-0.old", b"old");
    let stderr = bench.works(&forced);
    assert!(stderr.contains("-123-0.old is what out/model.safetensors.index.json was before a run that was killed"));
    fs::remove_dir_all(bench.path("out")).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    // What is loaded in place of shards.
    bench.put("out/model.safetensors", &bench.read("vit.safetensors"));
    let args = fold(&["--max-shard-size", "200KB", "-o", "out"]);
    bench.refused(&args, &["out/model.safetensors: ", "in place of model.safetensors.index.json", "--force"]);
    let stderr = bench.works(&[&args[..], &["--force"]].concat());
    assert!(stderr.contains("takes out/model.safetensors in place of"), "{stderr}");
    assert!(bench.read("out/model.safetensors") == bench.read("vit.safetensors"));
}

#[test]
fn a_folder_may_be_split_again_in_place() {
    let bench = Bench::new();
    bench.works(&fold(&["--max-shard-size", "500KB", "--no-metadata", "-o", "out"]));
    let again = ["fold", "out", "--aux", "speech.pth", "--lambda", "0.1", "--max-shard-size", "500KB", "-o", "out"];
    bench.refused(&again, &["exists already"]);
    bench.works(&[&again[..], &["--force"]].concat());
    bench.works(&["fold", "vit.pth", "--aux", "speech.pth=0.1", "--aux", "speech.pth=0.1", "-o", "twice.safetensors"]);
    bench.works(&["diff", "out", "twice.safetensors"]);
    assert_eq!(bench.out().len(), 4);
}

#[test]
fn what_cannot_be_split_is_refused_and_leaves_no_folder() {
    let bench = Bench::new();
    for size in ["0", "2PB", "-1", "much"] {
        bench.refused(&fold(&[&format!("--max-shard-size={size}"), "-o", "out"]), &["2GB, 500MB, 1GiB"]);
    }
    let shards = |output, more: &[&'static str]| fold(&[&["--max-shard-size", "500KB", "-o", output], more].concat());
    bench.refused(&shards("none/deeper", &[]), &["none/deeper", "the folder none does not exist", "create it first"]);
    bench.refused(&shards("vit.pth/", &[]), &["vit.pth", "is no folder"]);
    fs::write(bench.path("plain"), b"").unwrap();
    bench.refused(&shards("plain", &[]), &["plain is no folder"]);
    // Without a limit a folder is no output, as ever.
    bench.refused(&fold(&["-o", "out"]), &["out", "give the name of a file"]);
    // A fold that fails takes the folder along that it made.
    bench.put("nan.safetensors", &crate::bench::with_value("blocks.0.attn.qkv.weight", f32::NAN));
    let args = ["fold", "nan.safetensors", "--aux", "nan.safetensors=1", "--max-shard-size", "5KB", "-o", "new"];
    bench.refused(&args, &["blocks.0.attn.qkv.weight", "NaN"]);
}

#[test]
fn json_lists_the_files() {
    let bench = Bench::new();
    for (size, files) in [("500KB", 4), ("5MB", 1)] {
        let args = fold(&["--max-shard-size", size, "--json", "--force", "-o", "out"]);
        for dry in [&["--dry-run"][..], &[]] {
            let output = bench.run(&[&args[..], dry].concat());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let listed = report["output"]["files"].as_array().unwrap();
            assert_eq!(listed.len(), files);
            let total: u64 = listed.iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
            assert_eq!(report["output"]["bytes"], json!(total));
            for file in listed.iter().filter(|_| dry.is_empty()) {
                let path = file["file"].as_str().unwrap();
                assert_eq!(file["bytes"], json!(bench.read(path).len()), "{path}");
            }
        }
    }
}

#[test]
fn tensors_can_be_put_under_keys_of_a_pth() {
    let bench = Bench::new();
    bench.works(&fold(&["-o", "plain.pth"]));
    for key in ["model", "state.model", "κλειδί"] {
        bench.works(&fold(&["--wrap", key, "--force", "-o", "wrapped.pth"]));
        let [plain, wrapped] = ["plain.pth", "wrapped.pth"].map(|name| Checkpoint::open(bench.path(name)).unwrap());
        let roots: Vec<_> = wrapped.roots().iter().map(|root| root.path()).collect();
        assert_eq!(roots, [key]);
        let under = |(name, dtype, shape, hash)| (format!("{key}.{name}"), dtype, shape, hash);
        let expected: Vec<_> = digests(&whole(&plain)).into_iter().map(under).collect();
        assert_eq!(digests(&whole(&wrapped)), expected);
    }
    bench
        .refused(&fold(&["--wrap", "model", "-o", "out/a.safetensors"]), &["out/a.safetensors", "\"model\"", "--wrap"]);
    let shards = ["--wrap", "model", "--max-shard-size", "1MB", "--format", "pth", "-o", "out"];
    bench.refused(&fold(&shards), &["\"model\"", "--max-shard-size"]);
    for key in ["", ".", "model.", "a..b"] {
        bench.refused(&fold(&["--wrap", key, "-o", "out/a.pth"]), &[&format!("{key:?}")]);
    }
}
