//! Following the gradient, and searching without one.

use super::learner::Learner;
use super::{AdamW, LearnError, Objective, Samples, clip, cosine};
use crate::data::shuffle;
use crate::engine::Progress;
use crate::error::Error;
use crate::verify::VerifyError;

/// How lambdas are fitted.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// What is to become small.
    pub objective: Objective,
    /// The first lambda.
    pub init: f32,
    /// The learning rate of the first step; it falls to 0 along half a cosine.
    pub lr: f64,
    /// How often each sample is seen.
    pub epochs: usize,
    /// Samples for each step.
    pub batch: usize,
    /// The seed of the order of the samples; without one they are taken in order.
    pub seed: Option<u64>,
    /// AdamW's weight decay toward 0.
    pub weight_decay: f64,
    /// The weight of the sum of |lambda| in the loss.
    pub l1: f64,
    /// No |lambda| becomes larger.
    pub max_abs: f64,
    /// The largest norm of a gradient.
    pub clip: f64,
    /// Epochs without a smaller held-out loss, after which it ends.
    pub patience: usize,
}

impl Default for FitOptions {
    fn default() -> FitOptions {
        FitOptions {
            objective: Objective::CrossEntropy,
            init: 0.0,
            lr: 0.01,
            epochs: 20,
            batch: 32,
            seed: Some(0),
            weight_decay: 0.01,
            l1: 0.0,
            max_abs: 1.0,
            clip: 1.0,
            patience: 5,
        }
    }
}

impl FitOptions {
    /// # Errors
    /// [`LearnError::Option`] for a number that makes no sense.
    pub fn check(&self) -> Result<(), LearnError> {
        let wrong = |text: &str| Err(LearnError::Option(text.to_owned()));
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.lr) || !positive(self.max_abs) || !positive(self.clip) {
            return wrong("the learning rate, the largest |lambda| and the largest gradient have to be above 0");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite() && self.l1 >= 0.0 && self.l1.is_finite()) {
            return wrong("weight decay and L1 have to be 0 or more");
        }
        if self.epochs == 0 || self.batch == 0 || self.patience == 0 {
            return wrong("epochs, batch and patience have to be 1 or more");
        }
        if !self.init.is_finite() || f64::from(self.init.abs()) > self.max_abs {
            return wrong("the first lambda is larger than the largest |lambda|");
        }
        Ok(())
    }
}

/// What an epoch brought.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Its number, from 1; 0 is before the first step.
    pub epoch: usize,
    /// Steps so far.
    pub steps: usize,
    /// The mean loss of its steps; NaN before the first.
    pub fit_loss: f64,
    /// The part of the fitted samples that was predicted right on the way.
    pub fit_accuracy: f64,
    /// The loss on the held-out samples.
    pub held_out_loss: f64,
    /// The part of the held-out samples that is predicted right; `None` without labels.
    pub held_out_accuracy: Option<f64>,
    /// The learning rate of its last step.
    pub lr: f64,
    /// The largest |lambda|.
    pub largest: f32,
}

/// Why fitting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All epochs are done.
    Done,
    /// The held-out loss did not fall any more.
    Early,
    /// It was asked to stop.
    Cancelled,
    /// The loss of that step, from 1, or its gradient was NaN or infinite.
    NotFinite(usize),
}

/// What came of fitting.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The lambdas with the smallest held-out loss.
    pub lambdas: Vec<f32>,
    /// The epoch that they are from.
    pub best: usize,
    /// Why it ended.
    pub ended: Ended,
    /// The loss of each step.
    pub losses: Vec<f64>,
}

/// How a lambda for all layers is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The best of 21 from `-max_abs` to `max_abs`.
    Grid,
    /// Golden sections between them, 24 times, which supposes one valley.
    Golden,
}

/// What hears of every epoch, with the lambdas after it.
pub type Heard<'a> = dyn FnMut(&Epoch, &[f32]) -> Result<(), LearnError> + 'a;

impl Learner<'_, '_> {
    /// Follows the gradient on `fit`, and keeps the lambdas that are best on `held_out` after an epoch. `each` hears of every
    /// epoch. Progress counts samples; asked to stop, it ends with the best so far.
    ///
    /// The same options, samples and number of threads give the same lambdas.
    ///
    /// # Errors
    /// [`LearnError`].
    pub fn fit(
        &self,
        fit: &Samples,
        held_out: &Samples,
        options: &FitOptions,
        progress: &mut dyn Progress,
        each: &mut Heard<'_>,
    ) -> Result<Fitted, LearnError> {
        options.check()?;
        let model = self.differentiable()?;
        let mut values = vec![f64::from(options.init); self.lambdas()];
        let rounded = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let first = self.evaluate(&rounded(&values), held_out, options.objective, progress)?;
        if !first.loss().is_finite() {
            return Err(LearnError::NotFinite);
        }
        let mut epoch = Epoch {
            epoch: 0,
            steps: 0,
            fit_loss: f64::NAN,
            fit_accuracy: f64::NAN,
            held_out_loss: first.loss(),
            held_out_accuracy: first.accuracy(held_out.labels()),
            lr: options.lr,
            largest: options.init.abs(),
        };
        each(&epoch, &rounded(&values))?;
        let (mut smallest, mut order) = (first.loss(), (0..fit.len()).collect::<Vec<_>>());
        let mut fitted = Fitted { lambdas: rounded(&values), best: 0, ended: Ended::Done, losses: Vec::new() };
        let mut optimizer = AdamW::new(values.len(), options.weight_decay);
        let steps = fit.len().div_ceil(options.batch) * options.epochs;
        for number in 1..=options.epochs {
            if let Some(seed) = options.seed {
                shuffle(&mut order, seed.wrapping_add(number as u64));
            }
            let (mut loss, mut right) = (0.0, 0);
            for part in order.chunks(options.batch) {
                if progress.cancelled() {
                    fitted.ended = Ended::Cancelled;
                    return Ok(fitted);
                }
                let slope = model.slope(&rounded(&values), fit, part, options.objective)?;
                let mut gradients = slope.gradients;
                gradients
                    .iter_mut()
                    .zip(&values)
                    .filter(|(_, v)| **v != 0.0)
                    .for_each(|(g, v)| *g += options.l1 * v.signum());
                if !slope.loss.is_finite() || gradients.iter().any(|gradient| !gradient.is_finite()) {
                    fitted.ended = Ended::NotFinite(fitted.losses.len() + 1);
                    return Ok(fitted);
                }
                clip(&mut gradients, options.clip);
                epoch.lr = cosine(options.lr, fitted.losses.len(), steps);
                optimizer.step(&mut values, &gradients, epoch.lr);
                values.iter_mut().for_each(|v| *v = f64::from(v.clamp(-options.max_abs, options.max_abs) as f32));
                fitted.losses.push(slope.loss);
                loss += slope.loss * part.len() as f64;
                right += slope.right;
                progress.advance(part.len() as u64);
            }
            let held = match self.evaluate(&rounded(&values), held_out, options.objective, progress) {
                Err(LearnError::Verify(VerifyError::File(error))) if matches!(*error, Error::Cancelled) => {
                    fitted.ended = Ended::Cancelled;
                    return Ok(fitted);
                }
                held => held?,
            };
            epoch = Epoch {
                epoch: number,
                steps: fitted.losses.len(),
                fit_loss: loss / fit.len() as f64,
                fit_accuracy: right as f64 / fit.len() as f64,
                held_out_loss: held.loss(),
                held_out_accuracy: held.accuracy(held_out.labels()),
                lr: epoch.lr,
                largest: values.iter().fold(0.0, |largest: f64, v| largest.max(v.abs())) as f32,
            };
            each(&epoch, &rounded(&values))?;
            if held.loss() < smallest {
                (smallest, fitted.best, fitted.lambdas) = (held.loss(), number, rounded(&values));
            } else if number >= fitted.best + options.patience && number < options.epochs {
                fitted.ended = Ended::Early;
                break;
            }
        }
        Ok(fitted)
    }

    /// The lambda for all layers with the smallest loss on `samples`, with forward passes only. 0 is always tried.
    ///
    /// # Errors
    /// [`LearnError`].
    pub fn search(
        &self,
        samples: &Samples,
        search: Search,
        options: &FitOptions,
        progress: &mut dyn Progress,
    ) -> Result<f32, LearnError> {
        options.check()?;
        let mut loss = |lambda: f64| -> Result<f64, LearnError> {
            let values = vec![lambda as f32; self.lambdas()];
            let loss = self.evaluate(&values, samples, options.objective, progress)?.loss();
            progress.advance(1);
            Ok(if loss.is_finite() { loss } else { f64::INFINITY })
        };
        let mut best = (loss(0.0)?, 0.0);
        if best.0 == f64::INFINITY {
            return Err(LearnError::NotFinite);
        }
        let mut take = |lambda: f64| -> Result<f64, LearnError> {
            let loss = loss(lambda)?;
            if loss < best.0 {
                best = (loss, lambda);
            }
            Ok(loss)
        };
        let bound = options.max_abs;
        match search {
            Search::Grid => {
                for step in (-10..=10).filter(|step| *step != 0) {
                    take(bound * f64::from(step) / 10.0)?;
                }
            }
            Search::Golden => {
                let ratio = (5f64.sqrt() - 1.0) / 2.0;
                let (mut low, mut high) = (-bound, bound);
                let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
                let (mut at_left, mut at_right) = (take(left)?, take(right)?);
                for _ in 0..22 {
                    if at_left < at_right {
                        (high, right, at_right) = (right, left, at_left);
                        left = high - ratio * (high - low);
                        at_left = take(left)?;
                    } else {
                        (low, left, at_left) = (left, right, at_right);
                        right = low + ratio * (high - low);
                        at_right = take(right)?;
                    }
                }
            }
        }
        Ok(best.1 as f32)
    }
}

impl Samples {
    /// Checks that the samples have what the objective needs.
    ///
    /// # Errors
    /// [`LearnError::NoLabel`], [`LearnError::Label`].
    pub fn check(&self, objective: Objective, classes: usize) -> Result<(), LearnError> {
        for (name, label) in self.names.iter().zip(&self.labels) {
            match label {
                None if objective == Objective::CrossEntropy => {
                    return Err(LearnError::NoLabel { name: name.clone() });
                }
                Some(label) if *label >= classes => {
                    return Err(LearnError::Label { name: name.clone(), label: *label, classes });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
