//! Samples as they might have been.

use serde::{Deserialize, Serialize};

use super::Samples;
use crate::data::{below, next};

/// What is done to samples at random before each step; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Augment {
    /// Half of the samples are mirrored, left and right (torchvision's `RandomHorizontalFlip`).
    pub flip: bool,
    /// Samples are moved by up to so many pixels in each direction, the edge being repeated (torchvision's `RandomCrop` with that
    /// `padding` and `padding_mode="edge"`).
    pub crop: usize,
}

impl Augment {
    /// The largest `crop`: more than any image is wide.
    pub const MAX_CROP: usize = 1 << 16;
}

impl Samples {
    /// Those with these numbers, in that order, changed at random; the same for the same seed, whatever the others are.
    #[must_use]
    pub(super) fn augmented(&self, numbers: &[usize], augment: Augment, seed: u64) -> Samples {
        let mut samples = self.select(numbers);
        if augment == Augment::default() {
            return samples;
        }
        let [channels, height, width] = self.shape;
        let size = (channels * height * width).max(1);
        for (image, &number) in samples.data.chunks_mut(size).zip(numbers) {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number as u64;
            // The generator's first numbers of neighbouring states are alike in nothing.
            next(&mut state);
            let flip = augment.flip && below(&mut state, 2) == 1;
            let shift = |state: &mut u64| below(state, 2 * augment.crop as u64 + 1) as isize - augment.crop as isize;
            let (down, right) = (shift(&mut state), shift(&mut state));
            let before = image.to_vec();
            let place = |at: usize, by: isize, end: usize| at.saturating_add_signed(by).min(end - 1);
            for (index, value) in image.iter_mut().enumerate() {
                let (channel, y, x) = (index / (height * width), index / width % height, index % width);
                let x = if flip { width - 1 - x } else { x };
                *value = before[(channel * height + place(y, down, height)) * width + place(x, right, width)];
            }
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let data = (0..64 * 2 * 3 * 4).map(|i| i as f32).collect();
        Samples { shape: [2, 3, 4], data, labels: vec![None; 64], names: vec![String::new(); 64] }
    }

    #[test]
    fn half_of_the_samples_are_mirrored() {
        let (samples, numbers) = (samples(), (0..64).collect::<Vec<_>>());
        let flipped = samples.augmented(&numbers, Augment { flip: true, crop: 0 }, 7);
        let mirrored = |image: &[f32]| image.chunks(4).flat_map(|row| row.iter().rev().copied()).collect::<Vec<_>>();
        let images = samples.data.chunks(24).zip(flipped.data.chunks(24));
        let kinds: Vec<bool> = images
            .map(|(a, b)| {
                assert!(b == a || b == mirrored(a));
                b != a
            })
            .collect();
        assert!((20..44).contains(&kinds.iter().filter(|kind| **kind).count()));
        assert!(flipped.data == samples.augmented(&numbers, Augment { flip: true, crop: 0 }, 7).data);
        assert!(flipped.data != samples.augmented(&numbers, Augment { flip: true, crop: 0 }, 8).data);
        // A sample is changed alike in whatever company.
        assert!(samples.augmented(&[5], Augment { flip: true, crop: 0 }, 7).data == flipped.data[5 * 24..6 * 24]);
        assert!(samples.augmented(&numbers, Augment::default(), 7).data == samples.data);
    }

    #[test]
    fn samples_are_moved_and_their_edges_repeated() {
        let samples = samples();
        // numpy.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge"), cut at (1 + down, 1 + right).
        let moved = |image: &[f32], down: i32, right: i32| -> Vec<f32> {
            let at = |c: i32, y: i32, x: i32| image[((c * 3 + y.clamp(0, 2)) * 4 + x.clamp(0, 3)) as usize];
            let places = (0..2).flat_map(|c| (0..3).flat_map(move |y| (0..4).map(move |x| (c, y, x))));
            places.map(|(c, y, x)| at(c, y + down, x + right)).collect()
        };
        let all = samples.augmented(&(0..64).collect::<Vec<_>>(), Augment { flip: false, crop: 1 }, 3);
        let mut seen = std::collections::BTreeSet::new();
        for (before, after) in samples.data.chunks(24).zip(all.data.chunks(24)) {
            let shifts = (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right)));
            seen.insert(shifts.clone().find(|&(down, right)| moved(before, down, right) == after).unwrap());
        }
        assert_eq!(seen.len(), 9);
    }
}
