//! What one thread does: computes units and writes them.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crc32fast::Hasher;
use pulp::Arch;

use super::buffer::Buffer;
use super::kernels::{self, BLOCK, Real};
use super::simd::{BF16, Element, F16, F32, Fold};
use super::units::{UNIT, Unit};
use super::{Lost, Norms, Shared};
use crate::checkpoint::{TensorData, Unchecked};
use crate::error::Result;
use crate::plan::{Source, Step};
use crate::tensor::DType;
use crate::write::OpenFile;

/// Bytes that are copied at a time, between one look for NaN and the next checksum.
const COPY: usize = 64 << 10;

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
    /// For the source and each term, the checksum of the bytes that were read if it is to be compared.
    pub(super) sources: Vec<Option<(Unchecked<'r>, Hasher)>>,
}

impl Done<'_> {
    /// Compares the checksums of what was read, all parts of it being joined.
    ///
    /// # Errors
    /// [`crate::Error::Zip`].
    pub(super) fn settle(&mut self) -> Result<()> {
        self.sources.drain(..).flatten().try_for_each(|(unchecked, crc)| unchecked.settle(crc.finalize()))
    }

    /// Adds what was found in the part that follows.
    pub(super) fn join(&mut self, next: Done<'_>) {
        if let (Some(crc), Some(more)) = (&mut self.crc, &next.crc) {
            crc.combine(more);
        }
        for (source, more) in self.sources.iter_mut().zip(next.sources) {
            match (&mut *source, more) {
                (Some((_, crc)), Some((_, more))) => crc.combine(&more),
                // Another step that has all of the same entry was settled meanwhile.
                _ => *source = None,
            }
        }
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

/// A tensor that is read, and what becomes of its checksum.
pub(super) struct Input<'r> {
    pub(super) data: TensorData<'r>,
    pub(super) unchecked: Option<(Unchecked<'r>, Hasher)>,
}

impl Input<'_> {
    /// The little-endian bytes of elements, where they lie just so.
    pub(super) fn bytes(&self, elements: &Range<usize>) -> Option<&[u8]> {
        let size = self.data.dtype().size();
        Some(&self.data.view().as_bytes()?[elements.start * size..elements.end * size])
    }

    /// The elements, if they lie in memory as this processor has them; they have to be of that type.
    fn bits<E: Element>(&self, elements: &Range<usize>) -> Option<&[E::Bits]> {
        if cfg!(target_endian = "little") { bytemuck::try_cast_slice(self.bytes(elements)?).ok() } else { None }
    }

    /// Takes elements into the checksum; only tensors that lie in the map as they are have one.
    pub(super) fn check(&mut self, elements: &Range<usize>) {
        let size = self.data.dtype().size();
        if let Some((_, crc)) = &mut self.unchecked
            && let Some(bytes) = self.data.view().as_bytes()
        {
            crc.update(&bytes[elements.start * size..elements.end * size]);
        }
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
        self.buffer.begin(at);
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

    /// Writes bytes that lie in a map as they are, not through the buffer.
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
    raw: Vec<u8>,
}

impl<'w> Worker<'w> {
    pub(super) fn new(shared: &'w Shared<'w>, file: &'w OpenFile) -> Worker<'w> {
        let out = Out { shared, file, at: 0, buffer: Buffer::new(UNIT + COPY) };
        Worker {
            shared,
            out,
            #[cfg(feature = "fold-cuda")]
            hand: super::cuda::Hand::new(shared.computer),
            arch: Arch::new(),
            raw: Vec::new(),
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
            Source::Run { .. } => Input { data: self.shared.source(step)?, unchecked: None },
        };
        let mut terms = Vec::with_capacity(step.terms.len());
        for (number, term) in step.terms.iter().enumerate() {
            terms.push((term.lambda, self.open(step, Some(number))?));
        }
        let crc = self.out.file.has_checksums().then(Hasher::new);
        let (norms, lost) = (Norms::default(), Lost::default());
        let mut done = Done { place, cut, crc, norms, bad: false, lost, sources: Vec::new() };
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
        done.sources = inputs.map(|input| input.unchecked).collect();
        if done.bad
            && !self.shared.allow_non_finite
            && let Some(name) = self.shared.non_finite_outputs(index)?.first()
        {
            return Err(self.shared.non_finite(index, name)?);
        }
        Ok(done)
    }

    /// Opens the source of a step, or the tensor of a term.
    fn open(&self, step: &Step, term: Option<usize>) -> Result<Input<'w>> {
        let tensor = term.map_or(step.source.tensor(), |term| step.terms[term].source);
        let (data, unchecked) = self.shared.inputs[tensor.input].unchecked(tensor.tensor)?;
        Ok(Input { data, unchecked: unchecked.map(|unchecked| (unchecked, Hasher::new())) })
    }

    /// Copies elements as they are.
    fn copy(&mut self, source: &mut Input<'w>, range: Range<usize>, done: &mut Done<'w>) -> Result<()> {
        let view = source.data.view();
        let size = view.dtype().size();
        let mut look = |bytes: &[u8]| {
            done.bad = done.bad
                || self.arch.dispatch(
                    #[inline(always)]
                    || kernels::has_non_finite(view.dtype(), bytes),
                );
            // What is copied has the checksum of what is read.
            let crc = match (&mut source.unchecked, &mut done.crc) {
                (Some((_, crc)), _) | (None, Some(crc)) => crc,
                (None, None) => return,
            };
            crc.update(bytes);
        };
        if let Some(bytes) = view.as_bytes() {
            let bytes = &bytes[range.start * size..range.end * size];
            for piece in bytes.chunks(UNIT) {
                piece.chunks(COPY).for_each(&mut look);
                if bytes.len() < UNIT {
                    self.out.put(piece);
                } else {
                    self.out.pass(piece)?;
                }
                self.shared.watched.done.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        } else {
            let mut first = range.start;
            while first < range.end {
                let count = (COPY / size).min(range.end - first);
                self.raw.resize(count * size, 0);
                view.read(first, &mut self.raw);
                look(&self.raw);
                self.out.put(&self.raw);
                self.out.flush_whole()?;
                self.shared.watched.done.fetch_add((count * size) as u64, Ordering::Relaxed);
                first += count;
            }
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
        let alike = !terms.is_empty()
            && std::iter::once(&*source)
                .chain(terms.iter().map(|(_, term)| term))
                .all(|i| i.data.dtype() == step.dtype);
        let folds = match step.dtype {
            DType::F32 if alike => Worker::fold::<F32>,
            DType::F16 if alike => Worker::fold::<F16>,
            DType::BF16 if alike => Worker::fold::<BF16>,
            _ => |_: &mut Self, _: &Input<'w>, _: &[(f64, Input<'w>)], _: &Range<usize>, _: &mut Done<'w>| false,
        };
        for first in range.clone().step_by(BLOCK) {
            let block = first..range.end.min(first + BLOCK);
            // Now, while the block is in the first-level cache, or on its way there.
            source.check(&block);
            terms.iter_mut().for_each(|(_, term)| term.check(&block));
            let bytes = block.len() * step.dtype.size();
            if !folds(self, source, terms, &block, done) {
                self.block(step, source, terms, block, &mut buffers, done);
            }
            if let Some(crc) = &mut done.crc {
                crc.update(self.out.buffer.last(bytes));
            }
            self.shared.watched.done.fetch_add(bytes as u64, Ordering::Relaxed);
            self.out.flush_whole()?;
        }
        Ok(())
    }

    /// Computes at most [`BLOCK`] elements of tensors of one type, if all lie in memory as this processor has them; says whether.
    fn fold<E: Element>(
        &mut self,
        source: &Input<'w>,
        terms: &[(f64, Input<'w>)],
        range: &Range<usize>,
        done: &mut Done<'w>,
    ) -> bool {
        let terms: Option<Vec<_>> =
            terms.iter().map(|(lambda, term)| Some((*lambda as f32, term.bits::<E>(range)?))).collect();
        let (Some(source), Some([first, more @ ..])) = (source.bits::<E>(range), terms.as_deref()) else {
            return false;
        };
        let bytes = size_of_val(source);
        let Ok(out) = bytemuck::try_cast_slice_mut(self.out.buffer.room(bytes)) else {
            self.out.buffer.take_back(bytes);
            return false;
        };
        let folded = self.arch.dispatch(Fold::<E> { source, first: *first, more, out });
        done.add(folded.norms, folded.bad, Lost::default());
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
        load(arch, source, &range, &mut self.raw, sum);
        let (mut norms, mut lost) = (Norms::default(), Lost::default());
        if !terms.is_empty() {
            norms.source = arch.dispatch(
                #[inline(always)]
                || kernels::sum_of_squares(sum, T::to_f64),
            );
            change.fill(T::default());
            for (lambda, term) in terms {
                load(arch, term, &range, &mut self.raw, values);
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

/// Elements of a tensor, as numbers.
fn load<T: Real>(arch: Arch, input: &Input<'_>, range: &Range<usize>, raw: &mut Vec<u8>, into: &mut [T]) {
    let dtype = input.data.dtype();
    let bytes = input.bytes(range).unwrap_or_else(|| {
        raw.resize(range.len() * dtype.size(), 0);
        input.data.view().read(range.start, raw);
        raw
    });
    arch.dispatch(
        #[inline(always)]
        || T::load(dtype, bytes, into),
    );
}
