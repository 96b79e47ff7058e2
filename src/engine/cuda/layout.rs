//! How a block of elements lies in the memory of a [`Slot`](super::driver::Slot): what `fold.cu` reads and writes.
//!
//! Up: a table of operands, then the elements of each of them. Down: sums of tallies, then the elements of the result. Scratch: a tally
//! of each thread.

use super::driver::{Job, Sizes};
use crate::engine::{Lost, Norms};
use crate::tensor::DType;

/// Bytes that are uploaded at a time, unless memory is short: 2 MiB on the way to the GPU take 40 to 200 µs, many times what a call
/// costs.
pub(super) const ROOM: usize = 2 << 20;

/// With fewer it is not tried: the calls would take longer than the computing.
pub(super) const LEAST_ROOM: usize = 64 << 10;

/// Elements of a thread: `EACH` in fold.cu.
const EACH: usize = 16;
/// Threads of a block.
const THREADS: usize = 256;
/// Blocks of the threads that add up tallies.
const SUM_BLOCKS: usize = 4;
/// Bytes of a tally.
const TALLY: usize = 32;
/// Bytes of all tallies that are downloaded.
const TALLIES: usize = SUM_BLOCKS * THREADS * TALLY;
/// Bytes of an operand in the table.
const OPERAND: usize = 24;
/// Everything begins at multiples of this many bytes.
const ALIGN: usize = 256;
/// A block has at least so many elements, or the processor computes it.
const LEAST: usize = 1024;

/// The parts of a slot that takes so many bytes at a time.
pub(super) fn sizes(room: usize) -> Sizes {
    // There are two operands or more, of two bytes an element or more, and half as many bytes of results as of operands.
    let threads = (room / 4).div_ceil(EACH * THREADS) * THREADS;
    Sizes { up: room, down: TALLIES + room / 2, scratch: threads * TALLY }
}

/// A type as `fold.cu` numbers it.
fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 0,
        DType::BF16 => 1,
        DType::F64 => 3,
        _ => 2,
    }
}

/// The blocks of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Elements of a block, at most.
    pub(super) most: usize,
    /// The type of the source, and those of the terms.
    types: Vec<DType>,
    /// The type that is written.
    dtype: DType,
    wide: bool,
}

impl Blocks {
    /// The largest blocks that fit; `None` if there is no room for a useful number of elements of so many tensors.
    pub(super) fn new(room: usize, types: Vec<DType>, dtype: DType, wide: bool) -> Option<Blocks> {
        let element: usize = types.iter().map(|dtype| dtype.size()).sum();
        let left = room.checked_sub(types.len() * (OPERAND + ALIGN) + ALIGN)?;
        let most = (left / element).min(room / 2 / dtype.size());
        (most >= LEAST).then_some(Blocks { most, types, dtype, wide })
    }

    /// Where the elements of each operand begin, in a block of so many elements, and where the last of them end.
    fn places(&self, count: usize) -> (Vec<usize>, usize) {
        let mut at = self.types.len() * OPERAND;
        let mut places = Vec::with_capacity(self.types.len());
        for dtype in &self.types {
            at = at.next_multiple_of(ALIGN);
            places.push(at);
            at += count * dtype.size();
        }
        (places, at)
    }

    /// Writes the table of operands, which are multiplied by `lambdas` (the first, the source, by nothing), and returns where the elements
    /// of each go.
    pub(super) fn table(&self, count: usize, lambdas: &[f64], up: &mut [u8]) -> Vec<usize> {
        let (places, _) = self.places(count);
        let operands = up.as_chunks_mut::<OPERAND>().0.iter_mut();
        for (((operand, &place), dtype), &lambda) in operands.zip(&places).zip(&self.types).zip(lambdas) {
            let lambda = if self.wide { lambda } else { f64::from(lambda as f32) };
            let code = u64::from(code(*dtype));
            let fields = [(place as u64).to_ne_bytes(), lambda.to_ne_bytes(), code.to_le_bytes()];
            operand.copy_from_slice(fields.as_flattened());
        }
        places
    }

    /// What the GPU has to do for so many elements.
    pub(super) fn job(&self, count: usize) -> Job {
        let (_, up) = self.places(count);
        Job {
            wide: self.wide,
            up,
            down: TALLIES + count * self.dtype.size(),
            out_at: TALLIES,
            count: count as u64,
            operands: self.types.len() as u32,
            dtype: code(self.dtype),
            threads: (count.div_ceil(EACH * THREADS) as u32, THREADS as u32),
            sums: (SUM_BLOCKS as u32, THREADS as u32),
        }
    }

    /// What came of so many elements: their bytes, and what was found. `None` if NaN or infinity is among them.
    pub(super) fn result<'d>(&self, count: usize, down: &'d [u8]) -> Option<(&'d [u8], Norms, Lost)> {
        let (tallies, bytes) = down.split_at(TALLIES);
        let (mut norms, mut lost) = (Norms::default(), Lost::default());
        for tally in tallies.as_chunks::<TALLY>().0 {
            let double = |at: usize| f64::from_bits(u64::from(word(tally, at)) | u64::from(word(tally, at + 4)) << 32);
            norms.source += double(0);
            norms.change += double(8);
            if word(tally, 16) > 0 {
                return None;
            }
            lost.overflow += u64::from(word(tally, 20));
            lost.underflow += u64::from(word(tally, 24));
        }
        // Nothing is lost where nothing is cast, nor in float64.
        if self.types.first() == Some(&self.dtype) || self.dtype == DType::F64 {
            lost = Lost::default();
        }
        Some((&bytes[..count * self.dtype.size()], norms, lost))
    }
}

/// The number of four bytes that begins there.
fn word(tally: &[u8; TALLY], at: usize) -> u32 {
    u32::from_le_bytes([tally[at], tally[at + 1], tally[at + 2], tally[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::sha256_bytes;

    #[test]
    fn blocks_fit_their_slots() {
        let types = [DType::F16, DType::BF16, DType::F32, DType::F64];
        for room in [LEAST_ROOM, 100_000, ROOM] {
            let sizes = sizes(room);
            for (source, dtype) in types.iter().flat_map(|a| types.map(|b| (*a, b))) {
                for terms in [1, 2, 3, 9, 50, 1000, 10_000] {
                    let mut all = vec![source];
                    all.extend((0..terms).map(|number| types[number % types.len()]));
                    let Some(blocks) = Blocks::new(room, all, dtype, true) else {
                        // Not even the least number of elements fits.
                        assert!(LEAST * (2 + 4 * terms) + 300 * terms > room / 2, "{room} {terms}");
                        continue;
                    };
                    let job = blocks.job(blocks.most);
                    assert!(blocks.most >= LEAST && job.up <= sizes.up && job.down <= sizes.down);
                    let threads = job.threads.0 as usize * job.threads.1 as usize;
                    assert!(threads * EACH >= blocks.most && threads * TALLY <= sizes.scratch);
                    let (places, end) = blocks.places(blocks.most);
                    assert!(places[0] >= OPERAND * (terms + 1) && end == job.up);
                    assert!(places.iter().all(|place| place % ALIGN == 0));
                }
            }
        }
    }

    #[test]
    fn operands_are_written_as_the_kernel_reads_them() {
        let blocks = Blocks::new(ROOM, vec![DType::F32, DType::BF16], DType::F16, false).unwrap();
        let mut up = vec![0xaa; 1024];
        let places = blocks.table(100, &[0.0, 0.1], &mut up);
        assert_eq!(places, [256, 768]);
        assert_eq!(up[..24], [256u64.to_ne_bytes(), [0; 8], 2u64.to_le_bytes()].concat());
        // 0.1 in float32.
        assert_eq!(up[24..40], [768u64.to_ne_bytes(), 0.100_000_001_490_116_12_f64.to_ne_bytes()].concat());
        assert_eq!(up[40..48], 1u64.to_le_bytes());
        assert_eq!(up[48], 0xaa);
    }

    #[test]
    fn the_kernels_are_those_of_their_source() {
        let sha256 = sha256_bytes(include_bytes!("fold.cu"));
        let first = include_str!("fold.ptx").lines().next();
        assert_eq!(first, Some(&*format!("// SHA-256 of fold.cu: {sha256}")), "run src/engine/cuda/build_ptx.py");
    }

    /// The kernels that the driver is given were compiled by hand: they may not have a fused operation, nor one that a
    /// driver may fuse, and have to be called what they are called here.
    #[test]
    fn no_operation_of_the_kernels_is_fused() {
        let ptx = include_str!("fold.ptx");
        for name in ["fold_f32", "fold_f64", "gather"] {
            assert!(ptx.contains(&format!(".entry {name}(")), "{name}");
        }
        let code = ptx.lines().filter_map(|line| line.split_whitespace().find(|word| !word.starts_with('@')));
        let mut sums = 0;
        for operation in code {
            let parts: Vec<&str> = operation.trim_end_matches(';').split('.').collect();
            let float = parts.iter().any(|part| ["f16", "f32", "f64", "f16x2", "bf16"].contains(part));
            assert!(!float || !["fma", "mad"].contains(&parts[0]), "{operation}");
            assert!(!parts.contains(&"ftz") && !parts.contains(&"approx"), "{operation}");
            if float && ["add", "sub", "mul"].contains(&parts[0]) {
                // Without a mode of rounding it could be fused with its neighbour.
                assert!(parts.contains(&"rn"), "{operation}");
                sums += 1;
            }
        }
        assert!(sums > 20, "{sums}");
    }
}
