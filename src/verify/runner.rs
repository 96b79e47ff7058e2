//! Runs models over inputs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use super::{Comparison, Logits, Source, VerifyError};
use crate::data::SampleError;
use crate::engine::Progress;
use crate::error::Error;
use crate::model::Vit;

/// A model to run, and the file that messages name.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'m> {
    /// The model.
    pub vit: &'m Vit<'m>,
    /// The checkpoint that it is from.
    pub path: &'m PathBuf,
}

/// What came of running models over inputs.
#[derive(Debug)]
pub struct Run {
    /// The inputs that could be read, in the order of the whole set, however it was shuffled.
    pub read: Vec<usize>,
    /// Those that could not, and why, in that order.
    pub failed: Vec<(usize, SampleError)>,
    /// The logits of each model, of the inputs in `read`.
    pub logits: Vec<Logits>,
    /// Time that each model took for them.
    pub computing: Vec<Duration>,
    /// Time from the first input to the last logit.
    pub elapsed: Duration,
}

/// Runs models over all inputs, in batches, while `threads` threads read ahead. Progress counts inputs.
///
/// # Errors
/// [`VerifyError`]: the inputs cannot be preprocessed so, or do not fit a model; [`Error::Cancelled`]. An input that cannot be
/// read is no error, but in [`Run::failed`].
pub fn run(
    models: &[Subject<'_>],
    source: &Source,
    batch: usize,
    threads: usize,
    progress: &mut dyn Progress,
) -> Result<Run, VerifyError> {
    let started = Instant::now();
    let mut run = Run {
        read: Vec::with_capacity(source.len()),
        failed: Vec::new(),
        logits: models.iter().map(|_| Logits::default()).collect(),
        computing: vec![Duration::ZERO; models.len()],
        elapsed: Duration::ZERO,
    };
    for batch in source.batches(batch, threads).map_err(Box::new)? {
        let count = (batch.indices.len() + batch.failed.len()) as u64;
        run.failed.extend(batch.failed);
        for (number, model) in models.iter().enumerate().filter(|_| !batch.indices.is_empty()) {
            if progress.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let begun = Instant::now();
            let rows = forward(model, source, &batch.data, batch.indices.len())?;
            run.computing[number] += begun.elapsed();
            run.logits[number].extend(rows.0, &rows.1);
        }
        run.read.extend(batch.indices);
        progress.advance(count);
    }
    run.failed.sort_by_key(|(index, _)| source.position(*index));
    let mut order: Vec<usize> = (0..run.read.len()).collect();
    order.sort_by_key(|&row| source.position(run.read[row]));
    if !order.is_sorted() {
        run.read = order.iter().map(|&row| run.read[row]).collect();
        run.logits.iter_mut().for_each(|logits| *logits = logits.select(&order));
    }
    run.elapsed = started.elapsed();
    Ok(run)
}

/// The logits of some inputs, row after row, and how many each has.
fn forward(
    model: &Subject<'_>,
    source: &Source,
    data: &[f32],
    inputs: usize,
) -> Result<(usize, Vec<f32>), VerifyError> {
    let compute = || {
        let [channels, height, width] = source.shape();
        let images = Tensor::from_slice(data, (inputs, channels, height, width), model.vit.device())?;
        let logits = model.vit.forward(&images)?;
        Ok((logits.dim(1)?, logits.flatten_all()?.to_vec1()?))
    };
    compute().map_err(|source| refused(model, source))
}

fn refused(model: &Subject<'_>, source: candle_core::Error) -> VerifyError {
    VerifyError::Model { path: model.path.clone(), source: Box::new(source.into()) }
}

/// How far apart the outputs of each block of two models are for one input, the first model being the reference.
///
/// # Errors
/// [`VerifyError::Model`] if the input does not fit a model.
pub fn trace(
    first: &Subject<'_>,
    second: &Subject<'_>,
    source: &Source,
    input: &[f32],
) -> Result<Vec<Comparison>, VerifyError> {
    let outputs = |model: &Subject<'_>, each: &mut dyn FnMut(usize, Vec<Vec<f32>>)| {
        let mut compute = || {
            let [channels, height, width] = source.shape();
            let images = Tensor::from_slice(input, (1, channels, height, width), model.vit.device())?;
            model.vit.forward_traced(&images, &mut |block, tokens| {
                each(block, tokens.to_dtype(DType::F32)?.squeeze(0)?.to_vec2()?);
                Ok(())
            })
        };
        compute().map_err(|source| refused(model, source))
    };
    let mut reference = Vec::new();
    outputs(first, &mut |_, tokens| reference.push(tokens))?;
    let mut blocks = Vec::new();
    outputs(second, &mut |block, tokens| {
        let mut comparison = Comparison::default();
        for (a, b) in reference.get(block).into_iter().flatten().zip(&tokens) {
            comparison.add(a, b);
        }
        blocks.push(comparison);
    })?;
    Ok(blocks)
}
