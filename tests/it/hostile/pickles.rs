//! Pickles that are small to store and large to read.

use super::make::{dict, int, list, many, one, pickle, pth, scalar, storage, tensor, text, tuple};
use super::{Bomb, Refused, Shown};

const LIMIT: &str = "the limit of this reader";

/// Many dictionaries that share one attribute: a list of as many numbers, and what `last` appends.
fn searched_by_many(last: &[u8]) -> Vec<u8> {
    let state = list(400_000, |i, out| out.extend(int(i as i64)));
    let dicts = list(400_000, |_, out| out.extend(b"ccollections\nOrderedDict\n)Rh\0b"));
    pth(&pickle(&[&state, last, b"q\0", &dicts]))
}

/// What the stack machine has to withstand.
pub(super) const BOMBS: &[Bomb] = &[
    ("one-global", Shown, || pth(&pickle(&[&list(3_500_000, |_, out| out.extend(b"ca\nb\n"))]))),
    ("globals", Refused("65536 different classes"), || {
        pth(&pickle(&[&list(2_500_000, |i, out| out.extend(format!("c{i:x}\nb\n").bytes()))]))
    }),
    ("stack-globals", Refused("65536 different classes"), || {
        pth(&pickle(&[&list(2_000_000, |i, out| {
            out.extend(b"\x8c\x06");
            out.extend(format!("{i:06x}").bytes());
            out.extend(b"\x8c\x01b\x93");
        })]))
    }),
    ("long-global", Refused("4096 bytes in the name"), || {
        pth(&pickle(&[b"c", &b"x".repeat(30 << 20), b"\nFloatStorage\n"]))
    }),
    ("texts", Refused(LIMIT), || {
        pth(&pickle(&[&list(6_000_000, |i, out| {
            out.extend(b"\x8c\x06");
            out.extend(format!("{i:06x}").bytes());
        })]))
    }),
    ("integers", Refused(LIMIT), || {
        pth(&pickle(&[&list(10_000_000, |i, out| out.extend([&b"J"[..], &(i as u32).to_le_bytes()].concat()))]))
    }),
    ("floats", Refused(LIMIT), || {
        pth(&pickle(&[&list(7_000_000, |i, out| out.extend([&b"G"[..], &(i as f64).to_be_bytes()].concat()))]))
    }),
    ("one-integer", Refused(LIMIT), || pth(&pickle(&[&list(30_000_000, |_, out| out.extend(b"K\x01"))]))),
    ("long-integers", Shown, || {
        let digits = [b"L", &b"9".repeat(4300)[..], b"L\n0"].concat();
        pth(&pickle(&[&digits.repeat(15_000), b"N"]))
    }),
    ("empty-lists", Refused(LIMIT), || pth(&pickle(&[&list(60_000_000, |_, out| out.push(b']'))]))),
    ("lists-of-one", Refused(LIMIT), || pth(&pickle(&[&list(15_000_000, |_, out| out.extend(b"]Na"))]))),
    ("tuples", Refused(LIMIT), || pth(&pickle(&[&list(20_000_000, |_, out| out.extend(b"N\x85"))]))),
    ("long-bytes", Shown, || {
        let part = [b"B", &(1u32 << 20).to_le_bytes()[..], &vec![7; 1 << 20]].concat();
        pth(&pickle(&[&list(60, |_, out| out.extend(&part))]))
    }),
    ("long-text-line", Refused(LIMIT), || pth(&pickle(&[b"V", &b"\xe9".repeat(60 << 20), b"\n"]))),
    ("long-quoted-line", Refused(LIMIT), || pth(&pickle(&[b"S'", &b"\\x41".repeat(15 << 20), b"'\n"]))),
    ("memo", Refused("4194304 memo entries"), || pth(&pickle(&[b"N", &b"\x94".repeat(60 << 20)]))),
    ("memo-keys", Refused(LIMIT), || {
        let puts = many(12_000_000, |i, out| out.extend([&b"r"[..], &(u32::MAX - i as u32).to_le_bytes()].concat()));
        pth(&pickle(&[b"N", &puts]))
    }),
    ("huge-memo-key", Shown, || pth(&pickle(&[b"Np18446744073709551615\nr\xff\xff\xff\xff"]))),
    ("overlong-memo-key", Refused("PUT is malformed"), || pth(&pickle(&[b"Np18446744073709551616\n"]))),
    ("marks", Refused("marks"), || pth(&pickle(&[&b"(".repeat(60 << 20)]))),
    ("mark-and-pop", Shown, || pth(&pickle(&[&b"(1".repeat(31 << 20), b"N"]))),
    ("duplicates", Refused("values on the stack"), || pth(&pickle(&[b"N", &b"2".repeat(60 << 20)]))),
    ("shared-items", Refused(LIMIT), || pth(&pickle(&[b"Nq\0", &list(30_000_000, |_, out| out.extend(b"h\0"))]))),
    ("shared-entries", Refused(LIMIT), || pth(&pickle(&[b"Nq\0", &dict(15_000_000, |_, out| out.extend(b"h\0h\0"))]))),
    ("objects", Refused(LIMIT), || pth(&pickle(&[b"ca\nb\nq\0", &list(12_000_000, |_, out| out.extend(b"h\0)R"))]))),
    ("objects-with-state", Refused(LIMIT), || {
        pth(&pickle(&[b"ca\nb\nq\0", &list(8_000_000, |_, out| out.extend(b"h\0)RNb"))]))
    }),
    ("states", Refused(LIMIT), || pth(&pickle(&[b"ca\nb\n)R", &b"Nb".repeat(30 << 20)]))),
    ("extensions", Refused(LIMIT), || pth(&pickle(&[&list(20_000_000, |_, out| out.extend(b"\x82\x01"))]))),
    ("buffers", Refused(LIMIT), || pth(&pickle(&[&list(40_000_000, |_, out| out.push(0x97))]))),
    ("persistent-ids", Refused(LIMIT), || pth(&pickle(&[&list(20_000_000, |_, out| out.extend(b"NQ"))]))),
    ("huge-pickle", Refused("67108864"), || pth(&pickle(&[&b"N0".repeat(33 << 20), b"N"]))),
    ("lying-lengths", Refused("ends here"), || pth(&pickle(&[b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc"]))),
];

/// What the objects have to be read with.
pub(super) const TREES: &[Bomb] = &[
    ("nested-tuples", Refused("levels of nesting"), || pth(&pickle(&[&scalar(), &b"\x85".repeat(100_000)]))),
    ("nested-tuples-of-nothing", Refused("levels of nesting"), || pth(&pickle(&[b"N", &b"\x85".repeat(100_000)]))),
    ("nested-objects", Refused("levels of nesting"), || {
        pth(&pickle(&[&scalar(), &many(300_000, |_, out| out.extend(b"\x85q\0ca\nb\nh\0R"))]))
    }),
    ("laughs", Refused("the limit of this reader"), || {
        pth(&pickle(&[&scalar(), &many(60, |_, out| out.extend(b"q\0](h\0h\0h\0h\0h\0h\0h\0h\0e"))]))
    }),
    ("laughing-dicts", Refused("the limit of this reader"), || {
        let level = |_, out: &mut Vec<u8>| out.extend(b"q\0}(K\0h\0K\x01h\0K\x02h\0K\x03h\0u");
        pth(&pickle(&[&scalar(), &many(60, level)]))
    }),
    ("laughs-without-tensors", Refused("steps to walk through"), || {
        pth(&pickle(&[b"Nq\0", &many(60, |_, out| out.extend(b"q\0](h\0h\0h\0h\0h\0h\0h\0e"))]))
    }),
    ("long-path", Refused("4096 bytes in a tensor's name"), || {
        let level = |_, out: &mut Vec<u8>| {
            out.extend(b"q\0}");
            out.extend(text(&"x".repeat(4000)));
            out.extend(b"h\0s");
        };
        pth(&pickle(&[&scalar(), &many(100, level)]))
    }),
    ("long-name", Refused("4096 bytes in a tensor's name"), || {
        pth(&pickle(&[b"}", &text(&"x".repeat(50 << 20)), &scalar(), b"s"]))
    }),
    ("long-names", Refused("25165824 bytes in all tensors' names"), || {
        let names = dict(100_000, |_, out| out.extend(b"h\x01h\0"));
        pth(&pickle(&[&scalar(), b"q\0", &text(&"x".repeat(4000)), b"q\x01", &names]))
    }),
    ("many-names-of-one-tensor", Refused("262144 tensors"), || {
        pth(&pickle(&[&scalar(), b"q\0", &list(5_000_000, |_, out| out.extend(b"h\0"))]))
    }),
    ("same-name", Refused("two tensors have this full name"), || {
        pth(&pickle(&[&scalar(), b"q\0", &text("w"), b"q\x01", &dict(2, |_, out| out.extend(b"h\x01h\0"))]))
    }),
    ("tensors-of-one-shape", Refused("refer to more than"), || {
        let parts = [b"ctorch._utils\n_rebuild_tensor_v2\nq\0(", &storage("torch\nFloatStorage", "0", 4)[..], &int(0)];
        let shape = tuple(&[1; 64]);
        let made = [&parts.concat()[..], &shape, &shape, b"\x89Ntq\x01"].concat();
        pth(&pickle(&[&made, &list(1_000_000, |_, out| out.extend(b"h\0h\x01R"))]))
    }),
    ("tensors", Refused(LIMIT), || {
        let one = scalar();
        pth(&pickle(&[&list(300_000, |_, out| out.extend(&one))]))
    }),
    ("storages", Refused(LIMIT), || {
        let shape = tuple(&[1]);
        let part = |i: usize, out: &mut Vec<u8>| {
            out.extend(tensor(&storage("torch\nFloatStorage", &i.to_string(), 1), 0, &shape, &shape));
        };
        pth(&pickle(&[&list(280_000, part)]))
    }),
    ("long-storage-key", Refused("key is too long"), || {
        let shape = tuple(&[1]);
        let long = storage("torch\nFloatStorage", &"9".repeat(50 << 20), 1);
        pth(&pickle(&[&tensor(&long, 0, &shape, &shape)]))
    }),
    ("missing-storage", Refused("is missing"), || {
        let shape = tuple(&[1]);
        pth(&pickle(&[&tensor(&storage("torch\nFloatStorage", "7", 1), 0, &shape, &shape)]))
    }),
    ("huge-storage", Refused("a storage"), || {
        let shape = tuple(&[1]);
        pth(&pickle(&[&tensor(&storage("torch\nFloatStorage", "0", i64::MAX), 0, &shape, &shape)]))
    }),
    ("negative-storage", Refused("its size is no number"), || {
        let shape = tuple(&[1]);
        pth(&pickle(&[&tensor(&storage("torch\nFloatStorage", "0", -4), 0, &shape, &shape)]))
    }),
    ("expanded", Refused("repeats 16 stored bytes"), || one(0, &[1 << 40], &[0])),
    ("expanded-past-memory", Refused("larger than any memory"), || one(0, &[1 << 62], &[0])),
    ("expanded-by-two", Refused("larger than any memory"), || one(0, &[1 << 32, 1 << 32], &[0, 0])),
    ("huge-stride", Refused("larger than any memory"), || one(0, &[2], &[i64::MAX])),
    ("past-the-end", Refused("it needs 20 bytes"), || one(4, &[1], &[1])),
    ("negative-shape", Refused("offset, size or stride"), || one(0, &[-1], &[1])),
    ("negative-stride", Refused("offset, size or stride"), || one(3, &[2], &[-1])),
    ("negative-offset", Refused("offset, size or stride"), || one(-1, &[1], &[1])),
    ("many-dimensions", Refused("more than 64 dimensions"), || one(0, &[1; 100_000], &[1; 100_000])),
    // What is known to hold no tensor is not searched again; what holds one at its end is.
    ("searched-by-many", Shown, || searched_by_many(b"")),
    ("searched-again-and-again", Refused(LIMIT), || searched_by_many(&[b"(", &scalar()[..], b"e"].concat())),
    ("shared-arguments", Refused("refer to more than"), || {
        let args = [b"(", &b"N".repeat(1 << 20)[..], b"tq\0"].concat();
        pth(&pickle(&[&args, b"ca\nb\nq\x01", &list(1_000_000, |_, out| out.extend(b"h\x01h\0R"))]))
    }),
    ("shared-pairs", Refused("refer to more than"), || {
        let pairs = list(200_000, |_, out| out.extend(b"NN\x86"));
        let dicts = list(100_000, |_, out| out.extend(b"h\x01h\0R"));
        pth(&pickle(&[&pairs, b"\x85q\0ccollections\nOrderedDict\nq\x01", &dicts]))
    }),
];
