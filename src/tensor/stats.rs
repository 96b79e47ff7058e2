//! Streaming statistics of a tensor's values.

use super::{DecodeError, TensorView, decode_f64};

/// Statistics of the finite values of a tensor, with zeros and non-finite values counted.
///
/// All accumulation is in f64: each piece's mean and squared deviations are computed in two passes and merged by
/// the pairwise update of Chan, Golub and LeVeque (1979), so that the result does not suffer from cancellation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    finite: u64,
    mean: f64,
    m2: f64,
    min: f64,
    max: f64,
    zeros: u64,
    nan: u64,
    inf: u64,
}

impl Stats {
    /// The statistics of every element of `view`.
    ///
    /// # Errors
    /// [`DecodeError`] for types of which an element is no single real number.
    pub fn of(view: &TensorView<'_>) -> Result<Stats, DecodeError> {
        let mut stats = Stats { min: f64::INFINITY, max: f64::NEG_INFINITY, ..Stats::default() };
        let mut values = Vec::new();
        let mut buffer = Vec::new();
        let mut result = Ok(());
        if !view.dtype().is_real() {
            return Err(DecodeError(view.dtype()));
        }
        view.for_each_piece(&mut buffer, |bytes| {
            values.clear();
            if let Err(error) = decode_f64(view.dtype(), bytes, &mut values) {
                result = Err(error);
            }
            stats.add(&values);
        });
        result.map(|()| stats)
    }

    fn add(&mut self, values: &[f64]) {
        let (mut count, mut sum) = (0u64, 0.0);
        for &x in values {
            if x.is_finite() {
                count += 1;
                sum += x;
                self.min = self.min.min(x);
                self.max = self.max.max(x);
                self.zeros += u64::from(x == 0.0);
            } else if x.is_nan() {
                self.nan += 1;
            } else {
                self.inf += 1;
            }
        }
        if count == 0 {
            return;
        }
        let mean = sum / count as f64;
        let m2: f64 = values.iter().filter(|x| x.is_finite()).map(|x| (x - mean) * (x - mean)).sum();
        let total = (self.finite + count) as f64;
        let delta = mean - self.mean;
        self.m2 += m2 + delta * delta * (self.finite as f64) * (count as f64) / total;
        self.mean += delta * (count as f64) / total;
        self.finite += count;
    }

    /// The mean of the finite values; `None` if there are none.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.finite > 0).then_some(self.mean)
    }

    /// The standard deviation of the finite values with Bessel's correction, as `torch.std`; `None` for fewer than two.
    #[must_use]
    pub fn std(&self) -> Option<f64> {
        (self.finite > 1).then(|| (self.m2 / (self.finite - 1) as f64).sqrt())
    }

    /// The smallest finite value.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        (self.finite > 0).then_some(self.min)
    }

    /// The largest finite value.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        (self.finite > 0).then_some(self.max)
    }

    /// How many values are zero, of either sign.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// How many values are not a number.
    #[must_use]
    pub fn nan(&self) -> u64 {
        self.nan
    }

    /// How many values are positive or negative infinity.
    #[must_use]
    pub fn inf(&self) -> u64 {
        self.inf
    }
}
