//! What one thread does: computes units and writes them.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crc32fast::Hasher;
use pulp::Arch;

use super::buffer::Buffer;
use super::checks::{Checks, Sum};
use super::input::Input;
use super::kernels::{self, BLOCK, Real};
use super::simd::{BF16, Element, F16, F32, Fold};
use super::units::{UNIT, Unit};
use super::{Lost, Norms, Shared};
use crate::error::Result;
use crate::plan::{Source, Step};
use crate::tensor::DType;
use crate::write::OpenFile;

/// Bytes of a copy that are looked at and taken into the checksum at a time.
const COPY: usize = 64 << 10;

/// Bytes of each input that are taken into its checksum at a time, before they are computed with: they stay in the second-level cache, and
/// long runs come from memory faster than short ones of several inputs by turns.
const SPAN: usize = 128 << 10;

/// Bytes of all inputs together that are read at a time; little more is kept by a thread.
const ROOM: usize = 2 << 20;

/// What was found in a unit, of one step.
pub(super) struct Done<'r> {
    /// The step's place in its file.
    pub(super) place: usize,
    /// Whether it is only a part of the step, so that what follows the step's data is not written.
    pub(super) cut: bool,
    /// The checksum of what was written, if the file has any.
    pub(super) crc: Option<Hasher>,
    /// Norms of the elements, if the step has terms.
    pub(super) norms: Norms,
    /// Whether a NaN or infinity was written.
    pub(super) bad: bool,
    /// What a cast could not hold.
    pub(super) lost: Lost,
    /// Of the source and each term.
    pub(super) inputs: Checks<'r>,
}

impl<'r> Done<'r> {
    /// Compares the checksums of what was read, all parts of it being joined.
    ///
    /// # Errors
    /// As [`Checks::settle`].
    pub(super) fn settle(&mut self) -> Result<()> {
        std::mem::replace(&mut self.inputs, Checks::Each(Vec::new())).settle()
    }

    /// Adds what was found in the part that follows.
    pub(super) fn join(&mut self, next: Done<'r>) {
        if let (Some(crc), Some(more)) = (&mut self.crc, &next.crc) {
            crc.combine(more);
        }
        self.inputs.join(next.inputs);
        self.add(next.norms, next.bad, next.lost);
    }

    pub(super) fn add(&mut self, norms: Norms, bad: bool, lost: Lost) {
        self.norms.source += norms.source;
        self.norms.change += norms.change;
        self.bad |= bad;
        self.lost.overflow += lost.overflow;
        self.lost.underflow += lost.underflow;
    }
}

/// Bytes on their way to the file: gathered, and written in large pieces.
pub(super) struct Out<'w> {
    shared: &'w Shared<'w>,
    file: &'w OpenFile,
    /// Where the buffer's first byte belongs.
    at: u64,
    pub(super) buffer: Buffer,
}

impl Out<'_> {
    /// Begins anew at a place of the file.
    fn begin(&mut self, at: u64) {
        self.at = at;
        self.buffer.begin(at, UNIT + COPY);
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.buffer.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Writes what was put.
    pub(super) fn flush(&mut self) -> Result<()> {
        let bytes = self.buffer.filled();
        self.write(bytes)?;
        self.begin(self.at + bytes.len() as u64);
        Ok(())
    }

    /// Writes what was put, if it is as much as is written at a time.
    pub(super) fn flush_whole(&mut self) -> Result<()> {
        if self.buffer.filled().len() < UNIT { Ok(()) } else { self.flush() }
    }

    /// Writes bytes from where they are, not through the buffer.
    #[cfg(feature = "fold-cuda")]
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        self.write(bytes)?;
        self.begin(self.at + bytes.len() as u64);
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            self.file.write_at(self.at, bytes)?;
            self.shared.pace.wrote(bytes.len(), &self.shared.watched.stop);
        }
        Ok(())
    }
}

/// A thread's buffers, and what it found so far.
pub(super) struct Worker<'w> {
    pub(super) shared: &'w Shared<'w>,
    pub(super) out: Out<'w>,
    #[cfg(feature = "fold-cuda")]
    pub(super) hand: super::cuda::Hand<'w>,
    arch: Arch,
    /// Buffers for inputs that are not in use, the source's at the end: each is for the same place again, so that steps of few terms
    /// do not make all of those that steps of many have as large as their own.
    spare: Vec<Buffer>,
}

impl<'w> Worker<'w> {
    pub(super) fn new(shared: &'w Shared<'w>, file: &'w OpenFile) -> Worker<'w> {
        let out = Out { shared, file, at: 0, buffer: Buffer::default() };
        Worker {
            shared,
            out,
            #[cfg(feature = "fold-cuda")]
            hand: super::cuda::Hand::new(shared.computer),
            arch: Arch::new(),
            spare: Vec::new(),
        }
    }

    /// Computes a unit and writes it; says what was found of each of its steps.
    pub(super) fn run(&mut self, unit: &Unit) -> Result<Vec<Done<'w>>> {
        let mut found = Vec::with_capacity(1);
        match unit {
            Unit::Part { place, first, count } => {
                let step = &self.shared.plan.steps[self.out.file.steps()[*place]];
                let at = self.out.file.begin(*place) + (first * step.dtype.size()) as u64;
                self.out.begin(at);
                let done = self.step(*place, *first..first + count, true)?;
                found.push(done);
            }
            Unit::Steps(places) => {
                self.out.begin(self.out.file.begin(places.start));
                for place in places.clone() {
                    let numel = self.shared.plan.steps[self.out.file.steps()[place]].numel;
                    let mut done = self.step(place, 0..numel, false)?;
                    done.settle()?;
                    let crc = done.crc.clone().map(Hasher::finalize).unwrap_or_default();
                    self.out.put(&self.out.file.tail(place, crc));
                    found.push(done);
                }
            }
        }
        self.out.flush()?;
        Ok(found)
    }

    /// Computes elements of the step at that place.
    fn step(&mut self, place: usize, range: Range<usize>, cut: bool) -> Result<Done<'w>> {
        let index = self.out.file.steps()[place];
        let step = &self.shared.plan.steps[index];
        // Who makes tensors in memory does so alone.
        let made = !cut && step.bytes() > UNIT as u64;
        let _making = made.then(|| self.shared.making.lock().unwrap_or_else(PoisonError::into_inner));
        let mut source = match step.source {
            Source::Tensor(_) => self.open(step, None)?,
            Source::Run { .. } => Input::new(self.shared.source(step)?, None, self.spare.pop().unwrap_or_default()),
        };
        let mut terms = Vec::with_capacity(step.terms.len());
        for (number, term) in step.terms.iter().enumerate() {
            terms.push((term.lambda, self.open(step, Some(number))?));
        }
        let crc = self.out.file.has_checksums().then(Hasher::new);
        let (norms, lost) = (Norms::default(), Lost::default());
        let mut done = Done { place, cut, crc, norms, bad: false, lost, inputs: Checks::Each(Vec::new()) };
        let wide = source.data.dtype() == DType::F64 || terms.iter().any(|(_, input)| input.data.dtype() == DType::F64);
        match (terms.is_empty() && source.data.dtype() == step.dtype, wide) {
            (true, _) => self.copy(&mut source, range, &mut done)?,
            (false, wide) => {
                #[cfg(feature = "fold-cuda")]
                let range = self.on_gpu(step, wide, &mut source, &mut terms, range, &mut done)?;
                self.on_cpu(step, wide, &mut source, &mut terms, range, &mut done)?;
            }
        }
        let inputs = std::iter::once(source).chain(terms.into_iter().map(|(_, input)| input));
        let (unchecked, buffers): (_, Vec<_>) = inputs.map(|input| (input.unchecked, input.buffer)).unzip();
        done.inputs = done.inputs.or_each(unchecked);
        self.spare.extend(buffers.into_iter().rev());
        // Those that are needed least often go.
        while self.spare.iter().map(Buffer::size).sum::<usize>() > ROOM + UNIT {
            self.spare.remove(0);
        }
        if done.bad
            && !self.shared.allow_non_finite
            && let Some(name) = self.shared.non_finite_outputs(index)?.first()
        {
            return Err(self.shared.non_finite(index, name)?);
        }
        Ok(done)
    }

    /// Opens the source of a step, or the tensor of a term.
    fn open(&mut self, step: &Step, term: Option<usize>) -> Result<Input<'w>> {
        let tensor = term.map_or(step.source.tensor(), |term| step.terms[term].source);
        let (data, unchecked) = self.shared.inputs[tensor.input].unchecked(tensor.tensor)?;
        Ok(Input::new(data, unchecked, self.spare.pop().unwrap_or_default()))
    }

    /// Copies elements as they are.
    fn copy(&mut self, source: &mut Input<'w>, range: Range<usize>, done: &mut Done<'w>) -> Result<()> {
        let dtype = source.data.dtype();
        let most = UNIT / dtype.size();
        for first in range.clone().step_by(most) {
            let piece = first..range.end.min(first + most);
            let bytes = self.out.buffer.room(piece.len() * dtype.size());
            source.data.read(&piece, bytes)?;
            for bytes in bytes.chunks(COPY) {
                done.bad = done.bad
                    || self.arch.dispatch(
                        #[inline(always)]
                        || kernels::has_non_finite(dtype, bytes),
                    );
                // What is copied has the checksum of what is read.
                match (&mut source.unchecked, &mut done.crc) {
                    (Some((_, crc)), _) | (None, Some(crc)) => crc.update(bytes),
                    (None, None) => {}
                }
            }
            self.shared.watched.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.out.flush_whole()?;
        }
        if let (Some((_, crc)), Some(own)) = (&source.unchecked, &mut done.crc) {
            own.clone_from(crc);
        }
        Ok(())
    }

    /// Computes elements in float64 if it is `wide`, in float32 otherwise.
    pub(super) fn on_cpu(
        &mut self,
        step: &Step,
        wide: bool,
        source: &mut Input<'w>,
        terms: &mut [(f64, Input<'w>)],
        range: Range<usize>,
        done: &mut Done<'w>,
    ) -> Result<()> {
        if !terms.is_empty() {
            self.shared.computer.computed(false, range.len());
        }
        match (range.is_empty(), wide) {
            (true, _) => Ok(()),
            (false, true) => self.compute::<f64>(step, source, terms, range, done),
            (false, false) => self.compute::<f32>(step, source, terms, range, done),
        }
    }

    /// Computes elements: the source, plus each term, in the type of the step.
    fn compute<T: Real>(
        &mut self,
        step: &Step,
        source: &mut Input<'w>,
        terms: &mut [(f64, Input<'w>)],
        range: Range<usize>,
        done: &mut Done<'w>,
    ) -> Result<()> {
        let mut buffers = [const { Vec::new() }; 3].map(|mut buffer: Vec<T>| {
            buffer.resize(BLOCK, T::default());
            buffer
        });
        // Tensors of one type, as nearly all are, have kernels of their own.
        let mut inputs = std::iter::once(&*source).chain(terms.iter().map(|(_, term)| term));
        let alike = !terms.is_empty() && inputs.clone().all(|i| i.data.dtype() == step.dtype);
        if alike
            && self.shared.computer.is_cpu()
            && inputs.all(|input| input.unchecked.is_some())
            && let Some(sum) = Sum::new(self.arch, terms.len())
        {
            done.inputs = Checks::Together(Vec::new(), sum);
        }
        let folds = match step.dtype {
            DType::F32 if alike => Worker::fold::<F32>,
            DType::F16 if alike => Worker::fold::<F16>,
            DType::BF16 if alike => Worker::fold::<BF16>,
            _ => {
                |_: &mut Self, _: &mut Input<'w>, _: &mut [(f64, Input<'w>)], _: &Range<usize>, _: &mut Done<'w>| false
            }
        };
        let types = std::iter::once(&*source).chain(terms.iter().map(|(_, term)| term)).map(|i| i.data.dtype().size());
        let most = UNIT.min(ROOM / (1 + terms.len())) / types.chain([step.dtype.size()]).max().unwrap_or(1);
        let most = most.next_multiple_of(BLOCK);
        for first in range.clone().step_by(most) {
            let piece = first..range.end.min(first + most);
            source.fetch(&piece)?;
            terms.iter_mut().try_for_each(|(_, term)| term.fetch(&piece))?;
            if !folds(self, source, terms, &piece, done) {
                if let Checks::Together(_, sum) = &mut done.inputs {
                    let inputs = std::iter::once(&*source).chain(terms.iter().map(|(_, term)| term));
                    let run: Vec<&[u8]> = inputs.map(|input| input.bytes(&piece)).collect();
                    sum.end(&run, &[]);
                }
                for first in piece.clone().step_by(BLOCK) {
                    let block = first..piece.end.min(first + BLOCK);
                    if let Checks::Each(_) = done.inputs {
                        source.check(&block);
                        terms.iter_mut().for_each(|(_, term)| term.check(&block));
                    }
                    self.block(step, source, terms, block, &mut buffers, done);
                }
            }
            self.shared.watched.done.fetch_add((piece.len() * step.dtype.size()) as u64, Ordering::Relaxed);
            self.out.flush_whole()?;
        }
        Ok(())
    }

    /// Computes a piece, which was fetched, of tensors of one type, if all of it lies in memory as this processor has it; says
    /// whether.
    fn fold<E: Element>(
        &mut self,
        source: &mut Input<'w>,
        terms: &mut [(f64, Input<'w>)],
        piece: &Range<usize>,
        done: &mut Done<'w>,
    ) -> bool {
        let bytes = piece.len() * size_of::<E::Bits>();
        let Ok(out) = bytemuck::try_cast_slice_mut::<_, E::Bits>(self.out.buffer.room(bytes)) else {
            self.out.buffer.take_back(bytes);
            return false;
        };
        let terms = terms.iter_mut().map(|(lambda, term)| Some((*lambda as f32, term.parts::<E>()?)));
        let (Some((source, mut check)), Some(mut terms)) = (source.parts::<E>(), terms.collect::<Option<Vec<_>>>())
        else {
            self.out.buffer.take_back(bytes);
            return false;
        };
        let run = std::iter::once(source).chain(terms.iter().map(|(_, (term, _))| *term));
        let run: Vec<&[u8]> = run.map(bytemuck::cast_slice).collect();
        let mut inputs = std::mem::replace(&mut done.inputs, Checks::Each(Vec::new()));
        let mut sum = inputs.sum();
        let mut blocks = Vec::with_capacity(terms.len());
        let span = SPAN / size_of::<E::Bits>();
        for (start, out) in (0..piece.len()).step_by(span).zip(out.chunks_mut(span)) {
            let bytes = size_of_val(&source[..start])..size_of_val(&source[..start + out.len()]);
            if sum.is_none() {
                let checks = std::iter::once(&mut check).chain(terms.iter_mut().map(|(_, (_, check))| check));
                checks.zip(&run).for_each(|(check, run)| {
                    check.iter_mut().for_each(|crc| crc.update(&run[bytes.clone()]));
                });
            }
            for (first, out) in (start..).step_by(BLOCK).zip(out.chunks_mut(BLOCK)) {
                let range = first..first + out.len();
                blocks.clear();
                blocks.extend(terms.iter().map(|(lambda, (term, _))| (*lambda, &term[range.clone()])));
                let [term, more @ ..] = blocks.as_slice() else { break };
                let fold = Fold::<E> { source: &source[range], first: *term, more, out, lines: () };
                let folded = match &mut sum {
                    Some(sum) => sum.fold(fold),
                    None => E::fold(self.arch, fold),
                };
                done.add(folded.norms, folded.bad, Lost::default());
            }
            if sum.is_none() {
                done.crc.iter_mut().for_each(|crc| crc.update(bytemuck::cast_slice(out)));
            }
        }
        if let Some(sum) = sum {
            let crc = sum.end(&run, bytemuck::cast_slice(out));
            done.crc.iter_mut().for_each(|whole| whole.combine(&crc));
        }
        done.inputs = inputs;
        true
    }

    /// Computes at most [`BLOCK`] elements.
    fn block<T: Real>(
        &mut self,
        step: &Step,
        source: &Input<'w>,
        terms: &[(f64, Input<'w>)],
        range: Range<usize>,
        buffers: &mut [Vec<T>; 3],
        done: &mut Done<'w>,
    ) {
        let (arch, dtype) = (self.arch, step.dtype);
        let out = self.out.buffer.room(range.len() * dtype.size());
        let [sum, values, change] = buffers.each_mut().map(|buffer| &mut buffer[..range.len()]);
        load(arch, source, &range, sum);
        let (mut norms, mut lost) = (Norms::default(), Lost::default());
        if !terms.is_empty() {
            norms.source = arch.dispatch(
                #[inline(always)]
                || kernels::sum_of_squares(sum, T::to_f64),
            );
            change.fill(T::default());
            for (lambda, term) in terms {
                load(arch, term, &range, values);
                let lambda = T::lambda(*lambda);
                arch.dispatch(
                    #[inline(always)]
                    || kernels::add_scaled(sum, change, lambda, values),
                );
            }
            norms.change = arch.dispatch(
                #[inline(always)]
                || kernels::sum_of_squares(change, T::to_f64),
            );
        }
        arch.dispatch(
            #[inline(always)]
            || T::store(dtype, sum, out),
        );
        // Nothing is lost in float64.
        if dtype != source.data.dtype() && dtype != DType::F64 {
            arch.dispatch(
                #[inline(always)]
                || T::load(dtype, out, values),
            );
            lost = arch.dispatch(
                #[inline(always)]
                || kernels::count_lost(sum, values),
            );
        }
        done.crc.iter_mut().for_each(|crc| crc.update(out));
        done.add(
            norms,
            arch.dispatch(
                #[inline(always)]
                || kernels::has_non_finite(dtype, out),
            ),
            lost,
        );
    }
}

/// Elements of a tensor that were fetched, as numbers.
fn load<T: Real>(arch: Arch, input: &Input<'_>, range: &Range<usize>, into: &mut [T]) {
    let (dtype, bytes) = (input.data.dtype(), input.bytes(range));
    arch.dispatch(
        #[inline(always)]
        || T::load(dtype, bytes, into),
    );
}
