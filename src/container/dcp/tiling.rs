//! Whether parts fill a tensor exactly.

use super::metadata::Region;
use crate::tensor::MAX_DIMENSIONS;

/// The largest number of comparisons of two parts along one dimension, for all tensors together. A grid of sixteen thousand
/// parts needs four million.
const MAX_COMPARISONS: usize = 1 << 26;

/// Checks that `parts` lie inside of `shape`, do not overlap, and leave no gap; adds to `comparisons` how often it compared
/// two of them.
///
/// # Errors
/// What is wrong.
pub(super) fn check(shape: &[usize], parts: &[Region], comparisons: &mut usize) -> Result<(), &'static str> {
    const TOO_LARGE: &str = "it is larger than any memory";
    if shape.len() > MAX_DIMENSIONS {
        return Err("it has more dimensions than any tensor");
    }
    let volume = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(TOO_LARGE);
    let mut missing = volume(shape)?;
    for part in parts {
        if part.at.len() != shape.len() || part.sizes.len() != shape.len() {
            return Err("a part of it has another number of dimensions");
        }
        let fits = |((&at, &size), &d): ((&usize, &usize), &usize)| at.checked_add(size).is_some_and(|end| end <= d);
        if !part.at.iter().zip(&part.sizes).zip(shape).all(fits) {
            return Err("a part of it lies outside of it");
        }
        missing = missing.checked_sub(volume(&part.sizes)?).ok_or("parts of it overlap")?;
    }
    if missing > 0 {
        return Err("its parts leave some of it out");
    }
    // Along the dimension that is cut most often, few parts begin before the one at hand has ended.
    let mut parts: Vec<&Region> = parts.iter().filter(|part| !part.sizes.contains(&0)).collect();
    let cuts = |dimension: &usize| {
        let mut starts: Vec<usize> = parts.iter().map(|part| part.at[*dimension]).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.len()
    };
    let Some(along) = (0..shape.len()).max_by_key(cuts) else {
        return if parts.len() > 1 { Err("parts of it overlap") } else { Ok(()) };
    };
    parts.sort_by_key(|part| part.at[along]);
    for (index, first) in parts.iter().enumerate() {
        let end = first.at[along] + first.sizes[along];
        for second in parts[index + 1..].iter().take_while(|second| second.at[along] < end) {
            *comparisons += shape.len();
            if *comparisons > MAX_COMPARISONS {
                return Err("it is in more parts than can be checked");
            }
            let meet =
                |d: usize| first.at[d] < second.at[d] + second.sizes[d] && second.at[d] < first.at[d] + first.sizes[d];
            if (0..shape.len()).all(meet) {
                return Err("parts of it overlap");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts as (at, sizes).
    fn checked<const N: usize>(shape: [usize; N], parts: &[([usize; N], [usize; N])]) -> Result<(), &'static str> {
        let parts: Vec<_> = parts.iter().map(|(at, sizes)| Region { at: at.to_vec(), sizes: sizes.to_vec() }).collect();
        check(&shape, &parts, &mut 0)
    }

    #[test]
    fn takes_rows_columns_grids_and_scalars() {
        assert_eq!(checked([5, 3], &[([3, 0], [2, 3]), ([0, 0], [3, 3])]), Ok(()));
        assert_eq!(checked([5, 3], &[([0, 0], [5, 2]), ([0, 2], [5, 1])]), Ok(()));
        assert_eq!(checked([2, 2], &[([0, 0], [1, 1]), ([0, 1], [1, 1]), ([1, 0], [1, 1]), ([1, 1], [1, 1])]), Ok(()));
        // A pinwheel, which no cut from side to side divides.
        let pinwheel = [([0, 0], [1, 2]), ([0, 2], [2, 1]), ([2, 1], [1, 2]), ([1, 0], [2, 1]), ([1, 1], [1, 1])];
        assert_eq!(checked([3, 3], &pinwheel), Ok(()));
        assert_eq!(checked([], &[([], [])]), Ok(()));
        assert_eq!(checked([3], &[([0], [3]), ([3], [0])]), Ok(()));
        assert_eq!(checked([0, 3], &[]), Ok(()));
    }

    #[test]
    fn rejects_gaps() {
        assert_eq!(checked([5], &[([0], [2]), ([3], [2])]), Err("its parts leave some of it out"));
        assert_eq!(checked([], &[]), Err("its parts leave some of it out"));
    }

    #[test]
    fn rejects_overlaps() {
        assert_eq!(checked([4], &[([0], [2]), ([1], [2])]), Err("parts of it overlap"));
        assert_eq!(checked([4], &[([0], [4]), ([0], [4])]), Err("parts of it overlap"));
        assert_eq!(checked([], &[([], []), ([], [])]), Err("parts of it overlap"));
        // As many elements as there should be, but some twice.
        assert_eq!(checked([2, 2], &[([0, 0], [2, 1]), ([0, 0], [1, 2])]), Err("parts of it overlap"));
    }

    #[test]
    fn rejects_parts_outside_and_of_other_ranks() {
        assert_eq!(checked([4], &[([3], [2])]), Err("a part of it lies outside of it"));
        assert_eq!(checked([4], &[([usize::MAX], [2])]), Err("a part of it lies outside of it"));
        let part = Region { at: vec![0, 0], sizes: vec![4, 1] };
        assert_eq!(check(&[4], &[part], &mut 0), Err("a part of it has another number of dimensions"));
    }

    #[test]
    fn rejects_what_is_larger_than_memory() {
        assert_eq!(checked([usize::MAX, 2], &[]), Err("it is larger than any memory"));
        assert_eq!(check(&[1; 65], &[], &mut 0), Err("it has more dimensions than any tensor"));
    }
}
