//! An auxiliary's layers in the form that the target has them in.

use std::collections::BTreeMap;

use crate::checkpoint::{Expr, StateDict};
use crate::error::{Error, Result};
use crate::naming::{AUX_WEIGHT, Flags, Layer, LayerId, Layers, Mapped, Mapping, MatchProblem, SCALE};
use crate::tensor::TensorSpec;

/// How many layers timm stacks in `attn.qkv`.
const STACKED: usize = 3;

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
    let mut adapter = Adapter { specs: aux.specs(), made: Vec::new() };
    let mut layers = Vec::new();
    for mapped in &mapping.tensors {
        let Some(id) = LayerId::of_weight(&mapped.name) else { continue };
        let beside = |leaf: &str| {
            let name = format!("{}{leaf}", mapped.name.strip_suffix("weight").unwrap_or_default());
            by_name.get(name.as_str()).copied()
        };
        let apart = target.as_slice().iter().any(|layer| layer.id == id && layer.part.is_some());
        let parts = if apart { (0..STACKED).map(Some).collect() } else { vec![None] };
        for part in parts {
            let mut take = |mapped: Option<&Mapped>| mapped.map(|mapped| adapter.take(mapped, part));
            let Some(weight) = take(Some(mapped)) else { continue };
            let (bias, scale, aux_weight) = (take(beside("bias")), take(beside(SCALE)), take(beside(AUX_WEIGHT)));
            let name = adapter.name(mapped, part);
            let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
            layers.push(Layer { id, part, module, weight, bias, scale, aux_weight });
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
    made: Vec<(String, Expr)>,
}

impl Adapter<'_> {
    /// The index of that part of a tensor in timm's form, which is made if it is not there.
    fn take(&mut self, mapped: &Mapped, part: Option<usize>) -> usize {
        let there = match (part, mapped.sources.as_slice()) {
            (None, [Some(only)]) => Some(*only),
            (Some(part), sources) if sources.len() == STACKED => sources[part],
            _ => None,
        };
        if let Some(index) = there.filter(|_| mapped.keeps_elements) {
            return index;
        }
        let expr = match part {
            None => mapped.expr.clone(),
            Some(part) => {
                let rows = mapped.expr.kind(&[self.specs]).ok().and_then(|(_, shape)| shape.first().copied());
                let thirds = rows.filter(|rows| rows % STACKED == 0).map(|rows| rows / STACKED);
                // Where there are no thirds, too many rows: an error that says how many there are.
                let (first, count) = thirds.map_or((0, usize::MAX), |third| (part * third, third));
                mapped.expr.clone().rows(first, count)
            }
        };
        let name = self.name(mapped, part);
        if let Some(at) = self.made.iter().position(|(known, _)| *known == name) {
            return self.specs.len() + at;
        }
        self.made.push((name, expr));
        self.specs.len() + self.made.len() - 1
    }

    /// What messages call it: the names that it is made of.
    fn name(&self, mapped: &Mapped, part: Option<usize>) -> String {
        let sources = &mapped.sources;
        let name = |index: &usize| self.specs[*index].name.as_str();
        match (part, sources.as_slice()) {
            (None, [Some(only)]) if mapped.keeps_elements => name(only).to_owned(),
            (Some(part), all) if all.len() == STACKED && mapped.keeps_elements && all[part].is_some() => {
                all[part].as_ref().map(name).unwrap_or_default().to_owned()
            }
            (part, all) => {
                let all: Vec<&str> = all.iter().map(|source| source.as_ref().map_or("0", name)).collect();
                let which = part.map(|part| ["queries", "keys", "values"].get(part).copied().unwrap_or_default());
                let which = which.map(|which| format!(" ({which})")).unwrap_or_default();
                // A name of its own, also where a single tensor is turned.
                let one = if all.len() == 1 && which.is_empty() { " (as PyTorch has it)" } else { "" };
                format!("{}{which}{one}", all.join(" + "))
            }
        }
    }
}
