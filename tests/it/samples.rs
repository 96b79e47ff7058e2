//! Which samples a set has, in which order, and of which classes.

use std::fs;
use std::path::Path;

use m2pt_surgery::data::{
    ClassIds, DataError, LabelMap, MAX_LABEL, Preprocessing, Sample, SampleOptions, SampleProblem, SampleSet,
    SetProblem,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::preprocessing::hash;
use crate::support::{expected, fixture};

/// A folder with these files, all empty.
fn tree(paths: &[&str]) -> TempDir {
    let root = TempDir::new().unwrap();
    for path in paths {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    root
}

fn open(path: impl AsRef<Path>) -> Result<SampleSet, DataError> {
    SampleSet::open(path, &SampleOptions::default())
}

/// A list with this text; its name tells its format.
fn list(name: &str, text: &str) -> (TempDir, Result<SampleSet, DataError>) {
    listed(name, text, &SampleOptions::default())
}

fn listed(name: &str, text: &str, options: &SampleOptions) -> (TempDir, Result<SampleSet, DataError>) {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join(name), text).unwrap();
    let set = SampleSet::open(root.path().join(name), options);
    (root, set)
}

fn problem(set: Result<SampleSet, DataError>) -> SetProblem {
    match set {
        Err(DataError::Set { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

/// Names and labels, in order.
fn samples(set: &SampleSet) -> Vec<(&str, Option<usize>)> {
    set.samples().iter().map(|sample| (sample.name(), sample.label())).collect()
}

fn names(names: &[&str]) -> SampleOptions {
    let labels = LabelMap::from_names(names.iter().map(|name| (*name).to_owned())).unwrap();
    SampleOptions { labels: Some(labels), ..SampleOptions::default() }
}

#[test]
fn folders_have_the_order_and_the_classes_that_timm_gives_them() {
    let recorded = &expected("samples.json")["folders"];
    let expected: Vec<(&str, Option<usize>)> = recorded["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sample| (sample[0].as_str().unwrap(), Some(sample[1].as_u64().unwrap() as usize)))
        .collect();
    let paths: Vec<&str> = expected.iter().map(|(path, _)| *path).collect();
    let root = tree(&paths);
    let set = open(root.path()).unwrap();
    assert_eq!(samples(&set), expected);
    assert_eq!(json!(set.classes().values().collect::<Vec<_>>()), recorded["classes"]);
    assert!(set.classes().keys().copied().eq(0..set.classes().len()));
}

#[test]
fn a_flat_folder_has_no_labels() {
    let root = tree(&["10.png", "9.png", "notes.txt", "x.bmp", "y.webp"]);
    let set = open(root.path()).unwrap();
    assert_eq!(samples(&set), [("9.png", None), ("10.png", None), ("x.bmp", None), ("y.webp", None)]);
    assert!(set.classes().is_empty());
}

#[test]
fn a_list_of_classes_gives_folders_their_numbers() {
    let root = tree(&["dog/1.png", "cat/1.png", "empty/notes.txt"]);
    let set = SampleSet::open(root.path(), &names(&["bird", "cat", "dog"])).unwrap();
    assert_eq!(samples(&set), [("cat/1.png", Some(1)), ("dog/1.png", Some(2))]);
    assert_eq!(set.classes()[&0], "bird");
    let unknown = problem(SampleSet::open(root.path(), &names(&["cat"])));
    assert!(matches!(unknown, SetProblem::UnknownClass { label, listed: true, .. } if label == "dog"));
}

#[test]
fn rejects_folders_whose_classes_are_unclear() {
    let with = |paths: &[&str]| problem(open(tree(paths).path()));
    assert_eq!(with(&["notes.txt"]), SetProblem::Empty);
    assert_eq!(with(&["a/1.png", "top.png"]), SetProblem::Mixed { image: "top.png".to_owned() });
    let empty = |folder: &str| SetProblem::EmptyClass { folder: folder.to_owned() };
    assert_eq!(with(&["a/1.png", "b/notes.txt"]), empty("b"));
    assert_eq!(with(&["a/1.png", "b/c/d/notes.txt"]), empty("b"));
    assert_eq!(with(&["b/a/1.png", "b/c/d/notes.txt"]), empty("b/c"));
    // What editors and systems keep in hidden folders is no class.
    assert!(open(tree(&["a/1.png", ".cache/notes.txt"]).path()).is_ok());
}

#[test]
fn folders_whose_names_are_numbers_have_to_agree_with_their_places() {
    let root = tree(&["0/a.png", "1/a.png", "3/a.png"]);
    let numbered = SetProblem::NumberedClasses { name: "3".to_owned(), position: 2 };
    assert_eq!(problem(open(root.path())), numbered);
    let labels = |class_ids| {
        let set = SampleSet::open(root.path(), &SampleOptions { class_ids, ..SampleOptions::default() }).unwrap();
        set.samples().iter().map(|sample| sample.label().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(labels(ClassIds::Places), [0, 1, 2]);
    assert_eq!(labels(ClassIds::Numbers), [0, 1, 3]);
    let words = tree(&["1/a.png", "two/a.png"]);
    assert_eq!(samples(&open(words.path()).unwrap()), [("1/a.png", Some(0)), ("two/a.png", Some(1))]);
    let options = SampleOptions { class_ids: ClassIds::Numbers, ..SampleOptions::default() };
    let not = SetProblem::NotANumber { name: "two".to_owned() };
    assert_eq!(problem(SampleSet::open(words.path(), &options)), not);
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let elsewhere = tree(&["far/1.png"]);
    let root = tree(&["a/1.png"]);
    symlink(elsewhere.path().join("far"), root.path().join("b")).unwrap();
    symlink("nowhere", root.path().join("a/broken.png")).unwrap();
    let set = open(root.path()).unwrap();
    assert_eq!(samples(&set), [("a/1.png", Some(0)), ("a/broken.png", Some(0)), ("b/1.png", Some(1))]);
    let error = set.load(1, &Preprocessing::default()).unwrap_err();
    assert!(matches!(error.problem, SampleProblem::Io(_)), "{error}");
    assert!(error.name.ends_with("a/broken.png"));
    // A pipe would keep its reader waiting for ever.
    assert!(std::process::Command::new("mkfifo").arg(root.path().join("b/pipe.png")).status().unwrap().success());
    let set = open(root.path()).unwrap();
    let error = set.load(3, &Preprocessing::default()).unwrap_err();
    assert!(matches!(error.problem, SampleProblem::NotAFile), "{error}");
    symlink(root.path(), root.path().join("a/again")).unwrap();
    assert_eq!(problem(open(root.path())), SetProblem::Loop { folder: "a/again".to_owned() });
}

#[cfg(target_os = "linux")]
#[test]
fn file_names_of_any_bytes_are_samples_and_such_classes_are_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let root = tree(&["a/1.png"]);
    let image = fs::read(fixture("samples/images/rgb.png")).unwrap();
    fs::write(root.path().join("a").join(OsStr::from_bytes(b"odd\xff\n'.png")), image).unwrap();
    let set = open(root.path()).unwrap();
    assert_eq!(set.samples()[1].name(), "a/odd\u{fffd}\n'.png");
    set.load(1, &Preprocessing::default()).unwrap();
    let odd = root.path().join(OsStr::from_bytes(b"\xff"));
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("1.png"), "").unwrap();
    assert_eq!(problem(open(root.path())), SetProblem::FolderName { folder: "\u{fffd}".to_owned() });
}

#[test]
fn tables_are_read_by_the_names_of_their_columns() {
    let expected = [("a, b.png", Some(3)), ("sub/c.png", None), ("d.png", Some(0))];
    for (name, text) in [
        ("s.csv", "\u{feff}id,Path,label\n1,\"a, b.png\",3\n2,sub/c.png,\n3, d.png ,0\n"),
        ("s.TSV", "target\timage\n3\ta, b.png\n\tsub/c.png\n0\td.png"),
        ("s.json", r#"[{"path": "a, b.png", "label": 3, "id": 7}, "sub/c.png", ["d.png", "0"]]"#),
        ("s.jsonl", "{\"file_name\": \"a, b.png\", \"class\": \"3\"}\n\n[\"sub/c.png\", null]\n[\"d.png\", 0]\n"),
    ] {
        let (_root, set) = list(name, text);
        assert_eq!(samples(&set.unwrap()), expected, "{name}");
    }
}

#[test]
fn paths_in_a_list_are_relative_to_its_folder() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    fs::copy(fixture("samples/images/rgb.png"), root.path().join("sub/x.png")).unwrap();
    let absolute = fixture("samples/images/grey.png");
    let text = format!("path,label\nsub/x.png,1\n{},2\nmissing.png,3\n", absolute.display());
    fs::write(root.path().join("list.csv"), text).unwrap();
    let set = open(root.path().join("list.csv")).unwrap();
    let load = |index| set.load(index, &Preprocessing::default());
    assert!(load(0).is_ok() && load(1).is_ok());
    let error = load(2).unwrap_err();
    assert!(matches!(error.problem, SampleProblem::Io(_)));
    assert!(error.to_string().contains("missing.png: it cannot be read: "), "{error}");
}

#[test]
fn labels_in_a_list_are_names_or_numbers() {
    let text = "path,label\na.png,dog\nb.png,1\nc.png,7\n";
    let pairs = [("dog", 5), ("1", 9), ("seven", 7)].map(|(name, id)| (name.to_owned(), id));
    let labels = Some(LabelMap::from_pairs(pairs).unwrap());
    let options = SampleOptions { labels, ..SampleOptions::default() };
    let (_root, set) = listed("s.csv", text, &options);
    // A name first, whatever it looks like; else a number that the list of classes has.
    assert_eq!(samples(&set.unwrap()), [("a.png", Some(5)), ("b.png", Some(9)), ("c.png", Some(7))]);
    let (_root, set) = list("s.csv", text);
    let unknown = |place: &str, label: &str, listed| {
        let (place, label) = (place.to_owned(), label.to_owned());
        SetProblem::UnknownClass { place, label, listed }
    };
    assert_eq!(problem(set), unknown("line 2", "dog", false));
    let (_root, set) = listed("s.json", r#"[["a.png", "dog"], ["b.png", 3]]"#, &names(&["cat", "dog"]));
    assert_eq!(problem(set), unknown("entry 1", "3", true));
    for label in ["-1", "1.0", "+1", "99999999999999999999", "2147483648"] {
        let (_root, set) = list("s.csv", &format!("path,label\na.png,{label}\n"));
        assert_eq!(problem(set), unknown("line 2", label, false));
    }
}

#[test]
fn rejects_lists_of_another_form() {
    for text in ["a.png,3\n", "path,file\nx,y\n", "path,label,class\nx,1,2\n", ""] {
        let (_root, set) = list("s.csv", text);
        assert!(matches!(problem(set), SetProblem::Columns { .. }), "{text:?}");
    }
    for (name, text) in [
        ("s.csv", "path,label\na.png\n"),
        ("s.csv", "path,label\n,3\n"),
        ("s.json", "[1"),
        ("s.json", "{\"path\": \"a.png\"}"),
        ("s.jsonl", "\"a.png\"\n{\n"),
    ] {
        let (_root, set) = list(name, text);
        assert!(matches!(problem(set), SetProblem::Syntax { .. }), "{text:?}");
    }
    for entry in [
        "1",
        "null",
        "\"\"",
        "[\"a\"]",
        "[\"a\", 1, 2]",
        "{}",
        "{\"path\": 3}",
        "[\"a\", -1]",
        "[\"a\", 1.5]",
        "[\"a\", true]",
        "{\"path\": \"a\", \"image\": \"a\"}",
        "[\"a\", 2147483648]",
    ] {
        let (_root, set) = list("s.json", &format!("[\"ok.png\", {entry}]"));
        assert!(matches!(problem(set), SetProblem::Entry { place, .. } if place == "entry 1"), "{entry}");
    }
    for (name, text) in [("s.csv", "path\n"), ("s.json", "[]"), ("s.jsonl", "\n")] {
        let (_root, set) = list(name, text);
        assert_eq!(problem(set), SetProblem::Empty, "{name}");
    }
    let (_root, set) = list("s.xml", "<a/>");
    assert_eq!(problem(set), SetProblem::Kind);
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("s.csv"), b"path\n\xff.png\n").unwrap();
    assert!(matches!(problem(open(root.path().join("s.csv"))), SetProblem::Syntax { .. }));
    assert!(matches!(open(root.path().join("none.csv")), Err(DataError::Io { .. })));
}

#[test]
fn lists_of_classes_are_text_or_json() {
    let root = TempDir::new().unwrap();
    let read = |name: &str, text: &str| {
        fs::write(root.path().join(name), text).unwrap();
        LabelMap::open(root.path().join(name))
    };
    let expected = LabelMap::from_names(["tench".to_owned(), "great white shark".to_owned()]).unwrap();
    for (name, text) in [
        ("a.txt", "\u{feff}tench\r\n great white shark \n\n"),
        ("b.json", r#"["tench", "great white shark"]"#),
        ("c.json", r#"{"great white shark": 1, "tench": 0}"#),
    ] {
        assert_eq!(read(name, text).unwrap(), expected, "{name}");
    }
    assert_eq!(expected.id("tench"), Some(0));
    let problem = |name: &str, text: &str| match read(name, text) {
        Err(DataError::Set { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    for (name, text) in [
        ("a.txt", "a\n\nb\n"),
        ("a.txt", "\n"),
        ("a.json", r#"{"0": "tench"}"#),
        ("a.json", r#"{"tench": -1}"#),
        ("a.json", "[1]"),
        ("a.json", "[]"),
        ("a.json", "3"),
        ("a.json", &format!("{{\"tench\": {}}}", MAX_LABEL + 1)),
    ] {
        assert!(matches!(problem(name, text), SetProblem::ClassList { .. }), "{text:?}");
    }
    assert_eq!(problem("a.txt", "a\nb\na\n"), SetProblem::DuplicateClass { name: "a".to_owned() });
    assert!(matches!(problem("a.json", "["), SetProblem::Syntax { .. }));
}

#[test]
fn shuffles_are_the_same_everywhere_and_come_before_the_limit() {
    for shuffle in expected("samples.json")["shuffles"].as_array().unwrap() {
        let (count, seed) = (shuffle["count"].as_u64().unwrap(), shuffle["seed"].as_u64());
        let text: Vec<Value> = (0..count).map(|i| json!(i.to_string())).collect();
        for limit in [None, Some(5), Some(1000)] {
            let options = SampleOptions { shuffle_seed: seed, limit, ..SampleOptions::default() };
            let (_root, set) = listed("s.json", &json!(text).to_string(), &options);
            let set = set.unwrap();
            let order: Vec<usize> = set.samples().iter().map(Sample::position).collect();
            let recorded = shuffle["order"].as_array().unwrap();
            assert_eq!(json!(order), json!(recorded[..recorded.len().min(limit.unwrap_or(1000))]));
            assert!(set.samples().iter().all(|sample| sample.name() == sample.position().to_string()));
            assert_eq!(set.total(), count as usize);
        }
    }
}

/// Writes arrays as a safetensors file.
fn arrays(tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]) -> (TempDir, std::path::PathBuf) {
    let root = TempDir::new().unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    let path = root.path().join("set.safetensors");
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    (root, path)
}

#[test]
fn rejects_arrays_that_do_not_say_what_they_are() {
    use safetensors::Dtype::{BOOL, F32, I8, I64, U8};
    let bytes = [0u8; 256];
    let refused = |tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]| {
        let (_root, path) = arrays(tensors);
        problem(open(path))
    };
    let images = ("images", U8, &[2usize, 3, 4][..], &bytes[..24]);
    let inputs = ("inputs", F32, &[2usize, 1, 2, 2][..], &bytes[..32]);
    assert!(matches!(refused(&[images, inputs]), SetProblem::ArrayNames { .. }));
    assert!(matches!(refused(&[("labels", I64, &[2], &bytes[..16])]), SetProblem::ArrayNames { .. }));
    for wrong in [
        ("images", I8, &[2usize, 3, 4][..], &bytes[..24]),
        ("images", U8, &[2, 3], &bytes[..6]),
        ("images", U8, &[2, 3, 4, 5], &bytes[..120]),
        ("images", U8, &[1, 3, 8, 8], &bytes[..192]),
        ("inputs", F32, &[2, 3], &bytes[..24]),
        ("inputs", U8, &[1, 3, 4, 4], &bytes[..48]),
    ] {
        assert!(matches!(refused(&[wrong]), SetProblem::Array { name, .. } if name == wrong.0), "{wrong:?}");
    }
    for labels in [
        ("labels", F32, &[2usize][..], &bytes[..8]),
        ("labels", I8, &[2, 1], &bytes[..2]),
        ("labels", BOOL, &[2], &bytes[..2]),
    ] {
        assert!(matches!(refused(&[images, labels]), SetProblem::Array { name, .. } if name == "labels"), "{labels:?}");
    }
    let count = SetProblem::LabelCount { labels: 3, samples: 2 };
    assert_eq!(refused(&[images, ("labels", I8, &[3], &bytes[..3])]), count);
    let value = SetProblem::LabelValue { sample: 1, value: "-1".to_owned(), listed: false };
    assert_eq!(refused(&[images, ("labels", I8, &[2], &[0, 0xff])]), value);
    assert_eq!(refused(&[("images", U8, &[0, 3, 4], &[])]), SetProblem::Empty);
    let (_root, path) = arrays(&[images, ("labels", I8, &[2], &[0, 1])]);
    let listed = SetProblem::LabelValue { sample: 1, value: "1".to_owned(), listed: true };
    assert_eq!(problem(SampleSet::open(&path, &names(&["only"]))), listed);
    let (_root, path) = arrays(&[("images", U8, &[2, 0, 4], &[])]);
    let error = open(path).unwrap().load(0, &Preprocessing::default()).unwrap_err();
    assert!(matches!(error.problem, SampleProblem::NoPixels), "{error}");
    let root = tree(&["set.npz"]);
    assert!(matches!(open(root.path().join("set.npz")), Err(DataError::Arrays(_))));
}

#[test]
fn unreadable_images_are_named_and_the_others_read() {
    let root = TempDir::new().unwrap();
    let image = |name: &str| fs::read(fixture("samples/images").join(name)).unwrap();
    let jpeg = image("jpeg_420.jpg");
    let png = image("rgb.png");
    let mut huge = png.clone();
    // The width in the header; its checksum follows 13 bytes of header.
    huge[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    let checksum = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.to_be_bytes());
    for (name, bytes) in [
        ("a.png", png.as_slice()),
        ("b.png", b"".as_slice()),
        ("c.png", b"hello"),
        ("d.png", &png[..png.len() / 2]),
        ("e.jpg", &jpeg[..jpeg.len() / 2]),
        ("f.png", &huge),
        ("g.jpg", &jpeg[..jpeg.len() - 2]),
        ("h.webp", &image("webp.webp")[..60]),
        ("i.bmp", &image("bmp.bmp")[..60]),
        ("j.jpg", &jpeg),
    ] {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    fs::create_dir(root.path().join("k.png")).unwrap();
    let set = open(root.path()).unwrap();
    let problems: Vec<_> =
        (0..set.len()).map(|i| set.load(i, &Preprocessing::default()).err().map(|error| error.problem)).collect();
    // Of the second JPEG only the marker at the end is missing, and no pixel.
    let [None, Some(b), Some(c), Some(d), Some(e), Some(f), None, Some(h), Some(i), None] = problems.as_slice() else {
        panic!("{problems:?}");
    };
    assert!(matches!(b, SampleProblem::EmptyFile), "{b}");
    assert!(matches!(c, SampleProblem::Format), "{c}");
    for (problem, expected) in [(d, "PNG"), (e, "JPEG"), (h, "WebP"), (i, "BMP")] {
        assert!(matches!(problem, SampleProblem::Decode { format, .. } if *format == expected), "{problem}");
    }
    assert!(matches!(f, SampleProblem::TooLarge { width: 100_000, height: 23 }), "{f}");
    let preprocessing = Preprocessing { input_size: [3, 8, 8], ..Preprocessing::default() };
    let batches: Vec<_> = set.batches(&preprocessing, 4, 2).unwrap().collect();
    let read: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
    assert_eq!(read, [0, 6, 9]);
    assert_eq!(set.load(6, &preprocessing).unwrap(), set.load(9, &preprocessing).unwrap());
    let failed: Vec<usize> = batches.iter().flat_map(|batch| batch.failed.iter().map(|(index, _)| *index)).collect();
    assert_eq!(failed, [1, 2, 3, 4, 5, 7, 8]);
    assert!(batches[0].failed[0].1.name.ends_with("b.png"));
    assert_eq!(batches.iter().map(|batch| batch.data.len()).collect::<Vec<_>>(), [192, 192, 192]);
}

/// The checksum of a PNG chunk, from its name on.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[test]
fn batches_are_the_same_for_any_number_of_threads() {
    let set = open(fixture("mnist")).unwrap();
    let preprocessing = Preprocessing { input_size: [3, 32, 32], ..Preprocessing::default() };
    let read = |batch, threads| {
        let mut data = Vec::new();
        let mut indices = Vec::new();
        for one in set.batches(&preprocessing, batch, threads).unwrap() {
            assert!(one.failed.is_empty() && one.indices.len() <= batch);
            assert_eq!(one.data.len(), one.indices.len() * 3 * 32 * 32);
            indices.extend(one.indices);
            data.extend(one.data);
        }
        assert!(indices.iter().copied().eq(0..set.len()));
        hash(&data)
    };
    let alone: Vec<f32> = (0..set.len()).flat_map(|i| set.load(i, &preprocessing).unwrap()).collect();
    let expected = hash(&alone);
    for (batch, threads) in [(64, 0), (64, 1), (1, 4), (7, 3), (1000, 2), (3, 20)] {
        assert_eq!(read(batch, threads), expected, "{batch} {threads}");
    }
}

#[test]
fn batches_that_are_dropped_early_stop_their_threads() {
    let set = open(fixture("mnist")).unwrap();
    let preprocessing = Preprocessing { input_size: [3, 32, 32], ..Preprocessing::default() };
    for taken in 0..4 {
        // Dropping joins the threads: the test ends only if they do.
        let batches = set.batches(&preprocessing, 8, 4).unwrap();
        assert_eq!(batches.take(taken).count(), taken);
    }
}
