//! What can go wrong with a sample set, and with one sample of it.

use std::io;
use std::path::PathBuf;

use super::decode::{MAX_IMAGE_BYTES, MAX_IMAGE_FILE_BYTES, MAX_IMAGE_SIDE};
use super::folder::MAX_FOLDER_DEPTH;
use super::labels::{MAX_LABEL, MAX_LIST_BYTES};
use super::preprocess::PreprocessingProblem;
use crate::tensor::DType;

/// Why a sample set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It is no sample set, or one that does not say what its samples are.
    #[error("{}: {problem}", path.display())]
    Set {
        /// The sample set, or the list of labels.
        path: PathBuf,
        /// What is wrong.
        problem: SetProblem,
    },
    /// A file of arrays cannot be read.
    #[error(transparent)]
    Arrays(#[from] Box<crate::Error>),
    /// Images cannot be preprocessed so.
    #[error("{0}")]
    Preprocessing(PreprocessingProblem),
}

/// What is wrong with a sample set or a list of labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetProblem {
    /// It is something else.
    #[error(
        "it is no sample set; give a folder of images, a list of them (.csv, .tsv, .json, .jsonl), or arrays (.npz, .npy, .safetensors, .pt, .pth)"
    )]
    Kind,
    /// Nothing is in it.
    #[error(
        "it has no samples; images end in .png, .jpg, .jpeg, .webp or .bmp, and lists have one line or entry for each"
    )]
    Empty,
    /// Some images are in class folders and some are not.
    #[error("{image:?} lies beside the class folders: is it a sample? Move it, or them, elsewhere")]
    Mixed {
        /// An image in the folder itself.
        image: String,
    },
    /// A class without samples would be no class, and change the number of every one after it.
    #[error(
        "the folder {folder:?} has no images: as a class it would count, as no class it would not, and the classes after it have other numbers. Give a list of the classes (--labels), or remove the folder"
    )]
    EmptyClass {
        /// The folder, relative to the set.
        folder: String,
    },
    /// The names of the classes are numbers, but not those of their places.
    #[error(
        "the class folder {name:?} is number {position} in order, so its name and its place disagree on the class's number. Give a list of the classes (--labels), or say which of the two counts"
    )]
    NumberedClasses {
        /// The folder's name.
        name: String,
        /// Its place among the classes, counted from 0.
        position: usize,
    },
    /// The number that a folder has for a name is none.
    #[error(
        "the class folder {name:?} is no number from 0 to {MAX_LABEL}; leave the classes to the order of the folders, or give a list of them (--labels)"
    )]
    NotANumber {
        /// The folder's name.
        name: String,
    },
    /// A class folder has a name that is no text.
    #[error("the class folder {folder:?} has a name that is not UTF-8; rename it")]
    FolderName {
        /// The folder, relative to the set, with replacement characters.
        folder: String,
    },
    /// Folders that lead into each other.
    #[error("the link {folder:?} leads back to a folder that it is in; remove it")]
    Loop {
        /// The link, relative to the set.
        folder: String,
    },
    /// Folders in folders in folders.
    #[error("{folder:?} is more than {MAX_FOLDER_DEPTH} folders deep; move the images up")]
    Depth {
        /// The folder, relative to the set.
        folder: String,
    },
    /// A list is larger than any honest one.
    #[error("it has more than {MAX_LIST_BYTES} bytes; split it")]
    ListTooLarge,
    /// A list is not in its format.
    #[error("it cannot be read: {reason}")]
    Syntax {
        /// What the parser says, with the line.
        reason: String,
    },
    /// A table has no column of paths, or several.
    #[error(
        "its columns are {found}: there should be one named path (or file, file_name, filename, image), and at most one named label (or class, target)"
    )]
    Columns {
        /// The names there are.
        found: String,
    },
    /// An entry of a JSON list is of another form.
    #[error(
        "{place} should be a path, [path, label] or {{\"path\": ..., \"label\": ...}}, the label a name, a number from 0 to {MAX_LABEL}, or null: it is {found}"
    )]
    Entry {
        /// The line or entry.
        place: String,
        /// What it is, as JSON, shortened.
        found: String,
    },
    /// A label is neither a class's name nor a number.
    #[error("{place} has the label {label:?}, which is no class {}", if *.listed { "in the list of classes (--labels); add it there" } else { "number; say which number each name has (--labels)" })]
    UnknownClass {
        /// The line, entry or folder.
        place: String,
        /// The label.
        label: String,
        /// Whether there is a list of classes.
        listed: bool,
    },
    /// A list of classes is of another form.
    #[error(
        "a list of classes is a text with one name per line, a JSON list of names, or a JSON object of names and numbers from 0 to {MAX_LABEL}; this is none: {found}"
    )]
    ClassList {
        /// What was found.
        found: String,
    },
    /// A class is listed twice.
    #[error("the class {name:?} is there twice")]
    DuplicateClass {
        /// The name.
        name: String,
    },
    /// A file of arrays has no samples, or two kinds of them.
    #[error(
        "samples are in one array named `inputs` (floats, N x C x H x W) or `images` (uint8, N x H x W x C or N x H x W), beside `labels` (integers, N) if there are any; it holds {found}"
    )]
    ArrayNames {
        /// The arrays there are.
        found: String,
    },
    /// An array has another shape or type than its name says.
    #[error("{name:?} is {dtype} of shape {shape:?}; it should be {needed}")]
    Array {
        /// The array.
        name: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// What is needed.
        needed: &'static str,
    },
    /// There are more labels than samples, or fewer.
    #[error("it has {labels} labels for {samples} samples")]
    LabelCount {
        /// Labels.
        labels: usize,
        /// Samples.
        samples: usize,
    },
    /// A label in an array is no class.
    #[error("the label of sample {sample} is {value}; classes are numbers from 0 to {MAX_LABEL}{}", if *.listed { " that the list of classes (--labels) has" } else { "" })]
    LabelValue {
        /// The sample, counted from 0.
        sample: usize,
        /// Its label.
        value: String,
        /// Whether there is a list of classes.
        listed: bool,
    },
    /// Preprocessed inputs are not what the model takes.
    #[error(
        "its inputs are {found:?} (channels, height, width), where {needed:?} is needed; preprocess the samples for this model, or give them as images"
    )]
    InputShape {
        /// The shape of an input.
        found: [usize; 3],
        /// The shape that is needed.
        needed: [usize; 3],
    },
}

/// Why one sample cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct SampleError {
    /// The image file, or the file of arrays and the sample's number in it.
    pub name: String,
    /// What is wrong.
    pub problem: SampleProblem,
}

/// What is wrong with a sample.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleProblem {
    /// The operating system refused.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    /// It is a folder, device, socket or pipe.
    #[error("it is no regular file")]
    NotAFile,
    /// It has no bytes.
    #[error("it is empty; get it again")]
    EmptyFile,
    /// The file is larger than [`MAX_IMAGE_FILE_BYTES`].
    #[error("the file has more than {MAX_IMAGE_FILE_BYTES} bytes; resize the image first")]
    FileTooLarge,
    /// The image is larger than [`MAX_IMAGE_SIDE`] or [`MAX_IMAGE_BYTES`].
    #[error(
        "{width} x {height} pixels are too many: more than {MAX_IMAGE_SIDE} along a side, or {MAX_IMAGE_BYTES} bytes in all; resize the image first"
    )]
    TooLarge {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
    },
    /// It has a width or height of 0.
    #[error("it has no pixels")]
    NoPixels,
    /// It is in a format that is not read.
    #[error("it is no PNG, JPEG, WebP or BMP image, whatever its name says; convert it")]
    Format,
    /// It is damaged, or of a kind that the decoder does not know.
    #[error("it cannot be decoded as {format}: {reason}; get it again, or convert it")]
    Decode {
        /// The format.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// The decoder gave up.
    #[error("its decoder failed, which is a mistake of the decoder; convert the image")]
    Panicked,
    /// So narrow that its shorter side is resized to less than half a pixel.
    #[error("it is so long and narrow that nothing is left of it when it is resized; leave it out")]
    NothingLeft,
    /// The preprocessing cannot be carried out.
    #[error("{0}")]
    Preprocessing(PreprocessingProblem),
    /// A preprocessed input has another shape.
    #[error("its input is {found:?} (channels, height, width), where {needed:?} is needed")]
    InputShape {
        /// The shape that it has.
        found: [usize; 3],
        /// The shape that is needed.
        needed: [usize; 3],
    },
    /// An array cannot be read.
    #[error("{0}")]
    Array(Box<crate::Error>),
    /// There are not so many samples.
    #[error("there is no such sample")]
    NoSuchSample,
}

impl From<io::Error> for SampleProblem {
    fn from(error: io::Error) -> SampleProblem {
        SampleProblem::Io(error)
    }
}
