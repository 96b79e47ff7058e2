//! What PyTorch's pickles mean: the objects that `torch.save` records, read as data.

mod module;
mod numpy;
mod problem;
mod storage;
mod tensor;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) use module::{ScriptClass, ScriptClasses};
pub use problem::RebuildProblem;
pub(super) use storage::{DeclaredStorage, Persistent};

use super::{Object, OtherKind, Stored, Tree, Value};
use crate::pickle::{self, Node, NodeId, Pickle};

/// The object tree of a pickle, its tensors, and the storages they need.
pub(super) struct Rebuilt {
    pub(super) tree: Tree,
    pub(super) tensors: Vec<Stored>,
    pub(super) storages: Vec<DeclaredStorage>,
}

type Fallible<T> = Result<T, (NodeId, RebuildProblem)>;

/// Reads the objects of `pickle`; an error comes with the offset of the value at fault.
pub(super) fn rebuild(
    pickle: &Pickle,
    persistent: Persistent<'_>,
    scripts: &ScriptClasses,
) -> Result<Rebuilt, (u64, RebuildProblem)> {
    let mut builder = Builder {
        pickle,
        persistent,
        scripts,
        values: Vec::new(),
        loose: Vec::new(),
        tensors: match persistent {
            Persistent::Storages => Vec::new(),
            Persistent::Tensors { tensors, .. } => tensors.to_vec(),
        },
        by_node: HashMap::new(),
        names: HashMap::new(),
        searched: Cell::new(0),
        copied: Cell::new(0),
        memory: pickle.memory(),
        storages: Vec::new(),
        by_key: HashMap::new(),
    };
    builder.build().map_err(|(node, problem)| (pickle.offset(node), problem))?;
    let tree = Tree { values: builder.values, root: 0, loose: builder.loose };
    Ok(Rebuilt { tree, tensors: builder.tensors, storages: builder.storages })
}

fn index(id: NodeId) -> u32 {
    id.index() as u32
}

fn indices(ids: &[NodeId]) -> Vec<u32> {
    ids.iter().map(|&id| index(id)).collect()
}

struct Builder<'p> {
    pickle: &'p Pickle,
    persistent: Persistent<'p>,
    scripts: &'p ScriptClasses,
    values: Vec<Value>,
    loose: Vec<u32>,
    tensors: Vec<Stored>,
    by_node: HashMap<NodeId, usize>,
    /// The full names of globals, each made once.
    names: HashMap<NodeId, Arc<str>>,
    /// Values looked at in search of tensors.
    searched: Cell<usize>,
    /// Values of shared sequences that were copied.
    copied: Cell<usize>,
    /// Bytes of memory that the pickle and what was made of it take.
    memory: usize,
    storages: Vec<DeclaredStorage>,
    by_key: HashMap<Arc<str>, usize>,
}

impl<'p> Builder<'p> {
    /// Translates every value that can be reached from the root. The ids are node ids at first, and numbered through in
    /// the end: most nodes of a checkpoint are what tensors were made from, and no values of the tree.
    fn build(&mut self) -> Fallible<()> {
        const UNSEEN: u32 = u32::MAX;
        let root = self.pickle.root();
        self.charge(root, self.pickle.len() * size_of::<u32>())?;
        let mut places = vec![UNSEEN; self.pickle.len()];
        let mut todo = vec![root];
        // Objects may be changed by calls whose results are dropped, and be made by objects that are called: the tensors in
        // these are below nothing.
        let mut others = (0..self.pickle.len()).map(NodeId::at);
        loop {
            let Some(id) = todo.pop() else {
                let unseen = |id: &NodeId| places[id.index()] == UNSEEN && self.makes_tensor(*id);
                let Some(id) = others.find(unseen) else { break };
                self.loose.push(index(id));
                todo.push(id);
                continue;
            };
            if places[id.index()] != UNSEEN {
                continue;
            }
            self.room_for(id)?;
            let value = self.value(id)?;
            self.charge(id, size_of::<Value>() + value.memory())?;
            // What a plain tensor was made from is no part of the tree. Others may have tensors as parts, whose storages have
            // to be known.
            if !(matches!(value, Value::Tensor(_)) && self.is_plain(id)) {
                below(self.pickle.node(id), &mut todo);
            }
            if self.values.len() == self.values.capacity() {
                // By a quarter, not to twice the size: what is reserved is memory too.
                self.values.reserve_exact((self.values.len() / 4).max(64));
            }
            places[id.index()] = self.values.len() as u32;
            self.values.push(value);
        }
        // All that a value refers to was read, but for nothing at all.
        let nothing = self.values.len() as u32;
        self.values.push(Value::None);
        for value in &mut self.values {
            value.renumber(|id| places[id as usize].min(nothing));
        }
        for id in &mut self.loose {
            *id = places[*id as usize].min(nothing);
        }
        Ok(())
    }

    /// Whether PyTorch would make a tensor by that very call.
    fn makes_tensor(&self, id: NodeId) -> bool {
        let Node::Object(object) = self.pickle.node(id) else { return false };
        match self.pickle.global(object.callable) {
            Some((module, name)) if module.starts_with("torch") => is_rebuild(&format!("{module}.{name}")),
            _ => false,
        }
    }

    /// Whether a call makes a tensor from a storage and nothing else.
    fn is_plain(&self, id: NodeId) -> bool {
        let Node::Object(object) = self.pickle.node(id) else { return true };
        let callable = self.pickle.global(object.callable);
        matches!(callable, Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")))
    }

    /// Checks, before they are copied, that there is memory for the values directly below a value.
    fn room_for(&self, id: NodeId) -> Fallible<()> {
        let bytes = match self.pickle.node(id) {
            Node::Tuple(items) | Node::FrozenSet(items) => size_of_val::<[_]>(items),
            Node::List(items) | Node::Set(items) => size_of_val::<[_]>(items),
            Node::Dict(entries) => size_of_val::<[_]>(entries),
            Node::Object(object) => {
                let (state, items, entries) = (&*object.state, &*object.items, &*object.entries);
                size_of_val(state) + size_of_val(items) + size_of_val(entries)
            }
            _ => return Ok(()),
        };
        // Once in the object and once among those that are still to be read.
        let room = self.memory.saturating_add(bytes.saturating_mul(2)) <= pickle::MAX_VALUE_BYTES;
        if room { Ok(()) } else { Err((id, RebuildProblem::Memory)) }
    }

    /// Accounts for memory.
    fn charge(&mut self, id: NodeId, bytes: usize) -> Fallible<()> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > pickle::MAX_VALUE_BYTES { Err((id, RebuildProblem::Memory)) } else { Ok(()) }
    }

    fn value(&mut self, id: NodeId) -> Fallible<Value> {
        let pickle = self.pickle;
        Ok(match pickle.node(id) {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::BigInt(bytes) => Value::BigInt(bytes.clone()),
            Node::Float(x) => Value::Float(*x),
            Node::Str(text) => Value::Str(text.clone()),
            Node::Bytes(bytes) | Node::ByteArray(bytes) => Value::Bytes(bytes.clone()),
            Node::Tuple(items) => Value::List(indices(items)),
            Node::List(items) => Value::List(indices(items)),
            Node::Set(items) => Value::Set(indices(items)),
            Node::FrozenSet(items) => Value::Set(indices(items)),
            Node::Dict(pairs) => Value::Map(pairs.iter().map(|&(k, v)| (index(k), index(v))).collect()),
            Node::Global { .. } => Value::Name(self.name(id)),
            Node::Persistent(key) => match self.tensor_by_key(id, *key)? {
                Some(tensor) => Value::Tensor(tensor),
                None if self.global(id).is_some() => Value::Name(self.name(id)),
                None => self.packaged(id, *key)?.unwrap_or_else(|| Value::Name("torch storage".into())),
            },
            Node::Extension(code) => Value::Name(format!("copyreg extension {code}").into()),
            Node::Buffer(number) => Value::Name(format!("out-of-band buffer {number}").into()),
            Node::Object(object) => self.object(id, object)?,
        })
    }

    /// Accounts for values that are copied out of a sequence which other objects may share.
    fn copies(&self, id: NodeId, count: usize) -> Fallible<()> {
        self.copied.set(self.copied.get().saturating_add(count));
        if self.copied.get() > pickle::MAX_NODES { Err((id, RebuildProblem::TooMuch)) } else { Ok(()) }
    }

    /// The full name of a global, or what the value is if it is none.
    fn name(&mut self, id: NodeId) -> Arc<str> {
        let pickle = self.pickle;
        if let Some(name) = self.names.get(&id) {
            return name.clone();
        }
        let name: Arc<str> = match self.global(id) {
            Some((module, name)) => format!("{module}.{name}").into(),
            None => pickle.node(id).kind().into(),
        };
        self.names.insert(id, name.clone());
        name
    }

    fn object(&mut self, id: NodeId, object: &pickle::Object) -> Fallible<Value> {
        let pickle = self.pickle;
        let entries = || object.entries.iter().map(|&(k, v)| (index(k), index(v))).collect::<Vec<_>>();
        let args = pickle.sequence(object.args).unwrap_or(&[]);
        let name = self.name(object.callable);
        self.copies(id, args.len())?;
        match &*name {
            "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter" | "builtins.dict"
            | "__builtin__.dict"
                // Attributes (`_metadata` of a state_dict) hold no tensors in honest files; if they do, they are shown.
                if !object.state.iter().any(|&state| self.holds_tensor(state)) =>
            {
                let factories = usize::from(&*name == "collections.defaultdict");
                let initial = args.get(factories..).unwrap_or(&[]);
                let plain = |&arg: &NodeId| {
                    matches!(pickle.node(arg), Node::Dict(_) | Node::None) || pickle.sequence(arg).is_some()
                };
                if initial.iter().all(plain) {
                    let wrong = || {
                        let (function, what) = (name.to_string(), "they are no pairs");
                        (id, RebuildProblem::Arguments { function, what })
                    };
                    let pairs = self.initial_pairs(initial).ok_or_else(wrong)?;
                    self.copies(id, pairs.len())?;
                    let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (index(k), index(v))).collect();
                    pairs.extend(entries());
                    return Ok(Value::Map(pairs));
                }
            }
            "_codecs.encode" => {
                if let Some(bytes) = numpy::latin1(pickle, args) {
                    self.copies(id, bytes.len() / 16)?;
                    return Ok(Value::Bytes(bytes));
                }
            }
            "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => {
                if let Some(value) = numpy::scalar(pickle, args) {
                    return Ok(value);
                }
            }
            "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct" => {
                if let Some(value) = numpy::array(pickle, object) {
                    return Ok(value);
                }
            }
            "builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset" => {
                if let (&[items], true) = (args, object.state.is_empty())
                    && let Some(items) = pickle.sequence(items)
                {
                    self.copies(id, items.len())?;
                    return Ok(Value::Set(indices(items)));
                }
            }
            "torch.Size" => {
                let sizes = args.first().and_then(|&sizes| pickle.sequence(sizes)).unwrap_or(&[]);
                self.copies(id, sizes.len())?;
                return Ok(Value::List(indices(sizes)));
            }
            _ => {}
        }
        if is_rebuild(&name) {
            return self.tensor(id, 0).map(Value::Tensor);
        }
        if matches!(&*name, "torch.nn.parameter.UninitializedParameter" | "torch.nn.parameter.UninitializedBuffer") {
            let kind = OtherKind::Subclass(name.to_string());
            return Ok(Value::Tensor(self.other(kind, String::new(), Vec::new())));
        }
        if is_tensor_class(&name) {
            return Err((id, RebuildProblem::Unsupported { function: name.to_string() }));
        }
        if let Some(module) = self.module(&name, object) {
            return Ok(module);
        }
        let mut args = indices(args);
        args.extend(object.kwargs.map(index));
        Ok(Value::Object(Box::new(Object {
            class: name,
            args,
            state: indices(&object.state),
            items: indices(&object.items),
            entries: entries(),
        })))
    }

    /// What a persistent id of `torch.package` stands for that is no storage: `("reduce_package", id, function, args)`.
    fn packaged(&mut self, id: NodeId, key: NodeId) -> Fallible<Option<Value>> {
        let pickle = self.pickle;
        let parts = pickle.sequence(key).unwrap_or(&[]);
        if !parts.first().is_some_and(|&tag| self.is_text(tag, "reduce_package")) {
            return Ok(None);
        }
        let class: Arc<str> = "torch.package.reduce_package".into();
        for &part in parts {
            if let Some((module, name @ "unpackage_script_module")) = pickle.global(part) {
                return Err((id, RebuildProblem::Packaged { function: format!("{module}.{name}") }));
            }
        }
        let args = indices(parts);
        let (state, items, entries) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Some(Value::Object(Box::new(Object { class, args, state, items, entries }))))
    }

    /// What a dictionary is made with: nothing, another dictionary, or a list of pairs (as Python 2 pickled an
    /// OrderedDict).
    fn initial_pairs(&self, args: &[NodeId]) -> Option<Vec<(NodeId, NodeId)>> {
        let mut pairs = Vec::new();
        for &arg in args {
            match self.pickle.node(arg) {
                Node::None => {}
                Node::Dict(entries) => pairs.extend_from_slice(entries),
                _ => {
                    for &pair in self.pickle.sequence(arg)? {
                        let &[key, value] = self.pickle.sequence(pair)? else { return None };
                        pairs.push((key, value));
                    }
                }
            }
        }
        Some(pairs)
    }

    /// Whether PyTorch would make a tensor of anything below that value. All searches of a file together look at no more
    /// values than the pickle may have; past that the answer is yes, so that such a file is refused.
    fn holds_tensor(&self, id: NodeId) -> bool {
        let mut seen = std::collections::HashSet::new();
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            self.searched.set(self.searched.get() + 1);
            if self.searched.get() > pickle::MAX_NODES {
                return true;
            }
            if let Node::Object(object) = self.pickle.node(id)
                && let Some((module, name)) = self.pickle.global(object.callable)
            {
                let name = format!("{module}.{name}");
                if is_rebuild(&name) || is_tensor_class(&name) {
                    return true;
                }
            }
            below(self.pickle.node(id), &mut todo);
        }
        false
    }
}

/// Pushes the values directly below a value, so that they are popped in order.
fn below(node: &Node, todo: &mut Vec<NodeId>) {
    match node {
        Node::Tuple(items) | Node::FrozenSet(items) => todo.extend(items.iter().rev()),
        Node::List(items) | Node::Set(items) => todo.extend(items.iter().rev()),
        Node::Dict(pairs) => todo.extend(pairs.iter().rev().flat_map(|&(k, v)| [v, k])),
        Node::Object(object) => {
            todo.extend(object.entries.iter().rev().flat_map(|&(k, v)| [v, k]));
            todo.extend(object.items.iter().chain(&object.state).chain(&object.kwargs).rev());
            todo.push(object.args);
        }
        Node::Persistent(key) => todo.push(*key),
        _ => {}
    }
}

/// Classes of which Python would make a tensor by other ways than a rebuild function.
fn is_tensor_class(name: &str) -> bool {
    matches!(name, "torch.Tensor" | "torch._tensor.Tensor" | "torch.nn.parameter.Parameter" | "torch.nn.Parameter")
        || name.strip_prefix("torch.").is_some_and(|rest| !rest.contains('.') && rest.ends_with("Tensor"))
}

/// Whether PyTorch would make a tensor by calling that function.
fn is_rebuild(name: &str) -> bool {
    name.starts_with("torch._utils._rebuild_")
        || name.starts_with("torch._tensor._rebuild_")
        || name.starts_with("torch.nested._internal.") && name.contains("_rebuild")
        || matches!(name, "torch.distributed.tensor.DTensor" | "torch.distributed._tensor.api.DTensor")
}
