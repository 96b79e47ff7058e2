//! `listing TARGET FOLDER OUT`: builds the file that the target builds of each input in FOLDER, and says what this product
//! reads in it, for `fuzz/oracle_files.py`: OUT/NAME is the file, OUT/NAME.json its tensors by full name, or why it is refused.

use std::error::Error;
use std::path::Path;

use m2pt_surgery::{Checkpoint, RootChoice};
use serde_json::{Map, json};

#[path = "../targets/mod.rs"]
#[allow(dead_code)]
mod targets;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, folder, out] = arguments.as_slice() else { return Err("listing TARGET FOLDER OUT".into()) };
    std::fs::create_dir_all(out)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let file = targets::built(target, &std::fs::read(entry.path())?);
        let path = Path::new(out).join(entry.file_name());
        std::fs::write(&path, &file)?;
        let listing = match list(file) {
            Ok(tensors) => json!({"tensors": tensors}),
            Err(error) => json!({"refused": chain(&error)}),
        };
        std::fs::write(path.with_added_extension("json"), listing.to_string())?;
    }
    Ok(())
}

/// Type, shape and hash of every dense tensor.
fn list(file: Vec<u8>) -> m2pt_surgery::Result<Map<String, serde_json::Value>> {
    let checkpoint = Checkpoint::from_bytes("input", file)?;
    let mut listing = Map::new();
    if checkpoint.tensor_count() == 0 {
        return Ok(listing);
    }
    let tensors = checkpoint.state_dict(&RootChoice::Path(String::new()))?;
    for (index, spec) in tensors.specs().iter().enumerate() {
        let digest = m2pt_surgery::tensor::sha256(&tensors.tensor(index)?.view());
        listing.insert(spec.name.clone(), json!([spec.dtype.name(), spec.shape, digest]));
    }
    for (name, _) in tensors.others() {
        listing.insert(name.clone(), json!(null));
    }
    Ok(listing)
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
