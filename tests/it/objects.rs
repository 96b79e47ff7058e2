//! Objects that `torch.save` does not write by itself, or that change tensors behind the reader's back: either read as
//! PyTorch reads them, or refused; never a wrong value, never a tensor that goes missing.

use std::io::Write;

use m2pt_surgery::{Checkpoint, Error, RebuildProblem};
use zip::write::SimpleFileOptions;

use crate::support::whole;

/// `[1, 2, 3, 4]` and `[9, 8, 7, 6]` in float32.
const STORAGES: [[f32; 4]; 2] = [[1.0, 2.0, 3.0, 4.0], [9.0, 8.0, 7.0, 6.0]];

/// Pickled: the persistent id of storage `key`.
fn storage(key: u8) -> Vec<u8> {
    let mut out = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0".to_vec();
    out.push(b'0' + key);
    out.extend(b"X\x03\0\0\0cpuK\x04tQ");
    out
}

/// Pickled: a tensor of the four elements of storage `key`; `rest` are its arguments after the strides, pickled.
fn tensor_with(key: u8, rest: &[u8]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage(key)[..], b"K\0K\x04\x85K\x01\x85", rest, b"tR"].concat()
}

fn tensor(key: u8) -> Vec<u8> {
    tensor_with(key, b"\x89ccollections\nOrderedDict\n)R")
}

/// An archive whose object is the dictionary `{"w": ...}` of that pickled value.
fn open(value: &[u8]) -> Result<Vec<(String, Vec<f32>)>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object.pth");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let pickle = [b"\x80\x02}(X\x01\0\0\0w", value, b"u."].concat();
    let mut add = |name: &str, data: &[u8]| {
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(format!("a/{name}"), stored).unwrap();
        archive.write_all(data).unwrap();
    };
    add("data.pkl", &pickle);
    for (key, values) in STORAGES.iter().enumerate() {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        add(&format!("data/{key}"), &bytes);
    }
    archive.finish().unwrap();
    let checkpoint = Checkpoint::open(&path)?;
    let tensors = whole(&checkpoint);
    let read = |(index, spec): (usize, &m2pt_surgery::TensorSpec)| {
        let bytes = tensors.tensor(index).unwrap().view().to_vec();
        (spec.name.clone(), bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    Ok(tensors.specs().iter().enumerate().map(read).collect())
}

fn refused(value: &[u8]) -> RebuildProblem {
    match open(value) {
        Err(Error::Rebuild { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

fn names(value: &[u8]) -> Vec<String> {
    open(value).unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_plain_tensor_is_read() {
    assert_eq!(open(&tensor(0)).unwrap(), [("w".to_owned(), STORAGES[0].to_vec())]);
}

#[test]
fn rejects_a_tensor_that_is_changed_after_it_is_made() {
    // BUILD calls Tensor.__setstate__, which replaces the storage: PyTorch reads [9, 8, 7, 6].
    let state = [b"(", &storage(1)[..], b"K\0K\x04\x85K\x01\x85tb"].concat();
    assert!(matches!(refused(&[tensor(0), state].concat()), RebuildProblem::Arguments { .. }));
}

#[test]
fn rejects_lazily_negated_and_conjugated_views_however_they_are_marked() {
    let hooks = b"\x89ccollections\nOrderedDict\n)R";
    let marked = |metadata: &[u8]| tensor_with(0, &[hooks, metadata].concat());
    for mark in
        [&b"}X\x03\0\0\0neg\x88s"[..], b"}X\x04\0\0\0conj\x88s", b"ccollections\nOrderedDict\n)RX\x03\0\0\0neg\x88s"]
    {
        assert!(matches!(refused(&marked(mark)), RebuildProblem::LazyView { .. }));
    }
    // OrderedDict({"neg": True}) and OrderedDict([["neg", True]]): the mark is in the call's arguments.
    for mark in [
        &b"ccollections\nOrderedDict\n}X\x03\0\0\0neg\x88s\x85R"[..],
        b"ccollections\nOrderedDict\n](](X\x03\0\0\0neg\x88ee\x85R",
    ] {
        assert!(matches!(refused(&marked(mark)), RebuildProblem::Arguments { .. }));
    }
    // No mark that is set, as PyTorch writes it for other reasons.
    for metadata in [&b"N"[..], b"}", b"}X\x03\0\0\0neg\x89s"] {
        assert_eq!(names(&marked(metadata)), ["w"]);
    }
}

#[test]
fn tensors_in_odd_places_are_listed() {
    let t = tensor(0);
    let dict = |callable: &[u8]| [callable, b"}X\x01\0\0\0a", &t, b"s\x85R"].concat();
    assert_eq!(names(&dict(b"ccollections\nOrderedDict\n")), ["w.a"]);
    assert_eq!(names(&dict(b"ccollections\nCounter\n")), ["w.a"]);
    let pairs = [b"ccollections\nOrderedDict\n]](X\x01\0\0\0a", &t[..], b"ea\x85R"].concat();
    assert_eq!(names(&pairs), ["w.a"]);
    assert_eq!(names(&[b"](", &t[..], b"(", &t, b"te"].concat()), ["w.0", "w.1.0"]);
    assert_eq!(names(&[b"}", &t[..], b"K\x01s"].concat()), ["w.<key 0>"]);
    // Two keys of bytes.
    let bytes = [b"}C\x01a", &t[..], b"sC\x01b", &t, b"s"].concat();
    assert_eq!(names(&bytes), ["w.<value 0>", "w.<value 1>"]);
    assert_eq!(names(&[b"cmodule\nThing\n", &t[..], b"\x85R"].concat()), ["w.args.0"]);
    assert_eq!(names(&[b"cmodule\nThing\n)\x81}X\x01\0\0\0a", &t[..], b"sb"].concat()), ["w.a"]);
    assert_eq!(names(&[b"cmodule\nThing\n)\x81", &t[..], b"\x85b"].concat()), ["w.state.0.0"]);
    // A set by EMPTY_SET and ADDITEMS, as protocol 4 has it, and by a call, as the protocols before do.
    assert_eq!(names(&[b"\x8f(", &t[..], b"\x90"].concat()), ["w.0"]);
    for class in [&b"c__builtin__\nset\n"[..], b"cbuiltins\nfrozenset\n"] {
        assert_eq!(names(&[class, b"](", &t, b"e\x85R"].concat()), ["w.0"]);
    }
    // Attributes of an OrderedDict, beside its entries.
    let attributes = [b"ccollections\nOrderedDict\n)RX\x01\0\0\0a", &t[..], b"s}X\x01\0\0\0b", &t, b"sb"].concat();
    let mut found = names(&attributes);
    found.sort();
    assert_eq!(found, ["w.a", "w.b"]);
}

#[test]
fn tensors_in_attributes_that_dictionaries_share_are_listed_for_each() {
    // Of three dictionaries, the first has [0] for attributes, the others [[0], tensor].
    let dict = |attributes: &[u8]| [b"ccollections\nOrderedDict\n)R", attributes, b"b"].concat();
    let both = [b"](h\x01", &tensor(0)[..], b"eq\x02"].concat();
    let all = [b"(", &dict(b"](K\0eq\x01")[..], &dict(&both), &dict(b"h\x02"), b"t"].concat();
    assert_eq!(names(&all), ["w.1.state.0.1", "w.2.state.0.1"]);
}

#[test]
fn rejects_tensors_that_have_no_name_of_their_own_or_are_made_otherwise() {
    let t = tensor(0);
    let parameter = [
        b"ctorch._utils\n_rebuild_parameter_with_state\n(",
        &t[..],
        b"\x88ccollections\nOrderedDict\n)R}X\x01\0\0\0a",
        &t,
        b"stR",
    ];
    assert_eq!(refused(&parameter.concat()), RebuildProblem::Attributes);
    assert!(matches!(refused(b"ctorch\nTensor\n)\x81"), RebuildProblem::Unsupported { .. }));
    assert!(matches!(refused(b"ctorch\nFloatTensor\n)R"), RebuildProblem::Unsupported { .. }));
    let sparse = refused(b"ctorch._utils\n_rebuild_sparse_tensor\n)R");
    assert!(matches!(sparse, RebuildProblem::Unsupported { function } if function.ends_with("_rebuild_sparse_tensor")));
    let pairs = refused(b"ccollections\nOrderedDict\n](K\x01e\x85R");
    assert!(matches!(pairs, RebuildProblem::Arguments { .. }));
}
