//! What the program does with flags it cannot use.

use std::fs;

use crate::bench::{Bench, assert_refusal, fold, model, to_safetensors, tool};

#[test]
fn rejects_flags_it_does_not_know() {
    let bench = Bench::new();
    bench.refused(&fold(&["--lamda", "0.2"]), &["'--lamda'", "a similar argument exists: '--lambda'"]);
    bench.refused(&["inspect", "vit.pth", "--hashes"], &["'--hashes'", "'--hash'"]);
    bench.refused(&["flod", "vit.pth"], &["'flod'", "'fold'"]);
    bench.refused(&["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1"], &["--output <FILE>"]);
    bench.refused(&fold(&["speech.pth"]), &["'speech.pth'"]);
    bench.refused(&fold(&["--depth-mismatch", "last"]), &["'last'", "error, first"]);
    bench.refused(&fold(&["--dtype", "int8"]), &["'int8'", "float32, float16, bfloat16, float64"]);
}

#[test]
fn rejects_what_is_no_lambda() {
    let bench = Bench::new();
    for (lambda, phrases) in [
        ("much", &["\"much\" is no lambda", "0.1", "0.0..0.2", "qkv=0.1,fc1=0.02"][..]),
        ("", &["\"\" is no lambda"]),
        ("0,1", &["\"0,1\" is no lambda"]),
        ("0.1..", &["\"0.1..\" is no lambda"]),
        ("nan", &["\"nan\" is not finite"]),
        ("-inf", &["\"-inf\" is not finite"]),
        ("1e999", &["\"1e999\" is not finite"]),
        ("fc3=0.1", &["\"fc3\"", "the kinds are qkv, proj, fc1, fc2"]),
        ("qkv=0.1,qkv=0.2", &["\"qkv\"", "given twice"]),
    ] {
        let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", lambda, "-o", "out/merged.pth"];
        bench.refused(&fold, phrases);
    }
    let fold = ["fold", "vit.pth", "--aux", "speech.pth=0,1", "-o", "out/merged.pth"];
    bench.refused(&fold, &["--aux speech.pth=0,1", "\"0,1\" is no lambda"]);
    let fold = ["fold", "vit.pth", "--aux", "speech.pth", "-o", "out/merged.pth"];
    bench.refused(&fold, &["no lambda is given for speech.pth", "--lambda NUMBER"]);
    let fold = ["fold", "vit.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &["vit.pth carries no learned pathway", "--aux FILE"]);
}

#[test]
fn rejects_a_lambda_file_it_cannot_use() {
    let bench = Bench::new();
    for (text, phrases) in [
        ("0.1", &["no JSON object of numbers"][..]),
        ("{\"0.qkv\": ", &["no JSON object of numbers"]),
        ("{\"0.qkv\": \"0.1\"}", &["no JSON object of numbers"]),
        ("{\"9.qkv\": 0.1}", &["\"9.qkv\" names no layer that is folded", "\"0.qkv\""]),
        ("{\"0.qkv\": 1, \"blocks.0.attn.qkv\": 2}", &["\"0.qkv\" and \"blocks.0.attn.qkv\" name the same layer"]),
    ] {
        bench.put("lambdas.json", text.as_bytes());
        let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda-file", "lambdas.json", "-o", "out/merged.pth"];
        bench.refused(&fold, phrases);
    }
}

#[test]
fn rejects_blocks_and_layers_that_do_not_exist() {
    let bench = Bench::new();
    for blocks in ["x", "", "5-2", "0,", "-1"] {
        bench.refused(
            &fold(&[&format!("--blocks={blocks}")]),
            &["--blocks", "write blocks as numbers and ranges of up to 4096: 0-5,8"],
        );
    }
    bench.refused(&fold(&["--blocks", "4-7"]), &["block 6", "vit.pth has the blocks 0-5"]);
    for layers in ["fc3", "", "qkv,,fc1"] {
        bench.refused(&fold(&["--layers", layers]), &["--layers", "the kinds of layer are qkv, proj, fc1, fc2"]);
    }
}

#[test]
fn rejects_patterns_that_are_malformed() {
    let bench = Bench::new();
    for flag in ["--target-pattern", "--aux-pattern"] {
        bench.refused(&fold(&[flag, "blocks\\.(?<block>\\d+"]), &[flag, "no regular expression", "unclosed group"]);
        bench.refused(&fold(&[flag, "blocks\\.(\\d+)"]), &[flag, "(?<block>...)", "(?<layer>...)"]);
    }
}

#[test]
fn shows_what_a_pattern_nearly_matches() {
    let bench = Bench::new();
    let pattern = r"layers\.(?<block>\d+)\.(?<layer>attn\.qkv)\.weight";
    let near = ["no tensor is named like a linear layer", "the nearest names are", "blocks.N.attn.qkv.weight", pattern];
    bench.refused(&fold(&["--target-pattern", pattern]), &[&near[..], &["vit.pth"]].concat());
    bench.refused(&fold(&["--aux-pattern", pattern]), &[&near[..], &["speech.pth"]].concat());
    // Without a pattern, a model of no known family is treated the same.
    let mut tensors = model("", 32, 2);
    tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("blocks.", "encoder.layer."));
    bench.put("other.safetensors", &to_safetensors(&tensors));
    let fold = ["fold", "other.safetensors", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    let near = ["other.safetensors", "the nearest names are", "encoder.layer.N.attn.qkv.weight"];
    bench.refused(&fold, &near);
}

#[test]
fn rejects_a_pattern_that_leaves_out_a_layer_of_the_auxiliary() {
    let bench = Bench::new();
    let pattern = r"blocks\.(?<block>\d+)\.(?<layer>attn\.qkv)\.weight";
    let phrases = ["speech.pth has no layer 0.proj", "blocks.0.attn.proj of vit.pth", "--layers", "--aux-pattern"];
    bench.refused(&fold(&["--aux-pattern", pattern]), &phrases);
}

#[test]
fn rejects_a_pattern_that_matches_a_layer_twice() {
    let bench = Bench::new();
    let two = [model("student.", 64, 6), model("teacher.", 64, 6)].concat();
    bench.put("two.safetensors", &to_safetensors(&two));
    let [first, second] = ["student", "teacher"].map(|side| format!("\"{side}.blocks.0.attn.proj.weight\""));
    let twice = ["two.safetensors", &first, &second, "layer 0.proj"];
    let pattern = r"blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight$";
    let several = ["two.safetensors", "a model under each of \"student.\", \"teacher.\""];
    let fold = ["fold", "two.safetensors", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &[&several[..], &["stricter --target-pattern"]].concat());
    let pattern_too = [&fold[..], &["--target-pattern", pattern]].concat();
    bench.refused(&pattern_too, &[&twice[..], &["stricter --target-pattern"]].concat());
    let fold = ["fold", "vit.pth", "--aux", "two.safetensors", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &[&several[..], &["stricter --aux-pattern"]].concat());
    // The way out works.
    let stricter = format!("^teacher\\.{pattern}");
    bench.works(&[&fold[..], &["--aux-pattern", &stricter]].concat());
}

/// Standard output is a file like any other, and may be on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn reports_that_its_results_could_not_be_printed() {
    let bench = Bench::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(tool());
    command.args(["inspect", "vit.pth"]).current_dir(bench.path("")).stdin(std::process::Stdio::null()).stdout(full);
    let output = command.output().unwrap();
    assert_refusal(&output, &["inspect", "vit.pth"], &["No space left"]);
}
