//! What the program does with files and flags it cannot use: it says what is wrong with which file and what to do,
//! exits with 2, prints nothing on standard output and leaves every file as it was.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows them in test functions, not in their helpers"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tempfile::TempDir;

use crate::support;

/// No refusal takes longer, however slow the machine; most take milliseconds.
const LIMIT: Duration = Duration::from_secs(30);

/// A whole fold of the fixtures in a [`Bench`].
const FOLD: [&str; 8] = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];

/// A folder to work in: copies of the fixtures `vit.pth`, `vit.safetensors` and `speech.pth`, and an empty folder
/// `out`. The program runs inside of it, so that messages name files as the tests do.
pub(super) struct Bench(TempDir);

impl Bench {
    pub(super) fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().unwrap());
        for (copy, name) in [
            ("vit.pth", "mnist_vit.pth"),
            ("vit.safetensors", "mnist_vit.safetensors"),
            ("speech.pth", "speech_vit.pth"),
        ] {
            bench.put(copy, &fixture(name));
        }
        fs::create_dir(bench.path("out")).unwrap();
        bench
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names in the folder `out`, hidden ones included.
    pub(super) fn out(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs any program here, but not for longer than [`LIMIT`].
    pub(super) fn run_program(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Output {
        let program = program.as_ref();
        let mut command = assert_cmd::Command::new(program);
        let output = command.args(args).current_dir(self.0.path()).timeout(LIMIT).output();
        output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()))
    }

    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.run_program(tool(), args)
    }

    /// Runs what must succeed; returns its standard error.
    pub(super) fn works(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        stderr
    }

    /// Runs what must be refused: with exit code 2, a message that holds `phrases`, an empty standard output, and
    /// without a change to any file here.
    pub(super) fn refused(&self, args: &[&str], phrases: &[&str]) {
        let before = self.snapshot();
        let output = self.run(args);
        assert_refusal(&output, args, phrases);
        let after = self.snapshot();
        let names = |files: &BTreeMap<_, _>| files.keys().cloned().collect::<Vec<PathBuf>>();
        assert_eq!(names(&after), names(&before), "{args:?} left or removed files");
        for (path, state) in &before {
            assert!(after.get(path) == Some(state), "{args:?} changed {}", path.display());
        }
    }

    /// The file `name` is refused as what is inspected, as target and as auxiliary.
    fn refused_everywhere(&self, name: &str, phrases: &[&str]) {
        let phrases = [&[name], phrases].concat();
        self.refused(&["inspect", name], &phrases);
        self.refused(&["fold", name, "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"], &phrases);
        self.refused(&["fold", "vit.pth", "--aux", name, "--lambda", "0.1", "-o", "out/merged.safetensors"], &phrases);
    }

    /// Mode and content of everything here.
    fn snapshot(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn visit(folder: &Path, files: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                if metadata.is_dir() {
                    visit(&path, files);
                }
                files.insert(path, (mode(&metadata), content));
            }
        }
        let mut files = BTreeMap::new();
        visit(self.0.path(), &mut files);
        files
    }
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
}

#[cfg(not(unix))]
fn mode(metadata: &fs::Metadata) -> u32 {
    u32::from(metadata.permissions().readonly())
}

/// The program under test.
pub(super) fn tool() -> &'static Path {
    assert_cmd::cargo::cargo_bin!("m2pt-surgery")
}

pub(super) fn assert_refusal(output: &Output, args: &[&str], phrases: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // No code at all means that the time limit was reached, or a crash.
    assert_eq!(output.status.code(), Some(2), "{args:?} ended with {}: {stderr}", output.status);
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    for phrase in phrases {
        assert!(stderr.contains(phrase), "{args:?} does not say {phrase:?}: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(support::fixture(name)).unwrap()
}

/// [`FOLD`] and more flags.
fn fold<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FOLD, more].concat()
}

#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// What a plain vision transformer consists of, as far as folding it goes.
fn model(prefix: &str, width: usize, depth: usize) -> Vec<Tensor> {
    let tensor = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
        Tensor { name: format!("{prefix}{name}"), shape: shape.to_vec(), values }
    };
    let mut tensors = vec![tensor("norm.weight".into(), &[width]), tensor("head.weight".into(), &[10, width])];
    for block in 0..depth {
        for (layer, out, inner) in [
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ] {
            tensors.push(tensor(format!("blocks.{block}.{layer}.weight"), &[out, inner]));
            tensors.push(tensor(format!("blocks.{block}.{layer}.bias"), &[out]));
        }
    }
    tensors
}

fn to_safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        (tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

/// A small model, but element 5 of the tensor `name` is `value`.
fn with_value(name: &str, value: f32) -> Vec<u8> {
    let mut tensors = model("", 32, 2);
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap().values[5] = value;
    to_safetensors(&tensors)
}

/// The f32 elements of a tensor in a safetensors file.
fn values(file: &[u8], name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(file).unwrap();
    let (elements, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
    elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// An entry of a zip archive: where its data lies, and where the directory keeps its checksum.
struct Entry {
    name: String,
    data: Range<usize>,
    crc: usize,
}

/// The entries of an archive without comment, as torch.save writes it. The zip crate reads contents, but these tests
/// need positions, in order to break something there.
fn entries(archive: &[u8]) -> Vec<Entry> {
    let u16 = |at: usize| usize::from(u16::from_le_bytes(archive[at..at + 2].try_into().unwrap()));
    let u32 = |at: usize| u32::from_le_bytes(archive[at..at + 4].try_into().unwrap()) as usize;
    let end = archive.len() - 22;
    let mut at = u32(end + 16);
    let mut entries = Vec::new();
    for _ in 0..u16(end + 10) {
        assert!(archive[at..].starts_with(b"PK\x01\x02"));
        let name = String::from_utf8(archive[at + 46..at + 46 + u16(at + 28)].to_vec()).unwrap();
        let local = u32(at + 42);
        let start = local + 30 + u16(local + 26) + u16(local + 28);
        entries.push(Entry { name, data: start..start + u32(at + 20), crc: at + 16 });
        at += 46 + u16(at + 28) + u16(at + 30) + u16(at + 32);
    }
    entries
}

fn entry(archive: &[u8], name: &str) -> Entry {
    entries(archive).into_iter().find(|entry| entry.name == name).unwrap()
}

#[test]
fn rejects_a_file_that_is_missing() {
    let bench = Bench::new();
    bench.refused_everywhere("nothing.pth", &["cannot open nothing.pth", "No such file"]);
    bench.refused(
        &["fold", "vit.pth", "--aux", "nothing.pth=0.1", "-o", "out/merged.pth"],
        &["cannot open nothing.pth"],
    );
    let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda-file", "nothing.json", "-o", "out/merged.pth"];
    bench.refused(&fold, &["cannot read nothing.json", "No such file"]);
}

#[test]
fn rejects_a_folder_in_place_of_a_file() {
    let bench = Bench::new();
    fs::create_dir(bench.path("model.pth")).unwrap();
    bench.refused_everywhere("model.pth", &["is a folder", "give the path of one checkpoint file"]);
}

#[test]
fn rejects_an_empty_file() {
    let bench = Bench::new();
    bench.put("empty.pth", b"");
    bench.put("empty.safetensors", b"");
    bench.refused_everywhere("empty.pth", &["is empty", "get it again"]);
    bench.refused_everywhere("empty.safetensors", &["is empty", "get it again"]);
}

#[test]
fn says_what_a_file_is_that_is_no_checkpoint() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&fixture("mnist_vit.pth")).unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 346284714\n";
    let page = b"\r\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n";
    let bench = Bench::new();
    for (name, bytes, phrases) in [
        (
            "notes.pth",
            &b"Access denied. Please log in.\n"[..],
            ["text", "give the path of a .pth or .safetensors file"],
        ),
        ("lfs.pth", &pointer[..], ["Git LFS pointer", "git lfs pull"]),
        ("lfs.safetensors", &pointer[..], ["Git LFS pointer", "git lfs pull"]),
        ("page.pth", &page[..], ["web page", "download again"]),
        ("vit.pth.gz", &gzip.finish().unwrap(), ["compressed with gzip", "gunzip"]),
        ("zeros.pth", &[0; 100_000], ["zero bytes", "get it again"]),
        ("noise.pth", &[0xfe, 0x37, 0x00, 0x91].repeat(100), ["no format that is known", "torch.save or safetensors"]),
    ] {
        bench.put(name, bytes);
        bench.refused_everywhere(name, &phrases);
    }
}

/// Whoever opens a pipe that nobody writes to waits forever.
#[cfg(unix)]
#[test]
fn rejects_a_pipe_without_waiting_for_a_writer() {
    let bench = Bench::new();
    assert!(bench.run_program("mkfifo", &["pipe.pth"]).status.success());
    bench.refused_everywhere("pipe.pth", &["is no regular file", "copy it to a file first"]);
}

/// Where to cut a file of that length: at every sixteenth, and where its first and last records begin or end.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (1..16).map(move |part| length * part / 16).chain([1, 7, 8, 9, 21, 22, length - 1])
}

#[test]
fn rejects_a_pth_that_was_cut_off() {
    let bench = Bench::new();
    let whole = fixture("mnist_vit.pth");
    for length in cuts(whole.len()) {
        bench.put("cut.pth", &whole[..length]);
        // A single byte is too little to tell what it once was.
        let cut_off = format!("cut off after {length} bytes: download or copy it again");
        let phrases: &[_] = if length < 4 { &[] } else { &[cut_off.as_str()] };
        bench.refused_everywhere("cut.pth", phrases);
    }
}

#[test]
fn rejects_a_safetensors_file_that_was_cut_off() {
    let bench = Bench::new();
    let whole = fixture("mnist_vit.safetensors");
    for length in cuts(whole.len()) {
        bench.put("cut.safetensors", &whole[..length]);
        // Up to eight bytes are a number, which could be anything.
        let phrases: &[_] = if length < 9 { &[] } else { &["cut off", "download or copy it again"] };
        bench.refused_everywhere("cut.safetensors", phrases);
    }
}

#[test]
fn rejects_a_file_with_something_appended() {
    let bench = Bench::new();
    for name in ["more.pth", "more.safetensors"] {
        let whole = bench.read(&name.replace("more", "vit"));
        bench.put(name, &[&whole[..], b"\r\n"].concat());
        bench.refused_everywhere(name, &[]);
    }
}

#[test]
fn the_content_of_a_file_decides_not_its_name() {
    let bench = Bench::new();
    bench.put("really_zip.safetensors", &bench.read("vit.pth"));
    bench.put("really_safetensors.pth", &bench.read("vit.safetensors"));
    bench.put("speech.safetensors", &bench.read("speech.pth"));
    for (right, wrong) in [("vit.pth", "really_zip.safetensors"), ("vit.safetensors", "really_safetensors.pth")] {
        for format in ["pth", "safetensors"] {
            let (of_right, of_wrong) = (format!("out/right.{format}"), format!("out/wrong.{format}"));
            let flags = ["--lambda", "0.1", "--force", "-o"];
            bench.works(&[&["fold", right, "--aux", "speech.pth"][..], &flags, &[&of_right]].concat());
            bench.works(&[&["fold", wrong, "--aux", "speech.safetensors"][..], &flags, &[&of_wrong]].concat());
            assert!(bench.read(&of_right) == bench.read(&of_wrong), "{wrong} folds differently into {format}");
            assert!(bench.read(&of_right) != bench.read(right));
        }
        bench.works(&["inspect", wrong]);
    }
}

#[test]
fn rejects_an_auxiliary_of_another_width() {
    let bench = Bench::new();
    bench.put("narrow.safetensors", &to_safetensors(&model("", 32, 6)));
    // A safetensors file holds its tensors by name, so that the first layer in it is another one.
    for (target, aux, layer, shape, aux_shape) in [
        ("vit.pth", "narrow.safetensors", "attn.qkv", "[192, 64]", "[96, 32]"),
        ("narrow.safetensors", "vit.pth", "attn.proj", "[32, 32]", "[64, 64]"),
    ] {
        let name = format!("blocks.0.{layer}.weight");
        let phrase = format!("{name} of {target} is {shape}, but {name} of {aux} is {aux_shape}");
        let fold = ["fold", target, "--aux", aux, "--lambda", "0.1", "-o", "out/merged.pth"];
        bench.refused(&fold, &[&phrase, "layers of the same shape"]);
        bench.refused(&[&fold[..], &["--dry-run"]].concat(), &[&phrase, "layers of the same shape"]);
    }
}

#[test]
fn rejects_an_auxiliary_of_another_depth_unless_told_how() {
    let bench = Bench::new();
    bench.put("four.safetensors", &to_safetensors(&model("", 64, 4)));
    for (target, aux) in [("vit.pth", "four.safetensors"), ("four.safetensors", "vit.pth")] {
        let fold = ["fold", target, "--aux", aux, "--lambda", "0.1", "-o", "out/merged.pth"];
        let phrases = ["vit.pth has 6 (0-5)", "four.safetensors has 4 (0-3)", "--depth-mismatch first", "--blocks"]
            .map(|phrase| {
                // The target's count is the one that says of what.
                if phrase.starts_with(target) { phrase.replacen(" (", " blocks (", 1) } else { phrase.to_owned() }
            });
        bench.refused(&fold, &phrases.each_ref().map(String::as_str));
        bench.works(&[&fold[..], &["--force", "--depth-mismatch", "first"]].concat());
        bench.works(&[&fold[..], &["--force", "--blocks", "0-3"]].concat());
        bench.refused(&[&fold[..], &["--force", "--blocks", "3-4"]].concat(), &["four.safetensors"]);
    }
}

#[test]
fn rejects_a_zip_with_a_damaged_tensor() {
    let bench = Bench::new();
    let whole = fixture("mnist_vit.pth");
    let storages: Vec<_> = entries(&whole).into_iter().filter(|entry| entry.name.contains("/data/")).collect();
    assert_eq!(storages.len(), 80);
    // The first and the last storage, and some on the way; in each another byte and bit.
    for (i, storage) in storages.iter().enumerate().filter(|(i, _)| i % 13 == 0 || *i == storages.len() - 1) {
        let mut damaged = whole.clone();
        damaged[storage.data.start + storage.data.len() * i / storages.len()] ^= 1 << (i % 8);
        bench.put("damaged.pth", &damaged);
        let phrases = ["damaged.pth", storage.name.as_str(), "is damaged", "CRC-32", "get the file again"];
        let fold = ["fold", "damaged.pth", "--aux", "speech.pth", "--lambda", "0.1", "-o"];
        bench.refused(&[&fold[..], &["out/merged.pth"]].concat(), &phrases);
        bench.refused(&[&fold[..], &["out/merged.safetensors"]].concat(), &phrases);
        bench.refused(&["inspect", "--hash", "damaged.pth"], &phrases);
        bench.refused(&["inspect", "--stats", "damaged.pth"], &phrases);
        bench.refused(&["inspect", "--hash", "--json", "damaged.pth"], &phrases);
    }
}

#[test]
fn rejects_a_damaged_auxiliary() {
    let bench = Bench::new();
    let mut damaged = fixture("speech_vit.pth");
    let largest = entries(&damaged).into_iter().max_by_key(|entry| entry.data.len()).unwrap();
    damaged[largest.data.end - 1] ^= 0x80;
    bench.put("damaged.pth", &damaged);
    let fold = ["fold", "vit.pth", "--aux", "damaged.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &["damaged.pth", &largest.name, "is damaged", "get the file again"]);
}

#[test]
fn rejects_a_zip_with_two_tensors_swapped() {
    let bench = Bench::new();
    let mut swapped = fixture("mnist_vit.pth");
    let entries = entries(&swapped);
    let matrices: Vec<_> = entries.iter().filter(|entry| entry.data.len() == 64 * 64 * 4).collect();
    let (first, second) = (matrices[0], matrices[1]);
    let bytes = swapped[first.data.clone()].to_vec();
    swapped.copy_within(second.data.clone(), first.data.start);
    swapped[second.data.clone()].copy_from_slice(&bytes);
    bench.put("swapped.pth", &swapped);
    let phrases = ["swapped.pth", first.name.as_str(), "CRC-32", "get the file again"];
    bench.refused(&["inspect", "--hash", "swapped.pth"], &phrases);
    bench.refused(&["fold", "swapped.pth", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/m.pth"], &phrases);
}

#[test]
fn rejects_a_damaged_pickle() {
    let bench = Bench::new();
    let whole = fixture("mnist_vit.pth");
    let pickle = entry(&whole, "mnist_vit/data.pkl");
    for at in [pickle.data.start, pickle.data.start + 4000, pickle.data.end - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        bench.put("damaged.pth", &damaged);
        bench.refused_everywhere("damaged.pth", &["mnist_vit/data.pkl", "is damaged", "get the file again"]);
    }
}

/// A checksum only helps against accidents, so here it is made to fit. What is left may be a sound checkpoint with
/// another name or shape in it, or an error; but never a crash, and never half a file.
#[test]
fn survives_every_damage_to_a_pickle_whose_checksum_fits() {
    const POSITIONS: usize = 200;
    let bench = Bench::new();
    let whole = fixture("mnist_vit.pth");
    let pickle = entry(&whole, "mnist_vit/data.pkl");
    let mut refused = 0;
    for i in 0..POSITIONS {
        let mut damaged = whole.clone();
        damaged[pickle.data.start + pickle.data.len() * i / POSITIONS] ^= [0x01, 0x80, 0x10, 0xff, 0x04][i % 5];
        let crc = crc32fast::hash(&damaged[pickle.data.clone()]);
        damaged[pickle.crc..pickle.crc + 4].copy_from_slice(&crc.to_le_bytes());
        bench.put("damaged.pth", &damaged);
        let args = ["fold", "damaged.pth", "--aux", "speech.pth", "--lambda", "0.1", "--force", "-o", "out/merged.pth"];
        let output = bench.run(&args);
        if output.status.success() {
            assert_eq!(bench.out(), ["merged.pth"], "position {i}");
            bench.works(&["inspect", "--hash", "out/merged.pth"]);
            fs::remove_file(bench.path("out/merged.pth")).unwrap();
        } else {
            refused += 1;
            assert_refusal(&output, &args, &["damaged.pth"]);
            assert!(bench.out().is_empty(), "position {i}");
        }
        assert!(bench.read("damaged.pth") == damaged);
    }
    // Most bytes of a pickle are opcodes, lengths, and references, so that most damage shows.
    assert!(refused > POSITIONS / 3, "only {refused} refused");
    assert!(refused < POSITIONS, "the checksum was not made to fit");
}

#[test]
fn rejects_nan_and_infinity_in_what_it_writes() {
    let bench = Bench::new();
    bench.put("sound.safetensors", &to_safetensors(&model("", 32, 2)));
    for (tensor, value, as_target_only) in [
        ("blocks.1.mlp.fc1.weight", f32::NAN, false),
        ("blocks.0.attn.qkv.weight", f32::NEG_INFINITY, false),
        ("blocks.0.mlp.fc2.bias", f32::INFINITY, true),
        ("norm.weight", f32::NAN, true),
    ] {
        bench.put("broken.safetensors", &with_value(tensor, value));
        let roles = [("broken.safetensors", "sound.safetensors"), ("sound.safetensors", "broken.safetensors")];
        for (target, aux) in roles.into_iter().take(if as_target_only { 1 } else { 2 }) {
            let fold = ["fold", target, "--aux", aux, "--lambda", "0.1", "-o"];
            let source = format!("{tensor:?} of broken.safetensors holds some");
            let result = format!("{tensor:?} would hold NaN or infinity");
            for output in ["out/merged.pth", "out/merged.safetensors"] {
                bench.refused(&[&fold[..], &[output]].concat(), &[&result, &source, "--allow-non-finite"]);
            }
            let allowed = [&fold[..], &["out/allowed.safetensors", "--allow-non-finite", "--force"]].concat();
            let note = bench.works(&allowed);
            assert!(note.contains(tensor) && note.contains("NaN or infinity"), "{note}");
            let written = values(&bench.read("out/allowed.safetensors"), tensor);
            assert_eq!(written[5].to_bits(), if value.is_nan() { written[5] } else { value }.to_bits());
            assert_eq!(written.iter().filter(|value| !value.is_finite()).count(), 1);
            fs::remove_file(bench.path("out/allowed.safetensors")).unwrap();
        }
    }
}

#[test]
fn does_not_mind_nan_in_what_it_does_not_use() {
    let bench = Bench::new();
    bench.put("sound.safetensors", &to_safetensors(&model("", 32, 2)));
    let fold = ["fold", "sound.safetensors", "--lambda", "0.1", "--no-metadata", "--force", "-o"];
    for (tensor, flags) in [
        ("head.weight", &[][..]),
        ("blocks.0.attn.qkv.bias", &[]),
        ("blocks.1.mlp.fc1.weight", &["--layers", "qkv,proj,fc2"]),
        ("blocks.1.mlp.fc1.weight", &["--blocks", "0"]),
    ] {
        bench.put("broken.safetensors", &with_value(tensor, f32::NAN));
        let with = |aux, output| [&fold[..], &[output, "--aux", aux], flags].concat();
        bench.works(&with("broken.safetensors", "out/a.safetensors"));
        bench.works(&with("sound.safetensors", "out/b.safetensors"));
        assert!(bench.read("out/a.safetensors") == bench.read("out/b.safetensors"), "{tensor} {flags:?}");
    }
}

#[test]
fn rejects_a_result_too_large_for_its_type() {
    let bench = Bench::new();
    bench.put("large.safetensors", &with_value("blocks.1.attn.proj.weight", 3e38));
    let fold = ["fold", "large.safetensors", "--aux", "large.safetensors", "--lambda", "0.5", "-o", "out/merged.pth"];
    let phrases = ["\"blocks.1.attn.proj.weight\" would hold NaN or infinity", "all inputs are finite", "float32"];
    bench.refused(&fold, &phrases);
    // 1e5 is finite in float32, but not in float16.
    bench.put("large.safetensors", &with_value("norm.weight", 1e5));
    let cast = [&fold[..], &["--dtype", "float16"]].concat();
    bench.refused(&cast, &["\"norm.weight\" would hold NaN or infinity", "too large for float16"]);
}

#[test]
fn rejects_flags_it_does_not_know() {
    let bench = Bench::new();
    bench.refused(&fold(&["--lamda", "0.2"]), &["'--lamda'", "a similar argument exists: '--lambda'"]);
    bench.refused(&["inspect", "vit.pth", "--hashes"], &["'--hashes'", "'--hash'"]);
    bench.refused(&["flod", "vit.pth"], &["'flod'", "'fold'"]);
    bench.refused(&["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1"], &["--output <FILE>"]);
    bench.refused(&fold(&["speech.pth"]), &["'speech.pth'"]);
    bench.refused(&fold(&["--depth-mismatch", "last"]), &["'last'", "error, first"]);
    bench.refused(&fold(&["--dtype", "int8"]), &["'int8'", "float32, float16, bfloat16, float64"]);
}

#[test]
fn rejects_what_is_no_lambda() {
    let bench = Bench::new();
    for (lambda, phrases) in [
        ("much", &["\"much\" is no lambda", "0.1", "0.0..0.2", "qkv=0.1,fc1=0.02"][..]),
        ("", &["\"\" is no lambda"]),
        ("0,1", &["\"0,1\" is no lambda"]),
        ("0.1..", &["\"0.1..\" is no lambda"]),
        ("nan", &["\"nan\" is not finite"]),
        ("-inf", &["\"-inf\" is not finite"]),
        ("1e999", &["\"1e999\" is not finite"]),
        ("fc3=0.1", &["\"fc3\"", "the kinds are qkv, proj, fc1, fc2"]),
        ("qkv=0.1,qkv=0.2", &["\"qkv\"", "given twice"]),
    ] {
        let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", lambda, "-o", "out/merged.pth"];
        bench.refused(&fold, phrases);
    }
    let fold = ["fold", "vit.pth", "--aux", "speech.pth=0,1", "-o", "out/merged.pth"];
    bench.refused(&fold, &["--aux speech.pth=0,1", "\"0,1\" is no lambda"]);
    let fold = ["fold", "vit.pth", "--aux", "speech.pth", "-o", "out/merged.pth"];
    bench.refused(&fold, &["no lambda is given for speech.pth", "--lambda NUMBER"]);
    let fold = ["fold", "vit.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &["vit.pth carries no learned pathway", "--aux FILE"]);
}

#[test]
fn rejects_a_lambda_file_it_cannot_use() {
    let bench = Bench::new();
    for (text, phrases) in [
        ("0.1", &["no JSON object of numbers"][..]),
        ("{\"0.qkv\": ", &["no JSON object of numbers"]),
        ("{\"0.qkv\": \"0.1\"}", &["no JSON object of numbers"]),
        ("{\"9.qkv\": 0.1}", &["\"9.qkv\" names no layer that is folded", "\"0.qkv\""]),
        ("{\"0.qkv\": 1, \"blocks.0.attn.qkv\": 2}", &["\"0.qkv\" and \"blocks.0.attn.qkv\" name the same layer"]),
    ] {
        bench.put("lambdas.json", text.as_bytes());
        let fold = ["fold", "vit.pth", "--aux", "speech.pth", "--lambda-file", "lambdas.json", "-o", "out/merged.pth"];
        bench.refused(&fold, phrases);
    }
}

#[test]
fn rejects_blocks_and_layers_that_do_not_exist() {
    let bench = Bench::new();
    for blocks in ["x", "", "5-2", "0,", "-1"] {
        bench.refused(
            &fold(&[&format!("--blocks={blocks}")]),
            &["--blocks", "write blocks as numbers and ranges of up to 4096: 0-5,8"],
        );
    }
    bench.refused(&fold(&["--blocks", "4-7"]), &["block 6", "vit.pth has the blocks 0-5"]);
    for layers in ["fc3", "", "qkv,,fc1"] {
        bench.refused(&fold(&["--layers", layers]), &["--layers", "the kinds of layer are qkv, proj, fc1, fc2"]);
    }
}

#[test]
fn rejects_patterns_that_are_malformed() {
    let bench = Bench::new();
    for flag in ["--target-pattern", "--aux-pattern"] {
        bench.refused(&fold(&[flag, "blocks\\.(?<block>\\d+"]), &[flag, "no regular expression", "unclosed group"]);
        bench.refused(&fold(&[flag, "blocks\\.(\\d+)"]), &[flag, "(?<block>...)", "(?<layer>...)"]);
    }
}

#[test]
fn shows_what_a_pattern_nearly_matches() {
    let bench = Bench::new();
    let pattern = r"layers\.(?<block>\d+)\.(?<layer>attn\.qkv)\.weight";
    let near = ["no tensor is named like a linear layer", "the nearest names are", "blocks.N.attn.qkv.weight", pattern];
    bench.refused(&fold(&["--target-pattern", pattern]), &[&near[..], &["vit.pth"]].concat());
    bench.refused(&fold(&["--aux-pattern", pattern]), &[&near[..], &["speech.pth"]].concat());
    // Without a pattern, a model of no known family is treated the same.
    let mut tensors = model("", 32, 2);
    tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("blocks.", "encoder.layer."));
    bench.put("other.safetensors", &to_safetensors(&tensors));
    let fold = ["fold", "other.safetensors", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
    let near = ["other.safetensors", "the nearest names are", "encoder.layer.N.attn.qkv.weight"];
    bench.refused(&fold, &near);
}

#[test]
fn rejects_a_pattern_that_leaves_out_a_layer_of_the_auxiliary() {
    let bench = Bench::new();
    let pattern = r"blocks\.(?<block>\d+)\.(?<layer>attn\.qkv)\.weight";
    let phrases = ["speech.pth has no layer 0.proj", "blocks.0.attn.proj of vit.pth", "--layers", "--aux-pattern"];
    bench.refused(&fold(&["--aux-pattern", pattern]), &phrases);
}

#[test]
fn rejects_a_pattern_that_matches_a_layer_twice() {
    let bench = Bench::new();
    let two = [model("student.", 64, 6), model("teacher.", 64, 6)].concat();
    bench.put("two.safetensors", &to_safetensors(&two));
    let [first, second] = ["student", "teacher"].map(|side| format!("\"{side}.blocks.0.attn.proj.weight\""));
    let twice = ["two.safetensors", &first, &second, "layer 0.proj"];
    let pattern = r"blocks\.(?<block>\d+)\.(?<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight$";
    for more in [&[][..], &["--target-pattern", pattern]] {
        let fold = ["fold", "two.safetensors", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];
        bench.refused(&[&fold[..], more].concat(), &[&twice[..], &["stricter --target-pattern"]].concat());
    }
    let fold = ["fold", "vit.pth", "--aux", "two.safetensors", "--lambda", "0.1", "-o", "out/merged.pth"];
    bench.refused(&fold, &[&twice[..], &["stricter --aux-pattern"]].concat());
    // The way out works.
    let stricter = format!("^teacher\\.{pattern}");
    bench.works(&[&fold[..], &["--aux-pattern", &stricter]].concat());
}

/// Standard output is a file like any other, and may be on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn reports_that_its_results_could_not_be_printed() {
    let bench = Bench::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(tool());
    command.args(["inspect", "vit.pth"]).current_dir(bench.path("")).stdin(std::process::Stdio::null()).stdout(full);
    let output = command.output().unwrap();
    assert_refusal(&output, &["inspect", "vit.pth"], &["No space left"]);
}
