//! The zip archive of `torch.save`, as PyTorch 2.15 writes it, but for its optional `.data/serialization_id`.
//!
//! ```text
//! archive/data.pkl             protocol 2: OrderedDict of _rebuild_tensor_v2 (_v3 for the newer types), in the
//!                              dictionaries that lead to it, if any
//! archive/.format_version      1
//! archive/.storage_alignment   64
//! archive/byteorder            little
//! archive/data/0 ...           one entry per storage, in the order of the plan's steps
//! archive/version              3
//! central directory, zip64 records where anything passes 4 GiB or 65,535 entries, end record
//! ```
//!
//! Entries are stored, and their data begins at multiples of 64 bytes: an extra field `FB` pads the local header. Sizes
//! and checksum follow the data in a descriptor, as in miniz, which PyTorch writes with; the offsets are those that
//! `torch.load` computes when `calculate_storage_offsets` is set.

use crate::pickle::Emitter;
use crate::plan::Plan;

/// Data begins at multiples of this many bytes.
const ALIGNMENT: u64 = 64;
/// The folder of all entries.
const ROOT: &str = "archive";
/// What a 32-bit field holds when the value is in a zip64 field.
const LARGE: u64 = u32::MAX as u64;
/// The bit of a general-purpose flag that says that sizes and checksum follow the data.
const DESCRIPTOR: u16 = 1 << 3;
/// The bit that says that the name is UTF-8.
const UTF8: u16 = 1 << 11;
/// 1 January 1980, the earliest date of the format: nothing in the output depends on when it was made.
const DATE: u16 = 0x0021;

/// One entry: its name, where its local header and data begin, and how much data it has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    header: u64,
    data: u64,
    size: u64,
}

impl Entry {
    /// The entry that begins at `at`. The padding is computed as in PyTorch's `inline_container.cc`.
    fn at(at: u64, name: String, size: u64) -> Entry {
        let start = at + 30 + name.len() as u64 + zip64_local(at, size).len() as u64 + 4;
        Entry { data: start.next_multiple_of(ALIGNMENT), header: at, name, size }
    }

    fn large(&self) -> bool {
        self.size >= LARGE || self.header >= LARGE
    }

    fn flags(&self) -> u16 {
        UTF8 | if self.size > 0 { DESCRIPTOR } else { 0 }
    }

    /// Where the next entry begins.
    fn end(&self) -> u64 {
        let descriptor = match (self.size, self.large()) {
            (0, _) => 0,
            (_, false) => 16,
            (_, true) => 24,
        };
        self.data + self.size + descriptor
    }

    /// Everything up to the data.
    fn local_header(&self) -> Vec<u8> {
        let mut out = b"PK\x03\x04".to_vec();
        let zip64 = zip64_local(self.header, self.size);
        let padding = self.data - self.header - 30 - self.name.len() as u64 - zip64.len() as u64 - 4;
        let version: u16 = if self.large() { 45 } else { 0 };
        for field in [version, self.flags(), 0, 0, DATE] {
            out.extend(field.to_le_bytes());
        }
        let size = if self.size >= LARGE { LARGE as u32 } else { 0 };
        for field in [0, size, size] {
            out.extend(field.to_le_bytes());
        }
        out.extend((self.name.len() as u16).to_le_bytes());
        out.extend((zip64.len() as u16 + 4 + padding as u16).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend(zip64);
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.resize((self.data - self.header) as usize, b'Z');
        out
    }

    /// What follows the data.
    fn descriptor(&self, crc: u32) -> Vec<u8> {
        let mut out = Vec::new();
        if self.size > 0 {
            out.extend(b"PK\x07\x08");
            out.extend(crc.to_le_bytes());
            for _ in 0..2 {
                if self.large() {
                    out.extend(self.size.to_le_bytes());
                } else {
                    out.extend((self.size as u32).to_le_bytes());
                }
            }
        }
        out
    }

    fn central_bytes(&self) -> u64 {
        46 + self.name.len() as u64 + zip64_central(self).len() as u64
    }

    fn central_record(&self, crc: u32) -> Vec<u8> {
        let mut out = b"PK\x01\x02".to_vec();
        let zip64 = zip64_central(self);
        let version: u16 = if self.large() { 45 } else { 0 };
        for field in [0, version, self.flags(), 0, 0, DATE] {
            out.extend(field.to_le_bytes());
        }
        let size = self.size.min(LARGE) as u32;
        for field in [crc, size, size] {
            out.extend(field.to_le_bytes());
        }
        for field in [self.name.len() as u16, zip64.len() as u16, 0, 0, 0] {
            out.extend(field.to_le_bytes());
        }
        out.extend(0u32.to_le_bytes());
        out.extend((self.header.min(LARGE) as u32).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend(zip64);
        out
    }
}

fn zip64_field(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let values: Vec<u8> = values.into_iter().flat_map(u64::to_le_bytes).collect();
    if values.is_empty() {
        return values;
    }
    [&1u16.to_le_bytes()[..], &(values.len() as u16).to_le_bytes(), &values].concat()
}

/// The zip64 field of a local header: sizes (zero here; they follow the data) and offset, as miniz writes it.
fn zip64_local(header: u64, size: u64) -> Vec<u8> {
    let sizes = if size >= LARGE { vec![0, 0] } else { vec![] };
    zip64_field(sizes.into_iter().chain((header >= LARGE).then_some(header)))
}

fn zip64_central(entry: &Entry) -> Vec<u8> {
    let sizes = if entry.size >= LARGE { vec![entry.size; 2] } else { vec![] };
    zip64_field(sizes.into_iter().chain((entry.header >= LARGE).then_some(entry.header)))
}

/// The layout of a .pth file: the pickle is made, and every offset is known.
#[derive(Clone, Debug)]
pub(super) struct PthLayout {
    pickle: Vec<u8>,
    entries: Vec<Entry>,
    order: Vec<usize>,
    directory: u64,
    directory_bytes: u64,
}

impl PthLayout {
    /// The layout of `plan`'s tensors under the keys of `root`, outermost first.
    pub(super) fn new(plan: &Plan, root: &[&str]) -> PthLayout {
        let pickle = pickle(plan, root);
        let mut entries: Vec<Entry> = Vec::with_capacity(plan.steps.len() + NOTES.len() + 2);
        let mut add = |name: String, size: u64| {
            let at = entries.last().map_or(0, Entry::end);
            entries.push(Entry::at(at, format!("{ROOT}/{name}"), size));
        };
        add("data.pkl".into(), pickle.len() as u64);
        for (name, text) in NOTES {
            add((*name).into(), text.len() as u64);
        }
        for (key, step) in plan.steps.iter().enumerate() {
            add(format!("data/{key}"), step.bytes());
        }
        add("version".into(), VERSION.len() as u64);
        let directory = entries.last().map_or(0, Entry::end);
        let directory_bytes = entries.iter().map(Entry::central_bytes).sum();
        PthLayout { pickle, entries, order: (0..plan.steps.len()).collect(), directory, directory_bytes }
    }

    /// The steps of the plan in the order in which they are to be written.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where the data of the step at that place of the order begins.
    pub(super) fn begin(&self, place: usize) -> u64 {
        self.entries[FRONT + place].data
    }

    /// All that comes before the data of the first step.
    pub(super) fn front(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let texts = NOTES.iter().map(|(_, text)| text.as_bytes());
        for (entry, data) in self.entries.iter().zip(std::iter::once(self.pickle.as_slice()).chain(texts)) {
            out.extend(entry.local_header());
            out.extend(data);
            out.extend(entry.descriptor(crc32fast::hash(data)));
        }
        out.extend(self.entries[FRONT].local_header());
        out
    }

    /// What stands between the data of the step at that place, which has this checksum, and the data that follows.
    pub(super) fn tail(&self, place: usize, crc: u32) -> Vec<u8> {
        let mut out = self.entries[FRONT + place].descriptor(crc);
        out.extend(self.entries[FRONT + place + 1].local_header());
        out
    }

    /// All that follows the tail of the last step, and where it begins; `crcs` are the checksums of the steps, in order.
    pub(super) fn end(&self, crcs: &[u32]) -> (u64, Vec<u8>) {
        let version = crc32fast::hash(VERSION.as_bytes());
        let last = &self.entries[FRONT + crcs.len()];
        let mut out = VERSION.as_bytes().to_vec();
        out.extend(last.descriptor(version));
        let texts = NOTES.iter().map(|(_, text)| crc32fast::hash(text.as_bytes()));
        let front = std::iter::once(crc32fast::hash(&self.pickle)).chain(texts);
        for (entry, crc) in self.entries.iter().zip(front.chain(crcs.iter().copied()).chain([version])) {
            out.extend(entry.central_record(crc));
        }
        out.extend(self.end_records());
        (last.data, out)
    }

    /// The size of the file, in bytes.
    #[must_use]
    pub(super) fn file_bytes(&self) -> u64 {
        self.directory + self.directory_bytes + self.end_records().len() as u64
    }

    /// The end of the archive: zip64 records where they are needed, and the end record.
    fn end_records(&self) -> Vec<u8> {
        let (count, size, start) = (self.entries.len() as u64, self.directory_bytes, self.directory);
        let mut out = Vec::new();
        if count >= u64::from(u16::MAX) || size >= LARGE || start >= LARGE {
            out.extend(b"PK\x06\x06");
            out.extend(44u64.to_le_bytes());
            out.extend([45, 0, 45, 0]);
            out.extend([0; 8]);
            for field in [count, count, size, start] {
                out.extend(field.to_le_bytes());
            }
            out.extend(b"PK\x06\x07");
            out.extend(0u32.to_le_bytes());
            out.extend((start + size).to_le_bytes());
            out.extend(1u32.to_le_bytes());
        }
        out.extend(b"PK\x05\x06");
        out.extend([0; 4]);
        for _ in 0..2 {
            out.extend((count.min(u64::from(u16::MAX)) as u16).to_le_bytes());
        }
        for field in [size, start] {
            out.extend((field.min(LARGE) as u32).to_le_bytes());
        }
        out.extend([0; 2]);
        out
    }
}

const NOTES: &[(&str, &str)] = &[(".format_version", "1"), (".storage_alignment", "64"), ("byteorder", "little")];
const VERSION: &str = "3\n";
/// Entries before that of the first step.
const FRONT: usize = 1 + NOTES.len();

/// The object tree: an `OrderedDict` of dense tensors on the CPU, in one dictionary for each key of `root`.
fn pickle(plan: &Plan, root: &[&str]) -> Vec<u8> {
    let mut out = Emitter::new();
    for key in root {
        out.empty_dict().str(key);
    }
    out.global("collections", "OrderedDict").empty_tuple().reduce().mark();
    for output in &plan.outputs {
        let step = &plan.steps[output.step];
        let dtype = output.spec.dtype;
        out.str(&output.spec.name);
        out.global(
            "torch._utils",
            if dtype.storage_class().is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" },
        );
        out.mark().mark().str("storage");
        let elements = match dtype.storage_class() {
            Some(class) => {
                out.global("torch", class);
                step.numel as u64
            }
            None => {
                out.global("torch.storage", "UntypedStorage");
                step.bytes()
            }
        };
        out.str(&output.step.to_string()).str("cpu").int(elements).tuple().persistent();
        out.int(output.offset as u64);
        for numbers in [&output.spec.shape, &output.strides] {
            out.mark();
            for &n in numbers {
                out.int(n as u64);
            }
            out.tuple();
        }
        out.false_().global("collections", "OrderedDict").empty_tuple().reduce();
        if dtype.storage_class().is_none() {
            out.global("torch", dtype.name());
        }
        out.tuple().reduce();
    }
    out.set_items();
    for _ in root {
        out.set_item();
    }
    out.stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_padded_as_pytorch_pads() {
        // The entries of a file that PyTorch 2.15 wrote: name, size, header offset, length of the extra field.
        let recorded = [
            ("z/data.pkl", 363, 0, 0x18),
            ("z/.format_version", 1, 443, 0x16),
            ("z/.storage_alignment", 2, 529, 0x3d),
            ("z/byteorder", 6, 658, 0x05),
            ("z/data/0", 20, 726, 0x04),
            ("z/data/1", 0, 804, 0x36),
            ("z/data/2", 6, 896, 0x1a),
            ("z/version", 2, 982, 0x43),
            ("z/.data/serialization_id", 40, 1106, 0x38),
        ];
        let mut at = 0;
        for (name, size, header, extra) in recorded {
            let entry = Entry::at(at, name.into(), size);
            assert_eq!((entry.header, entry.data), (header, header + 30 + name.len() as u64 + extra), "{name}");
            assert_eq!(entry.local_header().len() as u64, entry.data - entry.header);
            at = entry.end();
        }
    }

    #[test]
    fn large_entries_get_zip64_fields() {
        let small = Entry::at(64, "a".into(), LARGE - 1);
        assert!(!small.large());
        let large = Entry::at(64, "a".into(), LARGE);
        assert_eq!(large.data % ALIGNMENT, 0);
        assert_eq!(large.end() - large.data - large.size, 24);
        assert_eq!(large.central_record(0).len() as u64, large.central_bytes());
        assert_eq!(zip64_central(&large).len(), 20);
        let late = Entry::at(LARGE, "a".into(), 1);
        assert_eq!(late.data % ALIGNMENT, 0);
        assert_eq!(zip64_central(&late).len(), 12);
        assert_eq!(late.local_header().len() as u64, late.data - late.header);
    }
}
