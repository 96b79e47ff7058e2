//! NumPy's arrays: one in a `.npy` file, or a zip archive of them, `.npz`.
//!
//! Arrays of numbers are tensors: Fortran order as strides, big-endian as such. Arrays of anything else (texts, objects,
//! records, dates, types that NumPy does not know) are listed with their type and never read; the pickle of an object
//! array is not even looked at. The array of a `.npy` file has no name there, and is called [`ARRAY`] here; those of an `.npz`
//! archive have the names of its members without `.npy`.

mod header;

use std::path::Path;

pub(super) use header::MAGIC;
use header::{Element, Header};
pub use header::{MAX_NUMPY_HEADER_BYTES, NumpyProblem};

use super::{Container, Extent, OtherKind, OtherTensor, Part, Storage, Stored, StoredTensor, Tree, Value, zip};
use crate::error::{Error, Result};

/// The name of the one array in a `.npy` file.
const ARRAY: &str = "array";

/// What the members of an `.npz` archive end in.
const SUFFIX: &str = ".npy";

/// Whether these are the entries of an `.npz` archive.
pub(super) fn is_npz(entries: &[zip::Entry]) -> bool {
    !entries.is_empty() && entries.iter().all(|entry| entry.name.ends_with(SUFFIX))
}

/// Reads the header of the `.npy` file `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8]) -> Result<Part> {
    let array = array(file, file.len() as u64).map_err(|problem| error(path, "", problem))?;
    let mut arrays = Arrays::default();
    arrays.add(ARRAY, array, |skip| Extent::Mapped(skip..file.len()));
    Ok(arrays.part(Container::Npy))
}

/// Reads the headers of all members of an `.npz` archive.
pub(super) fn open_npz(path: &Path, file: &[u8], entries: &[zip::Entry]) -> Result<Part> {
    let mut arrays = Arrays::default();
    for entry in entries {
        let wrong = |problem| error(path, &entry.name, problem);
        let head = |bytes| entry.head(file, bytes).map_err(|problem| Error::Zip { path: path.to_owned(), problem });
        let length = header::length(&head(12)?).map_err(wrong)?;
        let array = array(&head(length)?, entry.size).map_err(wrong)?;
        let name = entry.name.strip_suffix(SUFFIX).unwrap_or(&entry.name);
        arrays.add(name, array, |skip| Extent::Member { entry: entry.clone(), skip });
    }
    Ok(arrays.part(Container::Npz))
}

fn error(path: &Path, member: &str, problem: NumpyProblem) -> Error {
    Error::Numpy { path: path.to_owned(), member: member.to_owned(), problem }
}

/// An array: its header, the bytes before its data, and those of its data.
struct Array {
    header: Header,
    skip: usize,
    data: u64,
}

/// The array that begins with `head`, at least its header, and takes `size` bytes in all.
fn array(head: &[u8], size: u64) -> Result<Array, NumpyProblem> {
    let header = header::read(head)?;
    let skip = header::length(head)?;
    let data = size.checked_sub(skip as u64).ok_or(NumpyProblem::HeaderTruncated { available: size })?;
    if let Element::Number(dtype, _) = header.element {
        let needed = header.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64));
        let needed = needed.filter(|&n| i64::try_from(n).is_ok()).unwrap_or(u64::MAX);
        if needed != data {
            return Err(NumpyProblem::DataLength { shape: header.shape, needed, found: data });
        }
    }
    Ok(Array { header, skip, data })
}

/// The arrays of a file, as far as they are read.
#[derive(Default)]
struct Arrays {
    values: Vec<Value>,
    entries: Vec<(u32, u32)>,
    tensors: Vec<Stored>,
    storages: Vec<Storage>,
}

impl Arrays {
    fn value(&mut self, value: Value) -> u32 {
        self.values.push(value);
        (self.values.len() - 1) as u32
    }

    fn add(&mut self, name: &str, array: Array, extent: impl FnOnce(usize) -> Extent) {
        let Array { header: Header { shape, strides, element }, skip, data } = array;
        let tensor = match element {
            Element::Number(dtype, order) => {
                let storage = self.storages.len();
                let (label, extent) = (name.to_owned(), extent(skip));
                self.storages.push(Storage { label, source: 0, declared: data, size: data, extent, order });
                Stored::Dense(StoredTensor { dtype, shape, strides, offset: 0, storage })
            }
            Element::Other(descr) => {
                Stored::Other(OtherTensor { kind: OtherKind::Array(descr), dtype: String::new(), shape })
            }
        };
        let tensor_value = Value::Tensor(self.tensors.len());
        self.tensors.push(tensor);
        let pair = (self.value(Value::Str(name.into())), self.value(tensor_value));
        self.entries.push(pair);
    }

    fn part(mut self, container: Container) -> Part {
        let entries = std::mem::take(&mut self.entries);
        let root = self.value(Value::Map(entries));
        Part {
            container,
            tree: Tree { values: self.values, root, loose: Vec::new() },
            tensors: self.tensors,
            storages: self.storages,
        }
    }
}
