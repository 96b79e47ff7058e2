//! Reading: every tensor of every fixture is, bit for bit, what PyTorch reads.

use m2pt_surgery::tensor::Stats;
use m2pt_surgery::{Checkpoint, Error, RootChoice, RootProblem, StateDict};
use serde_json::{Value, json};

use crate::support::{digests, expected, fixture, recorded, whole};

#[test]
fn every_tensor_of_every_fixture_is_what_pytorch_reads() {
    let files = expected("tensors.json");
    let files = files.as_object().unwrap();
    assert!(files.len() >= 18, "the generator records every checkpoint");
    for (file, tensors) in files {
        let checkpoint = Checkpoint::open(fixture(file)).unwrap();
        assert_eq!(digests(&whole(&checkpoint)), recorded(tensors), "{file}");
        assert_eq!(checkpoint.tensor_count(), tensors.as_object().unwrap().len(), "{file}");
    }
}

#[test]
fn the_safetensors_library_reads_the_same_bytes() {
    for file in ["mnist_vit.safetensors", "layouts/dtypes.safetensors"] {
        let bytes = std::fs::read(fixture(file)).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(fixture(file)).unwrap();
        let ours = whole(&checkpoint);
        assert_eq!(theirs.len(), ours.specs().len());
        for (index, spec) in ours.specs().iter().enumerate() {
            let their = theirs.tensor(&spec.name).unwrap();
            assert_eq!(their.shape(), spec.shape);
            assert_eq!(their.data(), ours.tensor(index).unwrap().view().to_vec(), "{}", spec.name);
        }
    }
}

/// Within a few units in the last place of a double: the order of summation differs.
fn close(ours: Option<f64>, theirs: &Value, scale: f64) -> bool {
    match (ours, theirs.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * scale.max(b.abs()),
        (None, None) => theirs.is_null(),
        _ => false,
    }
}

#[test]
fn statistics_are_pytorchs() {
    for (file, tensors) in expected("stats.json").as_object().unwrap() {
        let checkpoint = Checkpoint::open(fixture(file)).unwrap();
        let ours = whole(&checkpoint);
        for (name, theirs) in tensors.as_object().unwrap() {
            let index = ours.find(name).unwrap();
            let stats = Stats::of(&ours.tensor(index).unwrap().view());
            let Ok(stats) = stats else {
                assert_eq!(theirs["zeros"], Value::Null, "{file} {name}");
                assert!(!ours.specs()[index].dtype.is_real());
                continue;
            };
            let scale = theirs["max"].as_f64().unwrap_or(0.0).abs().max(theirs["min"].as_f64().unwrap_or(0.0).abs());
            assert!(close(stats.mean(), &theirs["mean"], scale), "{file} {name}: {stats:?} {theirs}");
            assert!(close(stats.std(), &theirs["std"], scale), "{file} {name}: {stats:?} {theirs}");
            assert_eq!(json!([stats.min(), stats.max()]), json!([theirs["min"], theirs["max"]]), "{file} {name}");
            let counts = json!([stats.zeros(), stats.nan(), stats.inf()]);
            assert_eq!(counts, json!([theirs["zeros"], theirs["nan"], theirs["inf"]]), "{file} {name}");
        }
    }
}

#[test]
fn roots_are_listed_and_the_obvious_one_is_taken() {
    let checkpoint = Checkpoint::open(fixture("layouts/nested.pth")).unwrap();
    let roots: Vec<_> = checkpoint.roots().iter().map(|r| (r.path(), r.tensors(), r.is_ema())).collect();
    let expected = [
        ("state_dict", 32, false),
        ("state_dict_ema", 32, true),
        ("args", 1, false),
        ("", 1, false),
        ("same", 32, false),
    ];
    assert_eq!(roots, expected);
    let taken = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    assert_eq!((taken.root(), taken.specs().len()), ("state_dict", 32));
    let ema = checkpoint.state_dict(&RootChoice::Path("state_dict_ema".into())).unwrap();
    assert_eq!(ema.specs().len(), 32);
    assert_ne!(digests(&ema), digests(&taken));
    let problem = checkpoint.state_dict(&RootChoice::Path("nothing".into())).unwrap_err();
    assert!(matches!(problem, Error::Root { problem: RootProblem::NoSuchRoot { roots, .. }, .. } if roots.len() == 5));
}

#[test]
fn averaged_weights_are_not_taken_silently() {
    let checkpoint = Checkpoint::open(fixture("layouts/ema_only.pth")).unwrap();
    let error = checkpoint.state_dict(&RootChoice::Auto).unwrap_err();
    assert!(matches!(error, Error::Root { problem: RootProblem::OnlyEma(_), .. }));
    assert_eq!(checkpoint.state_dict(&RootChoice::Path("state_dict_ema".into())).unwrap().specs().len(), 32);
}

#[test]
fn aliases_are_both_there_and_share_their_storages() {
    let checkpoint = Checkpoint::open(fixture("layouts/nested.pth")).unwrap();
    let take = |root: &str| checkpoint.state_dict(&RootChoice::Path(root.into())).unwrap();
    let (first, second) = (take("state_dict"), take("same"));
    assert_eq!(digests(&first), digests(&second));
    let storages = |tensors: &StateDict<'_>| -> Vec<usize> {
        (0..tensors.specs().len()).map(|i| tensors.placement(i).storage).collect()
    };
    assert_eq!(storages(&first), storages(&second));
}

#[test]
fn values_that_are_no_tensors_are_shown_and_not_interpreted() {
    let values = Checkpoint::open(fixture("layouts/nested.pth")).unwrap().values();
    assert_eq!(values["epoch"], json!(7));
    assert_eq!(values["metric"], json!(0.8125));
    assert_eq!(values["history"], json!([0.5, 0.25, 0.125]));
    assert_eq!(values["note"], json!("text with \u{fc}n\u{ef}code"));
    assert_eq!(values["best"], json!({"acc": 0.5}));
    assert_eq!(values["order"], json!([1, 2, [3]]));
    assert_eq!(values["args"]["__class__"], json!("argparse.Namespace"));
    assert_eq!(values["optimizer"]["param_groups"][0]["betas"], json!([0.9, 0.999]));
    assert!(!values.contains_key("state_dict"), "tensors are no values");
    let metadata = Checkpoint::open(fixture("layouts/dtypes.safetensors")).unwrap().values();
    assert_eq!(metadata["__metadata__"], json!({"format": "pt"}));
}

#[test]
fn views_of_one_storage_know_it() {
    let checkpoint = Checkpoint::open(fixture("layouts/views.pth")).unwrap();
    let tensors = whole(&checkpoint);
    let mut by_storage = std::collections::BTreeMap::<usize, usize>::new();
    for index in 0..tensors.specs().len() {
        *by_storage.entry(tensors.placement(index).storage).or_default() += 1;
    }
    assert!(by_storage.values().any(|&views| views > 1), "the fixture has tied weights and several views of a storage");
    let expanded = tensors.find("expanded").unwrap();
    assert!(tensors.placement(expanded).strides.contains(&0));
    assert!(!tensors.placement(tensors.find("transposed").unwrap()).contiguous);
}
