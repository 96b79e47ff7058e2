//! Stored elements as numbers, for statistics and small values.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::DType;

/// The element type has no value on the real line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} elements are not real numbers")]
pub struct DecodeError(pub DType);

/// An 8-bit float with `mantissa` fraction bits and exponent bias `bias`, finite encodings only.
fn small_float(byte: u8, mantissa: u32, bias: i32) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let fraction = f64::from(byte & ((1 << mantissa) - 1)) / f64::from(1u32 << mantissa);
    let exponent = i32::from((byte & 0x7f) >> mantissa);
    let magnitude = if exponent == 0 {
        fraction * f64::from(1 - bias).exp2()
    } else {
        (1.0 + fraction) * f64::from(exponent - bias).exp2()
    };
    sign * magnitude
}

/// The special values follow the types' definitions in PyTorch (`c10/util/Float8_*.h`).
fn f8(dtype: DType, byte: u8) -> f64 {
    match dtype {
        DType::F8E4M3Fn if byte & 0x7f == 0x7f => f64::NAN,
        DType::F8E4M3Fn => small_float(byte, 3, 7),
        DType::F8E5M2 if byte & 0x7f == 0x7c => f64::INFINITY.copysign(if byte & 0x80 == 0 { 1.0 } else { -1.0 }),
        DType::F8E5M2 if byte & 0x7f > 0x7c => f64::NAN,
        DType::F8E5M2 => small_float(byte, 2, 15),
        DType::F8E4M3FnUz | DType::F8E5M2FnUz if byte == 0x80 => f64::NAN,
        DType::F8E4M3FnUz => small_float(byte, 3, 8),
        DType::F8E5M2FnUz => small_float(byte, 2, 16),
        _ if byte == 0xff => f64::NAN,
        _ => (f64::from(byte) - 127.0).exp2(),
    }
}

/// Appends the values of contiguous little-endian `bytes` to `out` as 64-bit floats.
///
/// Exact for every type but 64-bit integers beyond 2^53, which are rounded to nearest.
///
/// # Errors
/// [`DecodeError`] for types of which an element is no single real number (see [`DType::is_real`]).
pub fn decode_f64(dtype: DType, bytes: &[u8], out: &mut Vec<f64>) -> Result<(), DecodeError> {
    decode(dtype, bytes, out)
}

/// The same, to be compiled for the vector instructions that its caller is.
#[inline(always)]
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut Vec<f64>) -> Result<(), DecodeError> {
    macro_rules! numbers {
        ($ty:ty, $n:literal) => {
            out.extend(bytes.as_chunks::<$n>().0.iter().map(|b| <$ty>::from_le_bytes(*b) as f64))
        };
    }
    match dtype {
        DType::F64 => numbers!(f64, 8),
        DType::F32 => numbers!(f32, 4),
        DType::F16 => {
            for bytes in bytes.as_chunks::<2>().0.chunks(1024) {
                let mut halves = [f16::ZERO; 1024];
                let halves = &mut halves[..bytes.len()];
                halves.iter_mut().zip(bytes).for_each(|(half, b)| *half = f16::from_le_bytes(*b));
                let first = out.len();
                out.resize(first + halves.len(), 0.0);
                halves.convert_to_f64_slice(&mut out[first..]);
            }
        }
        DType::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f64::from(wide(b))));
        }
        DType::I64 => numbers!(i64, 8),
        DType::I32 => numbers!(i32, 4),
        DType::I16 => numbers!(i16, 2),
        DType::I8 => numbers!(i8, 1),
        DType::U64 => numbers!(u64, 8),
        DType::U32 => numbers!(u32, 4),
        DType::U16 => numbers!(u16, 2),
        DType::U8 => numbers!(u8, 1),
        DType::Bool => out.extend(bytes.iter().map(|&b| f64::from(u8::from(b != 0)))),
        DType::F8E4M3Fn | DType::F8E5M2 | DType::F8E4M3FnUz | DType::F8E5M2FnUz | DType::F8E8M0Fnu => {
            out.extend(bytes.iter().map(|&b| f8(dtype, b)));
        }
        DType::F4E2M1FnX2
        | DType::C128
        | DType::C64
        | DType::C32
        | DType::BC32
        | DType::Bits8
        | DType::Bits16
        | DType::Bits1x8
        | DType::Bits2x4
        | DType::Bits4x2 => return Err(DecodeError(dtype)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: DType, byte: u8) -> f64 {
        let mut out = Vec::new();
        decode_f64(dtype, &[byte], &mut out).unwrap();
        out[0]
    }

    /// Values from `torch.tensor([byte], dtype=torch.uint8).view(dtype).double()`.
    #[test]
    fn eight_bit_floats_have_torchs_values() {
        assert_eq!(one(DType::F8E4M3Fn, 0x7e), 448.0);
        assert_eq!(one(DType::F8E4M3Fn, 0x01), 0.001953125);
        assert_eq!(one(DType::F8E4M3Fn, 0xb8), -1.0);
        assert!(one(DType::F8E4M3Fn, 0xff).is_nan());
        assert_eq!(one(DType::F8E5M2, 0x7b), 57344.0);
        assert_eq!(one(DType::F8E5M2, 0xfc), f64::NEG_INFINITY);
        assert!(one(DType::F8E5M2, 0x7d).is_nan());
        assert_eq!(one(DType::F8E4M3FnUz, 0x7f), 240.0);
        assert!(one(DType::F8E4M3FnUz, 0x80).is_nan());
        assert_eq!(one(DType::F8E5M2FnUz, 0x40), 1.0);
        assert_eq!(one(DType::F8E8M0Fnu, 0x7f), 1.0);
        assert_eq!(one(DType::F8E8M0Fnu, 0x00), 2f64.powi(-127));
        assert!(one(DType::F8E8M0Fnu, 0xff).is_nan());
    }

    #[test]
    fn every_bfloat16_has_the_value_that_its_standard_says() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut out = Vec::new();
        decode_f64(DType::BF16, &bytes, &mut out).unwrap();
        assert_eq!(out.len(), bits.len());
        for (bits, value) in bits.into_iter().zip(out) {
            let expected = half::bf16::from_bits(bits).to_f64();
            assert!(
                value == expected && value.is_sign_negative() == expected.is_sign_negative()
                    || value.is_nan() && expected.is_nan()
            );
        }
    }
}
