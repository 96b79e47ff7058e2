//! Surgery on model checkpoints: open them, understand their layers, fold auxiliary weights into them, write them back.
//!
//! The main operation is the fold of Multimodal Pathway (M2PT, CVPR 2024): every linear layer of a target vision
//! transformer takes up its counterpart in an auxiliary transformer trained on other data, `W + lambda * W'`, at no cost
//! at inference. [`FoldRequest`] does it in one call.
//!
//! **open -> plan -> run.** Opening reads directories and object trees and executes nothing. Planning is pure: every
//! name, type, shape, offset and length of the output is known before the file exists. Running streams the plan
//! through one executor, in pieces of fixed size, into a file that is published whole or not at all.
//!
//! # What is read
//! - The zip archive of `torch.save` (since PyTorch 1.6): stored or deflated entries, aligned or not, zip64, little- and
//!   big-endian, every dense element type of PyTorch 2.15, any strides, shared storages, zero-size tensors. Objects of
//!   unknown classes stay inert values.
//! - safetensors, all of its element types.
//!
//! Files are recognised by content, and memory-mapped. A value read is the value stored: checksums are verified where
//! the file has them, and missing, truncated, overlapping or over-long data is an error.
//!
//! # What is refused
//! Legacy (pre-1.6), tar, TorchScript and `torch.package` files, sparse, quantised, nested and meta tensors: each with
//! what it is and what to do instead. What no honest file needs is refused by these limits:
//!
//! | limit | |
//! | --- | --- |
//! | [`pickle::MAX_PICKLE_BYTES`] | bytes of a pickle |
//! | [`pickle::MAX_NODES`], [`pickle::MAX_STACK`], [`pickle::MAX_MEMO`] | its values, stack and memo |
//! | [`MAX_DEPTH`], [`MAX_VISITS`] | nesting of the object tree, and values reached on the walk through it |
//! | [`MAX_TENSORS`], [`MAX_NAME_BYTES`], [`MAX_ALL_NAMES_BYTES`] | tensors and their names |
//! | [`MAX_HEADER_BYTES`] | bytes of a safetensors header |
//! | [`MAX_INFLATED_BYTES`] | bytes of a deflated storage, expanded |
//! | [`tensor::MAX_DIMENSIONS`] | dimensions of a tensor |
//! | [`tensor::MAX_EXPANDED_BYTES`] | logical bytes of a view that repeats its elements |
//!
//! # What is scanned
//! [`scan`] says what loading a file would execute: every import and call in every pickle, in whatever it hides, judged by
//! allow-lists. It shares no code with the readers above, and goes on where they refuse.
//!
//! # What is written
//! `.pth` as PyTorch 2.15 writes it, loadable by PyTorch 1.13 and later with `weights_only=True`; `.safetensors`.
//!
//! # Arithmetic
//! float32 and float64 folds are bit-identical to PyTorch's eager `W + lambda * A`: multiply, then add, lambda rounded to
//! the type first. float16 and bfloat16 are computed in float32 and rounded once, to nearest even. If any weight of a
//! layer is float64, that layer is computed in float64. A lambda of 0 leaves a weight as it is, byte for byte.
//!
//! # Features
//! `cli` (default): the program. `verify` (default): running models with candle. `cuda`: candle on NVIDIA GPUs. Without
//! default features this is the bare library.

mod checkpoint;
mod container;
mod engine;
mod error;
mod fold;
#[cfg(feature = "verify")]
pub mod model;
mod naming;
pub mod pickle;
mod plan;
pub mod scan;
pub mod tensor;
mod write;

pub use checkpoint::{
    Checkpoint, MAX_VALUES_SHOWN, Placement, Root, RootChoice, RootProblem, StateDict, TensorData, TensorProblem,
};
pub use container::{
    Container, MAX_ALL_NAMES_BYTES, MAX_DEPTH, MAX_HEADER_BYTES, MAX_INFLATED_BYTES, MAX_NAME_BYTES, MAX_TENSORS,
    MAX_VISITS, RebuildProblem, SafetensorsProblem, TreeLimit, ZipProblem,
};
pub use engine::{Norms, Progress, RunReport};
pub use error::{Error, NonFiniteOrigin, OutputProblem, Result};
pub use fold::{AuxRequest, FoldInputs, FoldReport, FoldRequest, PlannedFold, Understood};
pub use naming::{
    AUX_WEIGHT, Architecture, Family, Flags, Layer, LayerId, LayerKind, Layers, MatchProblem, PatternProblem,
    Recognised, SCALE, Selector,
};
pub use plan::{
    BiasMode, BlockSet, DepthMismatch, Dropped, FoldProblem, FoldedLayer, FoldedTerm, LambdaProblem, LambdaSpec,
    Output, Parameter, Plan, Schedule, ShapeMismatch, Sharing, Source, Step, TensorRef, Term,
};
pub use tensor::{ByteOrder, DType, TensorSpec, TensorView};
pub use write::{Format, LayoutProblem};
