//! Second opinions: what candle's pickle reader and the crate pytorch-reader make of the fixtures, beside what PyTorch
//! reads and what we read. Where they differ from PyTorch, `docs/second-opinions.md` says so.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::pickle::PthTensors;
use m2pt_surgery::Checkpoint;
use m2pt_surgery::tensor::sha256_bytes;
use pytorch_reader::PytorchReader;

use crate::support::{Digest, digests, expected, fixture, recorded, repository, whole};

/// By name: the dtype in PyTorch's words, the shape, and the hash of the values, or why there are none.
type Opinion = BTreeMap<String, Result<(String, Vec<u64>, String), String>>;

#[test]
fn second_opinions_are_those_on_record() {
    let files = expected("tensors.json");
    let mut lines = Vec::new();
    for (file, tensors) in files.as_object().unwrap().iter().filter(|(file, _)| file.ends_with(".pth")) {
        let truth = recorded(tensors);
        let ours = digests(&whole(&Checkpoint::open(fixture(file)).unwrap()));
        let ours = Ok(ours.into_iter().map(|(name, dtype, shape, hash)| (name, Ok((dtype, shape, hash)))).collect());
        let opinions = [ours, candle(file, &truth), pytorch_reader(file)].map(|opinion| verdict(&truth, &opinion));
        lines.push(format!("| `{file}` | {} | {} |", truth.len(), opinions.join(" | ")));
    }
    let page = std::fs::read_to_string(repository().join("docs/second-opinions.md")).unwrap();
    let missing: Vec<_> = lines.iter().filter(|line| !page.lines().any(|on_record| on_record == *line)).collect();
    assert!(missing.is_empty(), "docs/second-opinions.md lacks:\n{}", lines.join("\n"));
}

/// What candle reads of the top of the file and, as it takes one key of the top at a time, of each key there.
fn candle(file: &str, truth: &[Digest]) -> Result<Opinion, String> {
    let mut opinion = Opinion::new();
    let keys: BTreeSet<_> = truth.iter().filter_map(|(name, ..)| name.split_once('.')).map(|(key, _)| key).collect();
    for key in std::iter::once(None).chain(keys.into_iter().map(Some)) {
        let reader = match PthTensors::new(fixture(file), key) {
            Ok(reader) => reader,
            Err(error) if key.is_none() => return Err(short(&error)),
            // The first part of a name with a dot in it is no key.
            Err(_) => continue,
        };
        for name in reader.tensor_infos().keys() {
            let full = key.map_or(name.clone(), |key| format!("{key}.{name}"));
            opinion.insert(full, candle_tensor(&reader, name));
        }
    }
    Ok(opinion)
}

fn candle_tensor(reader: &PthTensors, name: &str) -> Result<(String, Vec<u64>, String), String> {
    let tensor = reader.get(name).map_err(|error| short(&error))?.ok_or("it is not there")?;
    let mut bytes = Vec::new();
    tensor.write_bytes(&mut bytes).map_err(|error| short(&error))?;
    let dtype = torch_name(&format!("{:?}", tensor.dtype()));
    Ok((dtype, tensor.dims().iter().map(|&d| d as u64).collect(), sha256_bytes(&bytes)))
}

/// What pytorch-reader reads of the whole file.
fn pytorch_reader(file: &str) -> Result<Opinion, String> {
    let reader = PytorchReader::new(fixture(file)).map_err(|error| short(&error))?;
    let read = |tensor: &pytorch_reader::Tensor| {
        let bytes = tensor.read().map_err(|error| short(&error))?;
        let shape = tensor.shape().iter().map(|&d| d as u64).collect();
        Ok((torch_name(&format!("{:?}", tensor.dtype())), shape, sha256_bytes(&bytes)))
    };
    Ok(reader.tensors().iter().map(|(name, tensor)| (name.clone(), read(tensor))).collect())
}

/// `F32` and the like in PyTorch's words.
fn torch_name(name: &str) -> String {
    match name {
        "BF16" => "bfloat16".to_owned(),
        "Bool" => "bool".to_owned(),
        "F8E4M3" => "float8_e4m3fn".to_owned(),
        _ => name.replacen('F', "float", 1).replacen('I', "int", 1).replacen('U', "uint", 1),
    }
}

/// The first line of an error, without what follows.
fn short(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string().replace(&*repository().to_string_lossy(), "").replace('|', "/");
    let line = text.lines().next().unwrap_or_default();
    let end = line.find(" Layout {").or(line.find(". ")).unwrap_or(line.len());
    line[..end].to_owned()
}

/// In one cell: how many tensors are as in PyTorch, and what of the others.
fn verdict(truth: &[Digest], opinion: &Result<Opinion, String>) -> String {
    let opinion = match opinion {
        Err(why) => return format!("refused: {why}"),
        Ok(opinion) => opinion,
    };
    let mut same = 0;
    let mut other: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, dtype, shape, hash) in truth {
        let what = match opinion.get(name) {
            None => "missing".to_owned(),
            Some(Err(why)) => format!("not read ({why})"),
            Some(Ok((_, found, _))) if found != shape => "another shape".to_owned(),
            Some(Ok((_, _, found))) if found != hash => "other values".to_owned(),
            Some(Ok((found, ..))) if found != dtype => format!("taken for {found}"),
            Some(Ok(_)) => {
                same += 1;
                continue;
            }
        };
        other.entry(what).or_default().push(name);
    }
    let known: Vec<_> = truth.iter().map(|(name, ..)| name.as_str()).collect();
    for name in opinion.keys().filter(|name| !known.contains(&name.as_str())) {
        other.entry("only here".to_owned()).or_default().push(name);
    }
    if other.is_empty() {
        return "all".to_owned();
    }
    let others = other.iter().map(|(what, names)| {
        let shown: Vec<_> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
        let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
        format!("{what}: {}{more}", shown.join(", "))
    });
    format!("{same}; {}", others.collect::<Vec<_>>().join("; "))
}
