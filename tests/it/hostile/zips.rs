//! Archives whose directory lies.

use super::make::{Zip, list, pickle, pth};
use super::{Bomb, Refused, Shown};

/// An archive with an empty dictionary as its object, and more.
fn archive(more: impl FnOnce(&mut Zip)) -> Vec<u8> {
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &pickle(&[b"}"]));
    more(&mut zip);
    zip.finish()
}

pub(super) const BOMBS: &[Bomb] = &[
    ("overlap", Refused("overlap"), || {
        archive(|zip| {
            let inner = zip.out.len() as u32;
            zip.add("a/data/0", &[0; 64]);
            // The same entry again, by its own local header inside of another's data.
            let mut nested = Zip::default();
            nested.add("a/data/1", &[0; 16]);
            zip.add("a/data/2", &nested.out);
            let offset = zip.out.len() - nested.out.len();
            zip.record("a/data/1", 0, 0, 16, 16, offset as u32, b"");
            assert!(inner > 0);
        })
    }),
    ("one-entry-many-names", Refused("overlap"), || {
        archive(|zip| (0..100_000).for_each(|i| zip.record(&format!("a/data/{i}"), 0, 0, 16, 16, 0, b"")))
    }),
    ("entry-past-the-end", Refused("outside of the file"), || {
        archive(|zip| zip.record("a/data/0", 0, 0, 16, 16, u32::MAX - 1, b""))
    }),
    ("data-past-the-end", Refused("outside of the file"), || {
        archive(|zip| {
            zip.add("a/data/0", &[0; 16]);
            zip.record("a/data/1", 0, 0, 1 << 31, 1 << 31, 0, b"");
            let at = zip.directory.len() - 8;
            zip.directory[at..].copy_from_slice(b"a/data/0");
            let offset = (zip.out.len() - 16 - 30 - 8) as u32;
            let at = zip.directory.len() - 12;
            zip.directory[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        })
    }),
    ("same-name", Refused("occurs twice"), || {
        archive(|zip| {
            zip.add("a/data/0", &[0; 16]);
            zip.add("a/data/0", &[0; 16]);
        })
    }),
    ("many-entries", Refused("entries, the limit"), || {
        archive(|zip| (0..1_000_000).for_each(|i| zip.add(&format!("a/data/{i}"), &[0])))
    }),
    ("entries-at-the-limit", Shown, || archive(|zip| (0..263_000).for_each(|i| zip.add(&format!("a/data/{i}"), &[0])))),
    ("declared-entries", Refused("entries, the limit"), || archive(|zip| zip.count = 1 << 62)),
    ("more-declared-entries", Refused("record is missing"), || archive(|zip| zip.count = 60_000)),
    ("long-comments", Refused("bytes of directory"), || {
        let comment = vec![b'x'; 65_000];
        archive(|zip| (0..1_000).for_each(|i| zip.add_raw(&format!("a/data/{i}"), 0, 0, 1, &[0], &comment)))
    }),
    ("long-entry-names", Refused("bytes of directory"), || {
        let name = "x".repeat(60_000);
        archive(|zip| (0..1_000).for_each(|i| zip.add(&format!("a/data/{i}{name}"), &[0])))
    }),
    ("deflated-zeros", Refused("no pickle opcode"), || {
        let mut zip = Zip::default();
        zip.add_deflated("a/data.pkl", &vec![0; 64 << 20]);
        zip.finish()
    }),
    ("deflated-past-the-limit", Refused("past the limit"), || {
        let mut zip = Zip::default();
        zip.add_deflated("a/data.pkl", &vec![0; 100 << 20]);
        zip.finish()
    }),
    ("deflated-more-than-declared", Refused("more bytes than the directory says"), || {
        let mut zip = Zip::default();
        zip.add_deflated("b", &vec![0; 100 << 20]);
        let packed = zip.out[31..].to_vec();
        let mut zip = Zip::default();
        zip.add_raw("a/data.pkl", 8, 0, 1 << 20, &packed, b"");
        zip.finish()
    }),
    ("deflated-less-than-declared", Refused("expand by more than deflate can"), || {
        let mut zip = Zip::default();
        zip.add_raw("a/data.pkl", 8, 0, 60 << 20, &[3, 0], b"");
        zip.finish()
    }),
    ("deflated-lists", Refused("limit"), || {
        let mut zip = Zip::default();
        zip.add_deflated("a/data.pkl", &pickle(&[&list(50_000_000, |_, out| out.push(b']'))]));
        zip.finish()
    }),
    ("deflated-integers", Refused("limit"), || {
        let mut zip = Zip::default();
        let part = |i: usize, out: &mut Vec<u8>| out.extend([&b"J"[..], &(i as u32).to_le_bytes()].concat());
        zip.add_deflated("a/data.pkl", &pickle(&[&list(12_000_000, part)]));
        zip.finish()
    }),
    ("cut-off", Refused("cut off"), || {
        let mut file = pth(&pickle(&[b"}"]));
        file.truncate(file.len() - 1);
        file
    }),
];
