//! Running models: the logits are those that PyTorch and timm computed.

use candle_core::{DType, Device, Tensor};
use m2pt_surgery::model::{Branches, Config, Hints, Load, ModelError, Pool, Vit};
use m2pt_surgery::{Checkpoint, FoldRequest, LambdaSpec, RootChoice, StateDict};

use crate::support::fixture;

/// The largest difference of a logit that is put down to another order of summation; logits are of the order of 10.
const TOLERANCE: f32 = 1e-4;

/// A recorded tensor of floats, and its number of columns.
fn floats(file: &str, name: &str) -> (Vec<f32>, Vec<usize>) {
    let bytes = std::fs::read(fixture("expected").join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (values, tensor.shape().to_vec())
}

/// The logits that PyTorch computed for the recorded inputs.
fn recorded(model: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(fixture("expected/inputs_16.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let indices = tensors.tensor("indices").unwrap().data().to_vec();
    let (logits, shape) = floats("logits.safetensors", model);
    let row = |b: &[u8; 8]| i64::from_le_bytes(*b) as usize * shape[1];
    indices.as_chunks::<8>().0.iter().map(|b| logits[row(b)..row(b) + shape[1]].to_vec()).collect()
}

/// The fixtures are no architecture of timm's: their heads have to be told.
fn configured(tensors: &StateDict<'_>) -> Result<Config, ModelError> {
    Config::detect(tensors, &Hints { heads: Some(4), ..Hints::default() }).map(|detected| detected.config)
}

fn logits(path: &std::path::Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let config = configured(&tensors).unwrap();
    assert_eq!((config.depth, config.width, config.pool, config.classes), (6, 64, Pool::Token, Some(10)));
    let vit = Vit::new(&config, &tensors, &Device::Cpu).unwrap();
    let (inputs, shape) = floats("inputs_16.safetensors", "inputs");
    vit.forward(&Tensor::from_vec(inputs, shape, &Device::Cpu).unwrap()).unwrap().to_vec2().unwrap()
}

fn close(ours: &[Vec<f32>], theirs: &[Vec<f32>]) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() < TOLERANCE, "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn logits_of_target_and_unfolded_pathway_are_pytorchs() {
    close(&logits(&fixture("mnist_vit.pth")), &recorded("target"));
    close(&logits(&fixture("mnist_early.pth")), &recorded("early"));
    close(&logits(&fixture("mnist_pathway.pth")), &recorded("pathway"));
}

#[test]
fn folded_models_compute_what_pytorchs_folded_models_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged.pth");
    let fold = |target: &str, lambda: Option<&str>| {
        let mut request = FoldRequest::new(fixture(target), &output).unwrap();
        request.force = true;
        if let Some(lambda) = lambda {
            request.add_aux(fixture("speech_vit.pth"));
            request.lambda = Some(LambdaSpec::parse(lambda).unwrap());
        }
        request.open().unwrap().plan().unwrap().run(&mut ()).unwrap();
        logits(&output)
    };
    close(&fold("mnist_vit.pth", Some("0.1")), &recorded("folded_0.1"));
    close(&fold("mnist_vit.pth", Some("0.3")), &recorded("folded_0.3"));
    let folded = fold("mnist_pathway.pth", None);
    close(&folded, &recorded("pathway_folded"));
    // The fold is exact up to rounding: the pathway run as two branches gives the same.
    close(&folded, &logits(&fixture("mnist_pathway.pth")));
}

#[test]
fn branches_and_weights_folded_in_memory_compute_what_pytorchs_folded_model_does() {
    let (target, aux) = (fixture("mnist_vit.pth"), fixture("speech_vit.pth"));
    let (target, aux) = (Checkpoint::open(target).unwrap(), Checkpoint::open(aux).unwrap());
    let tensors = target.state_dict(&RootChoice::Auto).unwrap();
    let aux = aux.state_dict(&RootChoice::Auto).unwrap();
    let mut branches = Branches::default();
    for n in 0..6 {
        for layer in ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"] {
            let name = format!("blocks.{n}.{layer}.weight");
            branches.add(name.clone(), &aux, aux.find(&name).unwrap(), 0.1);
        }
    }
    let config = configured(&tensors).unwrap();
    let (inputs, shape) = floats("inputs_16.safetensors", "inputs");
    let inputs = Tensor::from_vec(inputs, shape, &Device::Cpu).unwrap();
    for fold in [false, true] {
        let load = Load { branches: branches.clone(), fold, ..Load::new(&Device::Cpu) };
        let vit = Vit::load(&config, &tensors, &load).unwrap();
        close(&vit.forward(&inputs).unwrap().to_vec2().unwrap(), &recorded("folded_0.1"));
    }
    // A weight for a layer that is not there, and one of another shape.
    branches.add("blocks.9.attn.qkv.weight", &aux, 0, 0.1);
    let load = Load { branches: branches.clone(), ..Load::new(&Device::Cpu) };
    assert!(matches!(Vit::load(&config, &tensors, &load), Err(ModelError::Branch(_))));
    let mut branches = Branches::default();
    branches.add("blocks.0.attn.qkv.weight", &aux, aux.find("blocks.0.attn.proj.weight").unwrap(), 0.1);
    let load = Load { branches, ..Load::new(&Device::Cpu) };
    assert!(matches!(Vit::load(&config, &tensors, &load), Err(ModelError::Branch(_))));
}

#[test]
fn pooled_models_of_other_channels_and_grids_run() {
    let checkpoint = Checkpoint::open(fixture("speech_vit.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let config = configured(&tensors).unwrap();
    assert_eq!((config.channels, config.patches(), config.prefix(), config.pool), (1, 192, 1, Pool::Average));
    assert!(config.fc_norm);
    let vit = Vit::new(&config, &tensors, &Device::Cpu).unwrap();
    let spectrogram = Tensor::zeros((1, 1, 96, 32), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(vit.forward(&spectrogram).unwrap().dims(), [1, 12]);
}

#[test]
fn rejects_heads_that_do_not_divide_the_width() {
    let checkpoint = Checkpoint::open(fixture("mnist_vit.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    for heads in [0, 5] {
        let hints = Hints { heads: Some(heads), ..Hints::default() };
        assert!(matches!(Config::detect(&tensors, &hints), Err(ModelError::Config(_))));
    }
}

#[test]
fn rejects_tensors_that_are_missing_or_left_over() {
    let checkpoint = Checkpoint::open(fixture("layouts/mae_tiny.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let config = configured(&tensors).unwrap();
    let error = Vit::new(&config, &tensors, &Device::Cpu).unwrap_err();
    assert!(matches!(error, ModelError::Keys(keys) if keys.unexpected.contains(&"mask_token".to_owned())));
    let checkpoint = Checkpoint::open(fixture("layouts/videomae_tiny.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    // Its patches have three dimensions.
    assert!(matches!(configured(&tensors), Err(ModelError::NoVit(_))));
}
