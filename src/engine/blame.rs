//! Where NaN and infinity in a result come from.

use super::{Shared, kernels};
use crate::checkpoint::{TensorData, TensorProblem};
use crate::error::{Error, NonFiniteOrigin, Result};
use crate::plan::{Source, Step, TensorRef};
use crate::tensor::TensorView;

impl<'r> Shared<'r> {
    fn read(&self, tensor: TensorRef) -> Result<TensorData<'r>> {
        self.inputs[tensor.input].tensor(tensor.tensor)
    }

    /// The elements that a step begins with; checksums are verified.
    pub(super) fn source(&self, step: &Step) -> Result<TensorData<'r>> {
        match step.source {
            Source::Tensor(tensor) => self.read(tensor),
            Source::Run { tensor, first } => self.inputs[tensor.input].storage_run(tensor.tensor, first, step.numel),
        }
    }

    /// The names of the outputs of a step with NaN or infinity in its bytes that hold one. A run of a storage may hold bytes that
    /// belong to none of its tensors, so that there each tensor is looked at by itself.
    pub(super) fn non_finite_outputs(&self, index: usize) -> Result<Vec<String>> {
        let step = &self.plan.steps[index];
        let outputs = self.plan.outputs.iter().filter(|output| output.step == index);
        let Source::Run { tensor, .. } = step.source else {
            return Ok(outputs.map(|output| output.spec.name.clone()).collect());
        };
        let source = self.source(step)?;
        let mut names = Vec::new();
        for output in outputs {
            let view = source.reshaped(&output.spec.shape, &output.strides, output.offset).map_err(|problem| {
                let path = self.inputs[tensor.input].checkpoint().path().to_owned();
                Error::Tensor { path, tensor: output.spec.name.clone(), problem: TensorProblem::View(problem) }
            })?;
            let mut bad = false;
            view.for_each_piece(&mut Vec::new(), |bytes| {
                bad |= kernels::becomes_non_finite(view.dtype(), bytes, step.dtype);
            });
            names.extend(bad.then(|| output.spec.name.clone()));
        }
        Ok(names)
    }

    /// The error that says which input a value of the output `name` of a step that is not finite comes from.
    pub(super) fn non_finite(&self, index: usize, name: &str) -> Result<Error> {
        let step = &self.plan.steps[index];
        let tensor = name.to_owned();
        let from = |source: TensorRef| {
            let (path, name) = self.inputs[source.input].origin(source.tensor);
            let (path, tensor) = (path.to_owned(), tensor.clone());
            Ok(Error::NonFinite { tensor, origin: NonFiniteOrigin::Input { path, tensor: name.to_owned() } })
        };
        let holds = |view: &TensorView<'_>| {
            let mut bad = false;
            view.for_each_piece(&mut Vec::new(), |bytes| bad |= kernels::has_non_finite(view.dtype(), bytes));
            bad
        };
        if let Source::Run { tensor: source, .. } = step.source {
            let data = self.source(step)?;
            let output = self.plan.outputs.iter().find(|output| output.step == index && output.spec.name == name);
            let view = output.and_then(|o| data.reshaped(&o.spec.shape, &o.strides, o.offset).ok());
            if view.is_some_and(|view| holds(&view)) {
                // All of a run are of one file, under the names that the input has them by.
                let tensor = self.inputs[source.input].find(name).unwrap_or(source.tensor);
                return from(TensorRef { tensor, ..source });
            }
        } else {
            let sources = std::iter::once(step.source.tensor()).chain(step.terms.iter().map(|t| t.source));
            for source in sources {
                if holds(&self.read(source)?.view()) {
                    return from(source);
                }
            }
        }
        Ok(Error::NonFinite { tensor, origin: NonFiniteOrigin::Overflow { dtype: step.dtype } })
    }
}
