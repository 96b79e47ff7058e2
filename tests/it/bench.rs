//! A folder to run the program in, and small models to run it on.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tempfile::TempDir;

use crate::support;

/// No refusal takes longer, however slow the machine; most take milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A whole fold of the fixtures in a [`Bench`].
pub(crate) const FOLD: [&str; 8] =
    ["fold", "vit.pth", "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"];

/// A folder to work in: copies of the fixtures `vit.pth`, `vit.safetensors` and `speech.pth`, and an empty folder
/// `out`. The program runs inside of it, so that messages name files as the tests do.
pub(crate) struct Bench(TempDir);

impl Bench {
    pub(crate) fn new() -> Bench {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names in the folder `out`, hidden ones included.
    pub(crate) fn out(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs any program here, but not for longer than [`LIMIT`].
    pub(crate) fn run_program(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Output {
        let program = program.as_ref();
        let mut command = assert_cmd::Command::new(program);
        let output = command.args(args).current_dir(self.0.path()).timeout(LIMIT).output();
        output.unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()))
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_program(tool(), args)
    }

    /// Runs what must succeed; returns its standard error.
    pub(crate) fn works(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        stderr
    }

    /// Runs what must be refused: with exit code 2, a message that holds `phrases`, an empty standard output, and
    /// without a change to any file here.
    pub(crate) fn refused(&self, args: &[&str], phrases: &[&str]) {
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
    pub(crate) fn refused_everywhere(&self, name: &str, phrases: &[&str]) {
        let phrases = [&[name], phrases].concat();
        self.refused(&["inspect", name], &phrases);
        self.refused(&["fold", name, "--aux", "speech.pth", "--lambda", "0.1", "-o", "out/merged.pth"], &phrases);
        self.refused(&["fold", "vit.pth", "--aux", name, "--lambda", "0.1", "-o", "out/merged.safetensors"], &phrases);
    }

    /// Mode and content of everything here.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
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
pub(crate) fn mode(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
}

#[cfg(not(unix))]
pub(crate) fn mode(metadata: &fs::Metadata) -> u32 {
    u32::from(metadata.permissions().readonly())
}

/// The program under test.
pub(crate) fn tool() -> &'static Path {
    assert_cmd::cargo::cargo_bin!("m2pt-surgery")
}

pub(crate) fn assert_refusal(output: &Output, args: &[&str], phrases: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // No code at all means that the time limit was reached, or a crash.
    assert_eq!(output.status.code(), Some(2), "{args:?} ended with {}: {stderr}", output.status);
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    for phrase in phrases {
        assert!(stderr.contains(phrase), "{args:?} does not say {phrase:?}: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    fs::read(support::fixture(name)).unwrap()
}

/// [`FOLD`] and more flags.
pub(crate) fn fold<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FOLD, more].concat()
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// What a plain vision transformer consists of, as far as folding it goes.
pub(crate) fn model(prefix: &str, width: usize, depth: usize) -> Vec<Tensor> {
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

pub(crate) fn to_safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        (tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

/// A .pth as `torch.save` writes it, of a float32 tensor under several names.
pub(crate) fn tied(names: &[String], values: &[f32]) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let count = [b"J", &(values.len() as u32).to_le_bytes()[..]].concat();
    let mut pickle = b"\x80\x02}(".to_vec();
    for name in names {
        pickle.extend(text(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat());
        pickle.extend([&count[..], b"tQK\0", &count, b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"].concat());
    }
    pickle.extend(b"u.");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (name, content) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("data/0", &data), ("version", b"3\n")]
    {
        archive.start_file(format!("archive/{name}"), options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// A small model, but element 5 of the tensor `name` is `value`.
pub(crate) fn with_value(name: &str, value: f32) -> Vec<u8> {
    let mut tensors = model("", 32, 2);
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap().values[5] = value;
    to_safetensors(&tensors)
}

/// The f32 elements of a tensor in a safetensors file.
pub(crate) fn values(file: &[u8], name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(file).unwrap();
    let (elements, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
    elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
