//! AdamW, clipping and a schedule, in PyTorch's order of operations; float64 inside.

/// PyTorch's `torch.optim.AdamW`: betas 0.9 and 0.999, epsilon 1e-8.
#[derive(Clone, Debug)]
pub struct AdamW {
    weight_decay: f64,
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

impl AdamW {
    /// For that many parameters.
    #[must_use]
    pub fn new(parameters: usize, weight_decay: f64) -> AdamW {
        AdamW { weight_decay, steps: 0, first: vec![0.0; parameters], second: vec![0.0; parameters] }
    }

    /// One step: decay, moments, their bias corrections, update.
    pub fn step(&mut self, values: &mut [f64], gradients: &[f64], lr: f64) {
        self.steps += 1;
        let corrected = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, gradient), (first, second)) in values.iter_mut().zip(gradients).zip(moments) {
            *value *= 1.0 - lr * self.weight_decay;
            *first += (gradient - *first) * (1.0 - BETAS.0);
            *second = *second * BETAS.1 + (1.0 - BETAS.1) * gradient * gradient;
            *value -= lr / corrected.0 * *first / (second.sqrt() / corrected.1.sqrt() + EPSILON);
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
