//! `diff`: what changed, as PyTorch and NumPy compute it.

use m2pt_surgery::{Checkpoint, DType, Diff, Outcome, Progress, RootChoice};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::support::{expected, fixture};

/// Neither shows anything nor stops.
struct Silent;

impl Progress for Silent {
    fn advance(&mut self, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

fn diff(a: &Checkpoint, b: &Checkpoint) -> Diff {
    let (a, b) = (a.state_dict(&RootChoice::Auto).unwrap(), b.state_dict(&RootChoice::Auto).unwrap());
    Diff::new(&a, &b, |_| true, &mut Silent).unwrap()
}

/// A safetensors file of tensors given as name, type, shape and little-endian bytes.
fn safetensors(tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)]) -> Checkpoint {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
    Checkpoint::from_bytes("made.safetensors", bytes).unwrap()
}

/// A checkpoint of float32 tensors, cast to bfloat16 as `Tensor.bfloat16()` does.
fn bfloat16(checkpoint: &Checkpoint) -> Checkpoint {
    let state = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let tensors: Vec<_> = state
        .specs()
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            assert_eq!(spec.dtype, DType::F32);
            let bytes = state.tensor(index).unwrap().view().to_vec();
            let values = bytes.as_chunks::<4>().0.iter().map(|b| half::bf16::from_f32(f32::from_le_bytes(*b)));
            let cast = values.flat_map(half::bf16::to_le_bytes).collect();
            (spec.name.as_str(), safetensors::Dtype::BF16, spec.shape.clone(), cast)
        })
        .collect();
    safetensors(&tensors)
}

fn close(ours: f64, theirs: &Value) -> bool {
    let theirs = theirs.as_f64().unwrap();
    (ours - theirs).abs() <= 1e-12 * theirs.abs().max(1e-12)
}

#[test]
fn every_change_is_what_pytorch_computes() {
    let recorded = expected("differences.json");
    assert_eq!(recorded.as_object().unwrap().len(), 4);
    for (pair, theirs) in recorded.as_object().unwrap() {
        let (a, b) = pair.split_once(' ').unwrap();
        let a = match a {
            "mnist_early_bf16" => bfloat16(&Checkpoint::open(fixture("mnist_early.pth")).unwrap()),
            file => Checkpoint::open(fixture(file)).unwrap(),
        };
        let diff = diff(&a, &Checkpoint::open(fixture(b)).unwrap());
        assert_eq!(diff.pairs.len(), theirs.as_object().unwrap().len());
        assert!(diff.only_a.is_empty() && diff.only_b.is_empty() && !diff.is_equal());
        for ours in &diff.pairs {
            let theirs = &theirs[&ours.a.name];
            let Outcome::Changed(change) = &ours.outcome else {
                assert_eq!((&ours.outcome, &theirs["different"]), (&Outcome::Equal, &json!(0)), "{}", ours.a.name);
                continue;
            };
            let numbers = change.numbers.as_ref().unwrap();
            assert_eq!(json!(change.different), theirs["different"], "{pair} {}", ours.a.name);
            assert_eq!(json!(numbers.max_abs), theirs["max_abs"], "{pair} {}", ours.a.name);
            assert_eq!(json!(numbers.max_ulp), theirs["max_ulp"], "{pair} {}", ours.a.name);
            assert!(close(numbers.relative_l2, &theirs["relative_l2"]), "{pair} {} {numbers:?}", ours.a.name);
            assert!(close(numbers.cosine.unwrap(), &theirs["cosine"]), "{pair} {} {numbers:?}", ours.a.name);
        }
    }
}

#[test]
fn the_container_and_the_order_make_no_difference() {
    let a = Checkpoint::open(fixture("mnist_vit.pth")).unwrap();
    let b = Checkpoint::open(fixture("mnist_vit.safetensors")).unwrap();
    assert!(diff(&a, &b).is_equal());
    let views = |file: &str| Checkpoint::open(fixture(file)).unwrap();
    for other in ["layouts/bigendian.pth", "layouts/deflated.pth", "torch_files/legacy.pth"] {
        assert!(diff(&views("layouts/views.pth"), &views(other)).is_equal(), "{other}");
    }
}

#[test]
fn renamed_missing_and_reshaped_tensors_are_told_apart() {
    use safetensors::Dtype::{F32, I64};
    let four = |x: f32| [x, 1.0, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let a = safetensors(&[
        ("kept", F32, vec![4], four(0.0)),
        ("old.name", F32, vec![4], four(7.0)),
        ("gone", I64, vec![1], vec![1; 8]),
        ("flat", F32, vec![4], four(5.0)),
        ("twin.a", F32, vec![2], vec![0; 8]),
        ("twin.b", F32, vec![2], vec![0; 8]),
    ]);
    let b = safetensors(&[
        ("kept", F32, vec![4], four(0.0)),
        ("new.name", F32, vec![4], four(7.0)),
        ("came", I64, vec![1], vec![2; 8]),
        ("flat", F32, vec![2, 2], four(5.0)),
        ("zwin.a", F32, vec![2], vec![0; 8]),
        ("zwin.b", F32, vec![2], vec![0; 8]),
    ]);
    let diff = diff(&a, &b);
    let names = |specs: &[m2pt_surgery::TensorSpec]| specs.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&diff.only_a), names(&diff.only_b)), (vec!["gone".to_owned()], vec!["came".to_owned()]));
    let moved: Vec<_> =
        diff.pairs.iter().filter(|p| p.moved()).map(|p| (p.a.name.as_str(), p.b.name.as_str())).collect();
    assert_eq!(moved, [("old.name", "new.name"), ("twin.a", "zwin.a"), ("twin.b", "zwin.b")]);
    let flat = diff.pairs.iter().find(|p| p.a.name == "flat").unwrap();
    assert_eq!(flat.outcome, Outcome::Shape);
    assert!(!diff.is_within(1e9), "names and shapes are no matter of size");
}

#[test]
fn values_that_are_no_numbers_are_counted_and_not_averaged() {
    use safetensors::Dtype::F32;
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let a = safetensors(&[("x", F32, vec![6], floats(&[nan, inf, -inf, 1.0, -0.0, 0.0]))]);
    let b = safetensors(&[("x", F32, vec![6], floats(&[nan, inf, inf, nan, 0.0, 0.0]))]);
    let diff = diff(&a, &b);
    let Outcome::Changed(change) = &diff.pairs[0].outcome else { panic!("they differ") };
    let numbers = change.numbers.as_ref().unwrap();
    assert_eq!((change.different, numbers.unordered, numbers.max_abs), (3, 2, 0.0));
    assert!(!diff.is_within(1e9));
    assert_eq!(numbers.cosine, None, "what is finite on both sides is zero");
}

#[test]
fn differences_of_large_integers_and_tiny_numbers_are_not_lost() {
    use safetensors::Dtype::{F64, I64};
    let of = |x: i64, y: f64| {
        safetensors(&[("int", I64, vec![1], x.to_le_bytes().into()), ("float", F64, vec![1], y.to_le_bytes().into())])
    };
    for (tiny, twice) in [(1e-300, 2e-300), (5e-324, 1e-323), (5e307, 1e308)] {
        let diff = diff(&of(1 << 62, tiny), &of((1 << 62) + 1, twice));
        let numbers: Vec<_> = diff
            .pairs
            .iter()
            .map(|pair| match &pair.outcome {
                Outcome::Changed(change) => change.numbers.clone().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((numbers[0].max_abs, numbers[0].relative_l2), (1.0, 0.5f64.powi(62)));
        assert_eq!((numbers[1].max_abs, numbers[1].relative_l2, numbers[1].cosine), (tiny, 1.0, Some(1.0)));
        assert!(!diff.is_within(0.5) && !diff.is_within(0.0));
    }
}
