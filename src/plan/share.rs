//! Tensors that are views of one storage, and how they stay so.

use std::collections::BTreeMap;

use crate::checkpoint::Placement;
use crate::tensor::{DType, TensorSpec};

/// A run of elements of a storage that several tensors are views of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The members, as indices into the specs, in order.
    pub(super) members: Vec<usize>,
    /// The first element that any of them uses.
    pub(super) first: usize,
    /// Elements from the first to the end of the last.
    pub(super) numel: usize,
}

/// The range of elements of its storage that a tensor uses; empty if it has no elements.
fn extent(spec: &TensorSpec, placement: &Placement<'_>) -> (usize, usize) {
    if spec.shape.contains(&0) {
        return (placement.offset, placement.offset);
    }
    let last: usize = spec.shape.iter().zip(placement.strides).map(|(&d, &s)| (d - 1) * s).sum();
    (placement.offset, placement.offset + last + 1)
}

/// The storages of which `wanted` tensors of `specs` are several views, or views that repeat elements, of one type.
///
/// A storage with a single plain view is not among them: that view is simply a tensor.
pub(super) fn groups(specs: &[TensorSpec], placements: &[Placement<'_>], wanted: &[usize]) -> Vec<Group> {
    let mut by_storage: BTreeMap<(usize, DType), Vec<usize>> = BTreeMap::new();
    for &index in wanted.iter().filter(|&&i| !specs[i].shape.contains(&0)) {
        by_storage.entry((placements[index].storage, specs[index].dtype)).or_default().push(index);
    }
    by_storage
        .into_values()
        .filter_map(|members| {
            let ranges: Vec<_> = members.iter().map(|&i| extent(&specs[i], &placements[i])).collect();
            let first = ranges.iter().map(|r| r.0).min()?;
            let end = ranges.iter().map(|r| r.1).max()?;
            let numel = end - first;
            let repeats = members.iter().any(|&i| specs[i].numel() > numel);
            (members.len() > 1 || repeats).then_some(Group { members, first, numel })
        })
        .collect()
}
