//! Checksums of the inputs of a step: whether what was read is what was stored.

use std::ops::Range;

use crc32fast::Hasher;
use pulp::Arch;

use super::remainders::{Line, Products, Remainders};
use super::simd::{Element, Fold, Folded, LINE};
use crate::checkpoint::Unchecked;
use crate::error::Result;

/// What is known of the checksums of a step's source and terms, or of a part of them.
pub(super) enum Checks<'r> {
    /// For each, the checksum of the bytes that were read, if it is to be compared.
    Each(Vec<Option<(Unchecked<'r>, Hasher)>>),
    /// All of them, as one.
    Together(Vec<Unchecked<'r>>, Sum),
    /// These are to be read again.
    Again(Vec<Unchecked<'r>>),
}

impl<'r> Checks<'r> {
    /// The sum, if they are taken in as one.
    pub(super) fn sum(&mut self) -> Option<&mut Sum> {
        if let Checks::Together(_, sum) = self { Some(sum) } else { None }
    }

    /// What inputs, if they were taken in as one, have of their own.
    pub(super) fn or_each(self, each: Vec<Option<(Unchecked<'r>, Hasher)>>) -> Checks<'r> {
        match self {
            Checks::Together(_, sum) => Checks::Together(Checks::Each(each).unchecked(), sum),
            _ => Checks::Each(each),
        }
    }

    /// Adds those of the part that follows.
    pub(super) fn join(&mut self, next: Checks<'r>) {
        match (&mut *self, next) {
            (Checks::Each(each), Checks::Each(next)) => {
                for (one, more) in each.iter_mut().zip(next) {
                    match (&mut *one, more) {
                        (Some((_, crc)), Some((_, more))) => crc.combine(&more),
                        // Another step that has all of the same entry was settled meanwhile.
                        _ => *one = None,
                    }
                }
            }
            (Checks::Together(_, sum), Checks::Together(_, more)) => sum.join(&more),
            // As above, of one of them at least.
            _ => {
                let known = std::mem::replace(self, Checks::Each(Vec::new()));
                *self = Checks::Again(known.unchecked());
            }
        }
    }

    fn unchecked(self) -> Vec<Unchecked<'r>> {
        match self {
            Checks::Each(each) => each.into_iter().flatten().map(|(unchecked, _)| unchecked).collect(),
            Checks::Together(all, _) | Checks::Again(all) => all,
        }
    }

    /// Compares them, all parts being joined.
    ///
    /// # Errors
    /// [`crate::Error::Zip`] for a checksum that is not the one that is stored; [`crate::Error::Changed`] if it was another one when
    /// the bytes were computed with; the errors of reading.
    pub(super) fn settle(self) -> Result<()> {
        match self {
            Checks::Each(each) => {
                each.into_iter().flatten().try_for_each(|(unchecked, crc)| unchecked.settle(crc.finalize()))
            }
            Checks::Together(all, sum) if sum.is_of(all.iter().map(Unchecked::stored)) => {
                all.iter().try_for_each(|unchecked| unchecked.settle(unchecked.stored()))
            }
            Checks::Together(all, _) => {
                all.iter().try_for_each(Unchecked::read_again)?;
                all.first().map_or(Ok(()), |unchecked| Err(unchecked.changed()))
            }
            Checks::Again(all) => all.iter().try_for_each(Unchecked::read_again),
        }
    }
}

/// The checksum of several inputs of one length as one: the remainder, by the polynomial of CRC-32, of the sum of their bytes as
/// polynomials, each input a line behind the one before: where two are damaged alike, as two names of one file are, that does not
/// cancel out. Remainders are linear, so that it is known from the checksums of each.
pub(super) struct Sum {
    products: Products,
    remainder: u32,
    /// The length of each input, as far as runs of them were taken in.
    bytes: u64,
    /// Bytes of the next run that were taken in.
    taken: usize,
    lines: Remainders,
}

impl Sum {
    /// If the processor can make it while it folds so many terms.
    pub(super) fn new(arch: Arch, terms: usize) -> Option<Sum> {
        let products = Products::of(arch)?;
        Some(Sum { products, remainder: 0, bytes: 0, taken: 0, lines: Remainders::new(terms) })
    }

    /// Folds the next block of a run, and takes in its whole lines; there are no others but in the last one.
    pub(super) fn fold<E: Element>(&mut self, fold: Fold<'_, E>) -> Folded {
        self.taken += size_of_val(fold.source) / LINE * LINE;
        self.products.fold(fold, &mut self.lines)
    }

    /// Takes in what is left of a run, of which these are the inputs. If it was folded, the checksum of what it was folded to is returned.
    pub(super) fn end(&mut self, run: &[&[u8]], folded: &[u8]) -> Hasher {
        let (length, taken) = (run.first().map_or(0, |input| input.len()), std::mem::take(&mut self.taken));
        let lines = self.lines.take();
        let rest = sum(run, taken..length + LINE * run.len().saturating_sub(1));
        self.remainder = shifted(self.remainder, length as u64) ^ remainder(&lines.inputs, &rest);
        self.bytes += length as u64;
        let crc = remainder(&lines.folded, &folded[taken.min(folded.len())..]) ^ of_zeros(folded.len() as u64);
        Hasher::new_with_initial_len(crc, folded.len() as u64)
    }

    /// Adds the sum of the bytes that follow.
    fn join(&mut self, next: &Sum) {
        self.remainder = shifted(self.remainder, next.bytes) ^ next.remainder;
        self.bytes += next.bytes;
    }

    /// Whether it is the sum of inputs that have these checksums.
    fn is_of(&self, checksums: impl Iterator<Item = u32>) -> bool {
        let zeros = of_zeros(self.bytes);
        checksums.fold(0, |sum, crc| shifted(sum, LINE as u64) ^ crc ^ zeros) == self.remainder
    }
}

/// Bytes of the sum of the inputs of a run.
fn sum(run: &[&[u8]], range: Range<usize>) -> Vec<u8> {
    let mut sum = vec![0; range.len()];
    for (number, input) in run.iter().enumerate() {
        let late = number * LINE;
        let (from, to) = (range.start.max(late), range.end.min(input.len() + late));
        if from < to {
            let input = &input[from - late..to - late];
            sum[from - range.start..].iter_mut().zip(input).for_each(|(sum, byte)| *sum ^= byte);
        }
    }
    sum
}

/// The remainder of bytes after others that are congruent to `line`.
fn remainder(line: &Line, rest: &[u8]) -> u32 {
    // For a checksum, the first bytes are inverted before, and the remainder after.
    let mut hasher = Hasher::new_with_initial(u32::MAX);
    hasher.update(line.as_flattened());
    hasher.update(rest);
    !hasher.finalize()
}

/// The checksum of so many bytes of 0: what a checksum is besides the remainder.
fn of_zeros(bytes: u64) -> u32 {
    !shifted(u32::MAX, bytes)
}

/// The remainder of a polynomial with so many bytes of 0 after it.
fn shifted(remainder: u32, bytes: u64) -> u32 {
    let mut hasher = Hasher::new_with_initial(remainder);
    hasher.combine(&Hasher::new_with_initial_len(0, bytes));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Checkpoint, RootChoice};
    use crate::engine::kernels::BLOCK;
    use crate::engine::simd::{BF16, F16, F32};
    use crate::error::Error;

    /// Bytes that look random, from a linear congruential generator; as numbers of any type, none is NaN or infinity.
    fn bytes(seed: u32, count: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |place| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & if place % 2 == 1 { 0xbf } else { 0xff }
        };
        (0..count).map(next).collect()
    }

    /// A sum, if this processor can make one.
    fn begun(terms: usize) -> Option<Sum> {
        #[cfg(target_arch = "x86_64")]
        let arch = pulp::x86::V3::try_new().map(Arch::V3);
        #[cfg(not(target_arch = "x86_64"))]
        let arch = Some(Arch::new());
        Sum::new(arch?, terms)
    }

    /// Folds inputs by runs of so many bytes, and joins the sums of them; blocks are folded, or nothing is. What they are folded to is
    /// what it is without sums.
    fn sum<E: Element>(inputs: &[Vec<u8>], run: usize, folds: bool) -> Option<Sum> {
        let (arch, length) = (Arch::new(), inputs[0].len());
        let mut whole = begun(inputs.len() - 1)?;
        for begin in (0..length).step_by(run) {
            let mut part = begun(inputs.len() - 1)?;
            let run: Vec<&[u8]> = inputs.iter().map(|input| &input[begin..length.min(begin + run)]).collect();
            let read =
                |bytes: &&[u8]| bytes.chunks_exact(size_of::<E::Bits>()).map(bytemuck::pod_read_unaligned).collect();
            let elements: Vec<Vec<E::Bits>> = run.iter().map(read).collect();
            let zero: E::Bits = bytemuck::Zeroable::zeroed();
            let (mut out, mut expected) = (vec![zero; elements[0].len()], vec![zero; elements[0].len()]);
            for first in (0..out.len()).step_by(BLOCK) {
                let block = first..out.len().min(first + BLOCK);
                let terms: Vec<(f32, &[E::Bits])> = elements[1..].iter().map(|e| (0.3, &e[block.clone()])).collect();
                let fold = |out| Fold::<'_, E> {
                    source: &elements[0][block.clone()],
                    first: terms[0],
                    more: &terms[1..],
                    out,
                    lines: (),
                };
                let plain = E::fold(arch, fold(&mut expected[block.clone()]));
                if folds {
                    let folded = part.fold(fold(&mut out[block.clone()]));
                    assert_eq!(folded.bad, plain.bad);
                }
            }
            if folds {
                assert_eq!(bytemuck::cast_slice::<_, u8>(&out), bytemuck::cast_slice::<_, u8>(&expected));
                let crc = part.end(&run, bytemuck::cast_slice(&out));
                assert_eq!(crc.total_len(), run[0].len() as u64);
                assert_eq!(crc.finalize(), crc32fast::hash(bytemuck::cast_slice(&expected)));
            } else {
                part.end(&run, &[]);
            }
            whole.join(&part);
        }
        Some(whole)
    }

    fn each_kind(inputs: &[Vec<u8>], run: usize) -> Vec<Sum> {
        let sums = [
            sum::<F32>(inputs, run, true),
            sum::<BF16>(inputs, run, true),
            sum::<F16>(inputs, run, true),
            sum::<F32>(inputs, run, false),
        ];
        sums.into_iter().flatten().collect()
    }

    #[test]
    fn a_sum_is_known_from_the_checksums_of_each() {
        for (count, length) in [(2, 4), (2, 60), (2, 64), (2, 100_000), (3, 132), (4, 70_004), (9, 300), (9, 40_000)] {
            let inputs: Vec<Vec<u8>> = (0..count).map(|seed| bytes(seed, length)).collect();
            let checksums: Vec<u32> = inputs.iter().map(|input| crc32fast::hash(input)).collect();
            for run in [length, 32_768, 1024] {
                for sum in each_kind(&inputs, run) {
                    assert_eq!(sum.bytes, length as u64);
                    assert!(sum.is_of(checksums.iter().copied()), "{count} of {length} bytes by {run}");
                    for wrong in 0..checksums.len() {
                        let mut checksums = checksums.clone();
                        checksums[wrong] ^= 1;
                        assert!(!sum.is_of(checksums.into_iter()));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_alike_in_several_does_not_cancel_out() {
        let stored = crc32fast::hash(&bytes(1, 50_000));
        let mut damaged = bytes(1, 50_000);
        damaged[20_000] ^= 4;
        for count in 2..=9 {
            let inputs = vec![damaged.clone(); count];
            for sum in each_kind(&inputs, 50_000) {
                assert!(!sum.is_of(std::iter::repeat_n(stored, count)), "{count}");
            }
        }
    }

    #[test]
    fn what_does_not_match_is_read_again() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/audiomae_finetune.pth");
        let checkpoint = Checkpoint::open(path)?;
        let state = checkpoint.state_dict(&RootChoice::Auto)?;
        let each = (0..state.specs().len()).map(|index| state.unchecked(index).map(|(_, unchecked)| unchecked));
        let unchecked: Vec<Unchecked<'_>> = each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        assert!(unchecked.len() >= 4);
        let Some(sum) = begun(1) else { return Ok(()) };
        // The sum of nothing: the files are right, so that what was read was not what is in them.
        let error = Checks::Together(unchecked[..2].to_vec(), sum).settle().unwrap_err();
        assert!(matches!(error, Error::Changed { path: of } if of == Path::new(path)));
        let mut mixed = Checks::Together(unchecked[2..4].to_vec(), begun(1).unwrap());
        mixed.join(Checks::Each(vec![None, None]));
        mixed.settle()
    }
}
