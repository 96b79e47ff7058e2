//! Files that are large and honest: what a limit must not refuse.

use m2pt_surgery::{Checkpoint, RootChoice};

use super::make::{Zip, dict, header, int, list, pickle, pth, safetensors, scalar, text};
use super::{Bomb, Shown};

/// Tensors of the model in the checkpoint with an optimizer.
const MODEL: usize = 40_000;

/// Values of the longest list.
const VALUES: usize = 1_300_000;

/// Shown by the program within the limits for hostile files.
pub(super) const FILES: &[Bomb] =
    &[("list-of-values", Shown, list_of_values), ("safetensors", Shown, many_safetensors)];

/// Hyper-parameters with a list of more than a million different integers, as some trainers save sampler states.
fn list_of_values() -> Vec<u8> {
    let values = list(VALUES, |i, out| out.extend([&b"J"[..], &(i as u32).to_le_bytes()].concat()));
    pth(&pickle(&[b"}(", &text("sampler"), &values, &text("w"), &scalar(), b"u"]))
}

fn many_safetensors() -> Vec<u8> {
    safetensors(&header(100_000, |i| format!("model.layers.{}.experts.{}.down_proj", i / 128, i % 128)), 100_000)
}

/// What every tensor refers to, in memo entries 0 to 4.
const SHARED: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\nq\x000X\x07\0\0\0storageq\x010ctorch\nFloatStorage\nq\x020\
    X\x03\0\0\0cpuq\x030ccollections\nOrderedDict\nq\x040";

/// A tensor as `torch.save` writes it, with memo entries for whatever Python gives one.
fn saved(out: &mut Vec<u8>, memo: &mut u32, number: usize) {
    let mut put = |out: &mut Vec<u8>| {
        out.push(b'r');
        out.extend(memo.to_le_bytes());
        *memo += 1;
    };
    out.extend(b"h\0((h\x01h\x02");
    out.extend(text(&number.to_string()));
    put(out);
    out.extend(b"h\x03K\x04t");
    put(out);
    out.extend(b"QK\0K\x02K\x02\x86");
    put(out);
    out.extend(b"K\x02K\x01\x86");
    put(out);
    out.extend(b"\x89h\x04)R");
    put(out);
    out.push(b't');
    put(out);
    out.push(b'R');
    put(out);
}

/// A model of [`MODEL`] tensors and the state of AdamW for each: `step`, `exp_avg` and `exp_avg_sq`.
fn with_optimizer() -> Vec<u8> {
    let (mut memo, mut number) = (5, 0);
    let mut next = |out: &mut Vec<u8>| {
        saved(out, &mut memo, number);
        number += 1;
    };
    let model = dict(MODEL, |i, out| {
        out.extend(text(&format!("backbone.stages.{}.blocks.{}.mlp.experts.{i}.weight", i / 4096, i / 128)));
        next(out);
    });
    let optimizer = dict(MODEL, |i, out| {
        out.extend(int(i as i64));
        out.extend(dict(3, |part, out| {
            out.extend(text(["step", "exp_avg", "exp_avg_sq"][part]));
            next(out);
        }));
    });
    let state = [b"}", &text("state")[..], &optimizer, b"s"].concat();
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &pickle(&[SHARED, b"}(", &text("model"), &model, &text("optimizer"), &state, b"u"]));
    for storage in 0..number {
        zip.add(&format!("a/data/{storage}"), &[0; 16]);
    }
    zip.finish()
}

#[test]
fn a_checkpoint_of_a_large_model_with_its_optimizer_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pth");
    std::fs::write(&path, with_optimizer()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.tensor_count(), 4 * MODEL);
    let model = checkpoint.state_dict(&RootChoice::Path("model".into())).unwrap();
    assert_eq!(model.specs().len(), MODEL);
    let last = &model.specs()[MODEL - 1];
    assert_eq!(last.name, format!("backbone.stages.9.blocks.312.mlp.experts.{}.weight", MODEL - 1));
    assert_eq!(last.shape, [2, 2]);
    let all = checkpoint.state_dict(&RootChoice::Path(String::new())).unwrap();
    assert_eq!(all.specs()[4 * MODEL - 1].name, format!("optimizer.state.{}.exp_avg_sq", MODEL - 1));
    assert_eq!(all.tensor(4 * MODEL - 1).unwrap().view().to_vec(), [0; 16]);
}

#[test]
fn a_list_of_a_million_values_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.pth");
    std::fs::write(&path, list_of_values()).unwrap();
    let values = Checkpoint::open(&path).unwrap().values();
    // The first ones are shown, in order.
    let shown: Vec<u64> = values["sampler"].as_array().unwrap().iter().take(300).map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(shown, (0..300).collect::<Vec<_>>());
}

#[test]
fn a_safetensors_file_of_many_tensors_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.safetensors");
    std::fs::write(&path, many_safetensors()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let all = checkpoint.state_dict(&RootChoice::Auto).unwrap();
    assert_eq!(all.specs().len(), 100_000);
    assert_eq!(all.specs()[99_999].name, "model.layers.781.experts.31.down_proj");
}
