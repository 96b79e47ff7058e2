//! Folders of `torch.distributed.checkpoint`: what PyTorch wrote is read as PyTorch reads it, and what it would never write
//! is refused.

use std::io::Write;

use m2pt_surgery::{Checkpoint, DcpProblem, Error};
use zip::write::SimpleFileOptions;

use crate::containers::compare;
use crate::support::whole;

#[test]
fn distributed_checkpoints_are_what_pytorch_reads() {
    compare("torch-distributed");
}

/// Pickled: a text.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Pickled: `torch.Size(numbers)`.
fn size(numbers: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
    [b"ctorch\nSize\n((", &numbers[..], b"ttR"].concat()
}

/// Pickled: an object of a class in `torch.distributed.checkpoint`, with these attributes.
fn object(class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = format!("ctorch.distributed.checkpoint.metadata\n{class}\n)\x02").into_bytes();
    *out.last_mut().unwrap() = 0x81;
    out.extend(b"}(");
    for (name, value) in attributes {
        out.extend(text(name));
        out.extend(value);
    }
    out.extend(b"ub");
    out
}

/// Pickled: a dictionary.
fn dictionary(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let pairs: Vec<u8> = pairs.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    [b"}(", &pairs[..], b"u"].concat()
}

/// A part of the tensor `w`: its place, its size, and where it is stored.
#[derive(Clone)]
struct Part {
    at: Vec<u8>,
    sizes: Vec<u8>,
    file: &'static str,
    offset: usize,
    length: usize,
    transforms: &'static [&'static str],
}

/// `torch.save` of a float32 tensor of that shape, with the values 1, 2, ...; without a shape of the number 7.
fn saved(shape: Option<&[u8]>) -> Vec<u8> {
    saved_in(shape, f32::to_le_bytes, b"little")
}

/// The same, with numbers in that byte order.
fn saved_in(shape: Option<&[u8]>, bytes: fn(f32) -> [u8; 4], order: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let mut add = |name: &str, data: &[u8]| {
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(format!("a/{name}"), stored).unwrap();
        archive.write_all(data).unwrap();
    };
    match shape {
        None => add("data.pkl", b"\x80\x02K\x07."),
        Some(shape) => {
            let numel: u8 = shape.iter().product();
            let numbers = |numbers: &[u8]| numbers.iter().flat_map(|&n| [b'K', n]).collect::<Vec<u8>>();
            let strides: Vec<u8> = (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect();
            let pickle = [
                b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000",
                &b"X\x03\0\0\0cpuK"[..],
                &[numel],
                b"tQK\0(",
                &numbers(shape),
                b"t(",
                &numbers(&strides),
                b"t\x89ccollections\nOrderedDict\n)RtR.",
            ];
            add("data.pkl", &pickle.concat());
            let values: Vec<u8> = (1..=numel).flat_map(|n| bytes(f32::from(n))).collect();
            add("data/0", &values);
            add("byteorder", order);
        }
    }
    archive.finish().unwrap().into_inner()
}

/// A checkpoint of one tensor `w` of shape [3, 2] in two parts, columns, in one file.
struct Folder {
    folder: tempfile::TempDir,
    parts: Vec<Part>,
    dtype: &'static str,
    class: &'static str,
    paths: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of further items that are said to be objects, and are nowhere.
    more: Vec<&'static str>,
}

impl Folder {
    fn new() -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let item = saved(Some(&[3, 1]));
        std::fs::write(folder.path().join("a.distcp"), [&item[..], &item].concat()).unwrap();
        let part = |column: u8| Part {
            at: vec![0, column],
            sizes: vec![3, 1],
            file: "a.distcp",
            offset: usize::from(column) * item.len(),
            length: item.len(),
            transforms: &[],
        };
        let parts = vec![part(0), part(1)];
        Folder { folder, parts, dtype: "float32", class: "Metadata", paths: Vec::new(), more: Vec::new() }
    }

    fn open(&self) -> Result<Vec<f32>, Error> {
        let number = |n: usize| [b"J", &(n as u32).to_le_bytes()[..]].concat();
        let chunks: Vec<u8> = self
            .parts
            .iter()
            .flat_map(|part| {
                object("ChunkStorageMetadata", &[("offsets", size(&part.at)), ("sizes", size(&part.sizes))])
            })
            .collect();
        let properties =
            format!("ctorch.distributed.checkpoint.metadata\nTensorProperties\n)~(ctorch\n{}\ntb", self.dtype);
        let properties = properties.into_bytes().iter().map(|&b| if b == b'~' { 0x81 } else { b }).collect();
        let tensor = object(
            "TensorStorageMetadata",
            &[("properties", properties), ("size", size(&[3, 2])), ("chunks", [b"](", &chunks[..], b"e"].concat())],
        );
        let mut items = vec![(text("w"), tensor)];
        items.extend(self.more.iter().map(|name| (text(name), object("BytesStorageMetadata", &[]))));
        let places: Vec<_> = self
            .parts
            .iter()
            .map(|part| {
                let transforms: Vec<u8> = part.transforms.iter().flat_map(|name| text(name)).collect();
                let index = object("MetadataIndex", &[("fqn", text("w")), ("offset", size(&part.at))]);
                let place = object(
                    "_StorageInfo",
                    &[
                        ("relative_path", text(part.file)),
                        ("offset", number(part.offset)),
                        ("length", number(part.length)),
                        ("transform_descriptors", [b"](", &transforms[..], b"e"].concat()),
                    ],
                );
                (index, place)
            })
            .collect();
        let metadata = object(
            self.class,
            &[
                ("state_dict_metadata", dictionary(&items)),
                ("storage_data", dictionary(&places)),
                ("planner_data", dictionary(&self.paths)),
            ],
        );
        let pickle = [b"\x80\x02", &metadata[..], b"."].concat();
        std::fs::write(self.folder.path().join(".metadata"), pickle).unwrap();
        let checkpoint = Checkpoint::open(self.folder.path())?;
        let tensors = whole(&checkpoint);
        assert_eq!(tensors.specs().len(), 1);
        let bytes = tensors.tensor(0)?.view().to_vec();
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn refused(&self) -> DcpProblem {
        match self.open() {
            Err(Error::Dcp { path, problem }) if path == self.folder.path() => problem,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(file), bytes).unwrap();
    }
}

fn changed(change: impl Fn(&mut Folder)) -> DcpProblem {
    let mut folder = Folder::new();
    change(&mut folder);
    folder.refused()
}

#[test]
fn parts_are_put_together() {
    assert_eq!(Folder::new().open().unwrap(), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
}

#[test]
fn parts_of_machines_of_either_byte_order_are_put_together() {
    let mut folder = Folder::new();
    let (little, big) = (saved(Some(&[3, 1])), saved_in(Some(&[3, 1]), f32::to_be_bytes, b"big"));
    folder.write("a.distcp", &[&little[..], &big].concat());
    folder.parts[1].length = big.len();
    assert_eq!(folder.open().unwrap(), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    folder.write("a.distcp", &[&big[..], &big].concat());
    (folder.parts[0].length, folder.parts[1].offset) = (big.len(), big.len());
    assert_eq!(folder.open().unwrap(), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
}

#[test]
fn rejects_parts_that_do_not_fill_the_tensor() {
    let what = |change: fn(&mut Folder)| match changed(change) {
        DcpProblem::Parts { tensor, shape, what } if tensor == "w" && shape == [3, 2] => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(|folder| drop(folder.parts.pop())), "its parts leave some of it out");
    assert_eq!(what(|folder| folder.parts[1].at = vec![0, 2]), "a part of it lies outside of it");
    assert_eq!(what(|folder| folder.parts[1].at = vec![0]), "a part of it has another number of dimensions");
    let third = |folder: &mut Folder| {
        let part = Part { at: vec![2, 0], sizes: vec![1, 1], ..folder.parts[0].clone() };
        folder.parts.push(Part { file: "b.distcp", ..part });
    };
    assert_eq!(what(third), "parts of it overlap");
    assert_eq!(what(|folder| folder.parts[1].sizes = vec![2, 1]), "its parts leave some of it out");
}

#[test]
fn rejects_what_is_nowhere() {
    assert_eq!(changed(|folder| folder.more = vec!["epoch"]), DcpProblem::NoPlace { item: "epoch".into() });
}

#[test]
fn rejects_files_outside_of_the_folder() {
    for file in ["../a.distcp", "/a.distcp", "b/a.distcp", "..", ""] {
        let problem = changed(|folder| folder.parts[0].file = file);
        assert_eq!(problem, DcpProblem::Name { item: "w".into(), file: file.into() });
    }
}

#[test]
fn rejects_files_that_are_missing_or_too_short() {
    let missing = changed(|folder| folder.parts[1].file = "b.distcp");
    assert_eq!(missing, DcpProblem::Missing { item: "w".into(), file: "b.distcp".into() });
    let short = changed(|folder| folder.parts[1].length += 1);
    assert!(matches!(short, DcpProblem::OutOfFile { item, offset, length, size, .. }
        if item == "w" && offset + length == size + 1));
}

#[test]
fn rejects_parts_that_share_bytes() {
    let overlap = DcpProblem::Overlap { first: "w".into(), second: "w".into() };
    assert_eq!(changed(|folder| folder.parts[1].offset = folder.parts[0].offset), overlap);
    assert_eq!(changed(|folder| folder.parts[1].offset -= 1), overlap);
}

#[test]
fn rejects_compressed_parts() {
    let problem = changed(|folder| folder.parts[1].transforms = &["stream.zstd/1"]);
    assert_eq!(problem, DcpProblem::Transformed { item: "w".into(), transforms: vec!["stream.zstd/1".into()] });
}

#[test]
fn rejects_parts_of_other_types_and_shapes() {
    let found = |change: &dyn Fn(&mut Folder)| match changed(change) {
        DcpProblem::Mismatch { tensor, found, .. } if tensor == "w" => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&|folder| folder.dtype = "int32"), "float32 of shape [3, 1]");
    let stored = |item: Vec<u8>| {
        move |folder: &mut Folder| {
            folder.write("b.distcp", &item);
            let (file, length) = ("b.distcp", item.len());
            folder.parts[1] = Part { file, offset: 0, length, ..folder.parts[1].clone() };
        }
    };
    assert_eq!(found(&stored(saved(Some(&[2, 1])))), "float32 of shape [2, 1]");
    assert_eq!(found(&stored(saved(None))), "another object");
}

#[test]
fn rejects_items_that_are_no_pytorch_objects() {
    let mut folder = Folder::new();
    folder.parts[1].offset += 1;
    folder.parts[1].length -= 1;
    let error = folder.open().unwrap_err();
    let offset = folder.parts[1].offset as u64;
    assert!(matches!(error, Error::DcpItem { item, offset: at, .. } if item == "w" && at == offset));
}

#[test]
fn rejects_metadata_that_is_something_else() {
    assert!(matches!(changed(|folder| folder.class = "Metadatum"), DcpProblem::Metadata { .. }));
    let folder = Folder::new();
    folder.write(".metadata", b"\x80\x02}.");
    let error = Checkpoint::open(folder.folder.path()).unwrap_err();
    assert!(matches!(error, Error::Dcp { problem: DcpProblem::Metadata { offset: 2, .. }, .. }));
    folder.write(".metadata", b"\x80\x02}");
    assert!(matches!(Checkpoint::open(folder.folder.path()), Err(Error::Pickle { .. })));
}

#[test]
fn rejects_places_in_the_object_that_are_no_paths() {
    let with = |path: &'static [u8]| changed(move |folder| folder.paths = vec![(text("w"), path.to_vec())]);
    assert_eq!(with(b")"), DcpProblem::Taken { item: "w".into() });
    assert!(matches!(with(b"N"), DcpProblem::Metadata { .. }));
    assert!(matches!(with(b"(G\0\0\0\0\0\0\0\0t"), DcpProblem::Metadata { .. }));
}

#[test]
fn rejects_shapes_that_are_shared_without_end() {
    // A thousand times the same part in a tensor, and that under ten thousand names.
    let chunk = object("ChunkStorageMetadata", &[("offsets", size(&[0; 64])), ("sizes", size(&[1; 64]))]);
    let chunks = [b"](", &chunk[..], b"q\x01", &b"h\x01".repeat(999), b"e"].concat();
    let properties = b"ctorch.distributed.checkpoint.metadata\nTensorProperties\n)\x81(ctorch\nfloat32\ntb".to_vec();
    let attributes = [("properties", properties), ("size", size(&[1; 64])), ("chunks", chunks)];
    let tensor = [object("TensorStorageMetadata", &attributes), b"q\x02".to_vec()].concat();
    let mut items = vec![(text("0"), tensor)];
    items.extend((1..10_000).map(|number: usize| (text(&number.to_string()), b"h\x02".to_vec())));
    let state = [("state_dict_metadata", dictionary(&items)), ("storage_data", b"}".to_vec())];
    let folder = Folder::new();
    folder.write(".metadata", &[b"\x80\x02", &object("Metadata", &state)[..], b"."].concat());
    let error = Checkpoint::open(folder.folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Dcp { problem: DcpProblem::Metadata { what, .. }, .. } if what.contains("more values")),
        "{error}"
    );
}
