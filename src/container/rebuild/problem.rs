//! Why objects of a pickle cannot be read as PyTorch would read them.

use crate::container::MAX_TENSORS;
use crate::pickle;

/// Why an object that PyTorch would rebuild as a tensor cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildProblem {
    /// A function that makes tensors in a way that is not known here.
    #[error("a tensor made by `{function}` is not supported: save it as a dense tensor in PyTorch first")]
    Unsupported {
        /// PyTorch's rebuild function.
        function: String,
    },
    /// A module of TorchScript in a package, whose weights are in an archive of their own.
    #[error(
        "it holds a TorchScript module (`{function}`), which is not read: save its state_dict() by itself in PyTorch"
    )]
    Packaged {
        /// The function that would load it.
        function: String,
    },
    /// The arguments of a rebuild function are not those that PyTorch writes.
    #[error("the arguments of `{function}` are malformed: {what}")]
    Arguments {
        /// PyTorch's rebuild function.
        function: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A view that PyTorch would conjugate or negate when it is used.
    #[error("a tensor is a lazily {mark} view: call {resolve} on it in PyTorch and save it again")]
    LazyView {
        /// `conjugated` or `negated`.
        mark: &'static str,
        /// PyTorch's method that makes it an ordinary tensor.
        resolve: &'static str,
    },
    /// A tensor has other tensors as attributes, which have no name of their own.
    #[error("a tensor carries other tensors as attributes: save them under names of their own in PyTorch")]
    Attributes,
    /// Objects use the same arguments again and again: copied out, they would be more than any pickle holds.
    #[error("its objects refer to more than {} values", pickle::MAX_NODES)]
    TooMuch,
    /// More tensors than this reader lists.
    #[error("it makes more than {MAX_TENSORS} tensors, the limit of this reader")]
    Tensors,
    /// The pickle and what it stands for take too much memory together.
    #[error("its objects take more than {} bytes of memory, the limit of this reader", pickle::MAX_VALUE_BYTES)]
    Memory,
    /// A storage class that is not known.
    #[error("the storage type {0} is unknown; load the file in PyTorch and save it again")]
    StorageClass(String),
    /// The same storage is declared with two sizes.
    #[error("storage {0:?} is declared with two different sizes: the file is damaged, get it again")]
    StorageSize(String),
    /// A tensor reaches out of the part of a storage that it is said to view.
    #[error("a tensor reaches out of the view {0:?} of its storage: the file is damaged, get it again")]
    View(String),
    /// A pickle refers to an object by a key that the file does not have.
    #[error("it refers to the object {0:?}, which the file does not have: it is damaged, get it again")]
    NoSuchObject(String),
    /// The object graph nests tensors in tensors without end.
    #[error("a tensor contains itself")]
    Cycle,
}
