//! Tensors that go into the output as they are, or cast.

use super::share::{self, Group};
use super::{Output, Plan, Sharing, Source, Step, TensorRef, Term};
use crate::checkpoint::Placement;
use crate::tensor::{DType, TensorSpec, contiguous_strides};

/// The plan that writes the tensors `specs` of input 0, in order, as the types `dtypes`.
pub(crate) fn copy(specs: &[TensorSpec], placements: &[Placement<'_>], dtypes: &[DType], sharing: Sharing) -> Plan {
    let all: Vec<usize> = (0..specs.len()).collect();
    // Views of one storage that are cast to different types cannot go on sharing it.
    let groups: Vec<Group> = share::groups(specs, placements, &all)
        .into_iter()
        .filter(|group| group.members.iter().all(|&member| dtypes[member] == dtypes[group.members[0]]))
        .collect();
    let mut plan = Plan::default();
    if sharing == Sharing::Copy {
        for group in groups.iter().filter(|group| group.members.len() > 1) {
            let names: Vec<&str> = group.members.iter().map(|&i| specs[i].name.as_str()).collect();
            plan.notes.push(share::copied(&names));
        }
    }
    let shared = if sharing == Sharing::Keep { groups.as_slice() } else { &[] };
    let dtype = |index: usize| Some(dtypes[index]);
    (plan.steps, plan.outputs) = lay_out(specs, placements, &all, shared, dtype, |_, _| Vec::new());
    plan
}

/// The steps and outputs of the tensors `kept` of input 0, in order: those of a group are views of one step, the others have a
/// step each. `dtype` is the type they are cast to, if any; `terms` is told the tensor and the step that are written, and says
/// what is added.
pub(super) fn lay_out(
    specs: &[TensorSpec],
    placements: &[Placement<'_>],
    kept: &[usize],
    groups: &[Group],
    dtype: impl Fn(usize) -> Option<DType>,
    mut terms: impl FnMut(usize, usize) -> Vec<Term>,
) -> (Vec<Step>, Vec<Output>) {
    let (mut steps, mut outputs): (Vec<Step>, Vec<Output>) = (Vec::new(), Vec::new());
    let mut step_of_group = vec![None; groups.len()];
    let mut group_of = vec![None; specs.len()];
    for (number, group) in groups.iter().enumerate() {
        group.members.iter().for_each(|&member| group_of[member] = Some(number));
    }
    for &index in kept {
        let spec = &specs[index];
        let dtype = dtype(index).unwrap_or(spec.dtype);
        let out = TensorSpec { dtype, ..spec.clone() };
        let tensor = TensorRef { input: 0, tensor: index };
        if let Some(group) = group_of[index] {
            let Group { first, numel, .. } = groups[group];
            let step = *step_of_group[group].get_or_insert(steps.len());
            if step == steps.len() {
                steps.push(Step { source: Source::Run { tensor, first }, terms: vec![], dtype, numel });
            }
            let placement = &placements[index];
            let (offset, strides) = (placement.offset - first, placement.strides.to_vec());
            outputs.push(Output { spec: out, step, offset, strides });
            continue;
        }
        let (step, source) = (steps.len(), Source::Tensor(tensor));
        steps.push(Step { source, terms: terms(index, step), dtype, numel: spec.numel() });
        outputs.push(Output { strides: contiguous_strides(&spec.shape), spec: out, step, offset: 0 });
    }
    (steps, outputs)
}
