//! Where the inputs come from: a sample set, or noise.

use crate::data::{Batch, DataError, Preprocessing, SampleError, SampleProblem, SampleSet};

/// Inputs for models.
#[derive(Clone, Debug)]
pub enum Source {
    /// Samples, preprocessed.
    Samples {
        /// The samples.
        set: SampleSet,
        /// What is done to them.
        preprocessing: Preprocessing,
    },
    /// Noise, the same for the same seed: independent numbers of the standard normal distribution, which is about what
    /// normalised images have.
    Noise {
        /// How many inputs.
        images: usize,
        /// `[channels, height, width]` of each.
        shape: [usize; 3],
        /// The seed.
        seed: u64,
    },
}

impl Source {
    /// How many inputs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Source::Samples { set, .. } => set.len(),
            Source::Noise { images, .. } => *images,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are without a limit.
    #[must_use]
    pub fn total(&self) -> usize {
        match self {
            Source::Samples { set, .. } => set.total(),
            Source::Noise { images, .. } => *images,
        }
    }

    /// `[channels, height, width]` of each input.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        match self {
            Source::Samples { preprocessing, .. } => preprocessing.input_size,
            Source::Noise { shape, .. } => *shape,
        }
    }

    /// The name of an input; noise has numbers.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        match self {
            Source::Samples { set, .. } => set.samples().get(index).map_or(String::new(), |s| s.name().to_owned()),
            Source::Noise { .. } => format!("noise {index}"),
        }
    }

    /// The class of an input, if it has one.
    #[must_use]
    pub fn label(&self, index: usize) -> Option<usize> {
        match self {
            Source::Samples { set, .. } => set.samples().get(index)?.label(),
            Source::Noise { .. } => None,
        }
    }

    /// The place of an input in the whole set, before it was shuffled.
    #[must_use]
    pub fn position(&self, index: usize) -> usize {
        match self {
            Source::Samples { set, .. } => set.samples().get(index).map_or(index, crate::data::Sample::position),
            Source::Noise { .. } => index,
        }
    }

    /// One input, `[channels, height, width]`.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn load(&self, index: usize) -> Result<Vec<f32>, SampleError> {
        match self {
            Source::Samples { set, preprocessing } => set.load(index, preprocessing),
            Source::Noise { images, .. } if index >= *images => {
                Err(SampleError { name: self.name(index), problem: SampleProblem::NoSuchSample })
            }
            Source::Noise { shape, seed, .. } => Ok(noise(*seed, index, shape.iter().product())),
        }
    }

    /// All inputs in order, in batches; see [`SampleSet::batches`].
    ///
    /// # Errors
    /// [`DataError`].
    pub(super) fn batches(
        &self,
        batch: usize,
        threads: usize,
    ) -> Result<Box<dyn Iterator<Item = Batch> + '_>, DataError> {
        match self {
            Source::Samples { set, preprocessing } => Ok(Box::new(set.batches(preprocessing, batch, threads)?)),
            Source::Noise { images, shape, seed } => {
                let (batch, length) = (batch.max(1), shape.iter().product());
                Ok(Box::new((0..*images).step_by(batch).map(move |first| {
                    let indices: Vec<usize> = (first..(first + batch).min(*images)).collect();
                    let data = indices.iter().flat_map(|&index| noise(*seed, index, length)).collect();
                    Batch { indices, data, failed: Vec::new() }
                })))
            }
        }
    }
}

/// The input with that number: `length` numbers of the standard normal distribution.
fn noise(seed: u64, index: usize, length: usize) -> Vec<f32> {
    // Inputs of one seed begin 2^32 numbers apart; none is that large.
    let mut state = seed.wrapping_add((index as u64 + 1) << 32);
    // From 2^-53 to 1, so that the logarithm is finite.
    let mut uniform = || {
        state = state.wrapping_add(1);
        ((mix(state) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    let mut values = Vec::with_capacity(length + 1);
    while values.len() < length {
        // Box and Muller's transform.
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(length);
    values
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), of a counter times its odd constant.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_normal_and_the_same_in_batches_and_alone() {
        let source = Source::Noise { images: 5, shape: [3, 32, 33], seed: 7 };
        let batches: Vec<Batch> = source.batches(2, 0).unwrap().collect();
        assert_eq!(batches.iter().map(|b| b.indices.clone()).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
        let all: Vec<f32> = batches.into_iter().flat_map(|b| b.data).collect();
        let alone: Vec<f32> = (0..5).flat_map(|i| source.load(i).unwrap()).collect();
        assert_eq!(all, alone);
        assert_ne!(all[..3168], all[3168..6336]);
        let other = Source::Noise { images: 5, shape: [3, 32, 33], seed: 8 };
        assert_ne!(other.load(0).unwrap(), source.load(0).unwrap());
        let n = all.len() as f64;
        let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let moment = |k| all.iter().map(|&x| (f64::from(x) - mean).powi(k)).sum::<f64>() / n;
        // Standard errors of 15,840 samples: 0.008 of the mean, 0.011 of the variance, 0.08 of the fourth moment.
        assert!(mean.abs() < 0.04 && (moment(2) - 1.0).abs() < 0.06 && (moment(4) - 3.0).abs() < 0.4);
        assert!(source.load(5).is_err());
    }
}
