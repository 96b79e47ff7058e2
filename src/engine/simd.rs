//! The fold of float32 into float32, which is most of what is ever folded, in one pass over registers.

use pulp::{Simd, WithSimd};

use super::Norms;
use super::kernels::{BLOCK, sum_of_squares};

/// A block of float32 elements plus terms.
pub(super) struct FoldF32<'a> {
    /// At most [`BLOCK`] elements.
    pub(super) source: &'a [f32],
    /// The first term: its lambda, and as many elements.
    pub(super) first: (f32, &'a [f32]),
    /// The other terms, from left to right.
    pub(super) more: &'a [(f32, &'a [f32])],
    /// Where the result goes: as many elements.
    pub(super) out: &'a mut [f32],
}

/// What a block gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Folded {
    /// Sums of squares: of the source, and of the terms' sum.
    pub(super) norms: Norms,
    /// Whether a NaN or infinity is among the results.
    pub(super) bad: bool,
}

/// Vectors that are computed side by side, so that the processor does not wait for one sum after another.
const SIDE: usize = 2;

/// Sums of squares in float32 that are smaller are not trusted: parts of them may have become 0 or lost digits.
const SMALLEST: f32 = 1e-30;

impl WithSimd for FoldF32<'_> {
    type Output = Folded;

    /// Every result is a product, rounded, added to a sum, rounded. The sums of squares are made in float32 by so many lanes as
    /// the processor has, at most 128 numbers each, and are good to about six digits.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Folded {
        let FoldF32 { source, first, more, out } = self;
        let zero = simd.splat_f32s(0.0);
        let (mut squares, mut changes, mut bad) = ([zero; SIDE], [zero; SIDE], [zero; SIDE]);
        let whole = source.len() / (S::F32_LANES * SIDE) * (S::F32_LANES * SIDE);
        {
            let lambda = simd.splat_f32s(first.0);
            let source = vectors::<S>(&source[..whole]).as_chunks::<SIDE>().0;
            let values = vectors::<S>(&first.1[..whole]).as_chunks::<SIDE>().0;
            let results = S::as_mut_simd_f32s(&mut out[..whole]).0.as_chunks_mut::<SIDE>().0;
            for (number, ((out, source), values)) in results.iter_mut().zip(source).zip(values).enumerate() {
                for side in 0..SIDE {
                    let mut change = simd.mul_f32s(lambda, values[side]);
                    let mut sum = simd.add_f32s(source[side], change);
                    for (lambda, values) in more {
                        let values = vectors::<S>(values)[number * SIDE + side];
                        let product = simd.mul_f32s(simd.splat_f32s(*lambda), values);
                        sum = simd.add_f32s(sum, product);
                        change = simd.add_f32s(change, product);
                    }
                    out[side] = sum;
                    squares[side] = simd.add_f32s(squares[side], simd.mul_f32s(source[side], source[side]));
                    changes[side] = simd.add_f32s(changes[side], simd.mul_f32s(change, change));
                    // What is not finite is NaN when it is taken from itself, and stays so.
                    bad[side] = simd.add_f32s(bad[side], simd.sub_f32s(sum, sum));
                }
            }
        }
        let total = |sums: [S::f32s; SIDE]| simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]));
        let (squares, changes) = (total(squares), total(changes));
        let mut bad = total(bad) != 0.0;
        // The few that fill no vector.
        let mut rest = [0.0; BLOCK];
        let rest = &mut rest[..source.len() - whole];
        for (index, change) in (whole..source.len()).zip(&mut *rest) {
            *change = first.0 * first.1[index];
            let mut sum = source[index] + *change;
            for (lambda, values) in more {
                let product = lambda * values[index];
                sum += product;
                *change += product;
            }
            out[index] = sum;
            bad |= !sum.is_finite();
        }
        let mut norms = Norms { source: squares.into(), change: changes.into() };
        let trusted = |sum: f32| sum.is_finite() && sum > SMALLEST;
        if !trusted(squares) {
            norms.source = sum_of_squares(&source[..whole], f64::from);
        }
        if !trusted(changes) {
            let change = |index: usize| {
                more.iter().fold(first.0 * first.1[index], |change, (lambda, values)| change + lambda * values[index])
            };
            norms.change = (0..whole).map(|index| f64::from(change(index)).powi(2)).sum();
        }
        norms.source += sum_of_squares(&source[whole..], f64::from);
        norms.change += sum_of_squares(rest, f64::from);
        Folded { norms, bad }
    }
}

/// As many vectors as there are whole ones.
#[inline(always)]
fn vectors<S: Simd>(values: &[f32]) -> &[S::f32s] {
    S::as_simd_f32s(values).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Arch;

    /// Numbers without a pattern, of both signs and several magnitudes.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        (0..count).map(|_| (next() as f32 / 8_388_608.0 - 1.0) * 10f32.powi(next() as i32 % 5 - 3)).collect()
    }

    /// Folds on the widest vectors that there are, and without any.
    fn fold(source: &[f32], terms: &[(f32, &[f32])]) -> Vec<(Vec<f32>, Folded)> {
        let run = |arch: Arch| {
            let mut out = vec![f32::NAN; source.len()];
            let block = FoldF32 { source, first: terms[0], more: &terms[1..], out: &mut out };
            let folded = arch.dispatch(block);
            (out, folded)
        };
        vec![run(Arch::new()), run(Arch::Scalar)]
    }

    #[test]
    fn every_element_is_rounded_as_one_at_a_time() {
        for count in [0, 1, 15, 16, 31, 32, 33, 64, 100, 1000, 2047, BLOCK] {
            let (source, a, b) = (numbers(1, count), numbers(2, count), numbers(3, count));
            let expected: Vec<f32> =
                source.iter().zip(&a).zip(&b).map(|((w, a), b)| (w + 0.1f32 * a) + -0.37f32 * b).collect();
            let change: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(0.1f32 * a + -0.37f32 * b).powi(2)).sum();
            let squares: f64 = source.iter().map(|&w| f64::from(w).powi(2)).sum();
            for (out, folded) in fold(&source, &[(0.1, &a), (-0.37, &b)]) {
                assert_eq!(out, expected);
                assert!(!folded.bad);
                assert!((folded.norms.source - squares).abs() <= 1e-6 * squares, "{folded:?} {squares}");
                assert!((folded.norms.change - change).abs() <= 1e-6 * change, "{folded:?} {change}");
            }
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_anywhere() {
        for (count, at) in [(BLOCK, 0), (BLOCK, 777), (100, 99), (7, 3)] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut source = numbers(4, count);
                let zeros = vec![0.0; count];
                source[at] = value;
                assert!(fold(&source, &[(1.0, &zeros)]).iter().all(|(_, folded)| folded.bad), "{count} {at} {value}");
            }
        }
    }

    #[test]
    fn sums_of_squares_neither_overflow_nor_vanish() {
        for scale in [1e30f32, 1e-25] {
            let source: Vec<f32> = numbers(5, BLOCK).iter().map(|x| x * scale).collect();
            let expected: f64 = source.iter().map(|&w| f64::from(w).powi(2)).sum();
            for (_, folded) in fold(&source, &[(0.5, &source)]) {
                assert!((folded.norms.source / expected - 1.0).abs() < 1e-6, "{folded:?} {expected}");
                assert!((folded.norms.change / expected * 4.0 - 1.0).abs() < 1e-6, "{folded:?} {expected}");
            }
        }
        let zeros = [0.0; 100];
        let none = Norms::default();
        assert!(fold(&zeros, &[(1.0, &zeros)]).iter().all(|(_, folded)| folded.norms == none && !folded.bad));
    }
}
