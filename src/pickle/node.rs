//! The values of a parsed pickle: an arena that is read by id.

use std::sync::Arc;

/// The place of a value in a [`Pickle`]'s arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// The position in the arena, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Node {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A larger integer: two's complement, least significant byte first.
    BigInt(Box<[u8]>),
    /// A float.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// `bytes`, and Python 2 strings that are not UTF-8.
    Bytes(Box<[u8]>),
    /// `bytearray`.
    ByteArray(Box<[u8]>),
    /// A tuple.
    Tuple(Box<[NodeId]>),
    /// A list.
    List(Vec<NodeId>),
    /// A dictionary: pairs in the order stored, duplicates kept.
    Dict(Vec<(NodeId, NodeId)>),
    /// A set.
    Set(Vec<NodeId>),
    /// A frozenset.
    FrozenSet(Box<[NodeId]>),
    /// A name that Python would import: class or function.
    Global {
        /// The module, dotted.
        module: Arc<str>,
        /// The name in the module, possibly dotted.
        name: Arc<str>,
    },
    /// What Python would build by calling something.
    Object(Box<Object>),
    /// What Python would ask the program for by this id (PyTorch: a storage).
    Persistent(NodeId),
    /// A code of the extension registry (`copyreg.add_extension`).
    Extension(i32),
    /// An out-of-band buffer of protocol 5, by its order in the stream.
    Buffer(u32),
}

impl Node {
    /// The kind of value, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::BigInt(_) => "an int",
            Node::Float(_) => "a float",
            Node::Str(_) => "a str",
            Node::Bytes(_) => "bytes",
            Node::ByteArray(_) => "a bytearray",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Set(_) => "a set",
            Node::FrozenSet(_) => "a frozenset",
            Node::Global { .. } => "a global",
            Node::Object(_) => "an object",
            Node::Persistent(_) => "a persistent id",
            Node::Extension(_) => "an extension code",
            Node::Buffer(_) => "a buffer",
        }
    }
}

/// How Python would make an [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `callable(*args)` (REDUCE).
    Reduce,
    /// `callable.__new__(callable, *args, **kwargs)` (NEWOBJ, NEWOBJ_EX).
    New,
    /// `callable(*args)` of an old-style instance (INST, OBJ).
    Instance,
}

/// A call that Python would make, and what it would then put into the result. Nothing is called here.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// How it would be made.
    pub call: Call,
    /// What would be called; in honest files a [`Node::Global`].
    pub callable: NodeId,
    /// The positional arguments; a [`Node::Tuple`] in honest files.
    pub args: NodeId,
    /// The keyword arguments of NEWOBJ_EX.
    pub kwargs: Option<NodeId>,
    /// The arguments of `__setstate__`, in order (BUILD).
    pub state: Vec<NodeId>,
    /// What would be appended or added (APPEND, APPENDS, ADDITEMS).
    pub items: Vec<NodeId>,
    /// What would be set by key (SETITEM, SETITEMS).
    pub entries: Vec<(NodeId, NodeId)>,
}

/// A parsed pickle.
#[derive(Clone, Debug)]
pub struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) offsets: Vec<u32>,
    pub(super) root: NodeId,
    pub(super) end: usize,
}

impl Pickle {
    /// The value the pickle stands for.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// The value with that id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The byte offset of the opcode that made the value, from the start of the pickle.
    #[must_use]
    pub fn offset(&self, id: NodeId) -> u64 {
        u64::from(self.offsets[id.index()])
    }

    /// How many values the arena holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the arena is empty; a parsed pickle's never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The offset just past the STOP opcode.
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// The module and name of a global, `None` for other values.
    #[must_use]
    pub fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// The elements of a tuple or list, `None` for other values.
    #[must_use]
    pub fn sequence(&self, id: NodeId) -> Option<&[NodeId]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            Node::List(items) => Some(items),
            _ => None,
        }
    }
}
