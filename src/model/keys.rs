//! From a state dict to parameters: each tensor once, with the shape that the model needs.

use candle_core::{Device, Tensor};

use super::kernels::{Kernels, Ops};
use super::variable::Variable;
use super::{ModelError, Precision};
use crate::checkpoint::{StateDict, TensorData};
use crate::naming::{AUX_WEIGHT, SCALE, nearest};
use crate::tensor::{DType, decode_f64};

/// Names that a message lists, and no more.
const LISTED: usize = 8;

/// A weight, bias or other parameter of a model.
#[derive(Clone, Debug)]
pub(super) struct Param<'c> {
    shape: Vec<usize>,
    values: Values<'c>,
}

#[derive(Clone, Debug)]
enum Values<'c> {
    /// Only looked for, not read.
    Unread,
    /// float32, where the file has it.
    Stored(TensorData<'c>),
    /// float32, converted or computed.
    Owned(Vec<f32>),
    /// For candle.
    Tensor(Tensor),
    /// It is learned.
    Learned(Variable),
}

impl Param<'_> {
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major; for the kernels of this crate.
    pub(super) fn slice(&self) -> candle_core::Result<&[f32]> {
        match &self.values {
            Values::Stored(data) => {
                let bytes = data.as_bytes().and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
                bytes.ok_or_else(|| candle_core::Error::msg("a parameter is not where it was"))
            }
            Values::Owned(values) => Ok(values),
            Values::Unread | Values::Tensor(_) | Values::Learned(_) => {
                Err(candle_core::Error::msg("a parameter is with candle"))
            }
        }
    }

    /// The tensor, for candle: a copy of what is in a file's map.
    pub(super) fn tensor(&self) -> candle_core::Result<Tensor> {
        match &self.values {
            Values::Tensor(tensor) => Ok(tensor.clone()),
            Values::Learned(variable) => Ok(variable.tensor().clone()),
            _ => Tensor::from_slice(self.slice()?, self.shape.as_slice(), &Device::Cpu),
        }
    }

    /// What is learned, if it is.
    pub(super) fn learned(&self) -> Option<&Variable> {
        if let Values::Learned(variable) = &self.values { Some(variable) } else { None }
    }
}

/// A lambda.
#[derive(Clone, Debug)]
pub(super) enum Scale {
    Fixed(f32),
    /// One number.
    Learned(Variable),
}

impl Scale {
    pub(super) fn value(&self) -> candle_core::Result<f32> {
        match self {
            Scale::Fixed(value) => Ok(*value),
            Scale::Learned(variable) => variable.tensor().squeeze(0)?.to_scalar(),
        }
    }

    /// What is learned, if it is.
    pub(super) fn learned(&self) -> Option<&Variable> {
        if let Scale::Learned(variable) = self { Some(variable) } else { None }
    }
}

/// Parameters of branches, each with its lambda.
pub(super) type Terms<'c> = Vec<(Param<'c>, Scale)>;

/// Weights that work beside those of the model, `lambda * weight` for linear layers and `lambda * bias`, or in their place.
#[derive(Clone, Debug, Default)]
pub struct Branches<'s, 'c> {
    /// The name of the model's weight, the auxiliary state dict, the index of the weight in it, and lambda.
    terms: Vec<(String, &'s StateDict<'c>, usize, Scale)>,
    /// The name of the model's parameter, and what is there instead.
    instead: Vec<(String, Instead)>,
}

#[derive(Clone, Debug)]
enum Instead {
    Values(Vec<f32>),
    Learned(Variable),
}

impl Instead {
    fn param<'c>(&self, name: &str, shape: &[usize], holding: &Holding) -> Result<Param<'c>, ModelError> {
        let wrong = || Err(ModelError::Branch(format!("what is there instead of {name:?} is not {shape:?}")));
        let values = match self {
            Instead::Learned(variable) if variable.tensor().dims() != shape => return wrong(),
            Instead::Learned(variable) => Values::Learned(variable.clone()),
            Instead::Values(values) if values.len() != shape.iter().product::<usize>() => return wrong(),
            Instead::Values(values) if holding.ops.kernels == Kernels::Candle => {
                let tensor = Tensor::from_slice(values, shape, &holding.device)?;
                Values::Tensor(tensor.to_dtype(holding.ops.precision.dtype())?)
            }
            Instead::Values(values) => {
                let mut values = values.clone();
                holding.ops.precision.round(&mut values);
                Values::Owned(values)
            }
        };
        Ok(Param { shape: shape.to_vec(), values })
    }
}

impl<'s, 'c> Branches<'s, 'c> {
    /// Adds `lambda` times the tensor `index` of `aux` to the linear layer whose weight `[outputs, inputs]` or bias `[outputs]`
    /// is called `weight`.
    pub fn add(&mut self, weight: impl Into<String>, aux: &'s StateDict<'c>, index: usize, lambda: f64) {
        self.terms.push((weight.into(), aux, index, Scale::Fixed(lambda as f32)));
    }

    /// The same with a lambda that is learned, one number. The model has to be loaded in float32 and unfolded, and is run by
    /// [`Vit::gradients`](super::Vit::gradients) only.
    pub fn learn(&mut self, weight: impl Into<String>, aux: &'s StateDict<'c>, index: usize, lambda: &Variable) {
        self.terms.push((weight.into(), aux, index, Scale::Learned(lambda.clone())));
    }

    /// The model's own `parameter`, of a norm or a head, is learned; otherwise as [`Branches::learn`].
    pub fn train(&mut self, parameter: impl Into<String>, variable: &Variable) {
        self.instead.push((parameter.into(), Instead::Learned(variable.clone())));
    }

    /// The model's own `parameter` has these values, row-major, instead of those of the checkpoint.
    pub fn replace(&mut self, parameter: impl Into<String>, values: Vec<f32>) {
        self.instead.push((parameter.into(), Instead::Values(values)));
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty() && self.instead.is_empty()
    }
}

/// What a state dict has too much, too little, or in another shape: what `load_state_dict(strict=True)` would say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyProblems {
    /// Names that the model needs and the file lacks, with a name of the file that nothing else needs and that is nearly the same.
    pub missing: Vec<(String, Option<String>)>,
    /// Names of the file that the model has no place for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape: the name, the file's shape, the model's.
    pub shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl KeyProblems {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }
}

impl std::fmt::Display for KeyProblems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |lines: Vec<String>| {
            let more = lines.len().saturating_sub(LISTED);
            let shown = lines[..lines.len().min(LISTED)].join(", ");
            if more > 0 { format!("{shown} and {more} more") } else { shown }
        };
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            let near = |(name, near): &(String, Option<String>)| match near {
                Some(near) => format!("{name:?} (is it {near:?}?)"),
                None => format!("{name:?}"),
            };
            parts.push(format!("missing: {}", list(self.missing.iter().map(near).collect())));
        }
        if !self.unexpected.is_empty() {
            let quoted = self.unexpected.iter().map(|name| format!("{name:?}"));
            parts.push(format!("unexpected: {}", list(quoted.collect())));
        }
        if !self.shapes.is_empty() {
            let shape = |(name, found, needed): &(String, Vec<usize>, Vec<usize>)| {
                format!("{name:?} is {found:?}, where the model has {needed:?}")
            };
            parts.push(format!("wrong shape: {}", list(self.shapes.iter().map(shape).collect())));
        }
        f.write_str(&parts.join("; "))
    }
}

/// How the parameters are to be held.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) device: Device,
    pub(super) ops: Ops,
    pub(super) fold: bool,
}

/// Takes the tensors of a state dict, each once.
pub(super) struct Keys<'s, 'c> {
    tensors: &'s StateDict<'c>,
    prefix: String,
    branches: &'s Branches<'s, 'c>,
    holding: Option<Holding>,
    taken: Vec<bool>,
    used: usize,
    problems: KeyProblems,
    needed: Vec<(String, Vec<usize>)>,
}

impl<'s, 'c> Keys<'s, 'c> {
    /// Names are looked for behind `prefix`; without `holding`, names and shapes are compared and nothing is read.
    pub(super) fn new(
        tensors: &'s StateDict<'c>,
        prefix: &str,
        branches: &'s Branches<'s, 'c>,
        holding: Option<Holding>,
    ) -> Self {
        let taken = vec![false; tensors.specs().len()];
        let (prefix, problems) = (prefix.to_owned(), KeyProblems::default());
        Keys { tensors, prefix, branches, holding, taken, used: 0, problems, needed: Vec::new() }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.tensors.find(&format!("{}{name}", self.prefix))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor, which has to have that shape.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Param<'c>, ModelError> {
        let unread = Param { shape: shape.to_vec(), values: Values::Unread };
        self.needed.push((name.to_owned(), shape.to_vec()));
        let Some(index) = self.find(name) else {
            self.problems.missing.push((format!("{}{name}", self.prefix), None));
            return Ok(unread);
        };
        self.taken[index] = true;
        let spec = &self.tensors.specs()[index];
        if spec.shape != shape {
            self.problems.shapes.push((spec.name.clone(), spec.shape.clone(), shape.to_vec()));
            return Ok(unread);
        }
        let instead = self.branches.instead.iter().find(|(name, _)| *name == spec.name);
        self.used += usize::from(instead.is_some());
        match (&self.holding, instead) {
            (None, _) => Ok(unread),
            (Some(holding), None) => read(self.tensors, index, holding),
            (Some(holding), Some((_, instead))) => instead.param(&spec.name, shape, holding),
        }
    }

    /// A tensor of more dimensions as a matrix: all but the first are one.
    pub(super) fn take_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Param<'c>, ModelError> {
        let mut param = self.take(name, shape)?;
        param.shape = vec![shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()];
        if let Values::Tensor(tensor) = &param.values {
            param.values = Values::Tensor(tensor.reshape(param.shape.as_slice())?);
        }
        Ok(param)
    }

    /// The elements, as they are stored; none if nothing is read.
    pub(super) fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let param = self.take(name, shape)?;
        Ok(match &param.values {
            Values::Unread => Vec::new(),
            Values::Tensor(_) | Values::Learned(_) => {
                param.tensor()?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?
            }
            Values::Stored(_) | Values::Owned(_) => param.slice()?.to_vec(),
        })
    }

    /// A tensor that may be there and changes nothing.
    pub(super) fn ignore(&mut self, name: &str) {
        if let Some(index) = self.find(name) {
            self.taken[index] = true;
        }
    }

    /// The same, if `there`.
    pub(super) fn take_if(
        &mut self,
        there: bool,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Param<'c>>, ModelError> {
        if there { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// The weight of a linear layer and what works beside it: the checkpoint's own pathway, and branches.
    pub(super) fn take_weight(
        &mut self,
        name: &str,
        shape: &[usize; 2],
    ) -> Result<(Param<'c>, Vec<(Param<'c>, Scale)>), ModelError> {
        let full = format!("{name}.weight");
        let mut weight = self.take(&full, shape)?;
        let mut terms = Vec::new();
        let (aux, scale) = (format!("{name}.{AUX_WEIGHT}"), format!("{name}.{SCALE}"));
        if self.has(&aux) || self.has(&scale) {
            let aux = self.take(&aux, shape)?;
            // A scalar, or the reference module's tensor of one element.
            let scalar = self.find(&scale).is_some_and(|index| self.tensors.specs()[index].shape.is_empty());
            let scale = self.take(&scale, if scalar { &[] } else { &[1] })?;
            terms.push((aux, Scale::Fixed(scalar_of(&scale)?)));
        }
        terms.extend(self.branch_terms(&full, shape)?);
        if let Some(holding) = &self.holding
            && holding.fold
            && !terms.is_empty()
        {
            weight = folded(&weight, &terms)?;
            terms.clear();
        }
        Ok((weight, terms))
    }

    /// The bias of a linear layer if `there`, with the biases of branches added, a sum of constants having no branches of its own;
    /// and those whose lambdas are learned.
    pub(super) fn take_bias(
        &mut self,
        there: bool,
        name: &str,
        outputs: usize,
    ) -> Result<(Option<Param<'c>>, Terms<'c>), ModelError> {
        let full = format!("{name}.bias");
        let Some(bias) = self.take_if(there, &full, &[outputs])? else { return Ok((None, Vec::new())) };
        let terms = self.branch_terms(&full, &[outputs])?;
        let (learned, fixed): (Vec<_>, Vec<_>) = terms.into_iter().partition(|(_, scale)| scale.learned().is_some());
        let bias = if fixed.is_empty() { bias } else { folded(&bias, &fixed)? };
        Ok((Some(bias), learned))
    }

    /// What branches add to the parameter `name`; nothing if nothing is read.
    fn branch_terms(&mut self, name: &str, shape: &[usize]) -> Result<Vec<(Param<'c>, Scale)>, ModelError> {
        let full = format!("{}{name}", self.prefix);
        let mut terms = Vec::new();
        for (_, aux, index, lambda) in self.branches.terms.iter().filter(|term| term.0 == full) {
            self.used += 1;
            let spec = &aux.specs()[*index];
            if spec.shape != shape {
                let (name, file) = (&spec.name, aux.checkpoint().path().display());
                return Err(ModelError::Branch(format!(
                    "{name:?} of {file} is {:?}, where {full:?} is {shape:?}",
                    spec.shape
                )));
            }
            if let Some(holding) = &self.holding {
                terms.push((read(aux, *index, holding)?, lambda.clone()));
            }
        }
        Ok(terms)
    }

    /// The names and shapes of all that was asked for, without the prefix.
    pub(super) fn into_needed(self) -> Vec<(String, Vec<usize>)> {
        self.needed
    }

    /// Every tensor has to have been taken, and every branch.
    pub(super) fn finish(mut self) -> Result<(), ModelError> {
        let left = self.tensors.specs().iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        let mut left: Vec<String> = left.map(|(spec, _)| spec.name.clone()).collect();
        left.extend(self.tensors.others().iter().map(|(name, _)| name.clone()));
        for (name, near) in &mut self.problems.missing {
            *near = nearest(name, left.iter().map(String::as_str)).map(str::to_owned);
        }
        self.problems.unexpected = left;
        if !self.problems.is_empty() {
            return Err(ModelError::Keys(Box::new(self.problems)));
        }
        let all = self.branches.terms.len() + self.branches.instead.len();
        if self.used < all {
            let left = all - self.used;
            return Err(ModelError::Branch(format!("{left} of the given weights belong to no parameter of the model")));
        }
        Ok(())
    }
}

/// The one element of a lambda; 0 for one that was not read.
fn scalar_of(param: &Param<'_>) -> Result<f32, ModelError> {
    match &param.values {
        Values::Unread => Ok(0.0),
        Values::Tensor(tensor) => {
            let scalar = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(scalar.first().copied().unwrap_or(0.0))
        }
        _ => Ok(param.slice()?.first().copied().unwrap_or(0.0)),
    }
}

/// `W + lambda * A + ...`: multiply, then add, in the parameters' own type.
fn folded<'c>(weight: &Param<'c>, terms: &[(Param<'c>, Scale)]) -> Result<Param<'c>, ModelError> {
    let values = match &weight.values {
        Values::Tensor(tensor) => {
            let mut sum = tensor.clone();
            for (aux, lambda) in terms {
                sum = (sum + (aux.tensor()? * f64::from(lambda.value()?))?)?;
            }
            Values::Tensor(sum)
        }
        _ => {
            let mut sum = weight.slice()?.to_vec();
            for (aux, lambda) in terms {
                let lambda = lambda.value()?;
                for (w, a) in sum.iter_mut().zip(aux.slice()?) {
                    *w += lambda * a;
                }
            }
            Values::Owned(sum)
        }
    };
    Ok(Param { shape: weight.shape.clone(), values })
}

/// The parameter in the file's `index`, of float32 or rounded to the precision that the model is run in.
fn read<'c>(tensors: &StateDict<'c>, index: usize, holding: &Holding) -> Result<Param<'c>, ModelError> {
    let spec = &tensors.specs()[index];
    let shape = spec.shape.clone();
    let from = match spec.dtype {
        DType::F64 => candle_core::DType::F64,
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
        dtype => return Err(ModelError::Type { name: spec.name.clone(), dtype }),
    };
    let data = tensors.tensor(index).map_err(|error| ModelError::Read(Box::new(error)))?;
    let precision = holding.ops.precision;
    if let Kernels::Candle = holding.ops.kernels {
        let bytes = data.view().to_vec();
        let tensor = Tensor::from_raw_buffer(&bytes, from, &shape, &holding.device)?;
        return Ok(Param { shape, values: Values::Tensor(tensor.to_dtype(precision.dtype())?) });
    }
    let native = cfg!(target_endian = "little") && spec.dtype == DType::F32 && precision == Precision::F32;
    if native && data.as_bytes().is_some_and(|bytes| bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok()) {
        return Ok(Param { shape, values: Values::Stored(data) });
    }
    let mut values = decoded(&spec.name, spec.dtype, &data)?;
    precision.round(&mut values);
    Ok(Param { shape, values: Values::Owned(values) })
}

/// The elements of a tensor as float32, row-major.
fn decoded(name: &str, dtype: DType, data: &TensorData<'_>) -> Result<Vec<f32>, ModelError> {
    let (mut values, mut wide, mut failed) = (Vec::with_capacity(data.view().numel()), Vec::new(), None);
    data.view().for_each_piece(&mut Vec::new(), |bytes| {
        wide.clear();
        match decode_f64(dtype, bytes, &mut wide) {
            Ok(()) => values.extend(wide.iter().map(|&x| x as f32)),
            Err(error) => failed = Some(error.0),
        }
    });
    match failed {
        Some(dtype) => Err(ModelError::Type { name: name.to_owned(), dtype }),
        None => Ok(values),
    }
}

/// The elements of the tensor `index` as float32, row-major.
pub(crate) fn read_f32(tensors: &StateDict<'_>, index: usize) -> Result<Vec<f32>, ModelError> {
    let spec = &tensors.specs()[index];
    let data = tensors.tensor(index).map_err(|error| ModelError::Read(Box::new(error)))?;
    decoded(&spec.name, spec.dtype, &data)
}
