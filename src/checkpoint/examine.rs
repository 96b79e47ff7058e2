//! Statistics and hashes of tensors, on all processors.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

use super::StateDict;
use crate::engine::{Buffer, Progress};
use crate::error::Result;
use crate::parallel::{self, Watched};
use crate::tensor::{FileHash, Gather, Stats};

/// Bytes that are read at a time.
const PIECE: usize = 512 << 10;

/// Bytes of them that go through everything while they are in the first-level cache.
const BLOCK: usize = 16 << 10;

/// What was found of a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examined {
    /// SHA-256 of its elements, if it was asked for.
    pub sha256: Option<String>,
    /// Statistics of its elements, if they were asked for and are real numbers.
    pub stats: Option<Stats>,
}

impl StateDict<'_> {
    /// Reads the tensors with those indices and computes their statistics and hashes, several at a time; `progress` is told
    /// of bytes that are read.
    ///
    /// # Errors
    /// As [`StateDict::tensor`]; [`crate::Error::Shorter`] and [`crate::Error::Changed`]; [`crate::Error::Cancelled`].
    pub fn examine(
        &self,
        tensors: &[usize],
        stats: bool,
        hash: bool,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Examined>> {
        let watched = Watched::default();
        // What is expanded in memory is so one tensor at a time.
        let making = Mutex::new(());
        let look = |buffer: &mut Buffer, number: usize| {
            let made = !self.is_in_place(tensors[number]);
            let _alone = made.then(|| making.lock().unwrap_or_else(PoisonError::into_inner));
            let (data, unchecked) = self.unchecked(tensors[number])?;
            let (size, numel) = (data.dtype().size(), data.view().numel());
            let mut stats = if stats { Gather::new(data.dtype()).ok() } else { None };
            let mut sha256 = hash.then(FileHash::default);
            let mut crc = Hasher::new();
            for first in (0..numel).step_by(PIECE / size) {
                let piece = first..numel.min(first + PIECE / size);
                let bytes = if let Some(bytes) = data.at_hand(&piece) {
                    bytes
                } else {
                    buffer.begin(0, PIECE);
                    let bytes = buffer.room(piece.len() * size);
                    data.read(&piece, bytes)?;
                    bytes
                };
                for block in bytes.chunks(BLOCK) {
                    if unchecked.is_some() {
                        crc.update(block);
                    }
                    stats = stats.and_then(|mut stats| stats.add(block).is_ok().then_some(stats));
                    sha256.iter_mut().for_each(|hash| hash.update(block));
                }
                watched.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            if let Some(unchecked) = unchecked {
                unchecked.settle(crc.finalize())?;
            }
            Ok(Examined { sha256: sha256.map(FileHash::finish), stats: stats.map(Gather::finish) })
        };
        let examined =
            parallel::run(tensors.len(), parallel::threads(None), &watched, progress, Buffer::default, look)?;
        // Of a file that was cut meanwhile, the rest of a page that is mapped is zeros.
        self.check_unchanged()?;
        Ok(examined)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use crate::checkpoint::{Checkpoint, RootChoice};
    use crate::engine::Progress;
    use crate::error::Error;

    /// Cuts a file when it is told of progress.
    struct Cut(PathBuf);

    impl Progress for Cut {
        fn advance(&mut self, _: u64) {
            File::options().write(true).open(&self.0).unwrap().set_len(100).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_cut_meanwhile_has_no_statistics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let values: Vec<u8> = (0..1000).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1000], &values).unwrap();
        std::fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let state_dict = checkpoint.state_dict(&RootChoice::default()).unwrap();
        let found = state_dict.examine(&[0], true, false, &mut ()).unwrap();
        assert_eq!(found[0].stats.as_ref().and_then(|stats| stats.mean()), Some(499.5));
        assert!(matches!(state_dict.examine(&[0], true, false, &mut Cut(path)), Err(Error::Shorter { .. })));
    }
}
