//! The memo of the stack machine.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::budget::{Budget, Full};
use super::node::NodeId;

/// Values by memo key. Python numbers them from 0 without a gap, other writers may leave some out: keys in order lie in
/// a vector, and only what is out of order is hashed, so that no key drives an allocation.
#[derive(Default)]
pub(super) struct Memo {
    dense: Vec<NodeId>,
    sparse: HashMap<u64, NodeId>,
}

/// Bytes of memory that a hashed entry takes at most.
const HASHED: usize = 48;

impl Memo {
    /// Bytes of memory that were taken for it.
    pub(super) fn memory(&self) -> usize {
        size_of::<NodeId>() * self.dense.capacity() + HASHED * self.sparse.len()
    }

    pub(super) fn len(&self) -> usize {
        self.dense.len() + self.sparse.len()
    }

    pub(super) fn get(&self, key: u64) -> Option<NodeId> {
        let dense = usize::try_from(key).ok().and_then(|key| self.dense.get(key));
        dense.or_else(|| self.sparse.get(&key)).copied()
    }

    /// Stores a value.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for it.
    pub(super) fn put(&mut self, key: u64, value: NodeId, budget: &mut Budget) -> Result<(), Full> {
        match usize::try_from(key) {
            Ok(place) if place < self.dense.len() => self.dense[place] = value,
            Ok(place) if place == self.dense.len() => {
                // Hashing the key takes longer than all else, and hardly any pickle has such keys.
                if !self.sparse.is_empty() {
                    self.sparse.remove(&key);
                }
                budget.push(&mut self.dense, value)?;
            }
            _ => match self.sparse.entry(key) {
                Entry::Occupied(mut known) => {
                    known.insert(value);
                }
                Entry::Vacant(place) => {
                    budget.take_table(HASHED)?;
                    place.insert(value);
                }
            },
        }
        Ok(())
    }
}
