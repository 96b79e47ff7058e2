//! Gradients of lambdas, heads and normalisations are PyTorch's, for every form of vision transformer.

use candle_core::{Device, Tensor};
use m2pt_surgery::learn::{Learner, Method, Objective, Optimizer, Share, Train};
use m2pt_surgery::model::{Branches, Config, Gradients, Kernels, Load, Training, Variable, Vit};
use m2pt_surgery::verify::Pathway;
use m2pt_surgery::{Checkpoint, RootChoice};
use serde_json::Value;

use crate::learning::{config, indices, inputs, numbers, samples};
use crate::support::expected;
use crate::variants::{hints, recorded, variants};

/// How the gradients of a form are computed.
#[derive(Clone, Copy)]
enum Way {
    Kept,
    Again,
    Composed,
    ComposedAgain,
    /// With candle's kernels, as on a GPU.
    Candle,
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

/// Each part of `ours` is `theirs`: relative to the whole part, since sums cancel where single numbers are small.
fn close(what: &str, ours: &[f64], theirs: &[f64], scale: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let norm = theirs.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-2 * scale);
    let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    assert!(apart < 1e-4 * norm, "{what}: {apart} of {norm}");
}

/// Softmax less the class of each image, which is its number; divided by how many there are.
fn slopes(images: usize, classes: usize) -> impl Fn(usize, &[f32]) -> Vec<f32> + Sync {
    move |first, logits| {
        let rows = logits.chunks(classes).enumerate().flat_map(|(n, row)| {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let raised: Vec<f64> = row.iter().map(|x| f64::from(x - largest).exp()).collect();
            let sum: f64 = raised.iter().sum();
            let own = first + n;
            raised.into_iter().enumerate().map(move |(class, x)| x / sum - f64::from(u8::from(class == own)))
        });
        rows.map(|x| (x / images as f64) as f32).collect()
    }
}

fn run(path: &std::path::Path, theirs: &Value, way: Way) -> (Gradients, Vec<(String, std::ops::Range<usize>)>) {
    let facts = recorded(path);
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
    let config = Config::detect(&tensors, &hints(&facts.config)).unwrap().config;
    let lambdas = floats(&theirs["lambdas"]);
    let (mut variables, mut values, mut places) = (Vec::new(), lambdas.clone(), Vec::new());
    let mut branches = Branches::default();
    for (number, name) in theirs["linear"].as_array().unwrap().iter().enumerate() {
        let name = name.as_str().unwrap();
        let lambda = Variable::new(number, 1, &Device::Cpu).unwrap();
        branches.learn(name, &tensors, tensors.find(name).unwrap(), &lambda);
        variables.push(lambda);
    }
    for (name, _) in theirs["trained"].as_object().unwrap() {
        let index = tensors.find(name).unwrap();
        let own: Vec<f32> = tensors
            .tensor(index)
            .unwrap()
            .view()
            .to_vec()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        let variable = Variable::new(values.len(), tensors.specs()[index].shape.as_slice(), &Device::Cpu).unwrap();
        branches.train(name, &variable);
        places.push((name.clone(), variable.range()));
        values.extend(own);
        variables.push(variable);
    }
    let kernels = if matches!(way, Way::Candle) { Kernels::Candle } else { Kernels::Fused };
    let vit = Vit::load(&config, &tensors, &Load { branches, kernels, ..Load::new(&Device::Cpu) }).unwrap();
    let again = matches!(way, Way::Again | Way::ComposedAgain);
    let training = Training::new(variables, again);
    let training = if matches!(way, Way::Composed | Way::ComposedAgain) { training.composed() } else { training };
    let images = facts.inputs.dim(0).unwrap();
    let slopes = slopes(images, facts.logits.len() / images);
    let first = vit.gradients(&training, &values, &facts.inputs, &slopes).unwrap();
    // Buffers that are used again change nothing.
    assert_eq!(vit.gradients(&training, &values, &facts.inputs, &slopes).unwrap(), first);
    (first, places)
}

#[test]
fn gradients_of_every_form_are_pytorchs() {
    let expected = expected("gradients.json");
    for (name, path) in variants().into_iter().filter(|(name, _)| name != "no_head") {
        let theirs = &expected["variants"][&name];
        let lambdas = numbers(&theirs["gradients"]);
        let scale = lambdas.iter().map(|x| x * x).sum::<f64>().sqrt();
        let of = |way| run(&path, theirs, way);
        let (kept, places) = of(Way::Kept);
        assert_eq!(of(Way::Again).0, kept, "{name}: what is computed again is the same");
        let composed = of(Way::Composed).0;
        assert_eq!(of(Way::ComposedAgain).0, composed, "{name}: what is computed again is the same");
        let candle = of(Way::Candle).0;
        for (way, ours) in [("kept", kept), ("composed", composed), ("candle", candle)] {
            close(&format!("{name} {way} lambdas"), &ours.gradients[..lambdas.len()], &lambdas, scale);
            for (parameter, range) in &places {
                let theirs = numbers(&theirs["trained"][parameter]);
                close(&format!("{name} {way} {parameter}"), &ours.gradients[range.clone()], &theirs, scale);
            }
        }
    }
}

#[test]
fn heads_and_norms_are_trained_as_by_pytorch() {
    let recorded = &expected("gradients.json")["early"];
    let inputs = inputs();
    let pathway = Pathway::new(&inputs).unwrap();
    let (config, preprocessing) = config(&pathway);
    let batch = samples(&preprocessing).select(&indices(&recorded["samples"]));
    let what = Train { head: true, norms: true };
    let learner = Learner::new(&pathway, &config, Share::Layer).unwrap().train(what).unwrap();
    assert_eq!(learner.trained().len(), 2 + 13 * 2);
    let start = learner.start(0.1);
    let slope = learner.differentiable().unwrap().slope(&start, &batch, Objective::CrossEntropy).unwrap();
    let loss = recorded["loss"].as_f64().unwrap();
    assert!((slope.loss - loss).abs() < 1e-5 * loss, "{} {loss}", slope.loss);
    let lambdas = numbers(&recorded["lambdas"]);
    let scale = lambdas.iter().map(|x| x * x).sum::<f64>().sqrt();
    close("lambdas", &slope.gradients[..24], &lambdas, scale);
    let mut theirs = lambdas;
    for trained in learner.trained() {
        let of = numbers(&recorded["gradients"][trained.name()]);
        close(trained.name(), &slope.gradients[trained.range()], &of, scale);
        theirs.extend(of);
    }
    // What is evaluated has the same parameters.
    let evaluated = learner.evaluate(&start, &batch, Objective::CrossEntropy, &()).unwrap().loss();
    assert!((evaluated - loss).abs() < 1e-5 * loss, "{evaluated} {loss}");

    // AdamW from PyTorch's gradients: only lambdas and the head's weight decay.
    let number = |name: &str| recorded["step"][name].as_f64().unwrap();
    let mut stepped: Vec<f64> = start.iter().map(|&x| f64::from(x)).collect();
    let matrices = learner.trained().iter().filter(|trained| trained.shape().len() > 1);
    let decaying = matrices.map(|trained| trained.range().end).max().unwrap();
    let mut optimizer = Optimizer::new(Method::AdamW, stepped.len(), number("weight_decay")).decaying(decaying);
    optimizer.step(&mut stepped, &theirs, number("lr"));
    let after = |name: &str| numbers(&recorded["stepped"][name]);
    let apart = |ours: &[f64], theirs: &[f64]| ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart(&stepped[..24], &after("lambdas")) < 1e-6);
    for trained in learner.trained() {
        let (ours, theirs) = (&stepped[trained.range()], after(trained.name()));
        assert!(apart(ours, &theirs) < 1e-6, "{}: {}", trained.name(), apart(ours, &theirs));
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let theirs = &expected("gradients.json")["variants"]["plain"];
    let path = crate::support::fixture("models/plain.safetensors");
    let (facts, checkpoint) = (recorded(&path), Checkpoint::open(&path).unwrap());
    let tensors = checkpoint.state_dict(&RootChoice::Path("model".to_owned())).unwrap();
    let config = Config::detect(&tensors, &hints(&facts.config)).unwrap().config;
    let mut branches = Branches::default();
    let wrong = Variable::new(0, 3, &Device::Cpu).unwrap();
    branches.train("norm.weight", &wrong);
    let error = Vit::load(&config, &tensors, &Load { branches, ..Load::new(&Device::Cpu) }).unwrap_err();
    assert!(error.to_string().contains("instead of \"norm.weight\" is not [16]"), "{error}");
    let mut branches = Branches::default();
    branches.replace("norm.wight", vec![0.0; 16]);
    let error = Vit::load(&config, &tensors, &Load { branches, ..Load::new(&Device::Cpu) }).unwrap_err();
    assert!(error.to_string().contains("1 of the given weights belong to no parameter"), "{error}");
    let vit = Vit::new(&config, &tensors, &Device::Cpu).unwrap();
    let images = Tensor::zeros((1, 3, 8, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let slopes = slopes(1, theirs["linear"].as_array().unwrap().len());
    let error = vit.gradients(&Training::default(), &[1.0], &images, &slopes).unwrap_err();
    assert!(error.to_string().contains("0 numbers are learned, and 1 are given"), "{error}");
}
