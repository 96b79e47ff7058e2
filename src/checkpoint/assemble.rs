//! Tensors that are stored in parts, put together.

use super::Checkpoint;
use crate::container::{Assembly, DcpProblem, MAX_INFLATED_BYTES, Storage, Stored};
use crate::error::{Error, Result};
use crate::tensor::{TensorView, contiguous_strides};

impl Checkpoint {
    /// The contiguous little-endian bytes of the tensor that `assembly` describes and `storage` is to hold.
    ///
    /// # Errors
    /// [`Error::Dcp`] if it is larger than [`MAX_INFLATED_BYTES`]; as reading any of its parts.
    pub(super) fn assemble(&self, assembly: &Assembly, storage: &Storage) -> Result<Vec<u8>> {
        if storage.size > MAX_INFLATED_BYTES {
            let (tensor, bytes) = (storage.label.to_string(), storage.size);
            let problem = DcpProblem::TooLarge { tensor, bytes, limit: MAX_INFLATED_BYTES };
            return Err(Error::Dcp { path: self.path.clone(), problem });
        }
        // The size is that of the parts, all of which are in the files.
        let mut out = vec![0; storage.size as usize];
        let strides = contiguous_strides(&assembly.shape);
        for chunk in &assembly.chunks {
            let Stored::Dense(part) = &self.contents.tensors[chunk.tensor] else { continue };
            let bytes = self.storage(part.storage)?;
            let order = self.contents.storages[part.storage].order;
            let view = TensorView::new(part.dtype, &part.shape, &part.strides, part.offset, order, &bytes);
            // Every part was checked against the size of its storage when the checkpoint was opened.
            let view = view.unwrap_or_else(|problem| unreachable!("{problem}"));
            copy(&view, &chunk.at, &assembly.shape, &strides, &mut out);
        }
        Ok(out)
    }
}

/// Copies a part to its place in `whole`, which has that shape and those strides.
fn copy(part: &TensorView<'_>, at: &[usize], shape: &[usize], strides: &[usize], whole: &mut [u8]) {
    if part.numel() == 0 {
        return;
    }
    let size = part.dtype().size();
    // The dimensions from `inner` on are whole in the part, so that it lies in runs from the one before them.
    let inner = (0..shape.len()).rev().find(|&d| part.shape()[d] != shape[d]).unwrap_or(0);
    let run: usize = part.shape()[inner..].iter().product();
    let mut index = vec![0; inner];
    for first in (0..part.numel()).step_by(run) {
        let outer: usize = index.iter().enumerate().map(|(d, i)| (at[d] + i) * strides[d]).sum();
        let inside: usize = (inner..shape.len()).map(|d| at[d] * strides[d]).sum();
        let begin = (outer + inside) * size;
        part.read(first, &mut whole[begin..begin + run * size]);
        for d in (0..inner).rev() {
            index[d] += 1;
            if index[d] < part.shape()[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{ByteOrder, DType};

    /// A whole of bytes 0.. of that shape, taken apart at `cuts` of each dimension and put together again.
    fn round_trip(shape: &[usize], cuts: &[&[usize]]) {
        let numel: usize = shape.iter().product();
        let whole: Vec<u8> = (0..numel as u8).collect();
        let strides = contiguous_strides(shape);
        let mut out = vec![0xff; numel];
        let mut regions: Vec<(Vec<usize>, Vec<usize>)> = vec![(Vec::new(), Vec::new())];
        for (d, cuts) in cuts.iter().enumerate() {
            let ends: Vec<usize> = cuts.iter().copied().chain([shape[d]]).collect();
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let spans: Vec<_> = starts.zip(ends).collect();
            let extended = regions.iter().flat_map(|(at, sizes)| {
                spans
                    .iter()
                    .map(move |(start, end)| ([&at[..], &[*start]].concat(), [&sizes[..], &[end - start]].concat()))
            });
            regions = extended.collect();
        }
        for (at, sizes) in &regions {
            // Each part is read out of the whole by its strides, as a view that is not contiguous.
            let offset = at.iter().zip(&strides).map(|(a, s)| a * s).sum();
            let part = TensorView::new(DType::U8, sizes, &strides, offset, ByteOrder::Little, &whole).unwrap();
            copy(&part, at, shape, &strides, &mut out);
        }
        assert_eq!(out, whole, "{shape:?} {cuts:?}");
    }

    #[test]
    fn parts_come_to_their_places() {
        round_trip(&[5, 3, 4], &[&[2], &[], &[]]);
        round_trip(&[5, 3, 4], &[&[], &[1, 2], &[]]);
        round_trip(&[5, 3, 4], &[&[], &[], &[1]]);
        round_trip(&[5, 3, 4], &[&[1, 4], &[2], &[3]]);
        round_trip(&[5, 1, 4], &[&[3], &[], &[2]]);
        round_trip(&[7], &[&[0, 3, 3]]);
        round_trip(&[], &[]);
        round_trip(&[0, 3], &[&[], &[1]]);
    }
}
