//! Pickled modules: the parameters and buffers of a `torch.nn.Module` under the names that `state_dict()` gives them.
//!
//! Follows `torch/nn/modules/module.py` (`state_dict`, `_save_to_state_dict`) and, for TorchScript, the declarations in
//! the archive's code. Hooks of a class that change its `state_dict()` are code, and are not run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Builder, Fallible, index, indices};
use crate::container::{Module, Value, ValueId};
use crate::pickle::{self, Node, NodeId};

/// What the code of a TorchScript archive declares of a class.
#[derive(Clone, Debug, Default)]
pub(in crate::container) struct ScriptClass {
    pub(in crate::container) parameters: HashSet<String>,
    pub(in crate::container) buffers: HashSet<String>,
}

type Pairs = Vec<(ValueId, ValueId)>;

/// The classes of a TorchScript archive by qualified name (`__torch__.torch.nn.modules.linear.Linear`).
pub(in crate::container) type ScriptClasses = HashMap<String, ScriptClass>;

impl Builder<'_> {
    /// The object as a module, if it is one: of a class that this crate never has to know, told by its attributes.
    pub(super) fn module(&self, id: NodeId, class: &Arc<str>, object: &pickle::Object) -> Fallible<Option<Value>> {
        let attributes = object.state.iter().find_map(|&state| match self.pickle.node(state) {
            Node::Dict(pairs) => Some(&**pairs),
            _ => None,
        });
        let Some(attributes) = attributes else { return Ok(None) };
        // Objects may share their attributes, and each looks at all of them.
        self.copies(id, attributes.len())?;
        if class.starts_with("__torch__.") {
            return Ok(match self.scripts.get(&**class) {
                Some(script) => {
                    let (entries, rest) = self.script_module(attributes, script);
                    Some(self.module_value(class, entries, rest, object))
                }
                // An archive without code (made for phones): every attribute may be part of the state.
                None if self.scripts.is_empty() => {
                    let entries = attributes.iter().map(|&(key, value)| (index(key), index(value))).collect();
                    Some(self.module_value(class, entries, Vec::new(), object))
                }
                None => None,
            });
        }
        let find = |name: &str| attributes.iter().rev().find(|(key, _)| self.is_text(*key, name)).map(|&(_, id)| id);
        let pairs = |name: &str| find(name).map_or(Ok(None), |found| self.pairs(id, found));
        let (Some(parameters), Some(buffers), Some(modules)) =
            (pairs("_parameters")?, pairs("_buffers")?, pairs("_modules")?)
        else {
            return Ok(None);
        };
        let hidden = find("_non_persistent_buffers_set").map_or(Ok(HashSet::new()), |found| self.texts(id, found))?;
        let (mut entries, mut rest) = (Vec::new(), Vec::new());
        let some = |value: NodeId| !matches!(self.pickle.node(value), Node::None);
        for (key, value) in parameters.into_iter().chain(buffers).chain(modules).filter(|(_, value)| some(*value)) {
            let pair = (index(key), index(value));
            let is_hidden = matches!(self.pickle.node(key), Node::Str(name) if hidden.contains(&**name));
            if is_hidden { rest.push(pair) } else { entries.push(pair) }
        }
        let taken = ["_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"];
        let others = attributes.iter().filter(|(key, _)| !taken.iter().any(|name| self.is_text(*key, name)));
        rest.extend(others.map(|&(key, value)| (index(key), index(value))));
        Ok(Some(self.module_value(class, entries, rest, object)))
    }

    fn module_value(&self, class: &Arc<str>, entries: Pairs, mut rest: Pairs, object: &pickle::Object) -> Value {
        rest.extend(object.entries.iter().map(|&(key, value)| (index(key), index(value))));
        let args = indices(self.pickle.sequence(object.args).unwrap_or(&[]));
        let items = indices(&object.items);
        Value::Module(Box::new(Module { class: class.clone(), entries, rest, args, items }))
    }

    fn script_module(&self, attributes: &[(NodeId, NodeId)], script: &ScriptClass) -> (Pairs, Pairs) {
        let named = |key: NodeId, names: &HashSet<String>| match self.pickle.node(key) {
            Node::Str(name) => names.contains(&**name),
            _ => false,
        };
        let is_module = |value: NodeId| match self.pickle.node(value) {
            Node::Object(object) => match self.global(object.callable) {
                Some((module, name)) => self.scripts.contains_key(&format!("{module}.{name}")),
                None => false,
            },
            _ => false,
        };
        let (mut parameters, mut buffers, mut modules, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &(key, value) in attributes {
            let place = match () {
                () if named(key, &script.parameters) => &mut parameters,
                () if named(key, &script.buffers) => &mut buffers,
                () if is_module(value) => &mut modules,
                () => &mut rest,
            };
            place.push((index(key), index(value)));
        }
        // In the order of `state_dict()`.
        parameters.extend(buffers);
        parameters.extend(modules);
        (parameters, rest)
    }

    /// The pairs of a dictionary of whatever kind; `None` if it is none.
    fn pairs(&self, object: NodeId, id: NodeId) -> Fallible<Option<Vec<(NodeId, NodeId)>>> {
        match self.pickle.node(id) {
            Node::Dict(pairs) => {
                self.copies(object, pairs.len())?;
                Ok(Some(pairs.to_vec()))
            }
            Node::Object(dictionary) => {
                let class = self.pickle.global(dictionary.callable);
                let Some(("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict")) = class else {
                    return Ok(None);
                };
                let Some(args) = self.pickle.sequence(dictionary.args) else { return Ok(None) };
                let Some(mut pairs) = self.initial_pairs(object, args)? else { return Ok(None) };
                self.copies(object, dictionary.entries.len())?;
                pairs.extend_from_slice(&dictionary.entries);
                Ok(Some(pairs))
            }
            _ => Ok(None),
        }
    }

    /// The texts of a set, as protocols 0 to 3 (`set([...])`) and 4 write it.
    fn texts(&self, object: NodeId, id: NodeId) -> Fallible<HashSet<&str>> {
        let pickle = self.pickle;
        let items: &[NodeId] = match pickle.node(id) {
            Node::Set(items) => items,
            Node::FrozenSet(items) => items,
            Node::Object(set) => {
                pickle.sequence(set.args).and_then(|args| pickle.sequence(*args.first()?)).unwrap_or(&[])
            }
            _ => &[],
        };
        // A text takes longer to be found again than to be copied.
        self.copies(object, 8 * items.len())?;
        let text = |&item: &NodeId| match pickle.node(item) {
            Node::Str(text) => Some(&**text),
            _ => None,
        };
        Ok(items.iter().filter_map(text).collect())
    }
}
