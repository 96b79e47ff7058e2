//! Tensors that are cut into parts and computed by several threads: the same bytes as by one, and the same errors.

use std::io::Read as _;

use crate::bench::{Bench, Tensor, assert_refusal, model, tied, to_safetensors, values};

/// Wide enough that every layer is cut: of 1.8 MB to 2.4 MB each.
fn wide(turn: usize) -> Vec<Tensor> {
    let mut tensors = model("", 384, 2);
    for tensor in &mut tensors {
        let shift = turn % tensor.values.len();
        tensor.values.rotate_left(shift);
    }
    tensors
}

fn bench() -> Bench {
    let bench = Bench::new();
    for (name, turn) in [("target", 0), ("aux", 12_345), ("more", 777), ("third", 31)] {
        bench.put(&format!("{name}.safetensors"), &to_safetensors(&wide(turn)));
        let (from, to) = (format!("{name}.safetensors"), format!("{name}.pth"));
        bench.works(&["convert", &from, "-o", &to]);
    }
    bench
}

/// What IEEE 754 and PyTorch make of an element: each product and each sum rounded by itself, from left to right.
fn folded(name: &str) -> Vec<f32> {
    let find = |turn| wide(turn).into_iter().find(|tensor| tensor.name == name).unwrap().values;
    let (target, aux, more, third) = (find(0), find(12_345), find(777), find(31));
    let sum = |i: usize| ((target[i] + 0.1f32 * aux[i]) + -0.25f32 * more[i]) + 1e-3f32 * third[i];
    (0..target.len()).map(sum).collect()
}

const TERMS: [&str; 6] = ["--aux", "aux.pth=0.1", "--aux", "more.safetensors=-0.25", "--aux", "third.pth=0.001"];

#[test]
fn every_element_of_a_tensor_in_parts_is_computed_once_and_right() {
    let bench = bench();
    let fold = ["fold", "target.pth", "-o", "out.safetensors", "--no-metadata"];
    bench.works(&[&fold[..], &TERMS].concat());
    let written = bench.read("out.safetensors");
    for tensor in wide(0) {
        let layer = tensor.name.starts_with("blocks.") && tensor.name.ends_with(".weight");
        let expected = if layer { folded(&tensor.name) } else { tensor.values };
        assert!(values(&written, &tensor.name) == expected, "{}", tensor.name);
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let bench = bench();
    for (target, more) in [
        ("target.pth", &["-o", "out.pth"][..]),
        ("target.safetensors", &["-o", "out.safetensors", "--no-metadata"]),
        ("target.pth", &["-o", "out.pth", "--dtype", "bf16"]),
        ("target.pth", &["-o", "out.pth", "--dtype", "f16"]),
        ("target.pth", &["-o", "out.safetensors", "--dtype", "f64", "--no-metadata"]),
        ("target.pth", &["-o", "out.pth", "--no-sync", "--limit-rate", "1GB"]),
    ] {
        let mut written: Option<Vec<u8>> = None;
        for threads in ["1", "2", "3", "16"] {
            let args = [&["fold", target], more, &TERMS, &["--threads", threads, "--force"]].concat();
            bench.works(&args);
            let bytes = bench.read(more[1]);
            assert!(written.get_or_insert_with(|| bytes.clone()) == &bytes, "{args:?}");
        }
    }
}

#[test]
fn checksums_of_tensors_in_parts_are_those_of_another_zip_reader() {
    let bench = bench();
    bench.works(&[&["fold", "target.pth", "-o", "out.pth", "--threads", "3"][..], &TERMS].concat());
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bench.read("out.pth"))).unwrap();
    let mut bytes = 0;
    for index in 0..archive.len() {
        // The crate compares the checksum when an entry was read to its end.
        bytes += archive.by_index(index).unwrap().read_to_end(&mut Vec::new()).unwrap();
    }
    let tensors: usize = wide(0).iter().map(|tensor| tensor.values.len() * 4).sum();
    assert!(bytes > tensors);
}

#[test]
fn damage_in_any_part_is_found_and_nothing_is_written() {
    let bench = bench();
    let whole = bench.read("target.pth");
    let tensor = wide(0).into_iter().find(|tensor| tensor.name == "blocks.1.mlp.fc2.weight").unwrap();
    let start: Vec<u8> = tensor.values[..16].iter().flat_map(|value| value.to_le_bytes()).collect();
    // The same numbers begin every tensor, and they are in the order of their names: the head and the norm come last.
    let begins: Vec<usize> = whole.windows(64).enumerate().filter(|(_, b)| *b == start).map(|(at, _)| at).collect();
    let begin = begins[begins.len() - 3];
    for at in [0, 1 << 20, tensor.values.len() * 4 - 1] {
        let mut damaged = whole.clone();
        damaged[begin + at] ^= 1;
        bench.put("damaged.pth", &damaged);
        for threads in ["1", "3"] {
            for args in [
                &["fold", "damaged.pth", "--aux", "aux.pth=0.1", "-o", "out/o.pth"][..],
                &["fold", "target.pth", "--aux", "damaged.pth=0.1", "-o", "out/o.safetensors"],
                &["convert", "damaged.pth", "-o", "out/o.pth"],
                &["convert", "damaged.pth", "-o", "out/o.safetensors"],
            ] {
                let args = [args, &["--threads", threads]].concat();
                assert_refusal(&bench.run(&args), &args, &["damaged.pth", "CRC-32"]);
                assert!(bench.out().is_empty(), "{args:?}");
            }
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_named_whatever_the_threads() {
    let bench = bench();
    let mut tensors = wide(0);
    for (name, at) in
        [("blocks.0.mlp.fc1.weight", 500_000), ("blocks.0.mlp.fc1.weight", 3), ("blocks.1.attn.qkv.weight", 9)]
    {
        tensors.iter_mut().find(|tensor| tensor.name == name).unwrap().values[at] = f32::NAN;
    }
    bench.put("bad.safetensors", &to_safetensors(&tensors));
    bench.works(&["convert", "bad.safetensors", "--allow-non-finite", "-o", "bad.pth"]);
    for threads in ["1", "2", "5", "16"] {
        for _ in 0..3 {
            let args = ["fold", "bad.pth", "--aux", "aux.pth=0.1", "-o", "out/o.pth", "--threads", threads];
            assert_refusal(&bench.run(&args), &args, &["blocks.0.mlp.fc1.weight", "bad.pth"]);
            assert!(bench.out().is_empty());
        }
    }
    let args = ["fold", "bad.pth", "--aux", "aux.pth=0.1", "-o", "out/o.pth", "--allow-non-finite", "--json"];
    let report: serde_json::Value = serde_json::from_slice(&bench.run(&args).stdout).unwrap();
    assert_eq!(report["non_finite"], serde_json::json!(["blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.weight"]));
}

#[test]
fn a_limited_rate_is_kept() {
    let bench = bench();
    let args = ["convert", "target.pth", "-o", "out/o.pth", "--limit-rate", "30MB"];
    let started = std::time::Instant::now();
    bench.works(&args);
    // 14.2 MB of tensors at that rate; nobody promises that the machine is no slower.
    assert!(started.elapsed().as_secs_f64() >= 0.4, "{:?}", started.elapsed());
    bench.refused(&["convert", "target.pth", "-o", "out/p.pth", "--limit-rate", "0"], &["--limit-rate"]);
    for number in ["0", "two", "1.5"] {
        let number = ["convert", "target.pth", "-o", "out/p.pth", "--threads", number];
        bench.refused(&number, &["--threads", "no number from 1 up"]);
    }
}

/// Every name is a step that reads the same entry of the archive, whose checksum is put together from the parts that threads have
/// read, or looked at before: whoever comes later finds it settled.
#[test]
fn an_entry_that_many_steps_read_at_once_is_verified() {
    let bench = Bench::new();
    let names: Vec<String> = (0..16).map(|number| format!("tied.{number}.weight")).collect();
    let values: Vec<f32> = (0..200_000u32).map(|i| (i as f32).sqrt()).collect();
    bench.put("tied.pth", &tied(&names, &values));
    let expected: Vec<f32> = values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
    for turn in 0..40 {
        bench.works(&[
            "convert",
            "tied.pth",
            "--dtype",
            "tied=bf16",
            "-o",
            "t.safetensors",
            "--threads",
            "4",
            "--force",
        ]);
        if turn == 0 {
            let written = bench.read("t.safetensors");
            let file = safetensors::SafeTensors::deserialize(&written).unwrap();
            for name in &names {
                let data =
                    file.tensor(name).unwrap().data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]));
                assert!(data.map(half::bf16::to_f32).eq(expected.iter().copied()), "{name}");
            }
        }
    }
}
