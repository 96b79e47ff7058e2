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
    /// The elements that are in the buffer.
    piece: Range<usize>,
    pub(super) buffer: Buffer,
}

impl<'r> Input<'r> {
    /// Pieces of the tensor are read into `buffer`.
    pub(super) fn new(data: TensorData<'r>, unchecked: Option<Unchecked<'r>>, buffer: Buffer) -> Input<'r> {
        let unchecked = unchecked.map(|unchecked| (unchecked, Hasher::new()));
        Input { data, unchecked, piece: 0..0, buffer }
    }

    /// Reads elements into the buffer: little-endian, one after the other.
    ///
    /// # Errors
    /// As [`TensorData::read`].
    pub(super) fn fetch(&mut self, elements: &Range<usize>) -> Result<()> {
        let bytes = elements.len() * self.data.dtype().size();
        self.buffer.begin(0, bytes);
        self.data.read(elements, self.buffer.room(bytes))?;
        self.piece = elements.clone();
        Ok(())
    }

    /// The bytes of elements that were fetched.
    pub(super) fn bytes(&self, elements: &Range<usize>) -> &[u8] {
        let (size, first) = (self.data.dtype().size(), self.piece.start);
        &self.buffer.filled()[(elements.start - first) * size..(elements.end - first) * size]
    }

    /// All elements that were fetched, as this processor has them, and the checksum that they are to be taken into. They have to
    /// be of that type.
    pub(super) fn parts<E: Element>(&mut self) -> Option<(&[E::Bits], Option<&mut Hasher>)> {
        if cfg!(target_endian = "big") {
            return None;
        }
        let elements = bytemuck::try_cast_slice(self.buffer.filled()).ok()?;
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
