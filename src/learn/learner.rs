//! A target whose lambdas can be changed.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::{LearnError, Objective, Samples};
use crate::engine::Progress;
use crate::error::Error;
use crate::model::{Branches, Config, Kernels, Load, Vit};
use crate::naming::LayerId;
use crate::plan::Parameter;
use crate::verify::{Logits, Pair, Pathway};

/// Which layers have one lambda together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Each its own.
    #[default]
    Layer,
    /// Those of one kind, in all blocks.
    Kind,
    /// Those of one block.
    Block,
    /// All.
    All,
}

/// The layers of a target that have an auxiliary weight, and the lambdas that they share.
#[derive(Debug)]
pub struct Learner<'p, 'i> {
    pathway: &'p Pathway<'i>,
    config: &'p Config,
    layers: Vec<Learned>,
    lambdas: usize,
}

/// A weight or bias of the target, one of an auxiliary, and the lambda between them.
#[derive(Debug)]
struct Learned {
    name: String,
    id: LayerId,
    /// A bias has the lambda of its layer's weight.
    parameter: Parameter,
    /// Which auxiliary, from 0, and which of its tensors.
    aux: usize,
    tensor: usize,
    /// Which lambda.
    group: usize,
}

/// What a folded model makes of samples.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The logits, in the order of the samples.
    pub logits: Logits,
    /// The loss of each sample.
    pub losses: Vec<f64>,
}

impl Evaluation {
    /// The mean of the losses; NaN of none.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }

    /// The part of the labelled samples that is predicted right; `None` without labels.
    #[must_use]
    pub fn accuracy(&self, labels: &[Option<usize>]) -> Option<f64> {
        let predictions = self.logits.predictions();
        let labelled: Vec<bool> = predictions
            .iter()
            .zip(labels)
            .filter_map(|(prediction, label)| label.map(|label| *prediction == Some(label)))
            .collect();
        (!labelled.is_empty()).then(|| labelled.iter().filter(|right| **right).count() as f64 / labelled.len() as f64)
    }
}

impl<'p, 'i> Learner<'p, 'i> {
    /// The layers that the pathway pairs, of a target with that configuration.
    ///
    /// # Errors
    /// [`LearnError`]: the target has no head, or pathways of its own.
    pub fn new(pathway: &'p Pathway<'i>, config: &'p Config, share: Share) -> Result<Self, LearnError> {
        if config.classes.is_none() {
            let path = pathway.target.tensors.checkpoint().path().to_owned();
            return Err(LearnError::NoHead { path });
        }
        let mut groups: BTreeMap<(usize, usize, usize), usize> = BTreeMap::new();
        let mut layers = Vec::new();
        for Pair { name, id, parameter, terms } in pathway.pairs() {
            for term in terms {
                let Some((aux, tensor)) = term else { return Err(LearnError::OwnPathway { name: name.to_owned() }) };
                let (first, second) = match share {
                    Share::Layer => (id.block, id.kind as usize),
                    Share::Kind => (0, id.kind as usize),
                    Share::Block => (id.block, 0),
                    Share::All => (0, 0),
                };
                let next = groups.len();
                let group = *groups.entry((aux, first, second)).or_insert(next);
                layers.push(Learned { name: name.to_owned(), id, parameter, aux, tensor, group });
            }
        }
        Ok(Learner { pathway, config, layers, lambdas: groups.len() })
    }

    /// The model that is run.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.config
    }

    /// How many lambdas there are.
    #[must_use]
    pub fn lambdas(&self) -> usize {
        self.lambdas
    }

    /// How many layers, counted for each auxiliary that they have.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.iter().filter(|layer| layer.parameter == Parameter::Weight).count()
    }

    /// How many auxiliaries.
    #[must_use]
    pub fn auxiliaries(&self) -> usize {
        self.pathway.aux.len()
    }

    /// The lambda of each layer with the auxiliary of that number, from 0, by the layer's module name as `fold` reads it.
    pub fn entries<'a>(&'a self, aux: usize, values: &'a [f32]) -> impl Iterator<Item = (&'a str, LayerId, f32)> {
        let layers = self.layers.iter().filter(move |layer| layer.aux == aux && layer.parameter == Parameter::Weight);
        layers.map(|layer| (layer.name.strip_suffix(".weight").unwrap_or(&layer.name), layer.id, values[layer.group]))
    }

    /// Bytes that fitting takes, beyond the samples, about: the weights for gradients and for evaluation, each auxiliary's, the
    /// folded ones, and what a batch leaves behind for the backward pass.
    #[must_use]
    pub fn bytes(&self, batch: usize) -> u64 {
        let Config { width, hidden, depth, heads, .. } = *self.config;
        let weights: u64 = self.pathway.target.tensors.specs().iter().map(|spec| spec.numel() as u64 * 4).sum();
        let tokens = self.config.patches() + self.config.prefix();
        let kept = tokens * (16 * width + 3 * hidden) + 3 * heads * tokens * tokens;
        weights * (3 + self.pathway.aux.len() as u64) + (batch * depth * kept * 4) as u64
    }

    fn path(&self) -> &std::path::Path {
        self.pathway.target.tensors.checkpoint().path()
    }

    /// Runs the folded model on all samples, as `verify` would.
    ///
    /// # Errors
    /// [`LearnError`]: the samples do not fit the model; [`Error::Cancelled`].
    pub fn evaluate(
        &self,
        values: &[f32],
        samples: &Samples,
        objective: Objective,
        progress: &dyn Progress,
    ) -> Result<Evaluation, LearnError> {
        const BATCH: usize = 64;
        let mut branches = Branches::default();
        for layer in self.layers.iter().filter(|layer| values[layer.group] != 0.0) {
            let aux = &self.pathway.aux[layer.aux].tensors;
            branches.add(layer.name.clone(), aux, layer.tensor, f64::from(values[layer.group]));
        }
        let load = Load { branches, fold: true, ..Load::new(&Device::Cpu) };
        let wrong = |source| LearnError::model(self.path(), source);
        let vit = Vit::load(self.config, &self.pathway.target.tensors, &load).map_err(wrong)?;
        let [channels, height, width] = samples.shape;
        let size = channels * height * width;
        let (mut rows, mut classes) = (Vec::new(), 0);
        for part in samples.data.chunks((BATCH * size).max(1)) {
            if progress.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let run = || {
                let images = Tensor::from_slice(part, (part.len() / size, channels, height, width), &Device::Cpu)?;
                let logits = vit.forward(&images)?;
                Ok((logits.dim(1)?, logits.flatten_all()?.to_vec1::<f32>()?))
            };
            let (columns, values) = run().map_err(|error: candle_core::Error| wrong(error.into()))?;
            classes = columns;
            rows.extend(values);
        }
        let logits = Logits::from_rows(classes, rows).unwrap_or_default();
        let losses = logits.rows().zip(&samples.labels).map(|(row, label)| objective.loss(row, *label)).collect();
        Ok(Evaluation { logits, losses })
    }

    /// The model with lambdas that gradients reach.
    ///
    /// # Errors
    /// [`LearnError`]: the model cannot be built.
    pub fn differentiable(&self) -> Result<Differentiable<'i>, LearnError> {
        let wrong = |source| LearnError::model(self.path(), source);
        let zero = || Var::from_tensor(&Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?);
        let variables = (0..self.lambdas).map(|_| zero()).collect::<candle_core::Result<Vec<_>>>();
        let variables = variables.map_err(|error| wrong(error.into()))?;
        let mut branches = Branches::default();
        for layer in &self.layers {
            let aux = &self.pathway.aux[layer.aux].tensors;
            branches.learn(layer.name.clone(), aux, layer.tensor, variables[layer.group].as_tensor());
        }
        let load = Load { branches, kernels: Kernels::Candle, ..Load::new(&Device::Cpu) };
        let vit = Vit::load(self.config, &self.pathway.target.tensors, &load).map_err(wrong)?;
        Ok(Differentiable { vit, variables, path: self.path().to_owned() })
    }
}

/// A model with lambdas that gradients reach.
#[derive(Debug)]
pub struct Differentiable<'c> {
    vit: Vit<'c>,
    variables: Vec<Var>,
    path: std::path::PathBuf,
}

/// What a batch says of the lambdas.
#[derive(Clone, Debug)]
pub struct Slope {
    /// The mean loss.
    pub loss: f64,
    /// Its gradient with respect to each lambda.
    pub gradients: Vec<f64>,
    /// How many of the predictions are right.
    pub right: usize,
}

impl Differentiable<'_> {
    /// The mean loss of these samples, and its gradient.
    ///
    /// # Errors
    /// [`LearnError`]: the samples do not fit the model.
    pub fn slope(&self, values: &[f32], batch: &Samples, objective: Objective) -> Result<Slope, LearnError> {
        let compute = || {
            for (variable, &value) in self.variables.iter().zip(values) {
                variable.set(&Tensor::new(&[value], &Device::Cpu)?)?;
            }
            let [channels, height, width] = batch.shape;
            let images = Tensor::from_slice(&batch.data, (batch.len(), channels, height, width), &Device::Cpu)?;
            let logits = self.vit.forward(&images)?;
            let rows = logits.to_vec2::<f32>()?;
            let count = batch.len() as f64;
            let (mut loss, mut right, mut slopes) = (0.0, 0, Vec::with_capacity(rows.len()));
            for (row, label) in rows.iter().zip(&batch.labels) {
                loss += objective.loss(row, *label) / count;
                right += usize::from(label.is_some() && crate::verify::statistics::prediction(row) == *label);
                slopes.extend(objective.gradient(row, *label).iter().map(|slope| (slope / count) as f32));
            }
            // A sum whose gradient with respect to the logits is that of the loss, which is computed in float64.
            let slopes = Tensor::from_vec(slopes, logits.shape(), &Device::Cpu)?;
            let gradients = (logits * slopes)?.sum_all()?.backward()?;
            let gradients = self.variables.iter().map(|variable| match gradients.get(variable.as_tensor()) {
                Some(gradient) => Ok(f64::from(gradient.squeeze(0)?.to_scalar::<f32>()?)),
                None => Ok(0.0),
            });
            Ok(Slope { loss, gradients: gradients.collect::<candle_core::Result<_>>()?, right })
        };
        compute().map_err(|error: candle_core::Error| LearnError::model(&self.path, error))
    }
}
