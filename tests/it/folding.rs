//! Folding: the values are those that PyTorch computes, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use m2pt_surgery::{
    BiasMode, Checkpoint, DType, DepthMismatch, Error, FoldProblem, FoldRequest, LambdaSpec, LayerKind, RootChoice,
    StateDict,
};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use crate::support::{Digest, digests, expected, fixture, recorded};

/// Runs a fold and returns the digests of what it wrote.
fn fold(request: FoldRequest) -> Result<Vec<Digest>, Error> {
    let output = request.output.clone();
    request.open()?.plan()?.run(&mut ())?;
    let checkpoint = Checkpoint::open(&output)?;
    Ok(digests(&checkpoint.state_dict(&RootChoice::Auto)?))
}

fn problem(request: FoldRequest) -> FoldProblem {
    match request.open().and_then(|inputs| inputs.plan().map(|_| ())) {
        Err(Error::Fold(problem)) => *problem,
        other => panic!("{other:?}"),
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn request(&self, target: &Path, aux: &[&Path], lambda: Option<&str>) -> FoldRequest {
        let mut request = FoldRequest::new(target, self.path("out.safetensors")).unwrap();
        request.force = true;
        for path in aux {
            request.add_aux(path);
        }
        request.lambda = lambda.map(|text| LambdaSpec::parse(text).unwrap());
        request
    }

    /// A copy of some tensors of a checkpoint as safetensors, under the names that `rename` gives them.
    fn copy(&self, name: &str, tensors: &StateDict<'_>, rename: impl Fn(&str) -> Option<String>) -> PathBuf {
        let mut views = BTreeMap::new();
        for (index, spec) in tensors.specs().iter().enumerate() {
            if let Some(name) = rename(&spec.name) {
                assert_eq!(spec.dtype, DType::F32);
                views.insert(name, (spec.shape.clone(), tensors.tensor(index).unwrap().view().to_vec()));
            }
        }
        let views = views
            .iter()
            .map(|(name, (shape, bytes))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let path = self.path(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }
}

/// The options of a recorded case, as the library takes them.
fn options(request: &mut FoldRequest, cli: &[&str]) {
    let mut cli = cli.iter();
    while let Some(&flag) = cli.next() {
        let (flag, value) = flag.split_once('=').unwrap_or_else(|| (flag, cli.next().unwrap()));
        match flag {
            "--lambda" => request.lambda = Some(LambdaSpec::parse(value).unwrap()),
            "--bias" => request.bias = if value == "fold" { BiasMode::Fold } else { panic!("{value}") },
            "--dtype" => request.dtype = DType::from_name(value),
            "--blocks" => request.blocks = m2pt_surgery::BlockSet::parse(value),
            "--layers" => request.kinds = Some(value.split(',').map(|k| LayerKind::from_name(k).unwrap()).collect()),
            "--aux" => {
                let (path, lambda) = value.rsplit_once('=').unwrap();
                request.aux.push(m2pt_surgery::AuxRequest {
                    path: crate::support::repository().join(path),
                    lambda: Some(LambdaSpec::parse(lambda).unwrap()),
                });
            }
            other => panic!("unknown option {other}"),
        }
    }
}

#[test]
fn every_recorded_fold_is_bit_identical_to_pytorchs_in_both_formats() {
    let folder = Folder::new();
    let cases = expected("folds.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 14);
    for case in cases {
        for output in ["out.pth", "out.safetensors"] {
            let strings = |key: &str| -> Vec<&str> {
                case[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
            };
            let args = strings("args");
            let target = crate::support::repository().join(args[0]);
            let mut request = FoldRequest::new(target, folder.path(output)).unwrap();
            request.force = true;
            // `--aux FILE` without a lambda of its own stands apart from the options.
            let mut rest = Vec::new();
            let mut args = args[1..].iter();
            while let Some(&arg) = args.next() {
                match arg {
                    "--aux" => match args.next().unwrap() {
                        file if file.contains('=') => rest.extend(["--aux", file]),
                        file => _ = request.add_aux(crate::support::repository().join(file)),
                    },
                    other => rest.push(other),
                }
            }
            options(&mut request, &rest);
            assert_eq!(fold(request).unwrap(), recorded(&case["tensors"]), "{} {output}", case["name"]);
        }
    }
}

#[test]
fn a_lambda_file_gives_what_the_same_lambdas_give() {
    let folder = Folder::new();
    let aux = fixture("speech_vit.pth");
    let target = fixture("mnist_vit.pth");
    let given = fold(folder.request(&target, &[&aux], Some("qkv=0.1,fc1=0.02"))).unwrap();
    let mut entries = serde_json::Map::new();
    for block in 0..6 {
        // Each layer by one of its two names.
        let name = if block % 2 == 0 { format!("blocks.{block}.attn.qkv") } else { format!("{block}.qkv") };
        entries.insert(name, 0.1.into());
        entries.insert(format!("blocks.{block}.mlp.fc1"), 0.02.into());
    }
    let mut request = folder.request(&target, &[&aux], None);
    request.lambda = Some(LambdaSpec::from_json("x.json", &serde_json::Value::Object(entries).to_string()).unwrap());
    assert_eq!(fold(request).unwrap(), given);
}

#[test]
fn learned_scales_fold_with_the_auxiliary_from_another_file() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(fixture("mnist_pathway.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let scales =
        folder.copy("scales.safetensors", &tensors, |name| (!name.ends_with("aux_weight")).then(|| name.to_owned()));
    let aux = folder.copy("aux.safetensors", &tensors, |name| {
        name.strip_suffix("aux_weight").map(|module| format!("{module}weight"))
    });
    assert!(matches!(
        problem(folder.request(&scales, &[], None)),
        FoldProblem::IncompletePathway { lacking: "aux_weight", .. }
    ));
    let mut ours = fold(folder.request(&scales, &[&aux], None)).unwrap();
    let cases = expected("folds.json");
    let learned = cases.as_array().unwrap().iter().find(|case| case["name"] == "learned").unwrap();
    let mut theirs = recorded(&learned["tensors"]);
    // The order is that of the copy.
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}

#[test]
fn learned_pathways_take_no_other_lambda_or_auxiliary() {
    let folder = Folder::new();
    let (pathway, aux) = (fixture("mnist_pathway.pth"), fixture("speech_vit.pth"));
    assert!(matches!(problem(folder.request(&pathway, &[], Some("0.1"))), FoldProblem::LambdaOnLearned { .. }));
    assert!(matches!(problem(folder.request(&pathway, &[&aux], Some("0.1"))), FoldProblem::LambdaOnLearned { .. }));
    assert!(matches!(problem(folder.request(&pathway, &[&aux], None)), FoldProblem::AuxOnLearned { .. }));
}

#[test]
fn an_incomplete_pathway_is_refused() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(fixture("mnist_pathway.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let without = |lacking: &'static str| {
        folder.copy("partial.safetensors", &tensors, |name| (name != lacking).then(|| name.to_owned()))
    };
    let problem = |path: &Path| problem(folder.request(path, &[], None));
    let no_aux = problem(&without("blocks.3.mlp.fc1.aux_weight"));
    assert!(matches!(no_aux, FoldProblem::IncompletePathway { module, .. } if module == "blocks.3.mlp.fc1"));
    let no_scale = problem(&without("blocks.3.mlp.fc1.cross_modal_scale"));
    assert!(matches!(no_scale, FoldProblem::IncompletePathway { lacking: "cross_modal_scale", .. }));
}

#[test]
fn depth_mismatch_is_an_error_unless_the_common_blocks_are_asked_for() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(fixture("speech_vit.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let shallow = folder.copy("shallow.safetensors", &tensors, |name| {
        (!name.starts_with("blocks.4.") && !name.starts_with("blocks.5.")).then(|| name.to_owned())
    });
    let target = fixture("mnist_vit.pth");
    let refused = problem(folder.request(&target, &[&shallow], Some("0.1")));
    let FoldProblem::Depth { target_blocks, aux_blocks, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((target_blocks, aux_blocks), (vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2, 3]));

    // Six blocks with other numbers are no match either.
    let shifted = folder.copy("shifted.safetensors", &tensors, |name| {
        let (block, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        Some(format!("blocks.{}.{rest}", block.parse::<usize>().unwrap() + 1))
    });
    let mut first = folder.request(&target, &[&shifted], Some("0.1"));
    first.depth_mismatch = DepthMismatch::First;
    assert!(matches!(problem(first), FoldProblem::Numbering { .. }));

    let mut first = folder.request(&target, &[&shallow], Some("0.1"));
    first.depth_mismatch = DepthMismatch::First;
    let inputs = first.clone().open().unwrap();
    let notes = inputs.plan().unwrap().plan().notes.join("\n");
    assert!(notes.contains("mnist_vit.pth: blocks 4-5 have no counterpart in"), "{notes}");
    let mut chosen = folder.request(&target, &[&fixture("speech_vit.pth")], Some("0.1"));
    chosen.blocks = m2pt_surgery::BlockSet::parse("0-3");
    assert_eq!(fold(first).unwrap(), fold(chosen).unwrap());
}

#[test]
fn rejects_choices_that_leave_nothing_to_fold_or_are_ignored() {
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(fixture("speech_vit.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let shallow = folder.copy("shallow.safetensors", &tensors, |name| {
        (!name.starts_with("blocks.4.") && !name.starts_with("blocks.5.")).then(|| name.to_owned())
    });
    let (target, speech) = (fixture("mnist_vit.pth"), fixture("speech_vit.pth"));
    let mut chosen = folder.request(&target, &[&shallow], Some("0.1"));
    (chosen.depth_mismatch, chosen.blocks) = (DepthMismatch::First, m2pt_surgery::BlockSet::parse("3-4"));
    assert!(matches!(problem(chosen), FoldProblem::Depth { .. }));
    let mut named = folder.request(&target, &[&shallow], None);
    named.depth_mismatch = DepthMismatch::First;
    named.lambda = Some(LambdaSpec::from_json("l.json", r#"{"5.qkv": 0.1}"#).unwrap());
    assert!(matches!(problem(named), FoldProblem::NoAuxLayer { .. }));
    let mut unknown = folder.request(&target, &[&speech], None);
    unknown.lambda = Some(LambdaSpec::from_json("l.json", r#"{"6.qkv": 0.1}"#).unwrap());
    assert!(matches!(problem(unknown), FoldProblem::Lambda { source_name, .. } if source_name == "l.json"));
    let mut ignored = folder.request(&target, &[&speech], Some("0.1"));
    ignored.aux[0].lambda = LambdaSpec::parse("0.2").ok();
    assert!(matches!(problem(ignored), FoldProblem::Unused { option: "--lambda", .. }));
    let too_large = problem(folder.request(&target, &[&speech], Some("1e39")));
    assert!(matches!(too_large, FoldProblem::LambdaTooLarge { .. }));
}

#[test]
fn an_auxiliary_with_pathways_of_its_own_is_noted() {
    let folder = Folder::new();
    let (target, aux) = (fixture("mnist_vit.pth"), fixture("mnist_pathway.pth"));
    let inputs = folder.request(&target, &[&aux], Some("0.1")).open().unwrap();
    let fold = inputs.plan().unwrap();
    assert!(fold.plan().notes.iter().any(|note| note.contains("mnist_pathway.pth carries 24 learned pathways")));
}

#[test]
fn pathways_of_layers_that_are_not_folded_are_named_as_lost() {
    let folder = Folder::new();
    let mut request = folder.request(&fixture("mnist_pathway.pth"), &[], None);
    request.kinds = Some(vec![LayerKind::Qkv]);
    let inputs = request.open().unwrap();
    let fold = inputs.plan().unwrap();
    let dropped = &fold.plan().dropped;
    assert_eq!((dropped.len(), dropped.iter().filter(|d| d.folded).count()), (48, 12));
    assert!(fold.plan().notes.iter().any(|note| note.contains("blocks.5.mlp.fc2")));
}

#[test]
fn raw_checkpoints_of_other_families_serve_as_auxiliaries() {
    let folder = Folder::new();
    for (file, family) in [
        ("layouts/mae_tiny.pth", "mae"),
        ("layouts/videomae_tiny.pth", "videomae"),
        ("layouts/pointmae_tiny.pth", "point-mae"),
    ] {
        for target in ["layouts/mae_tiny.pth", "layouts/pointmae_tiny.pth"] {
            let inputs = folder.request(&fixture(target), &[&fixture(file)], Some("0.5")).open().unwrap();
            let fold = inputs.plan().unwrap();
            let aux = &fold.aux()[0];
            assert_eq!(aux.family.as_ref().unwrap().family.name(), family);
            assert_eq!(aux.layers.as_slice().len(), 8, "the encoder's two blocks, not the decoder's");
            assert_eq!(fold.plan().folded.len(), 8);
            let report = fold.run(&mut ()).unwrap();
            assert!(report.run.norms.iter().flatten().all(|norms| norms.change > 0.0));
        }
    }
}

#[test]
fn the_relative_change_is_that_of_the_norms() {
    // torch: (0.1 * A).norm() / W.norm() of blocks.0.attn.qkv.weight, in float64
    let folder = Folder::new();
    let target = fixture("mnist_vit.pth");
    let inputs = folder.request(&target, &[&fixture("speech_vit.pth")], Some("0.1")).open().unwrap();
    let fold = inputs.plan().unwrap();
    let report = fold.run(&mut ()).unwrap();
    let first = fold.plan().folded.iter().find(|f| f.name == "blocks.0.attn.qkv.weight").unwrap();
    let norms = report.run.norms[first.step].unwrap();
    assert!(((norms.change / norms.source).sqrt() - RELATIVE_CHANGE).abs() < 1e-7);
}

/// Computed by PyTorch 2.15 in float64.
const RELATIVE_CHANGE: f64 = 0.10402049224655281;

#[test]
fn a_stopped_run_leaves_nothing_behind() {
    struct Stop;
    impl m2pt_surgery::Progress for Stop {
        fn advance(&mut self, _: u64) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let folder = Folder::new();
    let inputs = folder.request(&fixture("mnist_vit.pth"), &[&fixture("speech_vit.pth")], Some("0.1")).open().unwrap();
    assert!(matches!(inputs.plan().unwrap().run(&mut Stop), Err(Error::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0);
}
