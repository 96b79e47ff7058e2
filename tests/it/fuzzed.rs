//! The fuzz targets as tests: every seed of `fuzz/corpus/`, then damaged copies of them, drawn from a fixed seed.
//!
//! The targets panic where the product does what it must not (see `docs/fuzzing.md`), and so does the product itself: a
//! panic here names the input that brought it about, and leaves a copy of it under `target/`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::repository;

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

/// Damaged copies per target.
const MUTANTS: u64 = 10_000;
/// The longest that one input may take: hundreds of times what the slowest does, for slow machines.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest mutant, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, 0 if that is 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11).checked_rem(limit as u64).unwrap_or(0) as usize
    }
}

/// The seeds of a target, in the order of their names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = repository().join("fuzz/corpus").join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// One to four kinds of damage.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
    /// Numbers at which sums, products and conversions go wrong.
    const EDGES: &[u64] =
        &[0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, i32::MAX as u64, u32::MAX as u64, 1 << 32, i64::MAX as u64, u64::MAX];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let run = at..(at + 1 + random.below(32)).min(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 | 2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            3 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            4 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            5 => drop(bytes.drain(run.start.min(run.end)..run.end)),
            6 => {
                let copy = bytes[run.start.min(run.end)..run.end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            _ => {
                let other = &others[random.below(others.len())].1;
                let from = random.below(other.len() + 1);
                let to = (from + random.below(256)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes.truncate(MAX_BYTES);
}

/// Runs a target on one input; it may take its time, within reason, and not panic.
fn run(name: &str, target: targets::Target, what: &str, input: &[u8]) {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    let taken = start.elapsed();
    if outcome.is_err() || taken > LONGEST {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzzed-{name}"));
        std::fs::write(&copy, input).unwrap();
        let problem = if outcome.is_err() { "panics".to_owned() } else { format!("takes {taken:?}") };
        panic!("{name} {problem} on {what}, kept in {}", copy.display());
    }
}

fn replay(name: &str) {
    let target = targets::ALL.iter().find(|(known, _)| *known == name).unwrap().1;
    let seeds = seeds(name);
    assert!(seeds.len() >= 5, "the seeds of {name} are gone");
    for (seed, bytes) in &seeds {
        run(name, target, seed, bytes);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..MUTANTS {
        let (seed, mut bytes) = seeds[random.below(seeds.len())].clone();
        damage(&mut random, &mut bytes, &seeds);
        run(name, target, &format!("mutant {number}, of {seed}"), &bytes);
    }
}

#[test]
fn pickle() {
    replay("pickle");
}

#[test]
fn torch_zip() {
    replay("torch_zip");
}

#[test]
fn legacy() {
    replay("legacy");
}

#[test]
fn tar() {
    replay("tar");
}

#[test]
fn safetensors() {
    replay("safetensors");
}

#[test]
fn index_json() {
    replay("index_json");
}

#[test]
fn npy() {
    replay("npy");
}

/// So that the list of targets, the fuzzers and the seeds cannot drift apart.
#[test]
fn every_target_has_a_fuzzer_and_seeds() {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(repository().join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let mut known: Vec<_> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    for folder in ["fuzz/corpus", "fuzz/fuzz_targets", "fuzz/dict"] {
        assert_eq!(names(folder), known, "{folder}");
    }
}
