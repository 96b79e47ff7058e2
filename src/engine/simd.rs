//! The fold of float32 into float32, and of a half type into itself, which is nearly all that is ever folded: in one pass over
//! registers.

#[cfg(target_arch = "x86_64")]
use std::any::Any;

use pulp::{Arch, Simd, WithSimd};

use super::Norms;
use super::ahead::ahead;
#[cfg(target_arch = "x86_64")]
use super::f16c::{Converted, Converter};
use super::kernels::{self, sum_of_squares};

/// A type whose tensors are folded in float32 vectors.
pub(super) trait Element: Copy {
    /// How an element lies in memory.
    type Bits: bytemuck::Pod;
    /// The same, where the processor has AVX2 and F16C.
    type V3: Element<Bits = Self::Bits>;
    /// The smallest magnitude that is rounded to infinity.
    const LIMIT: f32;
    fn widen(bits: Self::Bits) -> f32;
    /// Rounded to nearest even.
    fn narrow(value: f32) -> Self::Bits;
    /// A vector of as many elements as it takes.
    #[inline(always)]
    fn load<S: Simd>(_: S, bits: &[Self::Bits]) -> S::f32s {
        load_each::<Self, S>(bits)
    }
    /// A vector, to as many elements.
    #[inline(always)]
    fn store<S: Simd>(_: S, values: S::f32s, bits: &mut [Self::Bits]) {
        store_each::<Self, S>(values, bits);
    }
    /// Folds by the instructions of that kind of processor.
    fn fold(arch: Arch, fold: Fold<'_, Self>) -> Folded {
        arch.dispatch(fold)
    }
}

/// Numbers in the widest vector that there is.
const MOST_LANES: usize = 16;

#[inline(always)]
fn load_each<E: Element, S: Simd>(bits: &[E::Bits]) -> S::f32s {
    let mut wide = [0.0; MOST_LANES];
    let wide = &mut wide[..S::F32_LANES];
    for (wide, bits) in wide.iter_mut().zip(bits) {
        *wide = E::widen(*bits);
    }
    S::as_simd_f32s(wide).0[0]
}

#[inline(always)]
fn store_each<E: Element, S: Simd>(values: S::f32s, bits: &mut [E::Bits]) {
    for (bits, value) in bits.iter_mut().zip(bytemuck::cast_slice::<_, f32>(&[values])) {
        *bits = E::narrow(*value);
    }
}

/// float32, as it is.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Element for F32 {
    type Bits = f32;
    type V3 = F32;
    const LIMIT: f32 = f32::INFINITY;

    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }

    #[inline(always)]
    fn narrow(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn load<S: Simd>(_: S, bits: &[f32]) -> S::f32s {
        S::as_simd_f32s(bits).0[0]
    }

    #[inline(always)]
    fn store<S: Simd>(_: S, values: S::f32s, bits: &mut [f32]) {
        S::as_mut_simd_f32s(bits).0[0] = values;
    }
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(super) struct BF16;

impl Element for BF16 {
    type Bits = u16;
    type V3 = BF16;
    // Half a step above the largest number, which is odd, so that the middle is rounded up.
    const LIMIT: f32 = f32::from_bits(0x7f7f_8000);

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        kernels::to_bf16(value)
    }
}

/// float16. Processors with AVX-512 or F16C convert it by instructions; others, by the plain arithmetic here.
#[derive(Clone, Copy)]
pub(super) struct F16;

impl Element for F16 {
    type Bits = u16;
    #[cfg(target_arch = "x86_64")]
    type V3 = Converted;
    #[cfg(not(target_arch = "x86_64"))]
    type V3 = F16;
    const LIMIT: f32 = 65520.0;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
        // The exponent counts from 15 below 0, in float32 from 127 below.
        let normal = magnitude + ((127 - 15) << 23);
        // With an exponent that stands for 2^-14, what is above that is the number.
        let subnormal = (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
        let (nan, special) = (magnitude > 0x1f << 23, magnitude | 0xff << 23);
        let quiet = if nan { special | 1 << 22 } else { special };
        let wide = if magnitude < 1 << 23 { subnormal } else { normal };
        f32::from_bits(sign | if magnitude < 0x1f << 23 { wide } else { quiet })
    }

    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        let bits = value.to_bits();
        let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
        let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
        // Added to 0.5, whose last place is 2^-24 as float16's is down there, it is rounded to that place.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
        let narrow = if magnitude < 113 << 23 { subnormal } else { normal };
        let finite = if magnitude < Self::LIMIT.to_bits() { narrow } else { 0x7c00 };
        (sign | if magnitude > 0xff << 23 { nan } else { finite }) as u16
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, bits: &[u16]) -> S::f32s {
        let _ = simd;
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<pulp::x86::V4>()
            && let Some((bits, _)) = bits.split_first_chunk::<16>()
        {
            let wide: [f32; 16] = pulp::cast(v4.avx512f._mm512_cvtph_ps(pulp::cast(*bits)));
            return S::as_simd_f32s(&wide).0[0];
        }
        load_each::<Self, S>(bits)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, values: S::f32s, bits: &mut [u16]) {
        let _ = simd;
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<pulp::x86::V4>()
            && let Ok(values) = bytemuck::try_cast::<_, [f32; 16]>(values)
            && let Some((bits, _)) = bits.split_first_chunk_mut::<16>()
        {
            /// To nearest even, without a word to anybody.
            const NEAREST: i32 = std::arch::x86_64::_MM_FROUND_TO_NEAREST_INT | std::arch::x86_64::_MM_FROUND_NO_EXC;
            *bits = pulp::cast(v4.avx512f._mm512_cvtps_ph::<NEAREST>(pulp::cast(values)));
            return;
        }
        store_each::<Self, S>(values, bits);
    }

    fn fold(arch: Arch, fold: Fold<'_, F16>) -> Folded {
        #[cfg(target_arch = "x86_64")]
        if let Some(converter) = Converter::of(arch) {
            return converter.fold(fold);
        }
        arch.dispatch(fold)
    }
}

/// Bytes of which remainders are made at a time.
pub(super) const LINE: usize = 64;

/// What else is made of a fold's inputs and results while they are in registers or the first-level cache.
pub(super) trait Lines {
    /// Takes in a line of the source, of each term, and of the result.
    fn take<'b>(&mut self, source: &[u8], first: &[u8], more: impl Iterator<Item = &'b [u8]>, out: &[u8]);

    /// After the last line.
    fn end(self);
}

/// Nothing; what will be folded next is brought near.
impl Lines for () {
    #[inline(always)]
    fn take<'b>(&mut self, source: &[u8], first: &[u8], more: impl Iterator<Item = &'b [u8]>, _: &[u8]) {
        let near = |input: &[u8]| input.chunks(LINE).for_each(ahead);
        near(source);
        near(first);
        more.for_each(near);
    }

    #[inline(always)]
    fn end(self) {}
}

/// A block of elements plus terms, all of one type.
pub(super) struct Fold<'a, E: Element, L: Lines = ()> {
    /// At most [`kernels::BLOCK`] elements.
    pub(super) source: &'a [E::Bits],
    /// The first term: its lambda, and as many elements.
    pub(super) first: (f32, &'a [E::Bits]),
    /// The other terms, from left to right.
    pub(super) more: &'a [(f32, &'a [E::Bits])],
    /// Where the result goes: as many elements.
    pub(super) out: &'a mut [E::Bits],
    /// What takes in all whole lines.
    pub(super) lines: L,
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

impl<E: Element, L: Lines> WithSimd for Fold<'_, E, L> {
    type Output = Folded;

    /// Every result is a product, rounded, added to a sum, rounded, and rounded to the type. The sums of squares are made in
    /// float32 by so many lanes as the processor has, at most 128 numbers each, and are good to about six digits.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Folded {
        // With one term, all that a loop needs stays in registers.
        if self.more.is_empty() { self.run::<S, false>(simd) } else { self.run::<S, true>(simd) }
    }
}

impl<E: Element, L: Lines> Fold<'_, E, L> {
    /// As [`WithSimd::with_simd`]; whether there is more than one term.
    #[inline(always)]
    fn run<S: Simd, const MORE: bool>(self, simd: S) -> Folded {
        let Fold { source, first, more, out, mut lines } = self;
        let more = if MORE { more } else { &[] };
        let zero = simd.splat_f32s(0.0);
        let (mut squares, mut changes) = ([zero; SIDE], [zero; SIDE]);
        let limit = simd.splat_f32s(E::LIMIT);
        let mut finite = [simd.less_than_f32s(zero, limit); SIDE];
        let step = S::F32_LANES * SIDE;
        // Whole vectors, and whole lines.
        let stretch = step.max(LINE / size_of::<E::Bits>());
        let whole = source.len() / stretch * stretch;
        {
            let lambda = simd.splat_f32s(first.0);
            let places = out[..whole].chunks_exact_mut(stretch).zip(source[..whole].chunks_exact(stretch));
            let places = places.zip(first.1[..whole].chunks_exact(stretch));
            for (number, ((out, source), values)) in places.enumerate() {
                let more = more.iter().map(|(lambda, values)| (lambda, &values[number * stretch..][..stretch]));
                for vector in 0..stretch / S::F32_LANES {
                    let side = vector % SIDE;
                    let lanes = vector * S::F32_LANES..(vector + 1) * S::F32_LANES;
                    let source = E::load(simd, &source[lanes.clone()]);
                    let mut change = simd.mul_f32s(lambda, E::load(simd, &values[lanes.clone()]));
                    let mut sum = simd.add_f32s(source, change);
                    for (lambda, values) in more.clone() {
                        let product = simd.mul_f32s(simd.splat_f32s(*lambda), E::load(simd, &values[lanes.clone()]));
                        sum = simd.add_f32s(sum, product);
                        change = simd.add_f32s(change, product);
                    }
                    E::store(simd, sum, &mut out[lanes]);
                    squares[side] = simd.add_f32s(squares[side], simd.mul_f32s(source, source));
                    changes[side] = simd.add_f32s(changes[side], simd.mul_f32s(change, change));
                    // NaN is not less than anything.
                    finite[side] = simd.and_m32s(finite[side], simd.less_than_f32s(simd.abs_f32s(sum), limit));
                }
                let more = more.map(|(_, values)| bytemuck::cast_slice(values));
                lines.take(bytemuck::cast_slice(source), bytemuck::cast_slice(values), more, bytemuck::cast_slice(out));
            }
            lines.end();
        }
        let total = |sums: [S::f32s; SIDE]| simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]));
        let (squares, changes) = (total(squares), total(changes));
        let one = simd.splat_f32s(1.0);
        let mut bad = total(finite.map(|finite| simd.select_f32s(finite, zero, one))) != 0.0;
        // The few that fill no vector.
        let change = |index: usize| {
            let first = first.0 * E::widen(first.1[index]);
            more.iter().fold(first, |change, (lambda, values)| change + lambda * E::widen(values[index]))
        };
        let mut norms = Norms { source: squares.into(), change: changes.into() };
        for index in whole..source.len() {
            let value = E::widen(source[index]);
            let mut sum = value + first.0 * E::widen(first.1[index]);
            for (lambda, values) in more {
                sum += lambda * E::widen(values[index]);
            }
            out[index] = E::narrow(sum);
            bad |= sum.is_nan() || sum.abs() >= E::LIMIT;
        }
        let trusted = |sum: f32| sum.is_finite() && sum > SMALLEST;
        if !trusted(squares) {
            norms.source = sum_of_squares(&source[..whole], |bits| f64::from(E::widen(bits)));
        }
        if !trusted(changes) {
            norms.change = (0..whole).map(|index| f64::from(change(index)).powi(2)).sum();
        }
        norms.source += sum_of_squares(&source[whole..], |bits| f64::from(E::widen(bits)));
        norms.change += (whole..source.len()).map(|index| f64::from(change(index)).powi(2)).sum::<f64>();
        Folded { norms, bad }
    }
}

#[cfg(test)]
mod tests {
    use super::kernels::BLOCK;
    use super::*;

    /// Numbers without a pattern, of both signs and several magnitudes.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        (0..count).map(|_| (next() as f32 / 8_388_608.0 - 1.0) * 10f32.powi(next() as i32 % 5 - 3)).collect()
    }

    /// All kinds of vectors that this processor has, and none.
    fn archs() -> Vec<Arch> {
        let mut archs = vec![Arch::new(), Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
        archs
    }

    /// Folds by each of them.
    fn fold(source: &[f32], terms: &[(f32, &[f32])]) -> Vec<(Vec<f32>, Folded)> {
        let run = |arch: Arch| {
            let mut out = vec![f32::NAN; source.len()];
            let block = Fold::<F32> { source, first: terms[0], more: &terms[1..], out: &mut out, lines: () };
            let folded = F32::fold(arch, block);
            (out, folded)
        };
        archs().into_iter().map(run).collect()
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
    fn half_types_are_what_their_standards_say() {
        for bits in 0..=u16::MAX {
            // NaN is made quiet, as processors do.
            let quiet = |value: f32| if value.is_nan() { value.to_bits() | 1 << 22 } else { value.to_bits() };
            assert_eq!(F16::widen(bits).to_bits(), quiet(half::f16::from_bits(bits).to_f32_const()), "{bits:#x}");
            assert_eq!(BF16::widen(bits).to_bits(), u32::from(bits) << 16);
        }
        // Every number of float16, every middle of two of them, and what lies beside.
        for bits in 0..0x7c00u16 {
            let [low, high] = [bits, bits + 1].map(|bits| half::f16::from_bits(bits).to_f32_const());
            let middle = if high.is_finite() { (low + high) / 2.0 } else { F16::LIMIT };
            for value in [low, middle.next_down(), middle, middle.next_up()].into_iter().flat_map(|x| [x, -x]) {
                assert_eq!(F16::narrow(value), half::f16::from_f32_const(value).to_bits(), "{value:e}");
                assert_eq!(value.abs() < F16::LIMIT, half::f16::from_f32_const(value).is_finite(), "{value:e}");
            }
        }
        for bits in (0..=u32::MAX).step_by(9973) {
            let value = f32::from_bits(bits);
            assert_eq!(F16::narrow(value), half::f16::from_f32_const(value).to_bits(), "{bits:#x}");
            assert_eq!(BF16::narrow(value), half::bf16::from_f32(value).to_bits(), "{bits:#x}");
            let finite = half::bf16::from_f32(value).is_finite();
            assert_eq!(value.abs() < BF16::LIMIT, finite, "{bits:#x}");
        }
        for (value, finite) in [(BF16::LIMIT, false), (BF16::LIMIT.next_down(), true)] {
            assert_eq!(half::bf16::from_f32(value).is_finite(), finite);
        }
    }

    /// Folds two terms by all kinds of vectors; what every element is by the crate `half`.
    fn fold_halves<E: Element<Bits = u16>>(
        widen: impl Fn(u16) -> f32,
        narrow: impl Fn(f32) -> u16,
        values: [Vec<u16>; 3],
    ) {
        let [source, a, b] = values;
        let result = |((w, a), b): ((&u16, &u16), &u16)| (widen(*w) + 0.1f32 * widen(*a)) + -0.37f32 * widen(*b);
        let expected: Vec<u16> = source.iter().zip(&a).zip(&b).map(result).map(&narrow).collect();
        for arch in archs() {
            let mut out = vec![0; source.len()];
            let fold = Fold { source: &source, first: (0.1, &a), more: &[(-0.37, &b)], out: &mut out, lines: () };
            let folded = E::fold(arch, fold);
            assert_eq!(out, expected);
            assert_eq!(folded.bad, expected.iter().any(|bits| !widen(*bits).is_finite()));
            if !folded.bad {
                let squares: f64 = source.iter().map(|bits| f64::from(widen(*bits)).powi(2)).sum();
                assert!((folded.norms.source - squares).abs() <= 1e-5 * squares, "{folded:?} {squares}");
            }
        }
    }

    #[test]
    fn half_types_are_computed_in_float32_and_rounded_once() {
        let (f16, bf16) = (half::f16::from_f32_const, half::bf16::from_f32_const);
        for count in [1, 15, 16, 32, 100, 2047, BLOCK] {
            let values =
                |to: &dyn Fn(f32) -> u16| [1, 2, 3].map(|seed| numbers(seed, count).into_iter().map(to).collect());
            fold_halves::<F16>(
                |x| half::f16::from_bits(x).to_f32_const(),
                |x| f16(x).to_bits(),
                values(&|x| f16(x).to_bits()),
            );
            fold_halves::<BF16>(
                |x| half::bf16::from_bits(x).to_f32(),
                |x| bf16(x).to_bits(),
                values(&|x| bf16(x).to_bits()),
            );
        }
        // Every number that there is, the smallest and those that overflow included; NaN and infinity apart.
        for first in (0..=u16::MAX).step_by(BLOCK) {
            let values = [0, 1, 77].map(|turn: u16| {
                let bits = (0..BLOCK as u16).map(|bits| first.wrapping_add(bits).rotate_left(turn.into()));
                bits.collect::<Vec<u16>>()
            });
            let finite = |mask: u16| {
                values.clone().map(|v| v.into_iter().map(|x| if x & mask == mask { 1 } else { x }).collect())
            };
            fold_halves::<F16>(|x| half::f16::from_bits(x).to_f32_const(), |x| f16(x).to_bits(), finite(0x7c00));
            fold_halves::<BF16>(|x| half::bf16::from_bits(x).to_f32(), |x| bf16(x).to_bits(), finite(0x7f80));
        }
    }

    #[test]
    fn nan_and_infinity_become_the_same_by_all_kinds_of_vectors() {
        fn outs<E: Element<Bits = u16>>(source: &[u16], term: &[u16]) -> Vec<Vec<u16>> {
            let run = |arch| {
                let mut out = vec![0; source.len()];
                let folded = E::fold(arch, Fold { source, first: (0.5, term), more: &[], out: &mut out, lines: () });
                assert!(folded.bad);
                out
            };
            archs().into_iter().map(run).collect()
        }
        // All numbers whose exponent's highest bits are set, and one of about 1 beside each.
        let source: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7800 == 0x7800).take(BLOCK).collect();
        let term = vec![0x3c01; source.len()];
        for outs in [outs::<F16>(&source, &term), outs::<F16>(&term, &source), outs::<BF16>(&source, &term)] {
            assert!(outs.iter().all(|out| *out == outs[0]));
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
