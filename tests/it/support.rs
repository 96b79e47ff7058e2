//! Where the fixtures are, and what the generator recorded.

use std::path::{Path, PathBuf};

use m2pt_surgery::{Checkpoint, RootChoice, StateDict};
use serde_json::Value;

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    repository().join("fixtures").join(name)
}

/// A JSON file that the generator wrote.
pub(crate) fn expected(name: &str) -> Value {
    let path = fixture("expected").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// Every tensor of a file, by full path.
pub(crate) fn whole(checkpoint: &Checkpoint) -> StateDict<'_> {
    checkpoint.state_dict(&RootChoice::Path(String::new())).unwrap()
}

/// Name, dtype, shape and hash of a tensor: the form in which the generator records it.
pub(crate) type Digest = (String, String, Vec<u64>, String);

/// The digest of each tensor, in order.
pub(crate) fn digests(tensors: &StateDict<'_>) -> Vec<Digest> {
    tensors
        .specs()
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let data = tensors.tensor(index).unwrap();
            let shape = spec.shape.iter().map(|&d| d as u64).collect();
            let hash = m2pt_surgery::tensor::sha256(&data.view());
            (spec.name.clone(), spec.dtype.name().to_owned(), shape, hash)
        })
        .collect()
}

/// The same of a recorded object of tensors.
pub(crate) fn recorded(tensors: &Value) -> Vec<Digest> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    tensors
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, tensor)| {
            let shape = tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            (name.clone(), text(&tensor["dtype"]), shape, text(&tensor["sha256"]))
        })
        .collect()
}

/// The tensors of a file of PyTorch's, which have to be those that PyTorch read in the fixture `name`.
pub(crate) fn read_as_recorded<'c>(name: &str, checkpoint: &'c Checkpoint) -> StateDict<'c> {
    let theirs = &expected("torch_files.json")[name];
    // null: the names that `state_dict()` gives, which have to be the obvious root.
    let choice = theirs["root"].as_str().map_or(RootChoice::Auto, |root| RootChoice::Path(root.to_owned()));
    let ours = checkpoint.state_dict(&choice).unwrap();
    let (mut found, mut wanted) = (digests(&ours), recorded(&theirs["tensors"]));
    if theirs["any_name"] == true {
        for digests in [&mut found, &mut wanted] {
            digests.iter_mut().for_each(|digest| digest.0.clear());
            digests.sort();
        }
    }
    assert_eq!(found, wanted, "{name}");
    ours
}

/// Runs the program in the root of the repository.
#[cfg(feature = "cli")]
pub(crate) fn run(args: &[&str]) -> std::process::Output {
    command().args(args).output().unwrap()
}

/// The program, to be run in the root of the repository, without colours.
#[cfg(feature = "cli")]
pub(crate) fn command() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_m2pt-surgery"));
    command.current_dir(repository()).env("NO_COLOR", "1");
    command
}

/// Standard output of a run that has to succeed.
#[cfg(feature = "cli")]
pub(crate) fn succeed(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that has to fail with status 2, having printed nothing else.
#[cfg(feature = "cli")]
pub(crate) fn fail(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    stderr
}
