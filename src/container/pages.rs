//! Whether pieces of a file are used where they are mapped, or read.
//!
//! A file is in the page cache in large pages or in pages of 4 KiB, as the file system, and who wrote or read it, brought about. Large ones are mapped
//! in no time, and then need not be copied; small ones, and those that are still on the disk, take longer to be mapped and unmapped than to be read.
//! The system does not say which they are, but the time does that it takes to map a piece, beside the time that it took to read another.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the shortest piece that says something.
const PIECE: usize = 64 << 10;
/// Bytes from one byte that is looked at to the next: systems map some pages around the one that is asked for.
const STRIDE: usize = 16 << 10;
/// How many times as fast as reading a piece mapping it has to be. Measured for 512 KiB: large pages are mapped in 1 to 6 us and read in
/// 24 us at best, small ones mapped in 24 to 40 us and read in 32 us.
const FASTER: u64 = 2;
/// The first pieces are read, and one of so many later, to know how long that takes.
const FIRST: u32 = 4;
const SAMPLE: u32 = 64;
/// Pieces in a row that have to be slow to map: some small pages are in every file, and a thread may be interrupted.
const SLOW: u32 = 3;
/// Pieces that are read then; twice as many after each that is slow again, so often at most.
const PATIENCE: u32 = 8;
const DOUBLED: u32 = 3;
/// Bytes of a file that are used where they are mapped before all of them are unmapped, so that resident memory does not grow with it.
const MAPPED: usize = 256 << 20;

/// What is known of one file. Threads share it; one that comes between two others only makes the choice later or earlier.
#[derive(Debug)]
pub(super) struct Pages {
    /// Picoseconds a byte that reading took when it was fastest; the largest number before anything is read.
    reading: AtomicU64,
    /// Pieces there were.
    pieces: AtomicU32,
    /// Pieces to be read before the map is tried again.
    patience: AtomicU32,
    /// Pieces that were slow since the last fast one.
    slow: AtomicU32,
    /// Bytes that were mapped since all were unmapped.
    mapped: AtomicUsize,
}

impl Default for Pages {
    fn default() -> Pages {
        Pages {
            reading: AtomicU64::new(u64::MAX),
            pieces: AtomicU32::default(),
            patience: AtomicU32::default(),
            slow: AtomicU32::default(),
            mapped: AtomicUsize::default(),
        }
    }
}

impl Pages {
    /// Whether a piece is to be used from the map, where it is by now; else it is to be read.
    pub(super) fn map(&self, piece: &[u8]) -> bool {
        if piece.len() < PIECE || !self.tries() {
            return false;
        }
        let start = Instant::now();
        black_box(piece.iter().step_by(STRIDE).fold(0, |any, byte| any | byte));
        self.mapped(piece.len(), start.elapsed());
        true
    }

    /// Whether the next piece is mapped.
    fn tries(&self) -> bool {
        let number = self.pieces.fetch_add(1, Ordering::Relaxed);
        let sample = number < FIRST || number.is_multiple_of(SAMPLE);
        let patient =
            self.patience.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        !sample && !patient && self.reading.load(Ordering::Relaxed) < u64::MAX
    }

    /// Takes note of how long it took to map a piece.
    fn mapped(&self, bytes: usize, took: Duration) {
        if FASTER * picoseconds(bytes, took) <= self.reading.load(Ordering::Relaxed) {
            self.slow.store(0, Ordering::Relaxed);
        } else if let Some(again) = self.slow.fetch_add(1, Ordering::Relaxed).checked_sub(SLOW - 1) {
            self.patience.store(PATIENCE << again.min(DOUBLED), Ordering::Relaxed);
        }
        self.mapped.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes note of how long it took to read a piece.
    pub(super) fn read(&self, bytes: usize, took: Duration) {
        if bytes >= PIECE {
            self.reading.fetch_min(picoseconds(bytes, took), Ordering::Relaxed);
        }
    }

    /// Whether so much is mapped now that all of it should be unmapped; it then counts as unmapped.
    pub(super) fn is_much(&self) -> bool {
        self.mapped.load(Ordering::Relaxed) > MAPPED && self.mapped.swap(0, Ordering::Relaxed) > MAPPED
    }
}

/// A byte's part, in picoseconds, and at least one.
fn picoseconds(bytes: usize, took: Duration) -> u64 {
    (took.as_nanos() as u64).saturating_mul(1000).checked_div(bytes as u64).unwrap_or_default().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = 512 << 10;

    /// Which of so many pieces would be mapped if each took that long to map, and 40 us to read.
    fn tried(pages: &Pages, count: usize, mapping: Duration) -> Vec<usize> {
        let mut tried = Vec::new();
        for number in 0..count {
            if pages.tries() {
                pages.mapped(UNIT, mapping);
                tried.push(number);
            } else {
                pages.read(UNIT, Duration::from_micros(40));
            }
        }
        tried
    }

    #[test]
    fn pieces_that_are_mapped_fast_are_mapped_and_others_read() {
        let fast = tried(&Pages::default(), 200, Duration::from_micros(20));
        assert_eq!(fast, (4..200).filter(|n| n % 64 != 0).collect::<Vec<_>>());
        let slow = tried(&Pages::default(), 200, Duration::from_micros(21));
        assert_eq!(slow, [4, 5, 6, 15, 32, 65, 130, 195]);
    }

    #[test]
    fn two_slow_pieces_are_an_accident_and_a_file_that_becomes_fast_is_mapped_again() {
        let pages = Pages::default();
        assert_eq!(tried(&pages, 6, Duration::from_millis(2)), [4, 5]);
        assert_eq!(tried(&pages, 2, Duration::from_micros(1)), [0, 1]);
        assert_eq!(tried(&pages, 20, Duration::from_millis(2)), [0, 1, 2, 11]);
        assert_eq!(tried(&pages, 12, Duration::from_micros(1)), [8, 9, 10, 11]);
        assert_eq!(tried(&pages, 2, Duration::from_millis(2)), [0, 1]);
        assert_eq!(tried(&pages, 1, Duration::from_micros(1)), [0]);
    }

    #[test]
    fn short_pieces_are_read_and_teach_nothing() {
        let pages = Pages::default();
        pages.read(PIECE - 1, Duration::from_micros(40));
        assert_eq!(pages.reading.load(Ordering::Relaxed), u64::MAX);
        pages.read(PIECE, Duration::ZERO);
        assert_eq!(pages.reading.load(Ordering::Relaxed), 1);
        assert!(!pages.map(&vec![0; PIECE - 1]));
        assert_eq!(pages.pieces.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_mapped_is_bounded() {
        let pages = Pages::default();
        assert_eq!(tried(&pages, 512, Duration::ZERO).len(), 501);
        assert!(!pages.is_much());
        tried(&pages, 20, Duration::ZERO);
        assert!(pages.is_much());
        assert!(!pages.is_much());
    }
}
