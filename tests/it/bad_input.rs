//! What the program does with files it cannot use: it says what is wrong with which file and what to do, exits with 2,
//! prints nothing on standard output and leaves every file as it was.

use std::fs;
use std::io::Write as _;
use std::ops::Range;

use crate::bench::{Bench, assert_refusal, fixture, model, to_safetensors, values, with_value};

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
