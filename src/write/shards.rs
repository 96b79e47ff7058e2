//! Hugging Face's shards: which tensors go into which file, and the index of them.

use serde_json::{Map, Value, json};

use crate::plan::{Output, Plan};

/// What one shard holds.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Its steps and outputs, numbered by themselves.
    pub(super) plan: Plan,
    /// The number of each of its steps in the whole plan.
    pub(super) steps: Vec<usize>,
}

/// Splits a plan into shards of at most `most` bytes of data, as `split_torch_state_dict_into_shards` of huggingface_hub 2.4
/// does: tensors in order, a new shard where the next one would not fit, and a shard of its own for each that is larger
/// than `most`, without closing the shard that is being filled. Tensors of one step stay together, where the first is.
pub(super) fn split(plan: &Plan, most: u64) -> Vec<Shard> {
    let mut places: Vec<Option<usize>> = vec![None; plan.steps.len()];
    let mut shards = 0;
    // The shards are numbered when they are closed, and so the open one has no number yet.
    let (mut open, mut open_bytes) = (Vec::new(), 0);
    let mut seen = vec![false; plan.steps.len()];
    let mut close = |steps: Vec<usize>| {
        for &step in &steps {
            places[step] = Some(shards);
        }
        shards += usize::from(!steps.is_empty());
    };
    for output in &plan.outputs {
        if std::mem::replace(&mut seen[output.step], true) {
            continue;
        }
        let bytes = plan.steps[output.step].bytes();
        if bytes > most {
            close(vec![output.step]);
            continue;
        }
        // Both are at most `most` here, but their sum may be more than there are numbers.
        if bytes > most - open_bytes {
            close(std::mem::take(&mut open));
            open_bytes = 0;
        }
        open.push(output.step);
        open_bytes += bytes;
    }
    close(open);
    fill(plan, &places, shards)
}

/// The plans of the shards, given the shard of each step.
fn fill(plan: &Plan, places: &[Option<usize>], shards: usize) -> Vec<Shard> {
    let mut found: Vec<Shard> = (0..shards).map(|_| Shard::default()).collect();
    let mut own = vec![0; plan.steps.len()];
    for (step, place) in places.iter().enumerate() {
        if let Some(shard) = place.map(|place| &mut found[place]) {
            own[step] = shard.steps.len();
            shard.steps.push(step);
            shard.plan.steps.push(plan.steps[step].clone());
        }
    }
    for output in &plan.outputs {
        if let Some(place) = places[output.step] {
            found[place].plan.outputs.push(Output { step: own[output.step], ..output.clone() });
        }
    }
    found
}

/// The index of the shards in files of those names: what `save_torch_state_dict` writes.
pub(super) fn index(shards: &[Shard], names: &[String]) -> Vec<u8> {
    let mut map = Map::new();
    for (shard, name) in shards.iter().zip(names) {
        map.extend(shard.plan.outputs.iter().map(|output| (output.spec.name.clone(), Value::from(name.as_str()))));
    }
    let total: u64 = shards.iter().map(|shard| shard.plan.bytes()).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    format!("{index:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Source, Step, TensorRef};
    use crate::tensor::{DType, TensorSpec};

    /// Tensors of those steps, each of so many bytes.
    fn plan(steps: &[u64], outputs: &[usize]) -> Plan {
        let source = Source::Tensor(TensorRef { input: 0, tensor: 0 });
        let step =
            |&bytes: &u64| Step { source: source.clone(), terms: vec![], dtype: DType::U8, numel: bytes as usize };
        let output = |(number, &step): (usize, &usize)| Output {
            spec: TensorSpec { name: number.to_string(), dtype: DType::U8, shape: vec![] },
            step,
            offset: 0,
            strides: vec![],
        };
        let outputs = outputs.iter().enumerate().map(output).collect();
        Plan { steps: steps.iter().map(step).collect(), outputs, ..Plan::default() }
    }

    fn names(shards: &[Shard]) -> Vec<Vec<String>> {
        shards.iter().map(|s| s.plan.outputs.iter().map(|o| o.spec.name.clone()).collect()).collect()
    }

    #[test]
    fn a_tensor_that_is_too_large_comes_before_the_shard_that_is_open() {
        // huggingface_hub 2.4: [["1"], ["0", "2", "3"], ["4"]] for these sizes and a limit of 10.
        let shards = split(&plan(&[4, 11, 6, 0, 1], &[0, 1, 2, 3, 4]), 10);
        assert_eq!(names(&shards), [vec!["1"], vec!["0", "2", "3"], vec!["4"]]);
        assert_eq!(shards[1].steps, [0, 2, 3]);
        assert_eq!(shards[1].plan.outputs.iter().map(|output| output.step).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn tensors_of_one_step_are_counted_once_and_stay_together() {
        let shards = split(&plan(&[6, 5], &[0, 1, 0]), 10);
        assert_eq!(names(&shards), [vec!["0", "2"], vec!["1"]]);
        assert_eq!(split(&plan(&[6, 4], &[0, 1, 0]), 10).len(), 1);
        assert_eq!(split(&plan(&[6, 4], &[0, 1]), u64::MAX).len(), 1);
        assert_eq!(split(&plan(&[], &[]), 10).len(), 0);
    }
}
