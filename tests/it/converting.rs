//! `convert` and `graft`: options without effect, hostile flags and tables, and what they say.

use m2pt_surgery::Checkpoint;
use serde_json::{Value, json};

use crate::bench::{Bench, Tensor, fixture, model, to_safetensors};
use crate::commands::snapshot;
use crate::support::{expected, run, succeed};

/// By `sha256sum`: fixtures/mnist_vit.safetensors.
const HASH_VIT: &str = "26911b53bec37e9b19625f9b15c8897184ff04d55df9035ed6a76b26f5853448";
/// By `sha256sum`: fixtures/speech_vit.pth.
const HASH_SPEECH: &str = "4c58450744a288eb8702d2ebe29cb2176b623cb730efe51fd6efa0b70c97988a";

/// A folder with a model of Hugging Face's and one of MAE's besides.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.put("hf.safetensors", &fixture("families/hf_vit/model.safetensors"));
    bench.put("mae.pth", &fixture("families/mae_finetune.pth"));
    bench.put("ast.safetensors", &fixture("families/hf_ast/model.safetensors"));
    bench
}

fn convert<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["convert", "vit.pth", "-o", "out/a.safetensors"], more].concat()
}

fn graft<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["graft", "vit.pth", "--aux", "speech.pth", "-o", "out/a.pth"], more].concat()
}

/// Every option of shapes and architectures, as it is written.
const SHAPES: &[&[&str]] = &[
    &["--img-size", "56"],
    &["--patch-size", "8"],
    &["--grid", "8x8"],
    &["--positions", "ast"],
    &["--tubelet", "sum"],
    &["--inflate", "2"],
    &["--in-chans", "3"],
    &["--num-classes", "10"],
    &["--head", "drop"],
    &["--global-pool", "avg"],
];
const OF_TIMM: &[&[&str]] =
    &[&["--arch", "vit_base_patch16_224"], &["--fill-from", "vit.pth"], &["--heads", "4"], &["--act", "relu"]];

#[test]
fn options_that_would_do_nothing_are_refused() {
    let bench = bench();
    for option in SHAPES.iter().chain(OF_TIMM).chain(&[&["--family", "timm"][..]]) {
        bench.refused(&convert(option), &["vit.pth", option[0], "add --to timm"]);
    }
    for option in OF_TIMM {
        let to = convert(&[&["--to", "hf-vit"], *option].concat());
        bench.refused(&to, &["vit.pth", option[0], "under timm's names", "--to timm first"]);
        let reverse = convert(&[&["--reverse", "--family", "hf-vit"], *option].concat());
        bench.refused(&reverse, &["vit.pth", option[0], "under timm's names"]);
    }
    for names in [&[][..], &["--to", "timm"], &["--to", "hf-vit"]] {
        let args = ["convert", "vit.safetensors", "-o", "out/a.pth"];
        bench.refused(
            &[&args[..], names, &["--keep-values"]].concat(),
            &["vit.safetensors", "--keep-values", ".safetensors"],
        );
        bench.refused(&[&args[..], names, &["--no-metadata"]].concat(), &["vit.safetensors", "--no-metadata"]);
    }
    let timm = |more: &[&'static str]| convert(&[&["--to", "timm"], more].concat());
    bench.refused(&timm(&["--head", "drop", "--num-classes", "5"]), &["--head drop", "choose one"]);
    bench.refused(&timm(&["--head", "zero", "--num-classes", "0"]), &["--num-classes 0", "choose one"]);
    bench.refused(&timm(&["--img-size", "32", "--positions", "ast"]), &["--positions ast", "nothing"]);
    bench.refused(&timm(&["--drop", "^head", "--num-classes", "10"]), &["--num-classes", "add --head zero"]);
    bench.refused(
        &timm(&["--drop", "^head", "--num-classes", "7", "--fill-from", "vit.safetensors"]),
        &["--num-classes", "head.weight", "[10, 64]"],
    );
    bench.refused(&timm(&["--wrap", "model"]), &["--wrap"]);
    bench.refused(
        &["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "--no-metadata", "-o", "out/a.pth"],
        &["--no-metadata"],
    );
    bench.refused(&graft(&["--no-metadata"]), &["--no-metadata"]);
    for lambda in [&["--lambda", "0.1"][..], &["--lambda", "0"]] {
        let args = ["graft", "vit.pth", "--aux", "speech.pth=0.2", "-o", "out/a.pth"];
        bench.refused(&[&args[..], lambda].concat(), &["--lambda", "a lambda of its own"]);
    }
    for option in ["--wrap", "--add-prefix", "--strip-prefix"] {
        bench.refused(&convert(&[option, ""]), &[option, "a value is required"]);
    }
    bench.put("trained.pth", &fixture("mnist_pathway.pth"));
    bench.refused(
        &["graft", "trained.pth", "--aux", "speech.pth", "-o", "out/a.pth"],
        &["trained.pth", "already", "fold"],
    );
    bench.refused(&graft(&["--wrap", ""]), &["--wrap", "a value is required"]);
    bench.refused(&["convert", "--families", "vit.pth"], &["--families", "cannot be used with"]);
}

#[test]
fn a_folder_for_timm_has_the_names_that_timm_looks_for() {
    let bench = bench();
    let folder = ["convert", "vit.pth", "--timm-dir", "out/vit", "--heads", "4"];
    for option in [
        ["--rename", "s/a/b/"],
        ["--add-prefix", "vit."],
        ["--max-shard-size", "1MB"],
        ["--wrap", "model"],
        ["--format", "pth"],
        ["--output", "out/a.pth"],
    ] {
        bench.refused(&[&folder[..], &option].concat(), &["--timm-dir", option[0], "cannot be used with"]);
    }
    bench.refused(&[&folder[..], &["--to", "hf-vit"]].concat(), &["--timm-dir", "--to"]);
    bench.put("nine.txt", b"0\n1\n2\n3\n4\n5\n6\n7\n8\n");
    bench.put("gap.txt", b"0\n\n2\n");
    bench.put("binary.txt", b"\xff\xfe0");
    bench.put("ten.txt", b"0\n1\n2\n3\n4\n5\n6\n7\n8\nnine and more\r\n");
    bench
        .refused(&[&folder[..], &["--labels", "nine.txt"]].concat(), &["vit.pth", "--labels", "9 names", "10 classes"]);
    let headless = [&folder[..], &["--head", "drop", "--labels", "nine.txt"]].concat();
    bench.refused(&headless, &["9 names", "no head"]);
    bench.refused(&[&folder[..], &["--labels", "gap.txt"]].concat(), &["gap.txt", "line 2 is empty"]);
    bench.refused(&[&folder[..], &["--labels", "binary.txt"]].concat(), &["binary.txt", "UTF-8"]);
    bench.refused(&[&folder[..], &["--labels", "none.txt"]].concat(), &["cannot read none.txt"]);
    bench.refused(&convert(&["--labels", "ten.txt"]), &["--timm-dir"]);
    bench.works(&[&folder[..], &["--labels", "ten.txt"]].concat());
    let config: Value = serde_json::from_slice(&bench.read("out/vit/config.json")).unwrap();
    assert_eq!(config["label_names"], json!(["0", "1", "2", "3", "4", "5", "6", "7", "8", "nine and more"]));
}

#[test]
fn numbers_that_no_model_has_are_refused_before_anything_is_made() {
    let bench = bench();
    let limit = "268435456";
    let huge = "18446744073709551615";
    for (flags, phrases) in [
        (&["--head", "zero", "--num-classes", "1000000000000"][..], &["head.weight", limit][..]),
        (&["--head", "zero", "--num-classes", huge], &["head.weight", limit]),
        (&["--head", "zero", "--num-classes=-1"], &["--num-classes"]),
        (&["--head", "zero", "--num-classes", "nan"], &["--num-classes", "nan"]),
        (&["--img-size", "65536"], &["pos_embed", limit]),
        (&["--img-size", "65537"], &["--img-size", "224x448"]),
        (&["--img-size", "0"], &["--img-size", "224x448"]),
        (&["--img-size", "28xNaN"], &["--img-size", "224x448"]),
        (&["--img-size", "3"], &["pos_embed", "no elements"]),
        (&["--patch-size", "65536"], &["patch_embed.proj.weight", "512"]),
        (&["--patch-size", "0"], &["--patch-size"]),
        (&["--in-chans", "0"], &["patch_embed.proj.weight"]),
        (&["--in-chans", huge], &["patch_embed.proj.weight"]),
        (&["--in-chans", "9999999"], &["patch_embed.proj.weight", limit]),
        (&["--grid", "65536x65536", "--img-size", "56"], &["--grid", "pos_embed"]),
        (&["--grid", "3x5", "--img-size", "56"], &["--grid", "pos_embed", "3 x 5"]),
        (&["--heads", "0"], &["--heads"]),
        (&["--heads", huge], &["--heads"]),
        (&["--heads", "7"], &["7 attention heads", "--heads"]),
        (&["--dtype", "norm=int8"], &["--dtype", "float32"]),
        (&["--dtype", "nothing=float16"], &["--dtype", "nothing"]),
        (&["--drop", "("], &["--drop", "unclosed group"]),
        (&["--keep", "a{1000}{1000}{1000}"], &["--keep", "size limit"]),
        (&["--rename", "s/a/b"], &["--rename", "s/REGEX/TEXT/"]),
        (&["--rename", "s/never/b/"], &["--rename", "never"]),
        (&["--rename", r"s/blocks\.\d+/b/"], &["would be called"]),
        (&["--strip-prefix", "model."], &["--strip-prefix", "model."]),
        (&["--drop", "."], &["no tensor is left"]),
        (&["--arch", "vit_no_such"], &["--arch", "vit_no_such"]),
        (&["--arch", "vit_base_patch16_224"], &["vit.pth"]),
        (&["--max-shard-size", "0"], &["--max-shard-size"]),
        (&["--tubelet", "sum"], &["--tubelet", "patch_embed.proj.weight"]),
        (&["--inflate", "2"], &["--inflate"]),
        (&["--root", "nowhere"], &["vit.pth", "nowhere"]),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            bench.refused(&[&convert(&["--to", "timm"])[..], flags, more].concat(), phrases);
        }
    }
    let doubled = ["--rename", "s/^.*$/$0$0/"].repeat(60);
    bench.refused(&convert(&doubled), &["vit.pth", "--rename", "bytes at most", "patch_embed.proj.weight"]);
    bench.refused(&convert(&["--add-prefix", &"x".repeat(5000)]), &["vit.pth", "--add-prefix", "bytes at most"]);
    for (flags, phrases) in [
        (&["--inflate", "0"][..], &["--inflate"][..]),
        (&["--inflate", "1025"], &["--inflate"]),
        (&["--inflate", "2:often"], &["--inflate"]),
        (&["--inflate", "1024", "--in-chans", "99999"], &["patch_embed.proj.weight"]),
    ] {
        bench.refused(&convert(&[&["--to", "videomae"], flags].concat()), phrases);
    }
}

/// A table that is like timm's own, with `more` in it.
fn table(more: &str) -> Vec<u8> {
    let text =
        format!("name = 'mine'\ntitle = 'My ViT'\nanchor = 'blocks.{{N}}.attn.qkv.weight'\nevidence = []\n{more}");
    text.into_bytes()
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    let bench = bench();
    let rule = |rule: &str| format!("map = [{{ {rule} }}, {{ to = '{{*}}', from = '{{*}}' }}]");
    let head = |more: &str| rule(&format!("to = 'head.weight', from = 'head.weight', {more}"));
    for (more, phrases) in [
        ("map = [", &["no table of a family"][..]),
        ("colour = 'red'", &["colour"]),
        ("name = 'twice'", &["name"]),
        ("like = 'nobody'", &["no family nobody"]),
        ("like = 'mine'", &["no family mine"]),
        ("drop = [{ name = 'a{1000}{1000}{1000}', because = 'x' }]", &["size limit"]),
        ("refuse = [{ name = '(', because = 'x' }]", &["unclosed group"]),
        (&rule("to = 'a{N}', from = 'b'"), &["other slots"]),
        (&rule("to = 'a', from = 'b', unsqueeze = 18446744073709551615"), &["more than 8 dimensions"]),
        (&rule("to = 'a', from = 'b', unsqueeze = 9"), &["more than 8 dimensions"]),
        (&rule("to = 'a', from = 'b', order = [0,1,2,3,4,5,6,7,8]"), &["more than 8 dimensions"]),
        (&rule("to = 'a', from = 'b', rows = [-1, 1, 1]"), &["invalid"]),
        (&rule("to = 'a', from = []"), &["made of no tensor"]),
        (&rule("to = 'a', from = 'b', tilt = 1"), &["tilt"]),
        // What only shows with a file.
        (&head("order = [1, 1]"), &["vit.pth", "head.weight", "order"]),
        (&head("order = [1, 7]"), &["vit.pth", "head.weight", "order"]),
        (&head("rows = [0, 9223372036854775807, 2]"), &["vit.pth", "head.weight"]),
        (&head("rows = [0, 1, 0]"), &["vit.pth", "head.weight"]),
        (&head("rows = [0, 1, 3]"), &["vit.pth", "head.weight"]),
        (&head("unsqueeze = 8"), &["vit.pth", "head.weight"]),
        (&rule("to = 'cls_token', from = 'norm.weight'"), &["norm.weight", "cls_token", "both"]),
        (&rule("to = 'x.{N}.weight', from = 'head.weight', unstack = true"), &["vit.pth"]),
        (&rule("to = 'x', from = ['head.weight', 'head.weigth']"), &["head.weigth", "head.weight"]),
        (&rule("to = 'x', from = ['head.weight', 'norm.weight']"), &["vit.pth", "x", "stack"]),
        (
            "map = [{ to = 'cls_token', from = 'cls_token' }]",
            &["vit.pth", "have no rule", "My ViT", "--drop", "--family"],
        ),
        (
            "map = [{ to = '{*}', from = '{*}' }]\nrefuse = [{ name = 'head', because = 'it is odd' }]",
            &["vit.pth", "head", "it is odd", "--drop"],
        ),
    ] {
        bench.put("mine.toml", &table(more));
        bench.refused(&convert(&["--to", "timm", "--heads", "4", "--family", "mine.toml"]), phrases);
    }
    bench.put("mine.toml", &table("").repeat(20_000));
    bench.refused(&convert(&["--to", "timm", "--family", "mine.toml"]), &["mine.toml", "larger than 1 MiB"]);
    bench.put("mine.toml", b"\xff\xfe");
    bench.refused(&convert(&["--to", "timm", "--family", "mine.toml"]), &["mine.toml", "UTF-8"]);
    bench.refused(&convert(&["--to", "timm", "--family", "none.toml"]), &["none.toml", "known are", "hf-vit"]);
    bench.refused(&convert(&["--to", "timm", "--family", "out"]), &["cannot read out"]);
    bench.refused(&convert(&["--to", "timm", "--family", "hf-vit"]), &["vit.pth", "Hugging Face", "--family"]);
    // The same table without faults.
    bench.put("mine.toml", &table("map = [{ to = '{*}', from = '{*}' }]"));
    bench.works(&convert(&["--to", "timm", "--heads", "4", "--family", "mine.toml"]));
}

#[test]
fn damaged_models_are_refused_with_file_tensor_and_way_out() {
    let bench = bench();
    let small = || {
        let tensor = |name: &str, shape: &[usize]| Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            values: vec![0.5; shape.iter().product()],
        };
        let mut tensors = model("", 32, 2);
        for block in 0..2 {
            for norm in ["norm1", "norm2"] {
                for leaf in ["weight", "bias"] {
                    tensors.push(tensor(&format!("blocks.{block}.{norm}.{leaf}"), &[32]));
                }
            }
        }
        tensors.extend([
            tensor("norm.bias", &[32]),
            tensor("head.bias", &[10]),
            tensor("cls_token", &[1, 1, 32]),
            tensor("pos_embed", &[1, 5, 32]),
            tensor("patch_embed.proj.weight", &[32, 3, 4, 4]),
            tensor("patch_embed.proj.bias", &[32]),
        ]);
        tensors
    };
    let args = ["convert", "small.safetensors", "--to", "timm", "--heads", "4", "-o", "out/a.pth"];
    let refused = |change: &dyn Fn(&mut Vec<Tensor>), phrases: &[&str]| {
        let mut tensors = small();
        change(&mut tensors);
        bench.put("small.safetensors", &to_safetensors(&tensors));
        bench.refused(&args, &[&["small.safetensors"], phrases].concat());
    };
    let reshaped = |name: &'static str, shape: &'static [usize]| {
        move |tensors: &mut Vec<Tensor>| {
            let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
            (tensor.shape, tensor.values) = (shape.to_vec(), vec![0.5; shape.iter().product()]);
        }
    };
    let without = |name: &'static str| move |tensors: &mut Vec<Tensor>| tensors.retain(|tensor| tensor.name != name);
    bench.put("small.safetensors", &to_safetensors(&small()));
    bench.works(&args);
    std::fs::remove_file(bench.path("out/a.pth")).unwrap();
    // Swapped, as by a slip in a script.
    refused(
        &|tensors| {
            let at = |name: &str| tensors.iter().position(|tensor| tensor.name == name).unwrap();
            let (first, second) = (at("blocks.0.mlp.fc1.weight"), at("blocks.0.mlp.fc2.weight"));
            let name = std::mem::take(&mut tensors[first].name);
            tensors[first].name = std::mem::replace(&mut tensors[second].name, name);
        },
        &["blocks.0.mlp.fc"],
    );
    refused(&reshaped("blocks.1.attn.proj.weight", &[32, 31]), &["blocks.1.attn.proj.weight"]);
    refused(&reshaped("blocks.1.norm1.bias", &[33]), &["blocks.1.norm1.bias"]);
    refused(&reshaped("pos_embed", &[1, 5, 31]), &["pos_embed"]);
    refused(&reshaped("patch_embed.proj.weight", &[32, 48]), &["patch_embed"]);
    refused(&reshaped("blocks.0.attn.qkv.weight", &[0, 32]), &["blocks.0.attn.qkv.weight"]);
    refused(&without("blocks.1.attn.proj.weight"), &["blocks.1.attn.proj.weight", "--fill-from"]);
    refused(&without("blocks.1.norm1.weight"), &["blocks.1.norm1.weight", "--fill-from"]);
    // (Without positions it is a model that has none, as timm makes them with `pos_embed="none"`.)
    refused(&without("patch_embed.proj.weight"), &["patch_embed.proj.weight", "--fill-from"]);
    // A donor that does not fit.
    let donor = ["--fill-from", "vit.pth"];
    bench.put(
        "small.safetensors",
        &to_safetensors(&small().into_iter().filter(|t| t.name != "pos_embed").collect::<Vec<_>>()),
    );
    bench.refused(&[&args[..], &donor].concat(), &["small.safetensors", "pos_embed"]);
    // A part of a stack, and both forms at once.
    let hf = fixture("families/hf_vit/model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&hf).unwrap();
    let key = "vit.encoder.layer.0.attention.attention.key.bias";
    let kept = file.tensors().into_iter().filter(|(name, _)| name != key);
    bench.put("hf.safetensors", &safetensors::serialize(kept, None).unwrap());
    let args = ["convert", "hf.safetensors", "--to", "timm", "-o", "out/a.pth"];
    bench.refused(&args, &["hf.safetensors", key, "blocks.0.attn.qkv.bias", "incomplete"]);
    bench.put("hf.safetensors", &hf[..hf.len() - 4]);
    bench.refused(&args, &["hf.safetensors"]);
}

#[test]
fn several_models_are_told_apart_by_options_that_there_are() {
    let bench = bench();
    bench.put("two.pth", &fixture("families/dino.pth"));
    let args = ["convert", "two.pth", "--to", "timm", "-o", "out/a.pth"];
    let output = bench.run(&args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("choose one with --root") && !stderr.contains("--aux-root"), "{stderr}");
    let fold = ["fold", "vit.pth", "--aux", "two.pth", "--lambda", "0.1", "-o", "out/a.pth"];
    bench.refused(&fold, &["two.pth", "choose one with --aux-root"]);
    let donor = ["convert", "vit.pth", "--to", "timm", "--fill-from", "two.pth", "-o", "out/a.pth"];
    bench.refused(&donor, &["two.pth", "choose one with a conversion of its own", "--root"]);
}

#[test]
fn nan_is_found_in_the_file_that_it_is_in_under_its_name_there() {
    let bench = bench();
    let broken = |from: &str, to: &str, name: &str| {
        let file = bench.read(from);
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let of = |found: &str, data: &[u8]| match found == name {
            true => [&f32::NAN.to_le_bytes(), &data[4..]].concat(),
            false => data.to_vec(),
        };
        let tensors: Vec<_> =
            file.tensors().into_iter().map(|(name, view)| (of(&name, view.data()), name, view)).collect();
        let views = tensors.iter().map(|(data, name, view)| {
            (name, safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap())
        });
        bench.put(to, &safetensors::serialize(views, None).unwrap());
    };
    broken("vit.safetensors", "donor.safetensors", "head.weight");
    let args = ["convert", "vit.pth", "--to", "timm", "--drop", "^head", "--fill-from", "donor.safetensors"];
    let refused =
        |args: &[&str], phrase: &str| bench.refused(&[args, &["--quiet", "-o", "out/a.pth"]].concat(), &[phrase]);
    refused(&args, "\"head.weight\" of donor.safetensors holds some");
    let name = "vit.encoder.layer.0.layernorm_before.weight";
    broken("hf.safetensors", "broken.safetensors", name);
    let phrase =
        format!("\"blocks.0.norm1.weight\" would hold NaN or infinity: {name:?} of broken.safetensors holds some");
    refused(&["convert", "broken.safetensors", "--to", "timm"], &phrase);
}

/// The header of a safetensors file, without the format.
fn metadata(bench: &Bench, name: &str) -> Value {
    let mut values = Checkpoint::open(bench.path(name)).unwrap().values();
    let mut texts = values.remove("__metadata__").unwrap();
    assert_eq!(texts.as_object_mut().unwrap().remove("format"), Some(json!("pt")));
    texts
}

fn provenance(bench: &Bench, name: &str) -> Value {
    serde_json::from_str(metadata(bench, name)["m2pt_surgery"].as_str().unwrap()).unwrap()
}

#[test]
fn outputs_say_what_they_were_made_from() {
    let bench = bench();
    bench.works(&[
        "convert",
        "vit.safetensors",
        "--to",
        "timm",
        "--heads",
        "4",
        "--img-size",
        "56",
        "--hash-inputs",
        "-o",
        "out/a.safetensors",
    ]);
    let record = provenance(&bench, "out/a.safetensors");
    let input = json!({"role": "input", "sha256": HASH_VIT, "root": "", "family": "timm", "provenance": null});
    assert_eq!(record["inputs"], json!([input]));
    assert_eq!((&record["operation"], &record["options"]["to"]), (&json!("convert"), &json!("timm")));
    assert_eq!(record["changed"], json!({"pos_embed": "resampled from a grid of 8 x 8 to 14 x 14"}));
    // Hashes are made for who asks for them.
    bench.works(&["convert", "vit.safetensors", "-o", "out/plain.safetensors"]);
    assert_eq!(provenance(&bench, "out/plain.safetensors")["inputs"][0]["sha256"], json!(null));
    for command in [&["convert"][..], &["fold", "--aux", "speech.pth=0.1"], &["graft", "--aux", "speech.pth"]] {
        let to_pth = [command, &["vit.safetensors", "--hash-inputs", "-o", "out/x.pth"]].concat();
        bench.refused(&to_pth, &["--hash-inputs", "header"]);
        let without =
            [command, &["vit.safetensors", "--hash-inputs", "--no-metadata", "-o", "out/x.safetensors"]].concat();
        bench.refused(&without, &["--hash-inputs", "--no-metadata"]);
    }
    // What the input says of itself stays.
    bench.works(&["convert", "out/a.safetensors", "-o", "out/b.safetensors"]);
    assert_eq!(provenance(&bench, "out/b.safetensors")["inputs"][0]["provenance"], record);
    bench.works(&["convert", "out/a.safetensors", "--no-metadata", "-o", "out/c.safetensors"]);
    assert_eq!(metadata(&bench, "out/c.safetensors"), json!({}));
    let noted = bench.works(&["convert", "out/a.safetensors", "-o", "out/c.pth"]);
    assert!(noted.contains("not taken along") && noted.contains("m2pt_surgery"), "{noted}");

    bench.works(&[
        "graft",
        "vit.safetensors",
        "--aux",
        "speech.pth=0.25",
        "--layers",
        "qkv",
        "--hash-inputs",
        "-o",
        "out/g.safetensors",
    ]);
    let record = provenance(&bench, "out/g.safetensors");
    let input = |role, hash, root, family| json!({"role": role, "sha256": hash, "root": root, "family": family, "pattern": null});
    assert_eq!(record["inputs"][0], input("target", HASH_VIT, "", "timm"));
    assert_eq!(record["inputs"][1], input("auxiliary", HASH_SPEECH, "model", "audio-mae"));
    assert_eq!((&record["operation"], &record["lambdas"]["blocks.5.attn.qkv.weight"]), (&json!("graft"), &json!(0.25)));
    bench.works(&["graft", "vit.safetensors", "--aux", "speech.pth", "--no-metadata", "-o", "out/h.safetensors"]);
    assert_eq!(metadata(&bench, "out/h.safetensors"), json!({}));
}

#[test]
fn texts_of_a_header_stay() {
    let bench = Bench::new();
    let file = bench.read("vit.safetensors");
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let texts = [("format", "np"), ("license", "MIT"), ("note", "häärd \" text\n")];
    let texts = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).into_iter().collect();
    bench.put("noted.safetensors", &safetensors::serialize(file.tensors(), Some(texts)).unwrap());
    for names in [&[][..], &["--to", "timm", "--heads", "4"]] {
        let args = ["convert", "noted.safetensors", "--no-metadata", "--force", "-o", "out/a.safetensors"];
        bench.works(&[&args[..], names].concat());
        assert_eq!(metadata(&bench, "out/a.safetensors"), json!({"license": "MIT", "note": "häärd \" text\n"}));
    }
}

/// transformers loads either; the names of the bare module are for its `load_state_dict`.
#[test]
fn the_module_of_a_family_can_be_taken_off() {
    let bench = bench();
    let to = ["convert", "hf.safetensors", "--to", "hf-vit", "--head", "drop", "--rename", r"s/^vit\.//"];
    bench.works(&[&to[..], &["-o", "out/bare.safetensors"]].concat());
    let bare = Checkpoint::open(bench.path("out/bare.safetensors")).unwrap();
    let bare = bare.state_dict(&m2pt_surgery::RootChoice::Auto).unwrap();
    let mut found: Vec<&str> = bare.specs().iter().map(|spec| spec.name.as_str()).collect();
    found.sort_unstable();
    let theirs = Checkpoint::open(crate::support::fixture("families/hf_vit/model.safetensors")).unwrap();
    let theirs = theirs.state_dict(&m2pt_surgery::RootChoice::Auto).unwrap();
    let mut wanted: Vec<&str> = theirs.specs().iter().filter_map(|spec| spec.name.strip_prefix("vit.")).collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn convert_says_what_it_would_do_and_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vit.safetensors");
    let output = path.to_str().unwrap();
    let hf = "fixtures/families/hf_vit/model.safetensors";
    snapshot("convert_dry_run", &["convert", hf, "--to", "timm", "--img-size", "48", "--dry-run", "-o", output]);
    assert!(!path.exists(), "a dry run writes nothing");
    snapshot("convert", &["convert", hf, "--to", "timm", "-o", output]);
    snapshot("convert_exists", &["convert", hf, "--to", "timm", "-o", output]);
    snapshot("convert_container", &["convert", "fixtures/mnist_vit.pth", "-o", output, "--force"]);
    let mae = "fixtures/families/mae_pretrain.pth";
    snapshot("convert_pretrained", &["convert", mae, "--to", "timm", "-o", output, "--force"]);
    snapshot(
        "convert_frames",
        &["convert", "fixtures/families/videomae_finetune.pth", "--to", "timm", "-o", output, "--force"],
    );
    snapshot("convert_unused", &["convert", mae, "--img-size", "48", "-o", output, "--force"]);
    let timm = folder.path().join("timm");
    let timm = timm.to_str().unwrap();
    snapshot("convert_timm_dir", &["convert", "fixtures/mnist_vit.pth", "--timm-dir", timm, "--heads", "4"]);
    snapshot("convert_families", &["convert", "--families"]);
    let text = succeed(&["convert", hf, "--to", "timm", "--json", "-o", output, "--force"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let documented = "input output architecture tensors dropped notes lost non_finite seconds";
    assert_eq!(keys(&report), documented);
    assert_eq!(keys(&report["tensors"][0]), "name from changes filled shape dtype");
    // The tensors are those of the reference conversion.
    let mut names: Vec<&str> =
        report["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let recorded = &expected("families.json")["hf_vit"]["converted"];
    let mut wanted: Vec<&str> = recorded.as_object().unwrap().keys().map(String::as_str).collect();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
}

#[test]
fn graft_says_what_it_would_do_and_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainable.pth");
    let output = path.to_str().unwrap();
    let graft = ["graft", "fixtures/mnist_vit.pth", "--aux", "fixtures/speech_vit.pth", "-o", output];
    snapshot("graft_dry_run", &[&graft[..], &["--dry-run", "--blocks", "0", "--lambda", "0.1"]].concat());
    assert!(!path.exists(), "a dry run writes nothing");
    snapshot("graft", &graft);
    snapshot("graft_exists", &graft);
    snapshot(
        "graft_own_lambda",
        &[
            "graft",
            "fixtures/mnist_vit.pth",
            "--aux",
            "fixtures/speech_vit.pth=0.1",
            "--lambda",
            "0.2",
            "-o",
            output,
            "--force",
        ],
    );
    let output = run(&[&graft[..], &["--json", "--force", "--layers", "fc1"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["target", "aux", "output", "layers", "notes", "seconds"]);
    assert_eq!((report["layers"].as_array().unwrap().len(), &report["layers"][0]["lambda"]), (6, &json!(0.0)));
}
