//! What changed from one checkpoint to another: names, shapes, types, values.

mod change;

pub use change::{Change, Numbers};

use std::collections::HashMap;

use crate::checkpoint::StateDict;
use crate::engine::Progress;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorSpec, sha256};

/// A tensor of both checkpoints.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What it is in the first checkpoint.
    pub a: TensorSpec,
    /// What it is in the second; under another name if it moved.
    pub b: TensorSpec,
    /// How the two compare.
    pub outcome: Outcome,
}

impl Pair {
    /// Whether the tensor has another name in the second checkpoint.
    #[must_use]
    pub fn moved(&self) -> bool {
        self.a.name != self.b.name
    }

    /// By how much it changed, for sorting: 0 if it is equal, the relative L2 distance, infinity if that is not defined.
    #[must_use]
    pub fn size(&self) -> f64 {
        match &self.outcome {
            Outcome::Equal => 0.0,
            Outcome::Shape => f64::INFINITY,
            Outcome::Changed(change) => match &change.numbers {
                // A change that has no size (types that are no real numbers) counts as large.
                None => f64::INFINITY,
                Some(numbers) if numbers.unordered > 0 => f64::INFINITY,
                Some(numbers) => numbers.relative_l2,
            },
        }
    }
}

/// How the tensors of a pair compare.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The same type, shape and bytes.
    Equal,
    /// Different shapes: there is nothing to compare element by element.
    Shape,
    /// The same shape, and different bytes or types.
    Changed(Change),
}

/// A tensor that is no plain array, and so cannot be compared: its name, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCompared {
    /// Its name.
    pub name: String,
    /// What it is, in words.
    pub kind: String,
    /// Whether it is in the second checkpoint.
    pub in_b: bool,
}

/// The comparison of two checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// Tensors of both, in the order of the first; those that moved come last.
    pub pairs: Vec<Pair>,
    /// Tensors of the first alone.
    pub only_a: Vec<TensorSpec>,
    /// Tensors of the second alone.
    pub only_b: Vec<TensorSpec>,
    /// Tensors that are no plain arrays.
    pub not_compared: Vec<NotCompared>,
}

impl Diff {
    /// Whether all tensors have the same names, types, shapes and bytes.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.same_names() && self.pairs.iter().all(|pair| pair.outcome == Outcome::Equal)
    }

    /// Whether no relative change is larger than `limit`, with the same names and shapes. Types may differ.
    #[must_use]
    pub fn is_within(&self, limit: f64) -> bool {
        self.same_names() && self.pairs.iter().all(|pair| pair.size() <= limit)
    }

    fn same_names(&self) -> bool {
        self.only_a.is_empty()
            && self.only_b.is_empty()
            && self.not_compared.is_empty()
            && !self.pairs.iter().any(Pair::moved)
    }

    /// Compares the tensors of `a` and `b` whose names `wanted` accepts, in pieces of fixed size.
    ///
    /// Tensors are paired by name. What is left on both sides is paired by content: a tensor of the same type, shape and
    /// bytes under another name has moved.
    ///
    /// # Errors
    /// As [`StateDict::tensor`]; [`Error::Cancelled`].
    pub fn new(
        a: &StateDict<'_>,
        b: &StateDict<'_>,
        wanted: impl Fn(&str) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<Diff> {
        let by_name: HashMap<&str, usize> = b.specs().iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        let mut diff = Diff::default();
        let mut left_a = Vec::new();
        let mut paired = vec![false; b.specs().len()];
        for (index, spec) in a.specs().iter().enumerate().filter(|(_, spec)| wanted(&spec.name)) {
            let Some(&other) = by_name.get(spec.name.as_str()) else {
                left_a.push(index);
                continue;
            };
            paired[other] = true;
            let other_spec = &b.specs()[other];
            let outcome = if spec.shape == other_spec.shape {
                let (ours, theirs) = (a.tensor(index)?, b.tensor(other)?);
                match change::compare(&ours.view(), &theirs.view(), progress)? {
                    None => Outcome::Equal,
                    Some(change) => Outcome::Changed(change),
                }
            } else {
                Outcome::Shape
            };
            diff.pairs.push(Pair { a: spec.clone(), b: other_spec.clone(), outcome });
        }
        let left_b: Vec<usize> = (0..paired.len()).filter(|&i| !paired[i] && wanted(&b.specs()[i].name)).collect();
        let moved = moved(a, &left_a, b, &left_b, progress)?;
        for &(from, to) in &moved {
            let (a, b) = (a.specs()[from].clone(), b.specs()[to].clone());
            diff.pairs.push(Pair { a, b, outcome: Outcome::Equal });
        }
        let alone = |left: &[usize], of: &StateDict<'_>, gone: &dyn Fn(usize) -> bool| -> Vec<TensorSpec> {
            left.iter().filter(|&&i| !gone(i)).map(|&i| of.specs()[i].clone()).collect()
        };
        let (from, to): (std::collections::HashSet<usize>, std::collections::HashSet<usize>) =
            moved.into_iter().unzip();
        diff.only_a = alone(&left_a, a, &|i| from.contains(&i));
        diff.only_b = alone(&left_b, b, &|i| to.contains(&i));
        for (tensors, in_b) in [(a, false), (b, true)] {
            diff.not_compared.extend(
                tensors.others().iter().filter(|(name, _)| wanted(name)).map(|(name, other)| NotCompared {
                    name: name.clone(),
                    kind: other.kind.to_string(),
                    in_b,
                }),
            );
        }
        Ok(diff)
    }
}

/// Pairs tensors of the same type, shape and bytes, in order where there are several.
fn moved(
    a: &StateDict<'_>,
    left_a: &[usize],
    b: &StateDict<'_>,
    left_b: &[usize],
    progress: &mut dyn Progress,
) -> Result<Vec<(usize, usize)>> {
    fn kind(spec: &TensorSpec) -> (DType, &[usize]) {
        (spec.dtype, &spec.shape)
    }
    let kinds_b: std::collections::HashSet<_> = left_b.iter().map(|&i| kind(&b.specs()[i])).collect();
    let mut by_content: HashMap<(DType, &[usize], String), Vec<usize>> = HashMap::new();
    for &index in left_a.iter().filter(|&&i| kinds_b.contains(&kind(&a.specs()[i]))) {
        let (dtype, shape) = kind(&a.specs()[index]);
        by_content.entry((dtype, shape, hash(a, index, progress)?)).or_default().push(index);
    }
    // The first of each comes first.
    by_content.values_mut().for_each(|indices| indices.reverse());
    let kinds_a: std::collections::HashSet<_> = by_content.keys().map(|(dtype, shape, _)| (*dtype, *shape)).collect();
    let mut moved = Vec::new();
    for &index in left_b.iter().filter(|&&i| kinds_a.contains(&kind(&b.specs()[i]))) {
        let (dtype, shape) = kind(&b.specs()[index]);
        let content = (dtype, shape, hash(b, index, progress)?);
        if let Some(from) = by_content.get_mut(&content).and_then(Vec::pop) {
            moved.push((from, index));
        }
    }
    moved.sort_unstable();
    Ok(moved)
}

fn hash(tensors: &StateDict<'_>, index: usize, progress: &mut dyn Progress) -> Result<String> {
    if progress.cancelled() {
        return Err(Error::Cancelled);
    }
    let hash = sha256(&tensors.tensor(index)?.view());
    progress.advance(tensors.specs()[index].bytes());
    Ok(hash)
}
