//! Pickled modules: the parameters and buffers of a `torch.nn.Module` under the names that `state_dict()` gives them.
//!
//! Follows `torch/nn/modules/module.py` (`state_dict`, `_save_to_state_dict`) and, for TorchScript, the declarations in
//! the archive's code. Hooks of a class that change its `state_dict()` are code, and are not run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Builder, index, indices};
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
    pub(super) fn module(&self, class: &Arc<str>, object: &pickle::Object) -> Option<Value> {
        let attributes = object.state.iter().find_map(|&state| match self.pickle.node(state) {
            Node::Dict(pairs) => Some(&**pairs),
            _ => None,
        })?;
        if class.starts_with("__torch__.") {
            return match self.scripts.get(&**class) {
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
            };
        }
        let find = |name: &str| attributes.iter().rev().find(|(key, _)| self.is_text(*key, name)).map(|&(_, id)| id);
        let pairs = |name: &str| find(name).and_then(|id| self.pairs(id));
        let (parameters, buffers, modules) = (pairs("_parameters")?, pairs("_buffers")?, pairs("_modules")?);
        let hidden = find("_non_persistent_buffers_set").map(|id| self.texts(id)).unwrap_or_default();
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
        Some(self.module_value(class, entries, rest, object))
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
        // In the order of `state_dict()`.
        let rank = |&(key, value): &(NodeId, NodeId)| match () {
            () if named(key, &script.parameters) => 0,
            () if named(key, &script.buffers) => 1,
            () if is_module(value) => 2,
            () => 3,
        };
        let (mut entries, mut rest) = (Vec::new(), Vec::new());
        for wanted in 0..4 {
            let pairs = attributes.iter().filter(|pair| rank(pair) == wanted);
            let pairs = pairs.map(|&(key, value)| (index(key), index(value)));
            if wanted < 3 { entries.extend(pairs) } else { rest.extend(pairs) }
        }
        (entries, rest)
    }

    /// The pairs of a dictionary of whatever kind.
    fn pairs(&self, id: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
        match self.pickle.node(id) {
            Node::Dict(pairs) => Some(pairs.to_vec()),
            Node::Object(object) => {
                let (module, name) = self.pickle.global(object.callable)?;
                if !matches!((module, name), ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict")) {
                    return None;
                }
                let mut pairs = self.initial_pairs(self.pickle.sequence(object.args)?)?;
                pairs.extend_from_slice(&object.entries);
                Some(pairs)
            }
            _ => None,
        }
    }

    /// The texts of a set, as protocols 0 to 3 (`set([...])`) and 4 write it.
    fn texts(&self, id: NodeId) -> HashSet<&str> {
        let pickle = self.pickle;
        let items: &[NodeId] = match pickle.node(id) {
            Node::Set(items) => items,
            Node::FrozenSet(items) => items,
            Node::Object(object) => {
                pickle.sequence(object.args).and_then(|args| pickle.sequence(*args.first()?)).unwrap_or(&[])
            }
            _ => &[],
        };
        let text = |&item: &NodeId| match pickle.node(item) {
            Node::Str(text) => Some(&**text),
            _ => None,
        };
        items.iter().filter_map(text).collect()
    }
}
