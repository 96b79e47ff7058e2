//! AdamW and SGD, clipping and a schedule, in PyTorch's order of operations; float64 inside.

use serde::{Deserialize, Serialize};

/// How steps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Method {
    /// PyTorch's `torch.optim.AdamW`: betas 0.9 and 0.999, epsilon 1e-8; the decay is apart from the gradient.
    #[default]
    AdamW,
    /// PyTorch's `torch.optim.SGD`: the decay is part of the gradient.
    Sgd {
        /// The part of the last step that is taken again.
        momentum: f64,
    },
}

/// An optimizer and what it remembers: enough to go on from as if nothing had happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    method: Method,
    weight_decay: f64,
    /// How many parameters, from the first, it is for.
    decaying: usize,
    steps: i32,
    /// The mean of gradients; the last step, for SGD.
    first: Vec<f64>,
    /// The mean of their squares.
    second: Vec<f64>,
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

impl Optimizer {
    /// For that many parameters.
    #[must_use]
    pub fn new(method: Method, parameters: usize, weight_decay: f64) -> Optimizer {
        Optimizer {
            method,
            weight_decay,
            decaying: parameters,
            steps: 0,
            first: vec![0.0; parameters],
            second: vec![0.0; parameters],
        }
    }

    /// Weight decay is for so many parameters, from the first.
    #[must_use]
    pub fn decaying(mut self, parameters: usize) -> Optimizer {
        self.decaying = parameters;
        self
    }

    /// For how many parameters it is.
    pub(super) fn parameters(&self) -> usize {
        self.first.len().min(self.second.len())
    }

    /// Whether it can be one of these options after so many steps.
    pub(super) fn is_of(&self, method: Method, weight_decay: f64, steps: usize) -> bool {
        let moments =
            self.first.iter().all(|x| x.is_finite()) && self.second.iter().all(|x| x.is_finite() && *x >= 0.0);
        moments
            && self.method == method
            && self.weight_decay == weight_decay
            && usize::try_from(self.steps).ok() == Some(steps)
    }

    /// One step, of AdamW: decay, moments, their bias corrections, update.
    pub fn step(&mut self, values: &mut [f64], gradients: &[f64], lr: f64) {
        self.steps = self.steps.saturating_add(1);
        let corrected = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (number, ((value, gradient), (first, second))) in values.iter_mut().zip(gradients).zip(moments).enumerate()
        {
            let weight_decay = if number < self.decaying { self.weight_decay } else { 0.0 };
            match self.method {
                Method::AdamW => {
                    *value *= 1.0 - lr * weight_decay;
                    *first += (gradient - *first) * (1.0 - BETAS.0);
                    *second = *second * BETAS.1 + (1.0 - BETAS.1) * gradient * gradient;
                    *value -= lr / corrected.0 * *first / (second.sqrt() / corrected.1.sqrt() + EPSILON);
                }
                Method::Sgd { momentum } => {
                    let gradient = gradient + weight_decay * *value;
                    *first = if self.steps == 1 { gradient } else { momentum * *first + gradient };
                    *value -= lr * *first;
                }
            }
        }
    }
}

/// Scales gradients to a norm of at most `limit`, as `torch.nn.utils.clip_grad_norm_`; returns the norm before.
pub fn clip(gradients: &mut [f64], limit: f64) -> f64 {
    let norm = gradients.iter().map(|g| g * g).sum::<f64>().sqrt();
    let scale = limit / (norm + 1e-6);
    if scale < 1.0 {
        gradients.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

/// Half a cosine from `lr` at step 0 to 0 at step `steps`, as `torch.optim.lr_scheduler.CosineAnnealingLR`.
#[must_use]
pub fn cosine(lr: f64, step: usize, steps: usize) -> f64 {
    lr * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps.max(1) as f64).cos())
}
