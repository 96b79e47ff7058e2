//! The commands as a person meets them: status, standard output and standard error.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{command, expected, fail, run, succeed};

/// Status, standard output and standard error, with what changes from run to run replaced.
fn shown(args: &[&str]) -> String {
    let output = run(args);
    format!(
        "$ m2pt-surgery {}\n{}--- stderr\n{}--- status {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().unwrap()
    )
}

pub(crate) fn snapshot(name: &str, args: &[&str]) {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"in \d+\.\d+ s \([\d.]+ [kMGT]?B/s\)", "in [time]");
    settings.add_filter(r"/\S*/\.tmp\w+/", "[folder]/");
    settings.add_filter(r"in \d+\.\d+ s: [\d.e]+ images/s", "in [time]");
    // Rounding depends on the machine.
    settings.add_filter(r"\d\.\de-\d", "[tiny]");
    settings.add_filter(r"for noise \d+", "for noise [number]");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, shown(args)));
}

#[test]
fn inspect_shows_what_is_inside() {
    snapshot("inspect", &["inspect", "fixtures/mnist_vit.pth"]);
    snapshot("inspect_nested", &["inspect", "fixtures/layouts/nested.pth"]);
    snapshot("inspect_ema_only", &["inspect", "fixtures/layouts/ema_only.pth"]);
    snapshot("inspect_dtypes", &["inspect", "fixtures/layouts/dtypes.pth", "--stats"]);
    snapshot("inspect_lambdas", &["inspect", "fixtures/mnist_pathway.pth", "--lambdas"]);
    snapshot("inspect_match", &["inspect", "fixtures/speech_vit.pth", "--match", "attn", "--sort", "bytes", "--hash"]);
}

#[test]
fn fold_says_what_it_would_do_and_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.pth");
    let output = path.to_str().unwrap();
    let fold = ["fold", "fixtures/mnist_vit.pth", "--aux", "fixtures/speech_vit.pth", "--lambda", "0.1", "-o", output];
    snapshot("fold_dry_run", &[&fold[..], &["--dry-run", "--blocks", "0,5", "--bias", "fold"]].concat());
    assert!(!path.exists(), "a dry run writes nothing");
    snapshot("fold", &fold);
    snapshot("fold_exists", &fold);
    let shards = folder.path().join("shards");
    let split = [&fold[..6], &["--max-shard-size", "500KB", "-o", shards.to_str().unwrap()]].concat();
    snapshot("fold_shards_dry_run", &[&split[..], &["--dry-run", "--layers", "qkv", "--blocks", "0"]].concat());
    snapshot("fold_shards", &split);
    snapshot("fold_learned", &["fold", "fixtures/mnist_pathway.pth", "-o", output, "--force"]);
}

#[test]
fn diff_says_what_changed() {
    let (vit, early) = ("fixtures/mnist_vit.pth", "fixtures/mnist_early.pth");
    snapshot("diff", &["diff", early, vit, "--top", "5"]);
    snapshot("diff_equal", &["diff", vit, "fixtures/mnist_vit.safetensors"]);
    snapshot("diff_within", &["diff", vit, "fixtures/mnist_vit_f16.pth", "--match", "head", "--fail-above", "1e-3"]);
    snapshot("diff_names", &["diff", vit, "fixtures/speech_vit.pth", "--match", "embed|norm$|^head", "--top", "3"]);
    snapshot("diff_others", &["diff", "fixtures/torch_files/others.pth", "fixtures/torch_files/others.pth"]);
    let text = run(&["diff", vit, "fixtures/mnist_vit_bf16.pth", "--match", "head.bias", "--json"]);
    assert_eq!(text.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&text.stdout).unwrap();
    assert_eq!(report["changed"][0]["dtype"], json!(["float32", "bfloat16"]));
    let theirs = &expected("differences.json")["mnist_vit.pth mnist_vit_bf16.pth"]["head.bias"];
    assert_eq!(report["changed"][0]["max_abs"], theirs["max_abs"]);
    assert!(fail(&["diff", vit, early, "--match", "nothing"]).contains("--match"));
    assert!(fail(&["diff", vit, early, "--fail-above=-1"]).contains("--fail-above"));
}

#[test]
fn refusals_say_what_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged.pth");
    let fold = |args: &[&str]| {
        let mut all = vec!["fold", "-o", output.to_str().unwrap()];
        all.extend(args);
        fail(&all)
    };
    let (vit, speech) = ("fixtures/mnist_vit.pth", "fixtures/speech_vit.pth");
    for (args, words) in [
        (&[vit][..], &["mnist_vit.pth", "--aux FILE"][..]),
        (&[vit, "--aux", speech], &["speech_vit.pth", "--lambda NUMBER"]),
        (&[vit, "--aux", speech, "--lambda", "x"], &["--lambda", "\"x\"", "0.0..0.2"]),
        (&[vit, "--aux", speech, "--lambda", "0.1", "--blocks", "6"], &["block 6", "0-5"]),
        (&[vit, "--aux", speech, "--lambda", "qkv=1", "--layers", "fc1"], &["fc1", "--layers"]),
        (&[vit, "--aux", speech, "--lambda", "qkv=1,fc1=2", "--layers", "qkv"], &["fc1 layers", "fc1=NUMBER"]),
        (
            &[vit, "--aux", "fixtures/layouts/mae_tiny.pth", "--lambda", "1", "--blocks", "0"],
            &["blocks.0.attn.qkv.weight", "[192, 64]", "[48, 16]", "mae_tiny.pth"],
        ),
        (&[vit, "--aux", "fixtures/layouts/mae_tiny.pth", "--lambda", "1"], &["6 blocks (0-5)", "2 (0-1)"]),
        (
            &[vit, "--aux", "fixtures/layouts/dtypes.pth", "--lambda", "1"],
            &["dtypes.pth", "no tensor is named like a linear layer"],
        ),
        (
            &[vit, "--aux", speech, "--lambda", "1", "--target-pattern", r"layer(?<block>\d+)\.(?<layer>qkv)"],
            &["nearest", "blocks.N.attn.qkv.weight"],
        ),
        (&[vit, "--aux", speech, "--lambda", "1", "--aux-pattern", r"b(?<block>l)?ocks\.(?<layer>qkv)"], &["nearest"]),
        (&["fixtures/layouts/ema_only.pth", "--aux", speech, "--lambda", "1"], &["EMA", "--root", "'state_dict_ema'"]),
    ] {
        let stderr = fold(args);
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is not in {stderr}");
        }
        assert!(!output.exists());
    }
}

#[test]
fn json_has_the_documented_names() {
    let text = succeed(&["inspect", "fixtures/mnist_vit.pth", "--json", "--hash", "--stats", "--match", "^head"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let documented = [
        "file",
        "bytes",
        "container",
        "shard",
        "root",
        "roots",
        "family",
        "architecture",
        "tensors",
        "others",
        "lambdas",
        "values",
    ];
    assert_eq!(keys, documented);
    assert_eq!(report["container"], "torch-zip");
    assert_eq!(report["roots"], json!([{"path": "", "tensors": 80, "ema": false}]));
    assert_eq!(report["family"], "timm");
    assert_eq!(report["architecture"], "ViT: 6 blocks x 64, patch 4, 64+1 positions, 10 classes");
    let recorded = &expected("tensors.json")["mnist_vit.pth"];
    for tensor in report["tensors"].as_array().unwrap() {
        let theirs = &recorded[tensor["name"].as_str().unwrap()];
        assert_eq!(
            [&tensor["dtype"], &tensor["shape"], &tensor["sha256"]],
            [&theirs["dtype"], &theirs["shape"], &theirs["sha256"]]
        );
        assert_eq!(tensor["stats"].as_object().unwrap().len(), 7);
    }
    assert_eq!(report["tensors"].as_array().unwrap().len(), 2);
}

#[test]
fn learned_lambdas_are_the_recorded_ones() {
    let report: Value = serde_json::from_str(&succeed(&["inspect", "fixtures/mnist_pathway.pth", "--json"])).unwrap();
    let lambdas = report["lambdas"].as_object().unwrap();
    assert_eq!(lambdas.len(), 24);
    for (module, theirs) in expected("training.json")["mnist_pathway"]["cross_modal_scale"].as_object().unwrap() {
        // blocks.0.attn.qkv -> 0.qkv
        let parts: Vec<&str> = module.split('.').collect();
        assert_eq!(&lambdas[&format!("{}.{}", parts[1], parts[3])], theirs, "{module}");
    }
}

#[test]
fn fold_json_has_the_documented_names() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged.pth");
    let args =
        ["fold", "fixtures/mnist_vit.pth", "--aux", "fixtures/speech_vit.pth", "--lambda", "0.1", "--json", "-o"];
    let text = succeed(&[&args[..], &[output.to_str().unwrap(), "--bias", "fold"]].concat());
    let report: Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&report), "target aux replaced output layers dropped notes device non_finite seconds");
    let model = "file root family architecture layers outside roots";
    assert_eq!((keys(&report["target"]), keys(&report["aux"][0])), (model.into(), model.into()));
    assert_eq!(keys(&report["output"]), "file format tensors bytes written files parts");
    let layer = "name parameter block kind shape dtype bytes terms relative_change";
    assert_eq!(keys(&report["layers"][0]), layer);
    assert_eq!(keys(&report["layers"][0]["terms"][0]), "aux input lambda");
    assert_eq!(report["layers"].as_array().unwrap().len(), 48);
    assert_eq!(report["layers"][1]["parameter"], "bias");
    assert_eq!(report["output"]["bytes"], output.metadata().unwrap().len());
    let pathway = ["fold", "fixtures/mnist_pathway.pth", "--json", "--dry-run", "-o", "nothing.pth", "--quiet"];
    let report: Value = serde_json::from_str(&succeed(&pathway)).unwrap();
    assert_eq!(keys(&report["dropped"][0]), "name reason folded");
    assert_eq!((&report["output"]["written"], &report["seconds"]), (&json!(false), &Value::Null));
    assert_eq!(report["target"]["outside"], json!(300));
}

#[test]
fn quiet_leaves_out_notes() {
    let inspect = ["inspect", "fixtures/layouts/ema_only.pth"];
    assert!(!run(&inspect).stderr.is_empty());
    assert!(run(&[&inspect[..], &["--quiet"]].concat()).stderr.is_empty());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = command()
        .args(["inspect", "fixtures/mnist_pathway.pth", "--root", "", "--full"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn colours_are_for_terminals_and_for_those_who_ask() {
    let lambdas = ["inspect", "fixtures/mnist_pathway.pth", "--lambdas"];
    let mut piped = command();
    let output = piped.env_remove("NO_COLOR").args(lambdas).output().unwrap();
    assert!(!String::from_utf8(output.stdout).unwrap().contains('\x1b'), "a pipe is no terminal");
    assert!(succeed(&[&lambdas[..], &["--color", "always"]].concat()).contains('\x1b'));
}

#[test]
fn help_has_examples() {
    for command in [
        &["--help"][..],
        &["inspect", "--help"],
        &["fold", "--help"],
        &["graft", "--help"],
        &["join", "--help"],
        &["scan", "--help"],
        &["diff", "--help"],
        #[cfg(feature = "verify")]
        &["convert", "--help"],
        #[cfg(feature = "verify")]
        &["verify", "--help"],
        #[cfg(feature = "verify")]
        &["learn", "--help"],
    ] {
        assert!(succeed(command).contains("Examples:\n  m2pt-surgery "), "{command:?}");
    }
}
