//! Turns the tables of families into JSON: a program that starts reads it four times as fast as TOML.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const TABLES: &str = "src/naming/families";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={TABLES}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo says nothing of OUT_DIR")?);
    for entry in fs::read_dir(TABLES)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let table: serde_json::Value = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let json = Path::new(path.file_name().ok_or("a table without a name")?).with_extension("json");
        fs::write(out.join(json), serde_json::to_vec(&table)?)?;
    }
    Ok(())
}
