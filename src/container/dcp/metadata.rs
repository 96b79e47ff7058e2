//! The pickle `.metadata`, read as data: what there is, where it is, and how it was nested.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use super::DcpProblem;
use super::nest::Key;
use crate::container::{MAX_DEPTH, MAX_NAME_BYTES};
use crate::pickle::{self, Budget, Full, Node, NodeId, Object, Pickle, allocated};
use crate::tensor::MAX_DIMENSIONS;

/// What `.metadata` tells.
pub(super) struct Metadata {
    /// In the order of the saved object.
    pub(super) items: Vec<Item>,
    /// Where things are.
    pub(super) places: HashMap<Part, Place>,
    /// Where things were in the nested object that was saved.
    pub(super) paths: HashMap<Arc<str>, Vec<Key>>,
}

/// What a place is for: a name and, for parts of tensors, the part's place in the tensor.
pub(super) type Part = (Arc<str>, Option<Vec<usize>>);

/// A tensor or object.
pub(super) struct Item {
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// PyTorch's name of the type, the shape, and the parts.
    Tensor {
        dtype: String,
        shape: Vec<usize>,
        chunks: Vec<Region>,
    },
    Object,
}

/// A part of a tensor: its first element's place, and its size along each dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) at: Vec<usize>,
    pub(super) sizes: Vec<usize>,
}

/// Some bytes of a file.
pub(super) struct Place {
    pub(super) file: Arc<str>,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What was done with the bytes before they were written.
    pub(super) transforms: Vec<String>,
}

/// Numbers and keys that are copied at most: a shape may be shared by a tensor and its parts, but not by all tensors.
const MAX_COPIES: usize = 2 * pickle::MAX_NODES;

/// What is wrong where they are more.
const TOO_MUCH: &str = "it refers to more values than it can honestly hold";

/// What is wrong where there is no memory left.
const FULL: &str = "what it tells takes more memory than the limit of this reader";

/// The value at fault, and what is wrong.
type Wrong = (NodeId, &'static str);

/// Reads the metadata within `budget`; an error names the offset of the value at fault.
pub(super) fn read(pickle: &Pickle, budget: &mut Budget) -> Result<Metadata, DcpProblem> {
    let reader = Reader { pickle, copied: Cell::new(0), budget: RefCell::new(budget), full: Cell::new(false) };
    reader.metadata().map_err(|(node, what)| {
        let what = match what {
            _ if reader.copied.get() > MAX_COPIES => TOO_MUCH,
            _ if reader.full.get() => FULL,
            what => what,
        };
        DcpProblem::Metadata { offset: pickle.offset(node), what }
    })
}

struct Reader<'p> {
    pickle: &'p Pickle,
    /// Numbers and keys that were copied, and attributes that were looked through, so far.
    copied: Cell<usize>,
    budget: RefCell<&'p mut Budget>,
    /// Whether there was no memory left.
    full: Cell<bool>,
}

impl<'p> Reader<'p> {
    fn metadata(&self) -> Result<Metadata, Wrong> {
        /// Bytes of memory that an item, a place or a path takes: vectors have up to twice, tables a little more than twice as
        /// many places, and places are ordered once.
        const ITEM: usize = 2 * size_of::<Item>();
        const PLACE: usize = 5 * size_of::<(Part, Place)>() / 2 + 48;
        const PATH: usize = 5 * size_of::<(Arc<str>, Vec<Key>)>() / 2;
        let root = self.pickle.root();
        let metadata = self.object(root, "Metadata").ok_or((root, "it is no torch.distributed.checkpoint Metadata"))?;
        let dictionary = |name, what| self.field(metadata, name).and_then(|id| self.pairs(id)).ok_or((root, what));
        let mut items = Vec::new();
        for &(key, value) in dictionary("state_dict_metadata", "it has no state_dict_metadata")? {
            self.take(key, ITEM)?;
            items.push(Item { name: self.text(key, "the name of a tensor is no text")?, kind: self.kind(value)? });
        }
        let mut places = HashMap::new();
        for &(key, value) in dictionary("storage_data", "it has no storage_data")? {
            self.take(key, PLACE)?;
            if places.insert(self.index(key)?, self.place(value)?).is_some() {
                return Err((key, "the same part is stored twice"));
            }
        }
        let mut paths = HashMap::new();
        if let Some(planner) = self.field(metadata, "planner_data")
            && !matches!(self.pickle.node(planner), Node::None)
        {
            let pairs = self.pairs(planner).ok_or((planner, "planner_data is no dictionary"))?;
            for &(key, value) in pairs {
                self.take(key, PATH)?;
                paths.insert(self.text(key, "the name of a tensor is no text")?, self.path(value)?);
            }
        }
        Ok(Metadata { items, places, paths })
    }

    /// Accounts for memory of what outlives the pickle.
    fn take(&self, id: NodeId, bytes: usize) -> Result<(), Wrong> {
        self.budget.borrow_mut().take(bytes).map_err(|Full| {
            self.full.set(true);
            (id, FULL)
        })
    }

    fn kind(&self, id: NodeId) -> Result<Kind, Wrong> {
        if self.object(id, "BytesStorageMetadata").is_some() {
            return Ok(Kind::Object);
        }
        let tensor = self.object(id, "TensorStorageMetadata").ok_or((id, "it is neither a tensor nor an object"))?;
        let dtype = self.field(tensor, "properties").and_then(|id| self.dtype(id));
        let shape = self.field(tensor, "size").and_then(|id| self.numbers(id));
        let chunks = self.field(tensor, "chunks").and_then(|id| self.pickle.sequence(id));
        let (Some(dtype), Some(shape), Some(chunks)) = (dtype, shape, chunks) else {
            return Err((id, "the type, shape or parts of a tensor are malformed"));
        };
        let region = |&id: &NodeId| {
            let chunk = self.object(id, "ChunkStorageMetadata");
            let numbers = |name| chunk.and_then(|chunk| self.field(chunk, name)).and_then(|id| self.numbers(id));
            match (numbers("offsets"), numbers("sizes")) {
                (Some(at), Some(sizes)) => Ok(Region { at, sizes }),
                _ => Err((id, "a part of a tensor is malformed")),
            }
        };
        self.copies(id, chunks.len())?;
        self.take(id, chunks.len() * size_of::<Region>() + dtype.len())?;
        let chunks = chunks.iter().map(region).collect::<Result<_, _>>()?;
        Ok(Kind::Tensor { dtype, shape, chunks })
    }

    /// The name of the element type in `TensorProperties`, whose state is a tuple that begins with it.
    fn dtype(&self, id: NodeId) -> Option<String> {
        let properties = self.object(id, "TensorProperties")?;
        let dtype = match self.pickle.sequence(*properties.state.last()?) {
            Some(state) => *state.first()?,
            None => self.field(properties, "dtype")?,
        };
        let (module, name) = self.pickle.global(dtype)?;
        (module == "torch").then(|| name.to_owned())
    }

    fn index(&self, id: NodeId) -> Result<Part, Wrong> {
        let malformed = (id, "a MetadataIndex is malformed");
        let index = self.object(id, "MetadataIndex").ok_or(malformed)?;
        let name = self.field(index, "fqn").ok_or(malformed)?;
        let offset = match self.field(index, "offset") {
            None => None,
            Some(none) if matches!(self.pickle.node(none), Node::None) => None,
            Some(offset) => Some(self.numbers(offset).ok_or(malformed)?),
        };
        Ok((self.text(name, malformed.1)?, offset))
    }

    fn place(&self, id: NodeId) -> Result<Place, Wrong> {
        let malformed = (id, "the place of a tensor is malformed");
        let info = self.object(id, "_StorageInfo").ok_or(malformed)?;
        let number = |name| {
            let id = self.field(info, name)?;
            self.size(id).map(|n| n as u64)
        };
        let (Some(file), Some(offset), Some(length)) =
            (self.field(info, "relative_path"), number("offset"), number("length"))
        else {
            return Err(malformed);
        };
        let transforms = match self.field(info, "transform_descriptors") {
            Some(list) if !matches!(self.pickle.node(list), Node::None) => {
                let list = self.pickle.sequence(list).ok_or(malformed)?;
                // Files with any are refused, so that a few tell enough.
                let texts = list.iter().take(4).map(|&id| {
                    let text = self.text(id, malformed.1)?;
                    self.take(id, size_of::<String>() + allocated(text.len()))?;
                    Ok(text.to_string())
                });
                texts.collect::<Result<_, _>>()?
            }
            _ => Vec::new(),
        };
        Ok(Place { file: self.text(file, malformed.1)?, offset, length, transforms })
    }

    fn path(&self, id: NodeId) -> Result<Vec<Key>, Wrong> {
        let malformed = (id, "the path of a tensor is no tuple of texts and numbers");
        let keys = self.pickle.sequence(id).ok_or(malformed)?;
        if keys.len() > MAX_DEPTH {
            return Err((id, "the path of a tensor is too long"));
        }
        self.copies(id, keys.len())?;
        self.take(id, allocated(keys.len() * size_of::<Key>()))?;
        let key = |&id: &NodeId| match self.pickle.node(id) {
            Node::Str(_) => self.text(id, malformed.1).map(Key::Text),
            Node::Int(n) => Ok(Key::Number(*n)),
            _ => Err(malformed),
        };
        keys.iter().map(key).collect()
    }

    /// The object, if it is of that class of `torch.distributed`: the module changed between versions.
    fn object(&self, id: NodeId, class: &str) -> Option<&'p Object> {
        let Node::Object(object) = self.pickle.node(id) else { return None };
        let (module, name) = self.pickle.global(object.callable)?;
        (name == class && module.starts_with("torch.distributed.")).then_some(object)
    }

    /// An attribute of an object.
    fn field(&self, object: &Object, name: &str) -> Option<NodeId> {
        let state = *object.state.last()?;
        let pairs = self.pairs(state)?;
        // Objects may share their attributes, and each looks at all of them.
        self.copies(state, pairs.len()).ok()?;
        let is_name = |key: NodeId| matches!(self.pickle.node(key), Node::Str(text) if &**text == name);
        pairs.iter().rev().find(|(key, _)| is_name(*key)).map(|&(_, value)| value)
    }

    fn pairs(&self, id: NodeId) -> Option<&'p [(NodeId, NodeId)]> {
        match self.pickle.node(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    fn text(&self, id: NodeId, what: &'static str) -> Result<Arc<str>, Wrong> {
        match self.pickle.node(id) {
            Node::Str(text) if text.len() > MAX_NAME_BYTES => Err((id, "a name is too long")),
            Node::Str(text) => {
                // Shared with the pickle, and maybe with others.
                self.take(id, allocated(16 + text.len()))?;
                Ok(Arc::clone(text))
            }
            _ => Err((id, what)),
        }
    }

    /// The non-negative numbers of a sequence or `torch.Size`, one more than a tensor has dimensions at most.
    fn numbers(&self, id: NodeId) -> Option<Vec<usize>> {
        let sequence = match self.pickle.node(id) {
            Node::Object(object) if self.pickle.global(object.callable) == Some(("torch", "Size")) => {
                self.pickle.sequence(*self.pickle.sequence(object.args)?.first()?)?
            }
            _ => self.pickle.sequence(id)?,
        };
        let count = sequence.len().min(MAX_DIMENSIONS + 1);
        self.copies(id, count).ok()?;
        self.take(id, allocated(count * size_of::<usize>())).ok()?;
        sequence.iter().take(MAX_DIMENSIONS + 1).map(|&n| self.size(n)).collect()
    }

    /// Accounts for values that are copied out of a sequence which other objects may share.
    fn copies(&self, id: NodeId, count: usize) -> Result<(), Wrong> {
        self.copied.set(self.copied.get().saturating_add(count));
        if self.copied.get() > MAX_COPIES { Err((id, TOO_MUCH)) } else { Ok(()) }
    }

    fn size(&self, id: NodeId) -> Option<usize> {
        match self.pickle.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }
}
