//! Features that several containers share, each tried in each of them: what PyTorch read of a fixture has to be read as well
//! after its archive was written in another way, and damage has to be noticed.

use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Read, Write};
use std::path::Path;

use m2pt_surgery::pickle::{Node, parse};
use m2pt_surgery::{Checkpoint, Container, Error, TensorProblem, ZipProblem};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::support::{Digest, digests, expected, fixture, read_as_recorded, recorded, whole};

/// Archives of TorchScript and torch.package, with storages in all the folders that they have.
const ARCHIVES: [&str; 5] = ["scripted.pt", "traced.pt", "frozen.pt", "package.pt", "packages.pt"];

fn torch_file(name: &str) -> Vec<u8> {
    std::fs::read(fixture("torch_files").join(name)).unwrap()
}

/// The entries of an archive in order, by their names without its root.
fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut entry = archive.by_index(index).unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.name().unwrap().split_once('/').unwrap().1.to_owned(), data)
        })
        .collect()
}

/// An archive of these entries.
fn archive(entries: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in entries {
        archive.start_file(format!("root/{name}"), SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(data).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Whether an entry holds elements of tensors.
fn is_storage(name: &str) -> bool {
    name.starts_with("data/") || name.starts_with("constants/") || name.ends_with(".storage")
}

/// Bytes of the numbers in each storage, by the entry it is in, as the pickles of the archive tell.
fn units(entries: &[(String, Vec<u8>)]) -> HashMap<String, usize> {
    let mut units = HashMap::new();
    for (name, data) in entries.iter().filter(|(name, _)| name.ends_with(".pkl")) {
        let pickle = parse(data).unwrap();
        let (mut todo, mut seen) = (vec![pickle.root()], HashSet::new());
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            match pickle.node(id) {
                Node::Persistent(id) => todo.push(*id),
                Node::Tuple(items) => todo.extend(items),
                Node::List(items) => todo.extend(items),
                Node::Dict(entries) => todo.extend(entries.iter().map(|&(_, value)| value)),
                Node::Object(object) => {
                    todo.push(object.args);
                    todo.extend(object.state.iter().chain(&object.items));
                    todo.extend(object.entries.iter().map(|&(_, value)| value));
                }
                _ => {}
            }
            // The persistent id of a storage.
            let Some(&[tag, class, key, ..]) = pickle.sequence(id) else { continue };
            let Node::Str(tag) = pickle.node(tag) else { continue };
            let key = match pickle.node(key) {
                Node::Str(key) => key.to_string(),
                Node::Int(key) => key.to_string(),
                _ => continue,
            };
            let Some((_, class)) = pickle.global(class).filter(|_| &**tag == "storage") else { continue };
            let unit = match class {
                "LongStorage" | "DoubleStorage" => 8,
                "FloatStorage" | "IntStorage" => 4,
                "HalfStorage" => 2,
                "BoolStorage" | "ByteStorage" => 1,
                other => panic!("{other}"),
            };
            let entry = match name.as_str() {
                "data.pkl" => format!("data/{key}"),
                "constants.pkl" => format!("constants/{key}"),
                _ => format!(".data/{key}.storage"),
            };
            units.insert(entry, unit);
        }
    }
    units
}

/// What a big-endian machine would have written.
fn big_endian(entries: &mut [(String, Vec<u8>)]) {
    let units = units(entries);
    for (name, data) in entries {
        if name == "byteorder" {
            *data = b"big".to_vec();
        } else if is_storage(name) {
            let unit = units[name.as_str()];
            data.chunks_mut(unit).for_each(<[u8]>::reverse);
        }
    }
}

#[test]
fn big_endian_archives_of_torchscript_and_packages_are_what_was_saved() {
    for name in ARCHIVES {
        let mut entries = entries(&torch_file(name));
        let before = entries.clone();
        big_endian(&mut entries);
        assert!(before.iter().zip(&entries).any(|((name, old), (_, new))| is_storage(name) && old != new));
        let bytes = archive(&entries, CompressionMethod::Stored);
        read_as_recorded(name, &Checkpoint::from_bytes(name, bytes).unwrap());
    }
}

#[test]
fn deflated_archives_of_torchscript_and_packages_are_what_was_saved() {
    for name in ARCHIVES {
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let bytes = archive(&entries(&torch_file(name)), method);
            read_as_recorded(name, &Checkpoint::from_bytes(name, bytes).unwrap());
        }
    }
}

/// Where the data of an entry lies in an archive.
fn data_start(bytes: &[u8], name: &str) -> usize {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    archive.by_name(name).unwrap().data_start().unwrap() as usize
}

/// The entry whose checksum is wrong, by whatever reads all tensors of the checkpoint first.
fn damaged(checkpoint: Result<Checkpoint, Error>) -> Option<String> {
    let wrong = |error: Error| match error {
        Error::Zip { problem: ZipProblem::Checksum { entry, .. }, .. } => entry,
        Error::DcpItem { source, .. } => match *source {
            Error::Zip { problem: ZipProblem::Checksum { entry, .. }, .. } => entry,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    };
    let checkpoint = match checkpoint {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Some(wrong(error)),
    };
    let tensors = whole(&checkpoint);
    (0..tensors.specs().len()).find_map(|index| tensors.tensor(index).err().map(wrong))
}

#[test]
fn rejects_archives_of_torchscript_and_packages_with_a_flipped_bit_in_any_storage_or_pickle() {
    for name in ARCHIVES {
        let bytes = torch_file(name);
        let root = ZipArchive::new(Cursor::new(&bytes)).unwrap().by_index(0).unwrap().name().unwrap().into_owned();
        let root = root.split_once('/').unwrap().0;
        assert_eq!(damaged(Checkpoint::from_bytes(name, bytes.clone())), None);
        let mut flipped = 0;
        for (entry, data) in entries(&bytes) {
            let is_read = matches!(&*entry, "data.pkl" | "constants.pkl") || name.starts_with("package");
            if data.is_empty() || !(is_storage(&entry) || is_read && entry.ends_with(".pkl")) {
                continue;
            }
            let entry = format!("{root}/{entry}");
            let mut other = bytes.clone();
            other[data_start(&bytes, &entry)] ^= 0x10;
            assert_eq!(damaged(Checkpoint::from_bytes(name, other)), Some(entry));
            flipped += 1;
        }
        assert!(flipped > 3);
    }
}

#[test]
fn rejects_archives_of_torchscript_and_packages_that_are_cut_anywhere_or_longer() {
    for name in ARCHIVES {
        let bytes = torch_file(name);
        for length in 0..bytes.len() {
            let opened = Checkpoint::from_bytes(name, bytes[..length].to_vec());
            assert!(opened.is_err(), "{name}, cut after {length} bytes");
        }
        for more in [&b"\0"[..], b"\r\n", &bytes] {
            assert!(Checkpoint::from_bytes(name, [&bytes[..], more].concat()).is_err(), "{name}");
        }
    }
}

/// What is wrong with the archive that `change` makes of a fixture's entries.
fn changed(name: &str, change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> TensorProblem {
    let mut entries = entries(&torch_file(name));
    change(&mut entries);
    match Checkpoint::from_bytes(name, archive(&entries, CompressionMethod::Stored)) {
        Err(Error::Tensor { problem, .. }) => problem,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn rejects_archives_of_torchscript_and_packages_whose_storages_are_missing_or_of_another_size() {
    for name in ARCHIVES {
        let storages: Vec<_> = entries(&torch_file(name)).into_iter().enumerate().collect();
        for (place, (entry, data)) in storages.iter().filter(|(_, (name, data))| is_storage(name) && !data.is_empty()) {
            let full = format!("root/{entry}");
            let missing = changed(name, |entries| drop(entries.remove(*place)));
            assert_eq!(missing, TensorProblem::MissingStorage { entry: full.clone() });
            let declared = data.len() as u64;
            for found in [declared - 1, declared + 1, 0] {
                let lies = changed(name, |entries| entries[*place].1.resize(found as usize, 0));
                assert_eq!(lies, TensorProblem::StorageSize { entry: full.clone(), declared, found });
            }
        }
    }
}

#[test]
fn rejects_archives_of_torchscript_and_packages_with_an_entry_that_occurs_twice() {
    for (name, first, second) in [
        ("scripted.pt", "data/3", "data/4"),
        ("frozen.pt", "constants/1", "constants/2"),
        ("package.pt", "0.st", "1.st"),
    ] {
        let mut bytes = torch_file(name);
        let mut renamed = 0;
        // In its own header and in the directory.
        while let Some(at) = bytes.windows(second.len()).position(|window| window == second.as_bytes()) {
            bytes[at..at + first.len()].copy_from_slice(first.as_bytes());
            renamed += 1;
        }
        assert_eq!(renamed, 2, "{name}");
        let error = Checkpoint::from_bytes(name, bytes).unwrap_err();
        assert!(matches!(&error, Error::Zip { problem: ZipProblem::Duplicate { entry }, .. } if entry.contains(first)));
    }
}

/// A folder with that file as its only shard, and an index of all tensors in it.
fn one_shard(file: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shard = "pytorch_model-00001-of-00001.bin";
    std::fs::copy(file, folder.path().join(shard)).unwrap();
    let checkpoint = Checkpoint::open(file).unwrap();
    let tensors = whole(&checkpoint);
    let listed = tensors.specs().iter().map(|spec| &spec.name).chain(tensors.others().iter().map(|(name, _)| name));
    let map: serde_json::Map<String, Value> = listed.map(|name| (name.clone(), json!(shard))).collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
    folder
}

/// The files that PyTorch read, with what it found in them.
fn shards() -> Vec<(String, Vec<Digest>)> {
    let (layouts, torch_files) = (expected("tensors.json"), expected("torch_files.json"));
    let names = ["views", "bigendian", "deflated", "unaligned", "dtypes"].map(|name| format!("layouts/{name}.pth"));
    let mut found: Vec<_> = names.map(|name| (name.clone(), recorded(&layouts[name.as_str()]))).into();
    for name in ["others.pth", "legacy_dtypes.pth"] {
        found.push((format!("torch_files/{name}"), recorded(&torch_files[name]["tensors"])));
    }
    found
}

#[test]
fn shards_of_every_layout_are_what_pytorch_reads_in_the_file_itself() {
    for (name, wanted) in shards() {
        let folder = one_shard(&fixture(&name));
        let (alone, sharded) = (Checkpoint::open(fixture(&name)).unwrap(), Checkpoint::open(folder.path()).unwrap());
        assert_eq!(sharded.container(), Container::Sharded);
        let (alone, sharded) = (whole(&alone), whole(&sharded));
        assert_eq!(digests(&sharded), wanted, "{name}");
        assert_eq!(sharded.others(), alone.others(), "{name}");
        // Tensors that share a storage in the file share one here.
        let storages: Vec<_> = (0..wanted.len()).map(|index| sharded.placement(index)).collect();
        for (index, place) in storages.iter().enumerate() {
            let own = alone.placement(index);
            assert_eq!((place.offset, place.strides), (own.offset, own.strides), "{name}");
            let first = |placed: &dyn Fn(usize) -> usize| (0..=index).find(|&other| placed(other) == placed(index));
            let (here, there) =
                (first(&|index| storages[index].storage), first(&|index| alone.placement(index).storage));
            assert_eq!(here, there, "{name}");
        }
    }
    let others = Checkpoint::open(fixture("torch_files/others.pth")).unwrap();
    assert!(whole(&others).others().len() > 5, "sparse, quantised, nested and meta tensors are among them");
}

#[test]
fn rejects_shards_with_a_flipped_bit_and_names_the_shard() {
    let file = fixture("layouts/deflated.pth");
    let folder = one_shard(&file);
    let shard = folder.path().join("pytorch_model-00001-of-00001.bin");
    assert_eq!(damaged(Checkpoint::open(folder.path())), None);
    let stored = archive(&entries(&std::fs::read(&file).unwrap()), CompressionMethod::Stored);
    let mut flipped = stored.clone();
    flipped[data_start(&stored, "root/data/0")] ^= 1;
    std::fs::write(&shard, &flipped).unwrap();
    assert_eq!(damaged(Checkpoint::open(folder.path())), Some("root/data/0".into()));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensors = whole(&checkpoint);
    let error = (0..tensors.specs().len()).find_map(|index| tensors.tensor(index).err()).unwrap();
    assert!(matches!(error, Error::Zip { path, .. } if path == shard));
}

#[test]
fn rejects_shards_that_are_cut_anywhere_or_longer() {
    for (name, shard) in [
        ("layouts/sharded_safetensors", "model-00003-of-00004.safetensors"),
        ("layouts/sharded_bin", "pytorch_model-00003-of-00004.bin"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let path = folder.path().join(shard);
        let bytes = std::fs::read(&path).unwrap();
        let opens = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Checkpoint::open(folder.path()).is_ok()
        };
        assert!(opens(&bytes));
        for length in 0..bytes.len() {
            assert!(!opens(&bytes[..length]), "{shard}, cut after {length} bytes");
        }
        assert!(!opens(&[&bytes[..], b"\0"].concat()));
    }
}

#[test]
fn rejects_a_distributed_checkpoint_with_a_flipped_bit_in_any_item() {
    let bytes = std::fs::read(fixture("layouts/dcp_single/__0_0.distcp")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("layouts/dcp_single/.metadata"), folder.path().join(".metadata")).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(folder.path().join("__0_0.distcp"), bytes).unwrap();
        damaged(Checkpoint::open(folder.path()))
    };
    assert_eq!(read(&bytes), None);
    // Each item is an archive with `ROOT/data/0` and `ROOT/data.pkl`.
    let mut flipped = 0;
    for at in 0..bytes.len() - 30 {
        let header = &bytes[at..];
        if !header.starts_with(b"PK\x03\x04") {
            continue;
        }
        let length = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let name = std::str::from_utf8(&header[30..30 + length(26)]).unwrap();
        if name.ends_with("/data/0") || name.ends_with("/data.pkl") {
            let mut other = bytes.clone();
            other[at + 30 + length(26) + length(28)] ^= 2;
            assert_eq!(read(&other).as_deref(), Some(name), "at {at}");
            flipped += 1;
        }
    }
    assert!(flipped >= 10, "{flipped}");
}
