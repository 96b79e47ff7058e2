//! Gradients of what is learned of a model, and of nothing else.
//!
//! Blocks of the commonest kind are run forwards and backwards by functions of this room (`plain.rs`), every thread with images of its
//! own; what comes before and after them, other kinds of blocks, and everything on a GPU, go through candle's own gradients. Sums
//! are made in the order of the threads: the same numbers of threads give the same bits.

mod linear;
mod math;
mod plain;

use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, Storage, Tensor, Var};
use pulp::Arch;
use rayon::prelude::*;

use super::kernels::{Kernels, Ops};
use super::variable::Variable;
use super::vit::Vit;

type Result<T> = candle_core::Result<T>;

/// What is learned of a model, and how its gradients are computed.
#[derive(Debug, Default)]
pub struct Training {
    variables: Vec<Variable>,
    again: bool,
    composed: bool,
    workspace: Mutex<Workspace>,
}

/// Memory that is kept from one step to the next.
#[derive(Debug, Default)]
struct Workspace {
    /// Of each block: its folded weights.
    folded: Vec<[Vec<f32>; plain::LAYERS]>,
    /// Of each thread.
    rooms: Vec<Room>,
}

impl Training {
    /// These are learned. With `again`, blocks keep only what goes into them and are run once more on the way back: a third more
    /// work, and much less memory.
    #[must_use]
    pub fn new(variables: Vec<Variable>, again: bool) -> Training {
        Training { variables, again, ..Training::default() }
    }

    /// All of it goes through candle's own gradients: slow on the CPU, and a second opinion.
    #[must_use]
    pub fn composed(mut self) -> Training {
        self.composed = true;
        self
    }

    /// How many numbers are learned.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.variables.iter().map(|variable| variable.range().end).max().unwrap_or_default()
    }

    fn collect(&self, store: &GradStore, gradients: &mut [f64]) -> Result<()> {
        for variable in &self.variables {
            if let Some(gradient) = store.get(variable.tensor()) {
                let values = gradient.flatten_all()?.to_vec1::<f32>()?;
                gradients[variable.range()].iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
        Ok(())
    }
}

/// What one pass forwards and backwards gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// The logits, image by image.
    pub logits: Vec<f32>,
    /// The gradients of all that is learned.
    pub gradients: Vec<f64>,
}

/// The gradient of the loss with respect to logits: of the number of their first image among all, and these.
pub type Slopes<'s> = dyn Fn(usize, &[f32]) -> Vec<f32> + Sync + 's;

/// Buffers of one thread, used again and again.
#[derive(Debug)]
struct Room {
    arch: Arch,
    /// How many threads share a product.
    threads: usize,
    free: Vec<Vec<f32>>,
}

impl Room {
    fn new() -> Room {
        Room { arch: Arch::new(), threads: 1, free: Vec::new() }
    }

    /// A buffer of that length, with anything in it.
    fn take(&mut self, length: usize) -> Vec<f32> {
        let fits = |buffer: &&(usize, usize)| buffer.1 >= length;
        let sizes = self.free.iter().enumerate().map(|(n, buffer)| (n, buffer.capacity()));
        let best = sizes.collect::<Vec<_>>().iter().filter(fits).min_by_key(|buffer| buffer.1).copied();
        let mut buffer = best.map(|(n, _)| self.free.swap_remove(n)).unwrap_or_default();
        buffer.resize(length, 0.0);
        buffer
    }

    /// The elements of a tensor, row-major.
    fn copy(&mut self, tensor: &Tensor) -> Result<Vec<f32>> {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((first, end))) = (&*storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("float32 on the CPU is needed")
        };
        let mut copy = self.take(end - first);
        copy.copy_from_slice(&values[first..end]);
        Ok(copy)
    }

    fn give(&mut self, buffer: Vec<f32>) {
        self.free.push(buffer);
    }

    fn give_all(&mut self, buffers: impl IntoIterator<Item = Option<Vec<f32>>>) {
        self.free.extend(buffers.into_iter().flatten());
    }
}

impl<'c> Vit<'c> {
    /// The logits of `images`, `[batch, channels, height, width]` in float32, and the gradients of a loss with respect to all that is
    /// learned, whose numbers are `values`. `slopes` is told logits, and answers with the loss's gradient with respect to them.
    ///
    /// # Errors
    /// candle's, if the images or the values do not fit the model.
    pub fn gradients(
        &self,
        training: &Training,
        values: &[f32],
        images: &Tensor,
        slopes: &Slopes<'_>,
    ) -> Result<Gradients> {
        if values.len() != training.numbers() {
            candle_core::bail!("{} numbers are learned, and {} are given", training.numbers(), values.len());
        }
        training.variables.iter().try_for_each(|variable| variable.set(values))?;
        let mut workspace = training.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let Workspace { folded, rooms } = &mut *workspace;
        let plain = self.blocks.iter().map(|block| block.plain()).collect::<Option<Vec<_>>>();
        let Some(plain) = plain.filter(|_| self.ops.kernels == Kernels::Fused && !training.composed) else {
            let mut gradients = vec![0.0; values.len()];
            let logits = self.composed(training, images, slopes, &mut gradients)?;
            return Ok(Gradients { logits, gradients });
        };
        folded.resize_with(plain.len(), Default::default);
        let blocks = plain.into_par_iter().zip(&mut *folded);
        let blocks =
            blocks.map(|(block, buffers)| plain::Block::new(block, values, buffers)).collect::<Result<Vec<_>>>()?;

        let (batch, threads) = (images.dim(0)?, rayon::current_num_threads());
        let shares = threads.min(batch).max(1);
        rooms.resize_with(shares.max(rooms.len()), Room::new);
        let starts: Vec<usize> = (0..=shares).map(|n| n * batch / shares).collect();
        let parts = starts.par_windows(2).zip(&mut *rooms).map(|(range, room)| {
            room.threads = threads / shares;
            let images = images.narrow(0, range[0], range[1] - range[0])?;
            let mut gradients = vec![0.0; values.len()];
            let logits =
                self.share(training, &blocks, &images, &|logits| slopes(range[0], logits), room, &mut gradients)?;
            Ok((logits, gradients))
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        blocks.into_iter().zip(folded).for_each(|(block, buffers)| block.give_back(buffers));
        let (mut logits, mut gradients) = (Vec::new(), vec![0.0; values.len()]);
        for (of_part, part) in parts {
            logits.extend(of_part);
            gradients.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        Ok(Gradients { logits, gradients })
    }

    /// What is in front of the blocks; gradients pass through it if anything of it is learned.
    fn begin(&self, images: &Tensor) -> Result<Tensor> {
        let learned = [&self.patch_norm, &self.norm_pre].into_iter().flatten().any(super::layers::Norm::learns);
        let kernels = if learned { Kernels::Candle } else { self.ops.kernels };
        self.embed(images, Ops { kernels, threads: 1, ..self.ops })
    }

    /// From what the blocks give to the gradient of that, if it is not learned already.
    fn end(
        &self,
        training: &Training,
        x: &Var,
        slopes: &dyn Fn(&[f32]) -> Vec<f32>,
        gradients: &mut [f64],
    ) -> Result<(Vec<f32>, Tensor)> {
        let logits = self.finish(x.as_tensor().clone(), Ops { kernels: Kernels::Candle, ..self.ops })?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        let slopes = Tensor::from_vec(slopes(&values), logits.shape(), logits.device())?;
        let store = pull(&logits, &slopes)?;
        training.collect(&store, gradients)?;
        let of_x = store.get(x.as_tensor()).cloned();
        Ok((values, of_x.map_or_else(|| x.as_tensor().zeros_like(), Ok)?))
    }

    /// Images of one thread, through plain blocks.
    fn share(
        &self,
        training: &Training,
        blocks: &[plain::Block<'_>],
        images: &Tensor,
        slopes: &dyn Fn(&[f32]) -> Vec<f32>,
        room: &mut Room,
        gradients: &mut [f64],
    ) -> Result<Vec<f32>> {
        let begun = self.begin(images)?;
        let (shape, tokens) = (begun.shape().clone(), begun.dim(1)?);
        // Before the first block with anything learned, nothing has to be kept.
        let first = match begun.track_op() {
            true => 0,
            false => blocks.iter().position(plain::Block::learns).unwrap_or(blocks.len()),
        };
        let (mut x, mut kept) = (room.copy(&begun)?, Vec::new());
        for (n, block) in blocks.iter().enumerate() {
            let (y, needed) = block.forward(x, tokens, training.again || n < first, room);
            x = y;
            if n < first { needed.give(room) } else { kept.push((block, needed)) }
        }
        let last = Var::from_tensor(&Tensor::from_slice(&x, &shape, &Device::Cpu)?)?;
        // Every buffer goes back to where it came from, so that a step needs no more of them than the one before.
        room.give(x);
        let (logits, g) = self.end(training, &last, slopes, gradients)?;
        drop(last);
        let mut g = room.copy(&g)?;
        while let Some((block, needed)) = kept.pop() {
            let wanted = !kept.is_empty() || begun.track_op();
            match block.backward(needed, g, tokens, wanted, room, gradients) {
                Some(of_x) => g = of_x,
                None => return Ok(logits),
            }
        }
        if begun.track_op() {
            training.collect(&pull(&begun, &Tensor::from_slice(&g, &shape, &Device::Cpu)?)?, gradients)?;
        }
        room.give(g);
        Ok(logits)
    }

    /// All through candle's own gradients, block by block.
    fn composed(
        &self,
        training: &Training,
        images: &Tensor,
        slopes: &Slopes<'_>,
        gradients: &mut [f64],
    ) -> Result<Vec<f32>> {
        let ops = Ops { kernels: Kernels::Candle, ..self.ops };
        let begun = self.begin(images)?;
        let mut x = begun.detach();
        // Of each block that gradients pass through: what goes in, and what comes out.
        let mut kept: Vec<(Var, Option<Tensor>)> = Vec::new();
        let mut passed = begun.track_op();
        for block in &self.blocks {
            let input = Var::from_tensor(&x)?;
            let given = if passed { input.as_tensor().clone() } else { x.clone() };
            let y = block.forward(given, ops)?;
            x = y.detach();
            passed |= y.track_op();
            if passed {
                kept.push((input, (!training.again).then_some(y)));
            }
        }
        let last = Var::from_tensor(&x)?;
        let (logits, mut g) = self.end(training, &last, &|logits| slopes(0, logits), gradients)?;
        let first = self.blocks.len() - kept.len();
        for (n, (input, y)) in kept.into_iter().enumerate().rev() {
            let y = match y {
                Some(y) => y,
                None => self.blocks[first + n].forward(input.as_tensor().clone(), ops)?,
            };
            let store = pull(&y, &g)?;
            training.collect(&store, gradients)?;
            match store.get(input.as_tensor()) {
                Some(of_x) => g = of_x.clone(),
                // The first one that anything is learned of.
                None => return Ok(logits),
            }
        }
        if begun.track_op() {
            training.collect(&pull(&begun, &g)?, gradients)?;
        }
        Ok(logits)
    }
}

/// The gradients of whatever `y` comes from, if that of `y` is `g`.
fn pull(y: &Tensor, g: &Tensor) -> Result<GradStore> {
    (y * g.detach())?.sum_all()?.backward()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again() {
        let mut room = Room::new();
        let (a, b) = (room.take(10), room.take(100));
        let places = (a.as_ptr(), b.as_ptr());
        room.give_all([Some(b), None, Some(a)]);
        // The smallest that is large enough; one that is too small stays.
        let (c, d) = (room.take(7), room.take(11));
        assert_eq!(((c.as_ptr(), c.len()), (d.as_ptr(), d.len())), ((places.0, 7), (places.1, 11)));
        let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap().t().unwrap();
        assert_eq!(room.copy(&tensor).unwrap(), [1.0, 3.0, 2.0, 4.0]);
        assert!(room.copy(&tensor.to_dtype(candle_core::DType::F64).unwrap()).is_err());
    }
}
