//! How often a model is right.

use std::collections::BTreeMap;

use super::Logits;
use super::statistics::{self, Interval};

/// How many classes the wider accuracy looks at.
pub const TOP: usize = 5;

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// How many are right.
    pub right: usize,
    /// Of how many.
    pub samples: usize,
}

impl Rate {
    /// The proportion, 0 to 1; NaN of no samples.
    #[must_use]
    pub fn value(self) -> f64 {
        self.right as f64 / self.samples as f64
    }

    /// Wilson's interval of it.
    #[must_use]
    pub fn interval(self) -> Interval {
        statistics::wilson(self.right, self.samples)
    }

    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.samples += 1;
    }
}

/// What a model makes of the samples of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassAccuracy {
    /// The class.
    pub class: usize,
    /// How many of its samples are recognised.
    pub rate: Rate,
    /// How many samples, of whatever class, are taken for it.
    pub predicted: usize,
}

/// How often a model is right, and what it takes for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Samples whose label has the largest logit.
    pub top1: Rate,
    /// Samples whose label is among the [`TOP`] largest; `None` for models with no more classes than that.
    pub top5: Option<Rate>,
    /// Mean cross-entropy in nats, and its interval, of the samples where it is finite; `None` if there are none.
    pub loss: Option<(f64, Option<Interval>)>,
    /// Samples whose cross-entropy is NaN or infinite.
    pub no_loss: usize,
    /// Each class that occurs as a label or a prediction, by number.
    pub classes: Vec<ClassAccuracy>,
    /// How often a label (first) gets a prediction (second); `None` is that of a sample whose logits hold NaN.
    pub confusion: BTreeMap<(usize, Option<usize>), usize>,
}

impl Accuracy {
    /// Scores logits against `labels`, one for each sample; a label that is no class of the model counts as wrong.
    #[must_use]
    pub fn new(logits: &Logits, labels: &[usize]) -> Accuracy {
        let (mut top1, mut top5) = (Rate::default(), Rate::default());
        let mut losses = Vec::with_capacity(labels.len());
        let mut confusion = BTreeMap::new();
        let mut classes: BTreeMap<usize, ClassAccuracy> = BTreeMap::new();
        for (row, &label) in logits.rows().zip(labels) {
            let prediction = statistics::prediction(row);
            top1.count(prediction == Some(label));
            top5.count(statistics::is_among_top(row, label, TOP));
            losses.push(statistics::cross_entropy(row, label));
            *confusion.entry((label, prediction)).or_default() += 1;
            classes.entry(label).or_default().rate.count(prediction == Some(label));
            if let Some(prediction) = prediction {
                classes.entry(prediction).or_default().predicted += 1;
            }
        }
        let all = losses.len();
        losses.retain(|loss| loss.is_finite());
        // Of few samples the normal distribution reaches below what a cross-entropy can be.
        let positive = |interval: Interval| Interval { low: interval.low.max(0.0), ..interval };
        Accuracy {
            top1,
            top5: (logits.classes() > TOP).then_some(top5),
            loss: statistics::mean(&losses).map(|(mean, interval)| (mean, interval.map(positive))),
            no_loss: all - losses.len(),
            classes: classes.into_iter().map(|(class, accuracy)| ClassAccuracy { class, ..accuracy }).collect(),
            confusion,
        }
    }

    /// The mistakes, the most frequent first: label, prediction, how often.
    #[must_use]
    pub fn mistakes(&self) -> Vec<(usize, Option<usize>, usize)> {
        let wrong = self.confusion.iter().filter(|((label, prediction), _)| *prediction != Some(*label));
        let mut mistakes: Vec<_> = wrong.map(|(&(label, prediction), &count)| (label, prediction, count)).collect();
        mistakes.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        mistakes
    }
}
