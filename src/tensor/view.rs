//! Borrowed, strided views of stored elements.

use super::{ByteOrder, DType};

/// The largest logical size, in bytes, of a view that repeats stored elements (stride 0, overlapping rows).
///
/// A few bytes of file can claim terabytes this way. Views that repeat nothing are bounded by their storage instead.
pub const MAX_EXPANDED_BYTES: u64 = 1 << 30;

/// The largest number of dimensions of a tensor: PyTorch's own limit.
pub const MAX_DIMENSIONS: usize = 64;

/// What is wrong with a view's shape, strides or offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewProblem {
    /// Shape and strides have different lengths.
    #[error("its shape {shape:?} and strides {strides:?} differ in length")]
    Rank {
        /// The shape as stored.
        shape: Vec<usize>,
        /// The strides as stored, in elements.
        strides: Vec<usize>,
    },
    /// More dimensions than PyTorch computes with.
    #[error("it has more than {MAX_DIMENSIONS} dimensions")]
    Dimensions,
    /// The product of the dimensions, or an offset, exceeds what this machine can address.
    #[error("its shape {shape:?} is larger than any memory")]
    Overflow {
        /// The shape as stored.
        shape: Vec<usize>,
    },
    /// The view reaches past the end of its storage.
    #[error("it needs {needed} bytes of its storage, which has {available}")]
    OutOfBounds {
        /// Bytes from the start of the storage to the last element's end.
        needed: u64,
        /// Bytes in the storage.
        available: u64,
    },
    /// A view that repeats its elements is larger than [`MAX_EXPANDED_BYTES`].
    #[error(
        "it repeats {stored} stored bytes to {logical}, past the limit of {MAX_EXPANDED_BYTES}; save what it repeats instead"
    )]
    Expanded {
        /// Bytes in the storage.
        stored: u64,
        /// Bytes of the tensor if it were written out.
        logical: u64,
    },
}

/// A tensor's elements where they are stored: shape, strides and offset (in elements) over borrowed bytes.
///
/// Every element lies inside the bytes; this is checked when the view is made.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [usize],
    strides: &'a [usize],
    offset: usize,
    order: ByteOrder,
    storage: &'a [u8],
    numel: usize,
}

/// Checks that a view lies inside a storage of `storage_bytes` and returns its number of elements.
///
/// # Errors
/// [`ViewProblem`], as its variants say.
pub(crate) fn check_view(
    dtype: DType,
    shape: &[usize],
    strides: &[usize],
    offset: usize,
    storage_bytes: u64,
) -> Result<usize, ViewProblem> {
    if shape.len() != strides.len() {
        return Err(ViewProblem::Rank { shape: shape.to_vec(), strides: strides.to_vec() });
    }
    if shape.len() > MAX_DIMENSIONS {
        return Err(ViewProblem::Dimensions);
    }
    let overflow = || ViewProblem::Overflow { shape: shape.to_vec() };
    let size = dtype.size();
    // The product of the non-zero dimensions is bounded too, so that no later arithmetic on a part of it can overflow.
    let positive = shape.iter().filter(|&&d| d > 0).try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let logical = positive.checked_mul(size).filter(|&b| isize::try_from(b).is_ok()).ok_or_else(overflow)?;
    if shape.contains(&0) {
        return Ok(0);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (&d, &s)| (d - 1).checked_mul(s).and_then(|x| at.checked_add(x)))
        .ok_or_else(overflow)?;
    let needed = last.checked_add(1).and_then(|n| n.checked_mul(size)).ok_or_else(overflow)? as u64;
    if needed > storage_bytes {
        return Err(ViewProblem::OutOfBounds { needed, available: storage_bytes });
    }
    let logical = logical as u64;
    if logical > storage_bytes && logical > MAX_EXPANDED_BYTES {
        return Err(ViewProblem::Expanded { stored: storage_bytes, logical });
    }
    Ok(positive)
}

/// Whether these strides are those of a contiguous (row-major) tensor; dimensions of size 1 may have any stride.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        if d == 0 {
            return true;
        }
        if d != 1 && s != expected {
            return false;
        }
        expected = expected.saturating_mul(d);
    }
    true
}

/// The strides, in elements, of a contiguous tensor of this shape, as PyTorch computes them.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(shape[i + 1].max(1));
    }
    strides
}

impl<'a> TensorView<'a> {
    /// A view of `shape` over `storage`; `strides` and `offset` count elements, as in PyTorch.
    ///
    /// # Errors
    /// [`ViewProblem`] if an element would lie outside `storage`, or as the other variants say.
    pub fn new(
        dtype: DType,
        shape: &'a [usize],
        strides: &'a [usize],
        offset: usize,
        order: ByteOrder,
        storage: &'a [u8],
    ) -> Result<Self, ViewProblem> {
        let numel = check_view(dtype, shape, strides, offset, storage.len() as u64)?;
        Ok(TensorView { dtype, shape, strides, offset, order, storage, numel })
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// The contiguous little-endian bytes, where they are stored just so; `None` for a view that has to be gathered.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        if self.numel == 0 {
            return Some(&[]);
        }
        let native = self.order == ByteOrder::Little || self.dtype.swap_width() == 1;
        if !native || !is_contiguous(self.shape, self.strides) {
            return None;
        }
        let start = self.offset * self.dtype.size();
        Some(&self.storage[start..start + self.numel * self.dtype.size()])
    }

    /// Copies the elements `first .. first + out.len() / size` (row-major order) to `out`, little-endian.
    ///
    /// `out.len()` is a multiple of the element size, and the range lies inside the tensor; bytes of `out` beyond the
    /// last element are left as they are.
    pub fn read(&self, first: usize, out: &mut [u8]) {
        let size = self.dtype.size();
        let count = (out.len() / size).min(self.numel.saturating_sub(first));
        let out = &mut out[..count * size];
        if count == 0 {
            return;
        }
        if is_contiguous(self.shape, self.strides) {
            let start = (self.offset + first) * size;
            out.copy_from_slice(&self.storage[start..start + count * size]);
        } else {
            self.gather(first, out);
        }
        if self.order == ByteOrder::Big && self.dtype.swap_width() > 1 {
            for number in out.chunks_exact_mut(self.dtype.swap_width()) {
                number.reverse();
            }
        }
    }

    /// The elements `first..` of a strided view, byte order untouched.
    fn gather(&self, first: usize, out: &mut [u8]) {
        let size = self.dtype.size();
        let mut index = vec![0usize; self.shape.len()];
        let mut rest = first;
        let mut at = self.offset;
        for (i, (&d, &s)) in self.shape.iter().zip(self.strides).enumerate().rev() {
            index[i] = rest % d;
            at += index[i] * s;
            rest /= d;
        }
        for element in out.chunks_exact_mut(size) {
            element.copy_from_slice(&self.storage[at * size..(at + 1) * size]);
            for i in (0..index.len()).rev() {
                index[i] += 1;
                if index[i] < self.shape[i] {
                    at += self.strides[i];
                    break;
                }
                at -= (index[i] - 1) * self.strides[i];
                index[i] = 0;
            }
        }
    }

    /// Calls `each` with consecutive pieces of the contiguous little-endian bytes, whole elements each, through
    /// `buffer` where they have to be gathered.
    pub fn for_each_piece(&self, buffer: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
        /// Bytes per piece: small enough for the second-level cache, large enough to hide the loop around it.
        const PIECE: usize = 256 << 10;
        let size = self.dtype.size();
        let step = PIECE / size;
        if let Some(bytes) = self.as_bytes() {
            bytes.chunks(step * size).for_each(each);
            return;
        }
        let mut first = 0;
        while first < self.numel {
            let count = step.min(self.numel - first);
            buffer.resize(count * size, 0);
            self.read(first, buffer);
            each(buffer);
            first += count;
        }
    }

    /// All elements as contiguous little-endian bytes.
    ///
    /// Takes memory of the tensor's size; meant for small tensors and tests. The engine works in pieces instead.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.numel * self.dtype.size()];
        self.read(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_followed_from_any_first_element() {
        // torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1).flatten() of uint8
        let storage: Vec<u8> = (0..24).collect();
        let shape = [4, 2, 3];
        let strides = [1, 12, 4];
        let view = TensorView::new(DType::U8, &shape, &strides, 0, ByteOrder::Little, &storage).unwrap();
        let whole = view.to_vec();
        assert_eq!(whole[..8], [0, 4, 8, 12, 16, 20, 1, 5]);
        for first in 0..24 {
            let mut part = vec![0; 24 - first];
            view.read(first, &mut part);
            assert_eq!(part, whole[first..]);
        }
    }

    #[test]
    fn big_endian_numbers_are_swapped_and_complex_ones_by_halves() {
        let storage = [0x3f, 0x80, 0, 0, 0x40, 0, 0, 0];
        let view = TensorView::new(DType::C64, &[1], &[1], 0, ByteOrder::Big, &storage).unwrap();
        assert_eq!(view.to_vec(), [0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
        assert!(view.as_bytes().is_none());
    }

    #[test]
    fn views_past_their_storage_are_refused() {
        let storage = [0u8; 16];
        let at = |shape: &'static [usize], strides: &'static [usize], offset| {
            TensorView::new(DType::F32, shape, strides, offset, ByteOrder::Little, &storage).map(|_| ())
        };
        assert_eq!(at(&[4], &[1], 0), Ok(()));
        assert_eq!(at(&[4], &[1], 1), Err(ViewProblem::OutOfBounds { needed: 20, available: 16 }));
        assert_eq!(at(&[2], &[4], 0), Err(ViewProblem::OutOfBounds { needed: 20, available: 16 }));
        assert_eq!(at(&[0, 9], &[9, 1], 99), Ok(()));
        assert!(matches!(at(&[usize::MAX, 2], &[0, 0], 0), Err(ViewProblem::Overflow { .. })));
        assert!(matches!(at(&[1 << 40], &[0], 0), Err(ViewProblem::Expanded { .. })));
        assert!(matches!(at(&[2], &[], 0), Err(ViewProblem::Rank { .. })));
        assert_eq!(at(&[1; 65], &[1; 65], 0), Err(ViewProblem::Dimensions));
        assert!(matches!(at(&[2], &[usize::MAX], 1), Err(ViewProblem::Overflow { .. })));
    }

    #[test]
    fn contiguous_strides_are_torchs() {
        assert_eq!(contiguous_strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(contiguous_strides(&[0, 3]), [3, 1]);
        assert!(is_contiguous(&[2, 1, 4], &[4, 99, 1]));
        assert!(!is_contiguous(&[2, 2], &[1, 2]));
    }
}
