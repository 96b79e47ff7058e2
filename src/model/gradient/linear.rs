//! A linear layer as one step runs it: its weight folded, and what its gradients are.

use std::borrow::Cow;

use pulp::Arch;

use super::super::kernels::gemm::{View, product};
use super::super::keys::{Param, Scale};
use super::super::layers::Linear;
use super::{Room, math};

type Result<T> = candle_core::Result<T>;

/// `x (W + sum of lambda A)^T + b + sum of lambda a`.
///
/// Folded, a step takes three products of matrices, `x V^T`, `g V` and `g^T x`, of which the last one's inner product with each `A` is
/// the gradient of its lambda, `<g, x A^T>`. As branches it would take two for each weight forwards and two backwards.
#[derive(Debug)]
pub(super) struct Folded<'v> {
    weight: Cow<'v, [f32]>,
    /// Empty without one.
    bias: Cow<'v, [f32]>,
    outputs: usize,
    inputs: usize,
    /// The auxiliary weights whose lambdas are learned, and the numbers of these.
    weights: Vec<(&'v [f32], usize)>,
    /// The auxiliary biases.
    biases: Vec<(&'v [f32], usize)>,
}

impl<'v> Folded<'v> {
    /// The layer with these numbers for what is learned; the sum goes to `buffer`, if it is needed.
    pub(super) fn new(layer: &'v Linear<'_>, values: &[f32], buffer: &mut Vec<f32>) -> Result<Folded<'v>> {
        let &[outputs, inputs] = layer.weight.shape() else { candle_core::bail!("a weight is a matrix") };
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        let mut sum = Sum { base: layer.weight.slice()?, sum: std::mem::take(buffer), begun: false };
        let bias = layer.bias.as_ref().map(Param::slice).transpose()?.unwrap_or_default();
        let mut bias = Sum { base: bias, sum: Vec::new(), begun: false };
        for (aux, scale) in &layer.branches {
            let (lambda, aux, one) = (number(scale, values), aux.slice()?, aux.shape().len() == 1);
            if one {
                bias.add(lambda, aux)
            } else {
                sum.add(lambda, aux)
            }
            if let Some(variable) = scale.learned() {
                let list = if one { &mut biases } else { &mut weights };
                list.push((aux, variable.range().start));
            }
        }
        Ok(Folded {
            weight: sum.into_cow(buffer),
            bias: bias.into_cow(&mut Vec::new()),
            outputs,
            inputs,
            weights,
            biases,
        })
    }

    /// Its buffer, for the next step.
    pub(super) fn into_buffer(self) -> Vec<f32> {
        if let Cow::Owned(buffer) = self.weight { buffer } else { Vec::new() }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn learns(&self) -> bool {
        !self.weights.is_empty() || !self.biases.is_empty()
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(super) fn forward(&self, x: &[f32], room: &mut Room) -> Vec<f32> {
        let rows = x.len() / self.inputs.max(1);
        let mut y = room.take(rows * self.outputs);
        let (x, w) = (View::rows(x, self.inputs), View::transposed(&self.weight, self.inputs));
        product(&mut y, self.outputs, (rows, self.outputs, self.inputs), x, w, room.threads);
        if !self.bias.is_empty() {
            math::add_rows(room.arch, &mut y, &self.bias);
        }
        y
    }

    /// The gradient of the layer's input from that of its output.
    pub(super) fn backward(&self, g: &[f32], room: &mut Room) -> Vec<f32> {
        let rows = g.len() / self.outputs.max(1);
        let mut of_x = room.take(rows * self.inputs);
        let (g, w) = (View::rows(g, self.outputs), View::rows(&self.weight, self.inputs));
        product(&mut of_x, self.inputs, (rows, self.inputs, self.outputs), g, w, room.threads);
        of_x
    }

    /// Adds the gradients of its lambdas, from the layer's input and the gradient of its output.
    pub(super) fn gradients(&self, x: &[f32], g: &[f32], room: &mut Room, gradients: &mut [f64]) {
        let rows = g.len() / self.outputs.max(1);
        if !self.weights.is_empty() {
            let mut outer = room.take(self.outputs * self.inputs);
            let (g, x) = (View::transposed(g, self.outputs), View::rows(x, self.inputs));
            product(&mut outer, self.inputs, (self.outputs, self.inputs, rows), g, x, room.threads);
            for (aux, number) in &self.weights {
                gradients[*number] += math::inner(room.arch, &outer, aux);
            }
            room.give(outer);
        }
        if !self.biases.is_empty() {
            let mut sums = room.take(self.outputs);
            math::column_sums(room.arch, g, &mut sums);
            for (aux, number) in &self.biases {
                gradients[*number] += math::inner(room.arch, &sums, aux);
            }
            room.give(sums);
        }
    }
}

fn number(scale: &Scale, values: &[f32]) -> f32 {
    match scale {
        Scale::Fixed(lambda) => *lambda,
        Scale::Learned(variable) => values.get(variable.range().start).copied().unwrap_or_default(),
    }
}

/// A sum that is only made where there is something to add.
struct Sum<'v> {
    base: &'v [f32],
    sum: Vec<f32>,
    begun: bool,
}

impl<'v> Sum<'v> {
    fn add(&mut self, lambda: f32, term: &[f32]) {
        if lambda == 0.0 {
            return;
        }
        let arch = Arch::new();
        if !self.begun {
            self.sum.resize(self.base.len(), 0.0);
            math::scaled_sum(arch, &mut self.sum, self.base, lambda, term);
            self.begun = true;
        } else {
            math::add_scaled(arch, &mut self.sum, lambda, term);
        }
    }

    /// The sum, or what it began with; a buffer that was not needed goes back.
    fn into_cow(self, buffer: &mut Vec<f32>) -> Cow<'v, [f32]> {
        if self.begun {
            Cow::Owned(self.sum)
        } else {
            *buffer = self.sum;
            Cow::Borrowed(self.base)
        }
    }
}
