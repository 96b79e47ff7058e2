//! Samples in memory, and how they are divided.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{LearnError, Objective};
use crate::data::shuffle;
use crate::engine::Progress;
use crate::error::Error;
use crate::tensor::FileHash;
use crate::verify::Source;

/// Samples, preprocessed, all in memory: four bytes for each number of each input.
#[derive(Clone, Debug)]
pub struct Samples {
    pub(super) shape: [usize; 3],
    pub(super) data: Vec<f32>,
    pub(super) labels: Vec<Option<usize>>,
    pub(super) names: Vec<String>,
}

impl Samples {
    /// Reads them all. Progress counts samples.
    ///
    /// # Errors
    /// [`LearnError::Sample`] for the first that cannot be read; [`Error::Cancelled`].
    pub fn read(source: &Source, progress: &mut dyn Progress) -> Result<Samples, LearnError> {
        let (shape, count) = (source.shape(), source.len());
        let mut data = Vec::with_capacity(count * shape.iter().product::<usize>());
        for first in (0..count).step_by(64) {
            if progress.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let range = first..(first + 64).min(count);
            progress.advance(range.len() as u64);
            let read: Vec<_> = range.into_par_iter().map(|index| source.load(index)).collect();
            for input in read {
                data.extend(input.map_err(|error| LearnError::Sample(Box::new(error)))?);
            }
        }
        let (labels, names) = (0..count).map(|index| (source.label(index), source.name(index))).unzip();
        Ok(Samples { shape, data, labels, names })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of each, if it has one.
    #[must_use]
    pub fn labels(&self) -> &[Option<usize>] {
        &self.labels
    }

    /// SHA-256 of them all: shape, numbers, classes, in order.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = FileHash::default();
        hash.update(format!("{:?} {:?}", self.shape, self.labels).as_bytes());
        for part in self.data.chunks(1 << 16) {
            hash.update(&part.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        }
        hash.finish()
    }

    /// Checks that the samples have what the objective needs.
    ///
    /// # Errors
    /// [`LearnError::NoLabel`], [`LearnError::Label`].
    pub fn check(&self, objective: Objective, classes: usize) -> Result<(), LearnError> {
        for (name, label) in self.names.iter().zip(&self.labels) {
            match label {
                None if objective == Objective::CrossEntropy => {
                    return Err(LearnError::NoLabel { name: name.clone() });
                }
                Some(label) if *label >= classes => {
                    return Err(LearnError::Label { name: name.clone(), label: *label, classes });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Those with these numbers, in that order.
    #[must_use]
    pub fn select(&self, numbers: &[usize]) -> Samples {
        let size: usize = self.shape.iter().product();
        Samples {
            shape: self.shape,
            data: numbers.iter().flat_map(|&n| &self.data[n * size..(n + 1) * size]).copied().collect(),
            labels: numbers.iter().map(|&n| self.labels[n]).collect(),
            names: numbers.iter().map(|&n| self.names[n].clone()).collect(),
        }
    }
}

/// Divides samples into those to fit and those held out, each in order: of every class the same part, rounded, is held out, at
/// least one sample and never all. Samples without a label are a class of their own. A class of one sample is fitted.
///
/// The same for the same labels, part and seed, on every machine.
///
/// # Errors
/// [`LearnError::Split`] if one of the two would be empty.
pub fn split(labels: &[Option<usize>], held_out: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>), LearnError> {
    let mut classes: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for (number, label) in labels.iter().enumerate() {
        classes.entry(*label).or_default().push(number);
    }
    let (mut fit, mut held) = (Vec::new(), Vec::new());
    for (place, mut members) in classes.into_values().enumerate() {
        shuffle(&mut members, seed.wrapping_add(place as u64));
        let count = if members.len() < 2 {
            0
        } else {
            ((members.len() as f64 * held_out).round() as usize).clamp(1, members.len() - 1)
        };
        held.extend(members.drain(..count));
        fit.extend(members);
    }
    if fit.is_empty() || held.is_empty() {
        return Err(LearnError::Split { samples: labels.len(), fit: fit.len(), held_out: held.len() });
    }
    fit.sort_unstable();
    held.sort_unstable();
    Ok((fit, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_stratified_disjoint_and_seeded() {
        let labels: Vec<Option<usize>> = (0..100).map(|n| Some(n % 4)).collect();
        let (fit, held) = split(&labels, 0.2, 1).unwrap();
        assert_eq!((fit.len(), held.len()), (80, 20));
        assert!((0..4).all(|class| held.iter().filter(|n| *n % 4 == class).count() == 5));
        assert!(held.iter().all(|n| !fit.contains(n)));
        assert_eq!(split(&labels, 0.2, 1).unwrap(), (fit, held.clone()));
        assert_ne!(split(&labels, 0.2, 2).unwrap().1, held);
    }

    #[test]
    fn too_few_samples_are_not_split() {
        assert!(matches!(split(&[], 0.5, 0), Err(LearnError::Split { samples: 0, .. })));
        let single: Vec<Option<usize>> = (0..5).map(Some).collect();
        assert!(matches!(split(&single, 0.5, 0), Err(LearnError::Split { held_out: 0, .. })));
        assert_eq!(split(&[Some(1), Some(1)], 0.99, 0).map(|(fit, held)| (fit.len(), held.len())).unwrap(), (1, 1));
    }
}
