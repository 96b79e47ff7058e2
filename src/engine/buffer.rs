//! Bytes on their way to a file.

/// Bytes of a page of memory.
const PAGE: usize = 4096;

/// What types of elements are aligned to.
const ALIGNMENT: usize = 8;

/// Bytes that lie in their page as they will lie in the file's.
///
/// The system copies what is written with instructions that are a third slower where the two differ, and several times slower if
/// the file's are a few bytes ahead (measured on AMD's Zen 4).
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where the first byte is.
    first: usize,
    filled: usize,
}

impl Buffer {
    /// Empties it for bytes that belong at a place of the file; so many are expected, for more it grows.
    pub(crate) fn begin(&mut self, at: u64, room: usize) {
        if self.bytes.len() < room + 2 * PAGE {
            // Not 0, for which the memory would only be there at the first read, which is timed (`container/pages.rs`).
            self.bytes = vec![1; room + 2 * PAGE];
        }
        // Elements of every type are to be written here, wherever the file has them: then they are a few bytes ahead of the file.
        let within = (at % PAGE as u64) as usize;
        self.first = self.bytes.as_ptr().addr().wrapping_neg() % PAGE + within.next_multiple_of(ALIGNMENT);
        self.filled = 0;
    }

    /// Where the next bytes are to be put; what is there now may be anything.
    pub(crate) fn room(&mut self, bytes: usize) -> &mut [u8] {
        let begin = self.first + self.filled;
        self.filled += bytes;
        let end = begin + bytes;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[begin..end]
    }

    /// Takes back the last bytes.
    pub(super) fn take_back(&mut self, bytes: usize) {
        self.filled -= bytes;
    }

    /// Bytes of memory that it takes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// All bytes that were put.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.first..self.first + self.filled]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_lie_in_their_page_as_in_the_file_s() {
        let mut buffer = Buffer::default();
        for (at, within) in [(0, 0), (524_288, 0), (16_136, 16_136 % 4096), (4097, 8), (4095, 0)] {
            buffer.begin(at, 100);
            buffer.room(3).copy_from_slice(&[1, 2, 3]);
            assert_eq!(buffer.filled().as_ptr().addr() % PAGE, within, "{at}");
            assert_eq!(buffer.filled(), [1, 2, 3]);
        }
    }

    #[test]
    fn it_grows_and_keeps_what_it_holds() {
        let mut buffer = Buffer::default();
        buffer.begin(4095, 10);
        let bytes: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        for piece in bytes.chunks(7000) {
            buffer.room(piece.len()).copy_from_slice(piece);
        }
        buffer.room(5).fill(9);
        buffer.take_back(5);
        assert_eq!(buffer.filled(), bytes);
    }
}
