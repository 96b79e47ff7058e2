//! The statistics are SciPy's and NumPy's; files are read as they were written.

use std::path::Path;

use serde_json::Value;

use super::statistics::{cross_entropy, difference, is_among_top, mcnemar, mean, prediction, wilson};
use super::*;
use crate::data::{Preprocessing, SampleOptions, SampleSet};
use crate::error::{Error, OutputProblem};

fn expected() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/expected/statistics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The rows of a table of numbers, the counts of each row, and what was computed of them.
fn table<const N: usize>(name: &str) -> Vec<([usize; N], Vec<f64>)> {
    let expected = expected();
    let rows = expected[name].as_array().unwrap().iter();
    rows.map(|row| {
        let row: Vec<f64> = row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        (std::array::from_fn(|i| row[i] as usize), row[N..].to_vec())
    })
    .collect()
}

fn close(ours: f64, theirs: f64, relative: f64) {
    assert!((ours - theirs).abs() <= relative * theirs.abs().max(f64::MIN_POSITIVE), "{ours} is not {theirs}");
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn matrix(name: &str) -> Logits {
    let rows: Vec<f32> = expected()[name].as_array().unwrap().iter().flat_map(floats).map(|x| x as f32).collect();
    Logits::from_rows(7, rows).unwrap()
}

fn labels() -> Vec<usize> {
    floats(&expected()["labels"]).into_iter().map(|x| x as usize).collect()
}

#[test]
fn wilson_intervals_are_scipys() {
    for ([k, n], theirs) in table("wilson") {
        let ours = wilson(k, n);
        close(ours.low, theirs[0], 1e-12);
        close(ours.high, theirs[1], 1e-12);
    }
    assert_eq!(wilson(0, 0), statistics::Interval { low: 0.0, high: 1.0 });
}

#[test]
fn mcnemars_test_is_scipys_binomial_test_for_any_counts() {
    for ([first, second], theirs) in table("mcnemar") {
        close(mcnemar(first, second), theirs[0], 1e-9);
        assert_eq!(mcnemar(first, second), mcnemar(second, first));
    }
    assert_eq!(mcnemar(0, 1100), 0.0);
}

#[test]
fn intervals_of_differences_are_adjusted_walds() {
    for ([first, second, samples], theirs) in table("difference") {
        let ours = difference(first, second, samples);
        close(ours.low, theirs[0].max(-1.0), 1e-12);
        close(ours.high, theirs[1].min(1.0), 1e-12);
    }
}

#[test]
fn scores_are_numpys() {
    let (logits, labels, expected) = (matrix("a"), labels(), expected());
    let theirs = &expected["scores"];
    let accuracy = Accuracy::new(&logits, &labels);
    let top1: Vec<f64> = logits.predictions().into_iter().map(|x| x.unwrap() as f64).collect();
    assert_eq!(top1, floats(&theirs["top1"]));
    let mut losses = Vec::new();
    for ((row, &label), loss) in logits.rows().zip(&labels).zip(floats(&theirs["losses"])) {
        losses.push(cross_entropy(row, label));
        assert!((losses.last().unwrap() - loss).abs() <= 1e-13 * loss.max(1.0));
    }
    let in_top3: Vec<bool> = logits.rows().zip(&labels).map(|(row, &label)| is_among_top(row, label, 3)).collect();
    assert_eq!(Value::from(in_top3), theirs["in_top3"]);
    let (mean, interval) = accuracy.loss.unwrap();
    close(mean, theirs["mean_loss"].as_f64().unwrap(), 1e-12);
    let theirs = floats(&theirs["loss_interval"]);
    // Of so few samples the normal distribution reaches below zero, where no cross-entropy is.
    close(interval.unwrap().low, theirs[0].max(0.0), 1e-12);
    close(interval.unwrap().high, theirs[1], 1e-12);
    assert_eq!(accuracy.no_loss, 0);
}

#[test]
fn classes_and_confusion_add_up() {
    let (logits, labels) = (matrix("a"), labels());
    let accuracy = Accuracy::new(&logits, &labels);
    let predictions = logits.predictions();
    assert_eq!(accuracy.confusion.values().sum::<usize>(), labels.len());
    for class in &accuracy.classes {
        let own = labels.iter().zip(&predictions).filter(|(label, _)| **label == class.class);
        assert_eq!(class.rate.samples, own.clone().count());
        assert_eq!(class.rate.right, own.filter(|(label, p)| **p == Some(**label)).count());
        assert_eq!(class.predicted, predictions.iter().filter(|p| **p == Some(class.class)).count());
    }
    let mistakes = accuracy.mistakes();
    assert!(mistakes.is_sorted_by_key(|&(.., count)| std::cmp::Reverse(count)));
    let wrong: usize = mistakes.iter().map(|&(.., count)| count).sum();
    assert_eq!(wrong + accuracy.top1.right, labels.len());
}

#[test]
fn comparisons_are_numpys() {
    let (a, b, expected) = (matrix("a"), matrix("b"), expected());
    let theirs = &expected["comparison"];
    let ours = Comparison::of(&a, &b);
    let number = |name: &str| theirs[name].as_f64().unwrap();
    assert_eq!((ours.max_abs, ours.largest), (number("max_abs"), number("largest")));
    close(ours.mean_abs().unwrap(), number("mean_abs"), 1e-14);
    close(ours.cosine().unwrap(), number("cosine"), 1e-14);
    let (row, column) = ours.at.unwrap();
    assert_eq!(Value::from(vec![row, column]), theirs["at"]);
    assert_eq!(Value::from(ours.same_top1), theirs["same_top1"]);
    close(ours.relative(), number("max_abs") / number("largest"), 0.0);
    assert!(ours.within(ours.relative()) && !ours.within(ours.relative() * 0.999));
}

#[test]
fn nan_predicts_nothing_and_is_never_within_tolerance() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert_eq!(prediction(&[1.0, nan, 3.0]), None);
    assert_eq!(prediction(&[]), None);
    assert_eq!(prediction(&[nan]), None);
    assert_eq!(prediction(&[-inf, -inf]), Some(0));
    assert_eq!(prediction(&[1.0, inf, inf]), Some(1));
    assert!(!is_among_top(&[1.0, nan], 0, 2));
    assert!(!is_among_top(&[1.0], 1, 5));
    assert!(cross_entropy(&[1.0, nan], 0).is_nan());
    assert!(cross_entropy(&[1.0], 1).is_nan());
    assert_eq!(cross_entropy(&[1.0, -inf], 1), f64::INFINITY);
    assert_eq!(cross_entropy(&[3.5], 0), 0.0);

    let logits = Logits::from_rows(2, vec![1.0, 0.0, nan, 1.0, 0.0, inf]).unwrap();
    let accuracy = Accuracy::new(&logits, &[0, 0, 1]);
    assert_eq!((accuracy.top1, accuracy.no_loss), (Rate { right: 2, samples: 3 }, 2));
    assert_eq!(accuracy.mistakes(), [(0, None, 1)]);
    assert_eq!(accuracy.top5, None);
    assert_eq!(logits.non_finite(), [1, 2]);

    let compare = |a: &[f32], b: &[f32]| {
        let mut comparison = Comparison::default();
        comparison.add(a, b);
        comparison
    };
    assert_eq!(compare(&[nan, 1.0], &[nan, 1.0]).unordered, 0);
    assert_eq!(compare(&[inf, 1.0], &[inf, 1.0]).unordered, 0);
    assert_eq!(compare(&[nan, 1.0], &[nan, 1.0]).same_top1, 0);
    for (a, b) in [([inf, 1.0], [-inf, 1.0]), ([nan, 1.0], [0.0, 1.0]), ([0.0, 1.0], [inf, 1.0])] {
        let comparison = compare(&a, &b);
        assert_eq!((comparison.unordered, comparison.compared, comparison.max_abs), (1, 1, 0.0));
        assert!(!comparison.within(1e9));
    }
    let zeros = compare(&[0.0, 0.0], &[0.0, 0.0]);
    assert_eq!((zeros.relative(), zeros.cosine(), zeros.mean_abs()), (0.0, None, Some(0.0)));
    assert_eq!(compare(&[0.0], &[1e-9]).relative(), f64::INFINITY);
    assert_eq!(Comparison::default().mean_abs(), None);
}

#[test]
fn pairs_are_counted() {
    let first = [Some(0), Some(1), Some(2), None, Some(1)];
    let second = [Some(0), Some(2), Some(1), Some(0), None];
    let paired = Paired::new(&first, &second, &[0, 1, 1, 0, 0]);
    assert_eq!((paired.both, paired.only_first, paired.only_second, paired.neither), (1, 1, 2, 1));
    close(paired.difference, -0.2, 1e-15);
    assert_eq!(paired.p, 1.0);
    assert!(!paired.significant());
    let flipped = flips(&first, &second);
    assert_eq!(flipped.iter().map(|flip| flip.sample).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(flipped[2], Flip { sample: 3, first: None, second: Some(0) });
    assert!(Paired::new(&[], &[], &[]).difference.is_nan());
}

#[test]
fn means_need_values() {
    assert_eq!(mean(&[]), None);
    assert_eq!(mean(&[2.0]), Some((2.0, None)));
}

#[test]
fn rows_have_to_be_whole() {
    assert!(Logits::from_rows(2, vec![0.0; 3]).is_none());
    assert!(Logits::from_rows(0, vec![0.0; 3]).is_none());
    assert!(Logits::from_rows(0, Vec::new()).unwrap().is_empty());
    assert_eq!(matrix("a").select(&[3, 0]).row(0), [0.0; 7]);
}

fn names() -> Vec<String> {
    (0..12).map(|i| format!("{}/größe {i}.png", i % 3)).collect()
}

#[test]
fn saved_logits_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (logits, labels, names) = (matrix("a"), labels(), names());
    for name in ["a.safetensors", "a.npz"] {
        let path = folder.path().join(name);
        let saved = SavedLogits { logits: &logits, labels: Some(&labels), samples: &names };
        SavedLogits::check(&path, false).unwrap();
        saved.write(&path, false).unwrap();
        let read = Reference::open(&path, None).unwrap();
        assert_eq!((&read.logits, read.has_inputs), (&logits, false));
        assert_eq!(read.samples, name.ends_with("safetensors").then(|| names.clone()));
        let Err(VerifyError::File(error)) = saved.write(&path, false) else { panic!("it was replaced") };
        assert!(matches!(*error, Error::Output { problem: OutputProblem::Exists, .. }));
        let bare = SavedLogits { logits: &logits, labels: None, samples: &[] };
        bare.write(&path, true).unwrap();
        assert_eq!(Reference::open(&path, None).unwrap().samples, None);
    }
    assert!(matches!(SavedLogits::check(&folder.path().join("a.csv"), false), Err(VerifyError::UnknownFormat { .. })));
}

/// A sample set of names, of which nothing can be read.
fn listed(folder: &Path, names: &[String], limit: Option<usize>, seed: Option<u64>) -> Source {
    let path = folder.join("list.json");
    std::fs::write(&path, Value::from(names).to_string()).unwrap();
    let options = SampleOptions { limit, shuffle_seed: seed, ..SampleOptions::default() };
    Source::Samples { set: SampleSet::open(path, &options).unwrap(), preprocessing: Preprocessing::default() }
}

#[test]
fn references_have_to_be_of_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (logits, names) = (matrix("a"), names());
    let (named, bare) = (folder.path().join("a.safetensors"), folder.path().join("a.npz"));
    for path in [&named, &bare] {
        SavedLogits { logits: &logits, labels: None, samples: &names }.write(path, false).unwrap();
    }
    let problem = |result| match result {
        Err(VerifyError::Reference { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let all: Vec<usize> = (0..12).collect();
    for path in [&named, &bare] {
        let reference = Reference::open(path, None).unwrap();
        let rows = |source: &Source, read: &[usize]| reference.rows_of(source, read, 7);
        assert_eq!(rows(&listed(folder.path(), &names, None, None), &all).unwrap(), logits);
        // One of our samples cannot be read: its row is left out.
        assert_eq!(rows(&listed(folder.path(), &names, None, None), &all[1..]).unwrap().row(0), logits.row(1));
        // Some samples of a set whose logits are all there.
        let some = listed(folder.path(), &names, Some(3), Some(5));
        let mut read: Vec<usize> = (0..3).collect();
        read.sort_by_key(|&index| some.position(index));
        let found = rows(&some, &read).unwrap();
        for (row, &index) in read.iter().enumerate() {
            let position = names.iter().position(|name| *name == some.name(index)).unwrap();
            assert_eq!((found.row(row), position), (logits.row(position), some.position(index)));
        }
        // One could not be read when the file was made.
        let mut more = names.clone();
        more.insert(0, "0/broken.png".into());
        let read: Vec<usize> = (1..13).collect();
        assert_eq!(rows(&listed(folder.path(), &more, None, None), &read).unwrap(), logits);
        let classes = reference.rows_of(&some, &[0], 10);
        assert_eq!(problem(classes), ReferenceProblem::Classes { found: 7, needed: 10 });
    }
    let other: Vec<String> = (0..9).map(|i| format!("{i}.png")).collect();
    let other = listed(folder.path(), &other, None, None);
    let named = Reference::open(&named, None).unwrap().rows_of(&other, &all[..9], 7);
    assert_eq!(problem(named), ReferenceProblem::NoRow { sample: "0.png".into() });
    let bare = Reference::open(&bare, None).unwrap().rows_of(&other, &all[..8], 7);
    assert_eq!(problem(bare), ReferenceProblem::Samples { found: 12, total: 9, read: 8 });
}

#[test]
fn a_reference_names_its_array_where_it_has_several() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/expected/logits.safetensors");
    let open = |name| Reference::open(path.as_ref(), name);
    assert_eq!((open(Some("target")).unwrap().logits.len(), open(Some("target")).unwrap().logits.classes()), (520, 10));
    for (name, word) in [(None, "pathway_folded"), (Some("none"), "folded_0.3"), (Some("labels"), "[520]")] {
        let error = open(name).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("logits.safetensors"), "{error}");
    }
    let inputs = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/expected/inputs_16.safetensors");
    assert!(matches!(
        Reference::open(inputs.as_ref(), None),
        Err(VerifyError::Reference { problem: ReferenceProblem::NoArray { .. }, .. })
    ));
}
