//! Files put together: the contents of a checkpoint that is spread over several.

use std::path::{Path, PathBuf};

use super::{Contents, Extent, Part, Source, Storage, Value, ValueId, too_large};
use crate::container::Container;
use crate::error::Result;
use crate::pickle::Budget;

/// The largest number of files that one checkpoint is spread over.
pub const MAX_FILES: usize = 1 << 14;

/// What was gathered so far.
pub(super) struct Gather {
    pub(super) sources: Vec<Source>,
    /// What all files together yield.
    pub(super) all: Part,
    /// Memory, which all files share.
    pub(super) budget: Budget,
}

impl Gather {
    /// Nothing but the file that tells of the others.
    pub(super) fn new(container: Container, first: Source) -> Gather {
        Gather { sources: vec![first], all: Part::new(container), budget: Budget::default() }
    }

    pub(super) fn value(&self, id: ValueId) -> &Value {
        self.all.tree.value(id)
    }

    /// Adds a value, for which memory was taken.
    pub(super) fn add(&mut self, value: Value) -> ValueId {
        self.all.tree.add(value)
    }

    pub(super) fn text(&mut self, text: &str) -> ValueId {
        self.add(Value::Str(text.into()))
    }

    /// Accounts for memory.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] if there is none left.
    pub(super) fn take(&mut self, bytes: usize) -> Result<()> {
        self.budget.take(bytes).map_err(too_large(&self.sources[0].path))
    }

    /// Takes over what was read from byte `shift` on of the file with the number `source`; returns its top value.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] if there is no memory for it.
    pub(super) fn absorb(&mut self, mut part: Part, source: usize, shift: usize) -> Result<ValueId> {
        for storage in &mut part.storages {
            storage.source = source;
            move_extent(storage, shift);
        }
        self.all.absorb(part, &mut self.budget).map_err(too_large(&self.sources[source].path))
    }

    /// All of it, with `root` as the top.
    pub(super) fn contents(self, root: ValueId) -> Contents {
        let Gather { sources, all, budget } = self;
        let Part { container, mut tree, tensors, storages } = all;
        tree.root = root;
        Contents { container, sources, tree, tensors, storages, budget }
    }
}

fn move_extent(storage: &mut Storage, shift: usize) {
    match &mut storage.extent {
        Extent::Mapped(range) => *range = range.start + shift..range.end + shift,
        Extent::Member { entry, .. } => {
            entry.local += shift;
            entry.limit += shift;
        }
        Extent::Assembled(_) | Extent::Missing => {}
    }
}

/// The path of the file `name` in `folder`; `None` if it is no plain name of a file, and might lead out of the folder.
pub(super) fn inside(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = !name.contains(['/', '\\', '\0']) && !matches!(name, "" | "." | "..");
    plain.then(|| folder.join(name))
}

/// The folder that a file is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
