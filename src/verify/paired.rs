//! Two models on the same samples.

use super::statistics::{self, Interval};

/// A difference is called significant if it is less probable than this between equally good models.
pub const SIGNIFICANT: f64 = 0.05;

/// A sample of which two models predict different classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The number of the sample.
    pub sample: usize,
    /// The first model's prediction; `None` if its logits hold NaN.
    pub first: Option<usize>,
    /// The second model's.
    pub second: Option<usize>,
}

/// Samples of which the predictions of two models differ, in order.
#[must_use]
pub fn flips(first: &[Option<usize>], second: &[Option<usize>]) -> Vec<Flip> {
    let pairs = first.iter().zip(second).enumerate();
    pairs.filter(|(_, (a, b))| a != b).map(|(sample, (&first, &second))| Flip { sample, first, second }).collect()
}

/// How two models compare on samples with labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Samples that both get right.
    pub both: usize,
    /// Samples that the first gets right and the second wrong.
    pub only_first: usize,
    /// Samples that the second gets right and the first wrong.
    pub only_second: usize,
    /// Samples that both get wrong.
    pub neither: usize,
    /// Accuracy of the first less accuracy of the second; NaN of no samples.
    pub difference: f64,
    /// Its interval; see [`statistics::difference`].
    pub interval: Interval,
    /// The exact two-sided probability of McNemar's test; see [`statistics::mcnemar`].
    pub p: f64,
}

impl Paired {
    /// Compares predictions with labels, all in the order of the samples.
    #[must_use]
    pub fn new(first: &[Option<usize>], second: &[Option<usize>], labels: &[usize]) -> Paired {
        let mut table = [[0; 2]; 2];
        for ((first, second), label) in first.iter().zip(second).zip(labels) {
            table[usize::from(*first == Some(*label))][usize::from(*second == Some(*label))] += 1;
        }
        let [[neither, only_second], [only_first, both]] = table;
        let samples = neither + only_second + only_first + both;
        Paired {
            both,
            only_first,
            only_second,
            neither,
            difference: (only_first as f64 - only_second as f64) / samples as f64,
            interval: statistics::difference(only_first, only_second, samples),
            p: statistics::mcnemar(only_first, only_second),
        }
    }

    /// Whether the difference is larger than chance explains: `p` is below [`SIGNIFICANT`].
    #[must_use]
    pub fn significant(&self) -> bool {
        self.p < SIGNIFICANT
    }
}
