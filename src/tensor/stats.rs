//! Streaming statistics of a tensor's values.

use pulp::Arch;

use super::decode::decode;
use super::{DType, DecodeError, TensorView};

/// Statistics of the finite values of a tensor, with zeros and non-finite values counted.
///
/// All accumulation is in f64: each block's mean and squared deviations are computed in two passes and merged by
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

/// Elements that are looked at together: as float64 they fit the first-level cache.
const BLOCK: usize = 2048;

/// Numbers whose sums are made side by side, always as many, so that results do not depend on the processor.
const LANES: usize = 16;

/// Adds up the bytes of a tensor, in order, whole elements at a time.
#[derive(Clone, Debug)]
pub(crate) struct Gather {
    dtype: DType,
    arch: Arch,
    stats: Stats,
    values: Vec<f64>,
}

impl Gather {
    /// Of elements of a type.
    ///
    /// # Errors
    /// [`DecodeError`] for types of which an element is no single real number.
    pub(crate) fn new(dtype: DType) -> Result<Gather, DecodeError> {
        if !dtype.is_real() {
            return Err(DecodeError(dtype));
        }
        let stats = Stats { min: f64::INFINITY, max: f64::NEG_INFINITY, ..Stats::default() };
        Ok(Gather { dtype, arch: Arch::new(), stats, values: Vec::with_capacity(BLOCK) })
    }

    /// Takes in elements.
    ///
    /// # Errors
    /// As [`Gather::new`], which comes first.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        for bytes in bytes.chunks(BLOCK * self.dtype.size()) {
            let (dtype, values) = (self.dtype, &mut self.values);
            values.clear();
            self.arch.dispatch(
                #[inline(always)]
                || decode(dtype, bytes, values),
            )?;
            let values = self.values.as_slice();
            let sums = self.arch.dispatch(
                #[inline(always)]
                || Sums::of(values),
            );
            // The sum of numbers of which one is NaN or infinite is so too.
            if sums.sum.is_finite() && !values.is_empty() {
                let mean = sums.sum / values.len() as f64;
                let m2 = self.arch.dispatch(
                    #[inline(always)]
                    || squares(values, mean),
                );
                self.stats.min = self.stats.min.min(sums.min);
                self.stats.max = self.stats.max.max(sums.max);
                self.stats.zeros += sums.zeros;
                self.stats.merge(values.len() as u64, mean, m2);
            } else {
                self.stats.add_one_by_one(values);
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Stats {
        self.stats
    }
}

/// Of numbers that are all finite.
struct Sums {
    sum: f64,
    min: f64,
    max: f64,
    zeros: u64,
}

impl Sums {
    #[inline(always)]
    fn of(values: &[f64]) -> Sums {
        let (chunks, rest) = values.as_chunks::<LANES>();
        let (mut sums, mut zeros) = ([0.0; LANES], [0u64; LANES]);
        let (mut mins, mut maxs) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        for chunk in chunks {
            for lane in 0..LANES {
                let x = chunk[lane];
                sums[lane] += x;
                mins[lane] = if x < mins[lane] { x } else { mins[lane] };
                maxs[lane] = if x > maxs[lane] { x } else { maxs[lane] };
                zeros[lane] += u64::from(x == 0.0);
            }
        }
        Sums {
            sum: sums.iter().chain(rest).sum(),
            min: mins.iter().chain(rest).fold(f64::INFINITY, |least, x| least.min(*x)),
            max: maxs.iter().chain(rest).fold(f64::NEG_INFINITY, |most, x| most.max(*x)),
            zeros: zeros.iter().sum::<u64>() + rest.iter().filter(|x| **x == 0.0).count() as u64,
        }
    }
}

/// The sum of the squares of the distances from `mean`.
#[inline(always)]
fn squares(values: &[f64], mean: f64) -> f64 {
    let square = |x: &f64| (x - mean) * (x - mean);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += square(x));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
}

impl Stats {
    /// The statistics of every element of `view`.
    ///
    /// # Errors
    /// [`DecodeError`] for types of which an element is no single real number.
    pub fn of(view: &TensorView<'_>) -> Result<Stats, DecodeError> {
        let mut gather = Gather::new(view.dtype())?;
        let mut result = Ok(());
        view.for_each_piece(&mut Vec::new(), |bytes| result = result.and_then(|()| gather.add(bytes)));
        result.map(|()| gather.finish())
    }

    fn add_one_by_one(&mut self, values: &[f64]) {
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
        if count > 0 {
            let finite = || values.iter().filter(|x| x.is_finite());
            let mean = sum / count as f64;
            // The sum of numbers near the largest is past it, and their mean is not.
            let mean = if mean.is_finite() { mean } else { finite().map(|x| x / count as f64).sum() };
            self.merge(count, mean, finite().map(|x| (x - mean) * (x - mean)).sum());
        }
    }

    /// Adds so many finite values with that mean, and that sum of squared deviations from it.
    fn merge(&mut self, count: u64, mean: f64, m2: f64) {
        let part = count as f64 / (self.finite + count) as f64;
        if self.finite == 0 {
            (self.mean, self.m2) = (mean, m2);
        } else {
            // In an order in which large numbers stay numbers.
            let delta = mean - self.mean;
            self.m2 += m2 + delta * (delta * (self.finite as f64 * part));
            self.mean += delta * part;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_stay_numbers() {
        let of = |values: &[f64]| {
            let mut gather = Gather::new(DType::F64).unwrap();
            gather.add(bytemuck::cast_slice(values)).unwrap();
            gather.finish()
        };
        // torch.full((9000,), 1e151, dtype=torch.float64) with its second half negated: .mean() and .std()
        let halves: Vec<f64> = (0..9000).map(|i| if i < 4500 { 1e151 } else { -1e151 }).collect();
        let stats = of(&halves);
        assert!(stats.mean().unwrap().abs() < 1e136, "{stats:?}");
        assert!((stats.std().unwrap() / 1.000_055_560_185_657_3e151 - 1.0).abs() < 1e-12, "{stats:?}");
        let constant = of(&[1e160; 5000]);
        assert!((constant.mean().unwrap() / 1e160 - 1.0).abs() < 1e-13, "{constant:?}");
        assert!(constant.std().unwrap() < 1e147, "{constant:?}");
        let mut past = [0.0; 2049];
        past[..2].fill(1e308);
        assert!((of(&past).mean().unwrap() / (2.0 / 2049.0 * 1e308) - 1.0).abs() < 1e-12, "{:?}", of(&past));
    }

    #[test]
    fn blocks_are_put_together() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let numbers: Vec<f32> = (0..3 * BLOCK + 37).map(|_| next() + 100.0).collect();
        let rare = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 3e38, -3e38];
        // Everywhere, in one block, and nowhere.
        for places in [vec![0, 1, 17, 2047, 2048, 5000, 6180], (4100..4107).collect(), Vec::new()] {
            let mut numbers = numbers.clone();
            places.iter().zip(rare).for_each(|(place, value)| numbers[*place] = value);
            let finite: Vec<f64> = numbers.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x)).collect();
            let mean = finite.iter().sum::<f64>() / finite.len() as f64;
            let std = (finite.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (finite.len() - 1) as f64).sqrt();
            let mut gather = Gather::new(DType::F32).unwrap();
            gather.add(bytemuck::cast_slice(&numbers)).unwrap();
            let stats = gather.finish();
            let scale = finite.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            assert!((stats.mean().unwrap() - mean).abs() <= 1e-12 * scale, "{stats:?} {mean}");
            assert!((stats.std().unwrap() - std).abs() <= 1e-12 * std.max(mean), "{stats:?} {std}");
            assert_eq!(stats.min(), finite.iter().copied().reduce(f64::min));
            assert_eq!(stats.max(), finite.iter().copied().reduce(f64::max));
            let counts = if places.is_empty() { (0, 0, 0) } else { (2, 1, 2) };
            assert_eq!((stats.zeros(), stats.nan(), stats.inf()), counts);
        }
    }
}
