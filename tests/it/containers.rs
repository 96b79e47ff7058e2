//! Containers other than `torch.save`'s zip and single safetensors files: every tensor is, bit for bit, what the
//! container's own library reads.

use std::path::{Path, PathBuf};

use m2pt_surgery::{Checkpoint, Container, Error, NumpyProblem, OtherKind, ZipProblem};
use serde_json::{Value, json};

use crate::support::{digests, expected, fixture, recorded, whole};

/// The recorded files of one kind, by name.
fn files(container: &str) -> Vec<(String, Value)> {
    let all = expected("containers.json");
    let of_kind = all.as_object().unwrap().iter().filter(|(_, record)| record["container"] == container);
    let found: Vec<_> = of_kind.map(|(name, record)| (name.clone(), record.clone())).collect();
    assert!(!found.is_empty(), "the generator records files of the kind {container}");
    found
}

/// Opens each recorded file of a kind, and compares all that is in it with what was recorded.
fn compare(container: &str) {
    for (name, record) in files(container) {
        let checkpoint = Checkpoint::open(fixture(&name)).unwrap();
        assert_eq!(checkpoint.container().name(), container, "{name}");
        let tensors = whole(&checkpoint);
        assert_eq!(digests(&tensors), recorded(&record["tensors"]), "{name}");
        let others: Vec<_> = tensors.others().iter().map(|(name, other)| (name.as_str(), json!(other.shape))).collect();
        let expected: Vec<_> = record["others"].as_object().into_iter().flatten().collect();
        let expected: Vec<_> = expected.iter().map(|(name, other)| (name.as_str(), other["shape"].clone())).collect();
        assert_eq!(others, expected, "{name}");
        for (key, value) in record["values"].as_object().into_iter().flatten() {
            assert_eq!(&checkpoint.values()[key], value, "{name} {key}");
        }
    }
}

/// A copy of a fixture, changed.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(fixture(name)).unwrap();
    change(&mut bytes);
    let path = folder.join(Path::new(name).file_name().unwrap());
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Where `wanted` is in `bytes`, which hold it once.
fn position(bytes: &[u8], wanted: &[u8]) -> usize {
    let mut found = bytes.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted);
    let (at, _) = found.next().unwrap();
    assert!(found.next().is_none());
    at
}

#[test]
fn arrays_of_numpy_archives_are_what_numpy_reads() {
    compare("npz");
}

#[test]
fn the_array_of_an_npy_file_is_what_numpy_reads() {
    compare("npy");
}

#[test]
fn arrays_that_are_no_numbers_are_listed_with_numpys_type() {
    let checkpoint = Checkpoint::open(fixture("layouts/arrays.npz")).unwrap();
    let tensors = whole(&checkpoint);
    let kinds: Vec<_> = tensors.others().iter().map(|(_, other)| other.kind.clone()).collect();
    let descr = ["<U5", "|S3", "|O", "[('x', '<f4'), ('\u{fc}', '<i2', (2,))]", "<M8[D]", "<V2", "<V1", "|V2"];
    assert_eq!(kinds, descr.map(|descr| OtherKind::Array(descr.into())));
    assert!(tensors.require_dense().is_err());
}

#[test]
fn rejects_npy_files_that_are_cut_or_have_something_appended() {
    let folder = tempfile::tempdir().unwrap();
    let problem = |change: fn(&mut Vec<u8>)| match Checkpoint::open(changed(folder.path(), "layouts/array.npy", change))
    {
        Err(Error::Numpy { member, problem, .. }) if member.is_empty() => problem,
        other => panic!("{other:?}"),
    };
    let (shape, needed) = (vec![3, 5], 60);
    let expected = |found| NumpyProblem::DataLength { shape: shape.clone(), needed, found };
    assert_eq!(problem(|bytes| bytes.truncate(187)), expected(59));
    assert_eq!(problem(|bytes| bytes.push(0)), expected(61));
    assert_eq!(problem(|bytes| bytes.truncate(100)), NumpyProblem::HeaderTruncated { available: 100 });
}

#[test]
fn rejects_members_whose_checksum_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    // -2.75 in float64, which is there once.
    let path = changed(folder.path(), "layouts/arrays.npz", |bytes| {
        let at = position(bytes, &(-2.75f64).to_le_bytes());
        bytes[at] ^= 1;
    });
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensors = whole(&checkpoint);
    let error = tensors.tensor(tensors.find("scalar").unwrap()).unwrap_err();
    assert!(matches!(error, Error::Zip { problem: ZipProblem::Checksum { entry, .. }, .. } if entry == "scalar.npy"));
    assert_eq!(checkpoint.container(), Container::Npz);
}
