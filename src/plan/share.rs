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

/// What the user is told of tensors that share their data, where the output cannot.
pub(super) fn copied(names: &[&str]) -> String {
    format!("{} share their data; safetensors holds each as a copy", names.join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: DType::F32, shape: shape.to_vec() }
    }

    fn placement(storage: usize, offset: usize, strides: &[usize]) -> Placement<'_> {
        Placement { storage, offset, strides, contiguous: false }
    }

    #[test]
    fn views_of_one_storage_are_grouped_with_the_run_they_use() {
        let specs = [spec("head", &[4]), spec("alone", &[2, 3]), spec("tail", &[3, 2]), spec("empty", &[0])];
        let placements =
            [placement(0, 10, &[1]), placement(1, 0, &[1, 2]), placement(0, 12, &[1, 3]), placement(0, 0, &[1])];
        let group = |members: &[usize], first, numel| Group { members: members.to_vec(), first, numel };
        // The tail's last element is 12 + 2 * 1 + 1 * 3 = 17.
        assert_eq!(groups(&specs, &placements, &[0, 1, 2, 3]), [group(&[0, 2], 10, 8)]);
        assert_eq!(groups(&specs, &placements, &[1, 2, 3]), []);
    }

    #[test]
    fn a_view_that_repeats_its_elements_is_a_group_of_its_own() {
        let specs = [spec("expanded", &[5, 3])];
        let expected = Group { members: vec![0], first: 7, numel: 3 };
        assert_eq!(groups(&specs, &[placement(0, 7, &[0, 1])], &[0]), [expected]);
    }

    #[test]
    fn views_of_other_types_are_no_members() {
        let mut specs = [spec("a", &[2]), spec("b", &[2])];
        specs[1].dtype = DType::I32;
        assert_eq!(groups(&specs, &[placement(0, 0, &[1]), placement(0, 0, &[1])], &[0, 1]), []);
    }
}
