//! Parts put together: the contents of a checkpoint that is spread over several files, or several places of one.

use std::path::{Path, PathBuf};

use super::{Contents, Extent, Part, Source, Storage, Stored, Tree, TreeLimit, Value, ValueId};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::pickle;

/// The largest number of files that one checkpoint is spread over.
pub const MAX_FILES: usize = 1 << 14;

/// What was gathered so far.
#[derive(Default)]
pub(super) struct Gather {
    pub(super) sources: Vec<Source>,
    pub(super) values: Vec<Value>,
    pub(super) loose: Vec<ValueId>,
    pub(super) tensors: Vec<Stored>,
    pub(super) storages: Vec<Storage>,
}

impl Gather {
    pub(super) fn value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        (self.values.len() - 1) as ValueId
    }

    pub(super) fn text(&mut self, text: &str) -> ValueId {
        self.value(Value::Str(text.into()))
    }

    /// Takes over what was read from byte `shift` on of the file with the number `source`; returns its top value.
    ///
    /// # Errors
    /// [`Error::Tree`] if all parts together have more values than one pickle may have.
    pub(super) fn add(&mut self, part: Part, source: usize, shift: usize) -> Result<ValueId> {
        let path = &self.sources[source].path;
        let Part { tree, mut tensors, mut storages, container: _ } = part;
        if self.values.len() + tree.values.len() > pickle::MAX_NODES {
            let limit = TreeLimit { what: "values in all of its files", limit: pickle::MAX_NODES };
            return Err(Error::Tree { path: path.clone(), limit });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for storage in &mut storages {
            storage.source = source;
            storage.label = format!("{name}: {}", storage.label);
            move_extent(storage, shift);
        }
        for tensor in &mut tensors {
            if let Stored::Dense(dense) = tensor {
                dense.storage += self.storages.len();
            }
        }
        let (first, first_tensor) = (self.values.len() as ValueId, self.tensors.len());
        self.values.extend(tree.values.into_iter().map(|value| value.shifted(first, first_tensor)));
        self.loose.extend(tree.loose.into_iter().map(|id| id + first));
        self.tensors.append(&mut tensors);
        self.storages.append(&mut storages);
        Ok(first + tree.root)
    }

    /// All of it, with `root` as the top.
    pub(super) fn contents(self, container: Container, root: ValueId) -> Contents {
        let Gather { sources, values, loose, tensors, storages } = self;
        Contents { container, sources, tree: Tree { values, root, loose }, tensors, storages }
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
