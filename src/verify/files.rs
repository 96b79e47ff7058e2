//! Logits in files: those of others to compare with, and our own to keep.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::npz::{self, Array};
use super::{Logits, ReferenceProblem, Source as Inputs, VerifyError};
use crate::checkpoint::{Checkpoint, RootChoice, StateDict};
use crate::error::Result;
use crate::plan::{Output, Plan, Source, Step, TensorRef};
use crate::tensor::{DType, TensorSpec, contiguous_strides, decode_f64};
use crate::write::{Destination, Format, Layout, ScratchFile};

/// The name of the array of logits.
const LOGITS: &str = "logits";
/// The key of the samples' names in the metadata of a safetensors file.
const SAMPLES: &str = "samples";

/// Logits that were computed elsewhere.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The file they are from.
    pub path: PathBuf,
    /// The logits; float64 is rounded to float32.
    pub logits: Logits,
    /// The type that they are stored in.
    pub dtype: DType,
    /// The samples they are of, where the file says so (as files saved by [`SavedLogits`] do, in safetensors).
    pub samples: Option<Vec<String>>,
    /// Whether the file has the samples too, as arrays that [`crate::data::SampleSet`] reads.
    pub has_inputs: bool,
}

impl Reference {
    /// Reads logits from a `.npz`, `.npy`, `.safetensors` or `.pth` file: the array `name`, by default `logits`, or the only
    /// matrix in the file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`VerifyError::Reference`] if there is no such array, or it is no matrix of real numbers.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Reference, VerifyError> {
        let checkpoint = Checkpoint::open(path)?;
        let arrays = checkpoint.state_dict(&RootChoice::Path(String::new()))?;
        let wrong = |problem| VerifyError::Reference { path: path.to_owned(), problem };
        let specs = arrays.specs();
        let matrices: Vec<usize> = (0..specs.len()).filter(|&i| specs[i].shape.len() == 2).collect();
        let wanted = name.unwrap_or(LOGITS);
        let index = match (arrays.find(wanted), name, matrices.as_slice()) {
            (Some(index), ..) => index,
            (None, None, &[only]) => only,
            _ => {
                let found = specs.iter().map(|spec| spec.name.clone()).collect();
                return Err(wrong(ReferenceProblem::NoArray { wanted: wanted.to_owned(), found }));
            }
        };
        let spec = &specs[index];
        let no_matrix = |spec: &TensorSpec| {
            let (name, dtype, shape) = (spec.name.clone(), spec.dtype.name(), spec.shape.clone());
            wrong(ReferenceProblem::NoMatrix { name, dtype, shape })
        };
        let &[_, classes] = spec.shape.as_slice() else { return Err(no_matrix(spec)) };
        let values = floats(&arrays, index)?.ok_or_else(|| no_matrix(spec))?;
        let logits = Logits::from_rows(classes, values).ok_or_else(|| no_matrix(spec))?;
        let has_inputs = ["inputs", "images"].iter().any(|name| arrays.find(name).is_some());
        let names =
            checkpoint.values().get("__metadata__").and_then(|metadata| metadata[SAMPLES].as_str()?.parse().ok());
        let samples = names.and_then(|names: Value| serde_json::from_value(names).ok());
        Ok(Reference { path: path.to_owned(), dtype: spec.dtype, logits, samples, has_inputs })
    }

    /// The rows of the inputs in `read`, which are in the order of the whole set.
    ///
    /// Where the file names its samples, rows are found by name. Otherwise there has to be one for each sample of the whole set,
    /// or one for each in `read`, in the order of the set.
    ///
    /// # Errors
    /// [`VerifyError::Reference`] if the logits are not those of these samples, or of another number of classes.
    pub fn rows_of(&self, source: &Inputs, read: &[usize], classes: usize) -> Result<Logits, VerifyError> {
        let wrong = |problem| VerifyError::Reference { path: self.path.clone(), problem };
        let rows = self.logits.len();
        if self.logits.classes() != classes {
            return Err(wrong(ReferenceProblem::Classes { found: self.logits.classes(), needed: classes }));
        }
        if let Some(names) = self.samples.as_ref().filter(|names| names.len() == rows) {
            let by_name: HashMap<&str, usize> =
                names.iter().enumerate().map(|(row, name)| (name.as_str(), row)).collect();
            let row = |&index: &usize| {
                let name = source.name(index);
                by_name.get(name.as_str()).copied().ok_or(name)
            };
            return match read.iter().map(row).collect::<Result<Vec<_>, _>>() {
                Ok(rows) => Ok(self.logits.select(&rows)),
                Err(sample) => Err(wrong(ReferenceProblem::NoRow { sample })),
            };
        }
        match rows {
            _ if rows == source.total() => {
                let rows: Vec<usize> = read.iter().map(|&index| source.position(index)).collect();
                Ok(self.logits.select(&rows))
            }
            _ if rows == read.len() => Ok(self.logits.clone()),
            _ => Err(wrong(ReferenceProblem::Samples { found: rows, total: source.total(), read: read.len() })),
        }
    }
}

/// The elements of a tensor as float32; `None` if they are no real numbers.
fn floats(arrays: &StateDict<'_>, index: usize) -> Result<Option<Vec<f32>>, VerifyError> {
    let data = arrays.tensor(index)?;
    let (mut wide, mut values) = (Vec::new(), Vec::with_capacity(arrays.specs()[index].numel()));
    let mut real = true;
    data.view().for_each_piece(&mut Vec::new(), |bytes| {
        wide.clear();
        real = real && decode_f64(data.dtype(), bytes, &mut wide).is_ok();
        values.extend(wide.iter().map(|&x| x as f32));
    });
    Ok(real.then_some(values))
}

/// Logits to keep: float32 `logits`, int64 `labels` if there are any, and the samples' names.
#[derive(Clone, Copy, Debug)]
pub struct SavedLogits<'a> {
    /// The logits.
    pub logits: &'a Logits,
    /// The class of each sample.
    pub labels: Option<&'a [usize]>,
    /// The name of each sample; none for inputs that have no names.
    pub samples: &'a [String],
}

impl SavedLogits<'_> {
    /// Whether logits can be saved to a file of that name: `.safetensors` and `.npz` are the formats.
    ///
    /// # Errors
    /// [`VerifyError::UnknownFormat`]; [`crate::Error::Output`] if no file can be published there.
    pub fn check(path: &Path, replace: bool) -> Result<(), VerifyError> {
        is_npz(path)?;
        crate::write::check_target(path, replace)?;
        Ok(())
    }

    /// Writes a `.safetensors` file (the samples' names as a JSON array in its metadata, under `samples`) or a `.npz` file
    /// (the names in an array of that name), whole or not at all.
    ///
    /// # Errors
    /// As [`SavedLogits::check`]; [`crate::Error::Io`].
    pub fn write(&self, path: &Path, replace: bool) -> Result<(), VerifyError> {
        let shape = vec![self.logits.len(), self.logits.classes()];
        let logits: Vec<u8> = self.logits.values().iter().flat_map(|x| x.to_le_bytes()).collect();
        let labels: Option<Vec<u8>> =
            self.labels.map(|labels| labels.iter().flat_map(|&label| (label as u64).to_le_bytes()).collect());
        if !is_npz(path)? {
            let logits = (LOGITS, DType::F32, shape, logits.as_slice());
            let labels = labels.iter().map(|bytes| ("labels", DType::I64, vec![bytes.len() / 8], bytes.as_slice()));
            let tensors: Vec<_> = std::iter::once(logits).chain(labels).collect();
            return self.write_safetensors(path, replace, &tensors);
        }
        let names = Names::new(self.samples);
        let array = |name, descr: &str, shape, bytes| Array { name, descr: descr.to_owned(), shape, bytes };
        let mut arrays = vec![array(LOGITS, "<f4", shape, &logits)];
        arrays.extend(labels.iter().map(|bytes| array("labels", "<i8", vec![bytes.len() / 8], bytes)));
        if !self.samples.is_empty() {
            arrays.push(array(SAMPLES, &format!("<U{}", names.longest), vec![self.samples.len()], &names.bytes));
        }
        let mut file = ScratchFile::create(path, replace)?;
        npz::write(&mut file, &arrays)?;
        Ok(file.publish()?)
    }

    fn write_safetensors(
        &self,
        path: &Path,
        replace: bool,
        tensors: &[(&str, DType, Vec<usize>, &[u8])],
    ) -> Result<(), VerifyError> {
        let mut plan = Plan::default();
        for (index, (name, dtype, shape, bytes)) in tensors.iter().enumerate() {
            let source = Source::Tensor(TensorRef { input: 0, tensor: index });
            let numel = bytes.len() / dtype.size();
            plan.steps.push(Step { source, terms: Vec::new(), dtype: *dtype, numel });
            let spec = TensorSpec { name: (*name).to_owned(), dtype: *dtype, shape: shape.clone() };
            plan.outputs.push(Output { strides: contiguous_strides(shape), spec, step: index, offset: 0 });
        }
        let mut metadata = Vec::new();
        if !self.samples.is_empty() {
            metadata.push((SAMPLES.to_owned(), Value::from(self.samples).to_string()));
        }
        let layout = Layout::new(Destination::file(path, Format::Safetensors, replace), &plan, &metadata)
            .map_err(|problem| crate::Error::Layout { path: path.to_owned(), problem })?;
        let mut writer = layout.create()?;
        if let Some(file) = writer.current() {
            for (place, &step) in file.steps().iter().enumerate() {
                file.write_at(file.begin(place), tensors[step].3)?;
            }
        }
        writer.next_file(&[])?;
        Ok(writer.publish()?)
    }
}

fn is_npz(path: &Path) -> Result<bool, VerifyError> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "npz" => Ok(true),
        "safetensors" => Ok(false),
        _ => Err(VerifyError::UnknownFormat { path: path.to_owned() }),
    }
}

/// Texts as NumPy stores them: UTF-32, padded with zeros to the longest.
struct Names {
    longest: usize,
    bytes: Vec<u8>,
}

impl Names {
    fn new(names: &[String]) -> Names {
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(1);
        let mut bytes = Vec::with_capacity(names.len() * longest * 4);
        for name in names {
            let characters = name.chars().map(u32::from).chain(std::iter::repeat(0)).take(longest);
            bytes.extend(characters.flat_map(u32::to_le_bytes));
        }
        Names { longest, bytes }
    }
}
