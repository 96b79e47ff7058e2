//! The memo of the stack machine.

use std::collections::HashMap;

use super::node::NodeId;

/// Values by memo key. Python numbers them from 0 without a gap, other writers may leave some out: keys in order lie in
/// a vector, and only what is out of order is hashed, so that no key drives an allocation.
#[derive(Default)]
pub(super) struct Memo {
    dense: Vec<NodeId>,
    sparse: HashMap<u64, NodeId>,
}

impl Memo {
    /// Bytes of memory that an entry takes at most.
    pub(super) const ENTRY: usize = 48;

    pub(super) fn len(&self) -> usize {
        self.dense.len() + self.sparse.len()
    }

    pub(super) fn get(&self, key: u64) -> Option<NodeId> {
        let dense = usize::try_from(key).ok().and_then(|key| self.dense.get(key));
        dense.or_else(|| self.sparse.get(&key)).copied()
    }

    /// Stores a value; returns whether it is hashed.
    pub(super) fn put(&mut self, key: u64, value: NodeId) -> bool {
        match usize::try_from(key) {
            Ok(place) if place < self.dense.len() => self.dense[place] = value,
            Ok(place) if place == self.dense.len() => {
                self.sparse.remove(&key);
                self.dense.push(value);
            }
            _ => {
                self.sparse.insert(key, value);
                return true;
            }
        }
        false
    }
}
