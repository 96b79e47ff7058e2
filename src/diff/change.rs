//! Two tensors of one shape, element by element.

use crate::engine::Progress;
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorView, decode_f64};

/// Elements compared at a time: two pieces of doubles fit the second-level cache.
const PIECE: usize = 16 << 10;

/// How two tensors of the same shape differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Elements whose bytes differ; all of them if the types do.
    pub different: u64,
    /// The size of the change; `None` if an element of either type is no real number.
    pub numbers: Option<Numbers>,
}

/// The size of a change. All is computed in float64; the differences of 64-bit integers are exact before that.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// The largest `|b - a|` of finite elements.
    pub max_abs: f64,
    /// `||b - a|| / ||a||` over the elements that are finite on both sides: 0 if there is no difference, infinity if `a` is
    /// zero and `b` is not.
    pub relative_l2: f64,
    /// `a . b / (||a|| ||b||)` over the same elements; `None` if either norm is zero.
    pub cosine: Option<f64>,
    /// The largest number of representable values from `a` to `b`, -0 and 0 being one; `None` unless both have the same type,
    /// float64, float32, float16 or bfloat16.
    pub max_ulp: Option<u64>,
    /// Elements of which one is NaN or infinite and the other is not, or is another infinity.
    pub unordered: u64,
}

/// How `b` differs from `a`, which has the same shape; `None` if type and bytes are the same.
pub(super) fn compare(a: &TensorView<'_>, b: &TensorView<'_>, progress: &mut dyn Progress) -> Result<Option<Change>> {
    let (size_a, size_b) = (a.dtype().size(), b.dtype().size());
    let same_type = a.dtype() == b.dtype();
    if same_type && same_bytes(a, b, progress)? {
        progress.advance((a.numel() * size_a) as u64);
        return Ok(None);
    }
    let real = a.dtype().is_real() && b.dtype().is_real();
    let mut sums = Sums { ulp: same_type && a.dtype().is_foldable(), scale: scale(a, b), ..Sums::default() };
    let (mut bytes_a, mut bytes_b) = (vec![0; PIECE * size_a], vec![0; PIECE * size_b]);
    let (mut values_a, mut values_b) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    let mut different = 0u64;
    let mut first = 0;
    while first < a.numel() {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let count = PIECE.min(a.numel() - first);
        let (piece_a, piece_b) = (&mut bytes_a[..count * size_a], &mut bytes_b[..count * size_b]);
        a.read(first, piece_a);
        b.read(first, piece_b);
        let equal = same_type && piece_a == piece_b;
        if !equal {
            let pairs = piece_a.chunks_exact(size_a).zip(piece_b.chunks_exact(size_b));
            different += if same_type { pairs.filter(|(x, y)| x != y).count() as u64 } else { count as u64 };
        }
        if real {
            values_a.clear();
            values_b.clear();
            // Real types are those that can be decoded.
            let decoded = decode_f64(a.dtype(), piece_a, &mut values_a)
                .and_then(|()| decode_f64(b.dtype(), piece_b, &mut values_b));
            if decoded.is_ok() {
                sums.add(&values_a, &values_b, |at| exact_difference(a.dtype(), b.dtype(), piece_a, piece_b, at));
                if sums.ulp && !equal {
                    sums.add_ulps(a.dtype(), piece_a, piece_b);
                }
            }
        }
        progress.advance((count * size_a) as u64);
        first += count;
    }
    Ok(Some(Change { different, numbers: real.then(|| sums.numbers()) }))
}

/// Whether two tensors of the same type and shape have the same bytes. Most tensors of two checkpoints do, and need not be
/// decoded.
fn same_bytes(a: &TensorView<'_>, b: &TensorView<'_>, progress: &mut dyn Progress) -> Result<bool> {
    let size = a.dtype().size();
    let (mut bytes_a, mut bytes_b) = (vec![0; PIECE * size], vec![0; PIECE * size]);
    for first in (0..a.numel()).step_by(PIECE) {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let count = PIECE.min(a.numel() - first) * size;
        a.read(first, &mut bytes_a[..count]);
        b.read(first, &mut bytes_b[..count]);
        if bytes_a[..count] != bytes_b[..count] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The difference of two 64-bit integers, which may get lost when they are rounded to floats.
fn exact_difference(a: DType, b: DType, piece_a: &[u8], piece_b: &[u8], at: usize) -> Option<f64> {
    let integer = |dtype: DType, piece: &[u8]| match (dtype, piece.as_chunks::<8>().0.get(at)?) {
        (DType::I64, &bytes) => Some(i128::from(i64::from_le_bytes(bytes))),
        (DType::U64, &bytes) => Some(i128::from(u64::from_le_bytes(bytes))),
        _ => None,
    };
    let wide = |dtype| matches!(dtype, DType::I64 | DType::U64);
    if !(wide(a) && wide(b)) {
        return None;
    }
    Some((integer(b, piece_b)? - integer(a, piece_a)?) as f64)
}

/// A power of two that brings the largest element of float64 tensors near 1, so that no square is lost or overflows.
fn scale(a: &TensorView<'_>, b: &TensorView<'_>) -> f64 {
    let mut largest = 0.0f64;
    for view in [a, b].into_iter().filter(|view| view.dtype() == DType::F64) {
        view.for_each_piece(&mut Vec::new(), |piece| {
            let values = piece.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes).abs());
            largest = values.filter(|x| x.is_finite()).fold(largest, f64::max);
        });
    }
    if largest == 0.0 { 1.0 } else { (-largest.log2().floor()).clamp(-1022.0, 1022.0).exp2() }
}

struct Sums {
    max_abs: f64,
    squares_a: f64,
    squares_b: f64,
    products: f64,
    squares_difference: f64,
    unordered: u64,
    ulp: bool,
    max_ulp: u64,
    scale: f64,
}

impl Default for Sums {
    fn default() -> Sums {
        Sums {
            max_abs: 0.0,
            squares_a: 0.0,
            squares_b: 0.0,
            products: 0.0,
            squares_difference: 0.0,
            unordered: 0,
            ulp: false,
            max_ulp: 0,
            scale: 1.0,
        }
    }
}

impl Sums {
    /// Adds elements; `exact` gives the difference at a place where that of the rounded numbers may be another.
    fn add(&mut self, a: &[f64], b: &[f64], exact: impl Fn(usize) -> Option<f64>) {
        // Sums of a piece first: fewer roundings in the long ones.
        let (mut aa, mut bb, mut ab, mut dd) = (0.0, 0.0, 0.0, 0.0);
        for (at, (&x, &y)) in a.iter().zip(b).enumerate() {
            if x.is_finite() && y.is_finite() {
                let d = exact(at).unwrap_or(y - x);
                self.max_abs = self.max_abs.max(d.abs());
                let (x, y, d) = (x * self.scale, y * self.scale, d * self.scale);
                (aa, bb, ab, dd) = (aa + x * x, bb + y * y, ab + x * y, dd + d * d);
            } else if !(x == y || x.is_nan() && y.is_nan()) {
                self.unordered += 1;
            }
        }
        self.squares_a += aa;
        self.squares_b += bb;
        self.products += ab;
        self.squares_difference += dd;
    }

    fn add_ulps(&mut self, dtype: DType, a: &[u8], b: &[u8]) {
        macro_rules! widest {
            ($float:ty, $int:ty, $n:literal) => {{
                // Sign and magnitude on one line: neighbours are one apart, and both zeros are 0.
                let ordered = |bytes: &[u8; $n]| {
                    let bits = <$int>::from_le_bytes(*bytes);
                    let magnitude = i128::from(bits & <$int>::MAX);
                    if bits < 0 { -magnitude } else { magnitude }
                };
                let number = |bytes: &[u8; $n]| !<$float>::from_le_bytes(*bytes).is_nan();
                let pairs = a.as_chunks::<$n>().0.iter().zip(b.as_chunks::<$n>().0);
                pairs
                    .filter(|(x, y)| number(x) && number(y))
                    .map(|(x, y)| (ordered(y) - ordered(x)).unsigned_abs() as u64)
                    .max()
            }};
        }
        let widest = match dtype {
            DType::F64 => widest!(f64, i64, 8),
            DType::F32 => widest!(f32, i32, 4),
            DType::F16 => widest!(half::f16, i16, 2),
            DType::BF16 => widest!(half::bf16, i16, 2),
            _ => None,
        };
        self.max_ulp = self.max_ulp.max(widest.unwrap_or(0));
    }

    fn numbers(&self) -> Numbers {
        let norms = (self.squares_a * self.squares_b).sqrt();
        let relative_l2 = if self.squares_difference == 0.0 {
            0.0
        } else {
            // Infinity where `a` is zero.
            (self.squares_difference / self.squares_a).sqrt()
        };
        Numbers {
            max_abs: self.max_abs,
            relative_l2,
            cosine: (norms > 0.0).then(|| self.products / norms),
            max_ulp: self.ulp.then_some(self.max_ulp),
            unordered: self.unordered,
        }
    }
}
