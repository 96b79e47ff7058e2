//! Everything that PyTorch writes beside the zip of a state dict: legacy and tar files, modules, TorchScript, packages.

use m2pt_surgery::{Checkpoint, Container, Error, LegacyProblem, RootChoice, TarProblem};
use serde_json::{Value, json};

use crate::support::{expected, fixture, read_as_recorded};

#[test]
fn every_tensor_of_every_torch_file_is_what_pytorch_reads() {
    let files = expected("torch_files.json");
    let files = files.as_object().unwrap();
    assert_eq!(files.len(), std::fs::read_dir(fixture("torch_files")).unwrap().count());
    for (file, theirs) in files {
        let checkpoint = Checkpoint::open(fixture("torch_files").join(file)).unwrap();
        let ours = read_as_recorded(file, &checkpoint);
        let others: Vec<Value> = ours
            .others()
            .iter()
            .map(|(name, other)| {
                json!({"name": name, "kind": other.kind.name(), "dtype": other.dtype, "shape": other.shape})
            })
            .collect();
        assert_eq!(Value::Array(others), theirs["others"], "{file}");
        let bytes = std::fs::read(fixture("torch_files").join(file)).unwrap();
        let in_memory = Checkpoint::from_bytes(file, bytes).unwrap();
        assert_eq!(in_memory.tensor_count(), checkpoint.tensor_count(), "{file}");
        assert_eq!(in_memory.sha256(), checkpoint.sha256(), "{file}");
    }
}

#[test]
fn containers_are_told_by_content() {
    for (file, container) in [
        ("legacy.pth", Container::TorchLegacy),
        ("legacy_protocol_5.pth", Container::TorchLegacy),
        ("early_legacy.pth", Container::TorchLegacy),
        ("module_legacy.pth", Container::TorchLegacy),
        ("tar.pth", Container::TorchTar),
        ("scripted.pt", Container::TorchScript),
        ("traced.pt", Container::TorchScript),
        ("package.pt", Container::TorchPackage),
        ("lightning.ckpt", Container::TorchZip),
    ] {
        let bytes = std::fs::read(fixture("torch_files").join(file)).unwrap();
        assert_eq!(Checkpoint::from_bytes("model.bin", bytes).unwrap().container(), container, "{file}");
    }
}

#[test]
fn tensors_that_state_dict_leaves_out_are_elsewhere() {
    let checkpoint = Checkpoint::open(fixture("torch_files/module.pth")).unwrap();
    let model = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    assert_eq!(model.root(), "");
    assert!(model.find("blocks.0.cache").is_none() && model.find("blocks.0.plain").is_none());
    assert_eq!(model.outside(), 4, "a non-persistent buffer and an attribute in each of two blocks");
    let whole = checkpoint.state_dict(&RootChoice::Path(String::new())).unwrap();
    assert!(whole.find("blocks.0.cache").is_some() && whole.find("blocks.1.plain").is_some());
    let inner = Checkpoint::open(fixture("torch_files/in_a_module.pth")).unwrap();
    assert_eq!(inner.state_dict(&RootChoice::Auto).unwrap().root(), "model");
}

#[test]
fn values_beside_the_weights_are_shown_as_python_has_them() {
    let checkpoint = Checkpoint::open(fixture("torch_files/lightning.ckpt")).unwrap();
    let values = checkpoint.values();
    assert_eq!(values["epoch"], 3);
    assert_eq!(values["hyper_parameters"]["__class__"], "argparse.Namespace");
    assert_eq!(values["settings"]["__class__"], "lost_project.models.Settings");
    assert_eq!(values["settings"]["schedule"], json!([1, 2]));
    assert_eq!(values["array"]["__class__"], "numpy.ndarray float32 [2, 3]");
    assert_eq!(values["number"], -5);
    assert_eq!(values["half"], 0.5);
    assert_eq!(values["raw"], "2 bytes");
    assert_eq!(values["size"], json!([2, 3]));
    assert_eq!(values["callbacks"]["ModelCheckpoint{'monitor': 'val_loss'}"]["best"], "inf");
}

#[test]
fn a_tensor_that_is_no_plain_array_is_refused_by_name() {
    let checkpoint = Checkpoint::open(fixture("torch_files/others.pth")).unwrap();
    let tensors = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    let error = tensors.require_dense().unwrap_err().to_string();
    for word in ["others.pth", "\"coo\"", "sparse", "to_dense()"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn rejects_archives_that_follow_each_other() {
    // Two objects saved to one file: torch.load reads one of them, and says nothing of the other.
    let one = std::fs::read(fixture("layouts/views.pth")).unwrap();
    let error = refused([&one[..], &one].concat()).to_string();
    assert!(error.contains("several archives follow each other"), "{error}");
}

fn refused(bytes: Vec<u8>) -> Error {
    Checkpoint::from_bytes("damaged.pth", bytes).unwrap_err()
}

#[test]
fn rejects_a_legacy_stream_cut_short_or_longer_anywhere() {
    let bytes = std::fs::read(fixture("torch_files/early_legacy.pth")).unwrap();
    for length in 0..bytes.len() {
        let error = refused(bytes[..length].to_vec());
        assert!(!matches!(error, Error::Tensor { .. }) || length > 900, "{length}: {error}");
    }
    let LegacyProblem::Truncated { needed, available, .. } = legacy(refused(bytes[..bytes.len() - 1].to_vec())) else {
        panic!("the last storage is cut short");
    };
    assert_eq!(needed, available + 1);
    let longer = [&bytes[..], &[0; 5]].concat();
    let offset = bytes.len() as u64;
    assert_eq!(legacy(refused(longer)), LegacyProblem::Trailing { offset, extra: 5 });
}

fn legacy(error: Error) -> LegacyProblem {
    match error {
        Error::Legacy { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

fn tar(error: Error) -> TarProblem {
    match error {
        Error::Tar { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn rejects_a_legacy_stream_of_another_protocol() {
    let bytes = std::fs::read(fixture("torch_files/early_legacy.pth")).unwrap();
    // M, then 1001 in two bytes.
    let at = bytes.windows(3).position(|w| w == [b'M', 0xe9, 0x03]).unwrap();
    let mut other = bytes;
    other[at + 1] = 0xea;
    assert_eq!(legacy(refused(other)), LegacyProblem::Protocol { found: "1002".into() });
}

#[test]
fn rejects_a_storage_count_that_is_not_the_declared_one() {
    let bytes = std::fs::read(fixture("torch_files/early_legacy.pth")).unwrap();
    // The first storage has 40 elements.
    let at = bytes.windows(8).rposition(|w| w == 40u64.to_le_bytes()).unwrap();
    for count in [39u64, 41, u64::MAX, 1 << 62, 0] {
        let mut other = bytes.clone();
        other[at..at + 8].copy_from_slice(&count.to_le_bytes());
        let error = refused(other);
        assert!(matches!(error, Error::Legacy { .. } | Error::Tensor { .. }), "{count}: {error}");
    }
}

#[test]
fn rejects_a_tar_archive_that_is_damaged() {
    let bytes = std::fs::read(fixture("torch_files/tar.pth")).unwrap();
    let storages = bytes.windows(9).position(|w| w == b"storages\0").unwrap();
    let cut = bytes[..storages + 600].to_vec();
    assert!(matches!(tar(refused(cut)), TarProblem::Truncated { name, .. } if name == "storages"));
    let mut checksum = bytes.clone();
    checksum[storages] = b'S';
    assert!(matches!(tar(refused(checksum)), TarProblem::Header { .. }));
    let without = bytes[..storages].to_vec();
    assert_eq!(tar(refused(without)), TarProblem::Missing { name: "storages" });
    let twice = [&bytes[..storages], &bytes[..]].concat();
    assert!(matches!(tar(refused(twice)), TarProblem::Duplicate { .. }));
}

#[test]
fn bytes_flipped_anywhere_never_give_other_tensors_silently_in_number() {
    // Legacy and tar files have no checksums: values may change unnoticed, sizes and counts may not overrun anything.
    for file in ["early_legacy.pth", "tar.pth", "scripted.pt", "package.pt"] {
        let bytes = std::fs::read(fixture("torch_files").join(file)).unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0xff] {
                let mut other = bytes.clone();
                other[at] ^= flip;
                let Ok(checkpoint) = Checkpoint::from_bytes("flipped.pth", other) else { continue };
                let Ok(tensors) = checkpoint.state_dict(&RootChoice::Path(String::new())) else { continue };
                for index in 0..tensors.specs().len() {
                    if let Ok(data) = tensors.tensor(index) {
                        assert_eq!(data.view().to_vec().len() as u64, tensors.specs()[index].bytes());
                    }
                }
            }
        }
    }
}
