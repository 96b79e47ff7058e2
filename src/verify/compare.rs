//! How far apart two matrices of numbers are.

use super::Logits;
use super::statistics::prediction;

/// How far apart two matrices are, gathered as their rows come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Rows that were compared.
    pub rows: usize,
    /// Numbers that were compared: finite in both.
    pub compared: usize,
    /// Numbers that are NaN or infinite on one side, and not the same on the other.
    pub unordered: usize,
    /// Row and column of the first of them.
    pub unordered_at: Option<(usize, usize)>,
    /// The largest `|a - b|`.
    pub max_abs: f64,
    /// Row and column where it is.
    pub at: Option<(usize, usize)>,
    /// The largest `|a|`: the scale that differences are measured by.
    pub largest: f64,
    /// Rows whose largest number is in the same column; rows with NaN never are.
    pub same_top1: usize,
    sum_abs: f64,
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Comparison {
    /// Compares the logits of the same samples; samples and classes beyond those of the shorter are left out.
    #[must_use]
    pub fn of(a: &Logits, b: &Logits) -> Comparison {
        let mut comparison = Comparison::default();
        for (a, b) in a.rows().zip(b.rows()) {
            comparison.add(a, b);
        }
        comparison
    }

    /// Adds a row, `a` being the reference.
    pub fn add(&mut self, a: &[f32], b: &[f32]) {
        for (column, (&a, &b)) in a.iter().zip(b).enumerate() {
            let (x, y) = (f64::from(a), f64::from(b));
            if !a.is_finite() || !b.is_finite() {
                if a != b && !(a.is_nan() && b.is_nan()) {
                    self.unordered += 1;
                    self.unordered_at = self.unordered_at.or(Some((self.rows, column)));
                }
                continue;
            }
            let gap = (x - y).abs();
            if gap > self.max_abs || self.at.is_none() {
                (self.max_abs, self.at) = (gap, Some((self.rows, column)));
            }
            self.compared += 1;
            self.largest = self.largest.max(x.abs());
            self.sum_abs += gap;
            self.aa += x * x;
            self.bb += y * y;
            self.ab += x * y;
        }
        self.rows += 1;
        let top = prediction(a);
        self.same_top1 += usize::from(top.is_some() && top == prediction(b));
    }

    /// The mean of `|a - b|`; `None` if nothing was compared.
    #[must_use]
    pub fn mean_abs(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.sum_abs / self.compared as f64)
    }

    /// The cosine between the two matrices as vectors; `None` if either is all zeros.
    #[must_use]
    pub fn cosine(&self) -> Option<f64> {
        let norms = self.aa.sqrt() * self.bb.sqrt();
        (norms > 0.0).then(|| (self.ab / norms).clamp(-1.0, 1.0))
    }

    /// The largest difference as a part of the largest `|a|`: 0 if there is none, infinite if there is one and `a` is
    /// zero, or if a number is NaN or infinite on one side only.
    #[must_use]
    pub fn relative(&self) -> f64 {
        match () {
            () if self.unordered > 0 => f64::INFINITY,
            () if self.max_abs == 0.0 => 0.0,
            () => self.max_abs / self.largest,
        }
    }

    /// Whether the largest difference is at most `tolerance` times the largest `|a|`.
    #[must_use]
    pub fn within(&self, tolerance: f64) -> bool {
        self.relative() <= tolerance
    }
}
