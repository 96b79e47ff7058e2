//! Images become the tensors that timm's evaluation loader makes of them, bit for bit.

use m2pt_surgery::data::{
    CropMode, DataError, Interpolation, Preprocessing, PreprocessingProblem, SampleError, SampleOptions, SampleProblem,
    SampleSet, SetProblem,
};
use m2pt_surgery::tensor::sha256_bytes;
use serde_json::{Value, json};

use crate::support::{expected, fixture};

/// The hash of an input's values, as the generator records it.
pub(crate) fn hash(input: &[f32]) -> String {
    sha256_bytes(&input.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

fn open(path: &std::path::Path) -> SampleSet {
    SampleSet::open(path, &SampleOptions::default()).unwrap()
}

fn index(set: &SampleSet, name: &str) -> usize {
    set.samples().iter().position(|sample| sample.name() == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Compares recorded cases; returns how many there were.
fn compare(cases: &Value) -> usize {
    let set = open(&fixture("samples/images"));
    let mut different = Vec::new();
    for case in cases.as_array().unwrap() {
        let preprocessing = Preprocessing::from_timm(&case["config"]).unwrap();
        let loaded = set.load(index(&set, case["image"].as_str().unwrap()), &preprocessing);
        let same = match (&loaded, case["sha256"].as_str()) {
            (Ok(input), Some(recorded)) => hash(input) == recorded,
            (Err(error), None) => matches!(error.problem, SampleProblem::NothingLeft),
            _ => false,
        };
        if !same {
            different.push(format!("{case}: {:?}", loaded.err()));
        }
    }
    assert!(different.is_empty(), "{} cases differ:\n{}", different.len(), different.join("\n"));
    cases.as_array().unwrap().len()
}

#[test]
fn every_kind_of_image_has_the_pixels_that_pillow_reads() {
    let set = open(&fixture("samples/images"));
    let cases = &expected("samples.json")["pixels"];
    // Each in colour and in grey.
    assert_eq!(compare(cases), 2 * set.len());
}

#[test]
fn every_size_filter_and_crop_gives_timms_tensor() {
    assert!(compare(&expected("samples.json")["transforms"]) > 100);
}

#[test]
fn the_digits_are_preprocessed_as_for_their_model() {
    let set = open(&fixture("mnist"));
    let bytes = std::fs::read(fixture("expected/inputs_16.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = json!({"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]});
    let preprocessing = Preprocessing::from_timm(&config).unwrap();
    let indices = tensors.tensor("indices").unwrap().data().to_vec();
    let inputs = tensors.tensor("inputs").unwrap().data().to_vec();
    let inputs: Vec<f32> = inputs.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for (bytes, input) in indices.as_chunks::<8>().0.iter().zip(inputs.chunks(3 * 32 * 32)) {
        let index = i64::from_le_bytes(*bytes) as usize;
        assert_eq!(set.load(index, &preprocessing).unwrap(), input, "image {index}");
    }
    // The labels that the generator gave the model.
    let bytes = std::fs::read(fixture("expected/logits.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let labels = tensors.tensor("labels").unwrap().data().to_vec();
    let labels: Vec<usize> =
        labels.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as usize).collect();
    let found: Vec<usize> = set.samples().iter().map(|sample| sample.label().unwrap()).collect();
    assert_eq!(found, labels);
    let predictions = expected("predictions.json");
    let names: Vec<String> = set.samples().iter().map(|sample| format!("mnist/{}", sample.name())).collect();
    let listed = predictions.as_object().unwrap().values().find(|value| value[0].is_string()).unwrap();
    assert_eq!(json!(names), *listed);
}

#[test]
fn a_configuration_is_read_from_the_files_that_timm_writes() {
    let config = json!({
        "architecture": "vit_base_patch16_clip_384", "num_classes": 1000, "input_size": [3, 1, 1],
        "pretrained_cfg": {
            "input_size": [3, 384, 384], "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 1.0,
            "crop_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "pool_size": null,
        },
    });
    let read = Preprocessing::from_timm(&config).unwrap();
    let expected = Preprocessing {
        input_size: [3, 384, 384],
        crop_pct: 1.0,
        crop_mode: CropMode::Squash,
        interpolation: Interpolation::Bicubic,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
    };
    assert_eq!(read, expected);
    assert_eq!(Preprocessing::from_timm(&json!({"crop_mode": null})).unwrap(), Preprocessing::default());
}

#[test]
fn rejects_configurations_that_cannot_be_meant() {
    let problem = |config: Value| Preprocessing::from_timm(&config).unwrap_err();
    assert_eq!(problem(json!([3])), PreprocessingProblem::NotAnObject);
    assert_eq!(problem(json!({"pretrained_cfg": "vit"})), PreprocessingProblem::NotAnObject);
    for (config, bad) in [
        (json!({"input_size": 224}), "input_size"),
        (json!({"input_size": [3, 224]}), "input_size"),
        (json!({"input_size": [3, 224, -1]}), "input_size"),
        (json!({"input_size": [3, 224.5, 224]}), "input_size"),
        (json!({"crop_pct": "0.9"}), "crop_pct"),
        (json!({"crop_mode": "middle"}), "crop_mode"),
        (json!({"interpolation": "random"}), "interpolation"),
        (json!({"interpolation": 3}), "interpolation"),
        (json!({"mean": 0.5}), "mean"),
        (json!({"std": [1, "1", 1]}), "std"),
    ] {
        assert!(matches!(problem(config), PreprocessingProblem::Value { key, .. } if key == bad), "{bad}");
    }
    assert_eq!(problem(json!({"input_size": [4, 8, 8]})), PreprocessingProblem::Channels(4));
    for size in [[3usize, 0, 8], [1, 1 << 20, 1 << 20], [3, usize::MAX / 2, usize::MAX / 2]] {
        let problem = problem(json!({"input_size": size, "mean": vec![0.0; size[0]], "std": vec![1.0; size[0]]}));
        assert_eq!(problem, PreprocessingProblem::Size(size));
    }
    for crop_pct in [0.0, -1.0, 1000.0, 1e-9] {
        assert_eq!(problem(json!({"crop_pct": crop_pct})), PreprocessingProblem::CropPct(crop_pct));
    }
    let grey = json!({"input_size": [1, 8, 8], "std": [1.0]});
    assert_eq!(problem(grey), PreprocessingProblem::Statistics { key: "mean", found: 3, channels: 1 });
    let one = json!({"std": [1.0]});
    assert_eq!(problem(one), PreprocessingProblem::Statistics { key: "std", found: 1, channels: 3 });
    let number = |key, value| PreprocessingProblem::Number { key, value };
    // 1e-46 is 0 in float32.
    assert_eq!(problem(json!({"std": [1.0, 1e-46, 1.0]})), number("std", 1e-46));
    assert_eq!(problem(json!({"mean": [1e39, 0.0, 0.0]})), number("mean", 1e39));
    let nan = Preprocessing { crop_pct: f64::NAN, ..Preprocessing::default() };
    assert!(matches!(nan.check(), Err(PreprocessingProblem::CropPct(_))));
}

#[test]
fn a_preprocessing_that_cannot_be_is_told_before_any_sample() {
    let bad = Preprocessing { mean: vec![0.5], ..Preprocessing::default() };
    let set = open(&fixture("samples/images"));
    assert!(matches!(set.batches(&bad, 4, 1), Err(DataError::Preprocessing(PreprocessingProblem::Statistics { .. }))));
    assert!(matches!(
        set.load(0, &bad),
        Err(SampleError { problem: SampleProblem::Preprocessing(PreprocessingProblem::Statistics { .. }), .. })
    ));
}

#[test]
fn arrays_are_the_samples_that_numpy_wrote() {
    for array in expected("samples.json")["arrays"].as_array().unwrap() {
        let file = array["file"].as_str().unwrap();
        let set = open(&fixture("samples").join(file));
        let preprocessing = Preprocessing::from_timm(&array["config"]).unwrap();
        let inputs = file.starts_with("inputs");
        assert_eq!(set.is_preprocessed(), inputs, "{file}");
        assert_eq!(set.input_shape(), inputs.then_some([3, 16, 16]), "{file}");
        let labels: Vec<Option<usize>> = set.samples().iter().map(m2pt_surgery::data::Sample::label).collect();
        assert_eq!(json!(labels), array["labels"], "{file}");
        let hashes: Vec<String> = (0..set.len()).map(|i| hash(&set.load(i, &preprocessing).unwrap())).collect();
        assert_eq!(json!(hashes), array["sha256"], "{file}");
    }
}

#[test]
fn inputs_of_another_size_are_refused() {
    let set = open(&fixture("samples/inputs.npz"));
    let error = set.check(&Preprocessing::default()).unwrap_err();
    let DataError::Set { problem, .. } = error else { panic!("{error}") };
    assert_eq!(problem, SetProblem::InputShape { found: [3, 16, 16], needed: [3, 224, 224] });
    let error = set.load(1, &Preprocessing::default()).unwrap_err();
    assert!(error.to_string().contains("inputs.npz, sample 1: "), "{error}");
}
