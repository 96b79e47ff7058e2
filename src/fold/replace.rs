//! Tensors of another file in place of the target's: a head or norms that were trained beside the lambdas.

use std::collections::BTreeMap;

use super::Understood;
use crate::checkpoint::{Checkpoint, Expr, RootChoice, StateDict};
use crate::error::{Error, Result};
use crate::naming::nearest;
use crate::plan::{FoldProblem, NotInTarget, ReplaceMismatch};
use crate::tensor::{DType, TensorSpec};

/// What took the place of tensors of a target.
#[derive(Clone, Debug)]
pub struct Replaced<'c> {
    /// The tensors of the other file, all of which took the place of one.
    pub tensors: StateDict<'c>,
    /// The names of the tensors that were replaced, in the target's order.
    pub names: Vec<String>,
}

impl<'c> Understood<'c> {
    /// Puts the tensors of `file` in the place of those of the same names. Layers stay what they are, and the fold knows of nothing:
    /// the tensors are a state dict of both files. Returns what the user should know; `cast` is the type that all are cast to later.
    ///
    /// # Errors
    /// [`Error::Root`]; [`Error::Fold`] if a tensor has no counterpart, or one of another shape.
    pub(super) fn replace(
        &mut self,
        file: &'c Checkpoint,
        choice: &RootChoice,
        cast: Option<DType>,
    ) -> Result<Vec<String>> {
        let tensors = file.state_dict(choice).map_err(|error| error.root_chosen_by("--replace-root"))?;
        tensors.require_dense()?;
        let target = self.tensors.clone();
        let both = Both {
            target: target.specs(),
            file: tensors.specs(),
            names: [target.checkpoint(), tensors.checkpoint()].map(|file| file.path().display().to_string()),
        };
        let wrong = |problem| Error::Fold(Box::new(problem));
        let (prefix, from) = both.counterparts(&target).map_err(wrong)?;
        both.check(&from).map_err(wrong)?;

        let items = target.specs().iter().zip(&from).enumerate();
        let items = items.map(|(index, (spec, from))| {
            let own = || Expr::tensor(index);
            (spec.name.clone(), from.map_or_else(own, |tensor| Expr::Tensor { input: 1, tensor }))
        });
        self.tensors = target.clone().derived(vec![tensors.clone()], items.collect())?;

        let [of_target, of_file] = &both.names;
        let mut notes = Vec::new();
        if !prefix.is_empty() {
            notes.push(format!("the names in {of_file} are those of {of_target} without the {prefix:?} before them"));
        }
        if cast.is_none() {
            notes.extend(both.other_types(&from));
        }
        notes.extend(both.shared(&from, &target, &self.tensors));
        let names = target.specs().iter().zip(&from).filter(|(_, from)| from.is_some());
        let names = names.map(|(spec, _)| spec.name.clone()).collect();
        self.replaced = Some(Replaced { tensors, names });
        Ok(notes)
    }
}

/// The tensors of a target, and those that replace some of them.
struct Both<'s> {
    target: &'s [TensorSpec],
    file: &'s [TensorSpec],
    /// The two files, as the user gave them.
    names: [String; 2],
}

impl Both<'_> {
    /// For each tensor of the target the one that takes its place, and what stands before the names in the target: nothing, or a part
    /// of what all of them begin with.
    fn counterparts(&self, target: &StateDict<'_>) -> Result<(&str, Vec<Option<usize>>), FoldProblem> {
        let found =
            |prefix: &str| self.file.iter().map(|spec| target.find(&format!("{prefix}{}", spec.name))).collect();
        for prefix in prefixes(self.target) {
            let Some(places): Option<Vec<usize>> = found(prefix) else { continue };
            let mut from = vec![None; self.target.len()];
            places.into_iter().enumerate().for_each(|(tensor, place)| from[place] = Some(tensor));
            return Ok((prefix, from));
        }
        /// Names that a message lists.
        const LISTED: usize = 8;
        let unknown = || self.file.iter().map(|spec| spec.name.as_str()).filter(|name| target.find(name).is_none());
        let near = |name: &str| nearest(name, self.target.iter().map(|spec| spec.name.as_str())).map(str::to_owned);
        let [target, file] = self.names.clone();
        let names = unknown().take(LISTED).map(|name| (name.to_owned(), near(name))).collect();
        Err(FoldProblem::NotInTarget(Box::new(NotInTarget { target, file, names, count: unknown().count() })))
    }

    /// Shapes have to be the same, and types, unless both are types that are computed with.
    fn check(&self, from: &[Option<usize>]) -> Result<(), FoldProblem> {
        for (spec, other) in self.pairs(from) {
            let types = spec.dtype == other.dtype || spec.dtype.is_foldable() && other.dtype.is_foldable();
            if spec.shape != other.shape || !types {
                let [target, file] = self.names.clone();
                return Err(FoldProblem::Replace(Box::new(ReplaceMismatch {
                    target,
                    file,
                    tensor: spec.clone(),
                    other: other.clone(),
                })));
            }
        }
        Ok(())
    }

    fn pairs<'a>(&'a self, from: &'a [Option<usize>]) -> impl Iterator<Item = (&'a TensorSpec, &'a TensorSpec)> {
        self.target.iter().zip(from).filter_map(|(spec, from)| Some((spec, &self.file[(*from)?])))
    }

    /// What is said of tensors that are of another type than the target's.
    fn other_types(&self, from: &[Option<usize>]) -> Vec<String> {
        let mut types: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (spec, other) in self.pairs(from).filter(|(spec, other)| spec.dtype != other.dtype) {
            types.entry((other.dtype.name(), spec.dtype.name())).or_default().push(&spec.name);
        }
        let [target, file] = &self.names;
        let note = |((new, old), names): (_, Vec<&str>)| {
            format!("of type {new} in {file} and {old} in {target}, and written as {new}: {}", list(&names))
        };
        types.into_iter().map(note).collect()
    }

    /// What is said of storages that replaced tensors shared with others, and share no longer.
    fn shared(&self, from: &[Option<usize>], target: &StateDict<'_>, made: &StateDict<'_>) -> Vec<String> {
        let mut storages: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for index in (0..self.target.len()).filter(|&index| self.target[index].numel() > 0) {
            storages.entry(target.placement(index).storage).or_default().push(index);
        }
        let [of_target, of_file] = &self.names;
        let mut notes = Vec::new();
        for members in storages.into_values() {
            let names = |replaced: bool| {
                let names = members.iter().filter(|&&index| from[index].is_some() == replaced);
                names.map(|&index| self.target[index].name.as_str()).collect::<Vec<_>>()
            };
            let (replaced, kept) = (names(true), names(false));
            let storage = |index: usize| made.placement(index).storage;
            if replaced.is_empty() || members.iter().all(|&index| storage(index) == storage(members[0])) {
                continue;
            }
            notes.push(match kept.as_slice() {
                [] => format!(
                    "{} share a storage in {of_target}, and not in {of_file}: they are written as in {of_file}",
                    list(&replaced)
                ),
                kept => format!(
                    "replaced, and written apart from the others of a storage in {of_target}: {}; these keep their own \
                     numbers: {}",
                    list(&replaced),
                    list(kept)
                ),
            });
        }
        notes
    }
}

/// The names, up to as many as a note can hold.
fn list(names: &[&str]) -> String {
    const LISTED: usize = 12;
    let more = names.len().saturating_sub(LISTED);
    let all = names[..names.len().min(LISTED)].join(", ");
    if more > 0 { format!("{all} and {more} more") } else { all }
}

/// Nothing, and then whatever all names begin with, up to each of its dots.
fn prefixes(specs: &[TensorSpec]) -> impl Iterator<Item = &str> {
    let mut names = specs.iter().map(|spec| spec.name.as_str());
    let first = names.next().unwrap_or_default();
    let common = names.fold(first.len(), |common, name| {
        first.bytes().zip(name.bytes()).take(common).take_while(|(a, b)| a == b).count()
    });
    let dots = first.match_indices('.').map(|(at, _)| at + 1).filter(move |&end| end <= common);
    std::iter::once(0).chain(dots).map(move |end| &first[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_dots_that_all_names_have() {
        let of = |names: &[&str]| -> Vec<String> {
            let spec = |name: &&str| TensorSpec { name: (*name).into(), dtype: DType::F32, shape: vec![] };
            prefixes(&names.iter().map(spec).collect::<Vec<_>>()).map(str::to_owned).collect()
        };
        assert_eq!(of(&["module.vit.head.weight", "module.vit.heads"]), ["", "module.", "module.vit."]);
        assert_eq!(of(&["blocks.0.weight", "head.weight"]), [""]);
        assert_eq!(of(&["blöcke.a", "blücke.a"]), [""]);
        assert_eq!(of(&[]), [""]);
    }

    #[test]
    fn long_lists_are_cut() {
        let names = ["x"; 14];
        assert_eq!(list(&names[..2]), "x, x");
        assert_eq!(list(&names), format!("{} and 2 more", ["x"; 12].join(", ")));
    }
}
