//! Every form of vision transformer that timm's module makes computes what PyTorch computed, with the kernels of this crate and with candle's.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use m2pt_surgery::model::{Config, Detected, Hints, Kernels, Known, Load, ModelError, Precision, Vit};
use m2pt_surgery::{Checkpoint, RootChoice};

use crate::support::fixture;

/// Of logits of the order of 1, what is put down to another order of summation.
const TOLERANCE: f32 = 1e-5;

pub(crate) fn variants() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = std::fs::read_dir(fixture("models"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    found.sort();
    assert_eq!(found.len(), 26);
    found
}

pub(crate) struct Recorded {
    pub(crate) inputs: Tensor,
    pub(crate) logits: Vec<f32>,
    bf16: Vec<f32>,
    f16: Vec<f32>,
    pub(crate) config: serde_json::Value,
}

pub(crate) fn recorded(path: &std::path::Path) -> Recorded {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let config = &header.metadata().as_ref().unwrap()["config"];
    let shape = tensors.tensor("inputs").unwrap().shape().to_vec();
    Recorded {
        inputs: Tensor::from_vec(floats("inputs"), shape, &Device::Cpu).unwrap(),
        logits: floats("logits"),
        bf16: floats("logits_bf16"),
        f16: floats("logits_f16"),
        config: serde_json::from_str(config).unwrap(),
    }
}

/// What the recorded configuration says; a distilled model is in another module of timm, and is known from its weights and heads.
pub(crate) fn hints(config: &serde_json::Value) -> Hints {
    let known = match config["architecture"].as_str().unwrap() {
        "deit_tiny_distilled_patch16_224" => None,
        _ => Some(Known::from_json(config).unwrap()),
    };
    Hints { known, heads: Some(2), ..Hints::default() }
}

fn largest_difference(ours: &Tensor, theirs: &[f32]) -> f32 {
    let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_form_computes_what_pytorch_does_with_either_kernels() {
    for (name, path) in variants() {
        let recorded = recorded(&path);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
        let Detected { config, .. } = Config::detect(&tensors, &hints(&recorded.config)).unwrap();
        for kernels in [Kernels::Fused, Kernels::Candle] {
            let load = Load { kernels, ..Load::new(&Device::Cpu) };
            let vit = Vit::load(&config, &tensors, &load).unwrap_or_else(|error| panic!("{name}: {error}"));
            let difference = largest_difference(&vit.forward(&recorded.inputs).unwrap(), &recorded.logits);
            assert!(difference < TOLERANCE, "{name}, {kernels:?}: {difference}");
        }
    }
}

#[test]
fn half_types_are_as_near_to_float32_as_pytorchs() {
    for (name, path) in variants() {
        let recorded = recorded(&path);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
        let Detected { config, .. } = Config::detect(&tensors, &hints(&recorded.config)).unwrap();
        for (precision, theirs) in [(Precision::BF16, &recorded.bf16), (Precision::F16, &recorded.f16)] {
            let load = Load { precision, ..Load::new(&Device::Cpu) };
            let logits = Vit::load(&config, &tensors, &load).unwrap().forward(&recorded.inputs).unwrap();
            let ours = largest_difference(&logits, &recorded.logits);
            let floats = Tensor::new(recorded.logits.as_slice(), &Device::Cpu).unwrap();
            let theirs = largest_difference(&floats, theirs);
            assert!(ours > 0.0 && ours < 3.0 * theirs, "{name}, {precision:?}: {ours}, PyTorch's {theirs}");
        }
    }
}

#[test]
fn weights_tell_everything_but_heads_functions_epsilons_and_pooling() {
    for (name, path) in variants() {
        let recorded = recorded(&path);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
        let exact = Config::detect(&tensors, &hints(&recorded.config)).unwrap().config;
        let image = Some(exact.image);
        let activation = Some(exact.activation);
        let pool = Some(exact.pool);
        let hints = Hints { heads: Some(2), activation, pool, image, ..Hints::default() };
        let Ok(Detected { mut config, known, guesses }) = Config::detect(&tensors, &hints) else { panic!("{name}") };
        assert_eq!(known, None, "timm has nothing as small");
        // Whether a model without positions should have some is not in its weights.
        let expected = usize::from(name == "no_positions");
        assert_eq!(guesses.len(), expected, "{name}: all of it was given, and not {guesses:?}");
        assert!(guesses.iter().all(|guess| guess.contains("no positions") && guess.contains("--arch")), "{guesses:?}");
        config.norm.eps = exact.norm.eps;
        if let (Some(found), Some(norm)) = (&mut config.embed_norm, exact.embed_norm) {
            found.eps = norm.eps;
        }
        // What is not in the weights at all.
        config.pool_prefix = exact.pool_prefix;
        config.pool_hidden = exact.pool_hidden;
        config.dynamic = exact.dynamic;
        config.block = if name == "res_post" { exact.block } else { config.block };
        assert_eq!(config, exact, "{name}");
    }
}

#[test]
fn keys_that_do_not_fit_are_listed_with_near_misses() {
    let path = fixture("models/plain.safetensors");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
    let mut config = Config::detect(&tensors, &hints(&recorded(&path).config)).unwrap().config;
    config.hidden += 1;
    config.fc_norm = true;
    config.layer_scale = true;
    let Err(ModelError::Keys(problems)) = Vit::new(&config, &tensors, &Device::Cpu) else { panic!() };
    let missing: Vec<&str> = problems.missing.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["fc_norm.weight", "fc_norm.bias", "blocks.0.ls1.gamma", "blocks.1.ls2.gamma"] {
        assert!(missing.contains(&name), "{missing:?}");
    }
    assert_eq!(missing.len(), 6);
    assert_eq!(problems.unexpected, ["norm.bias", "norm.weight"]);
    // fc1.weight, fc1.bias and fc2.weight of both blocks
    assert_eq!(problems.shapes.len(), 6);
    let near = problems.missing.iter().find(|(name, _)| name == "fc_norm.weight").unwrap();
    assert_eq!(near.1.as_deref(), Some("norm.weight"));
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let path = fixture("models/plain.safetensors");
    let recorded = recorded(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
    let config = Config::detect(&tensors, &hints(&recorded.config)).unwrap().config;
    let vit = Vit::new(&config, &tensors, &Device::Cpu).unwrap();
    for shape in [[1, 1, 8, 8], [1, 3, 12, 8], [1, 3, 4, 4]] {
        assert!(vit.forward(&Tensor::zeros(&shape, candle_core::DType::F32, &Device::Cpu).unwrap()).is_err());
    }
    let hints = Hints { image: Some((12, 8)), ..hints(&recorded.config) };
    assert!(matches!(Config::detect(&tensors, &hints), Err(ModelError::Config(_))));
}

#[test]
fn blocks_can_be_looked_at_and_batches_do_not_matter() {
    let path = fixture("models/things.safetensors");
    let recorded = recorded(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
    let config = Config::detect(&tensors, &hints(&recorded.config)).unwrap().config;
    let vit = Vit::new(&config, &tensors, &Device::Cpu).unwrap();
    let mut seen = Vec::new();
    let traced = vit
        .forward_traced(&recorded.inputs, &mut |n, x| {
            seen.push((n, x.dims().to_vec()));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [(0, vec![3, 5, 16]), (1, vec![3, 5, 16])]);
    assert!(largest_difference(&traced, &recorded.logits) < TOLERANCE);
    let many = Tensor::cat(&[&recorded.inputs; 5], 0).unwrap();
    let logits = vit.forward(&many).unwrap();
    for n in 0..5 {
        let part = logits.narrow(0, 3 * n, 3).unwrap();
        assert!(largest_difference(&part, &recorded.logits) < TOLERANCE);
    }
}
