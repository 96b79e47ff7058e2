//! Turns folded parameters into steps and outputs.

use std::collections::{BTreeSet, HashMap};

use super::{Dropped, FoldOptions, FoldedLayer, Side};
use crate::naming::{AUX_WEIGHT, SCALE};
use crate::plan::share::{self, Group};
use crate::plan::{Output, Plan, Sharing, Source, Step, TensorRef, Term};
use crate::tensor::{TensorSpec, contiguous_strides};

/// The plan that writes `target` with the parameters `folded` in place of its own.
pub(super) fn plan(target: &Side<'_>, options: &FoldOptions, mut folded: Vec<FoldedLayer>) -> Plan {
    let specs = target.specs;
    let layers = target.layers.as_slice();
    let pathway: BTreeSet<usize> = layers.iter().flat_map(|l| [l.scale, l.aux_weight]).flatten().collect();
    let changed: BTreeSet<String> = folded.iter().filter(|f| f.changes()).map(|f| f.name.clone()).collect();
    let copied: Vec<usize> =
        (0..specs.len()).filter(|i| !pathway.contains(i) && !changed.contains(&specs[*i].name)).collect();
    let groups = share::groups(specs, &target.placements, &copied);
    let mut plan = Plan { notes: notes(target, options, &groups, &changed), ..Plan::default() };

    let mut step_of_group = vec![None; groups.len()];
    let mut group_of = vec![None; specs.len()];
    if options.sharing == Sharing::Keep {
        for (number, group) in groups.iter().enumerate() {
            group.members.iter().for_each(|&member| group_of[member] = Some(number));
        }
    }
    let mut by_name: HashMap<String, &mut FoldedLayer> = folded.iter_mut().map(|f| (f.name.clone(), f)).collect();
    for (index, spec) in specs.iter().enumerate() {
        if pathway.contains(&index) {
            plan.dropped.push(Dropped { name: spec.name.clone(), reason: reason(&spec.name) });
            continue;
        }
        let dtype = options.dtype.filter(|_| spec.dtype.is_foldable()).unwrap_or(spec.dtype);
        let out = TensorSpec { dtype, ..spec.clone() };
        let tensor = TensorRef { input: 0, tensor: index };
        if let Some(group) = group_of[index] {
            let Group { first, numel, .. } = groups[group];
            let step = *step_of_group[group].get_or_insert(plan.steps.len());
            if step == plan.steps.len() {
                plan.steps.push(Step { source: Source::Run { tensor, first }, terms: vec![], dtype, numel });
            }
            let placement = &target.placements[index];
            let (offset, strides) = (placement.offset - first, placement.strides.to_vec());
            plan.outputs.push(Output { spec: out, step, offset, strides });
            continue;
        }
        let step = plan.steps.len();
        let mut terms = Vec::new();
        if let Some(parameter) = by_name.get_mut(&spec.name) {
            parameter.step = step;
            let effective = parameter.terms.iter().filter(|term| term.lambda != 0.0);
            terms.extend(effective.map(|term| Term { source: term.source, lambda: term.lambda }));
        }
        plan.steps.push(Step { source: Source::Tensor(tensor), terms, dtype, numel: spec.numel() });
        plan.outputs.push(Output { strides: contiguous_strides(&spec.shape), spec: out, step, offset: 0 });
    }
    plan.folded = folded;
    plan
}

fn reason(name: &str) -> &'static str {
    if name.ends_with(SCALE) {
        "learned lambda, now in the weight"
    } else {
        debug_assert!(name.ends_with(AUX_WEIGHT));
        "auxiliary weight, now in the weight"
    }
}

/// What the user should know of the target and of what becomes of it.
fn notes(target: &Side<'_>, options: &FoldOptions, groups: &[Group], changed: &BTreeSet<String>) -> Vec<String> {
    let specs = target.specs;
    let mut notes = Vec::new();
    if options.sharing == Sharing::Copy {
        for group in groups.iter().filter(|group| group.members.len() > 1) {
            let names: Vec<_> = group.members.iter().map(|&i| specs[i].name.as_str()).collect();
            notes.push(format!("{} share their data; safetensors holds each as a copy", names.join(", ")));
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
        notes.push(format!("{}: the weight alone is kept (no pathway, not chosen, or a lambda of 0)", kept.join(", ")));
    }
    let any = |what: fn(&str) -> bool| specs.iter().any(|spec| what(&spec.name));
    if any(|name| name.rsplit('.').next() == Some("mask_token") || name.starts_with("decoder_")) {
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
