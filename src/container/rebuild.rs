//! What PyTorch's pickles mean: the functions that `torch.save` records for tensors, read as data.
//!
//! Follows `torch/_utils.py` (`_rebuild_tensor`, `_rebuild_tensor_v2`, `_rebuild_tensor_v3`, `_rebuild_parameter`,
//! `_rebuild_parameter_with_state`) and `torch/_tensor.py` (`_rebuild_from_type_v2`).

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Object, StoredTensor, Tree, Value};
use crate::pickle::{self, Node, NodeId, Pickle};
use crate::tensor::{DType, MAX_DIMENSIONS};

/// Why an object that PyTorch would rebuild as a tensor cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildProblem {
    /// A kind of tensor that is not read: sparse, quantised, nested, on the meta device, ...
    #[error("a tensor made by `{function}` is not supported: save it as a dense tensor in PyTorch first")]
    Unsupported {
        /// PyTorch's rebuild function.
        function: String,
    },
    /// The arguments of a rebuild function are not those that PyTorch writes.
    #[error("the arguments of `{function}` are malformed: {what}")]
    Arguments {
        /// PyTorch's rebuild function.
        function: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A view that PyTorch would conjugate or negate when it is used.
    #[error("a tensor is a lazily {mark} view: call {resolve} on it in PyTorch and save it again")]
    LazyView {
        /// `conjugated` or `negated`.
        mark: &'static str,
        /// PyTorch's method that makes it an ordinary tensor.
        resolve: &'static str,
    },
    /// A tensor has other tensors as attributes, which have no name of their own.
    #[error("a tensor carries other tensors as attributes: save them under names of their own in PyTorch")]
    Attributes,
    /// Objects use the same arguments again and again: copied out, they would be more than any pickle holds.
    #[error("its objects refer to more than {} values", pickle::MAX_NODES)]
    TooMuch,
    /// A storage class that is not known.
    #[error("the storage type {0} is unknown; load the file in PyTorch and save it again")]
    StorageClass(String),
    /// The same storage is declared with two sizes.
    #[error("storage {0:?} is declared with two different sizes: the file is damaged, get it again")]
    StorageSize(String),
    /// The object graph nests tensors in tensors without end.
    #[error("a tensor contains itself")]
    Cycle,
}

/// A storage as the pickle declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeclaredStorage {
    /// The key in the archive: the entry `data/KEY`.
    pub(super) key: String,
    pub(super) bytes: u64,
}

/// The object tree of a pickle, its tensors, and the storages they need.
pub(super) struct Rebuilt {
    pub(super) tree: Tree,
    pub(super) tensors: Vec<StoredTensor>,
    pub(super) storages: Vec<DeclaredStorage>,
}

type Fallible<T> = Result<T, (NodeId, RebuildProblem)>;

/// Reads the objects of `pickle`; an error comes with the offset of the value at fault.
pub(super) fn rebuild(pickle: &Pickle) -> Result<Rebuilt, (u64, RebuildProblem)> {
    let mut builder = Builder {
        pickle,
        values: vec![Value::None; pickle.len()],
        tensors: Vec::new(),
        by_node: HashMap::new(),
        names: HashMap::new(),
        searched: Cell::new(0),
        copied: Cell::new(0),
        storages: Vec::new(),
        by_key: HashMap::new(),
    };
    builder.build().map_err(|(node, problem)| (pickle.offset(node), problem))?;
    let tree = Tree { values: builder.values, root: index(pickle.root()) };
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
    values: Vec<Value>,
    tensors: Vec<StoredTensor>,
    by_node: HashMap<NodeId, usize>,
    /// The full names of globals, each made once.
    names: HashMap<NodeId, Arc<str>>,
    /// Values looked at in search of tensors.
    searched: Cell<usize>,
    /// Values of shared sequences that were copied.
    copied: Cell<usize>,
    storages: Vec<DeclaredStorage>,
    by_key: HashMap<String, usize>,
}

impl<'p> Builder<'p> {
    /// Translates every value that can be reached from the root; value ids are node ids.
    fn build(&mut self) -> Fallible<()> {
        let mut seen = vec![false; self.pickle.len()];
        let mut todo = vec![self.pickle.root()];
        let mut order = Vec::new();
        while let Some(id) = todo.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            order.push(id);
            below(self.pickle.node(id), &mut todo);
        }
        for id in order {
            self.values[id.index()] = self.value(id)?;
        }
        Ok(())
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
            Node::Persistent(_) => Value::Name("torch storage".into()),
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
        let full = || match pickle.global(id) {
            Some((module, name)) => format!("{module}.{name}").into(),
            None => pickle.node(id).kind().into(),
        };
        self.names.entry(id).or_insert_with(full).clone()
    }

    fn object(&mut self, id: NodeId, object: &pickle::Object) -> Fallible<Value> {
        let pickle = self.pickle;
        let entries = || object.entries.iter().map(|&(k, v)| (index(k), index(v))).collect::<Vec<_>>();
        let args = pickle.sequence(object.args).unwrap_or(&[]);
        let name = self.name(object.callable);
        let wrong = |what| (id, RebuildProblem::Arguments { function: name.to_string(), what });
        self.copies(id, args.len())?;
        match &*name {
            "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter" | "builtins.dict"
            | "__builtin__.dict"
                // Attributes (`_metadata` of a state_dict) hold no tensors in honest files; if they do, they are shown.
                if !object.state.iter().any(|&state| self.holds_tensor(state)) =>
            {
                let mut pairs = self.initial_pairs(args).ok_or_else(|| wrong("they are no pairs"))?;
                self.copies(id, pairs.len())?;
                pairs.extend(entries());
                return Ok(Value::Map(pairs));
            }
            "_codecs.encode" => {
                if let Some(bytes) = latin1(pickle, args) {
                    self.copies(id, bytes.len() / 16)?;
                    return Ok(Value::Bytes(bytes));
                }
            }
            "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => {
                if let Some(value) = numpy_scalar(pickle, args) {
                    return Ok(value);
                }
            }
            // Before protocol 4, pickle makes sets by calling their classes with a list.
            "builtins.set" | "__builtin__.set" | "builtins.frozenset" | "__builtin__.frozenset"
                if object.state.is_empty() =>
            {
                if let [items] = args
                    && let Some(items) = pickle.sequence(*items)
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
        if is_tensor_class(&name) {
            return Err((id, RebuildProblem::Unsupported { function: name.to_string() }));
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

    /// What a dictionary is made with: nothing, another dictionary, or a list of pairs (as Python 2 pickled an
    /// OrderedDict); a defaultdict's factory comes before it.
    fn initial_pairs(&self, args: &[NodeId]) -> Option<Vec<(u32, u32)>> {
        let mut pairs = Vec::new();
        for &arg in args {
            match self.pickle.node(arg) {
                Node::None | Node::Global { .. } => {}
                Node::Dict(entries) => pairs.extend(entries.iter().map(|&(k, v)| (index(k), index(v)))),
                _ => {
                    for &pair in self.pickle.sequence(arg)? {
                        let &[key, value] = self.pickle.sequence(pair)? else { return None };
                        pairs.push((index(key), index(value)));
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

    /// The tensor that the call `id` would rebuild.
    fn tensor(&mut self, id: NodeId, depth: usize) -> Fallible<usize> {
        /// Wrappers around one tensor: a parameter with state of a type with state is the deepest that PyTorch writes.
        const MAX_WRAPPERS: usize = 8;
        if let Some(&tensor) = self.by_node.get(&id) {
            return Ok(tensor);
        }
        if depth > MAX_WRAPPERS {
            return Err((id, RebuildProblem::Cycle));
        }
        let pickle = self.pickle;
        let Node::Object(object) = pickle.node(id) else {
            let what = "a tensor was expected";
            return Err((id, RebuildProblem::Arguments { function: "torch._utils._rebuild_parameter".into(), what }));
        };
        if !(object.state.is_empty() && object.items.is_empty() && object.entries.is_empty()) {
            let (function, what) = (self.name(object.callable).to_string(), "the tensor is changed after it is made");
            return Err((id, RebuildProblem::Arguments { function, what }));
        }
        let tensor = self.call(id, object.callable, object.args, depth)?;
        self.by_node.insert(id, tensor);
        Ok(tensor)
    }

    /// What `callable(*args)` would rebuild.
    fn call(&mut self, id: NodeId, callable: NodeId, args: NodeId, depth: usize) -> Fallible<usize> {
        let pickle = self.pickle;
        let (module, function) = pickle.global(callable).unwrap_or(("", "something that is no function"));
        let full = format!("{module}.{function}");
        let wrong = |what| (id, RebuildProblem::Arguments { function: full.clone(), what });
        let args = pickle.sequence(args).ok_or_else(|| wrong("they are no tuple"))?;
        match (function, args) {
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ref rest @ ..]) => {
                if rest.iter().any(|&part| self.holds_tensor(part)) {
                    return Err((id, RebuildProblem::Attributes));
                }
                self.tensor(data, depth + 1)
            }
            ("_rebuild_from_type_v2", &[inner, _, inner_args, ref state @ ..]) => {
                if state.iter().any(|&part| self.holds_tensor(part)) {
                    return Err((id, RebuildProblem::Attributes));
                }
                if depth > 4 || !pickle.global(inner).is_some_and(|(m, n)| is_rebuild(&format!("{m}.{n}"))) {
                    return Err((id, RebuildProblem::Unsupported { function: full }));
                }
                self.call(id, inner, inner_args, depth + 1)
            }
            ("_rebuild_tensor" | "_rebuild_tensor_v2", &[storage, offset, shape, strides, ref rest @ ..]) => {
                self.check_marks(rest.get(2).copied())?;
                let (dtype, storage) = self.storage_node(storage)?;
                let dtype = dtype.unwrap_or(DType::U8);
                self.view(dtype, storage, [offset, shape, strides]).ok_or_else(|| wrong("offset, size or stride"))
            }
            ("_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ref rest @ ..]) => {
                self.check_marks(rest.first().copied())?;
                let (_, storage) = self.storage_node(storage)?;
                let dtype = pickle
                    .global(dtype)
                    .filter(|(module, _)| *module == "torch")
                    .and_then(|(_, name)| DType::ALL.iter().find(|d| d.name() == name))
                    .ok_or_else(|| wrong("the dtype is unknown"))?;
                self.view(*dtype, storage, [offset, shape, strides]).ok_or_else(|| wrong("offset, size or stride"))
            }
            ("_rebuild_parameter" | "_rebuild_parameter_with_state" | "_rebuild_from_type_v2", _)
            | ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", _) => Err(wrong("there are too few")),
            _ => Err((id, RebuildProblem::Unsupported { function: full })),
        }
    }

    /// The metadata of a tensor may mark its elements as to be conjugated or negated (`torch._utils.set_tensor_metadata`).
    fn check_marks(&self, metadata: Option<NodeId>) -> Fallible<()> {
        let Some(id) = metadata else { return Ok(()) };
        let entries = match self.pickle.node(id) {
            Node::None => return Ok(()),
            Node::Dict(entries) => entries,
            Node::Object(object)
                if self.pickle.global(object.callable) == Some(("collections", "OrderedDict"))
                    && self.pickle.sequence(object.args).is_some_and(<[_]>::is_empty) =>
            {
                &object.entries
            }
            _ => {
                let (function, what) = ("torch._utils._rebuild_tensor_v2".into(), "the metadata is no dictionary");
                return Err((id, RebuildProblem::Arguments { function, what }));
            }
        };
        for &(key, value) in entries {
            let off = matches!(self.pickle.node(value), Node::Bool(false) | Node::None);
            match self.pickle.node(key) {
                Node::Str(key) if &**key == "conj" && !off => {
                    return Err((id, RebuildProblem::LazyView { mark: "conjugated", resolve: "resolve_conj()" }));
                }
                Node::Str(key) if &**key == "neg" && !off => {
                    return Err((id, RebuildProblem::LazyView { mark: "negated", resolve: "resolve_neg()" }));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn view(&mut self, dtype: DType, storage: usize, [offset, shape, strides]: [NodeId; 3]) -> Option<usize> {
        // Cut, so that many tensors of one long shape are refused for their number of dimensions, and not kept.
        let numbers = |id| {
            let numbers = self.pickle.sequence(id)?.iter().take(MAX_DIMENSIONS + 1);
            numbers.map(|&n| self.size(n)).collect::<Option<Vec<usize>>>()
        };
        let tensor = StoredTensor {
            dtype,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
            offset: self.size(offset)?,
            storage,
        };
        self.tensors.push(tensor);
        Some(self.tensors.len() - 1)
    }

    /// A non-negative integer.
    fn size(&self, id: NodeId) -> Option<usize> {
        match self.pickle.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    fn storage_node(&mut self, id: NodeId) -> Fallible<(Option<DType>, usize)> {
        match self.pickle.node(id) {
            Node::Persistent(key) => self.storage_of(id, *key),
            _ => {
                let what = "the storage is no persistent id";
                Err((id, RebuildProblem::Arguments { function: "torch._utils._rebuild_tensor".into(), what }))
            }
        }
    }

    /// The storage of a persistent id `("storage", class, key, location, elements)`; untyped ones have no type.
    fn storage_of(&mut self, id: NodeId, key: NodeId) -> Fallible<(Option<DType>, usize)> {
        let pickle = self.pickle;
        let wrong = |what| (id, RebuildProblem::Arguments { function: "a storage".into(), what });
        let Some(&[_, class, key, _, elements, ..]) = pickle.sequence(key) else {
            return Err(wrong("its persistent id is no tuple of five"));
        };
        let (module, name) = pickle.global(class).ok_or_else(|| wrong("its class is no global"))?;
        let dtype = match name {
            "UntypedStorage" | "_UntypedStorage" => None,
            _ => Some(
                DType::from_storage_class(name)
                    .filter(|_| matches!(module, "torch" | "torch.cuda" | "torch.storage"))
                    .ok_or_else(|| (id, RebuildProblem::StorageClass(format!("{module}.{name}"))))?,
            ),
        };
        let Node::Str(key) = pickle.node(key) else {
            return Err(wrong("its key is no text"));
        };
        let bytes = self
            .size(elements)
            .and_then(|n| (n as u64).checked_mul(dtype.map_or(1, DType::size) as u64))
            .ok_or_else(|| wrong("its size is no number"))?;
        let declared = DeclaredStorage { key: key.to_string(), bytes };
        let storage = match self.by_key.get(&declared.key) {
            Some(&known) if self.storages[known] == declared => known,
            Some(_) => return Err((id, RebuildProblem::StorageSize(declared.key))),
            None => {
                self.by_key.insert(declared.key.clone(), self.storages.len());
                self.storages.push(declared);
                self.storages.len() - 1
            }
        };
        Ok((dtype, storage))
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

/// `_codecs.encode(text, "latin1")`: how protocol 2 pickles bytes.
fn latin1(pickle: &Pickle, args: &[NodeId]) -> Option<Box<[u8]>> {
    let &[text, encoding] = args else { return None };
    match (pickle.node(text), pickle.node(encoding)) {
        (Node::Str(text), Node::Str(encoding)) if matches!(&**encoding, "latin1" | "latin-1") => {
            text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
        }
        _ => None,
    }
}

/// `numpy.core.multiarray.scalar(dtype("f8"), bytes)`: a number.
fn numpy_scalar(pickle: &Pickle, args: &[NodeId]) -> Option<Value> {
    let &[dtype, data] = args else { return None };
    let Node::Object(dtype) = pickle.node(dtype) else { return None };
    let Node::Str(code) = pickle.node(*pickle.sequence(dtype.args)?.first()?) else { return None };
    let state = dtype.state.first().and_then(|&s| pickle.sequence(s)).unwrap_or(&[]);
    let big = matches!(state.get(1).map(|&order| pickle.node(order)), Some(Node::Str(order)) if &**order == ">");
    let bytes = match pickle.node(data) {
        Node::Bytes(bytes) => bytes.clone(),
        Node::Object(call) if pickle.global(call.callable) == Some(("_codecs", "encode")) => {
            latin1(pickle, pickle.sequence(call.args)?)?
        }
        _ => return None,
    };
    if big {
        return None;
    }
    let signed = |bytes: &[u8]| {
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Value::Int(i64::from_le_bytes(wide)))
    };
    match (&**code, &*bytes) {
        ("f8", bytes) => Some(Value::Float(f64::from_le_bytes(*bytes.as_array()?))),
        ("f4", bytes) => Some(Value::Float(f64::from(f32::from_le_bytes(*bytes.as_array()?)))),
        ("f2", bytes) => Some(Value::Float(half::f16::from_le_bytes(*bytes.as_array()?).to_f64())),
        ("b1", &[b]) => Some(Value::Bool(b != 0)),
        ("i1" | "i2" | "i4" | "i8", bytes) => signed(bytes),
        ("u1" | "u2" | "u4", bytes) => signed(&[bytes, &[0]].concat()),
        _ => None,
    }
}
