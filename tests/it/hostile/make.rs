//! Parts of hostile files: pickles opcode by opcode, archives record by record.

use std::io::Write as _;

/// A zip archive that is written record by record; zip64 where it has to be.
#[derive(Default)]
pub(super) struct Zip {
    pub(super) out: Vec<u8>,
    pub(super) directory: Vec<u8>,
    pub(super) count: u64,
}

impl Zip {
    pub(super) fn add(&mut self, name: &str, data: &[u8]) {
        self.add_raw(name, 0, crc32fast::hash(data), data.len() as u32, data, b"");
    }

    pub(super) fn add_deflated(&mut self, name: &str, data: &[u8]) {
        let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(data).unwrap();
        let packed = packed.finish().unwrap();
        self.add_raw(name, 8, crc32fast::hash(data), data.len() as u32, &packed, b"");
    }

    /// An entry with the sizes and comment given, whatever its data is.
    pub(super) fn add_raw(&mut self, name: &str, method: u16, crc: u32, size: u32, packed: &[u8], comment: &[u8]) {
        let offset = self.out.len() as u32;
        self.out.extend_from_slice(b"PK\x03\x04");
        self.out.extend_from_slice(&[0; 22]);
        self.out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.out.extend_from_slice(&[0; 2]);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(packed);
        self.record(name, method, crc, packed.len() as u32, size, offset, comment);
    }

    /// A record of the directory alone.
    #[expect(clippy::too_many_arguments, reason = "as many as a record has fields that matter")]
    pub(super) fn record(
        &mut self,
        name: &str,
        method: u16,
        crc: u32,
        packed: u32,
        size: u32,
        offset: u32,
        comment: &[u8],
    ) {
        let out = &mut self.directory;
        out.extend_from_slice(b"PK\x01\x02");
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&method.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for field in [crc, packed, size] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [name.len() as u16, 0, comment.len() as u16] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(comment);
        self.count += 1;
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let Zip { mut out, directory, count } = self;
        let start = out.len() as u64;
        out.extend_from_slice(&directory);
        if count > 0xfffe {
            let end = out.len() as u64;
            out.extend_from_slice(b"PK\x06\x06");
            out.extend_from_slice(&44u64.to_le_bytes());
            out.extend_from_slice(&[0; 12]);
            for field in [count, count, directory.len() as u64, start] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
            out.extend_from_slice(&end.to_le_bytes());
            out.extend_from_slice(&1u32.to_le_bytes());
        }
        out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        let short = count.min(0xffff) as u16;
        out.extend_from_slice(&short.to_le_bytes());
        out.extend_from_slice(&short.to_le_bytes());
        out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
        out.extend_from_slice(&(start as u32).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out
    }
}

/// A checkpoint of that pickle, with one storage of 16 bytes, `0`.
pub(super) fn pth(pickle: &[u8]) -> Vec<u8> {
    let mut zip = Zip::default();
    zip.add("a/data.pkl", pickle);
    zip.add("a/data/0", &[0; 16]);
    zip.finish()
}

/// A pickle of those parts.
pub(super) fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [&b"\x80\x02"[..], &parts.concat(), b"."].concat()
}

/// Many parts, one after another.
pub(super) fn many(count: usize, mut part: impl FnMut(usize, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..count {
        part(i, &mut out);
    }
    out
}

/// A list of that many parts, appended a thousand at a time, as Python does.
pub(super) fn list(count: usize, mut part: impl FnMut(usize, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"](".to_vec();
    for i in 0..count {
        part(i, &mut out);
        if i % 1000 == 999 {
            out.extend_from_slice(b"e(");
        }
    }
    out.push(b'e');
    out
}

/// A dictionary of that many parts.
pub(super) fn dict(count: usize, part: impl FnMut(usize, &mut Vec<u8>)) -> Vec<u8> {
    [b"}(", &many(count, part)[..], b"u"].concat()
}

/// A text.
pub(super) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An integer of 64 bits.
pub(super) fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

/// The persistent id of a storage.
pub(super) fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
    let class = format!("c{class}\n");
    [b"(", &text("storage")[..], class.as_bytes(), &text(key), &text("cpu"), &int(elements), b"tQ"].concat()
}

/// A tensor of the storage and numbers given: `shape` and `strides` are opcodes that make tuples.
pub(super) fn tensor(storage: &[u8], offset: i64, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let function = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [function, storage, &int(offset), shape, strides, b"\x89ccollections\nOrderedDict\n)RtR"].concat()
}

/// A tuple of integers.
pub(super) fn tuple(numbers: &[i64]) -> Vec<u8> {
    [b"(", &numbers.iter().flat_map(|&n| int(n)).collect::<Vec<u8>>()[..], b"t"].concat()
}

/// A tensor of one float of the storage `0`.
pub(super) fn scalar() -> Vec<u8> {
    tensor(&storage("torch\nFloatStorage", "0", 4), 0, &tuple(&[1]), &tuple(&[1]))
}

/// A state dict of one tensor `w`, of a storage of 4 floats.
pub(super) fn one(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let made = tensor(&storage("torch\nFloatStorage", "0", 4), offset, &tuple(shape), &tuple(strides));
    pth(&pickle(&[b"}", &text("w"), &made, b"s"]))
}

/// A safetensors file of that header and data.
pub(super) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// A header of that many tensors of one byte, by name.
pub(super) fn header(count: usize, name: impl Fn(usize) -> String) -> String {
    let entries = (0..count)
        .map(|i| format!(r#""{}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, name(i), i + 1))
        .collect::<Vec<_>>();
    format!("{{{}}}", entries.join(","))
}

/// A list of that many different integers of four bytes.
pub(super) fn integers(count: usize) -> Vec<u8> {
    list(count, |i, out| {
        out.push(b'J');
        out.extend((i as u32).to_le_bytes());
    })
}

/// An object of a class without arguments, with these attributes.
pub(super) fn object(class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let attributes: Vec<u8> =
        attributes.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"c", class.as_bytes(), b"\n)\x81}(", &attributes, b"ub"].concat()
}

/// A legacy stream up to its object.
pub(super) fn legacy() -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    [&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}."].concat()
}

/// A tar archive of these files.
pub(super) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// An array in NumPy's format, version 2, of that header and no data.
pub(super) fn npy(header: &str) -> Vec<u8> {
    [b"\x93NUMPY\x02\0", &(header.len() as u32).to_le_bytes()[..], header.as_bytes()].concat()
}
