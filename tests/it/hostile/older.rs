//! Files of which several parts are kept: each small enough by itself, too much together. And those of formats that repeat
//! something small.

use std::fmt::Write as _;

use super::make::{
    Zip, dict, int, integers, legacy, list, many, npy, object, pickle, pth, scalar, storage, tar, tensor, text, tuple,
};
use super::{Bomb, Refused, Shown};

const LIMIT: &str = "the limit of this reader";

/// A pickle of as many values as one file may have, nearly.
fn large() -> Vec<u8> {
    pickle(&[&integers(2_000_000)])
}

/// Pickles of a tar archive: a number, and the tuple that a record of a storage or tensor begins with.
fn number(n: usize) -> Vec<u8> {
    pickle(&[&int(n as i64)])
}

/// A storage of four floats, as `storages` has it.
fn tar_storage(key: usize) -> Vec<u8> {
    let record = pickle(&[b"(", &int(key as i64), &text("cpu"), b"ctorch\nFloatStorage\nt"]);
    [&record[..], &4u64.to_le_bytes(), &[0; 16]].concat()
}

/// A tensor of ones of that many dimensions in storage 0.
fn tar_tensor(key: usize, dimensions: usize) -> Vec<u8> {
    let record = pickle(&[b"(", &int(key as i64), b"K\0ctorch\nFloatTensor\nt"]);
    let numbers = 1u64.to_le_bytes().repeat(2 * dimensions);
    [&record[..], &(dimensions as u32).to_le_bytes(), &[0; 4], &numbers, &[0; 8]].concat()
}

/// A tar archive of these objects, tensors and storages; the views are a pickle.
fn tar_of(object: &[u8], tensors: (usize, usize), storages: usize, views: &[u8]) -> Vec<u8> {
    let (count, dimensions) = tensors;
    let first = count.max(storages) + 1;
    let tensors = [number(count), many(count, |i, out| out.extend(tar_tensor(first + i, dimensions)))].concat();
    let storages = [&number(storages)[..], &many(storages, |i, out| out.extend(tar_storage(i))), views].concat();
    tar(&[("sys_info", &pickle(&[b"}"])), ("pickle", object), ("tensors", &tensors), ("storages", &storages)])
}

/// A TorchScript archive of that object, those constants and that code.
fn script(object: &[u8], constants: &[u8], file: &str, code: &[u8]) -> Vec<u8> {
    let mut zip = Zip::default();
    zip.add("a/data.pkl", object);
    zip.add("a/constants.pkl", constants);
    zip.add_deflated(file, code);
    zip.add("a/data/0", &[0; 16]);
    zip.finish()
}

/// Code that declares one class, `__torch__.A`.
const CLASS: &[u8] = b"class A(Module):\n  __parameters__ = [\"p\", ]\n";

pub(super) const BOMBS: &[Bomb] = &[
    ("directory-and-values", Refused(LIMIT), || {
        let mut zip = Zip::default();
        zip.add("a/data.pkl", &large());
        (0..250_000).for_each(|i| zip.add(&format!("a/data/{i:0120}"), &[]));
        zip.finish()
    }),
    ("long-root", Refused(LIMIT), || {
        let shape = tuple(&[1]);
        let part = |i: usize, out: &mut Vec<u8>| {
            out.extend(tensor(&storage("torch\nFloatStorage", &i.to_string(), 1), 0, &shape, &shape));
        };
        let mut zip = Zip::default();
        zip.add(&format!("{}/data.pkl", "a".repeat(4_000)), &pickle(&[&list(60_000, part)]));
        zip.finish()
    }),
    ("legacy-object-and-keys", Refused(LIMIT), || {
        let keys = list(2_400_000, |i, out| {
            out.extend(b"\x8c\x06");
            out.extend(format!("{i:06x}").bytes());
        });
        [legacy(), large(), pickle(&[&keys])].concat()
    }),
    ("legacy-values", Refused(LIMIT), || {
        [legacy(), pickle(&[&list(10_000_000, |_, out| out.extend(b"]"))]), pickle(&[b"]"])].concat()
    }),
    ("legacy-values-on-the-stack", Refused(LIMIT), || {
        let part = many(4_000_000, |_, out| out.extend(b"]\x94"));
        let lists = many(12, |_, out| out.extend(list(2_000_000, |_, out| out.extend(b"h\0"))));
        [legacy(), pickle(&[b"Nq\0", &lists, &part]), pickle(&[b"]"])].concat()
    }),
    ("legacy-lists-in-lists", Refused(LIMIT), || {
        let part = many(13, |_, out| out.extend(list(2_000_000, |_, out| out.extend(b"h\0"))));
        // Each list is the last item of the one before it.
        let nested = many(12, |_, out| out.push(b'a'));
        [legacy(), pickle(&[b"Nq\0", &part, &nested]), pickle(&[b"]"])].concat()
    }),
    ("legacy-long-keys", Refused("was cut off"), || {
        let key = |i: usize| format!("{i:04000}");
        let shape = tuple(&[1]);
        let part = |i: usize, out: &mut Vec<u8>| {
            out.extend(tensor(&storage("torch\nFloatStorage", &key(i), 1), 0, &shape, &shape));
        };
        let keys = list(15_000, |i, out| out.extend(text(&key(i))));
        [legacy(), pickle(&[&list(15_000, part)]), pickle(&[&keys])].concat()
    }),
    ("legacy-storage-twice", Refused("the list of storages"), || {
        let end = [&4u64.to_le_bytes()[..], &[0; 16]].concat();
        let keys = pickle(&[&list(1_000_000, |_, out| out.extend(text("0")))]);
        [legacy(), pickle(&[&scalar()]), keys, end].concat()
    }),
    ("tar-storages", Shown, || tar_of(&pickle(&[b"}"]), (0, 1), 260_000, &pickle(&[b"]"]))),
    ("tar-tensors", Shown, || tar_of(&pickle(&[b"}"]), (260_000, 1), 1, &pickle(&[b"]"]))),
    ("tar-wide-tensors", Refused(LIMIT), || tar_of(&pickle(&[b"}"]), (200_000, 64), 1, &pickle(&[b"]"]))),
    ("tar-views", Refused(LIMIT), || {
        let views = list(900_000, |i, out| {
            out.extend(b"(J");
            out.extend((1000 + i as u32).to_le_bytes());
            out.extend(b"K\0K\0K\x01t");
        });
        tar_of(&pickle(&[b"}"]), (1, 1), 1, &pickle(&[&views]))
    }),
    ("tar-tensors-and-values", Refused(LIMIT), || tar_of(&large(), (250_000, 16), 1, &pickle(&[b"]"]))),
    ("tar-files", Refused("files, the limit"), || {
        let files = vec![("a", &b""[..]); 400_000];
        tar(&files)
    }),
    ("tar-count", Refused("past the limit"), || {
        let storages = [number(usize::MAX >> 1), Vec::new()].concat();
        tar(&[("sys_info", b""), ("pickle", b""), ("tensors", b""), ("storages", &storages)])
    }),
    ("script-object-and-constants", Refused(LIMIT), || script(&large(), &large(), "a/code/__torch__.py", CLASS)),
    ("script-classes", Refused("262144 names of classes"), || {
        let code = many(1_400_000, |i, out| out.extend(format!("class {i:x}(Module):\n").bytes()));
        script(&pickle(&[b"}"]), &pickle(&[b"]"]), "a/code/__torch__.py", &code)
    }),
    ("script-classes-of-a-long-module", Refused(LIMIT), || {
        let code = many(100_000, |i, out| out.extend(format!("class {i:x}(Module):\n").bytes()));
        script(&pickle(&[b"}"]), &pickle(&[b"]"]), &format!("a/code/{}.py", "x".repeat(4_000)), &code)
    }),
    ("script-names", Refused("262144 names of classes"), || {
        let names = many(3_000_000, |i, out| out.extend(format!("\"{i:x}\", ").bytes()));
        let code = [b"class A(Module):\n  __buffers__ = [", &names[..], b"]\n"].concat();
        script(&pickle(&[b"}"]), &pickle(&[b"]"]), "a/code/__torch__.py", &code)
    }),
    ("script-shared-state", Refused("refer to more than"), || {
        let state = dict(1_000_000, |_, out| out.extend(b"h\0h\0"));
        let objects = list(100_000, |_, out| out.extend(b"h\x02)\x81h\x01b"));
        let parts = [&text("x")[..], b"q\0", &state, b"q\x01c__torch__\nA\nq\x02", &objects];
        script(&pickle(&parts), &pickle(&[b"]"]), "a/code/__torch__.py", CLASS)
    }),
    ("script-files", Refused("16384 files of code"), || {
        let mut zip = Zip::default();
        zip.add("a/data.pkl", &pickle(&[b"}"]));
        zip.add("a/constants.pkl", &pickle(&[b"]"]));
        (0..200_000).for_each(|i| zip.add_deflated(&format!("a/code/{i}.py"), b""));
        zip.finish()
    }),
    ("package-pickles", Refused(LIMIT), || {
        let mut zip = Zip::default();
        zip.add("a/.data/extern_modules", b"");
        (0..4).for_each(|i| zip.add(&format!("a/m/{i}.pkl"), &large()));
        zip.finish()
    }),
    ("package-of-other-files", Refused("16384 compressed files"), || {
        let mut zip = Zip::default();
        zip.add("a/.data/extern_modules", b"");
        (0..250_000).for_each(|i| zip.add_deflated(&format!("a/m/{i}"), b"no pickle"));
        zip.finish()
    }),
    ("package-of-broken-pickles", Refused(LIMIT), || {
        let broken = pickle(&[&integers(2_000_000), b"\xff"]);
        let mut zip = Zip::default();
        zip.add("a/.data/extern_modules", b"");
        (0..5).for_each(|i| zip.add(&format!("a/m/{i}"), &broken));
        zip.add("a/m/m.pkl", &large());
        zip.finish()
    }),
    ("npz-long-headers", Refused("bytes of headers"), || {
        let array =
            npy(&format!("{{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }}{}", " ".repeat(1_000_000)));
        let mut zip = Zip::default();
        (0..20_000).for_each(|i| zip.add_deflated(&format!("{i}.npy"), &array));
        zip.finish()
    }),
    ("npz-wide-arrays", Refused(LIMIT), || {
        let array = npy(&format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}), }}", "0,".repeat(64)));
        let mut zip = Zip::default();
        (0..250_000).for_each(|i| zip.add(&format!("{i}.npy"), &array));
        zip.finish()
    }),
    ("npz-long-types", Refused(LIMIT), || {
        let mut descr = String::new();
        (0..40_000).for_each(|i| write!(descr, "('{i}', '|u1'), ").unwrap());
        let array = npy(&format!("{{'descr': [{descr}], 'fortran_order': False, 'shape': (0,), }}"));
        let mut zip = Zip::default();
        (0..500).for_each(|i| zip.add_deflated(&format!("{i}.npy"), &array));
        zip.finish()
    }),
    ("npz-arrays", Shown, || {
        let array = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }");
        let mut zip = Zip::default();
        (0..150_000).for_each(|i| zip.add_deflated(&format!("{i}.npy"), &array));
        zip.finish()
    }),
    ("npz-of-a-long-name", Refused("4096 bytes in the name of an entry"), || {
        let array = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }");
        let mut zip = Zip::default();
        zip.add(&format!("{}.npy", "x".repeat(60_000)), &array);
        zip.finish()
    }),
    ("npy-nested", Refused("nests too deeply"), || npy(&format!("{{'descr': {}", "[".repeat(1_000_000)))),
    ("attributes-of-an-object", Shown, || pth(&pickle(&[&object("a\nb", &[("x", vec![b'N'])])]))),
];
