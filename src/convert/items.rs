//! The tensors of the output while they are decided on.

use std::collections::BTreeMap;

use crate::checkpoint::{Expr, Operation, StateDict};
use crate::error::Result;
use crate::tensor::{DType, TensorSpec};

/// A tensor of the output: its name, what it is made of, and what was done to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name in the output.
    pub name: String,
    /// The names of the tensors that it is made of; empty if it is made of none.
    pub from: Vec<String>,
    /// What was done to its values, in words; empty if nothing was.
    pub changes: Vec<String>,
    /// Whether it comes from the donor.
    pub filled: bool,
    /// The type that it is written in, if that is not the one it is stored in.
    pub(super) dtype: Option<DType>,
    pub(super) expr: Expr,
}

impl Item {
    /// A tensor of the input as it is.
    pub(super) fn plain(index: usize, spec: &TensorSpec) -> Item {
        let (name, from) = (spec.name.clone(), vec![spec.name.clone()]);
        Item { name, from, changes: Vec::new(), filled: false, dtype: None, expr: Expr::tensor(index) }
    }

    /// A tensor that is made of others, or of none.
    pub(super) fn made(name: &str, expr: Expr) -> Item {
        Item { name: name.to_owned(), from: Vec::new(), changes: Vec::new(), filled: false, dtype: None, expr }
    }

    /// Makes it what `op` computes of it.
    pub(super) fn compute(&mut self, op: Operation) {
        self.changes.push(op.to_string());
        let of = vec![std::mem::replace(&mut self.expr, Expr::Stacked(Vec::new()))];
        self.expr = Expr::Computed { op, of };
    }
}

/// All of them, in order, and the state dicts that they are made of: the input's, then the donor's.
#[derive(Clone, Debug)]
pub(super) struct Items<'c> {
    pub(super) inputs: Vec<StateDict<'c>>,
    pub(super) all: Vec<Item>,
}

impl<'c> Items<'c> {
    fn specs(&self) -> Vec<&[TensorSpec]> {
        self.inputs.iter().map(StateDict::specs).collect()
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|item| item.name == name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Item> {
        self.all.iter_mut().find(|item| item.name == name)
    }

    /// The shape of the tensor `name`, if it is there and its parts fit together.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let item = &self.all[self.position(name)?];
        item.expr.kind(&self.specs()).ok().map(|(_, shape)| shape)
    }

    /// The type that the tensor `name` is stored in.
    pub(super) fn stored_dtype(&self, name: &str) -> Option<DType> {
        let item = &self.all[self.position(name)?];
        item.expr.stored_dtype(&self.specs()).ok()
    }

    /// Takes a tensor out.
    pub(super) fn remove(&mut self, name: &str) -> Option<Item> {
        self.position(name).map(|at| self.all.remove(at))
    }

    /// The state dict that they make.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if parts do not fit together, or two have one name.
    pub(super) fn dict(&self) -> Result<StateDict<'c>> {
        let items = self.all.iter().map(|item| (item.name.clone(), item.expr.clone())).collect();
        let mut inputs = self.inputs.iter().cloned();
        match inputs.next() {
            Some(first) => first.derived(inputs.collect(), items),
            None => unreachable!("there is an input"),
        }
    }

    /// The type that each is written in: the one it is stored in, or the one it was given.
    pub(super) fn dtypes(&self, dict: &StateDict<'_>) -> Vec<DType> {
        let specs = self.specs();
        let stored = |item: &Item| item.expr.stored_dtype(&specs).ok();
        let each = self.all.iter().zip(dict.specs());
        each.map(|(item, spec)| item.dtype.or(stored(item)).unwrap_or(spec.dtype)).collect()
    }

    /// Two tensors of one name, if there are such: the name, and what both are made of.
    pub(super) fn collision(&self) -> Option<(&Item, &Item)> {
        let mut known: BTreeMap<&str, &Item> = BTreeMap::new();
        self.all.iter().find_map(|item| Some((known.insert(item.name.as_str(), item)?, item)))
    }
}
