//! Vision transformers in candle: run a checkpoint, plain or with its pathways unfolded.
//!
//! The model is timm's `VisionTransformer` in its plain form: patch embedding, class token or none, learned positions,
//! pre-norm blocks with biased or bias-free layers, exact GELU, LayerNorm, pooling by class token or by the mean of the
//! patch tokens (`fc_norm`), linear head or none. Other variants are refused, naming the keys that are left over.

mod layers;
mod vit;

use candle_core::{Device, Tensor};

use crate::checkpoint::StateDict;
use crate::tensor::DType;

pub use layers::Linear;
pub use vit::{Config, Pool, Vit};

/// Why a model cannot be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A tensor that the model needs is not there.
    #[error("the checkpoint has no {0:?}, which the model needs")]
    Missing(String),
    /// Tensors that the model has no place for.
    #[error("the model has no place for: {}", .0.join(", "))]
    Unexpected(Vec<String>),
    /// A tensor has another shape than the model needs.
    #[error("{name:?} has the shape {found:?}, where {needed} is needed")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What is needed, in words or as a shape.
        needed: String,
    },
    /// A configuration that no model has.
    #[error("{heads} heads on a width of {width} with patches of {} x {}: the heads have to divide the width, and patches have an area", patch.0, patch.1)]
    Config {
        /// Attention heads.
        heads: usize,
        /// Width of a token.
        width: usize,
        /// Height and width of a patch.
        patch: (usize, usize),
    },
    /// A tensor is of a type that models are not run from.
    #[error("{name:?} is {dtype}; models run from float64, float32, float16 and bfloat16 weights")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// A tensor cannot be read.
    #[error("cannot read the weights")]
    Read(#[source] Box<crate::Error>),
    /// candle refuses.
    #[error("candle cannot run the model")]
    Candle(#[from] candle_core::Error),
}

/// Takes the tensors of a state dict, each once, as float32.
pub(crate) struct Keys<'s, 'c> {
    tensors: &'s StateDict<'c>,
    taken: Vec<bool>,
    device: Device,
}

impl<'s, 'c> Keys<'s, 'c> {
    fn new(tensors: &'s StateDict<'c>, device: &Device) -> Self {
        Keys { tensors, taken: vec![false; tensors.specs().len()], device: device.clone() }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.find(name).is_some()
    }

    /// The shape of a tensor that has to be there.
    fn shape(&self, name: &str) -> Result<&'s [usize], ModelError> {
        let index = self.tensors.find(name).ok_or_else(|| ModelError::Missing(name.to_owned()))?;
        Ok(&self.tensors.specs()[index].shape)
    }

    /// The tensor, which has to have that shape.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let index = self.tensors.find(name).ok_or_else(|| ModelError::Missing(name.to_owned()))?;
        let spec = &self.tensors.specs()[index];
        if spec.shape != shape {
            let (name, found, needed) = (name.to_owned(), spec.shape.clone(), format!("{shape:?}"));
            return Err(ModelError::Shape { name, found, needed });
        }
        let dtype = match spec.dtype {
            DType::F64 => candle_core::DType::F64,
            DType::F32 => candle_core::DType::F32,
            DType::F16 => candle_core::DType::F16,
            DType::BF16 => candle_core::DType::BF16,
            dtype => return Err(ModelError::Type { name: name.to_owned(), dtype }),
        };
        let data = self.tensors.tensor(index).map_err(|error| ModelError::Read(Box::new(error)))?;
        self.taken[index] = true;
        let tensor = Tensor::from_raw_buffer(&data.view().to_vec(), dtype, shape, &self.device)?;
        Ok(tensor.to_dtype(candle_core::DType::F32)?)
    }

    fn take_if_there(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, ModelError> {
        if self.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// Every tensor has to have been taken.
    fn finish(self) -> Result<(), ModelError> {
        let left = self.tensors.specs().iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        let left: Vec<String> = left.map(|(spec, _)| spec.name.clone()).collect();
        if left.is_empty() { Ok(()) } else { Err(ModelError::Unexpected(left)) }
    }
}
