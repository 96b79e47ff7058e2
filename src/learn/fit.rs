//! Following the gradient, and searching without one.

use super::learner::Learner;
use super::{Augment, LearnError, Method, Objective, Optimizer, Samples, clip, cosine};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::shuffle;
use crate::engine::Progress;
use crate::error::Error;
use crate::verify::VerifyError;

/// How lambdas are fitted.
#[derive(Clone, Debug, Serialize)]
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
    /// How steps are taken.
    pub method: Method,
    /// What is done to samples before each step.
    pub augment: Augment,
    /// Weight decay toward 0.
    pub weight_decay: f64,
    /// The weight of the sum of |lambda| in the loss.
    pub l1: f64,
    /// No |lambda| becomes larger.
    pub max_abs: f64,
    /// The largest norm of a gradient.
    pub clip: f64,
    /// Epochs without a smaller loss on the samples that choose the epoch, after which it ends.
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
            method: Method::AdamW,
            augment: Augment::default(),
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
        if let Method::Sgd { momentum } = self.method
            && !(0.0..1.0).contains(&momentum)
        {
            return wrong("momentum has to be 0 or more, and less than 1");
        }
        if self.augment.crop > Augment::MAX_CROP {
            return wrong(&format!("samples can be moved by {} pixels at most", Augment::MAX_CROP));
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1; 0 is before the first step.
    pub epoch: usize,
    /// Steps so far.
    pub steps: usize,
    /// The learning rate of its last step.
    pub lr: f64,
    /// The mean loss of its steps; `None` before the first.
    pub fit_loss: Option<f64>,
    /// The part of the fitted samples that was predicted right on the way.
    pub fit_accuracy: Option<f64>,
    /// The loss on the samples that choose the epoch.
    pub stop_loss: f64,
    /// The part of these that is predicted right; `None` without labels.
    pub stop_accuracy: Option<f64>,
    /// The lambdas after it, each exactly a float32.
    pub lambdas: Vec<f64>,
}

/// Where fitting is after an epoch: enough to go on as if it had not been interrupted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    epoch: usize,
    values: Vec<f64>,
    optimizer: Optimizer,
    best: usize,
    best_loss: f64,
    best_values: Vec<f64>,
    losses: Vec<f64>,
}

impl State {
    /// The epoch that is done.
    #[must_use]
    pub fn epoch(&self) -> usize {
        self.epoch
    }

    /// Checks that it can be where a run of these options is, whatever was done to the file that it comes from.
    fn check(&self, numbers: usize, lambdas: usize, options: &FitOptions, steps: usize) -> Result<(), LearnError> {
        let wrong = |what: &str| Err(LearnError::State { what: what.to_owned() });
        if [self.values.len(), self.best_values.len(), self.optimizer.parameters()] != [numbers; 3] {
            return wrong("other numbers are learned");
        }
        if self.epoch > options.epochs || self.best > self.epoch {
            return wrong("it is past the last epoch");
        }
        if !self.optimizer.is_of(options.method, options.weight_decay, self.losses.len()) {
            return wrong("its optimizer is another one");
        }
        if Some(self.losses.len()) != self.epoch.checked_mul(steps) {
            return wrong("its steps are not those of its epochs");
        }
        let exact = |value: &f64| f64::from(*value as f32) == *value && value.is_finite();
        if !self.values.iter().chain(&self.best_values).all(exact) || !self.best_loss.is_finite() {
            return wrong("a number is no float32, or not finite");
        }
        // The bound is rounded to float32 when it is applied.
        let bound = f64::from(options.max_abs as f32).max(options.max_abs);
        let bounded = |values: &[f64]| values[..lambdas].iter().all(|value| value.abs() <= bound);
        if !bounded(&self.values) || !bounded(&self.best_values) {
            return wrong("a lambda is past the largest");
        }
        Ok(())
    }

    fn fitted(&self, ended: Ended, seconds: f64) -> Fitted {
        let values = self.best_values.iter().map(|&value| value as f32).collect();
        Fitted { values, best: self.best, ended, losses: self.losses.clone(), seconds }
    }
}

/// Why fitting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All epochs are done.
    Done,
    /// The loss on the samples that choose the epoch did not fall any more.
    Early,
    /// It was asked to stop.
    Cancelled,
    /// The loss of that step, from 1, or its gradient was NaN or infinite.
    NotFinite(usize),
}

/// What came of fitting.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// What is learned, with the smallest loss on the samples that choose the epoch: the lambdas, then the parameters of the target.
    pub values: Vec<f32>,
    /// The epoch that they are from.
    pub best: usize,
    /// Why it ended.
    pub ended: Ended,
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// Seconds that the steps took that were made now, without those of evaluating.
    pub seconds: f64,
}

/// How a lambda for all layers is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The best of 21 from `-max_abs` to `max_abs`.
    Grid,
    /// Golden sections between them, 24 times, which supposes one valley.
    Golden,
}

/// What hears of every epoch, and can keep where it is.
pub type Heard<'a> = dyn FnMut(&Epoch, &State) -> Result<(), LearnError> + 'a;

impl Learner<'_, '_> {
    /// Follows the gradient on `fit`, and keeps the lambdas that are best on `stop` after an epoch: samples that take no part in the
    /// gradient, and should take none in the judgement. `each` hears of every epoch. Progress counts samples; asked to stop, it ends
    /// with the best so far. With `from`, what `each` heard after an epoch, it goes on from there.
    ///
    /// The same options, samples and number of threads give the same lambdas, in one go or several.
    ///
    /// # Errors
    /// [`LearnError`].
    pub fn fit(
        &self,
        fit: &Samples,
        stop: &Samples,
        options: &FitOptions,
        from: Option<State>,
        progress: &mut dyn Progress,
        each: &mut Heard<'_>,
    ) -> Result<Fitted, LearnError> {
        options.check()?;
        let model = self.differentiable()?;
        let rounded = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let mut state = match from {
            Some(state) => {
                state.check(self.numbers(), self.lambdas(), options, fit.len().div_ceil(options.batch))?;
                progress.advance(state.epoch.saturating_mul(fit.len()) as u64);
                state
            }
            None => self.first(stop, options, progress, each)?,
        };
        let mut order: Vec<usize> = (0..fit.len()).collect();
        let seed = |number: usize| options.seed.unwrap_or_default().wrapping_add(number as u64);
        let steps = fit.len().div_ceil(options.batch).saturating_mul(options.epochs);
        let mut seconds = 0.0;
        for number in 1..=options.epochs {
            if options.seed.is_some() {
                shuffle(&mut order, seed(number));
            }
            if number <= state.epoch {
                continue;
            }
            if number > state.best.saturating_add(options.patience) {
                return Ok(state.fitted(Ended::Early, seconds));
            }
            let (mut loss, mut right, mut lr) = (0.0, 0, options.lr);
            // What an interrupted epoch did is not kept.
            let mut next = state.clone();
            for part in order.chunks(options.batch) {
                if progress.cancelled() {
                    return Ok(state.fitted(Ended::Cancelled, seconds));
                }
                let begin = Instant::now();
                let batch = fit.augmented(part, options.augment, seed(number));
                let slope = model.slope(&rounded(&next.values), &batch, options.objective)?;
                let mut gradients = slope.gradients;
                let moved =
                    gradients.iter_mut().zip(&next.values[..self.lambdas()]).filter(|(_, value)| **value != 0.0);
                moved.for_each(|(gradient, value)| *gradient += options.l1 * value.signum());
                if !slope.loss.is_finite() || gradients.iter().any(|gradient| !gradient.is_finite()) {
                    return Ok(state.fitted(Ended::NotFinite(next.losses.len() + 1), seconds));
                }
                clip(&mut gradients, options.clip);
                lr = cosine(options.lr, next.losses.len(), steps);
                next.optimizer.step(&mut next.values, &gradients, lr);
                let bounded = |value: f64| f64::from(value.clamp(-options.max_abs, options.max_abs) as f32);
                let (lambdas, others) = next.values.split_at_mut(self.lambdas());
                lambdas.iter_mut().for_each(|value| *value = bounded(*value));
                others.iter_mut().for_each(|value| *value = f64::from(*value as f32));
                next.losses.push(slope.loss);
                loss += slope.loss * part.len() as f64;
                right += slope.right;
                seconds += begin.elapsed().as_secs_f64();
                progress.advance(part.len() as u64);
            }
            let evaluated = match self.evaluate(&rounded(&next.values), stop, options.objective, progress) {
                Err(LearnError::Verify(VerifyError::File(error))) if matches!(*error, Error::Cancelled) => {
                    return Ok(state.fitted(Ended::Cancelled, seconds));
                }
                evaluated => evaluated?,
            };
            if !evaluated.loss().is_finite() {
                return Ok(state.fitted(Ended::NotFinite(next.losses.len()), seconds));
            }
            next.epoch = number;
            if evaluated.loss() < next.best_loss {
                (next.best, next.best_loss, next.best_values) = (number, evaluated.loss(), next.values.clone());
            }
            state = next;
            let epoch = Epoch {
                epoch: number,
                steps: state.losses.len(),
                lr,
                fit_loss: Some(loss / fit.len() as f64),
                fit_accuracy: Some(right as f64 / fit.len() as f64),
                stop_loss: evaluated.loss(),
                stop_accuracy: evaluated.accuracy(stop.labels()),
                lambdas: state.values[..self.lambdas()].to_vec(),
            };
            each(&epoch, &state)?;
        }
        Ok(state.fitted(Ended::Done, seconds))
    }

    /// Before the first step.
    fn first(
        &self,
        stop: &Samples,
        options: &FitOptions,
        progress: &dyn Progress,
        each: &mut Heard<'_>,
    ) -> Result<State, LearnError> {
        let start = self.start(options.init);
        let evaluated = self.evaluate(&start, stop, options.objective, progress)?;
        if !evaluated.loss().is_finite() {
            return Err(LearnError::NotFinite);
        }
        let values: Vec<f64> = start.into_iter().map(f64::from).collect();
        let state = State {
            epoch: 0,
            optimizer: Optimizer::new(options.method, values.len(), options.weight_decay).decaying(self.decaying()),
            best: 0,
            best_loss: evaluated.loss(),
            best_values: values.clone(),
            losses: Vec::new(),
            values,
        };
        let epoch = Epoch {
            epoch: 0,
            steps: 0,
            lr: options.lr,
            fit_loss: None,
            fit_accuracy: None,
            stop_loss: evaluated.loss(),
            stop_accuracy: evaluated.accuracy(stop.labels()),
            lambdas: state.values[..self.lambdas()].to_vec(),
        };
        each(&epoch, &state)?;
        Ok(state)
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
            let values = self.start(lambda as f32);
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
