//! Plans: what a run will write, known in full before the output file exists.
//!
//! A [`Plan`] is a flat, ordered list of [`Step`]s, each a run of elements to compute, and of the tensors that are views
//! of them. Planners are pure functions of specs; they touch no file. The engine executes every plan alike.

mod copy;
mod fold;
mod lambda;
mod share;

pub(crate) use copy::copy;
pub(crate) use fold::{AuxSide, FoldOptions, Side, fold};
pub use fold::{
    BiasMode, BlockSet, DepthMismatch, Dropped, FoldProblem, FoldedLayer, FoldedTerm, NotInTarget, Parameter,
    ReplaceMismatch, ShapeMismatch,
};
pub use lambda::{LambdaProblem, LambdaSpec, Schedule};

use crate::tensor::{DType, TensorSpec};

/// Whether tensors that share a storage go on sharing it in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They do (.pth).
    Keep,
    /// Each is written out by itself (safetensors, which has no views).
    Copy,
}

/// A tensor of one of the inputs of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorRef {
    /// Which input: 0 is the target, the auxiliaries follow in order.
    pub input: usize,
    /// The tensor's index in that input's state dict.
    pub tensor: usize,
}

/// Where the elements of a step come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tensor's elements, row-major.
    Tensor(TensorRef),
    /// A run of elements of the storage that a tensor is a view of.
    Run {
        /// A tensor that is a view of the storage.
        tensor: TensorRef,
        /// The first element of the storage that is taken.
        first: usize,
    },
}

impl Source {
    /// The tensor that is read, or that the run's storage belongs to.
    #[must_use]
    pub fn tensor(&self) -> TensorRef {
        match *self {
            Source::Tensor(tensor) | Source::Run { tensor, .. } => tensor,
        }
    }
}

/// What is added to a step's source: `lambda` times a tensor of the same shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The tensor.
    pub source: TensorRef,
    /// The scale; never 0, since a term of scale 0 is no term.
    pub lambda: f64,
}

/// One run of elements of the output: a source, plus terms from left to right, in the type `dtype`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where the elements come from.
    pub source: Source,
    /// What is added to them.
    pub terms: Vec<Term>,
    /// The type they are written in.
    pub dtype: DType,
    /// How many there are.
    pub numel: usize,
}

impl Step {
    /// Bytes that the step writes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.numel as u64 * self.dtype.size() as u64
    }
}

/// A tensor of the output: a view of the elements that a step writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name, type and shape.
    pub spec: TensorSpec,
    /// The index of the step that writes its elements.
    pub step: usize,
    /// Elements of the step before its first one.
    pub offset: usize,
    /// Elements between neighbours, for each dimension.
    pub strides: Vec<usize>,
}

/// All that a run will write, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The runs of elements to write.
    pub steps: Vec<Step>,
    /// The tensors, in the order in which they are listed in the output.
    pub outputs: Vec<Output>,
    /// The parameters that are folded, in the target's order.
    pub folded: Vec<FoldedLayer>,
    /// The tensors of the target that the output lacks, and why.
    pub dropped: Vec<Dropped>,
    /// What else the user should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Bytes of tensor data that the run will write.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(Step::bytes).sum()
    }
}
