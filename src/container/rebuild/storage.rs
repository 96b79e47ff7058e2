//! Persistent ids: how pickles of PyTorch refer to storages, and to classes of modules.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Builder, Fallible, RebuildProblem, too_large};
use crate::container::{MAX_NAME_BYTES, Stored};
use crate::pickle::{Node, NodeId, allocated};
use crate::tensor::DType;

/// A storage as the pickle declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::container) struct DeclaredStorage {
    /// The key in the archive: the entry `data/KEY`.
    pub(in crate::container) key: Arc<str>,
    pub(in crate::container) bytes: u64,
    /// Bytes per element of the type it was first declared with.
    pub(in crate::container) unit: u64,
}

/// What the persistent ids of a pickle stand for.
#[derive(Debug)]
pub(in crate::container) enum Persistent<'a> {
    /// Storages, as `("storage", class, key, location, elements)`, since PyTorch 0.1.10; classes of modules, as
    /// `("module", class, file, source)`, up to 1.5.
    Storages,
    /// Tensors that were read before, by key, and classes of modules as `(class, file, source)`, as in tar archives.
    Tensors { tensors: Vec<Stored>, by_key: &'a HashMap<String, Option<usize>> },
}

/// The part of a storage that a tensor's own storage is: elements before it, and its length.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) key: String,
    pub(super) offset: usize,
    pub(super) elements: usize,
}

/// A storage as a tensor refers to it.
pub(super) struct StorageRef {
    /// `None` for untyped storages.
    pub(super) dtype: Option<DType>,
    /// The name of the type, quantised ones included.
    pub(super) dtype_name: &'static str,
    pub(super) storage: usize,
    pub(super) window: Option<Window>,
}

/// The storage classes of quantised tensors.
const QUANTIZED: &[(&str, &str, u64)] = &[
    ("QInt8Storage", "qint8", 1),
    ("QUInt8Storage", "quint8", 1),
    ("QInt32Storage", "qint32", 4),
    ("QUInt4x2Storage", "quint4x2", 1),
    ("QUInt2x4Storage", "quint2x4", 1),
];

impl Builder<'_> {
    /// The class or function that a value names: a global, or a module class by persistent id.
    pub(super) fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.pickle.node(id) {
            Node::Persistent(key) => match (&self.persistent, self.pickle.sequence(*key)) {
                (Persistent::Storages, Some(&[tag, class, ..])) if self.is_text(tag, "module") => {
                    self.pickle.global(class)
                }
                (Persistent::Tensors { .. }, Some(&[class, ..])) => self.pickle.global(class),
                _ => None,
            },
            _ => self.pickle.global(id),
        }
    }

    pub(super) fn is_text(&self, id: NodeId, wanted: &str) -> bool {
        matches!(self.pickle.node(id), Node::Str(text) if &**text == wanted)
    }

    /// The tensor that a persistent id stands for, in files where such ids stand for tensors.
    pub(super) fn tensor_by_key(&self, id: NodeId, key: NodeId) -> Fallible<Option<usize>> {
        let Persistent::Tensors { by_key, .. } = &self.persistent else { return Ok(None) };
        let key = match self.pickle.node(key) {
            Node::Str(key) => key.to_string(),
            Node::Int(key) => key.to_string(),
            _ => return Ok(None),
        };
        match by_key.get(&key) {
            Some(&tensor) => Ok(tensor),
            None => Err((id, RebuildProblem::NoSuchObject(key))),
        }
    }

    pub(super) fn storage_node(&mut self, id: NodeId) -> Fallible<StorageRef> {
        match self.pickle.node(id) {
            Node::Persistent(key) => self.storage_of(id, *key),
            _ => {
                let what = "the storage is no persistent id";
                Err((id, RebuildProblem::Arguments { function: "torch._utils._rebuild_tensor".into(), what }))
            }
        }
    }

    /// The storage of a persistent id `("storage", class, key, location, elements[, view])`; untyped ones have no type.
    fn storage_of(&mut self, id: NodeId, key: NodeId) -> Fallible<StorageRef> {
        let pickle = self.pickle;
        let wrong = |what| (id, RebuildProblem::Arguments { function: "a storage".into(), what });
        if matches!(pickle.node(key), Node::Str(_)) {
            return Err(wrong(
                "its persistent id is a text, as pickle protocol 0 writes it, which PyTorch cannot load",
            ));
        }
        let Some(&[tag, class, name, _, elements, ref view @ ..]) = pickle.sequence(key) else {
            return Err(wrong("its persistent id is no tuple of five"));
        };
        if !self.is_text(tag, "storage") {
            return Err(wrong("its persistent id is not that of a storage"));
        }
        let (module, class) = pickle.global(class).ok_or_else(|| wrong("its class is no global"))?;
        let known = matches!(module, "torch" | "torch.cuda" | "torch.storage");
        let (dtype, dtype_name, unit) = match class {
            "UntypedStorage" | "_UntypedStorage" => (None, DType::U8.name(), 1),
            _ => match (DType::from_storage_class(class), QUANTIZED.iter().find(|(name, ..)| *name == class)) {
                (Some(dtype), _) if known => (Some(dtype), dtype.name(), dtype.size() as u64),
                (_, Some(&(_, dtype_name, unit))) if known => (None, dtype_name, unit),
                _ => return Err((id, RebuildProblem::StorageClass(format!("{module}.{class}")))),
            },
        };
        // Files of Python 2 have integers as keys.
        let text = |id| match pickle.node(id) {
            Node::Str(key) if key.len() > MAX_NAME_BYTES => Err(wrong("its key is too long for the name of an entry")),
            Node::Str(key) => Ok(key.clone()),
            Node::Int(key) => Ok(key.to_string().into()),
            _ => Err(wrong("its key is no text")),
        };
        let elements = self.size(elements).ok_or_else(|| wrong("its size is no number"))?;
        let bytes = (elements as u64).checked_mul(unit).ok_or_else(|| wrong("its size is no number"))?;
        let window = match view {
            &[view, ..] if !matches!(pickle.node(view), Node::None) => {
                let window = pickle.sequence(view).and_then(|parts| match parts {
                    &[name, offset, length] => Some(Window {
                        key: text(name).ok()?.to_string(),
                        offset: self.size(offset)?,
                        elements: self.size(length)?,
                    }),
                    _ => None,
                });
                let window = window.ok_or_else(|| wrong("the view of it is malformed"))?;
                if window.offset.checked_add(window.elements).is_none_or(|end| end > elements) {
                    return Err((id, RebuildProblem::View(window.key)));
                }
                Some(window)
            }
            _ => None,
        };
        let declared = DeclaredStorage { key: text(name)?, bytes, unit };
        let storage = match self.by_key.get(&declared.key) {
            Some(&known) if self.storages[known].bytes == declared.bytes => known,
            Some(_) => return Err((id, RebuildProblem::StorageSize(declared.key.to_string()))),
            None => {
                /// Bytes of memory that a storage takes at most among those that are found by their keys.
                const FOUND: usize = 5 * size_of::<(Arc<str>, usize)>() / 2;
                self.spend(id, FOUND)?;
                match pickle.node(name) {
                    Node::Str(key) => self.outlives(key),
                    _ => self.keep(id, allocated(16 + declared.key.len()))?,
                }
                self.by_key.insert(declared.key.clone(), self.storages.len());
                self.budget.push(&mut self.storages, declared).map_err(|full| too_large(id, full))?;
                self.storages.len() - 1
            }
        };
        Ok(StorageRef { dtype, dtype_name, storage, window })
    }
}
