//! Samples in arrays: images or preprocessed inputs, and their labels.

use std::path::Path;

use super::decode::Pixels;
use super::labels::MAX_LABEL;
use super::{DataError, LabelMap, SampleProblem, SetProblem};
use crate::checkpoint::{Checkpoint, RootChoice, StateDict};
use crate::tensor::{DType, TensorSpec, decode_f64};

const INPUTS: &str = "inputs";
const IMAGES: &str = "images";
const LABELS: &str = "labels";

/// What the reader calls the one array of an `.npy` file.
const ONLY: &str = "array";

/// Arrays of samples, read one sample at a time.
#[derive(Debug)]
pub(super) struct Arrays {
    checkpoint: Checkpoint,
    /// The array of samples.
    index: usize,
    shape: Vec<usize>,
    /// Whether they are inputs, not images.
    preprocessed: bool,
}

/// The samples' array, and the labels if there are any.
pub(super) fn open(path: &Path, map: Option<&LabelMap>) -> Result<(Arrays, Option<Vec<usize>>), DataError> {
    let checkpoint = Checkpoint::open(path).map_err(Box::new)?;
    let wrong = |problem| DataError::Set { path: path.to_owned(), problem };
    let tensors = whole(&checkpoint)?;
    let find = |name: &str| tensors.find(name);
    let specs = tensors.specs();
    let only = (specs.len() == 1).then(|| find(ONLY)).flatten();
    let (index, preprocessed) = match (find(INPUTS), find(IMAGES), only) {
        (Some(index), None, _) => (index, true),
        (None, Some(index), _) => (index, false),
        (None, None, Some(index)) => (index, specs[index].dtype != DType::U8),
        _ => {
            let names: Vec<String> = specs.iter().take(10).map(|spec| format!("{:?}", spec.name)).collect();
            let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            return Err(wrong(SetProblem::ArrayNames { found }));
        }
    };
    let spec = &specs[index];
    check(spec, preprocessed).map_err(wrong)?;
    let labels = match find(LABELS) {
        Some(labels) => Some(read_labels(&tensors, labels, spec.shape[0], map).map_err(|error| match error {
            LabelError::Problem(problem) => wrong(problem),
            LabelError::Read(error) => error.into(),
        })?),
        None => None,
    };
    // What is compressed is expanded now and kept, and checksums are verified, before several threads ask for it.
    drop(tensors.tensor(index).map_err(Box::new)?);
    let shape = spec.shape.clone();
    drop(tensors);
    Ok((Arrays { checkpoint, index, shape, preprocessed }, labels))
}

fn whole(checkpoint: &Checkpoint) -> Result<StateDict<'_>, Box<crate::Error>> {
    Ok(checkpoint.state_dict(&RootChoice::Path(String::new()))?)
}

/// Checks type and shape of the samples.
fn check(spec: &TensorSpec, preprocessed: bool) -> Result<(), SetProblem> {
    let fits = match (preprocessed, spec.shape.as_slice()) {
        (true, [_, _, _, _]) => matches!(spec.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16),
        (false, [_, _, _]) => spec.dtype == DType::U8,
        (false, [_, _, _, channels]) => spec.dtype == DType::U8 && matches!(channels, 1 | 3 | 4),
        _ => false,
    };
    let needed = if preprocessed {
        "float64, float32, float16 or bfloat16 of shape [N, channels, height, width]"
    } else {
        "uint8 of shape [N, height, width] or [N, height, width, 1, 3 or 4]"
    };
    if fits {
        Ok(())
    } else {
        let (name, dtype, shape) = (spec.name.clone(), spec.dtype, spec.shape.clone());
        Err(SetProblem::Array { name, dtype, shape, needed })
    }
}

/// Why labels cannot be read.
enum LabelError {
    Problem(SetProblem),
    Read(Box<crate::Error>),
}

fn read_labels(
    tensors: &StateDict<'_>,
    index: usize,
    samples: usize,
    map: Option<&LabelMap>,
) -> Result<Vec<usize>, LabelError> {
    let spec = &tensors.specs()[index];
    let integers = matches!(
        spec.dtype,
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U64 | DType::U32 | DType::U16 | DType::U8
    );
    if !integers || spec.shape.len() != 1 {
        let (name, dtype, shape) = (spec.name.clone(), spec.dtype, spec.shape.clone());
        return Err(LabelError::Problem(SetProblem::Array { name, dtype, shape, needed: "integers of shape [N]" }));
    }
    if spec.shape[0] != samples {
        return Err(LabelError::Problem(SetProblem::LabelCount { labels: spec.shape[0], samples }));
    }
    let data = tensors.tensor(index).map_err(|error| LabelError::Read(Box::new(error)))?;
    let mut values = Vec::new();
    // Integers are real numbers, and exact up to 2^53; labels beyond MAX_LABEL are refused.
    if decode_f64(spec.dtype, &data.view().to_vec(), &mut values).is_err() {
        values.clear();
    }
    let label = |(sample, value): (usize, f64)| {
        let known = |id: &usize| map.is_none_or(|map| map.names().contains_key(id));
        let id = (0.0..=MAX_LABEL as f64).contains(&value).then_some(value as usize).filter(known);
        let problem = || SetProblem::LabelValue { sample, value: value.to_string(), listed: map.is_some() };
        id.ok_or_else(|| LabelError::Problem(problem()))
    };
    values.into_iter().enumerate().map(label).collect()
}

/// One sample.
pub(super) enum Row {
    /// An input, [C, H, W].
    Input(Vec<f32>),
    Image(Pixels),
}

impl Arrays {
    /// How many samples there are.
    pub(super) fn len(&self) -> usize {
        self.shape[0]
    }

    /// The shape [C, H, W] of the inputs, if they are preprocessed.
    pub(super) fn input_shape(&self) -> Option<[usize; 3]> {
        match self.shape.as_slice() {
            &[_, channels, height, width] if self.preprocessed => Some([channels, height, width]),
            _ => None,
        }
    }

    /// Reads a sample.
    pub(super) fn row(&self, row: usize) -> Result<Row, SampleProblem> {
        let array = |error: crate::Error| SampleProblem::Array(Box::new(error));
        let tensors = whole(&self.checkpoint).map_err(SampleProblem::Array)?;
        let data = tensors.tensor(self.index).map_err(array)?;
        let strides = tensors.placement(self.index).strides;
        let (shape, offset) = (&self.shape[1..], row * strides[0]);
        // The whole array was checked when the file was opened, and this row is part of it.
        let view = data.reshaped(shape, &strides[1..], offset).map_err(|_| SampleProblem::NoSuchSample)?;
        if view.numel() == 0 {
            return Err(SampleProblem::NoPixels);
        }
        let bytes = view.to_vec();
        if self.preprocessed {
            let mut values = Vec::with_capacity(view.numel());
            decode_f64(view.dtype(), &bytes, &mut values).map_err(|_| SampleProblem::NoSuchSample)?;
            // Exact for every type but float64, which is rounded to nearest.
            return Ok(Row::Input(values.into_iter().map(|value| value as f32).collect()));
        }
        let channels = shape.get(2).copied().unwrap_or(1);
        Ok(Row::Image(Pixels::without_alpha(shape[1], shape[0], channels, bytes)))
    }
}
