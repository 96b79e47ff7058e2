//! What one file, or a part of one, yields; and how several become one.

use super::{Container, Storage, Stored, Tree, ValueId};
use crate::pickle::{Budget, Full};

/// What one file, or a part of one, yields: ranges count from its first byte, all in one source.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) container: Container,
    pub(crate) tree: Tree,
    pub(crate) tensors: Vec<Stored>,
    pub(crate) storages: Vec<Storage>,
}

impl Part {
    /// Nothing yet.
    pub(super) fn new(container: Container) -> Part {
        let tree = Tree { values: Vec::new(), root: 0, loose: Vec::new() };
        Part { container, tree, tensors: Vec::new(), storages: Vec::new() }
    }

    /// Takes over all of another part, and returns the number of its top value here.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for both while that is done.
    pub(super) fn absorb(&mut self, other: Part, budget: &mut Budget) -> Result<ValueId, Full> {
        let first = self.storages.len();
        let Part { tree, tensors, storages, container: _ } = other;
        append(&mut self.storages, storages, budget)?;
        self.graft(tree, tensors, |storage| first + storage, budget)
    }

    /// Takes over values and tensors whose storages are here: `place` gives the number of each. Returns the number of the
    /// top value.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for both while that is done.
    pub(super) fn graft(
        &mut self,
        tree: Tree,
        mut tensors: Vec<Stored>,
        place: impl Fn(usize) -> usize,
        budget: &mut Budget,
    ) -> Result<ValueId, Full> {
        let Tree { mut values, root, mut loose } = tree;
        // There is memory for far fewer values than there are numbers.
        let (first, first_tensor) = (self.tree.values.len() as ValueId, self.tensors.len());
        for value in &mut values {
            value.shift(first, first_tensor);
        }
        for id in &mut loose {
            *id += first;
        }
        for tensor in &mut tensors {
            if let Stored::Dense(dense) = tensor {
                dense.storage = place(dense.storage);
            }
        }
        append(&mut self.tree.values, values, budget)?;
        append(&mut self.tree.loose, loose, budget)?;
        append(&mut self.tensors, tensors, budget)?;
        Ok(first + root)
    }
}

/// Moves `items` to the end of `held`.
fn append<T>(held: &mut Vec<T>, mut items: Vec<T>, budget: &mut Budget) -> Result<(), Full> {
    if held.is_empty() {
        *held = items;
        return Ok(());
    }
    budget.reserve(held, items.len())?;
    held.append(&mut items);
    // Memory was taken for both.
    budget.give_back(items.capacity() * size_of::<T>());
    Ok(())
}
