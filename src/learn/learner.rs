//! A target whose lambdas can be changed.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::trained::{Train, Trained};
use super::{LearnError, Objective, Samples};
use crate::checkpoint::StateDict;
use crate::engine::{Progress, has_non_finite};
use crate::error::{Error, NonFiniteOrigin};
use crate::model::{Branches, Config, Load, Training, Variable, Vit};
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

/// The layers of a target that have an auxiliary weight, and what is learned: the lambdas that they share, and parameters of the
/// target's own ([`Learner::train`]).
///
/// `values` of what is learned are the lambdas, and behind them the numbers of these parameters, one after the other.
#[derive(Debug)]
pub struct Learner<'p, 'i> {
    pathway: &'p Pathway<'i>,
    config: &'p Config,
    layers: Vec<Learned>,
    lambdas: usize,
    trained: Vec<Trained>,
    device: Device,
    again: bool,
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
    /// [`LearnError`]: the target has no head, or pathways of its own; [`Error::NonFinite`] for an auxiliary weight with NaN or infinity.
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
                finite(&pathway.aux[aux].tensors, tensor)?;
                layers.push(Learned { name: name.to_owned(), id, parameter, aux, tensor, group });
            }
        }
        let (trained, device) = (Vec::new(), Device::Cpu);
        Ok(Learner { pathway, config, layers, lambdas: groups.len(), trained, device, again: false })
    }

    /// Parameters of the target are learned, too.
    ///
    /// # Errors
    /// [`LearnError`]: there are none such, or they cannot be read.
    pub fn train(mut self, what: Train) -> Result<Self, LearnError> {
        self.trained = Trained::of(&self.pathway.target.tensors, self.config, what, self.lambdas)?;
        Ok(self)
    }

    /// Where it runs; on the CPU, if nothing is said.
    #[must_use]
    pub fn on(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Whether blocks are run again on the way back, in place of keeping what they computed: a third more work, less memory.
    #[must_use]
    pub fn again(mut self, again: bool) -> Self {
        self.again = again;
        self
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

    /// The parameters of the target that are learned.
    #[must_use]
    pub fn trained(&self) -> &[Trained] {
        &self.trained
    }

    /// How many numbers are learned.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.trained.last().map_or(self.lambdas, |last| last.range().end)
    }

    /// How many of them, from the first, weight decay is for: not biases and normalisations.
    #[must_use]
    pub(super) fn decaying(&self) -> usize {
        self.trained
            .iter()
            .filter(|trained| trained.decays())
            .map(|trained| trained.range().end)
            .fold(self.lambdas, usize::max)
    }

    /// The values with that lambda everywhere, and the target's own parameters.
    #[must_use]
    pub fn start(&self, lambda: f32) -> Vec<f32> {
        let own = self.trained.iter().flat_map(|trained| trained.start());
        std::iter::repeat_n(lambda, self.lambdas).chain(own.copied()).collect()
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

    /// The lambda of each layer with the auxiliary of that number, from 0, by the layer's module name as `fold` reads it; `values` are
    /// all that is learned, or the lambdas alone.
    pub fn entries<'a>(&'a self, aux: usize, values: &'a [f32]) -> impl Iterator<Item = (&'a str, LayerId, f32)> {
        let layers = self.layers.iter().filter(move |layer| layer.aux == aux && layer.parameter == Parameter::Weight);
        layers.map(|layer| (layer.name.strip_suffix(".weight").unwrap_or(&layer.name), layer.id, values[layer.group]))
    }

    /// Bytes that fitting takes, beyond the samples, about: the folded weights, those for evaluation, what is learned, and what a batch
    /// leaves behind for the backward pass. Weights of float32 stay in the maps of their files.
    #[must_use]
    pub fn bytes(&self, batch: usize) -> u64 {
        let Config { width, hidden, depth, heads, .. } = *self.config;
        let weights: u64 = self.pathway.target.tensors.specs().iter().map(|spec| spec.numel() as u64 * 4).sum();
        let tokens = self.config.patches() + self.config.prefix();
        // Of a block: its input, qkv, what attention mixed, between attention and MLP, and inside of the MLP.
        let block = tokens * (6 * width + hidden);
        let passing = tokens * (4 * width + 2 * hidden);
        // On a GPU nothing is in a map. Through candle's gradients, every operation leaves what it computed.
        let copies = if self.device.is_cpu() { 2 } else { 3 + self.pathway.aux.len() as u64 };
        let block = match self.device.is_cpu() && self.config.plain_blocks() {
            true => block,
            false => 5 * block + 4 * heads * tokens * tokens,
        };
        let kept = if self.again { depth * tokens * width + block } else { depth * block };
        // Values, best values, two moments and gradients, and the same once more while an epoch is under way.
        let own = (self.numbers() - self.lambdas) as u64 * 160;
        weights * copies + own + (batch * (kept + passing) * 4) as u64
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
        for trained in &self.trained {
            branches.replace(trained.name(), values[trained.range()].to_vec());
        }
        let load = Load { branches, fold: true, ..Load::new(&self.device) };
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
                let images = Tensor::from_slice(part, (part.len() / size, channels, height, width), &self.device)?;
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

    /// The model with what is learned, for gradients.
    ///
    /// # Errors
    /// [`LearnError`]: the model cannot be built.
    pub fn differentiable(&self) -> Result<Differentiable<'i>, LearnError> {
        let wrong = |source| LearnError::model(self.path(), source);
        let variable = |first: usize, shape: &[usize]| {
            Variable::new(first, shape, &self.device).map_err(|error| wrong(error.into()))
        };
        let lambdas = (0..self.lambdas).map(|first| variable(first, &[1])).collect::<Result<Vec<_>, _>>()?;
        let mut branches = Branches::default();
        for layer in &self.layers {
            let aux = &self.pathway.aux[layer.aux].tensors;
            branches.learn(layer.name.clone(), aux, layer.tensor, &lambdas[layer.group]);
        }
        let mut variables = lambdas;
        for trained in &self.trained {
            let own = variable(trained.range().start, trained.shape())?;
            branches.train(trained.name(), &own);
            variables.push(own);
        }
        let load = Load { branches, ..Load::new(&self.device) };
        let vit = Vit::load(self.config, &self.pathway.target.tensors, &load).map_err(wrong)?;
        let training = Training::new(variables, self.again);
        Ok(Differentiable { vit, training, device: self.device.clone(), path: self.path().to_owned() })
    }
}

/// Refuses NaN and infinity, as the fold of the tensor would.
fn finite(tensors: &StateDict<'_>, index: usize) -> Result<(), LearnError> {
    let data = tensors.tensor(index)?;
    let mut bad = false;
    data.view().for_each_piece(&mut Vec::new(), |bytes| bad |= has_non_finite(data.dtype(), bytes));
    if bad {
        let (tensor, path) = (tensors.specs()[index].name.clone(), tensors.checkpoint().path().to_owned());
        return Err(Error::NonFinite { tensor: tensor.clone(), origin: NonFiniteOrigin::Input { path, tensor } }.into());
    }
    Ok(())
}

/// A model with what is learned of it.
#[derive(Debug)]
pub struct Differentiable<'c> {
    vit: Vit<'c>,
    training: Training,
    device: Device,
    path: std::path::PathBuf,
}

/// What a batch says of what is learned.
#[derive(Clone, Debug)]
pub struct Slope {
    /// The mean loss.
    pub loss: f64,
    /// Its gradient with respect to each value.
    pub gradients: Vec<f64>,
    /// How many of the predictions are right.
    pub right: usize,
}

impl Differentiable<'_> {
    /// The same, with all gradients through candle's own operations: slow on the CPU, and a second opinion.
    #[must_use]
    pub fn composed(self) -> Self {
        Differentiable { training: self.training.composed(), ..self }
    }

    /// The mean loss of these samples, and its gradient.
    ///
    /// # Errors
    /// [`LearnError`]: the samples do not fit the model.
    pub fn slope(&self, values: &[f32], batch: &Samples, objective: Objective) -> Result<Slope, LearnError> {
        let [channels, height, width] = batch.shape;
        let classes = self.vit.config().classes.unwrap_or_default().max(1);
        let count = batch.len() as f64;
        // The loss is computed in float64.
        let slopes = |first: usize, logits: &[f32]| {
            let rows = logits.chunks(classes).zip(&batch.labels[first..]);
            let gradients = rows.flat_map(|(row, label)| objective.gradient(row, *label));
            gradients.map(|slope| (slope / count) as f32).collect()
        };
        let images = Tensor::from_slice(&batch.data, (batch.len(), channels, height, width), &self.device);
        let run = images.and_then(|images| self.vit.gradients(&self.training, values, &images, &slopes));
        let run = run.map_err(|error| LearnError::model(&self.path, error))?;
        let (mut loss, mut right) = (0.0, 0);
        for (row, label) in run.logits.chunks(classes).zip(&batch.labels) {
            loss += objective.loss(row, *label) / count;
            right += usize::from(label.is_some() && crate::verify::statistics::prediction(row) == *label);
        }
        Ok(Slope { loss, gradients: run.gradients, right })
    }
}
