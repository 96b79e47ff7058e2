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
pub use header::{MAX_NPZ_HEADERS_BYTES, MAX_NUMPY_HEADER_BYTES, NumpyProblem};

use super::zip::{self, Inflate};
use super::{Container, Extent, OtherKind, OtherTensor, Part, Storage, Stored, StoredTensor, Tree, Value, too_large};
use crate::error::{Error, Result};
use crate::pickle::{Budget, Full, allocated};

/// The name of the one array in a `.npy` file.
const ARRAY: &str = "array";

/// Bytes that NumPy pads the header of an ordinary array to.
const USUAL_HEADER_BYTES: usize = 128;

/// What the members of an `.npz` archive end in.
const SUFFIX: &str = ".npy";

/// Whether these are the entries of an `.npz` archive.
pub(super) fn is_npz(entries: &[zip::Entry]) -> bool {
    !entries.is_empty() && entries.iter().all(|entry| entry.name.ends_with(SUFFIX))
}

/// Reads the header of the `.npy` file `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    let array = array(file, file.len() as u64).map_err(|problem| error(path, "", problem))?;
    let mut arrays = Arrays::default();
    arrays.add(ARRAY, array, |skip| Extent::Mapped(skip..file.len()), budget).map_err(too_large(path))?;
    Ok(arrays.part(Container::Npy))
}

/// Reads the headers of all members of an `.npz` archive.
pub(super) fn open_npz(path: &Path, file: &[u8], entries: &[zip::Entry], budget: &mut Budget) -> Result<Part> {
    let mut arrays = Arrays::default();
    let mut inflate = Inflate::default();
    let mut left = MAX_NPZ_HEADERS_BYTES;
    for entry in entries {
        let wrong = |problem| error(path, &entry.name, problem);
        let zip = |problem| Error::Zip { path: path.to_owned(), problem };
        // Nearly all headers are this short, and read at once.
        let mut head = entry.head(file, USUAL_HEADER_BYTES, &mut inflate).map_err(zip)?;
        let length = header::length(&head).map_err(wrong)?;
        left = left.checked_sub(length).ok_or(NumpyProblem::HeadersTooLarge).map_err(wrong)?;
        if length > head.len() {
            head = entry.head(file, length, &mut inflate).map_err(zip)?;
        }
        let array = array(&head, entry.size).map_err(wrong)?;
        let name = entry.name.strip_suffix(SUFFIX).unwrap_or(&entry.name);
        let extent = |skip| Extent::Member { entry: entry.clone(), skip };
        arrays.add(name, array, extent, budget).map_err(too_large(path))?;
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

    fn add(
        &mut self,
        name: &str,
        array: Array,
        extent: impl FnOnce(usize) -> Extent,
        budget: &mut Budget,
    ) -> std::result::Result<(), Full> {
        let Array { header: Header { shape, strides, element }, skip, data } = array;
        let texts = match &element {
            Element::Number(..) => allocated(16 + name.len()),
            Element::Other(descr) => allocated(descr.len()),
        };
        let sizes = 2 * allocated(size_of::<usize>() * shape.len());
        budget.take(texts + sizes + allocated(16 + name.len()))?;
        let tensor = match element {
            Element::Number(dtype, order) => {
                let storage = self.storages.len();
                let (label, extent) = (name.into(), extent(skip));
                let storage_of = Storage { label, source: 0, declared: data, size: data, extent, order };
                budget.push(&mut self.storages, storage_of)?;
                Stored::Dense(StoredTensor { dtype, shape, strides, offset: 0, storage })
            }
            Element::Other(descr) => {
                Stored::Other(OtherTensor { kind: OtherKind::Array(descr), dtype: String::new(), shape })
            }
        };
        budget.push(&mut self.values, Value::Str(name.into()))?;
        budget.push(&mut self.values, Value::Tensor(self.tensors.len()))?;
        budget.push(&mut self.tensors, tensor)?;
        let last = self.values.len() as u32 - 1;
        budget.push(&mut self.entries, (last - 1, last))
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
