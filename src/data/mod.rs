//! Sample sets: images with labels, read and preprocessed as timm's evaluation loader does.
//!
//! A set is a folder of class folders, a flat folder, a list (CSV, TSV, JSON, JSON Lines), or a file of arrays.
//! Images are PNG, JPEG, WebP and BMP, told by their content, and become what Pillow's `convert("RGB")` makes of them:
//! alpha is dropped, EXIF orientation and colour profiles are not applied. [`Preprocessing`] is timm's transform for
//! evaluation. `docs/samples.md` has the formats, how classes get their numbers, and how exact all of that is.
//!
//! | limit | of |
//! | --- | --- |
//! | [`MAX_IMAGE_FILE_BYTES`] (512 MiB) | an image file |
//! | [`MAX_IMAGE_SIDE`] (16,384), [`MAX_IMAGE_BYTES`] (512 MiB) | width and height of an image, and its decoded bytes |
//! | [`MAX_INPUT_BYTES`] (512 MiB) | an input of a model |
//! | [`MAX_LIST_BYTES`] (256 MiB), [`MAX_LABEL`] | a list of samples or classes, and the number of a class |
//! | [`MAX_FOLDER_DEPTH`] (64) | folders in folders |

mod arrays;
mod batches;
mod decode;
mod error;
mod folder;
mod labels;
mod list;
mod natural;
mod preprocess;
mod resample;
mod shuffle;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use batches::{Batch, Batches};
pub use decode::{MAX_IMAGE_BYTES, MAX_IMAGE_FILE_BYTES, MAX_IMAGE_SIDE};
pub use error::{DataError, SampleError, SampleProblem, SetProblem};
pub use folder::MAX_FOLDER_DEPTH;
pub use labels::{LabelMap, MAX_LABEL, MAX_LIST_BYTES};
pub use preprocess::{CropMode, Interpolation, MAX_INPUT_BYTES, Preprocessing, PreprocessingProblem};

use arrays::{Arrays, Row};
use list::Entry;
pub(crate) use shuffle::{below, next, shuffle};

/// How class folders get their numbers, if there is no list of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassIds {
    /// By their places in natural order, as in timm. If all names are numbers, each has to be that of its place.
    #[default]
    Checked,
    /// By their places in natural order, also if their names are other numbers.
    Places,
    /// Their names are the numbers.
    Numbers,
}

/// How to read a sample set.
#[derive(Clone, Debug, Default)]
pub struct SampleOptions {
    /// The numbers of the classes.
    pub labels: Option<LabelMap>,
    /// How class folders get their numbers without `labels`.
    pub class_ids: ClassIds,
    /// Shuffle the samples, always in the same way for the same number of samples and seed.
    pub shuffle_seed: Option<u64>,
    /// Take no more than so many samples, the first after shuffling.
    pub limit: Option<usize>,
}

/// What is known of a sample without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    name: String,
    label: Option<usize>,
    position: usize,
    path: Option<PathBuf>,
}

impl Sample {
    /// Its path below the folder, as the list has it, or its number in the arrays.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its class, if it has one.
    #[must_use]
    pub fn label(&self) -> Option<usize> {
        self.label
    }

    /// Its place in the whole set, before shuffling: the row of an array.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }
}

/// Samples, listed and ready to be read. Clones share everything.
#[derive(Clone, Debug)]
pub struct SampleSet {
    contents: Arc<Contents>,
}

#[derive(Debug)]
struct Contents {
    path: PathBuf,
    samples: Vec<Sample>,
    classes: BTreeMap<usize, String>,
    total: usize,
    arrays: Option<Arrays>,
}

impl SampleSet {
    /// Lists the samples of a folder, a list or a file of arrays; no image is read.
    ///
    /// # Errors
    /// [`DataError`] naming the file or folder: unreadable, of another kind, empty, or unclear about its classes.
    pub fn open(path: impl AsRef<Path>, options: &SampleOptions) -> Result<SampleSet, DataError> {
        let path = path.as_ref();
        let wrong = |problem| DataError::Set { path: path.to_owned(), problem };
        let map = options.labels.as_ref();
        let mut classes = map.map(|map| map.names().clone()).unwrap_or_default();
        let mut arrays = None;
        let meta = fs::metadata(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let mut samples = match extension.as_deref() {
            _ if meta.is_dir() => {
                let (found, names) = folder::read(path, map, options.class_ids)?;
                classes = names.map(|map| map.names().clone()).unwrap_or_default();
                let sample = |(position, found): (usize, folder::Found)| Sample {
                    name: found.name,
                    label: found.label,
                    position,
                    path: Some(found.path),
                };
                found.into_iter().enumerate().map(sample).collect()
            }
            Some("csv") => listed(path, map, |text| list::table(text, b','))?,
            Some("tsv") => listed(path, map, |text| list::table(text, b'\t'))?,
            Some("json") => listed(path, map, list::json)?,
            Some("jsonl" | "ndjson") => listed(path, map, list::json_lines)?,
            Some("npz" | "npy" | "safetensors" | "pt" | "pth") => {
                let (opened, labels) = arrays::open(path, map)?;
                let label = |row: usize| labels.as_ref().and_then(|labels| labels.get(row)).copied();
                let sample =
                    |row: usize| Sample { name: row.to_string(), label: label(row), position: row, path: None };
                let samples = (0..opened.len()).map(sample).collect();
                arrays = Some(opened);
                samples
            }
            _ => return Err(wrong(SetProblem::Kind)),
        };
        if samples.is_empty() {
            return Err(wrong(SetProblem::Empty));
        }
        let total = samples.len();
        if let Some(seed) = options.shuffle_seed {
            shuffle(&mut samples, seed);
        }
        samples.truncate(options.limit.unwrap_or(total));
        let path = path.to_owned();
        Ok(SampleSet { contents: Arc::new(Contents { path, samples, classes, total, arrays }) })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.contents.path
    }

    /// How many samples there are, after the limit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contents.samples.len()
    }

    /// Whether there are none, which only a limit of 0 brings about.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contents.samples.is_empty()
    }

    /// How many samples there are without the limit.
    #[must_use]
    pub fn total(&self) -> usize {
        self.contents.total
    }

    /// The samples, in order; an index into this slice names a sample elsewhere.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.contents.samples
    }

    /// The names of the classes by number, as far as they have names.
    #[must_use]
    pub fn classes(&self) -> &BTreeMap<usize, String> {
        &self.contents.classes
    }

    /// Whether the samples are inputs that need no preprocessing.
    #[must_use]
    pub fn is_preprocessed(&self) -> bool {
        self.input_shape().is_some()
    }

    /// The shape [C, H, W] of the inputs, if they are preprocessed.
    #[must_use]
    pub fn input_shape(&self) -> Option<[usize; 3]> {
        self.contents.arrays.as_ref().and_then(Arrays::input_shape)
    }

    /// Checks that the samples can become inputs of that size. Of preprocessed inputs only the size counts.
    ///
    /// # Errors
    /// [`DataError::Preprocessing`]; [`SetProblem::InputShape`].
    pub fn check(&self, preprocessing: &Preprocessing) -> Result<(), DataError> {
        match self.input_shape() {
            None => preprocessing.check().map_err(DataError::Preprocessing),
            Some(found) if found == preprocessing.input_size => Ok(()),
            Some(found) => {
                let problem = SetProblem::InputShape { found, needed: preprocessing.input_size };
                Err(DataError::Set { path: self.contents.path.clone(), problem })
            }
        }
    }

    /// Reads and preprocesses the sample with that index: the input [C, H, W]. Preprocessed inputs are given as they are.
    ///
    /// # Errors
    /// [`SampleError`] naming the file and, in arrays, the sample's number.
    pub fn load(&self, index: usize, preprocessing: &Preprocessing) -> Result<Vec<f32>, SampleError> {
        let contents = &*self.contents;
        let Some(sample) = contents.samples.get(index) else {
            let name = format!("{}, sample {index}", contents.path.display());
            return Err(SampleError { name, problem: SampleProblem::NoSuchSample });
        };
        // The decoders are other people's code and the files are anybody's.
        let loaded = catch_unwind(AssertUnwindSafe(|| contents.load(sample, preprocessing)));
        loaded.unwrap_or(Err(SampleProblem::Panicked)).map_err(|problem| {
            let name = match &sample.path {
                Some(path) => path.display().to_string(),
                None => format!("{}, sample {}", contents.path.display(), sample.name),
            };
            SampleError { name, problem }
        })
    }

    /// All samples in order, in batches of `batch` (the last may be smaller), read by `threads` threads beside the caller;
    /// with 0 threads they are read as they are asked for.
    ///
    /// At most two batches of inputs (or one input per thread, if that is more) are held ahead of the caller, and one
    /// decoded image per thread.
    ///
    /// # Errors
    /// As [`SampleSet::check`]. What is wrong with a sample is in its [`Batch`].
    pub fn batches(&self, preprocessing: &Preprocessing, batch: usize, threads: usize) -> Result<Batches, DataError> {
        self.check(preprocessing)?;
        Ok(Batches::start(self.clone(), preprocessing.clone(), batch, threads))
    }
}

impl Contents {
    fn load(&self, sample: &Sample, preprocessing: &Preprocessing) -> Result<Vec<f32>, SampleProblem> {
        let needed = preprocessing.input_size;
        if let Some(found) = self.arrays.as_ref().and_then(Arrays::input_shape) {
            if found != needed {
                return Err(SampleProblem::InputShape { found, needed });
            }
        } else {
            preprocessing.check().map_err(SampleProblem::Preprocessing)?;
        }
        let pixels = match (&self.arrays, &sample.path) {
            (Some(arrays), _) => match arrays.row(sample.position)? {
                Row::Input(input) => return Ok(input),
                Row::Image(pixels) => pixels,
            },
            (None, Some(path)) => decode::decode(&decode::read(path)?)?,
            (None, None) => return Err(SampleProblem::NoSuchSample),
        };
        preprocessing.apply(pixels).ok_or(SampleProblem::NothingLeft)
    }
}

/// The samples of a list; its paths are relative to its own folder.
fn listed(
    path: &Path,
    map: Option<&LabelMap>,
    parse: impl Fn(&str) -> Result<Vec<Entry>, SetProblem>,
) -> Result<Vec<Sample>, DataError> {
    let wrong = |problem| DataError::Set { path: path.to_owned(), problem };
    let text = labels::read_text(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let sample = |(position, entry): (usize, Entry)| {
        let Entry { path: name, label, place } = entry;
        let label = label.map(|label| labels::resolve(label, map, || place.clone())).transpose()?;
        Ok(Sample { path: Some(folder.join(&name)), name, label, position })
    };
    parse(&text).map_err(wrong)?.into_iter().enumerate().map(sample).collect::<Result<_, _>>().map_err(wrong)
}
