//! What a thread of the executor does with a GPU.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;

use crc32fast::Hasher;

use super::Lane;
use super::driver::{CudaError, Slot};
use super::layout::Blocks;
use crate::checkpoint::Unchecked;
use crate::engine::input::Input;
use crate::engine::worker::{Done, Worker};
use crate::error::Result;
use crate::plan::Step;

/// Elements that are copied at a time, so that their checksum is made while they are in the cache.
const COPY: usize = 16 << 10;

/// Results of fewer bytes are gathered before they are written.
const GATHERED: usize = 256 << 10;

/// A step, and what it is computed of.
struct Work<'a, 'w> {
    step: &'a Step,
    /// Whether it is computed in float64.
    wide: bool,
    source: &'a mut Input<'w>,
    terms: &'a mut [(f64, Input<'w>)],
}

impl<'w> Work<'_, 'w> {
    fn blocks(&self, room: usize) -> Option<Blocks> {
        let terms = self.terms.iter().map(|(_, term)| term.data.dtype());
        let types = std::iter::once(self.source.data.dtype()).chain(terms).collect();
        Blocks::new(room, types, self.step.dtype, self.wide)
    }

    /// Copies the elements of a block to where the GPU fetches them, with their checksums, and has it begin.
    fn start(&mut self, blocks: &Blocks, block: &Range<usize>, slot: &mut Slot) -> Result<(), CudaError> {
        let up = slot.input()?;
        let lambdas: Vec<f64> = std::iter::once(0.0).chain(self.terms.iter().map(|(lambda, _)| *lambda)).collect();
        let places = blocks.table(block.len(), &lambdas, up);
        let inputs = std::iter::once(&mut *self.source).chain(self.terms.iter_mut().map(|(_, term)| term));
        for (input, mut place) in inputs.zip(places) {
            let size = input.data.dtype().size();
            for first in block.clone().step_by(COPY) {
                let piece = first..block.end.min(first + COPY);
                let to = &mut up[place..place + piece.len() * size];
                input.data.view().read(first, to);
                if let Some((_, crc)) = &mut input.unchecked {
                    crc.update(to);
                }
                place += to.len();
            }
        }
        slot.start(&blocks.job(block.len()))
    }

    /// Takes the checksums of what is read out of the way, or puts them back: each byte is taken into them once.
    fn swap_checksums(&mut self, aside: &mut [Option<(Unchecked<'w>, Hasher)>]) {
        let inputs = std::iter::once(&mut *self.source).chain(self.terms.iter_mut().map(|(_, term)| term));
        for (input, aside) in inputs.zip(aside) {
            std::mem::swap(&mut input.unchecked, aside);
        }
    }
}

impl<'w> Worker<'w> {
    /// Computes elements of a step on the GPU, from the first on, as far as there is one and it works. Returns what is left to
    /// the processor.
    pub(in crate::engine) fn on_gpu(
        &mut self,
        step: &Step,
        wide: bool,
        source: &mut Input<'w>,
        terms: &mut [(f64, Input<'w>)],
        range: Range<usize>,
        done: &mut Done<'w>,
    ) -> Result<Range<usize>> {
        if terms.is_empty() {
            return Ok(range);
        }
        let Some((cuda, mut lane)) = self.hand.take() else { return Ok(range) };
        let mut work = Work { step, wide, source, terms };
        let rest = match work.blocks(lane.room) {
            Some(blocks) => self.through(&mut lane, &mut work, &blocks, range, done),
            None => Ok(range),
        };
        // What is left of the slots of a GPU that failed is of no use.
        if !cuda.is_broken() {
            self.hand.put(lane);
        }
        rest
    }

    /// Through two slots by turns: one is filled while the GPU is at work on the other.
    fn through(
        &mut self,
        lane: &mut Lane,
        work: &mut Work<'_, 'w>,
        blocks: &Blocks,
        range: Range<usize>,
        done: &mut Done<'w>,
    ) -> Result<Range<usize>> {
        let mut failed = None;
        let mut waiting: VecDeque<(usize, Range<usize>)> = VecDeque::new();
        let (mut next, mut turn) = (range.start, 0);
        loop {
            if next < range.end && failed.is_none() {
                let block = next..range.end.min(next + blocks.most);
                next = block.end;
                failed = work.start(blocks, &block, &mut lane.slots[turn]).err();
                waiting.push_back((turn, block));
                turn = 1 - turn;
                if waiting.len() < lane.slots.len() && next < range.end && failed.is_none() {
                    continue;
                }
            }
            let Some((turn, block)) = waiting.pop_front() else { break };
            self.finish(&mut lane.slots[turn], work, blocks, block, &mut failed, done)?;
        }
        if let (Some(error), Some(cuda)) = (failed, &self.shared.computer.cuda) {
            cuda.fail(&error, self.shared.computer);
        }
        Ok(next..range.end)
    }

    /// Takes what the GPU made of a block; computes it anew if it failed.
    fn finish(
        &mut self,
        slot: &mut Slot,
        work: &mut Work<'_, 'w>,
        blocks: &Blocks,
        block: Range<usize>,
        failed: &mut Option<CudaError>,
        done: &mut Done<'w>,
    ) -> Result<()> {
        let count = block.len();
        let found = match failed {
            None => slot.output(),
            // What it had begun before it failed is not trusted either.
            Some(_) => Ok(&[][..]),
        };
        let found = match found {
            Ok([]) => None,
            Ok(down) => blocks.result(count, down),
            Err(error) => {
                *failed = Some(error);
                None
            }
        };
        let Some((bytes, norms, lost)) = found else {
            // Of a NaN a GPU keeps no bits: where there is one, the processor's are taken.
            return self.anew(work, block, done);
        };
        if let Some(crc) = &mut done.crc {
            crc.update(bytes);
        }
        done.add(norms, false, lost);
        self.shared.computer.computed(true, count);
        self.shared.watched.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.len() >= GATHERED {
            return self.out.pass(bytes);
        }
        self.out.put(bytes);
        self.out.flush_whole()
    }

    /// Computes a block on the processor whose elements are in the checksums already.
    fn anew(&mut self, work: &mut Work<'_, 'w>, block: Range<usize>, done: &mut Done<'w>) -> Result<()> {
        let mut aside = Vec::new();
        aside.resize_with(1 + work.terms.len(), || None);
        work.swap_checksums(&mut aside);
        let computed = self.on_cpu(work.step, work.wide, work.source, work.terms, block, done);
        work.swap_checksums(&mut aside);
        computed
    }
}
