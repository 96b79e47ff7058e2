//! An auxiliary's layers in the form that the target has them in.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Expr, StateDict};
use crate::error::{Error, Result};
use crate::naming::{AUX_WEIGHT, Flags, Layer, LayerId, Layers, Mapped, Mapping, MatchProblem, SCALE};
use crate::tensor::TensorSpec;

/// A part of a stacked layer, and how many there are.
type Part = Option<(usize, usize)>;

/// The layers of `aux`, each stacked or apart as the target's are, and the state dict that holds them: `aux` itself, or `aux` and
/// behind it what had to be made.
///
/// # Errors
/// [`Error::Match`] if there are no layers, or some do not fit together; [`Error::Tensor`].
pub(super) fn to<'c>(
    aux: StateDict<'c>,
    mapping: &Mapping,
    target: &Layers,
    flags: Flags,
) -> Result<(StateDict<'c>, Layers)> {
    let by_name: BTreeMap<&str, &Mapped> = mapping.tensors.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut seen = BTreeSet::new();
    let sources = mapping.tensors.iter().flat_map(|mapped| mapped.sources.iter().flatten());
    let shared = sources.filter(|source| !seen.insert(**source)).copied().collect();
    let mut adapter = Adapter { specs: aux.specs(), shared, made: Vec::new() };
    let mut layers = Vec::new();
    for mapped in &mapping.tensors {
        let Some(id) = LayerId::of_weight(&mapped.name) else { continue };
        let beside = |leaf: &str| {
            let name = format!("{}{leaf}", mapped.name.strip_suffix("weight").unwrap_or_default());
            by_name.get(name.as_str()).copied()
        };
        let apart = target.as_slice().iter().filter(|layer| layer.id == id).filter_map(|layer| layer.part).max();
        let parts: Vec<Part> = match apart {
            Some(last) => (0..=last).map(|part| Some((part, last + 1))).collect(),
            None => vec![None],
        };
        for part in parts {
            let mut take = |mapped: Option<&Mapped>| mapped.map(|mapped| adapter.take(mapped, part));
            let Some(weight) = take(Some(mapped)) else { continue };
            let (bias, scale, aux_weight) = (take(beside("bias")), take(beside(SCALE)), take(beside(AUX_WEIGHT)));
            let name = adapter.name(mapped, part);
            let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
            layers.push(Layer { id, part: part.map(|(part, _)| part), module, weight, bias, scale, aux_weight });
        }
    }
    if layers.is_empty() {
        // As for a target: the error that says which names are near.
        let timm = crate::naming::Family::timm();
        let wrong = |problem: MatchProblem| Error::Match { path: aux.checkpoint().path().to_owned(), problem };
        let layers = Layers::of_family(aux.specs(), &timm, flags).map_err(wrong)?;
        return Ok((aux, layers));
    }
    let made = adapter.made;
    if made.is_empty() {
        return Ok((aux, Layers::new(layers)));
    }
    let own = aux.specs().iter().enumerate().map(|(index, spec)| (spec.name.clone(), Expr::tensor(index)));
    let items = own.chain(made).collect();
    Ok((aux.derived(Vec::new(), items)?, Layers::new(layers)))
}

struct Adapter<'s> {
    specs: &'s [TensorSpec],
    /// Tensors that several others are made of: all blocks in one.
    shared: BTreeSet<usize>,
    made: Vec<(String, Expr)>,
}

impl Adapter<'_> {
    /// The index of that part of a tensor in timm's form, which is made if it is not there.
    fn take(&mut self, mapped: &Mapped, part: Part) -> usize {
        let there = match (part, mapped.sources.as_slice()) {
            (None, [Some(only)]) => Some(*only),
            (Some((part, count)), sources) if sources.len() == count => sources[part],
            _ => None,
        };
        if let Some(index) = there.filter(|_| mapped.keeps_elements) {
            return index;
        }
        let rows = || mapped.expr.kind(&[self.specs]).ok().and_then(|(_, shape)| shape.first().copied());
        let rows_each = |count: usize| rows().filter(|rows| rows % count == 0).map(|rows| rows / count);
        let expr = match part.and_then(|(part, count)| Some((part, rows_each(count)?))) {
            Some((part, rows)) => mapped.expr.clone().rows(part * rows, rows),
            // Where there are no such parts all of it: if the layer is wanted, the fold says that shapes differ.
            None => mapped.expr.clone(),
        };
        let name = self.name(mapped, part);
        if let Some(at) = self.made.iter().position(|(known, _)| *known == name) {
            return self.specs.len() + at;
        }
        self.made.push((name, expr));
        self.specs.len() + self.made.len() - 1
    }

    /// What messages call it: the names that it is made of, and whatever tells it from others that are made of the same.
    fn name(&self, mapped: &Mapped, part: Part) -> String {
        let sources = &mapped.sources;
        let name = |index: &usize| self.specs[*index].name.as_str();
        match (part, sources.as_slice()) {
            (None, [Some(only)]) if mapped.keeps_elements => name(only).to_owned(),
            (Some((part, count)), all) if all.len() == count && mapped.keeps_elements && all[part].is_some() => {
                all[part].as_ref().map(name).unwrap_or_default().to_owned()
            }
            (part, all) => {
                let shared = all.iter().flatten().any(|source| self.shared.contains(source));
                let many = if shared { format!(" ({})", mapped.name) } else { String::new() };
                let which = match part {
                    Some((part, 3)) => format!(" ({})", ["queries", "keys", "values"].get(part).unwrap_or(&"")),
                    Some((part, count)) => format!(" (part {} of {count})", part + 1),
                    // A name of its own, also where a single tensor is turned.
                    None if all.len() == 1 && !shared => " (as PyTorch has it)".to_owned(),
                    None => String::new(),
                };
                let all: Vec<&str> = all.iter().map(|source| source.as_ref().map_or("0", name)).collect();
                format!("{}{many}{which}", all.join(" + "))
            }
        }
    }
}
