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
use crate::pickle::{self, Budget, Full, Node, NodeId, Pickle, allocated};

/// The object tree of a pickle, its tensors, and the storages they need.
pub(super) struct Rebuilt {
    pub(super) tree: Tree,
    pub(super) tensors: Vec<Stored>,
    pub(super) storages: Vec<DeclaredStorage>,
}

type Fallible<T> = Result<T, (NodeId, RebuildProblem)>;

/// Reads the objects of `pickle`, which was parsed within `budget`; what of it is not kept is given back. An error comes with
/// the offset of the value at fault.
pub(super) fn rebuild(
    pickle: Pickle,
    mut persistent: Persistent<'_>,
    scripts: &ScriptClasses,
    budget: &mut Budget,
) -> Result<Rebuilt, (u64, RebuildProblem)> {
    let tensors = match &mut persistent {
        Persistent::Storages => Vec::new(),
        Persistent::Tensors { tensors, .. } => std::mem::take(tensors),
    };
    let mut builder = Builder {
        pickle: &pickle,
        persistent,
        scripts,
        values: Vec::new(),
        loose: Vec::new(),
        tensors,
        by_node: HashMap::new(),
        names: HashMap::new(),
        searched: 0,
        tensorless: Vec::new(),
        copied: Cell::new(0),
        budget,
        spent: pickle.memory(),
        storages: Vec::new(),
        by_key: HashMap::new(),
    };
    builder.build().map_err(|(node, problem)| (pickle.offset(node), problem))?;
    let Builder { values, loose, tensors, storages, spent, .. } = builder;
    drop(pickle);
    budget.give_back(spent);
    Ok(Rebuilt { tree: Tree { values, root: 0, loose }, tensors, storages })
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
    searched: usize,
    /// Whether a value is known to have no tensors in it, by node.
    tensorless: Vec<bool>,
    /// Values of shared sequences that were copied.
    copied: Cell<usize>,
    budget: &'p mut Budget,
    /// Bytes of memory that are used for the pickle, and for nothing that outlives it.
    spent: usize,
    storages: Vec<DeclaredStorage>,
    by_key: HashMap<Arc<str>, usize>,
}

impl<'p> Builder<'p> {
    /// Translates every value that can be reached from the root. The ids are node ids at first, and numbered through in
    /// the end: most nodes of a checkpoint are what tensors were made from, and no values of the tree.
    fn build(&mut self) -> Fallible<()> {
        const UNSEEN: u32 = u32::MAX;
        let root = self.pickle.root();
        self.spend(root, self.pickle.len() * size_of::<u32>())?;
        let mut places = vec![UNSEEN; self.pickle.len()];
        self.spend(root, self.pickle.len())?;
        self.tensorless = vec![false; self.pickle.len()];
        let mut todo = vec![root];
        // Objects may be changed by calls whose results are dropped, and be made by objects that are called: the tensors in
        // these are below nothing.
        let mut others = (0..self.pickle.len()).map(NodeId::at);
        loop {
            let Some(id) = todo.pop() else {
                let unseen = |id: &NodeId| places[id.index()] == UNSEEN && self.makes_tensor(*id);
                let Some(id) = others.find(unseen) else { break };
                self.keep(id, size_of::<u32>())?;
                self.loose.push(index(id));
                todo.push(id);
                continue;
            };
            if places[id.index()] != UNSEEN {
                continue;
            }
            // Before it is copied into the value: what is below, and will be among those that are still to be read, or bytes.
            let node = self.pickle.node(id);
            let count = count_below(node);
            self.budget.room_for(count * size_of::<u32>() + bytes_of(node)).map_err(|full| too_large(id, full))?;
            self.budget.reserve(&mut todo, count).map_err(|full| too_large(id, full))?;
            let value = self.value(id)?;
            self.keep(id, value.memory())?;
            if let Value::Str(text) = &value {
                self.outlives(text);
            }
            // What a plain tensor was made from is no part of the tree. Others may have tensors as parts, whose storages have
            // to be known.
            if !(matches!(value, Value::Tensor(_)) && self.is_plain(id)) {
                below(self.pickle.node(id), &mut todo);
            }
            places[id.index()] = self.values.len() as u32;
            self.add_value(id, value)?;
        }
        self.spent += todo.capacity() * size_of::<u32>();
        // All that a value refers to was read, but for nothing at all.
        let nothing = self.values.len() as u32;
        self.add_value(root, Value::None)?;
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
        self.torch_name(object.callable).is_some_and(|name| is_rebuild(&name))
    }

    /// The full name of a global that may be of PyTorch.
    fn torch_name(&self, id: NodeId) -> Option<String> {
        /// Bytes of a module and a name that are looked at. Those of PyTorch are shorter, and the longest that a file may
        /// have would take their time.
        const LONGEST: usize = 200;
        let (module, name) = self.pickle.global(id).filter(|(module, _)| module.starts_with("torch"))?;
        let cut = |text: &str| text[..text.floor_char_boundary(LONGEST)].to_owned();
        Some(format!("{}.{}", cut(module), cut(name)))
    }

    /// Whether a call makes a tensor from a storage and nothing else.
    fn is_plain(&self, id: NodeId) -> bool {
        let Node::Object(object) = self.pickle.node(id) else { return true };
        let callable = self.pickle.global(object.callable);
        matches!(callable, Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")))
    }

    fn add_value(&mut self, id: NodeId, value: Value) -> Fallible<()> {
        self.budget.push(&mut self.values, value).map_err(|full| too_large(id, full))
    }

    /// Accounts for memory of what outlives the pickle.
    fn keep(&mut self, id: NodeId, bytes: usize) -> Fallible<()> {
        self.budget.take(bytes).map_err(|full| too_large(id, full))
    }

    /// Accounts for memory of a table that is used here alone.
    fn spend(&mut self, id: NodeId, bytes: usize) -> Fallible<()> {
        self.spent += bytes;
        self.budget.take_table(bytes).map_err(|full| too_large(id, full))
    }

    /// Accounts for a text of the pickle that outlives it.
    fn outlives(&mut self, text: &str) {
        self.spent = self.spent.saturating_sub(allocated(16 + text.len()));
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
                    let pairs = self.initial_pairs(id, initial)?.ok_or_else(|| {
                        let (function, what) = (name.to_string(), "they are no pairs");
                        (id, RebuildProblem::Arguments { function, what })
                    })?;
                    let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (index(k), index(v))).collect();
                    pairs.extend(entries());
                    return Ok(Value::Map(pairs));
                }
            }
            "_codecs.encode" => {
                let texts = args.iter().take(2).map(|&arg| match pickle.node(arg) {
                    Node::Str(text) => text.len(),
                    _ => 0,
                });
                let bytes = texts.sum::<usize>();
                self.copies(id, bytes / 16)?;
                self.budget.room_for(2 * bytes).map_err(|full| too_large(id, full))?;
                if let Some(bytes) = numpy::latin1(pickle, args) {
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
            return self.other(id, kind, String::new(), Vec::new()).map(Value::Tensor);
        }
        if is_tensor_class(&name) {
            return Err((id, RebuildProblem::Unsupported { function: name.to_string() }));
        }
        if let Some(module) = self.module(id, &name, object)? {
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
    /// OrderedDict). `None` if it is anything else.
    fn initial_pairs(&self, id: NodeId, args: &[NodeId]) -> Fallible<Option<Vec<(NodeId, NodeId)>>> {
        let mut pairs = Vec::new();
        for &arg in args {
            match self.pickle.node(arg) {
                Node::None => {}
                Node::Dict(entries) => {
                    self.copies(id, entries.len())?;
                    pairs.extend_from_slice(entries);
                }
                _ => {
                    let Some(items) = self.pickle.sequence(arg) else { return Ok(None) };
                    self.copies(id, items.len())?;
                    for &pair in items {
                        let Some(&[key, value]) = self.pickle.sequence(pair) else { return Ok(None) };
                        pairs.push((key, value));
                    }
                }
            }
        }
        Ok(Some(pairs))
    }

    /// Whether PyTorch would make a tensor of anything below that value. All searches of a file together look at no more
    /// values than the pickle may have; past that the answer is yes, so that such a file is refused.
    fn holds_tensor(&mut self, id: NodeId) -> bool {
        let mut seen = Vec::new();
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            if std::mem::replace(&mut self.tensorless[id.index()], true) {
                continue;
            }
            seen.push(id);
            self.searched += 1;
            let node = self.pickle.node(id);
            let found = self.searched > pickle::MAX_NODES
                || matches!(node, Node::Object(object)
                    if self.torch_name(object.callable).is_some_and(|name| is_rebuild(&name) || is_tensor_class(&name)));
            if found {
                // It may be below any of them.
                seen.iter().for_each(|id| self.tensorless[id.index()] = false);
                return true;
            }
            below(node, &mut todo);
        }
        false
    }
}

fn too_large(id: NodeId, Full: Full) -> (NodeId, RebuildProblem) {
    (id, RebuildProblem::Memory)
}

/// How many values are directly below a value.
fn count_below(node: &Node) -> usize {
    match node {
        Node::Tuple(items) | Node::FrozenSet(items) => items.len(),
        Node::List(items) | Node::Set(items) => items.len(),
        Node::Dict(pairs) => 2 * pairs.len(),
        Node::Object(object) => 2 * object.entries.len() + object.items.len() + object.state.len() + 2,
        Node::Persistent(_) => 1,
        _ => 0,
    }
}

/// Bytes that are copied into a value.
fn bytes_of(node: &Node) -> usize {
    match node {
        Node::BigInt(bytes) | Node::Bytes(bytes) | Node::ByteArray(bytes) => bytes.len(),
        _ => 0,
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
