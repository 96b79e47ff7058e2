//! Memory: it does not grow with the checkpoint.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::command;

/// Bytes of anonymous memory that a fold may take, whatever the size of its files.
const LIMIT: u64 = 64 << 20;

/// A model of zeros as safetensors: two blocks of width 4096, 100 MB a layer and more, sparse on the disk.
fn large(path: &Path) -> u64 {
    let layers = [("attn.qkv", 3 * 4096, 4096), ("mlp.fc1", 8192, 4096)];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for block in 0..2 {
        for (name, rows, columns) in layers {
            let begin = end;
            end += rows * columns * 4;
            let entry = serde_json::json!({"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]});
            header.insert(format!("blocks.{block}.{name}.weight"), entry);
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    end
}

/// The peak of the anonymous resident memory of a process until it ends, in bytes.
fn peak_anonymous(child: &mut std::process::Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    peak
}

#[test]
fn a_fold_of_hundreds_of_megabytes_takes_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (target, aux) = (folder.path().join("target.safetensors"), folder.path().join("aux.safetensors"));
    let bytes = large(&target);
    large(&aux);
    assert!(bytes > 8 * LIMIT);
    for output in ["out.pth", "out.safetensors"] {
        let mut child = command()
            .args(["fold", "--lambda", "0.1", "--aux"])
            .args([&aux, &target])
            .arg("-o")
            .arg(folder.path().join(output))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let peak = peak_anonymous(&mut child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(peak > 0 && peak < LIMIT, "{output}: {peak} bytes");
        fs::remove_file(folder.path().join(output)).unwrap();
    }
}
