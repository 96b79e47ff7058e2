//! `learn`: gradients, steps and runs are PyTorch's; what is reported of lambdas is what their fold does.

use m2pt_surgery::data::{Preprocessing, SampleOptions, SampleSet};
use m2pt_surgery::learn::{
    Epoch, FitOptions, LearnError, Learner, Method, Objective, Optimizer, Samples, Search, Share, State, clip, cosine,
};
use m2pt_surgery::model::{Config, Hints, Known};
use m2pt_surgery::verify::{Pathway, Source};
use m2pt_surgery::{BiasMode, FoldInputs, FoldRequest, LambdaSpec, Schedule};
use serde_json::{Value, json};

use crate::support::{expected, fixture};

pub(crate) fn inputs() -> FoldInputs {
    let mut request = FoldRequest::without_output(fixture("mnist_early.pth"));
    request.add_aux(fixture("speech_vit.pth"));
    request.lambda = Some(LambdaSpec::All(Schedule::Constant(0.0)));
    request.open().unwrap()
}

pub(crate) fn config(pathway: &Pathway<'_>) -> (Config, Preprocessing) {
    let json: Value = serde_json::from_slice(&std::fs::read(fixture("digits.json")).unwrap()).unwrap();
    let hints = Hints { known: Some(Known::from_json(&json).unwrap()), ..Hints::default() };
    let detected = Config::detect(&pathway.target.tensors, &hints).unwrap();
    let preprocessing = Preprocessing::from_timm(&Value::Object(detected.known.unwrap().preprocessing)).unwrap();
    (detected.config, Preprocessing { input_size: [3, 32, 32], ..preprocessing })
}

pub(crate) fn samples(preprocessing: &Preprocessing) -> Samples {
    let set = SampleSet::open(fixture("mnist"), &SampleOptions::default()).unwrap();
    Samples::read(&Source::Samples { set, preprocessing: preprocessing.clone() }, &mut ()).unwrap()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

pub(crate) fn indices(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

#[test]
fn gradients_and_steps_are_pytorchs() {
    let recorded = expected("learning.json");
    let inputs = inputs();
    let pathway = Pathway::new(&inputs).unwrap();
    let (config, preprocessing) = config(&pathway);
    let samples = samples(&preprocessing);
    let learner = Learner::new(&pathway, &config, Share::Layer).unwrap();
    let model = learner.differentiable().unwrap();
    let batch = indices(&recorded["samples"]);
    let (lr, decay) = (recorded["step"]["lr"].as_f64().unwrap(), recorded["step"]["weight_decay"].as_f64().unwrap());
    for point in recorded["points"].as_array().unwrap() {
        let objective = if point["objective"] == "ce" { Objective::CrossEntropy } else { Objective::Entropy };
        let lambdas: Vec<f32> = numbers(&point["lambdas"]).iter().map(|&x| x as f32).collect();
        let slope = model.slope(&lambdas, &samples.select(&batch), objective).unwrap();
        let what = format!("{} {}", point["name"], point["objective"]);
        let loss = point["loss"].as_f64().unwrap();
        assert!((slope.loss - loss).abs() < 1e-5 * loss, "{what}: {} {loss}", slope.loss);
        let theirs = numbers(&point["gradients"]);
        let norm = theirs.iter().map(|x| x * x).sum::<f64>().sqrt();
        let apart = slope.gradients.iter().zip(&theirs).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        assert!(apart < 1e-4 * norm, "{what}: {apart} of {norm}");
        // Where the parts of a sum cancel, its own size says nothing of their roundings.
        for (ours, theirs) in slope.gradients.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(0.01 * norm), "{what}: {ours} {theirs}");
        }
        let mut stepped: Vec<f64> = lambdas.iter().map(|&x| f64::from(x)).collect();
        Optimizer::new(Method::AdamW, 24, decay).step(&mut stepped, &theirs, lr);
        for (ours, theirs) in stepped.iter().zip(numbers(&point["stepped"])) {
            assert!((ours - theirs).abs() < 1e-6 * theirs.abs().max(0.01), "{what}: {ours} {theirs}");
        }
    }
    // A shared lambda's gradient is the sum of those of its layers.
    let all = Learner::new(&pathway, &config, Share::All).unwrap();
    let shared = all.differentiable().unwrap().slope(&[0.1], &samples.select(&batch), Objective::CrossEntropy).unwrap();
    let tenth = &recorded["points"][2];
    assert_eq!((&tenth["name"], &tenth["objective"]), (&json!("tenth"), &json!("ce")));
    let sum: f64 = numbers(&tenth["gradients"]).iter().sum();
    assert!((shared.gradients[0] - sum).abs() < 1e-4 * sum.abs(), "{} {sum}", shared.gradients[0]);
    let count = |share| Learner::new(&pathway, &config, share).unwrap().lambdas();
    assert_eq!([Share::Layer, Share::Kind, Share::Block, Share::All].map(count), [24, 4, 6, 1]);
}

#[test]
fn biases_several_auxiliaries_and_sgd_are_pytorchs() {
    let recorded = expected("learning.json");
    let check = |inputs: &FoldInputs, lambdas: &[f32], recorded: &Value, batch: &[usize]| {
        let pathway = Pathway::new(inputs).unwrap();
        let (config, preprocessing) = config(&pathway);
        let samples = samples(&preprocessing).select(batch);
        let learner = Learner::new(&pathway, &config, Share::Layer).unwrap();
        // Blocks come first in ours, auxiliaries in theirs.
        let many = learner.auxiliaries();
        let order = |index: usize| (index % many) * 24 + index / many;
        let ordered: Vec<f32> = (0..lambdas.len()).map(|index| lambdas[order(index)]).collect();
        let slope = learner.differentiable().unwrap().slope(&ordered, &samples, Objective::CrossEntropy).unwrap();
        let loss = recorded["loss"].as_f64().unwrap();
        assert!((slope.loss - loss).abs() < 1e-5 * loss, "{} {loss}", slope.loss);
        let theirs = numbers(&recorded["gradients"]);
        let norm = theirs.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (index, ours) in slope.gradients.iter().enumerate() {
            let theirs = theirs[order(index)];
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(0.01 * norm), "{index}: {ours} {theirs}");
        }
        // What is evaluated is the fold of the same.
        let evaluated = learner.evaluate(&ordered, &samples, Objective::CrossEntropy, &()).unwrap().loss();
        assert!((evaluated - loss).abs() < 1e-5 * loss, "{evaluated} {loss}");
    };
    let batch = indices(&recorded["samples"]);
    let request = |bias, aux: &[&str]| {
        let mut request = FoldRequest::without_output(fixture("mnist_early.pth"));
        aux.iter().for_each(|name| {
            request.add_aux(fixture(name));
        });
        request.lambda = Some(LambdaSpec::All(Schedule::Constant(0.0)));
        request.bias = bias;
        request.open().unwrap()
    };
    check(&request(BiasMode::Fold, &["speech_vit.pth"]), &[0.1; 24], &recorded["bias"], &batch);
    let two = [[0.1f32; 24], [-0.05; 24]].concat();
    check(&request(BiasMode::Keep, &["speech_vit.pth", "mnist_vit.pth"]), &two, &recorded["two"], &batch);

    let sgd = &recorded["sgd"];
    let number = |name: &str| sgd[name].as_f64().unwrap();
    let last = recorded["points"].as_array().unwrap().last().unwrap();
    let (mut values, gradients) = (numbers(&last["lambdas"]), numbers(&last["gradients"]));
    let mut optimizer =
        Optimizer::new(Method::Sgd { momentum: number("momentum") }, values.len(), number("weight_decay"));
    for after in sgd["after"].as_array().unwrap() {
        optimizer.step(&mut values, &gradients, number("lr"));
        assert!(values.iter().zip(numbers(after)).all(|(ours, theirs)| (ours - theirs).abs() < 1e-15), "{values:?}");
    }
}

#[test]
fn a_run_follows_pytorchs() {
    let recorded = &expected("learning.json")["run"];
    let inputs = inputs();
    let pathway = Pathway::new(&inputs).unwrap();
    let (config, preprocessing) = config(&pathway);
    let samples = samples(&preprocessing);
    let learner = Learner::new(&pathway, &config, Share::Layer).unwrap();
    let fit = samples.select(&indices(&recorded["samples"]));
    let options = FitOptions {
        lr: recorded["lr"].as_f64().unwrap(),
        epochs: recorded["epochs"].as_u64().unwrap() as usize,
        batch: recorded["batch"].as_u64().unwrap() as usize,
        clip: recorded["clip"].as_f64().unwrap(),
        seed: None,
        patience: 100,
        ..FitOptions::default()
    };
    let mut last = Vec::new();
    let mut states = Vec::new();
    let mut follow = |epoch: &Epoch, state: &State| {
        last = epoch.lambdas.iter().map(|&lambda| lambda as f32).collect();
        // As it is read from a file.
        states.push(serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap());
        Ok(())
    };
    let fitted = learner.fit(&fit, &fit, &options, None, &mut (), &mut follow).unwrap();
    let theirs = numbers(&recorded["losses"]);
    assert_eq!(fitted.losses.len(), theirs.len());
    // Adam's first steps are as long as the learning rate whatever the gradient's size, so that a rounding may tell.
    for (ours, theirs) in fitted.losses.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 1e-3 * theirs, "{ours} {theirs}");
    }
    for (ours, theirs) in last.iter().zip(numbers(&recorded["lambdas"])) {
        assert!((f64::from(*ours) - theirs).abs() < 1e-3, "{ours} {theirs}");
    }
    // The same again, from the beginning and from the middle.
    for from in [None, states.get(1).cloned(), states.get(3).cloned(), states.last().cloned()] {
        let again = learner.fit(&fit, &fit, &options, from, &mut (), &mut |_, _| Ok(())).unwrap();
        assert_eq!((&again.values, &again.losses), (&fitted.values, &fitted.losses));
    }
    let other = Learner::new(&pathway, &config, Share::All).unwrap();
    let wrong = other.fit(&fit, &fit, &options, states.pop(), &mut (), &mut |_, _| Ok(()));
    assert!(matches!(wrong, Err(LearnError::State { .. })), "{wrong:?}");
    let loss = |lambdas: &[f32]| learner.evaluate(lambdas, &fit, Objective::CrossEntropy, &()).unwrap().loss();
    assert!(loss(&last) < loss(&[0.0; 24]));
    // The lambda that is searched is no worse than any on a grid, of which 0.2 and 0.1 are beside the best.
    let single = learner.search(&fit, Search::Golden, &options, &mut ()).unwrap();
    let found = loss(&[single; 24]);
    for other in [0.0, 0.1, 0.2, 0.3, -0.1] {
        assert!(found <= loss(&[other; 24]) && single != other, "{found} at {single}, not at {other}");
    }
}

#[test]
fn schedule_and_clipping_are_pytorchs() {
    // CosineAnnealingLR(T_max=4) from 0.1, and clip_grad_norm_([3, 4], 1).
    let rates: Vec<f64> = (0..4).map(|step| cosine(0.1, step, 4)).collect();
    let theirs = [0.1, 0.085_355_339_059_327_38, 0.05, 0.014_644_660_940_672_627];
    assert!(rates.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-15), "{rates:?}");
    let mut gradients = [3.0, 4.0];
    assert_eq!(clip(&mut gradients, 1.0), 5.0);
    assert!((gradients[0] - 0.599_999_88).abs() < 1e-8 && (gradients[1] - 0.799_999_84).abs() < 1e-8);
}
