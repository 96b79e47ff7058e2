//! The arithmetic: slices in, slices out.
//!
//! Products and sums are separate operations, each rounded, as PyTorch's eager `W + lambda * A` rounds them; Rust never
//! fuses the two by itself. Nothing here depends on how a tensor is cut into pieces, nor on the instructions that the processor
//! has: loops are plain, and compiled for several kinds of processors (`Arch::dispatch` around them), with no operation
//! reordered.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Lost;
use crate::tensor::DType;

/// Elements that are computed at a time: the buffers of this many fit the first-level cache.
pub(super) const BLOCK: usize = 2048;

/// The type that a step computes in: f64 if any tensor of it is float64, f32 otherwise.
pub(super) trait Real: Copy + Default + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> {
    /// `lambda` rounded to this type.
    fn lambda(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// Reads little-endian elements of `dtype`, one of the types that are folded and no wider than this one; at most [`BLOCK`].
    fn load(dtype: DType, bytes: &[u8], out: &mut [Self]);
    /// Writes `values`, at most [`BLOCK`], as little-endian elements of `dtype`, rounded to nearest even.
    fn store(dtype: DType, values: &[Self], out: &mut [u8]);
}

/// The numbers of one type that lie in `bytes`.
#[inline(always)]
fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], from: impl Fn([u8; N]) -> T) {
    for (to, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *to = from(*bytes);
    }
}

/// `values` as bytes.
#[inline(always)]
fn put<const N: usize, T: Copy>(values: &[T], out: &mut [u8], to: impl Fn(T) -> [u8; N]) {
    for (bytes, &value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = to(value);
    }
}

/// As PyTorch rounds: to nearest even, and NaN stays one.
#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    let bits = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded };
    bits as u16
}

impl Real for f32 {
    fn lambda(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn load(dtype: DType, bytes: &[u8], out: &mut [f32]) {
        match dtype {
            DType::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                let halves = &mut halves[..out.len()];
                each(bytes, halves, f16::from_le_bytes);
                halves.convert_to_f32_slice(out);
            }
            DType::BF16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            _ => each(bytes, out, f32::from_le_bytes),
        }
    }

    #[inline(always)]
    fn store(dtype: DType, values: &[f32], out: &mut [u8]) {
        match dtype {
            DType::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                put(halves, out, f16::to_le_bytes);
            }
            DType::BF16 => put(values, out, |x| to_bf16(x).to_le_bytes()),
            DType::F64 => put(values, out, |x| f64::from(x).to_le_bytes()),
            _ => put(values, out, f32::to_le_bytes),
        }
    }
}

impl Real for f64 {
    fn lambda(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn load(dtype: DType, bytes: &[u8], out: &mut [f64]) {
        if dtype == DType::F64 {
            each(bytes, out, f64::from_le_bytes);
            return;
        }
        let mut narrow = [0.0; BLOCK];
        let narrow = &mut narrow[..out.len()];
        f32::load(dtype, bytes, narrow);
        for (to, x) in out.iter_mut().zip(narrow) {
            *to = f64::from(*x);
        }
    }

    /// The half types go through f32, as PyTorch's conversions from float64 do.
    #[inline(always)]
    fn store(dtype: DType, values: &[f64], out: &mut [u8]) {
        if dtype == DType::F64 {
            put(values, out, f64::to_le_bytes);
            return;
        }
        let mut narrow = [0.0; BLOCK];
        let narrow = &mut narrow[..values.len()];
        for (to, x) in narrow.iter_mut().zip(values) {
            *to = *x as f32;
        }
        f32::store(dtype, narrow, out);
    }
}

/// `sum += lambda * values` and `change += lambda * values`, element by element.
#[inline(always)]
pub(super) fn add_scaled<T: Real>(sum: &mut [T], change: &mut [T], lambda: T, values: &[T]) {
    for ((sum, change), &value) in sum.iter_mut().zip(change).zip(values) {
        let product = lambda * value;
        *sum = *sum + product;
        *change = *change + product;
    }
}

/// The sum of the squares, accumulated in f64 in sixteen lanes.
#[inline(always)]
pub(super) fn sum_of_squares<T: Copy>(values: &[T], to_f64: impl Fn(T) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            let x = to_f64(x);
            *lane += x * x;
        }
    }
    let square = |&x: &T| to_f64(x) * to_f64(x);
    lanes.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
}

/// How many of `values` became infinite, and how many 0, when they were stored as a type that holds `stored` in their place.
#[inline(always)]
pub(super) fn count_lost<T: Real>(values: &[T], stored: &[T]) -> Lost {
    let (mut overflow, mut underflow) = (0, 0);
    for (value, stored) in values.iter().zip(stored) {
        let (value, stored) = (value.to_f64(), stored.to_f64());
        overflow += u32::from(value.abs() < f64::INFINITY && stored.abs() == f64::INFINITY);
        underflow += u32::from(value != 0.0 && stored == 0.0);
    }
    Lost { overflow: overflow.into(), underflow: underflow.into() }
}

/// Whether a NaN or infinity is among little-endian elements of `dtype`.
#[inline(always)]
pub(crate) fn has_non_finite(dtype: DType, bytes: &[u8]) -> bool {
    #[inline(always)]
    fn any<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
        // Without branches inside a block, so that it becomes vector instructions; nearly every block is finite.
        bytes.as_chunks::<N>().0.chunks(1024).any(|block| block.iter().fold(false, |any, b| any | bad(*b)))
    }
    match dtype {
        DType::F64 | DType::C128 => any(bytes, |b| !f64::from_le_bytes(b).is_finite()),
        DType::F32 | DType::C64 => any(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        DType::F16 | DType::C32 => any(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        DType::BF16 | DType::BC32 => any(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        DType::F8E4M3Fn => any(bytes, |[b]| b & 0x7f == 0x7f),
        DType::F8E5M2 => any(bytes, |[b]| b & 0x7c == 0x7c),
        DType::F8E4M3FnUz | DType::F8E5M2FnUz => any(bytes, |[b]| b == 0x80),
        DType::F8E8M0Fnu => any(bytes, |[b]| b == 0xff),
        _ => false,
    }
}

/// Whether a NaN or infinity is among little-endian elements of `from` once they are cast to `to`.
pub(super) fn becomes_non_finite(from: DType, bytes: &[u8], to: DType) -> bool {
    fn cast<T: Real>(from: DType, bytes: &[u8], to: DType) -> bool {
        let (mut values, mut out) = ([T::default(); BLOCK], [0; BLOCK * 8]);
        bytes.chunks(BLOCK * from.size()).any(|bytes| {
            let count = bytes.len() / from.size();
            let out = &mut out[..count * to.size()];
            T::load(from, bytes, &mut values[..count]);
            T::store(to, &values[..count], out);
            has_non_finite(to, out)
        })
    }
    match from {
        _ if from == to => has_non_finite(to, bytes),
        DType::F64 => cast::<f64>(from, bytes, to),
        _ => cast::<f32>(from, bytes, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_sums_are_rounded_apart() {
        // x * x is 1 + 6e + 9e^2. Rounded before the sum it is 1 + 6e; a fused operation would keep the 9e^2.
        let x = 1.0 + 3.0 * f32::EPSILON;
        let mut sum = [-1.0f32];
        add_scaled(&mut sum, &mut [0.0], x, &[x]);
        assert_eq!(sum[0], 6.0 * f32::EPSILON);
        assert_ne!(x.mul_add(x, -1.0), sum[0]);
    }

    #[test]
    #[inline(always)]
    fn halves_round_to_nearest_even() {
        // torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.3895e38]).bfloat16() and .half() of [1 + 2**-11, 1 + 3 * 2**-11, 65520.]
        let mut out = [0; 4];
        f32::store(DType::BF16, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out);
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
        let mut out = [0; 6];
        f32::store(DType::F16, &[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65520.0], &mut out);
        assert_eq!(out, [0x00, 0x3c, 0x02, 0x3c, 0x00, 0x7c]);
    }

    #[test]
    fn non_finite_values_are_found() {
        let mut values = vec![1.0f32; 5000];
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        assert!(!has_non_finite(DType::F32, &bytes(&values)));
        values[4321] = f32::NEG_INFINITY;
        assert!(has_non_finite(DType::F32, &bytes(&values)));
        assert!(has_non_finite(DType::F16, &[0, 0x3c, 0, 0xfc]));
        assert!(!has_non_finite(DType::F16, &[0, 0x3c, 0xff, 0x7b]));
        assert!(has_non_finite(DType::C64, &[0, 0, 0x80, 0x3f, 0, 0, 0xc0, 0x7f]));
        assert!(!has_non_finite(DType::I32, &[0xff; 4]));
    }

    #[test]
    fn squares_are_summed_in_f64() {
        let values: Vec<f32> = (1..=1001).map(|i| i as f32).collect();
        assert_eq!(sum_of_squares(&values, f64::from), 1001.0 * 1002.0 * 2003.0 / 6.0);
    }
}
