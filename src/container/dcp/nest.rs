//! The nested object that a distributed checkpoint was saved from, put together again from flat names.
//!
//! Follows `torch/distributed/checkpoint/_traverse.py` (`set_element`): a number as key is a place in a list. Where a list
//! has places that nothing was saved for, it becomes a mapping by number here.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::gather::Gather;
use super::super::{Value, ValueId};
use crate::pickle::{Budget, Full};

/// A step on the way to a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Text(Arc<str>),
    Number(i64),
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Value(ValueId),
    /// The level with that number.
    Level(usize),
}

/// All levels; those further down have higher numbers, and the top is the first.
#[derive(Debug)]
pub(super) struct Nest {
    levels: Vec<Vec<(Key, Slot)>>,
    slots: HashMap<(usize, Key), Slot>,
}

impl Default for Nest {
    fn default() -> Nest {
        Nest { levels: vec![Vec::new()], slots: HashMap::new() }
    }
}

impl Nest {
    /// Puts `value` to its place; without a path, under its name at the top. Whether the place was free.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for it.
    pub(super) fn insert(
        &mut self,
        path: Option<&[Key]>,
        name: &Arc<str>,
        value: ValueId,
        budget: &mut Budget,
    ) -> Result<bool, Full> {
        /// Bytes of memory that a level takes: its place, its first entries, and what becomes of it.
        const LEVEL: usize = 2 * size_of::<Vec<(Key, Slot)>>() + 4 * size_of::<(Key, Slot)>() + size_of::<Value>();
        /// Those of an entry: its place in the level, in the table, and what becomes of it.
        const ENTRY: usize =
            2 * size_of::<(Key, Slot)>() + 5 * size_of::<((usize, Key), Slot)>() / 2 + size_of::<Value>();
        let own = [Key::Text(Arc::clone(name))];
        let Some((last, way)) = path.unwrap_or(&own).split_last() else { return Ok(false) };
        budget.take(ENTRY)?;
        let mut level = 0;
        for key in way {
            level = match self.slots.get(&(level, key.clone())) {
                Some(Slot::Level(below)) => *below,
                Some(Slot::Value(_)) => return Ok(false),
                None => {
                    budget.take(LEVEL + ENTRY)?;
                    self.levels.push(Vec::new());
                    let below = self.levels.len() - 1;
                    self.put(level, key, Slot::Level(below));
                    below
                }
            };
        }
        if self.slots.contains_key(&(level, last.clone())) {
            return Ok(false);
        }
        self.put(level, last, Slot::Value(value));
        Ok(true)
    }

    fn put(&mut self, level: usize, key: &Key, slot: Slot) {
        self.levels[level].push((key.clone(), slot));
        self.slots.insert((level, key.clone()), slot);
    }

    /// Makes the values of all levels; returns the top.
    pub(super) fn finish(self, gather: &mut Gather) -> ValueId {
        let mut made: Vec<ValueId> = vec![0; self.levels.len()];
        for (number, mut entries) in self.levels.into_iter().enumerate().rev() {
            let value_of = |slot| match slot {
                Slot::Value(value) => value,
                Slot::Level(below) => made[below],
            };
            let place = |key: &Key| match key {
                Key::Number(n) => *n,
                Key::Text(_) => i64::MAX,
            };
            let is_list = number > 0 && {
                let mut places: Vec<i64> = entries.iter().map(|(key, _)| place(key)).collect();
                places.sort_unstable();
                places.iter().zip(0..).all(|(&place, index)| place == index)
            };
            let value = if is_list {
                entries.sort_by_key(|(key, _)| place(key));
                Value::List(entries.into_iter().map(|(_, slot)| value_of(slot)).collect())
            } else {
                let mut pairs = Vec::with_capacity(entries.len());
                for (key, slot) in entries {
                    let key = match key {
                        Key::Text(text) => gather.add(Value::Str(text)),
                        Key::Number(n) => gather.add(Value::Int(n)),
                    };
                    pairs.push((key, value_of(slot)));
                }
                Value::Map(pairs)
            };
            made[number] = gather.add(value);
        }
        made[0]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Container, Contents, Map, Source};
    use super::*;

    fn path(keys: &[&str]) -> Vec<Key> {
        keys.iter().map(|key| key.parse().map_or_else(|_| Key::Text((*key).into()), Key::Number)).collect()
    }

    /// The paths of leaves after putting them together, in order.
    fn nested(paths: &[&[&str]]) -> Vec<String> {
        let source = Source { path: "".into(), map: Map::Memory(Vec::new()) };
        let mut gather = Gather::new(Container::Dcp, source);
        let mut nest = Nest::default();
        for (number, keys) in paths.iter().enumerate() {
            let leaf = gather.add(Value::Tensor(number));
            let free = nest.insert(Some(&path(keys)), &"".into(), leaf, &mut gather.budget);
            assert_eq!(free, Ok(true), "{keys:?}");
        }
        let root = nest.finish(&mut gather);
        let Contents { tree, mut budget, .. } = gather.contents(root);
        tree.tensors(&[], &mut budget)
            .unwrap()
            .into_iter()
            .map(|found| format!("{}={}", found.path, found.tensor))
            .collect()
    }

    #[test]
    fn mappings_and_lists_are_restored() {
        let found = nested(&[&["model", "b"], &["model", "a"], &["list", "1"], &["list", "0", "x"], &["gap", "7"]]);
        assert_eq!(found, ["model.b=0", "model.a=1", "list.0.x=3", "list.1=2", "gap.7=4"]);
    }

    #[test]
    fn places_that_are_taken_are_refused() {
        let mut nest = Nest::default();
        let mut budget = Budget::default();
        let mut insert = |keys: &[&str]| nest.insert(Some(&path(keys)), &"".into(), 0, &mut budget).unwrap();
        assert!(insert(&["a", "b"]));
        assert!(!insert(&["a", "b"]));
        assert!(!insert(&["a"]));
        assert!(!insert(&["a", "b", "c"]));
        assert!(!insert(&[]));
        assert_eq!(nest.insert(None, &"a".into(), 0, &mut budget), Ok(false));
        assert_eq!(nest.insert(None, &"c".into(), 0, &mut budget), Ok(true));
    }
}
