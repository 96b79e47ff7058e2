//! Turns folded parameters into steps and outputs.

use std::collections::{BTreeSet, HashMap};

use super::{AuxSide, BiasMode, BlockSet, Dropped, FoldOptions, FoldedLayer, Parameter, Side};
use crate::naming::SCALE;
use crate::plan::copy::lay_out;
use crate::plan::share::{self, Group};
use crate::plan::{Plan, Sharing, Term};
use crate::tensor::TensorSpec;

/// The plan that writes `target` with the parameters `folded` in place of its own.
pub(super) fn plan(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    options: &FoldOptions,
    mut folded: Vec<FoldedLayer>,
) -> Plan {
    let specs = target.specs;
    let layers = target.layers.as_slice();
    let pathway: BTreeSet<usize> = layers.iter().flat_map(|l| [l.scale, l.aux_weight]).flatten().collect();
    let changed: BTreeSet<String> = folded.iter().filter(|f| f.changes()).map(|f| f.name.clone()).collect();
    let copied: Vec<usize> =
        (0..specs.len()).filter(|i| !pathway.contains(i) && !changed.contains(&specs[*i].name)).collect();
    let groups = share::groups(specs, &target.placements, &copied);
    let merged: BTreeSet<usize> = layers
        .iter()
        .filter(|layer| changed.contains(&specs[layer.weight].name))
        .flat_map(|layer| [layer.scale, layer.aux_weight])
        .flatten()
        .collect();
    let mut plan = Plan { notes: notes(target, aux, options, &folded, &groups, &changed), ..Plan::default() };

    for &index in &pathway {
        let folded = merged.contains(&index);
        let name = &specs[index].name;
        plan.dropped.push(Dropped { name: name.clone(), reason: reason(name, folded), folded });
    }
    let mut by_name: HashMap<String, &mut FoldedLayer> = folded.iter_mut().map(|f| (f.name.clone(), f)).collect();
    let kept: Vec<usize> = (0..specs.len()).filter(|index| !pathway.contains(index)).collect();
    let shared = if options.sharing == Sharing::Keep { groups.as_slice() } else { &[] };
    let dtype = |index: usize| options.dtype.filter(|_| specs[index].dtype.is_foldable());
    (plan.steps, plan.outputs) = lay_out(specs, &target.placements, &kept, shared, dtype, |index, step| {
        let Some(parameter) = by_name.get_mut(&specs[index].name) else { return Vec::new() };
        parameter.step = step;
        let effective = parameter.terms.iter().filter(|term| term.lambda != 0.0);
        effective.map(|term| Term { source: term.source, lambda: term.lambda }).collect()
    });
    plan.folded = folded;
    plan
}

/// Why a tensor of a pathway is not in the output.
fn reason(name: &str, folded: bool) -> &'static str {
    match (name.ends_with(SCALE), folded) {
        (true, true) => "learned lambda, now in the weight",
        (true, false) => "learned lambda of a layer that is not folded",
        (false, true) => "auxiliary weight, now in the weight",
        (false, false) => "auxiliary weight of a layer that is not folded",
    }
}

/// What the user should know of the target and of what becomes of it.
fn notes(
    target: &Side<'_>,
    aux: &[AuxSide<'_>],
    options: &FoldOptions,
    folded: &[FoldedLayer],
    groups: &[Group],
    changed: &BTreeSet<String>,
) -> Vec<String> {
    let specs = target.specs;
    let mut notes = Vec::new();
    if options.sharing == Sharing::Copy {
        for group in groups.iter().filter(|group| group.members.len() > 1) {
            let names: Vec<_> = group.members.iter().map(|&i| specs[i].name.as_str()).collect();
            notes.push(share::copied(&names));
        }
    }
    let all: Vec<usize> = (0..specs.len()).collect();
    for group in share::groups(specs, &target.placements, &all) {
        let names = |wanted: bool| -> Vec<&str> {
            let names = group.members.iter().map(|&i| specs[i].name.as_str());
            names.filter(|name| changed.contains(*name) == wanted).collect()
        };
        if group.members.len() > 1 && !names(true).is_empty() {
            let all = [names(true), names(false)].concat().join(", ");
            notes.push(format!("{all} share their data in {}; the folded ones are written apart", target.file));
        }
    }
    let pathways = target.layers.learned() > 0;
    let kept = target.layers.as_slice().iter().filter(|layer| !changed.contains(&specs[layer.weight].name));
    let kept: Vec<&str> = kept.map(|layer| layer.module.as_str()).collect();
    if pathways && !kept.is_empty() {
        let kept = kept.join(", ");
        notes.push(format!("only the plain weight is kept of {kept}: no pathway, not chosen, or a lambda of 0"));
    }
    let target_blocks = target.layers.blocks();
    for side in aux.iter().map(|aux| &aux.side) {
        let aux_blocks = side.layers.blocks();
        let left = |all: &[usize], others: &[usize]| -> Vec<usize> {
            all.iter().copied().filter(|block| !others.contains(block)).collect()
        };
        let (alone, unused) = (left(&target_blocks, &aux_blocks), left(&aux_blocks, &target_blocks));
        for (blocks, of, other) in [(alone, &target.file, &side.file), (unused, &side.file, &target.file)] {
            if !blocks.is_empty() {
                notes.push(format!("{of}: blocks {} have no counterpart in {other}", BlockSet::of(&blocks)));
            }
        }
    }
    if options.bias == BiasMode::Fold && folded.iter().all(|f| f.parameter == Parameter::Weight) {
        notes.push("--bias fold: the auxiliary's layers have no biases, so that none was folded".into());
    }
    let any = |what: fn(&str) -> bool| specs.iter().any(|spec| what(&spec.name));
    if any(|name| name.split('.').any(|part| part == "mask_token" || part.starts_with("decoder_"))) {
        notes.push("the target is a pre-training checkpoint (mask_token, decoder): the output keeps all of it, and is no plain ViT".into());
    }
    if any(|name| name.ends_with("attn.q_bias")) {
        notes.push("the target keeps its attention biases as q_bias and v_bias: they are left as they are".into());
    }
    if let Some(cast) = options.dtype {
        let skipped = |spec: &&TensorSpec| spec.dtype.is_float() && !spec.dtype.is_foldable() && spec.dtype != cast;
        let names: Vec<&str> = specs.iter().filter(skipped).map(|spec| spec.name.as_str()).collect();
        if !names.is_empty() {
            notes
                .push(format!("{} are 8-bit floats and stay so; --dtype casts the wider types only", names.join(", ")));
        }
    }
    notes
}
