//! Folds on a GPU: the same bytes as on the processor, whatever the driver refuses.
//!
//! `tests/cuda/driver.c`, which is compiled here, takes the place of NVIDIA's driver, and runs the kernels that the program hands over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;

use crate::bench::{Bench, assert_refusal, model, to_safetensors, tool, with_value};
use crate::support::repository;

/// A folder with the compiled stand-in, and one with a driver that can do nothing.
static DRIVERS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    ["cuda", "cuda-empty"].map(|name| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let made = folder.join(format!("made-{}.so", std::process::id()));
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut command = Command::new(&compiler);
        command.args(["-std=gnu11", "-O2", "-ffp-contract=off", "-fvisibility=hidden", "-shared", "-fPIC", "-o"]);
        command.arg(&made);
        match name {
            "cuda" => command.arg(repository().join("tests/cuda/driver.c")).arg("-lpthread"),
            _ => command.args(["-x", "c", "/dev/null"]),
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
        // Other test processes may be using the one that is there.
        fs::rename(made, folder.join("libcuda.so.1")).unwrap();
        folder
    })
});

/// A run of the program with that driver, and what it is told.
fn run_with(bench: &Bench, driver: &Path, told: &[(&str, &str)], args: &[&str]) -> Output {
    let mut all = vec![format!("LD_LIBRARY_PATH={}", driver.display()), "M2PT_CUDA_LOG=log".to_owned()];
    all.extend(told.iter().map(|(name, value)| format!("M2PT_CUDA_{name}={value}")));
    all.push(tool().display().to_string());
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    bench.run_program("env", &all.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What a fold said.
#[derive(Debug)]
struct Folded {
    report: Value,
    stderr: String,
}

impl Folded {
    fn device(&self) -> &str {
        self.report["device"].as_str().unwrap()
    }

    /// Lines that tell of the device.
    fn about_the_device(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.contains("cuda")).collect()
    }
}

/// A fold to `out`, with what the stand-in is told, if it is there.
fn fold(bench: &Bench, told: Option<&[(&str, &str)]>, out: &str, args: &[&str]) -> Folded {
    let args = [&["fold"], args, &["--json", "--force", "-o", out]].concat();
    let output = match told {
        Some(told) => run_with(bench, &DRIVERS[0], told, &[&args[..], &["--device", "cuda"]].concat()),
        None => bench.run(&args),
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told:?} {args:?}: {stderr}");
    Folded { report: serde_json::from_slice(&output.stdout).unwrap(), stderr }
}

/// How often each call was made, and what was not given back.
fn log(bench: &Bench) -> (BTreeMap<String, usize>, Option<String>) {
    let text = String::from_utf8(bench.read("log")).unwrap();
    let left = text.lines().find(|line| line.starts_with("left")).map(str::to_owned);
    let calls = text.lines().filter(|line| !line.starts_with("left"));
    (
        calls
            .map(|line| line.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse().unwrap())).unwrap())
            .collect(),
        left,
    )
}

/// Folds on the processor and on the stand-in: the bytes have to be the same, and what is said of the numbers.
fn same(bench: &Bench, told: &[(&str, &str)], extension: &str, args: &[&str]) -> Folded {
    let (cpu, gpu) = (format!("cpu.{extension}"), format!("gpu.{extension}"));
    let wanted = fold(bench, None, &cpu, args);
    assert_eq!(wanted.device(), "cpu");
    let folded = fold(bench, Some(told), &gpu, args);
    assert!(bench.read(&cpu) == bench.read(&gpu), "{told:?} {args:?}: other bytes");
    let changes = |folded: &Folded| -> Vec<f64> {
        let layers = folded.report["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["relative_change"].as_f64().unwrap_or(-1.0)).collect()
    };
    for (wanted, found) in changes(&wanted).iter().zip(changes(&folded)) {
        assert!((wanted - found).abs() <= 1e-5 * wanted.abs(), "{told:?} {args:?}: {wanted} {found}");
    }
    let others = |folded: &Folded| -> Vec<String> {
        folded.stderr.lines().filter(|line| !line.contains("cuda")).map(str::to_owned).collect()
    };
    assert_eq!(others(&wanted), others(&folded), "{told:?} {args:?}");
    folded
}

/// A file of one block whose elements are of that type: numbers without a pattern, very small ones among them, and none above 2^15.
fn file(dtype: Dtype, seed: u64, width: usize) -> Vec<u8> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    // Numbers of one sign are in the order of their bits.
    let mut bytes = |count: usize| -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let (sign, any) = (random() & 1, random());
            match dtype {
                Dtype::F16 => bytes.extend(((any % 0x7800) as u16 | (sign as u16) << 15).to_le_bytes()),
                Dtype::BF16 => bytes.extend(((any % 0x4700) as u16 | (sign as u16) << 15).to_le_bytes()),
                Dtype::F32 => bytes.extend(((any % 0x4700_0000) as u32 | (sign as u32) << 31).to_le_bytes()),
                _ => {
                    // Most between 2^-200 and 2^15, as float32 may and may not have them.
                    let magnitude = match any % 8 {
                        0 => (random() << 6) % (1038 << 52),
                        _ => (823 + any % 215) << 52 | random() << 4,
                    };
                    bytes.extend((magnitude | sign << 63).to_le_bytes());
                }
            }
        }
        bytes
    };
    let tensors: Vec<_> =
        model("", width, 1).into_iter().map(|tensor| (tensor.name, tensor.shape, bytes(tensor.values.len()))).collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    serialize(views, None).unwrap()
}

const TYPES: [(&str, Dtype); 4] =
    [("f16", Dtype::F16), ("bf16", Dtype::BF16), ("f32", Dtype::F32), ("f64", Dtype::F64)];

#[test]
fn every_type_has_the_same_bits() {
    let bench = Bench::new();
    for (number, (name, dtype)) in TYPES.into_iter().enumerate() {
        bench.put(&format!("{name}.safetensors"), &file(dtype, number as u64, 31));
        bench.put(&format!("aux-{name}.safetensors"), &file(dtype, 10 + number as u64, 31));
    }
    let outputs: [&[&str]; 5] =
        [&[], &["--dtype", "f16"], &["--dtype", "bf16"], &["--dtype", "f32"], &["--dtype", "f64"]];
    for (target, _) in TYPES {
        for (aux, more) in [("f16", "bf16"), ("bf16", "f32"), ("f32", "f64"), ("f64", "f16")] {
            for output in outputs {
                let target = format!("{target}.safetensors");
                let [aux, more] = [(aux, 0.1), (more, -0.3)].map(|(name, x)| format!("aux-{name}.safetensors={x}"));
                let args = [&[target.as_str(), "--aux", &aux, "--aux", &more, "--bias", "fold"], output].concat();
                let folded = same(&bench, &[], "safetensors", &args);
                assert_eq!((folded.device(), folded.about_the_device()), ("cuda:0", vec![]), "{args:?}");
            }
        }
    }
}

#[test]
fn large_layers_go_in_several_blocks_on_any_number_of_threads() {
    let bench = Bench::new();
    bench.put("target.safetensors", &file(Dtype::F32, 1, 300));
    bench.put("aux.safetensors", &file(Dtype::F32, 2, 300));
    for name in ["target", "aux"] {
        bench.works(&["convert", &format!("{name}.safetensors"), "-o", &format!("{name}.pth")]);
    }
    for (extension, more) in [
        ("pth", &["--threads", "1"][..]),
        ("pth", &["--threads", "3"]),
        ("safetensors", &["--dtype", "f64", "--threads", "16"]),
    ] {
        let args = [&["target.pth", "--aux", "aux.pth=0.1"], more].concat();
        let folded = same(&bench, &[], extension, &args);
        assert_eq!((folded.device(), folded.about_the_device()), ("cuda:0", vec![]));
        let (calls, left) = log(&bench);
        // Of 4 layers, of which the smallest is a block, and the largest two.
        assert!(calls["cuMemcpyHtoDAsync_v2"] >= 6 && left.is_none(), "{calls:?} {left:?}");
    }
}

#[test]
fn tensors_that_are_not_in_one_piece_go_there_too() {
    let bench = Bench::new();
    let family = repository().join("fixtures/families/hf_vit");
    let family = family.to_str().unwrap();
    // q, k and v are apart in one, and stacked in the other.
    bench.works(&["convert", family, "--to", "timm", "-o", "timm.pth"]);
    for (target, aux) in [("timm.pth", family), (family, "timm.pth")] {
        let folded = same(&bench, &[], "pth", &[target, "--aux", aux, "--lambda", "0.3"]);
        assert_eq!(folded.device(), "cuda:0");
    }
}

#[test]
fn so_many_auxiliaries_that_a_block_has_no_room_for_them_are_left_to_the_processor() {
    let bench = Bench::new();
    bench.put("target.safetensors", &to_safetensors(&model("", 32, 1)));
    for (count, device) in [(40, "cuda:0"), (600, "cpu")] {
        let aux: Vec<String> = (0..count).map(|number| format!("target.safetensors=0.{number:03}1")).collect();
        let args: Vec<&str> = aux.iter().flat_map(|aux| ["--aux", aux]).collect();
        let folded = same(&bench, &[], "safetensors", &[&["target.safetensors", "--no-metadata"], &args[..]].concat());
        assert_eq!(folded.device(), device);
    }
}

#[test]
fn values_that_are_not_finite_are_refused_or_are_the_processors() {
    let bench = Bench::new();
    bench.put("aux.safetensors", &to_safetensors(&model("", 32, 2)));
    let name = "blocks.1.attn.qkv.weight";
    // Of the bits of a NaN a GPU keeps none.
    for value in [f32::NAN, f32::from_bits(0xffc1_2345), f32::INFINITY, f32::MAX] {
        bench.put("target.safetensors", &with_value(name, value));
        let args = ["target.safetensors", "--aux", "aux.safetensors=3e38"];
        let refused = [&["fold"], &args[..], &["-o", "out/o.safetensors", "--device", "cuda"]].concat();
        let (told, on_cpu) = (run_with(&bench, &DRIVERS[0], &[], &refused), bench.run(&refused));
        assert_refusal(&told, &refused, &[name, "--allow-non-finite"]);
        let about_the_value = |output: &Output| {
            let text = String::from_utf8(output.stderr.clone()).unwrap();
            text.lines().filter(|line| !line.contains("cuda")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(about_the_value(&told), about_the_value(&on_cpu));
        assert!(bench.out().is_empty());
        let folded = same(&bench, &[], "safetensors", &[&args[..], &["--allow-non-finite"]].concat());
        assert_eq!(folded.device(), "cuda:0 and cpu");
    }
}

#[test]
fn damage_is_found_on_the_way_to_the_gpu() {
    let bench = Bench::new();
    bench.put("aux.safetensors", &file(Dtype::F32, 1, 64));
    bench.works(&["convert", "aux.safetensors", "-o", "aux.pth"]);
    let mut damaged = bench.read("aux.pth");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bench.put("damaged.pth", &damaged);
    for args in [["aux.pth", "--aux", "damaged.pth=0.1"], ["damaged.pth", "--aux", "aux.pth=0.1"]] {
        let args = [&["fold"], &args[..], &["-o", "out/o.pth", "--device", "cuda"]].concat();
        assert_refusal(&run_with(&bench, &DRIVERS[0], &[], &args), &args, &["damaged.pth", "CRC-32"]);
        assert!(bench.out().is_empty());
    }
}

/// A fold of several blocks, and its arguments.
fn several_blocks() -> (Bench, [&'static str; 6]) {
    let bench = Bench::new();
    bench.put("target.safetensors", &file(Dtype::F32, 1, 128));
    bench.put("aux.safetensors", &file(Dtype::F32, 2, 128));
    bench.works(&["convert", "target.safetensors", "-o", "target.pth"]);
    (bench, ["target.pth", "--aux", "aux.safetensors", "--lambda", "0.1", "--no-sync"])
}

#[test]
fn short_memory_makes_smaller_blocks_and_then_leaves_them_to_the_processor() {
    let (bench, args) = several_blocks();
    let uploads = |told: &[(&str, &str)], threads: &str| {
        let folded = same(&bench, told, "pth", &[&args[..], &["--threads", threads]].concat());
        let (calls, left) = log(&bench);
        assert_eq!(left, None, "{told:?}");
        (folded, calls.get("cuMemcpyHtoDAsync_v2").copied().unwrap_or(0))
    };
    let (all, blocks) = uploads(&[], "1");
    assert_eq!((all.device(), all.about_the_device()), ("cuda:0", vec![]));
    for name in ["MEMORY", "PINNED"] {
        let mut least = blocks;
        for bytes in ["3000000", "1000000", "400000"] {
            let (folded, blocks) = uploads(&[(name, bytes)], "1");
            assert_eq!((folded.device(), folded.about_the_device()), ("cuda:0", vec![]), "{name} {bytes}");
            assert!(blocks >= least, "{name} {bytes}: {blocks} {least}");
            least = blocks;
        }
        assert!(least > blocks, "{name}: {least} {blocks}");
        let (folded, blocks) = uploads(&[(name, "100000")], "1");
        assert_eq!((folded.device(), blocks), ("cpu", 0));
        assert!(
            matches!(folded.about_the_device()[..], [note] if note.contains("full") && note.contains("the processor computes"))
        );
        assert_eq!(folded.report["notes"].as_array().unwrap().len(), 1);
        // There is room for one thread, and not for another.
        let (folded, _) = uploads(&[(name, "400000")], "8");
        assert!(["cuda:0", "cuda:0 and cpu"].contains(&folded.device()));
    }
}

#[test]
fn whatever_call_fails_the_bytes_are_the_same() {
    let (bench, args) = several_blocks();
    let args = [&args[..], &["--threads", "1"]].concat();
    same(&bench, &[("MEMORY", "1000000")], "pth", &args);
    let (calls, _) = log(&bench);
    assert!(calls.len() >= 20, "{calls:?}");
    for (name, count) in calls {
        for number in [1, count.div_ceil(2), count] {
            for code in [2, 700] {
                let fail = format!("{name}:{number}:{code}");
                let folded = same(&bench, &[("MEMORY", "1000000"), ("FAIL", &fail)], "pth", &args);
                // What frees is not asked what became of it; for want of memory slots are made smaller.
                let frees = ["Free", "Destroy", "Unload", "Release", "Pop"].iter().any(|word| name.contains(word));
                let makes = ["Alloc", "StreamCreate", "CtxPush"].iter().any(|word| name.contains(word));
                let silent = frees || code == 2 && makes || name.contains("CtxPush") && number == count;
                let notes = folded.about_the_device();
                let said = matches!(notes[..], [note] if note.contains("the processor computes"));
                assert!(said || silent && notes.is_empty(), "{fail}: {notes:?}");
                if said && name == "cuStreamSynchronize" && number > 1 {
                    assert_eq!(folded.device(), "cuda:0 and cpu", "{fail}");
                }
            }
        }
    }
}

#[test]
fn without_a_gpu_the_processor_computes_and_says_why() {
    let (bench, args) = several_blocks();
    let folded = |driver: &Path, told: &[(&str, &str)], device: &str| {
        let args = [&["fold"], &args[..], &["--json", "--force", "-o", "out/o.pth", "--device", device]].concat();
        let output = run_with(&bench, driver, told, &args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["device"].as_str().unwrap().to_owned(), stderr)
    };
    bench.works(&[&["fold"], &args[..], &["-o", "cpu.pth"]].concat());
    let [driver, empty] = &*DRIVERS;
    let nowhere = bench.path("out");
    for (driver, told, device, found, said) in [
        (driver, &[][..], "cuda", "cuda:0", None),
        (driver, &[("DEVICES", "2")], "cuda:1", "cuda:1", None),
        (driver, &[], "auto", "cuda:0", None),
        (driver, &[], "cpu", "cpu", None),
        (driver, &[("DEVICES", "2")], "cuda:7", "cpu", Some("--device cuda:7: the last of the GPUs is cuda:1")),
        (driver, &[("DEVICES", "0")], "cuda", "cpu", Some("--device cuda:0: there is no GPU")),
        (driver, &[("DEVICES", "0")], "auto", "cpu", None),
        (driver, &[("FAIL", "cuModuleLoadData:1:222")], "auto", "cpu", Some("cuModuleLoadData: error 222")),
        (empty, &[], "cuda", "cpu", Some("is too old")),
        (&nowhere, &[], "auto", "cpu", None),
        (&nowhere, &[], "cuda", "cpu", Some("driver is not installed here")),
    ] {
        // A machine that has a GPU finds its own driver.
        if driver == &nowhere && Path::new("/proc/driver/nvidia").exists() {
            continue;
        }
        let (computed, stderr) = folded(driver, told, device);
        assert_eq!(computed, found, "{device} {told:?}: {stderr}");
        match said {
            None => assert!(!stderr.contains("cuda"), "{stderr}"),
            Some(said) => assert!(stderr.contains(said) && stderr.contains("the processor computes"), "{stderr}"),
        }
        assert!(bench.read("out/o.pth") == bench.read("cpu.pth"), "{device} {told:?}");
    }
    bench.refused(
        &[&["fold"], &args[..], &["-o", "out/p.pth", "--device", "tpu"]].concat(),
        &["--device tpu", "cpu, cuda, cuda:N, auto"],
    );
    // Nothing to compute: the driver is not even started.
    fs::remove_file(bench.path("log")).unwrap();
    let args = ["fold", "target.pth", "--aux", "target.pth=0", "-o", "out/q.pth", "--device", "cuda"];
    let output = run_with(&bench, driver, &[], &args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!bench.path("log").exists());
}

#[test]
fn shards_and_reports_are_those_of_the_processor_but_for_the_device() {
    let (bench, args) = several_blocks();
    let shards = |folder: &str, more: &[&str]| {
        let args = [&["fold"], &args[..], &["--max-shard-size", "300KB", "-o", folder], more].concat();
        let output = run_with(&bench, &DRIVERS[0], &[], &args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let files = fs::read_dir(bench.path(folder)).unwrap().map(|entry| entry.unwrap().path());
        let content = files.map(|path| (path.file_name().unwrap().to_owned(), fs::read(&path).unwrap()));
        (content.collect::<BTreeMap<_, _>>(), text)
    };
    let (cpu, _) = shards("a", &[]);
    assert!(cpu.len() >= 4);
    for (folder, more) in [("b", &["--device", "cuda"][..]), ("c", &["--device", "cuda", "--resume"])] {
        let (gpu, text) = shards(folder, more);
        assert!(gpu == cpu, "{more:?}");
        assert!(text.contains(", cuda:0"), "{text}");
        let (calls, left) = log(&bench);
        assert_eq!((calls["cuInit"], left), (1, None), "{calls:?}");
    }
    let (_, text) = shards("d", &["--device", "cuda", "--shard", "1/2"]);
    assert!(text.contains(", cuda:0"), "{text}");
    bench.works(&[&["fold"], &args[..], &["--max-shard-size", "300KB", "-o", "d", "--shard", "2/2"]].concat());
    bench.works(&["join", "d"]);
    let shard = |folder: &str| fs::read(bench.path(folder).join("model-00002-of-00003.safetensors")).ok();
    assert!(shard("d") == shard("a"));

    let report = |device: &str| -> Value {
        let args = [&["fold"], &args[..], &["-o", "o.safetensors", "--force", "--report", "--device", device]].concat();
        assert_eq!(run_with(&bench, &DRIVERS[0], &[], &args).status.code(), Some(0));
        serde_json::from_slice(&bench.read("o.safetensors.json")).unwrap()
    };
    let (mut cpu, gpu) = (report("cpu"), report("cuda"));
    assert_eq!((&cpu["device"], &gpu["device"]), (&"cpu".into(), &"cuda:0".into()));
    cpu["device"] = "cuda:0".into();
    assert_eq!(cpu, gpu);
}
