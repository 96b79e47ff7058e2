//! What one thread reads.

use std::ops::Range;

use crc32fast::Hasher;

use super::buffer::Buffer;
use super::simd::Element;
use crate::checkpoint::{TensorData, Unchecked};
use crate::error::Result;

/// A tensor that is read piece by piece, and what becomes of its checksum.
pub(super) struct Input<'r> {
    pub(super) data: TensorData<'r>,
    pub(super) unchecked: Option<(Unchecked<'r>, Hasher)>,
    /// The first element that was fetched.
    first: usize,
    /// Which of the tensor's bytes these are, if they are used where they are stored and not from the buffer.
    stored: Option<Range<usize>>,
    pub(super) buffer: Buffer,
}

impl<'r> Input<'r> {
    /// Pieces of the tensor that are not used where they are stored are read into `buffer`.
    pub(super) fn new(data: TensorData<'r>, unchecked: Option<Unchecked<'r>>, buffer: Buffer) -> Input<'r> {
        let unchecked = unchecked.map(|unchecked| (unchecked, Hasher::new()));
        Input { data, unchecked, first: 0, stored: None, buffer }
    }

    /// Makes elements available: little-endian, one after the other.
    ///
    /// # Errors
    /// As [`TensorData::read`].
    pub(super) fn fetch(&mut self, elements: &Range<usize>) -> Result<()> {
        let size = self.data.dtype().size();
        self.stored = self.data.at_hand(elements).map(|_| elements.start * size..elements.end * size);
        if self.stored.is_none() {
            let bytes = elements.len() * size;
            self.buffer.begin(0, bytes);
            self.data.read(elements, self.buffer.room(bytes))?;
        }
        self.first = elements.start;
        Ok(())
    }

    /// The bytes of elements that were fetched.
    pub(super) fn bytes(&self, elements: &Range<usize>) -> &[u8] {
        let (size, first) = (self.data.dtype().size(), self.first);
        &fetched(&self.data, self.stored.as_ref(), &self.buffer)
            [(elements.start - first) * size..(elements.end - first) * size]
    }

    /// All elements that were fetched, as this processor has them, and the checksum that they are to be taken into. They have to
    /// be of that type.
    pub(super) fn parts<E: Element>(&mut self) -> Option<(&[E::Bits], Option<&mut Hasher>)> {
        if cfg!(target_endian = "big") {
            return None;
        }
        let elements = bytemuck::try_cast_slice(fetched(&self.data, self.stored.as_ref(), &self.buffer)).ok()?;
        Some((elements, self.unchecked.as_mut().map(|(_, crc)| crc)))
    }

    /// Takes elements that were fetched into the checksum: while they are in the first-level cache, or on their way there.
    pub(super) fn check(&mut self, elements: &Range<usize>) {
        if let Some((unchecked, mut crc)) = self.unchecked.take() {
            crc.update(self.bytes(elements));
            self.unchecked = Some((unchecked, crc));
        }
    }
}

/// The bytes that were fetched.
fn fetched<'f>(data: &'f TensorData<'_>, stored: Option<&Range<usize>>, buffer: &'f Buffer) -> &'f [u8] {
    match (stored, data.as_bytes()) {
        (Some(range), Some(bytes)) => &bytes[range.clone()],
        _ => buffer.filled(),
    }
}
