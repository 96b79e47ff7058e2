//! State dicts made of others: the same tensors under other names, cut, stacked, transposed, or computed.
//!
//! Nothing is read when one is made. Whatever reads a tensor of it reads those that it is made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::compute::{Operation, OperationProblem};
use super::{Bytes, Placement, StateDict, TensorData, Unchecked};
use crate::container::StoredTensor;
use crate::error::{Error, Result};
use crate::remodel::MAX_ELEMENTS;
use crate::tensor::{ByteOrder, DType, TensorSpec, contiguous_strides, decode_f64};

/// How a tensor is made of the tensors of other state dicts.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A tensor as it is: the number of the state dict, and the index in it.
    Tensor {
        /// Which state dict.
        input: usize,
        /// The tensor's index in it.
        tensor: usize,
    },
    /// A range along a dimension, as `torch.narrow`.
    Narrow {
        /// Of what.
        of: Box<Expr>,
        /// Along which dimension.
        dim: usize,
        /// The first one.
        first: usize,
        /// How many.
        count: usize,
    },
    /// Dimensions in another order, as `torch.permute`.
    Permuted {
        /// What is permuted.
        of: Box<Expr>,
        /// For each dimension of the result, which one of the source it is.
        order: Vec<usize>,
    },
    /// The same elements, row-major, in another shape, as `torch.reshape`.
    Reshaped {
        /// What is reshaped.
        of: Box<Expr>,
        /// The new shape.
        shape: Vec<usize>,
    },
    /// One after another along the first dimension, as `torch.cat(dim=0)`; all of one type.
    Stacked(Vec<Expr>),
    /// Numbers computed from others, in float32: its type is that, whatever theirs is.
    Computed {
        /// What is computed.
        op: Operation,
        /// From what.
        of: Vec<Expr>,
    },
    /// The same number everywhere.
    Filled {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Vec<usize>,
        /// The number: 0, or one for float32 or float64.
        value: f64,
    },
}

/// Why a tensor cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeriveProblem {
    /// There is no such tensor.
    #[error("it is made of a tensor that is not there")]
    NoTensor,
    /// A range past the end.
    #[error("{first} to {end} are wanted of dimension {dim} of {shape:?}")]
    Range {
        /// The dimension.
        dim: usize,
        /// The first one.
        first: usize,
        /// The end of the last.
        end: usize,
        /// The shape that has not got them.
        shape: Vec<usize>,
    },
    /// Numbers that cannot be computed with.
    #[error("it is to be computed from {0}; numbers are computed from float64, float32, float16 and bfloat16")]
    Type(DType),
    /// What it is to be computed from does not fit.
    #[error("it cannot be made ({operation}): {problem}")]
    Operation {
        /// The operation, in words.
        operation: String,
        /// Why.
        problem: Box<OperationProblem>,
    },
    /// An order that is none of the dimensions.
    #[error("{shape:?} cannot be put in the order {order:?}")]
    Order {
        /// The order.
        order: Vec<usize>,
        /// The shape.
        shape: Vec<usize>,
    },
    /// Another number of elements.
    #[error("{from:?} cannot be seen as {to:?}, which has another number of elements")]
    Reshape {
        /// The shape that there is.
        from: Vec<usize>,
        /// The shape that is wanted.
        to: Vec<usize>,
    },
    /// Parts that do not fit together.
    #[error("{first:?} ({first_type}) and {other:?} ({other_type}) do not stack")]
    Stack {
        /// The first part's shape.
        first: Vec<usize>,
        /// Its type.
        first_type: DType,
        /// The shape of the part that does not fit.
        other: Vec<usize>,
        /// Its type.
        other_type: DType,
    },
    /// Larger than any memory.
    #[error("it is larger than any memory")]
    Overflow,
    /// Numbers that no file has, and more of them than any model needs.
    #[error(
        "it would have the shape {shape:?}, which is more than the {MAX_ELEMENTS} numbers that are made at most: ask for less"
    )]
    TooLarge {
        /// The shape that is wanted.
        shape: Vec<usize>,
    },
}

/// What an expression makes: its type and shape.
type Kind = (DType, Vec<usize>);

impl Expr {
    /// The tensor `index` of the only state dict.
    #[must_use]
    pub fn tensor(index: usize) -> Expr {
        Expr::Tensor { input: 0, tensor: index }
    }

    /// A matrix, transposed.
    #[must_use]
    pub fn transposed(self) -> Expr {
        Expr::Permuted { of: Box::new(self), order: vec![1, 0] }
    }

    /// Rows of it: a range along the first dimension.
    #[must_use]
    pub fn rows(self, first: usize, count: usize) -> Expr {
        Expr::Narrow { of: Box::new(self), dim: 0, first, count }
    }

    /// The type that the tensors it is made of are stored in: that of the first one.
    ///
    /// # Errors
    /// As [`Expr::kind`].
    pub fn stored_dtype(&self, inputs: &[&[TensorSpec]]) -> Result<DType, DeriveProblem> {
        match self {
            Expr::Computed { of, .. } => of.first().map_or(Ok(DType::F32), |first| first.stored_dtype(inputs)),
            Expr::Narrow { of, .. } | Expr::Permuted { of, .. } | Expr::Reshaped { of, .. } => of.stored_dtype(inputs),
            Expr::Stacked(parts) => parts.first().ok_or(DeriveProblem::NoTensor)?.stored_dtype(inputs),
            Expr::Tensor { .. } | Expr::Filled { .. } => self.kind(inputs).map(|(dtype, _)| dtype),
        }
    }

    /// The tensors that it is made of, in order: the number of the state dict, and the index in it.
    #[must_use]
    pub fn tensors(&self) -> Vec<(usize, usize)> {
        match self {
            Expr::Tensor { input, tensor } => vec![(*input, *tensor)],
            Expr::Narrow { of, .. } | Expr::Permuted { of, .. } | Expr::Reshaped { of, .. } => of.tensors(),
            Expr::Stacked(of) | Expr::Computed { of, .. } => of.iter().flat_map(Expr::tensors).collect(),
            Expr::Filled { .. } => Vec::new(),
        }
    }

    /// The tensor that this is, unchanged.
    #[must_use]
    pub fn plain(&self) -> Option<(usize, usize)> {
        match *self {
            Expr::Tensor { input, tensor } => Some((input, tensor)),
            _ => None,
        }
    }

    /// The type and shape of what it makes of the tensors `inputs`.
    ///
    /// # Errors
    /// [`DeriveProblem`].
    pub fn kind(&self, inputs: &[&[TensorSpec]]) -> Result<Kind, DeriveProblem> {
        match self {
            Expr::Tensor { input, tensor } => {
                let spec = inputs.get(*input).and_then(|specs| specs.get(*tensor)).ok_or(DeriveProblem::NoTensor)?;
                Ok((spec.dtype, spec.shape.clone()))
            }
            Expr::Narrow { of, dim, first, count } => {
                let (dtype, mut shape) = of.kind(inputs)?;
                let end = first.saturating_add(*count);
                if shape.get(*dim).is_none_or(|&size| end > size) {
                    return Err(DeriveProblem::Range { dim: *dim, first: *first, end, shape });
                }
                shape[*dim] = *count;
                Ok((dtype, shape))
            }
            Expr::Computed { op, of } => {
                let kinds = of.iter().map(|of| of.kind(inputs)).collect::<Result<Vec<_>, _>>()?;
                if let Some((dtype, _)) = kinds.iter().find(|(dtype, _)| !dtype.is_foldable()) {
                    return Err(DeriveProblem::Type(*dtype));
                }
                let shapes: Vec<&[usize]> = kinds.iter().map(|(_, shape)| shape.as_slice()).collect();
                let wrong =
                    |problem| DeriveProblem::Operation { operation: op.to_string(), problem: Box::new(problem) };
                Ok((DType::F32, small_enough(op.shape(&shapes).map_err(wrong)?)?))
            }
            Expr::Permuted { of, order } => {
                let (dtype, shape) = of.kind(inputs)?;
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if sorted.iter().copied().ne(0..shape.len()) {
                    return Err(DeriveProblem::Order { order: order.clone(), shape });
                }
                Ok((dtype, order.iter().map(|&d| shape[d]).collect()))
            }
            Expr::Reshaped { of, shape } => {
                let (dtype, from) = of.kind(inputs)?;
                if numel(&from)? != numel(shape)? {
                    return Err(DeriveProblem::Reshape { from, to: shape.clone() });
                }
                Ok((dtype, shape.clone()))
            }
            Expr::Stacked(parts) => {
                let mut kinds = parts.iter().map(|part| part.kind(inputs));
                let (dtype, mut shape) = kinds.next().ok_or(DeriveProblem::NoTensor)??;
                for kind in kinds {
                    let (other_type, other) = kind?;
                    if other_type != dtype || shape.is_empty() || other.len() != shape.len() || other[1..] != shape[1..]
                    {
                        return Err(DeriveProblem::Stack { first: shape, first_type: dtype, other, other_type });
                    }
                    shape[0] = shape[0].checked_add(other[0]).ok_or(DeriveProblem::Overflow)?;
                }
                numel(&shape)?;
                Ok((dtype, shape))
            }
            Expr::Filled { dtype, shape, value } => {
                if *value != 0.0 && !matches!(dtype, DType::F32 | DType::F64) {
                    return Err(DeriveProblem::Type(*dtype));
                }
                Ok((*dtype, small_enough(shape.clone())?))
            }
        }
    }

    /// Whether the elements are read from where they are stored, without being made in memory first.
    fn is_in_place(&self, inputs: &[StateDict<'_>]) -> bool {
        match self {
            Expr::Tensor { input, tensor } => inputs[*input].is_in_place(*tensor),
            Expr::Narrow { of, .. } | Expr::Permuted { of, .. } => of.is_in_place(inputs),
            Expr::Reshaped { of, .. } => match of.plain() {
                Some((input, tensor)) => {
                    inputs[input].is_in_place(tensor) && inputs[input].placement(tensor).contiguous
                }
                None => false,
            },
            Expr::Stacked(_) | Expr::Computed { .. } | Expr::Filled { .. } => false,
        }
    }

    /// The elements, of tensors that [`Expr::kind`] accepts; `name` is what messages call the tensor that they are for.
    fn data<'c>(&self, name: &str, inputs: &[StateDict<'c>]) -> Result<TensorData<'c>> {
        match self {
            Expr::Tensor { input, tensor } => inputs[*input].tensor(*tensor),
            Expr::Narrow { of, dim, first, count } => {
                let mut data = of.data(name, inputs)?;
                let stored = data.stored.to_mut();
                stored.offset += first * stored.strides[*dim];
                stored.shape[*dim] = *count;
                Ok(data)
            }
            Expr::Computed { op, of } => {
                let data = of.iter().map(|of| of.data(name, inputs)).collect::<Result<Vec<_>>>()?;
                let values: Vec<Vec<f32>> = data.iter().map(floats).collect();
                let arrays: Vec<(&[f32], &[usize])> =
                    values.iter().zip(&data).map(|(v, d)| (v.as_slice(), d.stored.shape.as_slice())).collect();
                let shapes: Vec<&[usize]> = arrays.iter().map(|(_, shape)| *shape).collect();
                let wrong = |problem: OperationProblem| Error::Tensor {
                    path: inputs[0].checkpoint.path.clone(),
                    tensor: name.to_owned(),
                    problem: DeriveProblem::Operation { operation: op.to_string(), problem: Box::new(problem) }.into(),
                };
                let shape = op.shape(&shapes).map_err(wrong)?;
                let result = op.apply(&arrays).map_err(wrong)?;
                Ok(made(DType::F32, &shape, result.iter().flat_map(|x| x.to_le_bytes()).collect()))
            }
            Expr::Permuted { of, order } => {
                let mut data = of.data(name, inputs)?;
                let stored = data.stored.to_mut();
                stored.shape = order.iter().map(|&d| stored.shape[d]).collect();
                stored.strides = order.iter().map(|&d| stored.strides[d]).collect();
                Ok(data)
            }
            Expr::Reshaped { of, shape } => {
                let mut data = of.data(name, inputs)?;
                if !crate::tensor::is_contiguous(&data.stored.shape, &data.stored.strides) {
                    data = made(data.dtype(), shape, data.view().to_vec());
                }
                let stored = data.stored.to_mut();
                (stored.strides, stored.shape) = (contiguous_strides(shape), shape.clone());
                Ok(data)
            }
            Expr::Stacked(parts) => {
                let (mut bytes, mut rows) = (Vec::new(), 0);
                let mut first = None;
                for part in parts {
                    let data = part.data(name, inputs)?;
                    data.view().for_each_piece(&mut Vec::new(), |piece| bytes.extend_from_slice(piece));
                    rows += data.stored.shape[0];
                    first.get_or_insert((data.dtype(), data.stored.shape.clone()));
                }
                // Of no parts there is no stack.
                let (dtype, mut shape) = first.unwrap_or((DType::U8, vec![0]));
                shape[0] = rows;
                Ok(made(dtype, &shape, bytes))
            }
            Expr::Filled { dtype, shape, value } => {
                let count = shape.iter().product::<usize>();
                let bytes = match dtype {
                    DType::F32 => (*value as f32).to_le_bytes().repeat(count),
                    DType::F64 => value.to_le_bytes().repeat(count),
                    // Zeros, which are the same in every type.
                    dtype => vec![0; count * dtype.size()],
                };
                Ok(made(*dtype, shape, bytes))
            }
        }
    }
}

/// The elements as float32; of types that [`Expr::kind`] has looked at.
fn floats(data: &TensorData<'_>) -> Vec<f32> {
    let (mut values, mut wide) = (Vec::with_capacity(data.view().numel()), Vec::new());
    data.view().for_each_piece(&mut Vec::new(), |bytes| {
        wide.clear();
        // The type is one of those that can be decoded.
        if decode_f64(data.dtype(), bytes, &mut wide).is_ok() {
            values.extend(wide.iter().map(|&x| x as f32));
        }
    });
    values
}

fn numel(shape: &[usize]) -> Result<usize, DeriveProblem> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(DeriveProblem::Overflow)
}

/// A shape of numbers that are not in a file, and whose count a flag may decide: no more than [`crate::remodel`] computes.
fn small_enough(shape: Vec<usize>) -> Result<Vec<usize>, DeriveProblem> {
    match numel(&shape) {
        Ok(count) if count <= MAX_ELEMENTS => Ok(shape),
        _ => Err(DeriveProblem::TooLarge { shape }),
    }
}

/// Contiguous little-endian elements that are in no file.
fn made<'c>(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> TensorData<'c> {
    let (shape, strides) = (shape.to_vec(), contiguous_strides(shape));
    let stored = StoredTensor { dtype, shape, strides, offset: 0, storage: usize::MAX };
    TensorData { stored: Cow::Owned(stored), order: ByteOrder::Little, storage: Bytes::Made(Arc::new(bytes)) }
}

/// What the tensors of a derived state dict are made of.
#[derive(Clone, Debug)]
pub(super) struct Derived<'c> {
    inputs: Vec<StateDict<'c>>,
    items: Vec<Expr>,
    /// Row-major strides of what is no tensor of the inputs as it is.
    strides: Vec<Vec<usize>>,
    /// For each tensor a number that two of them share exactly if they share a storage.
    storages: Vec<usize>,
}

impl<'c> Derived<'c> {
    pub(super) fn tensor(&self, name: &str, index: usize) -> Result<TensorData<'c>> {
        self.items[index].data(name, &self.inputs)
    }

    pub(super) fn unchecked(&self, name: &str, index: usize) -> Result<(TensorData<'c>, Option<Unchecked<'c>>)> {
        match self.items[index].plain() {
            Some((input, tensor)) => self.inputs[input].unchecked(tensor),
            None => Ok((self.tensor(name, index)?, None)),
        }
    }

    pub(super) fn is_in_place(&self, index: usize) -> bool {
        self.items[index].is_in_place(&self.inputs)
    }

    pub(super) fn storage_run(&self, name: &str, index: usize, first: usize, count: usize) -> Result<TensorData<'c>> {
        match self.items[index].plain() {
            Some((input, tensor)) => self.inputs[input].storage_run(tensor, first, count),
            // What is made shares its elements with nothing.
            None => {
                let numel = self.tensor(name, index)?.view().numel();
                let flat = Expr::Reshaped { of: Box::new(self.items[index].clone()), shape: vec![numel] };
                flat.rows(first, count).data(name, &self.inputs)
            }
        }
    }

    pub(super) fn placement(&self, index: usize) -> Placement<'_> {
        let storage = self.storages[index];
        match self.items[index].plain() {
            Some((input, tensor)) => Placement { storage, ..self.inputs[input].placement(tensor) },
            None => Placement { storage, offset: 0, strides: &self.strides[index], contiguous: true },
        }
    }

    /// Where a tensor that is one of another state dict is from; `None` if it is made.
    pub(super) fn origin(&self, index: usize) -> Option<(&Path, &str)> {
        self.items[index].plain().map(|(input, tensor)| self.inputs[input].origin(tensor))
    }

    pub(super) fn inputs(&self) -> &[StateDict<'c>] {
        &self.inputs
    }
}

impl<'c> StateDict<'c> {
    /// A state dict of the tensors `items`, made of those of this one, which is input 0 and the one that messages speak of, and
    /// of `others`.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the item whose parts do not fit together, or whose name another one has.
    pub fn derived(self, others: Vec<StateDict<'c>>, items: Vec<(String, Expr)>) -> Result<StateDict<'c>> {
        let first = self.clone();
        let inputs: Vec<StateDict<'c>> = std::iter::once(self).chain(others).collect();
        let path = || first.checkpoint.path.clone();
        let specs: Vec<&[TensorSpec]> = inputs.iter().map(StateDict::specs).collect();
        let specs = items
            .iter()
            .map(|(name, item)| match item.kind(&specs) {
                Ok((dtype, shape)) => Ok(TensorSpec { name: name.clone(), dtype, shape }),
                Err(problem) => Err(Error::Tensor { path: path(), tensor: name.clone(), problem: problem.into() }),
            })
            .collect::<Result<Vec<_>>>()?;
        let strides = specs.iter().map(|spec| contiguous_strides(&spec.shape)).collect();
        let mut by_name: Vec<usize> = (0..specs.len()).collect();
        by_name.sort_by(|&a, &b| specs[a].name.cmp(&specs[b].name));
        if let Some([twice, _]) = by_name.array_windows().find(|[a, b]| specs[*a].name == specs[*b].name) {
            let (tensor, problem) = (specs[*twice].name.clone(), super::TensorProblem::DuplicateName);
            return Err(Error::Tensor { path: path(), tensor, problem });
        }
        let items: Vec<Expr> = items.into_iter().map(|(_, item)| item).collect();
        let mut known = BTreeMap::new();
        let storage = |(index, item): (usize, &Expr)| match item.plain() {
            Some((input, tensor)) => *known.entry((input, inputs[input].placement(tensor).storage)).or_insert(index),
            None => index,
        };
        let storages = items.iter().enumerate().map(storage).collect();
        let derived = Arc::new(Derived { inputs, items, strides, storages });
        Ok(StateDict { specs, by_name, derived: Some(derived), stored: Vec::new(), ..first })
    }
}
