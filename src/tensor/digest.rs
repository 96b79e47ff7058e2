//! SHA-256 of tensors and files.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::TensorView;

/// SHA-256 of the tensor's contiguous little-endian bytes, in lower-case hexadecimal.
///
/// The same as `hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()` in Python.
#[must_use]
pub fn sha256(view: &TensorView<'_>) -> String {
    let mut hash = Sha256::new();
    view.for_each_piece(&mut Vec::new(), |piece| hash.update(piece));
    hex(&hash.finalize())
}

/// SHA-256 of `bytes`, in lower-case hexadecimal.
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of bytes that come in pieces.
#[derive(Default)]
pub(crate) struct FileHash(Sha256);

impl FileHash {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// In lower-case hexadecimal.
    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
