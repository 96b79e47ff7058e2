//! Objects that refer to the same large values again and again.

use super::make::{dict, int, list, pickle, pth, scalar, storage, text, tuple};
use super::{Bomb, Refused, Shown};

const LIMIT: &str = "the limit of this reader";
const SHARED: &str = "refer to more than";

/// A dictionary of a million entries, with 0 as keys and values, in memo entry 1.
fn million() -> Vec<u8> {
    [b"K\0q\x000", &dict(1_000_000, |_, out| out.extend(b"h\0h\0"))[..], b"q\x010"].concat()
}

/// The arguments of a plain tensor up to its hooks.
fn arguments() -> Vec<u8> {
    [&storage("torch\nFloatStorage", "0", 4)[..], &int(0), &tuple(&[1]), &tuple(&[1]), b"\x89N"].concat()
}

pub(super) const BOMBS: &[Bomb] = &[
    ("shared-state", Refused(SHARED), || {
        pth(&pickle(&[&million(), b"ca\nb\nq\x02", &list(200_000, |_, out| out.extend(b"h\x02)Rh\x01b"))]))
    }),
    ("shared-parameters", Refused(SHARED), || {
        let none = dict(1_000_000, |_, out| out.extend(b"h\0N"));
        let names = ["_parameters", "_buffers", "_modules"];
        let state: Vec<u8> = names.iter().flat_map(|name| [&text(name)[..], b"h\x01"].concat()).collect();
        let objects = list(200_000, |_, out| out.extend(b"h\x02)Rh\x03b"));
        pth(&pickle(&[b"K\0q\0", &none, b"q\x010ca\nb\nq\x02}(", &state, b"uq\x03", &objects]))
    }),
    ("shared-hidden-buffers", Refused(SHARED), || {
        let hidden = list(500_000, |i, out| {
            out.extend(b"\x8c\x05");
            out.extend(format!("{i:05x}").bytes());
        });
        let names = ["_parameters", "_buffers", "_modules"];
        let state: Vec<u8> = names.iter().flat_map(|name| [&text(name)[..], b"}"].concat()).collect();
        let hidden = [&text("_non_persistent_buffers_set")[..], b"c__builtin__\nset\n", &hidden, b"\x85R"].concat();
        let objects = list(200_000, |_, out| out.extend(b"h\x02)Rh\x03b"));
        pth(&pickle(&[b"ca\nb\nq\x02}(", &state, &hidden, b"uq\x03", &objects]))
    }),
    ("shared-bytes-of-scalars", Shown, || {
        let bytes = [b"B", &(40u32 << 20).to_le_bytes()[..], &vec![7; 40 << 20]].concat();
        let dtype = [b"cnumpy\ndtype\n(", &text("f8")[..], b"K\0K\x01tR"].concat();
        let args = [b"(", &dtype[..], &bytes, b"tq\0"].concat();
        let scalars = list(200_000, |_, out| out.extend(b"h\x01h\0R"));
        pth(&pickle(&[&args, b"cnumpy.core.multiarray\nscalar\nq\x01", &scalars]))
    }),
    ("shared-text-of-bytes", Refused(LIMIT), || {
        let long = format!("{}\u{100}", "x".repeat(40 << 20));
        let args = [b"(", &text(&long)[..], &text("latin1"), b"tq\0"].concat();
        let calls = list(1_000_000, |_, out| out.extend(b"h\x01h\0R"));
        pth(&pickle(&[&args, b"c_codecs\nencode\nq\x01", &calls]))
    }),
    ("shared-metadata", Refused(SHARED), || {
        let args = [b"(", &arguments()[..], b"h\x01tq\x02"].concat();
        let tensors = list(100_000, |_, out| out.extend(b"h\x03h\x02R"));
        pth(&pickle(&[&million(), &args, b"ctorch._utils\n_rebuild_tensor_v2\nq\x03", &tensors]))
    }),
    ("shared-state-of-subclasses", Refused(SHARED), || {
        let inner =
            [&b"ctorch._utils\n_rebuild_wrapper_subclass\nca\nb\n(ca\nb\nctorch\nfloat32\n"[..], &tuple(&[1]), b"t"];
        let args = [b"(", &inner.concat()[..], b"h\x01tq\x02"].concat();
        let tensors = list(100_000, |_, out| out.extend(b"h\x03h\x02R"));
        pth(&pickle(&[&million(), &args, b"ctorch._tensor\n_rebuild_from_type_v2\nq\x03", &tensors]))
    }),
    ("shared-state-of-nested-tensors", Refused(SHARED), || {
        let tensors = list(100_000, |_, out| out.extend(b"h\x03h\x02R"));
        pth(&pickle(&[&million(), b"(h\x01tq\x02ctorch.nested._internal.nested_tensor\n_rebuild_njt\nq\x03", &tensors]))
    }),
    ("subclasses-of-a-long-name", Refused(LIMIT), || {
        let args = [b"(ca\n", &b"x".repeat(4000)[..], b"\nctorch\nfloat32\n", &tuple(&[1]), b"tq\0"].concat();
        let tensors = list(200_000, |_, out| out.extend(b"h\x01h\0R"));
        pth(&pickle(&[&args, b"ctorch._utils\n_rebuild_wrapper_subclass\nq\x01", &tensors]))
    }),
    ("calls-of-a-long-name", Refused(LIMIT), || {
        let calls = list(1_500_000, |_, out| out.extend(b"h\x01)R"));
        pth(&pickle(&[b"ctorch\n", &b"x".repeat(4000), b"\nq\x01", &calls]))
    }),
    ("states-of-a-long-name", Refused(LIMIT), || {
        let state = list(900_000, |_, out| out.extend(b"h\x01)R"));
        let dicts = list(100_000, |_, out| out.extend(b"ccollections\nOrderedDict\n)Rh\0b"));
        pth(&pickle(&[b"ctorch\n", &b"x".repeat(4000), b"\nq\x01", &state, b"q\0", &dicts]))
    }),
    ("meta-tensors", Shown, || {
        let part = [
            b"ctorch._utils\n_rebuild_meta_tensor_no_storage\nq\0(ctorch\nfloat32\n",
            &tuple(&[7; 10])[..],
            b"\x89tq\x01",
        ];
        let tensors = dict(200_000, |i, out| {
            out.extend(text(&i.to_string()));
            out.extend(b"h\0h\x01R");
        });
        pth(&pickle(&[&part.concat(), &tensors]))
    }),
    ("many-names-of-a-wide-tensor", Refused(LIMIT), || {
        let numbers = tuple(&[1; 64]);
        let made = super::make::tensor(&storage("torch\nFloatStorage", "0", 4), 0, &numbers, &numbers);
        let names = dict(260_000, |i, out| {
            out.extend(text(&format!("{i:090}")));
            out.extend(b"h\0");
        });
        pth(&pickle(&[&made, b"q\0", &names]))
    }),
    ("names-and-values", Refused(LIMIT), || {
        let names = dict(260_000, |i, out| {
            out.extend(text(&format!("{i:090}")));
            out.extend(b"h\0");
        });
        let values = super::make::integers(1_400_000);
        pth(&pickle(&[&scalar(), b"q\0", &names, b"q\x01}(", &text("a"), b"h\x01", &text("b"), &values, b"u"]))
    }),
    ("roots", Shown, || {
        let roots = dict(150_000, |i, out| {
            out.extend(text(&format!("{i:080}")));
            out.extend(b"}h\x01h\0s");
        });
        pth(&pickle(&[&scalar(), b"q\0", &text("w"), b"q\x01", &roots]))
    }),
];
