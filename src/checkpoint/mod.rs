//! A checkpoint file, opened: the one type that everything else reads from.

mod assemble;
mod compute;
mod derive;
mod examine;
mod roots;
mod shard;
mod state_dict;
mod values;

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

pub use compute::{Operation, OperationProblem};
pub use derive::{DeriveProblem, Expr};
pub use examine::Examined;
pub use roots::{Root, RootChoice, RootProblem};
pub use shard::Shard;
pub(crate) use state_dict::Unchecked;
pub use state_dict::{Placement, StateDict};
pub use values::MAX_VALUES_SHOWN;

use crate::container::zip::{Entry, Method};
use crate::container::{
    self, Container, Contents, Extent, MAX_INFLATED_BYTES, OtherKind, Reached, Source, Stored, StoredTensor, ZipProblem,
};
use crate::error::{Error, Result};
use crate::parallel::Watched;
use crate::tensor::{ByteOrder, DType, FileHash, TensorSpec, TensorView, ViewProblem, check_view, sha256_bytes};

/// Why a tensor of a file that can be opened cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// Its shape, strides or offset do not fit its storage.
    #[error("{0}")]
    View(ViewProblem),
    /// The file has no bytes for it.
    #[error("its data, entry {entry:?}, is missing from the file: get the file again")]
    MissingStorage {
        /// The entry that should hold them.
        entry: String,
    },
    /// The bytes in the file are more or fewer than the object tree declares.
    #[error(
        "its data, entry {entry:?}, has {found} bytes where {declared} are declared: the file is damaged, get it again"
    )]
    StorageSize {
        /// The entry that holds them.
        entry: String,
        /// Bytes declared.
        declared: u64,
        /// Bytes found.
        found: u64,
    },
    /// Two tensors have the same full name.
    #[error("two tensors have this full name; choose a part of the file that holds it once")]
    DuplicateName,
    /// It is made of others, which do not fit together.
    #[error("{0}")]
    Derive(#[from] DeriveProblem),
    /// It is no plain array of elements.
    #[error("it is {0}: {advice}", advice = .0.advice())]
    NotDense(OtherKind),
}

/// An open checkpoint: its directory and object tree are read, its tensors stay in the memory map until asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    contents: Contents,
    /// For each storage, whether its checksum is known to be right.
    verified: Vec<Mutex<bool>>,
    /// The bytes that were made last: tensors that share a storage follow each other.
    made: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
    reached: Vec<Reached>,
    roots: Vec<Root>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`, whatever its container, and checks that every tensor's bytes are there.
    ///
    /// Nothing in the file is executed, and no tensor data is read.
    ///
    /// # Errors
    /// [`Error`] naming the file and, as it applies, the tensor and the byte offset: not a checkpoint, truncated,
    /// malformed, or past one of the limits listed in the crate's documentation.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        Checkpoint::new(path, container::open(path)?)
    }

    /// Opens a checkpoint that is in memory, as [`Checkpoint::open`] does one in a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Checkpoint> {
        let path = path.as_ref();
        Checkpoint::new(path, container::of_bytes(path, bytes)?)
    }

    fn new(path: &Path, mut contents: Contents) -> Result<Checkpoint> {
        let Contents { tree, tensors, budget, .. } = &mut contents;
        let reached = tree.tensors(tensors, budget).map_err(|limit| Error::Tree { path: path.to_owned(), limit })?;
        for tensor in &reached {
            check(&contents, tensor.tensor).map_err(|problem| Error::Tensor {
                path: path.to_owned(),
                tensor: tensor.path.clone(),
                problem,
            })?;
        }
        let verified = contents.storages.iter().map(|_| Mutex::new(false)).collect();
        let roots = roots::find(&reached);
        Ok(Checkpoint { path: path.to_owned(), contents, verified, made: Mutex::new(None), reached, roots })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold it: the one that was opened, or the one that was found in a folder; for a checkpoint in several
    /// files the index first.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.contents.sources.iter().map(|source| source.path.as_path())
    }

    /// Which of several files it is, if it is one file whose name says so: the tensors of the others are missing.
    #[must_use]
    pub fn lone_shard(&self) -> Option<Shard> {
        match self.contents.sources.as_slice() {
            [only] => Shard::of_path(&only.path),
            _ => None,
        }
    }

    /// The kind of file.
    #[must_use]
    pub fn container(&self) -> Container {
        self.contents.container
    }

    /// The size of the file in bytes; of all files together if there are several.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.contents.sources.iter().map(|source| source.map.len() as u64).sum()
    }

    /// Every mapping in the file that directly holds tensors under text keys, in file order.
    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// How many tensors the file holds in all; a shared tensor counts once for each of its names.
    #[must_use]
    pub fn tensor_count(&self) -> usize {
        self.reached.len()
    }

    /// What the file holds besides tensors (arguments, epoch, metrics, ...), as one JSON object by key; tensors and
    /// mappings of nothing but tensors are left out. At most [`MAX_VALUES_SHOWN`] values are shown.
    #[must_use]
    pub fn values(&self) -> serde_json::Map<String, serde_json::Value> {
        values::of(&self.contents.tree)
    }

    /// SHA-256 of the whole file, in hexadecimal. For several files it is that of the listing that `sha256sum` prints of
    /// them, by their names without folders, in the order of the names.
    #[must_use]
    pub fn sha256(&self) -> String {
        // Nobody stops it.
        self.sha256_watched(&Watched::default()).unwrap_or_default()
    }

    /// The name, size and time of change (in nanoseconds since 1970) of each of its files.
    pub(crate) fn stamps(&self) -> Vec<(String, u64, Option<u128>)> {
        let stamps = self.contents.sources.iter().map(|source| {
            let since = source.map.modified().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, source.map.len() as u64, since.map(|since| since.as_nanos()))
        });
        stamps.collect()
    }

    /// As [`Checkpoint::sha256`], while somebody watches; `None` if it is to stop.
    pub(crate) fn sha256_watched(&self, watched: &Watched) -> Option<String> {
        /// Bytes hashed between two looks at `stop`: about a hundredth of a second.
        const PIECE: usize = 16 << 20;
        let mut lines = Vec::new();
        for source in &self.contents.sources {
            let mut hash = FileHash::default();
            for piece in source.map.chunks(PIECE) {
                if watched.stop.load(Ordering::Relaxed) {
                    return None;
                }
                hash.update(piece);
                watched.done.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            lines.push((source.path.file_name().unwrap_or_default().to_string_lossy(), hash.finish()));
        }
        if let [(_, hash)] = lines.as_slice() {
            return Some(hash.clone());
        }
        lines.sort();
        let listing: String = lines.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
        Some(sha256_bytes(listing.as_bytes()))
    }

    /// The tensors of the root that `choice` names.
    ///
    /// # Errors
    /// [`Error::Root`] if there is no such root, none at all, or several and none is the obvious one;
    /// [`Error::Tensor`] if a name occurs twice in it.
    pub fn state_dict(&self, choice: &RootChoice) -> Result<StateDict<'_>> {
        let selected = roots::select(&self.roots, &self.reached, choice).map_err(|problem| Error::Root {
            path: self.path.clone(),
            option: roots::OPTION,
            problem,
        })?;
        if let Some(tensor) = duplicate(&selected.tensors) {
            let (path, tensor) = (self.path.clone(), tensor.to_owned());
            return Err(Error::Tensor { path, tensor, problem: TensorProblem::DuplicateName });
        }
        let mut specs = Vec::with_capacity(selected.tensors.len());
        let mut stored = Vec::with_capacity(selected.tensors.len());
        let mut others = Vec::new();
        for (name, tensor) in selected.tensors {
            match &self.contents.tensors[tensor] {
                Stored::Dense(dense) => {
                    specs.push(TensorSpec { name, dtype: dense.dtype, shape: dense.shape.clone() });
                    stored.push(dense);
                }
                Stored::Other(other) => others.push((name, other)),
            }
        }
        let outside = self.reached.len() - specs.len() - others.len();
        let mut by_name: Vec<usize> = (0..specs.len()).collect();
        by_name.sort_by(|&a, &b| specs[a].name.cmp(&specs[b].name));
        Ok(StateDict { checkpoint: self, root: selected.path, specs, by_name, stored, others, outside, derived: None })
    }

    /// Checks that every file is still what it was when it was opened, as far as its size and its time tell.
    ///
    /// # Errors
    /// [`Error::Shorter`] and [`Error::Changed`]; [`Error::Io`].
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.contents.sources.iter().try_for_each(|source| source.map.check_unchanged(&source.path))
    }

    /// The bytes of a storage, decompressed if need be, its checksum verified on first use.
    fn storage(&self, index: usize) -> Result<Bytes<'_>> {
        let storage = &self.contents.storages[index];
        let source = &self.contents.sources[storage.source];
        source.map.check_unchanged(&source.path)?;
        let zip = |problem: ZipProblem| Error::Zip { path: source.path.clone(), problem };
        match &storage.extent {
            Extent::Missing => Ok(Bytes::Mapped(source, &[])),
            Extent::Mapped(range) => Ok(Bytes::Mapped(source, &source.map[range.clone()])),
            Extent::Member { entry, skip } if entry.method == Method::Stored => {
                let bytes = entry.packed_bytes(&source.map).map_err(zip)?;
                self.verify(index, entry, bytes).map_err(zip)?;
                Ok(Bytes::Mapped(source, &bytes[*skip..]))
            }
            Extent::Assembled(assembly) => self.made(index, || self.assemble(assembly, storage)),
            Extent::Member { entry, skip } => self.made(index, || {
                let mut bytes = entry.inflate(&source.map, MAX_INFLATED_BYTES).map_err(zip)?;
                bytes.drain(..*skip);
                Ok(bytes)
            }),
        }
    }

    /// Verifies the checksum of the storage `index`, whose entry has these bytes, if that was not done before.
    fn verify(&self, index: usize, entry: &Entry, bytes: &[u8]) -> Result<(), ZipProblem> {
        // Held while it is computed: who comes meanwhile waits for the result and need not compute it as well.
        let mut verified = self.verified[index].lock().unwrap_or_else(PoisonError::into_inner);
        if !*verified {
            entry.check(bytes)?;
            *verified = true;
        }
        Ok(())
    }

    /// Whether the checksum of that storage is known to be right.
    fn is_verified(&self, index: usize) -> bool {
        *self.verified[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that have to be made, of which those of one storage are kept.
    fn made(&self, index: usize, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Bytes<'_>> {
        // A panic elsewhere cannot leave this half-written: the pair is replaced as a whole.
        let lock = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut last = lock();
            if let Some((_, bytes)) = last.as_ref().filter(|(known, _)| *known == index) {
                return Ok(Bytes::Made(Arc::clone(bytes)));
            }
            // Let go of the one before first, so that no two are held.
            *last = None;
        }
        let bytes = Arc::new(make()?);
        *lock() = Some((index, Arc::clone(&bytes)));
        Ok(Bytes::Made(bytes))
    }
}

/// A name that several of these have.
fn duplicate(tensors: &[(String, usize)]) -> Option<&str> {
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.array_windows().find(|[first, second]| first == second).map(|[first, _]| *first)
}

/// Bytes that are worth being read from the file; less, of small tensors, is copied from the map.
const WORTH: usize = 16 << 10;

/// The bytes of a storage: in the map, or made from what is there.
#[derive(Clone, Debug)]
enum Bytes<'c> {
    Mapped(&'c Source, &'c [u8]),
    Made(Arc<Vec<u8>>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(_, bytes) => bytes,
            Bytes::Made(bytes) => bytes,
        }
    }
}

/// Checks that the tensor's storage is there, whole, and holds all of its elements.
fn check(contents: &Contents, tensor: usize) -> Result<(), TensorProblem> {
    let Stored::Dense(tensor) = &contents.tensors[tensor] else { return Ok(()) };
    let storage = &contents.storages[tensor.storage];
    if let Extent::Assembled(assembly) = &storage.extent {
        // Its parts are plain tensors of files.
        assembly.chunks.iter().try_for_each(|chunk| check(contents, chunk.tensor))?;
    }
    if matches!(storage.extent, Extent::Missing) && storage.declared > 0 {
        return Err(TensorProblem::MissingStorage { entry: contents.label(storage) });
    }
    if storage.size != storage.declared {
        let entry = contents.label(storage);
        return Err(TensorProblem::StorageSize { entry, declared: storage.declared, found: storage.size });
    }
    check_view(tensor.dtype, &tensor.shape, &tensor.strides, tensor.offset, storage.size)
        .map(drop)
        .map_err(TensorProblem::View)
}

/// The data of one tensor: mapped, or decompressed and held here.
#[derive(Clone, Debug)]
pub struct TensorData<'c> {
    stored: Cow<'c, StoredTensor>,
    order: ByteOrder,
    storage: Bytes<'c>,
}

impl TensorData<'_> {
    /// The tensor's elements.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        let StoredTensor { dtype, shape, strides, offset, .. } = &*self.stored;
        match TensorView::new(*dtype, shape, strides, *offset, self.order, &self.storage) {
            Ok(view) => view,
            // Every tensor was checked against the size of its storage when the checkpoint was opened.
            Err(problem) => unreachable!("{problem}"),
        }
    }

    /// The contiguous little-endian bytes, where they are stored just so; `None` for a tensor that has to be gathered.
    pub(crate) fn as_bytes(&self) -> Option<&[u8]> {
        self.view().as_bytes()
    }

    /// The bytes of elements where they are, little-endian and one after the other, if they are aligned there as their type is and
    /// that is the fastest: see [`Map::is_at_hand`](crate::container::Map::is_at_hand). Elsewhere they are to be [read](TensorData::read).
    pub(crate) fn at_hand(&self, elements: &Range<usize>) -> Option<&[u8]> {
        let size = self.dtype().size();
        let bytes = &self.view().as_bytes()?[elements.start * size..elements.end * size];
        let aligned = bytes.as_ptr().addr().is_multiple_of(size);
        let at_hand = match &self.storage {
            Bytes::Mapped(source, _) => aligned && source.map.is_at_hand(bytes),
            Bytes::Made(_) => aligned,
        };
        at_hand.then_some(bytes)
    }

    /// Reads elements into `into`, which is as long as they are: little-endian, one after the other; from the file, if it is worth it,
    /// and not from the map.
    ///
    /// # Errors
    /// [`Error::Shorter`]; [`Error::Io`].
    pub(crate) fn read(&self, elements: &Range<usize>, into: &mut [u8]) -> Result<()> {
        let size = self.dtype().size();
        if let (Bytes::Mapped(source, _), Some(bytes)) = (&self.storage, self.view().as_bytes())
            && into.len() >= WORTH
            && source.map.read(&source.path, &bytes[elements.start * size..elements.end * size], into)?
        {
            return Ok(());
        }
        self.view().read(elements.start, into);
        Ok(())
    }

    /// Another view of the same storage; `offset` counts elements from the first of this tensor.
    pub(crate) fn reshaped<'a>(
        &'a self,
        shape: &'a [usize],
        strides: &'a [usize],
        offset: usize,
    ) -> Result<TensorView<'a>, ViewProblem> {
        let offset = self.stored.offset.saturating_add(offset);
        TensorView::new(self.stored.dtype, shape, strides, offset, self.order, &self.storage)
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.stored.dtype
    }
}
