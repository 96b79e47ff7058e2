//! Why something could not be verified.

use std::path::PathBuf;

use crate::data::{DataError, SampleError};
use crate::model::ModelError;

/// Why something could not be verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] Box<crate::Error>),
    /// A checkpoint cannot be run.
    #[error("{} cannot be run", path.display())]
    Model {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        source: Box<ModelError>,
    },
    /// A file of logits cannot be used.
    #[error("{}: {problem}", path.display())]
    Reference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: ReferenceProblem,
    },
    /// A sample set cannot be used.
    #[error(transparent)]
    Samples(#[from] Box<DataError>),
    /// A sample cannot be read a second time.
    #[error(transparent)]
    Sample(#[from] Box<SampleError>),
    /// The extension of a file to save to tells no format.
    #[error("{}: its extension tells no format; name it .safetensors or .npz", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
}

impl From<crate::Error> for VerifyError {
    fn from(error: crate::Error) -> VerifyError {
        VerifyError::File(Box::new(error))
    }
}

/// What is wrong with a file of logits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceProblem {
    /// No array is the one to take.
    #[error("it holds no array {wanted:?}, but {}; choose one with --reference-array", listed(found))]
    NoArray {
        /// The name that was looked for.
        wanted: String,
        /// The names there are.
        found: Vec<String>,
    },
    /// The array is no matrix of numbers.
    #[error("array {name:?} is {dtype} of the shape {shape:?}, where real numbers [samples, classes] are needed")]
    NoMatrix {
        /// The array.
        name: String,
        /// The type of its elements.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// It is of another number of samples.
    #[error(
        "it has logits of {found} samples, where there are {total}, {read} of which were run; there has to be a row for \
         each of the one or the other, in the order of the set"
    )]
    Samples {
        /// How many rows it has.
        found: usize,
        /// How many samples the whole set has.
        total: usize,
        /// How many were run.
        read: usize,
    },
    /// It is of another number of classes.
    #[error("it has {found} logits for each sample, where the model computes {needed}")]
    Classes {
        /// Columns of the array.
        found: usize,
        /// Classes of the model.
        needed: usize,
    },
    /// It names its samples, and one is not among them.
    #[error("it has no logits of the sample {sample:?}, by the names that it has; give the logits of these samples")]
    NoRow {
        /// The sample.
        sample: String,
    },
}

fn listed(names: &[String]) -> String {
    /// Names that are listed; a checkpoint given by mistake has hundreds.
    const LISTED: usize = 8;
    let more = if names.len() > LISTED { ", ..." } else { "" };
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        format!("{}{more}", names[..names.len().min(LISTED)].join(", "))
    }
}
