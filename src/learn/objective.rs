//! What is to become small.

use crate::verify::statistics::cross_entropy;

/// What is to become small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum Objective {
    /// Cross-entropy of the labels, in nats.
    #[default]
    CrossEntropy,
    /// Entropy of the predictions, in nats, which needs no labels (AdaMerging's).
    Entropy,
}

impl Objective {
    /// The loss of a row of logits, in float64; NaN without a label where one is needed.
    #[must_use]
    pub fn loss(self, logits: &[f32], label: Option<usize>) -> f64 {
        match self {
            Objective::CrossEntropy => label.map_or(f64::NAN, |label| cross_entropy(logits, label)),
            Objective::Entropy => entropy(&log_softmax(logits)),
        }
    }

    /// The loss's gradient with respect to the logits.
    pub(super) fn gradient(self, logits: &[f32], label: Option<usize>) -> Vec<f64> {
        let logs = log_softmax(logits);
        match self {
            Objective::CrossEntropy => {
                let own = |class| if Some(class) == label { 1.0 } else { 0.0 };
                logs.iter().enumerate().map(|(class, log)| log.exp() - own(class)).collect()
            }
            Objective::Entropy => {
                let entropy = entropy(&logs);
                logs.iter().map(|log| -log.exp() * (log + entropy)).collect()
            }
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted: Vec<f64> = logits.iter().map(|&x| f64::from(x) - f64::from(largest)).collect();
    let sum = shifted.iter().map(|x| x.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|x| x - sum).collect()
}

fn entropy(logs: &[f64]) -> f64 {
    // A probability of 0 adds nothing, where 0 times -infinity would be NaN.
    -logs.iter().filter(|log| **log != f64::NEG_INFINITY).map(|log| log.exp() * log).sum::<f64>()
}
