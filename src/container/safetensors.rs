//! safetensors: eight bytes of header length, a JSON header, and the data of all tensors without a gap.

use std::path::Path;
use std::sync::Arc;

use super::header::Header;
use super::{Container, Extent, Part, Storage, Stored, StoredTensor, Tree, Value};
use crate::error::{Error, Result};
use crate::pickle::Budget;
use crate::tensor::{ByteOrder, DType, contiguous_strides};

/// The largest header read, in bytes; the limit of the safetensors library.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

/// Why a safetensors file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsProblem {
    /// The header reaches past the end of the file.
    #[error(
        "its header is said to be {declared} bytes long, but the file ends after {available}: it was cut off; download or copy it again"
    )]
    HeaderTruncated {
        /// Bytes the first eight bytes of the file announce.
        declared: u64,
        /// Bytes that follow them.
        available: u64,
    },
    /// The header is no JSON object of tensors.
    #[error("its header is malformed: {reason}")]
    Header {
        /// What the JSON parser says, with line and column.
        reason: String,
    },
    /// A tensor has an element type that is not known here.
    #[error("tensor {tensor:?} has the type {dtype:?}, which is not known here; save it as another type")]
    UnknownType {
        /// The tensor's name.
        tensor: String,
        /// Its type as written.
        dtype: String,
    },
    /// A tensor's bytes are not as many as its shape and type need.
    #[error("tensor {tensor:?} needs {needed} bytes, but its offsets span {found}")]
    Length {
        /// The tensor's name.
        tensor: String,
        /// Bytes that its shape and type need.
        needed: u64,
        /// Bytes between its offsets.
        found: u64,
    },
    /// Tensors overlap, or bytes between them belong to none.
    #[error("tensor {tensor:?} begins at byte {found} of the data, where {expected} was expected: a gap or an overlap")]
    Layout {
        /// The tensor's name.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it is said to begin.
        found: u64,
    },
    /// The data is shorter or longer than the tensors.
    #[error("its tensors take {expected} bytes of data, but the file has {found}: {}", if found < expected { "it was cut off; download or copy it again" } else { "something was appended to it; get it again" })]
    DataLength {
        /// Bytes that all tensors take.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// Reads the header of the safetensors file `file`, mapped from `path`.
pub(super) fn open(path: &Path, file: &[u8], budget: &mut Budget) -> Result<Part> {
    read(file, budget).map_err(|problem| Error::Safetensors { path: path.to_owned(), problem })
}

fn read(file: &[u8], budget: &mut Budget) -> std::result::Result<Part, SafetensorsProblem> {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or(SafetensorsProblem::HeaderTruncated { declared: 8, available: file.len() as u64 })?;
    let declared = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if declared > available {
        return Err(SafetensorsProblem::HeaderTruncated { declared, available });
    }
    let (json, data) = rest.split_at(declared as usize);
    let mut header = Header::parse(json, budget).map_err(|reason| SafetensorsProblem::Header { reason })?;

    let mut tensors = Vec::with_capacity(header.tensors.len());
    let mut storages = Vec::with_capacity(header.tensors.len());
    let mut spans = Vec::with_capacity(header.tensors.len());
    let data_start = file.len() - data.len();
    for (index, info) in header.tensors.iter_mut().enumerate() {
        let tensor = || info.name.to_string();
        let dtype = info.dtype.as_str();
        let dtype = DType::from_safetensors_name(dtype)
            .ok_or_else(|| SafetensorsProblem::UnknownType { tensor: tensor(), dtype: dtype.to_owned() })?;
        let (begin, end) = info.offsets;
        let found = end.saturating_sub(begin);
        let needed = info
            .shape
            .iter()
            .try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64))
            .filter(|&n| i64::try_from(n).is_ok())
            .unwrap_or(u64::MAX);
        if needed != found || end < begin {
            return Err(SafetensorsProblem::Length { tensor: tensor(), needed, found });
        }
        spans.push((begin, end, index));
        let shape = std::mem::take(&mut info.shape);
        let strides = contiguous_strides(&shape);
        tensors.push(Stored::Dense(StoredTensor { dtype, strides, shape, offset: 0, storage: index }));
    }
    spans.sort_unstable();
    let mut expected = 0;
    for &(begin, end, index) in &spans {
        if begin != expected {
            let tensor = header.tensors[index].name.to_string();
            return Err(SafetensorsProblem::Layout { tensor, expected, found: begin });
        }
        expected = end;
    }
    if expected != data.len() as u64 {
        return Err(SafetensorsProblem::DataLength { expected, found: data.len() as u64 });
    }
    // For messages about sizes that differ; here they cannot.
    let label: Arc<str> = "".into();
    for info in &header.tensors {
        let (begin, end) = info.offsets;
        let range = data_start + begin as usize..data_start + end as usize;
        let size = end - begin;
        storages.push(Storage {
            label: Arc::clone(&label),
            source: 0,
            declared: size,
            size,
            extent: Extent::Mapped(range),
            order: ByteOrder::Little,
        });
    }
    Ok(Part { container: Container::Safetensors, tree: tree(header), tensors, storages })
}

/// The header as a tree: the tensors by name, `__metadata__` beside them.
fn tree(header: Header<'_>) -> Tree {
    let mut values = vec![Value::None];
    let mut add = |value| {
        values.push(value);
        (values.len() - 1) as u32
    };
    let mut root = Vec::new();
    for (index, info) in header.tensors.into_iter().enumerate() {
        root.push((add(Value::Str(info.name)), add(Value::Tensor(index))));
    }
    if !header.metadata.is_empty() {
        let mut metadata = Vec::new();
        for (key, value) in header.metadata {
            metadata.push((add(Value::Str(key)), add(Value::Str(value))));
        }
        root.push((add(Value::Str("__metadata__".into())), add(Value::Map(metadata))));
    }
    values[0] = Value::Map(root);
    Tree { values, root: 0, loose: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    fn refused(header: &str, data: usize) -> SafetensorsProblem {
        read(&file(header, data), &mut Budget::default()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn order_and_metadata_are_the_headers() {
        let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"__metadata__":{"k":"v"},
            "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;
        let contents = read(&file(header, 8), &mut Budget::default()).unwrap();
        let names: Vec<_> = contents
            .tree
            .tensors(&contents.tensors, &mut Budget::default())
            .unwrap()
            .into_iter()
            .map(|t| t.path)
            .collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn rejects_a_header_longer_than_the_file() {
        let refused = |file: &[u8]| read(file, &mut Budget::default()).map(|_| ()).unwrap_err();
        let cut = refused(&file("{}", 0)[..9]);
        assert!(matches!(cut, SafetensorsProblem::HeaderTruncated { declared: 2, available: 1 }));
        assert!(matches!(refused(&[0, 0]), SafetensorsProblem::HeaderTruncated { .. }));
    }

    #[test]
    fn rejects_malformed_json_and_duplicate_names() {
        assert!(matches!(refused("{", 0), SafetensorsProblem::Header { .. }));
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let SafetensorsProblem::Header { reason } = refused(twice, 2) else { panic!("wrong variant") };
        assert!(reason.contains("\"a\" occurs twice"), "{reason}");
    }

    #[test]
    fn rejects_unknown_types_and_wrong_lengths() {
        let unknown = r#"{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(matches!(refused(unknown, 1), SafetensorsProblem::UnknownType { .. }));
        let short = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
        assert!(matches!(refused(short, 4), SafetensorsProblem::Length { needed: 8, found: 4, .. }));
        let backwards = r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,0]}}"#;
        assert!(matches!(refused(backwards, 4), SafetensorsProblem::Length { .. }));
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(matches!(refused(huge, 0), SafetensorsProblem::Length { .. }));
    }

    #[test]
    fn rejects_gaps_overlaps_and_trailing_bytes() {
        let gap = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(matches!(refused(gap, 2), SafetensorsProblem::Layout { expected: 0, found: 1, .. }));
        let overlap = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
        assert!(matches!(refused(overlap, 3), SafetensorsProblem::Layout { expected: 2, found: 1, .. }));
        let one = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(matches!(refused(one, 2), SafetensorsProblem::DataLength { expected: 1, found: 2 }));
        assert!(matches!(refused(one, 0), SafetensorsProblem::DataLength { expected: 1, found: 0 }));
    }
}
