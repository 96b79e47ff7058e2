//! Checkpoints in several files: each small enough by itself, too much together.

use std::path::Path;

use super::make::{dict, header, int, integers, list, object, pickle, pth, safetensors, scalar, text, tuple};
use super::{Folder, Refused, Shown};

const LIMIT: &str = "the limit of this reader";

/// Writes an index of shards with one tensor of each, and what else is in it.
fn index(folder: &Path, shards: &[(&str, &str)], more: &str) {
    let pairs: Vec<String> = shards.iter().map(|(tensor, shard)| format!("{tensor:?}: {shard:?}")).collect();
    let index = format!(r#"{{"weight_map": {{{}}}{more}}}"#, pairs.join(", "));
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

/// Writes an index that has one shard of one tensor, and this after its `weight_map`.
fn index_of_one(folder: &Path, more: &str) {
    std::fs::write(folder.join("a.safetensors"), safetensors(&header(1, |_| "a".into()), 1)).unwrap();
    index(folder, &[("a", "a.safetensors")], more);
}

/// Pickled: an object of a class in `torch.distributed.checkpoint`.
fn described(class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    object(&format!("torch.distributed.checkpoint.metadata\n{class}"), attributes)
}

/// Pickled: what `.metadata` says of a tensor of floats; `size` and `chunks` are opcodes.
fn described_tensor(size: &[u8], chunks: &[u8]) -> Vec<u8> {
    let properties = b"ctorch.distributed.checkpoint.metadata\nTensorProperties\n)\x81(ctorch\nfloat32\ntb".to_vec();
    let attributes = [("properties", properties), ("size", size.to_vec()), ("chunks", chunks.to_vec())];
    described("TensorStorageMetadata", &attributes)
}

/// Writes `.metadata`: opcodes of three dictionaries.
fn metadata(folder: &Path, items: Vec<u8>, places: Vec<u8>, paths: Vec<u8>) {
    let attributes = [("state_dict_metadata", items), ("storage_data", places), ("planner_data", paths)];
    std::fs::write(folder.join(".metadata"), pickle(&[&described("Metadata", &attributes)])).unwrap();
}

/// Pickled: where an item is in the file `a.distcp`.
fn place(offset: usize, length: usize) -> Vec<u8> {
    let number = |n: usize| int(n as i64);
    described(
        "_StorageInfo",
        &[("relative_path", text("a.distcp")), ("offset", number(offset)), ("length", number(length))],
    )
}

/// Pickled: the key of an item's place.
fn item(name: &str) -> Vec<u8> {
    described("MetadataIndex", &[("fqn", text(name)), ("offset", b"N".to_vec())])
}

/// A dictionary of a million entries, in memo entry 1; one object that has it as its attributes is no larger for it.
fn million() -> Vec<u8> {
    [b"K\0q\x000", &dict(1_000_000, |_, out| out.extend(b"h\0h\0"))[..], b"q\x010"].concat()
}

pub(super) const BOMBS: &[Folder] = &[
    ("shards-of-many-tensors", Refused(LIMIT), |folder| {
        let names: Vec<String> = (0..8).map(|shard| format!("{shard}.safetensors")).collect();
        for (shard, name) in names.iter().enumerate() {
            let header: Vec<_> = (0..250_000)
                .map(|i| format!(r#""{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, shard * 250_000 + i))
                .collect();
            std::fs::write(folder.join(name), safetensors(&format!("{{{}}}", header.join(",")), 0)).unwrap();
        }
        let first: Vec<String> = (0..8).map(|shard| (shard * 250_000).to_string()).collect();
        let shards: Vec<_> = first.iter().zip(&names).map(|(first, name)| (&**first, &**name)).collect();
        index(folder, &shards, "");
    }),
    ("shards-of-a-large-model", Shown, |folder| {
        // As many tensors as the largest published models have, and more.
        const EACH: usize = 10_000;
        let name = |i: usize| format!("model.layers.{}.mlp.experts.{}.down_proj.weight_scale_inv", i / 3000, i % 3000);
        let mut pairs = Vec::new();
        for shard in 0..15 {
            let file = format!("model-{:05}-of-00015.safetensors", shard + 1);
            std::fs::write(folder.join(&file), safetensors(&header(EACH, |i| name(shard * EACH + i)), EACH)).unwrap();
            pairs.extend((0..EACH).map(|i| format!("{:?}: {file:?}", name(shard * EACH + i))));
        }
        let index = format!(r#"{{"metadata": {{"total_size": 150000}}, "weight_map": {{{}}}}}"#, pairs.join(","));
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }),
    ("shards-of-values", Refused(LIMIT), |folder| {
        for shard in 0..4 {
            let values =
                [b"}(", &text("v")[..], &integers(1_000_000), &text(&shard.to_string()), &scalar(), b"u"].concat();
            std::fs::write(folder.join(format!("{shard}.bin")), pth(&pickle(&[&values]))).unwrap();
        }
        index(folder, &[("0", "0.bin"), ("1", "1.bin"), ("2", "2.bin"), ("3", "3.bin")], "");
    }),
    ("shards-of-metadata", Refused(LIMIT), |folder| {
        let names: Vec<String> = (0..12).map(|shard| format!("{shard}.safetensors")).collect();
        for (shard, name) in names.iter().enumerate() {
            let header = format!(
                r#"{{"{shard}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"__metadata__":{{"a":"{}"}}}}"#,
                "x".repeat(30 << 20)
            );
            std::fs::write(folder.join(name), safetensors(&header, 0)).unwrap();
        }
        let first: Vec<String> = (0..12).map(|shard: usize| shard.to_string()).collect();
        let shards: Vec<_> = first.iter().zip(&names).map(|(first, name)| (&**first, &**name)).collect();
        index(folder, &shards, "");
    }),
    ("index-of-lists", Refused(LIMIT), |folder| {
        index_of_one(folder, &format!(r#", "a": [{}1]"#, "[],".repeat(5_000_000)))
    }),
    ("index-of-objects", Refused(LIMIT), |folder| {
        index_of_one(folder, &format!(r#", "a": [{}1]"#, r#"{"a":1},"#.repeat(1_300_000)));
    }),
    ("index-of-numbers", Refused(LIMIT), |folder| {
        index_of_one(folder, &format!(r#", "a": [{}1]"#, "1,".repeat(8_000_000)))
    }),
    ("index-of-texts", Refused(LIMIT), |folder| {
        index_of_one(folder, &format!(r#", "a": [{}1]"#, r#""0123456789","#.repeat(4_000_000)));
    }),
    ("index-nested", Refused("recursion limit"), |folder| {
        index_of_one(folder, &format!(r#", "a": {}"#, "[".repeat(4_000_000)))
    }),
    ("index-of-long-names", Refused("is not beside the index"), |folder| {
        let pairs: Vec<String> = (0..15_000).map(|i| format!(r#""{i:04000}":"a""#)).collect();
        let index = format!(r#"{{"weight_map": {{{}}}}}"#, pairs.join(","));
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }),
    ("index-of-many-tensors", Refused("262144 tensors"), |folder| {
        let pairs: Vec<String> = (0..1_200_000).map(|i| format!(r#""{i}":"a""#)).collect();
        let index = format!(r#"{{"weight_map": {{{}}}}}"#, pairs.join(","));
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }),
    ("index-of-many-shards", Refused("16384 shards"), |folder| {
        let pairs: Vec<String> = (0..250_000).map(|i| format!(r#""{i}":"{i}""#)).collect();
        let index = format!(r#"{{"weight_map": {{{}}}}}"#, pairs.join(","));
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }),
    ("metadata-paths", Refused(LIMIT), |folder| {
        let tensor = described_tensor(&tuple(&[0]), b"]");
        let name = |i: usize| text(&i.to_string());
        let items = dict(60_000, |i, out| {
            out.extend([name(i), if i == 0 { [&tensor[..], b"q\0"].concat() } else { b"h\0".to_vec() }].concat())
        });
        let paths = dict(60_000, |i, out| {
            out.extend(name(i));
            out.extend([b"(", &int(i as i64)[..], &b"K\0".repeat(127), b"t"].concat());
        });
        metadata(folder, items, b"}".to_vec(), paths);
    }),
    ("metadata-places", Refused(LIMIT), |folder| {
        let stored = [&place(0, 0)[..], b"q\0"].concat();
        let places = dict(300_000, |i, out| {
            let offset = [&b"("[..], &int(i as i64), &b"K\0".repeat(60), b"t"].concat();
            let class: &[u8] =
                if i == 0 { b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\nq\x01" } else { b"h\x01" };
            out.extend(
                [
                    class,
                    b")\x81}(",
                    if i == 0 {
                        b"X\x03\0\0\0fqnq\x02X\x01\0\0\0wq\x03X\x06\0\0\0offsetq\x04"
                    } else {
                        b"h\x02h\x03h\x04"
                    },
                    &offset,
                    b"ub",
                ]
                .concat(),
            );
            out.extend(if i == 0 { &stored[..] } else { b"h\0" });
        });
        metadata(folder, b"}".to_vec(), places, b"}".to_vec());
    }),
    ("metadata-shared-attributes", Refused("more values than it can honestly hold"), |folder| {
        let own = [&text("relative_path")[..], &text("a"), &text("offset"), &int(0), &text("length"), &int(0)].concat();
        let class = b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\nq\x02";
        let places = dict(5_000, |i, out| {
            out.extend(item(&i.to_string()));
            out.extend(b"h\x02)\x81h\x01b");
        });
        let places = [&million()[..], b"h\x01(", &own, b"u0", class, b"0", &places].concat();
        metadata(folder, b"}".to_vec(), places, b"}".to_vec());
    }),
    ("metadata-shared-parts", Refused("more values than it can honestly hold"), |folder| {
        let zero = tuple(&[0; 60]);
        let chunk = described("ChunkStorageMetadata", &[("offsets", zero.clone()), ("sizes", zero.clone())]);
        let chunks = [&chunk[..], b"q\x050", &list(100_000, |_, out| out.extend(b"h\x05"))].concat();
        let tensor = described_tensor(&zero, &chunks);
        metadata(
            folder,
            dict(1, |_, out| out.extend([&text("w")[..], &tensor].concat())),
            b"}".to_vec(),
            b"}".to_vec(),
        );
    }),
    ("metadata-parts-side-by-side", Refused("more parts than can be checked"), |folder| {
        // Columns that are cut in two, each at another height. All upper halves meet in all dimensions but the last.
        let (columns, height) = (8000, 8001);
        let chunks = list(2 * columns, |i, out| {
            let (column, cut) = ((i / 2) as i64, (i / 2) as i64 + 1);
            let (begin, end) = if i % 2 == 0 { (0, cut) } else { (cut, height) };
            let numbers = |first, middle: i64, last| tuple(&[&[first][..], &[middle; 18], &[last]].concat());
            let (at, sizes) = (numbers(begin, 0, column), numbers(end - begin, 1, 1));
            out.extend(described("ChunkStorageMetadata", &[("offsets", at), ("sizes", sizes)]));
        });
        let size = tuple(&[&[height][..], &[1; 18], &[columns as i64]].concat());
        let tensor = described_tensor(&size, &chunks);
        metadata(
            folder,
            dict(1, |_, out| out.extend([&text("w")[..], &tensor].concat())),
            b"}".to_vec(),
            b"}".to_vec(),
        );
    }),
    ("objects-in-parts", Refused(LIMIT), |folder| {
        let values = pth(&pickle(&[&integers(1_000_000)]));
        std::fs::write(folder.join("a.distcp"), values.repeat(4)).unwrap();
        let name = |i: usize| i.to_string();
        let bytes = described("BytesStorageMetadata", &[]);
        let items = dict(4, |i, out| out.extend([text(&name(i)), bytes.clone()].concat()));
        let places = dict(4, |i, out| out.extend([item(&name(i)), place(i * values.len(), values.len())].concat()));
        metadata(folder, items, places, b"}".to_vec());
    }),
    ("metadata-and-an-object", Refused(LIMIT), |folder| {
        let values = pth(&pickle(&[&integers(2_000_000)]));
        std::fs::write(folder.join("a.distcp"), &values).unwrap();
        let bytes = described("BytesStorageMetadata", &[]);
        let items = dict(1, |_, out| out.extend([text("o"), bytes.clone()].concat()));
        let places = dict(1, |_, out| out.extend([item("o"), place(0, values.len())].concat()));
        let paths = dict(200_000, |i, out| {
            out.extend(text(&format!("{i:040}")));
            out.extend([b"(", &b"K\0".repeat(30)[..], b"t"].concat());
        });
        metadata(folder, items, places, paths);
    }),
];
