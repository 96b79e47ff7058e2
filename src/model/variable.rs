//! What is learned of a model.

use std::ops::Range;

use candle_core::{Device, Shape, Tensor, Var};

/// Numbers of a model that are learned, at their place among all that are: a lambda, or a parameter of the model's own.
#[derive(Clone, Debug)]
pub struct Variable {
    first: usize,
    var: Var,
}

impl Variable {
    /// Zeros of that shape, on `device`; the first of them is number `first` of all numbers that are learned.
    ///
    /// # Errors
    /// candle's, if there is no memory on the device.
    pub fn new(first: usize, shape: impl Into<Shape>, device: &Device) -> candle_core::Result<Variable> {
        Ok(Variable { first, var: Var::zeros(shape, candle_core::DType::F32, device)? })
    }

    /// Where its numbers are among all that are learned.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.var.elem_count()
    }

    pub(super) fn tensor(&self) -> &Tensor {
        self.var.as_tensor()
    }

    /// Takes its part of all numbers.
    pub(super) fn set(&self, all: &[f32]) -> candle_core::Result<()> {
        let values = Tensor::from_slice(&all[self.range()], self.var.shape(), self.var.device())?;
        self.var.set(&values)
    }
}
