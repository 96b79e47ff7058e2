//! The fuzz targets as tests: every seed of `fuzz/corpus/`, then damaged copies of them, drawn from a fixed seed.
//!
//! The targets panic where the product does what it must not (see `docs/fuzzing.md`), and so does the product itself: a
//! panic here names the input that brought it about, and leaves a copy of it under `target/`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use m2pt_surgery::pickle::{Node, NodeId, Pickle, parse};

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

/// Runs a target on one input; it may take its time, within reason, and not panic. Whether the input was read.
fn run(name: &str, target: targets::Target, what: &str, input: &[u8]) -> bool {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    let taken = start.elapsed();
    if outcome.is_err() || taken > LONGEST {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzzed-{name}"));
        std::fs::write(&copy, input).unwrap();
        let problem = if outcome.is_err() { "panics".to_owned() } else { format!("takes {taken:?}") };
        panic!("{name} {problem} on {what}, kept in {}", copy.display());
    }
    outcome.unwrap_or(false)
}

/// `read` is how many of the seeds are read: the targets would find nothing in files that are all refused at once.
fn replay(name: &str, read: usize) {
    let target = targets::ALL.iter().find(|(known, _)| *known == name).unwrap().1;
    let seeds = seeds(name);
    let accepted: Vec<_> = seeds.iter().filter(|(seed, bytes)| run(name, target, seed, bytes)).map(|s| &s.0).collect();
    assert!(accepted.len() >= read, "only these seeds of {name} are read: {accepted:?}");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..MUTANTS {
        let (seed, mut bytes) = seeds[random.below(seeds.len())].clone();
        damage(&mut random, &mut bytes, &seeds);
        run(name, target, &format!("mutant {number}, of {seed}"), &bytes);
    }
}

#[test]
fn pickle() {
    replay("pickle", 44);
}

/// Files of a few hundred bytes that claim gigabytes, or share their way to them: refused, or read, in little memory. Running
/// out of it would end the program with a signal.
#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
fn lies_about_sizes_take_no_memory() {
    /// Address space for the program, its libraries and stacks included, in KiB.
    const LIMIT: &str = "300000";
    let record =
        |choice: u8, flags: u8, data: &[u8]| [&[choice, flags][..], &(data.len() as u16).to_le_bytes(), data].concat();
    // Lists of two, each holding the one before it twice: 2^40 values to who follows them all.
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for depth in 0..40u8 {
        laughs.extend([b']', b'q', depth + 1, b'(', b'h', depth, b'h', depth, b'e']);
    }
    let doubled = [&laughs[..], b"."].concat();
    let storage = |class: &str, elements: &str| {
        format!(
            "ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n{class}\nV0\nVcpu\n{elements}tQI0\n(I3\nt(I1\ntI00\nNtR."
        )
    };
    let huge = storage("FloatStorage", "L4611686018427387903L\n");
    let deflated = targets::built("torch_zip", &record(0, 1, b"\x80\x02N."));
    let mut claims = deflated.clone();
    let central = claims.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    claims[central + 24..central + 28].copy_from_slice(&0x03ff_ffffu32.to_le_bytes());
    let mut header = 99_999_999u64.to_le_bytes().to_vec();
    header.extend(b"{\"a\":");
    let mut tarred = targets::built("tar", &record(3, 0, b"\x80\x02K\x02."));
    tarred[124..136].copy_from_slice(b"77777777777\0");
    let count = [b"\0\x80\x02N.\x80\x02]X\x01\0\0\x000a.".as_slice(), &i64::MAX.to_le_bytes()].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a text of 2^62 bytes", targets::built("torch_zip", &record(0, 0, b"\x80\x04\x8d\0\0\0\0\0\0\0\x40x"))),
        ("lists of lists of lists", targets::built("torch_zip", &record(0, 0, &doubled))),
        ("a storage of 2^62 elements", targets::built("torch_zip", &record(0, 0, huge.as_bytes()))),
        ("an entry that expands to 64 MiB", claims),
        ("a header of 100 MB", header),
        ("a member of 8 GiB", tarred),
        ("a storage of 2^63 bytes in a legacy stream", targets::built("legacy", &count)),
        ("lists of lists in a legacy stream", targets::built("legacy", &[b"\0", &doubled[..]].concat())),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lie.pth");
    for (what, bytes) in cases {
        std::fs::write(&file, &bytes).unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -v $0; exec \"$@\"", LIMIT, env!("CARGO_BIN_EXE_m2pt-surgery"), "inspect"])
            .arg(&file)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: {:?}, {stderr}", output.status);
        assert!(stderr.contains("lie.pth"), "{what}: {stderr}");
    }
}

/// A value as text, in the form of `fuzz/oracle_pickles.py`: the first values of it, as many as there is `room` for.
fn dump(pickle: &Pickle, id: NodeId, room: &mut usize) -> String {
    if *room == 0 {
        return "~".to_owned();
    }
    *room -= 1;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut joined = |kind: &str, ids: &[NodeId]| {
        let parts: Vec<_> = ids.iter().map(|&id| dump(pickle, id, room)).collect();
        format!("{kind}({})", parts.join(","))
    };
    let pairs =
        |pairs: &[(NodeId, NodeId)]| -> Vec<_> { pairs.iter().flat_map(|&(key, value)| [key, value]).collect() };
    match pickle.node(id) {
        Node::None => "None".to_owned(),
        Node::Bool(true) => "True".to_owned(),
        Node::Bool(false) => "False".to_owned(),
        Node::Int(value) => format!("i{}", hex(&shortest(&value.to_le_bytes()))),
        Node::BigInt(bytes) => format!("i{}", hex(&shortest(bytes))),
        Node::Float(value) => format!("f{:016x}", value.to_bits()),
        Node::Str(text) => format!("s{}", hex(text.as_bytes())),
        Node::Bytes(bytes) => format!("b{}", hex(bytes)),
        Node::ByteArray(bytes) => format!("a{}", hex(bytes)),
        Node::Tuple(items) => joined("tuple", items),
        Node::List(items) => joined("list", items),
        Node::Set(items) => joined("set", items),
        Node::FrozenSet(items) => joined("frozenset", items),
        Node::Dict(entries) => joined("dict", &pairs(entries)),
        Node::Persistent(id) => joined("persistent", &[*id]),
        _ => dump_call(pickle, id, room),
    }
}

/// Those whose parts are no values of their own; they count as if they were.
fn dump_call(pickle: &Pickle, id: NodeId, room: &mut usize) -> String {
    let mut leaf = |text: String| match room.checked_sub(1) {
        None => "~".to_owned(),
        Some(left) => {
            *room = left;
            text
        }
    };
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let int = |value: i64| {
        let bytes = shortest(&value.to_le_bytes());
        format!("i{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    match pickle.node(id) {
        Node::Global(global) => {
            let module = leaf(format!("s{}", hex(global.module())));
            format!("global({module},{})", leaf(format!("s{}", hex(global.name()))))
        }
        Node::Extension(code) => format!("extension({})", leaf(int((*code).into()))),
        Node::Buffer(number) => format!("buffer({})", leaf(int((*number).into()))),
        Node::Object(object) => {
            let mut parts = vec![dump(pickle, object.callable, room), dump(pickle, object.args, room)];
            parts.push(match object.kwargs {
                Some(kwargs) => dump(pickle, kwargs, room),
                None if *room == 0 => "~".to_owned(),
                None => {
                    *room -= 1;
                    "None".to_owned()
                }
            });
            let entries: Vec<_> = object.entries.iter().flat_map(|&(key, value)| [key, value]).collect();
            for list in [&*object.state, &*object.items, &*entries] {
                if *room == 0 {
                    parts.push("~".to_owned());
                    continue;
                }
                *room -= 1;
                let items: Vec<_> = list.iter().map(|&id| dump(pickle, id, room)).collect();
                parts.push(format!("list({})", items.join(",")));
            }
            format!("object({})", parts.join(","))
        }
        other => panic!("{other:?}"),
    }
}

/// Two's complement in as few bytes as hold the sign.
fn shortest(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while let [.., low, high] = *bytes
        && high == if low & 0x80 == 0 { 0 } else { 0xff }
    {
        bytes.pop();
    }
    bytes
}

/// Python's own unpickler is the second opinion on every seed, what the fuzzer found included. With `M2PT_PICKLES` (a
/// folder) and `M2PT_EXPECTED` (what `fuzz/oracle_pickles.py` printed of it) other pickles are compared.
#[test]
fn pickles_are_what_python_reads() {
    let variable = |name: &str, default: &str| match std::env::var_os(name) {
        Some(path) => std::path::PathBuf::from(path),
        None => repository().join(default),
    };
    let folder = variable("M2PT_PICKLES", "fuzz/corpus/pickle");
    let expected = std::fs::read(variable("M2PT_EXPECTED", "fuzz/expected/pickle.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), expected.len(), "run fuzz/oracle_pickles.py again");
    let mut wrong = Vec::new();
    for (name, python) in &expected {
        let ours = parse(&std::fs::read(folder.join(name)).unwrap());
        let ours = ours.map(|pickle| dump(&pickle, pickle.root(), &mut 500));
        match (python.as_str(), ours) {
            (None, Err(_)) => {}
            (None, Ok(ours)) => wrong.push(format!("{name}: refused by Python, read as {ours:.300}")),
            (Some(python), Err(error)) => wrong.push(format!("{name}: {error}, where Python reads {python:.300}")),
            (Some(python), Ok(ours)) if ours != python => {
                let at = ours.bytes().zip(python.bytes()).position(|(a, b)| a != b).unwrap_or(0).saturating_sub(40);
                let part = |text: &str| text.get(at..).unwrap_or_default().chars().take(200).collect::<String>();
                wrong.push(format!("{name}: from {at} on it is {}, to Python {}", part(&ours), part(python)));
            }
            (Some(_), Ok(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), expected.len(), wrong.join("\n"));
}

#[test]
fn torch_zip() {
    replay("torch_zip", 24);
}

#[test]
fn legacy() {
    replay("legacy", 16);
}

#[test]
fn tar() {
    replay("tar", 5);
}

#[test]
fn safetensors() {
    replay("safetensors", 8);
}

#[test]
fn index_json() {
    replay("index_json", 5);
}

#[test]
fn dcp() {
    replay("dcp", 3);
}

#[test]
fn npy() {
    replay("npy", 15);
}

#[test]
fn scan() {
    replay("scan", 25);
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
