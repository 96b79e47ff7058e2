//! Element types, tensor descriptions and borrowed strided views.

mod decode;
mod digest;
mod dtype;
mod stats;
mod view;

pub use decode::{DecodeError, decode_f64};
pub(crate) use digest::FileHash;
pub use digest::{sha256, sha256_bytes};
pub use dtype::{ByteOrder, DType};
pub(crate) use stats::Gather;
pub use stats::Stats;
pub use view::{MAX_DIMENSIONS, MAX_EXPANDED_BYTES, TensorView, ViewProblem};
pub(crate) use view::{check_view, contiguous_strides, is_contiguous};

/// What a tensor is, apart from its values: its name, element type and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The key of the tensor, relative to the root it was read from.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The size of each dimension; empty for a 0-dimensional (scalar) tensor.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The number of elements: the product of the shape, 1 for a scalar.
    ///
    /// Saturates at `usize::MAX`; specs that a reader hands out never do, since their views were checked.
    #[must_use]
    pub fn numel(&self) -> usize {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }

    /// The number of bytes of the contiguous tensor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.numel() as u64).saturating_mul(self.dtype.size() as u64)
    }
}

/// Writes a shape the way PyTorch's users read it: `[768, 3, 16, 16]`, `[]` for a scalar.
#[must_use]
pub fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}
