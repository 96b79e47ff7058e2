//! How the data of a file is cut into units of work.

use std::ops::Range;

use crate::checkpoint::StateDict;
use crate::plan::{Plan, Source, Step};

/// Bytes of the output that are computed before they are written: with what they are computed from, they fit the
/// second-level cache of today's processors. 128 KiB and 4 MiB were slower.
pub(super) const UNIT: usize = 512 << 10;

/// What a thread does in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// All of the steps at these places of the file.
    Steps(Range<usize>),
    /// Part of one step.
    Part {
        /// The step's place in the file.
        place: usize,
        /// The first element.
        first: usize,
        /// How many elements.
        count: usize,
    },
}

/// The units of a file that holds these steps, in its order. A step whose tensors are read from where they are stored can be cut;
/// one that has to be made in memory first is made once. Those with terms are cut into units of `folded` bytes. `begin` tells where in
/// the file the data at a place begins: a step is cut where the file's offset is a multiple of its units' size, because whole large
/// pages are written a quarter faster.
pub(super) fn cut(
    plan: &Plan,
    inputs: &[StateDict<'_>],
    steps: &[usize],
    folded: usize,
    begin: impl Fn(usize) -> u64,
) -> Vec<Unit> {
    let mut units = Vec::new();
    // Steps from here on are in no unit yet.
    let (mut open, mut open_bytes) = (0, 0);
    let close = |open: usize, end: usize| (open < end).then_some(Unit::Steps(open..end));
    for (place, &index) in steps.iter().enumerate() {
        let step = &plan.steps[index];
        if step.bytes() > UNIT as u64 && is_in_place(step, inputs) {
            units.extend(close(open, place));
            (open, open_bytes) = (place + 1, 0);
            let unit = if step.terms.is_empty() { UNIT } else { folded };
            let most = unit / step.dtype.size();
            let (mut first, boundary) = (0, (unit - begin(place) as usize % unit) / step.dtype.size());
            let mut end = boundary.min(step.numel);
            while first < step.numel {
                // None if the first element reaches over the boundary.
                if end > first {
                    units.push(Unit::Part { place, first, count: end - first });
                }
                (first, end) = (end, step.numel.min(end + most));
            }
            continue;
        }
        if step.bytes() > UNIT as u64 - open_bytes.min(UNIT as u64) {
            units.extend(close(open, place));
            (open, open_bytes) = (place, 0);
        }
        open_bytes = step.bytes().saturating_add(open_bytes);
    }
    units.extend(close(open, steps.len()));
    units
}

fn is_in_place(step: &Step, inputs: &[StateDict<'_>]) -> bool {
    let terms = step.terms.iter().map(|term| term.source);
    let mut tensors = std::iter::once(step.source.tensor()).chain(terms);
    let whole = matches!(step.source, Source::Tensor(_));
    // A run of a storage is read as a tensor of it is.
    (whole || step.terms.is_empty()) && tensors.all(|tensor| inputs[tensor.input].is_in_place(tensor.tensor))
}
