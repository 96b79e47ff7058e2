//! The values of a parsed pickle: an arena that is read by id.

use std::ops::Deref;
use std::sync::Arc;

use super::budget::{Budget, Full, allocated};

/// The place of a value in a [`Pickle`]'s arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// The value at that position in the arena.
    pub(crate) fn at(index: usize) -> NodeId {
        NodeId(index as u32)
    }

    /// The position in the arena, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A sequence that grows, read as a slice. It takes eight bytes where it stands, and nothing else while it is empty.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::box_collection, reason = "most are empty, and a pickle has millions of them")]
pub struct Items<T>(Option<Box<Vec<T>>>);

impl<T> Items<T> {
    /// Bytes of memory that the first element takes besides itself.
    const FIRST: usize = 64;

    pub(super) const fn new() -> Items<T> {
        Items(None)
    }

    /// Bytes of memory that the elements take.
    pub(super) fn memory(&self) -> usize {
        self.0.as_ref().map_or(0, |items| Items::<T>::FIRST + items.capacity() * size_of::<T>())
    }

    /// Appends.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for them.
    pub(super) fn append(&mut self, items: &[T], budget: &mut Budget) -> Result<(), Full>
    where
        T: Copy,
    {
        if items.is_empty() {
            return Ok(());
        }
        if self.0.is_none() {
            budget.take(Items::<T>::FIRST)?;
        }
        let held = self.0.get_or_insert_default();
        budget.reserve(held, items.len())?;
        held.extend_from_slice(items);
        Ok(())
    }
}

impl<T> From<Vec<T>> for Items<T> {
    fn from(items: Vec<T>) -> Items<T> {
        Items((!items.is_empty()).then(|| Box::new(items)))
    }
}

impl<T> Deref for Items<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |items| items.as_slice())
    }
}

impl<'a, T> IntoIterator for &'a Items<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A name that Python would import: class or function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Module and name, a newline between them.
    text: Arc<str>,
    /// Bytes of the module.
    module: u32,
}

impl Global {
    pub(super) fn new(module: &str, name: &str) -> Global {
        Global { text: format!("{module}\n{name}").into(), module: module.len() as u32 }
    }

    /// The module, dotted.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.text[..self.module as usize]
    }

    /// The name in the module, possibly dotted.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.module as usize + 1..]
    }

    pub(super) fn text(&self) -> &Arc<str> {
        &self.text
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
    List(Items<NodeId>),
    /// A dictionary: pairs in the order stored, duplicates kept.
    Dict(Items<(NodeId, NodeId)>),
    /// A set.
    Set(Items<NodeId>),
    /// A frozenset.
    FrozenSet(Box<[NodeId]>),
    /// A name that Python would import: class or function.
    Global(Box<Global>),
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
    /// Bytes of memory that the value takes besides its place in the arena.
    pub(super) fn memory(&self) -> usize {
        match self {
            Node::Str(text) => allocated(16 + text.len()),
            Node::BigInt(bytes) | Node::Bytes(bytes) | Node::ByteArray(bytes) => allocated(bytes.len()),
            Node::Tuple(items) | Node::FrozenSet(items) => allocated(size_of_val::<[_]>(items)),
            Node::List(items) | Node::Set(items) => items.memory(),
            Node::Dict(items) => items.memory(),
            Node::Object(object) => allocated(size_of_val(&**object)),
            _ => 0,
        }
    }

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
            Node::Global(_) => "a global",
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
    pub state: Items<NodeId>,
    /// What would be appended or added (APPEND, APPENDS, ADDITEMS).
    pub items: Items<NodeId>,
    /// What would be set by key (SETITEM, SETITEMS).
    pub entries: Items<(NodeId, NodeId)>,
}

/// A parsed pickle.
#[derive(Clone, Debug)]
pub struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) offsets: Vec<u32>,
    pub(super) root: NodeId,
    pub(super) end: usize,
    pub(super) memory: usize,
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

    /// The byte offset of the opcode that made the value, from the start of the pickle; of a value that is kept once
    /// however often it is made, of the first such opcode.
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

    /// Bytes of memory that were taken for it.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// The module and name of a global, `None` for other values.
    #[must_use]
    pub fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(global) => Some((global.module(), global.name())),
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
