//! Containers other than `torch.save`'s zip and single safetensors files: every tensor is, bit for bit, what the
//! container's own library reads.

use std::path::{Path, PathBuf};

use m2pt_surgery::{Checkpoint, Container, Error, FolderProblem, NumpyProblem, OtherKind, ShardedProblem, ZipProblem};
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
pub(crate) fn compare(container: &str) {
    for (name, record) in files(container) {
        let checkpoint = Checkpoint::open(fixture(&name)).unwrap();
        assert_eq!(checkpoint.container().name(), container, "{name}");
        let tensors = whole(&checkpoint);
        assert_eq!(digests(&tensors), recorded(&record["tensors"]), "{name}");
        let others: Vec<_> = tensors.others().iter().map(|(name, other)| (name.as_str(), json!(other.shape))).collect();
        let expected: Vec<_> = record["others"].as_object().into_iter().flatten().collect();
        let expected: Vec<_> = expected.iter().map(|(name, other)| (name.as_str(), other["shape"].clone())).collect();
        assert_eq!(others, expected, "{name}");
        if let Some(bytes) = record["bytes"].as_u64() {
            assert_eq!((checkpoint.file_bytes(), json!(checkpoint.sha256())), (bytes, record["sha256"].clone()));
        }
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

/// A copy of a folder of fixtures.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

const INDEX: &str = "model.safetensors.index.json";

/// What is said of the sharded fixture with its index changed as a text.
fn sharded(change: impl Fn(String) -> String) -> Result<Vec<String>, ShardedProblem> {
    let folder = copied("layouts/sharded_safetensors");
    let index = folder.path().join(INDEX);
    std::fs::write(&index, change(std::fs::read_to_string(&index).unwrap())).unwrap();
    match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => Ok(whole(&checkpoint).specs().iter().map(|spec| spec.name.clone()).collect()),
        Err(Error::Sharded { path, problem }) => {
            assert_eq!(path, index);
            Err(problem)
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn shards_are_read_as_transformers_does() {
    compare("sharded");
}

#[test]
fn tensors_that_the_index_does_not_list_are_there() {
    let names = |drop: &'static str| sharded(move |index| index.replace(drop, "")).unwrap();
    let listed = "\n    \"step\": \"model-00004-of-00004.safetensors\",";
    assert_eq!(names(listed), names(""));
    assert!(names(listed).contains(&"step".to_owned()));
}

#[test]
fn rejects_shards_that_are_missing_and_tensors_that_are_not_in_theirs() {
    let folder = copied("layouts/sharded_safetensors");
    std::fs::remove_file(folder.path().join("model-00004-of-00004.safetensors")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let shard = "model-00004-of-00004.safetensors".to_owned();
    assert!(
        matches!(&error, Error::Sharded { problem: ShardedProblem::Missing { shard: name, tensors: 4, of: 9 }, .. } if *name == shard)
    );
    let swapped = sharded(|index| index.replace("\"step\"", "\"stop\""));
    assert_eq!(swapped, Err(ShardedProblem::NotInShard { tensor: "stop".into(), shard }));
}

#[test]
fn rejects_a_tensor_that_two_shards_hold() {
    let folder = copied("layouts/sharded_safetensors");
    let shard = |number: u8| folder.path().join(format!("model-0000{number}-of-00004.safetensors"));
    std::fs::copy(shard(1), shard(2)).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let name = |number: u8| shard(number).file_name().unwrap().to_str().unwrap().to_owned();
    // The first in the file.
    let (tensor, first, second) = ("blocks.0.qkv".to_owned(), name(1), name(2));
    assert!(
        matches!(error, Error::Sharded { problem, .. } if problem == ShardedProblem::Twice { tensor, first, second })
    );
}

#[test]
fn rejects_shard_names_that_lead_out_of_the_folder() {
    for name in ["../model.safetensors", "/etc/passwd", "a/b", "a\\\\b", "..", ".", ""] {
        let renamed = sharded(|index| index.replace("model-00001-of-00004.safetensors", name));
        assert!(matches!(renamed, Err(ShardedProblem::Name { .. })), "{name}: {renamed:?}");
    }
}

#[test]
fn rejects_malformed_indexes() {
    let malformed = |change: fn(String) -> String| match sharded(change) {
        Err(ShardedProblem::Index { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(malformed(|index| index[..index.len() - 3].to_owned()).contains("EOF"));
    assert!(malformed(|index| index.replace("\"head\"", "\"step\"")).contains("\"step\" occurs twice"));
    assert!(malformed(|index| index.replace("\"metadata\"", "\"weight_map\"")).contains("expected a string"));
    assert!(
        malformed(|index| index.replace("\"model-00002-of-00004.safetensors\"", "3")).contains("expected a string")
    );
    assert!(malformed(|_| "{\"weights\": {}, \"a\": \"weight_map\"}".into()).contains("missing field `weight_map`"));
    assert!(
        malformed(|_| format!("{{\"weight_map\": {{}}, \"a\": [{}0]}}", "0,".repeat(5 << 20))).contains("more than")
    );
}

#[test]
fn rejects_shards_that_are_no_dictionaries() {
    let folder = copied("layouts/sharded_bin");
    // A zip archive whose object is no dictionary: one tensor, as distributed checkpoints hold them.
    let bytes = std::fs::read(fixture("layouts/dcp_distributed/__0_0.distcp")).unwrap();
    let end = position(&bytes[..2000], b"PK\x05\x06") + 22;
    let begin = bytes[..end].windows(4).position(|window| window == b"PK\x03\x04").unwrap();
    std::fs::write(folder.path().join("pytorch_model-00002-of-00004.bin"), &bytes[begin..end]).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Sharded { problem: ShardedProblem::NoDictionary { .. }, .. }), "{error}");
}

#[test]
fn a_folder_is_its_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let put = |from: &str, name: &str| std::fs::copy(fixture(from), folder.path().join(name)).map(drop).unwrap();
    let opened = || {
        let checkpoint = Checkpoint::open(folder.path())?;
        assert_eq!(checkpoint.path(), folder.path());
        let names: Vec<_> = checkpoint.files().map(|file| file.file_name().unwrap().to_owned()).collect();
        Ok(names[0].to_str().unwrap().to_owned())
    };
    let refused = |opened: Result<String, Error>| match opened {
        Err(Error::Directory { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    put("README.md", "README.md");
    assert_eq!(refused(opened()), FolderProblem::NoCheckpoint);
    put("layouts/views.pth", "b.pth");
    assert_eq!(opened().unwrap(), "b.pth");
    put("layouts/arrays.npz", "a.NPZ");
    assert_eq!(refused(opened()), FolderProblem::Several(vec!["a.NPZ".into(), "b.pth".into()]));
    put("layouts/sharded_safetensors/model-00002-of-00004.safetensors", "part.safetensors");
    let index = |name: &str, shard: &str| {
        std::fs::write(folder.path().join(name), format!("{{\"weight_map\": {{\"blocks.0.proj\": \"{shard}\"}}}}"))
            .unwrap();
    };
    index("one.index.json", "part.safetensors");
    assert_eq!(opened().unwrap(), "one.index.json");
    index("two.index.json", "part.safetensors");
    assert!(matches!(refused(opened()), FolderProblem::Several(names) if names.len() == 2));
    // What transformers looks for, in its order.
    index("pytorch_model.bin.index.json", "part.safetensors");
    assert_eq!(opened().unwrap(), "pytorch_model.bin.index.json");
    put("layouts/views.pth", "pytorch_model.bin");
    assert_eq!(opened().unwrap(), "pytorch_model.bin");
    index("model.safetensors.index.json", "part.safetensors");
    assert_eq!(opened().unwrap(), "model.safetensors.index.json");
    put("layouts/dtypes.safetensors", "model.safetensors");
    assert_eq!(opened().unwrap(), "model.safetensors");
}

#[test]
fn parts_of_distributed_checkpoints_without_common_metadata_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("__0.metadata"), "").unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Directory { problem: FolderProblem::OwnMetadata(_), .. }));
    std::fs::remove_file(folder.path().join("__0.metadata")).unwrap();
    let parts = ["shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"];
    for part in parts {
        std::fs::write(folder.path().join(part), "").unwrap();
    }
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let expected = FolderProblem::Unconsolidated(parts.map(str::to_owned).to_vec());
    assert!(matches!(error, Error::Directory { problem, .. } if problem == expected));
}

#[test]
fn an_index_in_memory_opens_no_files() {
    let index = fixture("layouts/sharded_safetensors").join(INDEX);
    let bytes = std::fs::read(&index).unwrap();
    assert!(matches!(Checkpoint::from_bytes(&index, bytes), Err(Error::NotACheckpoint { .. })));
}

/// `mnist_vit.safetensors` in two shards with an index.
#[cfg(feature = "cli")]
fn shards_of_the_target(folder: &Path) {
    use safetensors::SafeTensors;
    let bytes = std::fs::read(fixture("mnist_vit.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (number, name) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let chosen: Vec<_> = tensors.iter().enumerate().filter(|(i, _)| i % 2 == number).map(|(_, t)| t).collect();
        map.extend(chosen.iter().map(|(tensor, _)| ((*tensor).to_owned(), json!(name))));
        std::fs::write(folder.join(name), safetensors::serialize(chosen, None).unwrap()).unwrap();
    }
    std::fs::write(folder.join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
}

#[cfg(feature = "cli")]
#[test]
fn folding_a_folder_of_shards_gives_what_folding_the_file_gives() {
    let folder = tempfile::tempdir().unwrap();
    shards_of_the_target(folder.path());
    let cases = expected("folds.json");
    let case = cases.as_array().unwrap().iter().find(|case| case["name"] == "lambda 0.1").unwrap();
    let mut wanted = recorded(&case["tensors"]);
    wanted.sort();
    let fold = |output: &Path| {
        let (target, output) = (folder.path().to_str().unwrap(), output.to_str().unwrap());
        let aux = fixture("speech_vit.pth");
        let args = ["fold", target, "--aux", aux.to_str().unwrap(), "--lambda", "0.1", "--force", "-o", output];
        crate::support::succeed(&args);
        let mut found = digests(&whole(&Checkpoint::open(output).unwrap()));
        found.sort();
        found
    };
    assert_eq!(fold(&folder.path().join("out.pth")), wanted);
    // The output takes the place of a shard that is being read.
    assert_eq!(fold(&folder.path().join("b.safetensors")), wanted);
}

#[cfg(feature = "cli")]
#[test]
fn a_shard_that_is_given_alone_is_said_to_be_one_of_several() {
    let shard = "fixtures/layouts/sharded_safetensors/model-00002-of-00004.safetensors";
    let said = "by its name it is file 2 of 4, and holds only that part of the checkpoint";
    let output = crate::support::run(&["inspect", "--json", shard]);
    assert!(String::from_utf8(output.stderr).unwrap().contains(said));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["shard"], json!({"number": 2, "of": 4}));
    for whole in ["fixtures/layouts/sharded_safetensors", "fixtures/mnist_vit.safetensors"] {
        let output = crate::support::run(&["inspect", "--json", whole]);
        assert!(output.stderr.is_empty(), "{whole}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["shard"], Value::Null);
    }
    let output = crate::support::run(&["diff", shard, "fixtures/mnist_vit.pth"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains(&format!("{shard}: {said}")));

    // A fold says it whether it can be done or not.
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model-00001-of-00002.safetensors");
    std::fs::copy(fixture("mnist_vit.safetensors"), &target).unwrap();
    let (target, out) = (target.to_str().unwrap(), folder.path().join("out.pth"));
    let out = out.to_str().unwrap();
    let aux = fixture("speech_vit.pth");
    let fold = ["fold", target, "--lambda", "0.1", "--json", "-o", out, "--aux"];
    let output = crate::support::run(&[&fold[..], &[aux.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["notes"][0].as_str().unwrap().contains("file 1 of 2"), "{}", report["notes"]);
    let message = crate::support::fail(&[&fold[..], &[shard]].concat());
    assert!(message.contains("file 1 of 2") && message.contains("file 2 of 4"), "{message}");
}
