//! A matrix of logits.

use super::statistics;

/// The logits of some samples, in order: one row each, float32 as models compute them.
///
/// Takes four bytes for each sample and class: 200 MB for the 50,000 images and 1,000 classes of ImageNet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    classes: usize,
    values: Vec<f32>,
}

impl Logits {
    /// Rows one after another; `None` if they are not all whole.
    #[must_use]
    pub fn from_rows(classes: usize, values: Vec<f32>) -> Option<Logits> {
        let whole = if classes == 0 { values.is_empty() } else { values.len().is_multiple_of(classes) };
        whole.then_some(Logits { classes, values })
    }

    /// Appends whole rows, all with the same number of classes.
    pub(super) fn extend(&mut self, classes: usize, rows: &[f32]) {
        self.classes = classes;
        self.values.extend_from_slice(rows);
    }

    /// How many logits a row has.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.classes).unwrap_or(0)
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The logits of one sample.
    #[must_use]
    pub fn row(&self, sample: usize) -> &[f32] {
        &self.values[sample * self.classes..(sample + 1) * self.classes]
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.classes.max(1))
    }

    /// All logits, row after row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows with these numbers, in that order.
    #[must_use]
    pub fn select(&self, samples: &[usize]) -> Logits {
        let values = samples.iter().flat_map(|&sample| self.row(sample)).copied().collect();
        Logits { classes: self.classes, values }
    }

    /// The prediction of each sample; see [`statistics::prediction`].
    #[must_use]
    pub fn predictions(&self) -> Vec<Option<usize>> {
        self.rows().map(statistics::prediction).collect()
    }

    /// The samples whose logits are not all finite.
    #[must_use]
    pub fn non_finite(&self) -> Vec<usize> {
        let bad = |row: &[f32]| row.iter().any(|logit| !logit.is_finite());
        self.rows().enumerate().filter(|(_, row)| bad(row)).map(|(sample, _)| sample).collect()
    }
}
