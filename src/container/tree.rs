//! What a file holds besides tensor data: an inert tree of values, and a walk that finds every tensor in it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::Stored;
use crate::pickle::{self, Budget, Full, allocated};
use crate::tensor::TensorSpec;

/// The deepest nesting of values that is walked.
pub const MAX_DEPTH: usize = 128;
/// The largest number of tensors listed from one file, each name of a shared tensor counted.
pub const MAX_TENSORS: usize = 1 << 18;
/// The longest full name of a tensor, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;
/// The largest number of bytes in all names together.
pub const MAX_ALL_NAMES_BYTES: usize = 24 << 20;
/// The largest number of values visited on the walk; values that are shared count each time they are reached.
pub const MAX_VISITS: usize = 4 << 20;

/// Bytes of memory that a name of a tensor takes wherever tensors are listed, but for its text and the shape.
const LISTED: usize = 2 * size_of::<Reached>() + 2 * size_of::<TensorSpec>() + 3 * size_of::<&str>();

/// What stands for a key that is no text, number, or tuple of these.
const NO_TEXT: &str = "<key>";

/// The place of a value in a [`Tree`].
pub(crate) type ValueId = u32;

/// A value of the file. Children are ids, so that shared and cyclic values cost nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Two's complement, least significant byte first.
    BigInt(Box<[u8]>),
    Float(f64),
    Str(Arc<str>),
    Bytes(Box<[u8]>),
    /// Lists and tuples.
    List(Vec<ValueId>),
    Set(Vec<ValueId>),
    /// Dictionaries of every kind, in order.
    Map(Vec<(ValueId, ValueId)>),
    /// The tensor with that number in the file.
    Tensor(usize),
    /// Something of which there is nothing but a name to show: a class, a function, a storage.
    Name(Arc<str>),
    /// A module with parameters and buffers.
    Module(Box<Module>),
    /// Anything that Python would have to call something for.
    Object(Box<Object>),
}

/// A pickled `torch.nn.Module`, or one of TorchScript.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Module {
    /// `module.Class`.
    pub(crate) class: Arc<str>,
    /// Parameters, persistent buffers and submodules by name: what `state_dict()` is made of, in its order.
    pub(crate) entries: Vec<(ValueId, ValueId)>,
    /// All other attributes, and entries if it is a dictionary too.
    pub(crate) rest: Vec<(ValueId, ValueId)>,
    /// What it was made with; members if it is a list too.
    pub(crate) args: Vec<ValueId>,
    pub(crate) items: Vec<ValueId>,
}

/// An object of a class that this crate does not interpret.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    /// `module.Class`, or what else stands in its place.
    pub(crate) class: Arc<str>,
    pub(crate) args: Vec<ValueId>,
    pub(crate) state: Vec<ValueId>,
    pub(crate) items: Vec<ValueId>,
    pub(crate) entries: Vec<(ValueId, ValueId)>,
}

impl Value {
    /// Whether there is nothing below the value, nor a tensor in it.
    fn is_leaf(&self) -> bool {
        match self {
            Value::Tensor(_) | Value::Module(_) | Value::Object(_) => false,
            Value::List(items) | Value::Set(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => true,
        }
    }

    /// Gives every value that this one refers to another id.
    pub(crate) fn renumber(&mut self, new: impl Fn(ValueId) -> ValueId) {
        let ids = |ids: &mut [ValueId]| ids.iter_mut().for_each(|id| *id = new(*id));
        let pairs = |pairs: &mut [(ValueId, ValueId)]| {
            pairs.iter_mut().for_each(|(key, value)| (*key, *value) = (new(*key), new(*value)));
        };
        match self {
            Value::List(items) | Value::Set(items) => ids(items),
            Value::Map(entries) => pairs(entries),
            Value::Module(module) => {
                pairs(&mut module.entries);
                pairs(&mut module.rest);
                ids(&mut module.args);
                ids(&mut module.items);
            }
            Value::Object(object) => {
                ids(&mut object.args);
                ids(&mut object.state);
                ids(&mut object.items);
                pairs(&mut object.entries);
            }
            Value::None
            | Value::Bool(_)
            | Value::Int(_)
            | Value::BigInt(_)
            | Value::Float(_)
            | Value::Str(_)
            | Value::Bytes(_)
            | Value::Tensor(_)
            | Value::Name(_) => {}
        }
    }

    /// Adds `first` to the ids in it, and `first_tensor` to the number of a tensor.
    pub(crate) fn shift(&mut self, first: ValueId, first_tensor: usize) {
        self.renumber(|id| id + first);
        if let Value::Tensor(tensor) = self {
            *tensor += first_tensor;
        }
    }

    /// About how many bytes of memory the value takes besides its place in the tree. Texts are shared with the pickle.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Value::BigInt(bytes) | Value::Bytes(bytes) => 32 + bytes.len(),
            Value::List(items) | Value::Set(items) => 32 + 4 * items.len(),
            Value::Map(entries) => 32 + 8 * entries.len(),
            Value::Name(name) => 96 + name.len(),
            Value::Module(module) => {
                let ids = module.args.len() + module.items.len() + 2 * (module.entries.len() + module.rest.len());
                240 + 4 * ids
            }
            Value::Object(object) => {
                let ids = object.args.len() + object.state.len() + object.items.len() + 2 * object.entries.len();
                320 + 4 * ids
            }
            _ => 0,
        }
    }
}

/// All values of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) values: Vec<Value>,
    pub(crate) root: ValueId,
    /// Values with tensors in them that are not below the root.
    pub(crate) loose: Vec<ValueId>,
}

/// Why the tree cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its objects take more than {limit} {what}, the limit of this reader")]
pub struct TreeLimit {
    /// What there is too much of.
    pub what: &'static str,
    /// The limit.
    pub limit: usize,
}

/// A tensor as it was reached.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// The full dotted path.
    pub(crate) path: String,
    /// Bytes of the path that belong to the mapping it was found in, without the dot after it.
    pub(crate) parent: usize,
    /// Whether every step to the parent was a text key.
    pub(crate) named: bool,
    pub(crate) tensor: usize,
}

impl Tree {
    /// Adds a value.
    pub(crate) fn add(&mut self, value: Value) -> ValueId {
        if self.values.len() == self.values.capacity() {
            // By a quarter, not to twice its size: what is reserved is memory too.
            self.values.reserve_exact((self.values.len() / 4).max(4));
        }
        self.values.push(value);
        (self.values.len() - 1) as ValueId
    }

    pub(crate) fn value(&self, id: ValueId) -> &Value {
        &self.values[id as usize]
    }

    /// The path segment of a dictionary key.
    pub(crate) fn key_text(&self, id: ValueId) -> Cow<'_, str> {
        match self.value(id) {
            Value::Str(text) => Cow::Borrowed(text),
            Value::Int(n) => n.to_string().into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Float(x) => format!("{x:?}").into(),
            Value::None => "None".into(),
            Value::List(items) => {
                let leaf = |&item: &ValueId| match self.value(item) {
                    Value::List(_) => Cow::Borrowed("(...)"),
                    _ => self.key_text(item),
                };
                let items: Vec<_> = items.iter().take(8).map(leaf).collect();
                format!("({})", items.join(",")).into()
            }
            _ => NO_TEXT.into(),
        }
    }

    /// The values below a value, by key or by number.
    fn children(&self, id: ValueId) -> Children<'_> {
        match self.value(id) {
            Value::Map(entries) => Children { pairs: vec![entries], ..Children::default() },
            Value::List(items) | Value::Set(items) => Children { lists: vec![("", items)], ..Children::default() },
            Value::Module(module) => {
                let lists: Vec<(&str, &[_])> = vec![("", &module.items), ("args", &module.args)];
                Children { pairs: vec![&module.entries], lists, rest: &module.rest, is_module: true }
            }
            Value::Object(object) => {
                let mut pairs: Vec<&[_]> = vec![&object.entries];
                let mut lists: Vec<(&str, &[_])> = vec![("", &object.items), ("args", &object.args)];
                for state in &object.state {
                    match self.value(*state) {
                        Value::Map(entries) => pairs.push(entries),
                        _ => lists.push(("state", std::slice::from_ref(state))),
                    }
                }
                Children { pairs, lists, ..Children::default() }
            }
            _ => Children::default(),
        }
    }

    /// Every tensor of the file, in file order, by full dotted path. A tensor that is reached by several paths is
    /// listed under each.
    ///
    /// # Errors
    /// [`TreeLimit`] if one of this module's limits is exceeded, or `budget` has no memory to list all of `tensors` by these
    /// names.
    pub(crate) fn tensors(&self, tensors: &[Stored], budget: &mut Budget) -> Result<Vec<Reached>, TreeLimit> {
        let (found, open) = (Vec::new(), HashSet::new());
        let mut walk = Walk { tree: self, tensors, budget, found, visits: 0, name_bytes: 0, open };
        walk.visit(self.root, &mut String::new(), Place { parent: 0, named: true, module: None }, 0)?;
        for (number, &id) in self.loose.iter().enumerate() {
            let mut name = format!("<loose {number}>");
            let place = Place { parent: name.len(), named: false, module: None };
            walk.visit(id, &mut name, place, 0)?;
        }
        Ok(walk.found)
    }
}

/// The children of a value: entries by key, and numbered items with what stands before the number in their paths.
#[derive(Default)]
struct Children<'t> {
    pairs: Vec<&'t [(ValueId, ValueId)]>,
    lists: Vec<(&'static str, &'t [ValueId])>,
    /// Attributes of a module that are no part of its `state_dict()`.
    rest: &'t [(ValueId, ValueId)],
    is_module: bool,
}

/// Where a value is.
#[derive(Clone, Copy)]
struct Place {
    /// The length of the path of the mapping that holds it.
    parent: usize,
    /// Whether every step to the parent was a text key.
    named: bool,
    /// The length of the path of the outermost module around it, if it is part of that one's `state_dict()`.
    module: Option<usize>,
}

struct Walk<'t> {
    tree: &'t Tree,
    tensors: &'t [Stored],
    budget: &'t mut Budget,
    found: Vec<Reached>,
    visits: usize,
    name_bytes: usize,
    open: HashSet<ValueId>,
}

impl Walk<'_> {
    fn step(&mut self) -> Result<(), TreeLimit> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(TreeLimit { what: "steps to walk through", limit: MAX_VISITS });
        }
        Ok(())
    }

    /// Visits `id` at `path`.
    fn visit(&mut self, id: ValueId, path: &mut String, place: Place, depth: usize) -> Result<(), TreeLimit> {
        let limit = |what, limit| Err(TreeLimit { what, limit });
        self.step()?;
        if depth > MAX_DEPTH {
            return limit("levels of nesting", MAX_DEPTH);
        }
        let tree = self.tree;
        if let Value::Tensor(tensor) = tree.value(id) {
            if self.found.len() >= MAX_TENSORS {
                return limit("tensors", MAX_TENSORS);
            }
            self.name_bytes += path.len();
            if path.len() > MAX_NAME_BYTES {
                return limit("bytes in a tensor's name", MAX_NAME_BYTES);
            }
            if self.name_bytes > MAX_ALL_NAMES_BYTES {
                return limit("bytes in all tensors' names", MAX_ALL_NAMES_BYTES);
            }
            let dimensions = self.tensors.get(*tensor).map_or(0, |tensor| match tensor {
                Stored::Dense(dense) => dense.shape.len(),
                Stored::Other(other) => other.shape.len(),
            });
            // Once here, and once among the tensors of a root, with the shape.
            let bytes = LISTED + 2 * allocated(path.len()) + allocated(dimensions * size_of::<usize>());
            let full = |Full| TreeLimit { what: "bytes of memory", limit: pickle::MAX_VALUE_BYTES };
            self.budget.take(bytes).map_err(full)?;
            let Place { parent, named, .. } = place;
            self.found.push(Reached { path: path.clone(), parent, named, tensor: *tensor });
            return Ok(());
        }
        let Children { pairs, lists, rest, is_module } = tree.children(id);
        if pairs.is_empty() && lists.is_empty() && rest.is_empty() {
            return Ok(());
        }
        if !self.open.insert(id) {
            return Ok(());
        }
        let length = path.len();
        // The names of a module's tensors count from the outermost module, as `state_dict()` has them.
        let module = if is_module { place.module.or(Some(length)) } else { None };
        let parent = module.unwrap_or(length);
        let named = place.named;
        let elsewhere = Place { parent: length, named: false, module: None };
        for (number, (key, value)) in pairs.into_iter().flatten().enumerate() {
            let text = matches!(tree.value(*key), Value::Str(_));
            if matches!(tree.value(*key), Value::Tensor(_) | Value::List(_) | Value::Set(_) | Value::Object(_)) {
                push(path, &format!("<key {number}>"));
                self.visit(*key, path, elsewhere, depth + 1)?;
                path.truncate(length);
            }
            if tree.value(*value).is_leaf() {
                self.step()?;
                continue;
            }
            match &*tree.key_text(*key) {
                // Two of these in a dictionary are two values.
                NO_TEXT if !text => push(path, &format!("<value {number}>")),
                key => push(path, key),
            }
            self.visit(*value, path, Place { parent, named: named && text, module }, depth + 1)?;
            path.truncate(length);
        }
        for (key, value) in rest {
            if tree.value(*value).is_leaf() {
                self.step()?;
                continue;
            }
            push(path, &tree.key_text(*key));
            self.visit(*value, path, elsewhere, depth + 1)?;
            path.truncate(length);
        }
        for (prefix, items) in lists {
            for (index, value) in items.iter().enumerate() {
                if tree.value(*value).is_leaf() {
                    self.step()?;
                    continue;
                }
                if !prefix.is_empty() {
                    push(path, prefix);
                }
                push(path, &index.to_string());
                self.visit(*value, path, elsewhere, depth + 1)?;
                path.truncate(length);
            }
        }
        self.open.remove(&id);
        Ok(())
    }
}

/// Appends a segment, or as much of it as makes the path too long for a tensor's name: nothing is done with the rest.
fn push(path: &mut String, segment: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    let room = (MAX_NAME_BYTES + 4).saturating_sub(path.len());
    path.push_str(&segment[..segment.ceil_char_boundary(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of which the last value is the root.
    fn tree(values: Vec<Value>) -> Tree {
        Tree { root: values.len() as u32 - 1, values, loose: Vec::new() }
    }

    fn walked(tree: &Tree) -> Result<Vec<Reached>, TreeLimit> {
        tree.tensors(&[], &mut Budget::default())
    }

    fn refused(tree: &Tree) -> usize {
        walked(tree).map(|found| found.len()).unwrap_err().limit
    }

    fn list(items: &[ValueId]) -> Value {
        Value::List(items.into())
    }

    fn map(entries: &[(ValueId, ValueId)]) -> Value {
        Value::Map(entries.into())
    }

    fn text(text: &str) -> Value {
        Value::Str(text.into())
    }

    #[test]
    fn tensors_are_named_by_their_paths() {
        let values = vec![Value::Tensor(0), text("a.b"), Value::Int(7), list(&[0, 0]), map(&[(1, 0), (2, 3)])];
        let found = walked(&tree(values)).unwrap();
        let found: Vec<_> = found.iter().map(|t| (t.path.as_str(), &t.path[..t.parent], t.named)).collect();
        assert_eq!(found, [("a.b", "", true), ("7.0", "7", false), ("7.1", "7", false)]);
    }

    #[test]
    fn cycles_end() {
        let mut values = vec![Value::Tensor(0), list(&[0, 1])];
        values.push(list(&[1, 2]));
        assert_eq!(walked(&tree(values)).unwrap().len(), 1);
    }

    #[test]
    fn rejects_nesting_past_the_limit() {
        let nested = |levels: usize| {
            let mut values = vec![Value::Tensor(0)];
            values.extend((0..levels as u32).map(|below| list(&[below])));
            tree(values)
        };
        assert_eq!(walked(&nested(MAX_DEPTH)).unwrap().len(), 1);
        assert_eq!(refused(&nested(MAX_DEPTH + 1)), MAX_DEPTH);
    }

    #[test]
    fn rejects_trees_that_share_their_way_to_an_endless_walk() {
        let mut values = vec![Value::None];
        values.extend((0..60u32).map(|below| list(&[below; 8])));
        assert_eq!(refused(&tree(values)), MAX_VISITS);
    }

    #[test]
    fn rejects_more_tensors_and_longer_names_than_the_limits() {
        let many = tree(vec![Value::Tensor(0), list(&[0; 1 << 9]), list(&[1; (1 << 9) + 1])]);
        assert_eq!(refused(&many), MAX_TENSORS);
        let named = |length: usize| tree(vec![Value::Tensor(0), text(&"x".repeat(length)), map(&[(1, 0)])]);
        assert_eq!(walked(&named(MAX_NAME_BYTES)).unwrap().len(), 1);
        assert_eq!(refused(&named(MAX_NAME_BYTES + 1)), MAX_NAME_BYTES);
        assert_eq!(refused(&named(8 << 20)), MAX_NAME_BYTES);
        let key = text(&"x".repeat(MAX_NAME_BYTES / 2));
        let names = tree(vec![Value::Tensor(0), key, map(&[(1, 0)]), list(&[2; 1 << 16])]);
        assert_eq!(refused(&names), MAX_ALL_NAMES_BYTES);
    }

    #[test]
    fn long_keys_of_what_is_no_tensor_are_no_trouble() {
        let values = vec![Value::None, text(&"x".repeat(1 << 20)), map(&[(1, 0); 10_000])];
        assert!(walked(&tree(values)).unwrap().is_empty());
    }
}
