//! Everything that a user can do with an open checkpoint, and what must hold then.

use std::collections::HashSet;

use m2pt_surgery::tensor::{Stats, sha256, sha256_bytes};
use m2pt_surgery::{Checkpoint, Error, RootChoice, StateDict};

/// Tensors of one root that are read.
const TENSORS: usize = 64;
/// Bytes of tensors that are read from one root.
const BYTES: u64 = 1 << 20;
/// Roots that are read.
const ROOTS: usize = 4;

/// The bytes of a tensor whose elements lie one after another, and where they begin in their storage.
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) bytes: Vec<u8>,
}

/// Reads all of a checkpoint, within bounds; the tensors that lie in one run.
pub(super) fn checkpoint(checkpoint: &Checkpoint) -> Vec<Run> {
    assert!(!checkpoint.container().name().is_empty());
    assert_eq!(checkpoint.sha256().len(), 64);
    let _ = format!("{:?}", checkpoint.path());
    let values = serde_json::Value::Object(checkpoint.values()).to_string();
    assert!(serde_json::from_str::<serde_json::Value>(&values).is_ok(), "{values}");
    let mut choices = vec![RootChoice::Auto, RootChoice::Path(String::new())];
    let roots = checkpoint.roots();
    choices.extend(roots.iter().take(ROOTS).map(|root| RootChoice::Path(root.path().to_owned())));
    let mut runs = Vec::new();
    for choice in &choices {
        match checkpoint.state_dict(choice) {
            Ok(tensors) => runs.extend(state_dict(checkpoint, &tensors)),
            Err(error) => self::error(&error),
        }
    }
    assert!(roots.iter().map(|root| root.tensors()).sum::<usize>() <= checkpoint.tensor_count());
    runs
}

/// What is said about a refused file: never nothing, and never for ever.
pub(super) fn error(error: &Error) {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(!text.is_empty());
}

fn state_dict(checkpoint: &Checkpoint, tensors: &StateDict<'_>) -> Vec<Run> {
    let (specs, others) = (tensors.specs(), tensors.others());
    assert_eq!(specs.len() + others.len() + tensors.outside(), checkpoint.tensor_count());
    assert_eq!(tensors.require_dense().is_ok(), others.is_empty());
    let mut names = HashSet::new();
    for name in specs.iter().map(|spec| &spec.name).chain(others.iter().map(|(name, _)| name)) {
        assert!(names.insert(name), "{name:?} occurs twice");
    }
    for (_, other) in others.iter().take(TENSORS) {
        let _ = format!("{other:?}");
    }
    let mut runs = Vec::new();
    let mut room = BYTES;
    for (index, spec) in specs.iter().enumerate().take(TENSORS) {
        assert_eq!(tensors.find(&spec.name), Some(index));
        let place = tensors.placement(index);
        assert_eq!(place.strides.len(), spec.shape.len());
        let data = match tensors.tensor(index) {
            Ok(data) => data,
            Err(error) => {
                self::error(&error);
                continue;
            }
        };
        let view = data.view();
        assert_eq!((view.dtype(), view.shape(), view.numel()), (spec.dtype, spec.shape.as_slice(), spec.numel()));
        let size = spec.dtype.size();
        assert_eq!(spec.bytes(), (view.numel() * size) as u64);
        if spec.bytes() > room {
            // Too much to read all of it: both of its ends, and past the last.
            for first in [0, view.numel() / 2, view.numel() - 1, view.numel()] {
                view.read(first, &mut vec![0; 3 * size]);
            }
            continue;
        }
        room -= spec.bytes();
        let whole = view.to_vec();
        assert_eq!(whole.len() as u64, spec.bytes());
        pieces(&view, &whole, size);
        if let Some(bytes) = view.as_bytes() {
            assert_eq!(bytes, whole);
            assert!(place.contiguous || view.numel() == 0);
            if !whole.is_empty() {
                runs.push(Run { start: place.offset * size, bytes: whole });
            }
        }
    }
    runs
}

/// However a tensor is read, it is the same.
fn pieces(view: &m2pt_surgery::TensorView<'_>, whole: &[u8], size: usize) {
    let mut joined = Vec::new();
    view.for_each_piece(&mut Vec::new(), |piece| joined.extend_from_slice(piece));
    assert_eq!(joined, whole);
    assert_eq!(sha256(view), sha256_bytes(whole));
    let step = view.numel() / 3 + 1;
    for first in (0..view.numel()).step_by(step) {
        let mut piece = vec![0; step.min(view.numel() - first) * size];
        view.read(first, &mut piece);
        assert_eq!(piece, whole[first * size..][..piece.len()]);
    }
    view.read(view.numel(), &mut vec![0; size]);
    let _ = format!("{:?}", Stats::of(view));
}
