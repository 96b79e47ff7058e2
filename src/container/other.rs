//! Tensors that are no plain arrays of elements: what they are, so that they can be listed and refused by name.

use std::fmt;

/// A tensor that can be listed but not read: sparse, quantised, nested, without data, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTensor {
    /// Why it is no plain array.
    pub kind: OtherKind,
    /// PyTorch's name of the element type, without `torch.`; that of the values for a sparse tensor. Empty if unknown.
    pub dtype: String,
    /// The size of each dimension; empty where the file does not tell.
    pub shape: Vec<usize>,
}

/// Why a tensor is no plain array of elements in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OtherKind {
    /// Sparse, with PyTorch's layout: `sparse_coo`, `sparse_csr`, `sparse_csc`, `sparse_bsr`, `sparse_bsc`.
    Sparse(&'static str),
    /// Quantised, per tensor or per channel.
    Quantized,
    /// Nested (ragged).
    Nested,
    /// On the meta device: shape and type without data.
    Meta,
    /// A wrapper subclass whose data is in no storage of its own, by its class.
    Subclass(String),
    /// One process's part of a tensor that is distributed over several (DTensor).
    Shard,
    /// A NumPy array of something else than numbers, by NumPy's description of its elements.
    Array(String),
}

impl OtherKind {
    /// About how many bytes of memory it takes besides its place.
    pub(crate) fn memory(&self) -> usize {
        match self {
            OtherKind::Subclass(text) | OtherKind::Array(text) => text.len(),
            _ => 0,
        }
    }

    /// The stable name used in JSON.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            OtherKind::Sparse(layout) => layout,
            OtherKind::Quantized => "quantized",
            OtherKind::Nested => "nested",
            OtherKind::Meta => "meta",
            OtherKind::Subclass(_) => "subclass",
            OtherKind::Shard => "shard",
            OtherKind::Array(_) => "array",
        }
    }

    /// What to do in PyTorch to make a plain tensor of it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            OtherKind::Sparse(_) => "call to_dense() on it in PyTorch and save it again",
            OtherKind::Quantized => "call dequantize() on it in PyTorch and save it again",
            OtherKind::Nested => "call to_padded_tensor() on it, or save its parts by themselves, in PyTorch",
            OtherKind::Meta => "it was saved before its weights were loaded: load them, and save it again",
            OtherKind::Subclass(_) => "save it as a plain tensor in PyTorch",
            OtherKind::Shard => "gather it with full_tensor() in PyTorch and save it again",
            OtherKind::Array(_) => {
                "save it as an array of numbers in NumPy; one that was bfloat16 with view(ml_dtypes.bfloat16).astype(numpy.float32)"
            }
        }
    }
}

impl fmt::Display for OtherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OtherKind::Sparse(layout) => write!(f, "sparse ({})", layout.trim_start_matches("sparse_")),
            OtherKind::Quantized => f.write_str("quantised"),
            OtherKind::Nested => f.write_str("nested"),
            OtherKind::Meta => f.write_str("on the meta device, without data"),
            OtherKind::Subclass(class) => write!(f, "of the class {class}, without plain data"),
            OtherKind::Shard => f.write_str("one process's part of a distributed tensor"),
            OtherKind::Array(descr) => write!(f, "an array of NumPy's type {descr:?}, no plain numbers"),
        }
    }
}
