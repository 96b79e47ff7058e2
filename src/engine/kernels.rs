//! The arithmetic: slices in, slices out.
//!
//! Products and sums are separate operations, each rounded, as PyTorch's eager `W + lambda * A` rounds them; Rust never
//! fuses the two by itself. Nothing here depends on how a tensor is cut into pieces.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::tensor::{DType, decode_f64};

/// The type that a step computes in: f64 if any tensor of it is float64, f32 otherwise.
pub(super) trait Real: Copy + Default + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> {
    /// `lambda` rounded to this type.
    fn lambda(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// Appends little-endian elements of `dtype`, one of the types that are folded and no wider than this one.
    fn load(dtype: DType, bytes: &[u8], out: &mut Vec<Self>);
    /// Appends `values` as little-endian elements of `dtype`, rounded to nearest even.
    fn store(dtype: DType, values: &[Self], out: &mut Vec<u8>);
}

/// The bits of half-precision elements.
fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b))
}

impl Real for f32 {
    fn lambda(value: f64) -> f32 {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn load(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) {
        let start = out.len();
        match dtype {
            DType::F16 => {
                let values: Vec<f16> = halves(bytes).map(f16::from_bits).collect();
                out.resize(start + values.len(), 0.0);
                values.convert_to_f32_slice(&mut out[start..]);
            }
            DType::BF16 => out.extend(halves(bytes).map(|bits| f32::from_bits(u32::from(bits) << 16))),
            _ => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        }
    }

    fn store(dtype: DType, values: &[f32], out: &mut Vec<u8>) {
        match dtype {
            DType::F16 => {
                let mut rounded = vec![f16::ZERO; values.len()];
                rounded.convert_from_f32_slice(values);
                out.extend(rounded.iter().flat_map(|x| x.to_le_bytes()));
            }
            DType::BF16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
            DType::F64 => out.extend(values.iter().flat_map(|&x| f64::from(x).to_le_bytes())),
            _ => {
                let start = out.len();
                out.resize(start + values.len() * 4, 0);
                for (to, x) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *to = x.to_le_bytes();
                }
            }
        }
    }
}

impl Real for f64 {
    fn lambda(value: f64) -> f64 {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn load(dtype: DType, bytes: &[u8], out: &mut Vec<f64>) {
        match dtype {
            DType::F64 => out.extend(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b))),
            _ => {
                let mut narrow = Vec::with_capacity(bytes.len() / dtype.size());
                f32::load(dtype, bytes, &mut narrow);
                out.extend(narrow.into_iter().map(f64::from));
            }
        }
    }

    /// The half types go through f32, as PyTorch's conversions from float64 do.
    fn store(dtype: DType, values: &[f64], out: &mut Vec<u8>) {
        match dtype {
            DType::F64 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            _ => {
                let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                f32::store(dtype, &narrow, out);
            }
        }
    }
}

/// `sum += lambda * values` and `change += lambda * values`, element by element.
pub(super) fn add_scaled<T: Real>(sum: &mut [T], change: &mut [T], lambda: T, values: &[T]) {
    for ((sum, change), &value) in sum.iter_mut().zip(change).zip(values) {
        let product = lambda * value;
        *sum = *sum + product;
        *change = *change + product;
    }
}

/// The sum of the squares, accumulated in f64 in eight lanes.
pub(super) fn sum_of_squares<T: Real>(values: &[T]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x.to_f64() * x.to_f64();
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>()
}

/// How many of `values` became infinite, and how many 0, in `bytes` of that type, which they were stored as.
pub(super) fn count_lost<T: Real>(values: &[T], dtype: DType, bytes: &[u8]) -> (u64, u64) {
    let mut stored = Vec::with_capacity(values.len());
    // Of a type that was stored as, all can be decoded.
    if decode_f64(dtype, bytes, &mut stored).is_err() {
        return (0, 0);
    }
    let (mut overflow, mut underflow) = (0, 0);
    for (value, stored) in values.iter().map(|value| value.to_f64()).zip(stored) {
        overflow += u64::from(value.is_finite() && stored.is_infinite());
        underflow += u64::from(value != 0.0 && stored == 0.0);
    }
    (overflow, underflow)
}

/// Whether a NaN or infinity is among little-endian elements of `dtype`.
pub(super) fn has_non_finite(dtype: DType, bytes: &[u8]) -> bool {
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
    fn cast<T: Real>(from: DType, bytes: &[u8], to: DType) -> Vec<u8> {
        let (mut values, mut out) = (Vec::new(), Vec::new());
        T::load(from, bytes, &mut values);
        T::store(to, &values, &mut out);
        out
    }
    match from {
        _ if from == to => has_non_finite(to, bytes),
        DType::F64 => has_non_finite(to, &cast::<f64>(from, bytes, to)),
        _ => has_non_finite(to, &cast::<f32>(from, bytes, to)),
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
    fn halves_round_to_nearest_even() {
        // torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.3895e38]).bfloat16() and .half() of [1 + 2**-11, 1 + 3 * 2**-11, 65520.]
        let mut out = Vec::new();
        f32::store(DType::BF16, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out);
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
        out.clear();
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
        assert_eq!(sum_of_squares(&values), 1001.0 * 1002.0 * 2003.0 / 6.0);
    }
}
