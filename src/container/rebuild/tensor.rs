//! The functions that make tensors, read as data: which elements of which storage a tensor is.
//!
//! Follows `torch/_utils.py` (`_rebuild_tensor`, `_rebuild_tensor_v2`, `_rebuild_tensor_v3`, `_rebuild_parameter`,
//! `_rebuild_parameter_with_state`, `_rebuild_sparse_tensor`, `_rebuild_qtensor`, `_rebuild_nested_tensor`,
//! `_rebuild_meta_tensor_no_storage`, `_rebuild_wrapper_subclass`, `_rebuild_device_tensor_from_cpu_tensor`) and
//! `torch/_tensor.py` (`_rebuild_from_type`, `_rebuild_from_type_v2`).

use super::storage::StorageRef;
use super::{Builder, Fallible, RebuildProblem, is_rebuild, too_large};
use crate::container::{MAX_TENSORS, OtherKind, OtherTensor, Stored, StoredTensor};
use crate::pickle::{Node, NodeId, allocated};
use crate::tensor::{DType, MAX_DIMENSIONS, check_view};

impl Builder<'_> {
    /// The tensor that the call `id` would rebuild.
    pub(super) fn tensor(&mut self, id: NodeId, depth: usize) -> Fallible<usize> {
        /// Wrappers around one tensor: a parameter with state of a type with state is the deepest that PyTorch writes.
        const MAX_WRAPPERS: usize = 8;
        if let Some(&tensor) = self.by_node.get(&id) {
            return Ok(tensor);
        }
        if depth > MAX_WRAPPERS {
            return Err((id, RebuildProblem::Cycle));
        }
        let pickle = self.pickle;
        let object = match pickle.node(id) {
            Node::Object(object) => object,
            Node::Persistent(key) if let Some(tensor) = self.tensor_by_key(id, *key)? => return Ok(tensor),
            _ => {
                let what = "a tensor was expected";
                let function = "torch._utils._rebuild_parameter".into();
                return Err((id, RebuildProblem::Arguments { function, what }));
            }
        };
        if !(object.state.is_empty() && object.items.is_empty() && object.entries.is_empty()) {
            let (function, what) = (self.name(object.callable).to_string(), "the tensor is changed after it is made");
            return Err((id, RebuildProblem::Arguments { function, what }));
        }
        let tensor = self.call(id, object.callable, object.args, depth)?;
        self.made(id, tensor)?;
        self.by_node.insert(id, tensor);
        Ok(tensor)
    }

    fn add(&mut self, id: NodeId, tensor: Stored) -> Fallible<usize> {
        self.budget.push(&mut self.tensors, tensor).map_err(|full| too_large(id, full))?;
        Ok(self.tensors.len() - 1)
    }

    pub(super) fn other(&mut self, id: NodeId, kind: OtherKind, dtype: String, shape: Vec<usize>) -> Fallible<usize> {
        self.add(id, Stored::Other(OtherTensor { kind, dtype, shape }))
    }

    /// What `callable(*args)` would rebuild.
    fn call(&mut self, id: NodeId, callable: NodeId, args: NodeId, depth: usize) -> Fallible<usize> {
        let pickle = self.pickle;
        let (module, function) = pickle.global(callable).unwrap_or(("", "something that is no function"));
        let full = || format!("{module}.{function}");
        let wrong = |what| (id, RebuildProblem::Arguments { function: full(), what });
        let args = pickle.sequence(args).ok_or_else(|| wrong("they are no tuple"))?;
        let malformed = || wrong("offset, size or stride");
        match (function, args) {
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ref rest @ ..]) => {
                if rest.iter().any(|&part| self.holds_tensor(part)) {
                    return Err((id, RebuildProblem::Attributes));
                }
                self.tensor(data, depth + 1)
            }
            ("_rebuild_from_type" | "_rebuild_from_type_v2", &[inner, _, inner_args, ref state @ ..]) => {
                if pickle.global(inner).is_some_and(|(_, name)| name == "_rebuild_wrapper_subclass") {
                    return self.wrapper(id, inner_args, state, depth);
                }
                if pickle.global(inner).is_some_and(|(_, name)| name == "_rebuild_njt") {
                    return self.jagged(id, pickle.sequence(inner_args).unwrap_or(&[]), depth);
                }
                if state.iter().any(|&part| self.holds_tensor(part)) {
                    return Err((id, RebuildProblem::Attributes));
                }
                if depth > 4 || !pickle.global(inner).is_some_and(|(m, n)| is_rebuild(&format!("{m}.{n}"))) {
                    return Err((id, RebuildProblem::Unsupported { function: full() }));
                }
                self.call(id, inner, inner_args, depth + 1)
            }
            ("_rebuild_tensor" | "_rebuild_tensor_v2", &[storage, offset, shape, strides, ref rest @ ..]) => {
                self.check_marks(id, rest.get(2).copied())?;
                let storage = self.storage_node(storage)?;
                let dtype = storage.dtype.unwrap_or(DType::U8);
                self.view(id, dtype, &storage, [offset, shape, strides])?.ok_or_else(malformed)
            }
            ("_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ref rest @ ..]) => {
                self.check_marks(id, rest.first().copied())?;
                let storage = self.storage_node(storage)?;
                let dtype = self.dtype(dtype).ok_or_else(|| wrong("the dtype is unknown"))?;
                self.view(id, dtype, &storage, [offset, shape, strides])?.ok_or_else(malformed)
            }
            ("_rebuild_qtensor", &[storage, _, shape, ..]) => {
                let dtype = self.storage_node(storage)?.dtype_name.to_owned();
                let shape = self.numbers(shape).ok_or_else(malformed)?;
                self.other(id, OtherKind::Quantized, dtype, shape)
            }
            ("_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor", &[layout, data]) => {
                let layout = self.layout(layout).ok_or_else(|| wrong("the layout is unknown"))?;
                let data = pickle.sequence(data).unwrap_or(&[]);
                let (values, shape) = match (layout, data) {
                    ("sparse_coo", &[_, values, shape, ..]) | (_, &[_, _, values, shape, ..]) => (values, shape),
                    _ => return Err(wrong("there are too few")),
                };
                let shape = self.numbers(shape).ok_or_else(malformed)?;
                let dtype = self.inner_dtype(values, depth)?;
                self.other(id, OtherKind::Sparse(layout), dtype, shape)
            }
            ("_rebuild_nested_tensor", &[values, ..]) => {
                let dtype = self.inner_dtype(values, depth)?;
                self.other(id, OtherKind::Nested, dtype, Vec::new())
            }
            ("_rebuild_njt", _) => self.jagged(id, args, depth),
            ("_rebuild_meta_tensor_no_storage", &[dtype, shape, ..]) => {
                let dtype = self.dtype_name(dtype).ok_or_else(|| wrong("the dtype is unknown"))?;
                let shape = self.numbers(shape).ok_or_else(malformed)?;
                self.other(id, OtherKind::Meta, dtype, shape)
            }
            ("_rebuild_wrapper_subclass", _) => self.wrapper_of(id, args),
            ("_rebuild_device_tensor_from_cpu_tensor" | "_rebuild_xla_tensor", &[data, dtype, ..]) => {
                let tensor = self.tensor(data, depth + 1)?;
                match (&self.tensors[tensor], self.dtype_name(dtype)) {
                    (Stored::Dense(dense), Some(dtype)) if dense.dtype.name() == dtype => Ok(tensor),
                    _ => Err((id, RebuildProblem::Unsupported { function: full() })),
                }
            }
            (
                "_rebuild_parameter"
                | "_rebuild_parameter_with_state"
                | "_rebuild_from_type"
                | "_rebuild_from_type_v2"
                | "_rebuild_tensor"
                | "_rebuild_tensor_v2"
                | "_rebuild_tensor_v3",
                _,
            ) => Err(wrong("there are too few")),
            _ => Err((id, RebuildProblem::Unsupported { function: full() })),
        }
    }

    /// A nested tensor in the jagged layout.
    fn jagged(&mut self, id: NodeId, args: &[NodeId], depth: usize) -> Fallible<usize> {
        let dtype = match self.attribute(id, args, "values")? {
            Some(values) => self.inner_dtype(values, depth)?,
            None => String::new(),
        };
        self.other(id, OtherKind::Nested, dtype, Vec::new())
    }

    /// A wrapper subclass with its state. A DTensor is its local tensor, if that is the whole.
    fn wrapper(&mut self, id: NodeId, args: NodeId, state: &[NodeId], depth: usize) -> Fallible<usize> {
        let args = self.pickle.sequence(args).unwrap_or(&[]);
        let wrapper = self.wrapper_of(id, args)?;
        let Some(local) = self.attribute(id, state, "_local_tensor")? else { return Ok(wrapper) };
        let local = self.tensor(local, depth + 1)?;
        let Stored::Other(whole) = &mut self.tensors[wrapper] else { return Ok(wrapper) };
        let shape = whole.shape.clone();
        whole.kind = OtherKind::Shard;
        match &self.tensors[local] {
            Stored::Dense(dense) if dense.shape == shape => Ok(local),
            _ => Ok(wrapper),
        }
    }

    fn wrapper_of(&mut self, id: NodeId, args: &[NodeId]) -> Fallible<usize> {
        let wrong =
            |what| (id, RebuildProblem::Arguments { function: "torch._utils._rebuild_wrapper_subclass".into(), what });
        let &[class, dtype, shape, ..] = args else { return Err(wrong("there are too few")) };
        let dtype = self.dtype_name(dtype).ok_or_else(|| wrong("the dtype is unknown"))?;
        let shape = self.numbers(shape).ok_or_else(|| wrong("offset, size or stride"))?;
        let class = self.name(class).to_string();
        self.other(id, OtherKind::Subclass(class), dtype, shape)
    }

    /// The value of an attribute in the state of the object `id`: a dictionary, or a pair of one and the slots.
    fn attribute(&self, id: NodeId, state: &[NodeId], name: &str) -> Fallible<Option<NodeId>> {
        for &part in state {
            let parts = match self.pickle.node(part) {
                Node::Tuple(parts) => &**parts,
                _ => std::slice::from_ref(&part),
            };
            self.copies(id, parts.len())?;
            for &part in parts {
                let Node::Dict(pairs) = self.pickle.node(part) else { continue };
                // Objects may share their attributes, and each looks at all of them.
                self.copies(id, pairs.len())?;
                if let Some((_, value)) = pairs.iter().rev().find(|(key, _)| self.is_text(*key, name)) {
                    return Ok(Some(*value));
                }
            }
        }
        Ok(None)
    }

    /// The element type of the dense tensor that a call rebuilds.
    fn inner_dtype(&mut self, values: NodeId, depth: usize) -> Fallible<String> {
        let tensor = self.tensor(values, depth + 1)?;
        Ok(match &self.tensors[tensor] {
            Stored::Dense(dense) => dense.dtype.name().to_owned(),
            Stored::Other(other) => other.dtype.clone(),
        })
    }

    /// PyTorch's name of a type: `torch.float32`, without `torch.`.
    fn dtype_name(&self, id: NodeId) -> Option<String> {
        let (module, name) = self.pickle.global(id)?;
        let known = self.dtype(id).is_some() || name.starts_with('q') && name.len() <= 16;
        (module == "torch" && known).then(|| name.to_owned())
    }

    fn dtype(&self, id: NodeId) -> Option<DType> {
        let (_, name) = self.pickle.global(id).filter(|(module, _)| *module == "torch")?;
        DType::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// A sparse layout: `torch.serialization._get_layout("torch.sparse_coo")`, or the global itself.
    fn layout(&self, id: NodeId) -> Option<&'static str> {
        let name = match self.pickle.node(id) {
            Node::Object(object) => match self.pickle.node(*self.pickle.sequence(object.args)?.first()?) {
                Node::Str(name) => name.strip_prefix("torch.")?,
                _ => return None,
            },
            _ => self.pickle.global(id)?.1,
        };
        ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"].into_iter().find(|known| *known == name)
    }

    /// The metadata of a tensor may mark its elements as to be conjugated or negated (`torch._utils.set_tensor_metadata`).
    fn check_marks(&self, tensor: NodeId, metadata: Option<NodeId>) -> Fallible<()> {
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
        self.copies(tensor, entries.len())?;
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

    /// The non-negative integers of a sequence or `torch.Size`; cut, so that many tensors of one long shape are
    /// refused for their number of dimensions, and not kept.
    fn numbers(&self, id: NodeId) -> Option<Vec<usize>> {
        let sequence = match self.pickle.node(id) {
            Node::Object(object) if self.pickle.global(object.callable) == Some(("torch", "Size")) => {
                self.pickle.sequence(*self.pickle.sequence(object.args)?.first()?)?
            }
            _ => self.pickle.sequence(id)?,
        };
        sequence.iter().take(MAX_DIMENSIONS + 1).map(|&n| self.size(n)).collect()
    }

    fn view(
        &mut self,
        id: NodeId,
        dtype: DType,
        storage: &StorageRef,
        [offset, shape, strides]: [NodeId; 3],
    ) -> Fallible<Option<usize>> {
        let (Some(shape), Some(strides), Some(offset)) =
            (self.numbers(shape), self.numbers(strides), self.size(offset))
        else {
            return Ok(None);
        };
        let mut start = offset;
        if let Some(window) = &storage.window {
            let bytes = (window.elements as u64).saturating_mul(dtype.size() as u64);
            if check_view(dtype, &shape, &strides, offset, bytes).is_err() {
                return Err((id, RebuildProblem::View(window.key.clone())));
            }
            start = start.saturating_add(window.offset);
        }
        let tensor = StoredTensor { dtype, shape, strides, offset: start, storage: storage.storage };
        self.add(id, Stored::Dense(tensor)).map(Some)
    }

    /// Accounts for a tensor that the call `id` rebuilds.
    fn made(&mut self, id: NodeId, tensor: usize) -> Fallible<()> {
        /// Bytes of memory that a tensor takes at most among those that are found by the calls that make them.
        const FOUND: usize = 5 * size_of::<(NodeId, usize)>() / 2;
        if self.tensors.len() > MAX_TENSORS {
            return Err((id, RebuildProblem::Tensors));
        }
        let (sizes, texts) = match &self.tensors[tensor] {
            Stored::Dense(dense) => (dense.shape.len() + dense.strides.len(), 0),
            Stored::Other(other) => (other.shape.len(), other.dtype.len() + other.kind.memory()),
        };
        self.copies(id, sizes)?;
        self.spend(id, FOUND)?;
        self.keep(id, texts + 2 * allocated(size_of::<usize>() * sizes / 2))
    }

    /// A non-negative integer.
    pub(super) fn size(&self, id: NodeId) -> Option<usize> {
        match self.pickle.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }
}
