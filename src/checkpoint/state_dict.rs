//! The tensors of one model in a checkpoint.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::derive::Derived;
use super::{Bytes, Checkpoint, TensorData, TensorProblem};
use crate::container::zip::{Entry, Method};
use crate::container::{Extent, OtherTensor, Source, StoredTensor};
use crate::error::{Error, Result};
use crate::tensor::{TensorSpec, check_view, is_contiguous};

/// The tensors under one root of a checkpoint, in file order, by their names relative to it.
#[derive(Clone, Debug)]
pub struct StateDict<'c> {
    pub(super) checkpoint: &'c Checkpoint,
    pub(super) root: String,
    pub(super) specs: Vec<TensorSpec>,
    /// Indices of `specs`, by name.
    pub(super) by_name: Vec<usize>,
    pub(super) stored: Vec<&'c StoredTensor>,
    pub(super) others: Vec<(String, &'c OtherTensor)>,
    pub(super) outside: usize,
    /// What the tensors are made of, if they are not those that are stored.
    pub(super) derived: Option<Arc<Derived<'c>>>,
}

impl<'c> StateDict<'c> {
    /// The checkpoint it is part of.
    #[must_use]
    pub fn checkpoint(&self) -> &'c Checkpoint {
        self.checkpoint
    }

    /// The dotted path of the root; empty for the top of the file.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// What the tensors are, in file order; an index into this slice names a tensor elsewhere.
    #[must_use]
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Tensors under this root that are no plain arrays (sparse, quantised, without data, ...), with their names. They can
    /// be listed, and nothing else.
    #[must_use]
    pub fn others(&self) -> &[(String, &'c OtherTensor)] {
        &self.others
    }

    /// Checks that every tensor under this root is a plain array.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first that is not.
    pub fn require_dense(&self) -> Result<()> {
        match self.others.first() {
            None => Ok(()),
            Some((name, other)) => Err(Error::Tensor {
                path: self.checkpoint.path.clone(),
                tensor: name.clone(),
                problem: TensorProblem::NotDense(other.kind.clone()),
            }),
        }
    }

    /// The file that the elements of the tensor with that index are in, and what it is called there. A tensor that is made of others
    /// is called what it is here.
    pub(crate) fn origin(&self, index: usize) -> (&Path, &str) {
        let derived = self.derived.as_ref().and_then(|derived| derived.origin(index));
        derived.unwrap_or_else(|| (self.checkpoint.path(), &self.specs[index].name))
    }

    /// Checks that the files that the tensors are in are still what they were when they were opened.
    ///
    /// # Errors
    /// [`Error::Shorter`] and [`Error::Changed`]; [`Error::Io`].
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.checkpoint.check_unchanged()?;
        let mut inputs = self.derived.iter().flat_map(|derived| derived.inputs());
        inputs.try_for_each(StateDict::check_unchanged)
    }

    /// How many tensors of the file are not under this root.
    #[must_use]
    pub fn outside(&self) -> usize {
        self.outside
    }

    /// The index of the tensor with that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|&index| self.specs[index].name.as_str().cmp(name));
        found.ok().map(|at| self.by_name[at])
    }

    /// The data of the tensor with that index.
    ///
    /// # Errors
    /// [`Error::Zip`] if the stored data does not expand as it should, or its checksum is wrong; [`Error::Shorter`] and
    /// [`Error::Changed`] if the file is not what it was when it was opened.
    pub fn tensor(&self, index: usize) -> Result<TensorData<'c>> {
        if let Some(derived) = &self.derived {
            return derived.tensor(&self.specs[index].name, index);
        }
        let stored = self.stored[index];
        let order = self.checkpoint.contents.storages[stored.storage].order;
        Ok(TensorData { stored: Cow::Borrowed(stored), order, storage: self.checkpoint.storage(stored.storage)? })
    }

    /// The data of the tensor with that index, and what is left to be checked by whoever reads all of it: the checksum of the
    /// entry that holds it, if it is the whole of one. All else is as with [`StateDict::tensor`].
    ///
    /// # Errors
    /// As [`StateDict::tensor`].
    pub(crate) fn unchecked(&self, index: usize) -> Result<(TensorData<'c>, Option<Unchecked<'c>>)> {
        if let Some(derived) = &self.derived {
            return derived.unchecked(&self.specs[index].name, index);
        }
        let (stored, checkpoint) = (self.stored[index], self.checkpoint);
        let storage = &checkpoint.contents.storages[stored.storage];
        let Extent::Member { entry, skip: 0 } = &storage.extent else { return Ok((self.tensor(index)?, None)) };
        let source = &checkpoint.contents.sources[storage.source];
        if entry.method == Method::Stored && entry.has_checksum() && !checkpoint.is_verified(stored.storage) {
            source.map.check_unchanged(&source.path)?;
            let packed = entry.packed_bytes(&source.map);
            let bytes = packed.map_err(|problem| Error::Zip { path: source.path.clone(), problem })?;
            let data = TensorData {
                stored: Cow::Borrowed(stored),
                order: storage.order,
                storage: Bytes::Mapped(source, bytes),
            };
            if data.view().as_bytes().is_some_and(|whole| whole.len() == bytes.len()) {
                return Ok((data, Some(Unchecked { checkpoint, storage: stored.storage, entry })));
            }
        }
        Ok((self.tensor(index)?, None))
    }

    /// Whether the elements of the tensor with that index are read from where they are stored, without being made in memory
    /// first.
    pub(crate) fn is_in_place(&self, index: usize) -> bool {
        if let Some(derived) = &self.derived {
            return derived.is_in_place(index);
        }
        match &self.checkpoint.contents.storages[self.stored[index].storage].extent {
            Extent::Missing | Extent::Mapped(_) => true,
            Extent::Member { entry, .. } => entry.method == Method::Stored,
            Extent::Assembled(_) => false,
        }
    }

    /// Where the tensor with that index lies in its storage.
    #[must_use]
    pub fn placement(&self, index: usize) -> Placement<'_> {
        if let Some(derived) = &self.derived {
            return derived.placement(index);
        }
        let stored = self.stored[index];
        Placement {
            storage: stored.storage,
            offset: stored.offset,
            strides: &stored.strides,
            contiguous: is_contiguous(&stored.shape, &stored.strides),
        }
    }

    /// A run of elements of the storage that the tensor with that index is part of, as a one-dimensional tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the storage does not have them, and as [`StateDict::tensor`].
    pub(crate) fn storage_run(&self, index: usize, first: usize, count: usize) -> Result<TensorData<'c>> {
        if let Some(derived) = &self.derived {
            return derived.storage_run(&self.specs[index].name, index, first, count);
        }
        let data = self.tensor(index)?;
        let stored = StoredTensor { shape: vec![count], strides: vec![1], offset: first, ..data.stored.into_owned() };
        check_view(stored.dtype, &stored.shape, &stored.strides, first, data.storage.len() as u64).map_err(
            |problem| Error::Tensor {
                path: self.checkpoint.path.clone(),
                tensor: self.specs[index].name.clone(),
                problem: TensorProblem::View(problem),
            },
        )?;
        Ok(TensorData { stored: Cow::Owned(stored), ..data })
    }
}

/// The checksum of an entry that is not verified yet.
#[derive(Clone, Debug)]
pub(crate) struct Unchecked<'c> {
    checkpoint: &'c Checkpoint,
    storage: usize,
    entry: &'c Entry,
}

impl Unchecked<'_> {
    /// Settles the matter, given the checksum of all bytes of the tensor.
    ///
    /// # Errors
    /// [`Error::Zip`] if it is not the one that is stored.
    pub(crate) fn settle(&self, crc: u32) -> Result<()> {
        let path = || self.source().path.clone();
        self.entry.compare(crc).map_err(|problem| Error::Zip { path: path(), problem })?;
        *self.checkpoint.verified[self.storage].lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }

    /// The checksum that is stored.
    pub(crate) fn stored(&self) -> u32 {
        self.entry.crc
    }

    /// Reads the entry for its checksum alone, and settles the matter.
    ///
    /// # Errors
    /// As [`StateDict::tensor`].
    pub(crate) fn read_again(&self) -> Result<()> {
        self.checkpoint.storage(self.storage).map(drop)
    }

    /// The error that says that the file is not what it was.
    pub(crate) fn changed(&self) -> Error {
        Error::Changed { path: self.source().path.clone() }
    }

    fn source(&self) -> &Source {
        &self.checkpoint.contents.sources[self.checkpoint.contents.storages[self.storage].source]
    }
}

/// Where a tensor lies in its storage.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'c> {
    /// A number that tensors of the same checkpoint share exactly if they share a storage.
    pub storage: usize,
    /// Elements before the first one.
    pub offset: usize,
    /// Elements between neighbours, for each dimension.
    pub strides: &'c [usize],
    /// Whether the elements lie one after another, row-major.
    pub contiguous: bool,
}
