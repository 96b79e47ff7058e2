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
//! Files are recognised by content, and memory-mapped:
//! - the zip archive of `torch.save` (since PyTorch 1.6): stored or deflated entries, aligned or not, zip64, little- and
//!   big-endian;
//! - the legacy stream (PyTorch 0.1.10 to 1.5, and on request today), the tar archive before it, TorchScript,
//!   `torch.package`;
//! - safetensors, all of its element types;
//! - NumPy's `.npy` and `.npz`;
//! - folders: sharded checkpoints with their index, and those of `torch.distributed.checkpoint`.
//!
//! Every dense element type of PyTorch 2.15, any strides, shared storages, zero-size tensors. The parameters and buffers of
//! pickled modules have the names that `state_dict()` gives them. Objects of unknown classes stay inert values.
//!
//! A value read is the value stored: checksums are verified where the file has them, and missing, truncated, overlapping
//! or over-long data is an error. Sparse, quantised, nested and meta tensors are listed ([`StateDict::others`]), and nothing
//! else. `docs/formats.md` has a table of all, with the test for each.
//!
//! # What is refused
//! What no honest file needs is refused by these limits:
//!
//! | limit | of |
//! | --- | --- |
//! | [`pickle::MAX_PICKLE_BYTES`] (64 MiB) | bytes of a pickle |
//! | [`pickle::MAX_NODES`], [`pickle::MAX_STACK`], [`pickle::MAX_MEMO`] (4 Mi each) | its values, stack and memo |
//! | [`pickle::MAX_GLOBALS`] (64 Ki), [`pickle::MAX_GLOBAL_BYTES`] (4 KiB) | classes and functions it names, and the length of a name |
//! | [`pickle::MAX_VALUE_BYTES`] (208 MiB) | memory for one checkpoint: pickles, directories and headers, their values, and the objects made of them |
//! | [`MAX_DEPTH`] (128), [`MAX_VISITS`] (4 Mi) | nesting of the object tree, and values reached on the walk through it |
//! | [`MAX_TENSORS`] (256 Ki) | tensors, each name of a shared one counted |
//! | [`MAX_NAME_BYTES`] (4 KiB), [`MAX_ALL_NAMES_BYTES`] (24 MiB) | the name of a tensor, and all names together |
//! | [`MAX_ENTRIES`] (257 Ki), [`MAX_DIRECTORY_BYTES`] (48 MiB) | entries of a zip archive, and bytes of its directory |
//! | [`MAX_HEADER_BYTES`] (100 MB) | bytes of a safetensors header |
//! | [`MAX_METADATA_ENTRIES`] (64 Ki), [`MAX_METADATA_BYTES`] (32 MiB) | entries of its `__metadata__`, and their bytes |
//! | [`MAX_NUMPY_HEADER_BYTES`] (1 MiB), [`MAX_NPZ_HEADERS_BYTES`] (64 MiB) | bytes of a NumPy array's header, and of all headers of an archive |
//! | [`MAX_INDEX_BYTES`] (64 MiB), [`MAX_FILES`] (16 Ki) | bytes of an index of shards, and files of one checkpoint |
//! | [`MAX_INFLATED_BYTES`] (8 GiB) | bytes of a deflated storage, expanded when it is read, and of a tensor that is put together from parts |
//! | [`tensor::MAX_DIMENSIONS`] (64) | dimensions of a tensor |
//! | [`tensor::MAX_EXPANDED_BYTES`] (1 GiB) | logical bytes of a view that repeats its elements |
//!
//! Those of images and lists of images are in the module `data` (feature `verify`), those of tensors that are made to fit
//! another model in [`remodel`].
//!
//! # What is scanned
//! [`scan`] says what loading a file would execute: every import and call in every pickle, in whatever it hides, judged by
//! allow-lists. It shares no code with the readers above, and goes on where they refuse.
//!
//! # What is made to fit
//! [`remodel`] holds the numeric operations of a conversion: tables of positions for other grids, patch embeddings for
//! other patches and channels, folded heads, each as its reference (timm, AST, MAE, VideoMAE) does it.
//!
//! # What is converted
//! Families of checkpoints are tables of rules between their names and timm's ([`Family`]). With the feature `verify`, [`convert`] writes
//! a checkpoint of one family as one of another, checked against the architectures of timm; [`remodel`] has the arithmetic.
//!
//! # What is run
//! With the feature `verify`, [`model`] runs the vision transformers of timm, [`data`] reads images as timm's evaluation does, and
//! [`verify`] says what came of it: accuracies and their intervals, whether two models differ, whether a fold computes what its
//! pathway did.
//!
//! # What is learned
//! With the feature `verify`, [`learn`] finds the lambdas of a fold from samples, by the gradient of a loss or by search.
//!
//! # What is written
//! `.pth` as PyTorch 2.15 writes it, loadable by PyTorch 1.13 and later with `weights_only=True`; `.safetensors`. Both in one file,
//! or in shards with an index, split as the Hugging Face libraries split them ([`FoldRequest::shard_bytes`]). Shards can be
//! written one by one, by several machines ([`FoldRequest::part`], [`join`]).
//!
//! # Arithmetic
//! float32 and float64 folds are bit-identical to PyTorch's eager `W + lambda * A`: multiply, then add, lambda rounded to
//! the type first. float16 and bfloat16 are computed in float32 and rounded once, to nearest even. If any weight of a
//! layer is float64, that layer is computed in float64. A lambda of 0 leaves a weight as it is, byte for byte.
//!
//! # Features
//! `cli` (default): the program. `verify` (default): reading images, and running models with candle. `fold-cuda` (default): folds on NVIDIA
//! GPUs, through the driver that is there when they run. `cuda`: candle on NVIDIA GPUs too. Without default features this is the bare library.

mod checkpoint;
mod container;
#[cfg(feature = "verify")]
pub mod convert;
#[cfg(feature = "verify")]
pub mod data;
mod diff;
mod engine;
mod error;
mod fold;
#[cfg(feature = "verify")]
pub mod learn;
#[cfg(feature = "verify")]
pub mod model;
mod naming;
mod parallel;
pub mod pickle;
mod plan;
mod provenance;
pub mod remodel;
pub mod scan;
mod streaming;
pub mod tensor;
#[cfg(feature = "verify")]
pub mod verify;
mod write;

pub use checkpoint::{
    Checkpoint, DeriveProblem, Examined, Expr, MAX_VALUES_SHOWN, Operation, OperationProblem, Placement, Root,
    RootChoice, RootProblem, Shard, StateDict, TensorData, TensorProblem,
};
pub use container::{
    Container, DcpProblem, FolderProblem, LegacyProblem, MAX_ALL_NAMES_BYTES, MAX_DEPTH, MAX_DIRECTORY_BYTES,
    MAX_ENTRIES, MAX_FILES, MAX_HEADER_BYTES, MAX_INDEX_BYTES, MAX_INFLATED_BYTES, MAX_METADATA_BYTES,
    MAX_METADATA_ENTRIES, MAX_NAME_BYTES, MAX_NPZ_HEADERS_BYTES, MAX_NUMPY_HEADER_BYTES, MAX_TENSORS, MAX_VISITS,
    NumpyProblem, OtherKind, OtherTensor, RebuildProblem, SafetensorsProblem, ShardedProblem, TarProblem, TreeLimit,
    ZipProblem, exit_on_shrunk_file,
};
pub use diff::{Change, Diff, NotCompared, Numbers, Outcome, Pair};
pub use engine::{Device, Lost, Norms, Progress, RunOptions, RunReport};
pub use error::{Error, NonFiniteOrigin, OutputProblem, Result};
pub use fold::{
    AuxRequest, FoldInputs, FoldReport, FoldRequest, GraftReport, Joined, Part, PartsReport, PlannedFold, PlannedGraft,
    Replaced, Understood, join,
};
pub use naming::{
    AUX_WEIGHT, Architecture, Family, Flags, Layer, LayerId, LayerKind, Layers, MapProblem, Mapped, Mapping,
    MatchProblem, PatternProblem, Recognised, SCALE, Selector, Unmapped,
};
pub use parallel::MAX_DEFAULT_THREADS;
pub use plan::{
    BiasMode, BlockSet, DepthMismatch, Dropped, FoldProblem, FoldedLayer, FoldedTerm, LambdaProblem, LambdaSpec,
    NotInTarget, Output, Parameter, Plan, ReplaceMismatch, Schedule, ShapeMismatch, Sharing, Source, Step, TensorRef,
    Term,
};
pub use tensor::{ByteOrder, DType, TensorSpec, TensorView};
pub use write::{Format, LayoutProblem, PartsProblem};
