//! A target with auxiliary weights beside its own, as a pathway is trained, in place of a fold.

use crate::error::Result;
use crate::fold::{FoldInputs, FoldRequest, Understood};
use crate::model::Branches;
use crate::naming::LayerId;
use crate::plan::{FoldedTerm, Parameter, Plan};

/// The layers of a target, paired with those of auxiliaries as a fold pairs them.
#[derive(Debug)]
pub struct Pathway<'i> {
    /// The target.
    pub target: Understood<'i>,
    /// The auxiliaries.
    pub aux: Vec<Understood<'i>>,
    plan: Plan,
}

/// A weight or bias of the target, and those of auxiliaries that work beside it.
#[derive(Clone, Debug)]
pub struct Pair<'p> {
    /// Its name.
    pub name: &'p str,
    /// Its layer.
    pub id: LayerId,
    /// Which of the two it is.
    pub parameter: Parameter,
    /// For each term which auxiliary, from 0, and which of its tensors; `None` for one that the target carries itself.
    pub terms: Vec<Option<(usize, usize)>>,
}

impl<'i> Pathway<'i> {
    /// Pairs the layers of a fold's inputs, whose output is not looked at.
    ///
    /// # Errors
    /// As [`FoldInputs::plan`].
    pub fn new(inputs: &'i FoldInputs) -> Result<Pathway<'i>> {
        let (target, aux, plan) = inputs.matched()?;
        Ok(Pathway { target, aux, plan })
    }

    /// The auxiliary weights, each with the weight that it works beside and its lambda. Those that the target carries itself
    /// are not among them: the model finds them in its state dict.
    #[must_use]
    pub fn branches(&self) -> Branches<'_, 'i> {
        let mut branches = Branches::default();
        for folded in &self.plan.folded {
            for term in folded.terms.iter().filter(|term| term.lambda != 0.0) {
                if let Some(aux) = term.source.input.checked_sub(1).and_then(|number| self.aux.get(number)) {
                    branches.add(folded.name.clone(), &aux.tensors, term.source.tensor, term.lambda);
                }
            }
        }
        branches
    }

    /// The target's weights (and biases) that have auxiliary ones.
    pub fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        let of = |term: &FoldedTerm| Some((term.source.input.checked_sub(1)?, term.source.tensor));
        self.plan.folded.iter().map(move |folded| Pair {
            name: &folded.name,
            id: folded.id,
            parameter: folded.parameter,
            terms: folded.terms.iter().map(of).collect(),
        })
    }

    /// How many linear layers have an auxiliary weight with a lambda other than 0, be it the target's own.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.plan.folded.iter().filter(|folded| folded.changes()).count()
    }

    /// What the user should know of the pairing.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.plan.notes
    }
}

impl FoldRequest {
    /// What [`Pathway::new`] needs: a fold of `target` without an output.
    #[must_use]
    pub fn without_output(target: impl Into<std::path::PathBuf>) -> FoldRequest {
        FoldRequest::with_format(target, std::path::PathBuf::new(), crate::write::Format::Pth)
    }
}
