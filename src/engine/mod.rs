//! The executor: runs any plan, one step at a time, in pieces of fixed size.

mod kernels;

use crate::checkpoint::{StateDict, TensorData, TensorProblem};
use crate::error::{Error, NonFiniteOrigin, Result};
use crate::plan::{Plan, Source, Step, TensorRef};
use crate::tensor::{DType, TensorView};
use crate::write::Sink;

use kernels::Real;

/// Elements per piece: the buffers of a piece fit the second-level cache.
const PIECE: usize = 32 << 10;

/// Who is told how far a run has come, and can stop it.
pub trait Progress {
    /// That many more bytes of the output are computed, or of the inputs hashed; or so many samples run.
    fn advance(&mut self, bytes: u64);

    /// Whether the run should stop now.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody, stops never.
impl Progress for () {
    fn advance(&mut self, _: u64) {}
}

/// Sums of squares over a step that has terms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// Of the source's elements: the square of its Frobenius norm.
    pub source: f64,
    /// Of the elements of the terms' sum.
    pub change: f64,
}

/// How many numbers a cast to a narrower type could not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Finite numbers that became infinite.
    pub overflow: u64,
    /// Numbers other than 0 that became 0.
    pub underflow: u64,
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunReport {
    /// For each step of the plan, its norms if it has terms.
    pub norms: Vec<Option<Norms>>,
    /// The outputs that hold NaN or infinity; always empty unless these were allowed.
    pub non_finite: Vec<String>,
    /// The outputs that were cast to a type that cannot hold all of their numbers, in the order in which they were written.
    pub lost: Vec<(String, Lost)>,
}

/// Runs the steps of `plan` in the order that `sink` wants them; `inputs` are the state dicts that it refers to.
///
/// Memory does not depend on the size of tensors: each is read from its map, computed and written in pieces. (A
/// compressed storage is the exception; it is expanded while it is needed.)
///
/// # Errors
/// [`Error::NonFinite`] for a NaN or infinity in a result, unless `allow_non_finite`; [`Error::Zip`] for damaged input;
/// [`Error::Io`] for a failed write; [`Error::Cancelled`].
pub(crate) fn run(
    plan: &Plan,
    inputs: &[StateDict<'_>],
    sink: &mut dyn Sink,
    allow_non_finite: bool,
    progress: &mut dyn Progress,
) -> Result<RunReport> {
    let mut report = RunReport { norms: vec![None; plan.steps.len()], ..RunReport::default() };
    let order = sink.order().to_vec();
    for index in order {
        let step = &plan.steps[index];
        sink.begin(index)?;
        let mut runner = Runner { plan, inputs, step, index, sink, progress, bad: false, lost: Lost::default() };
        let (norms, bad) = runner.run()?;
        report.norms[index] = norms;
        if let Some(name) = bad.first().filter(|_| !allow_non_finite) {
            return Err(runner.non_finite(name)?);
        }
        report.non_finite.extend(bad);
        let lost = runner.lost;
        if lost != Lost::default() {
            let output = plan.outputs.iter().find(|output| output.step == index);
            report.lost.extend(output.map(|output| (output.spec.name.clone(), lost)));
        }
        sink.end()?;
    }
    Ok(report)
}

/// One step being run.
struct Runner<'r> {
    plan: &'r Plan,
    inputs: &'r [StateDict<'r>],
    step: &'r Step,
    index: usize,
    sink: &'r mut dyn Sink,
    progress: &'r mut dyn Progress,
    /// Whether the bytes written hold a NaN or infinity.
    bad: bool,
    /// What the cast could not hold.
    lost: Lost,
}

impl<'r> Runner<'r> {
    fn read(&self, tensor: TensorRef) -> Result<TensorData<'r>> {
        self.inputs[tensor.input].tensor(tensor.tensor)
    }

    fn source(&self) -> Result<TensorData<'r>> {
        match self.step.source {
            Source::Tensor(tensor) => self.read(tensor),
            Source::Run { tensor, first } => {
                self.inputs[tensor.input].storage_run(tensor.tensor, first, self.step.numel)
            }
        }
    }

    /// Runs the step; returns its norms and the outputs that hold NaN or infinity.
    fn run(&mut self) -> Result<(Option<Norms>, Vec<String>)> {
        let source = self.source()?;
        let terms = self.step.terms.iter().map(|term| Ok((term.lambda, self.read(term.source)?)));
        let terms = terms.collect::<Result<Vec<_>>>()?;
        let wide = source.dtype() == DType::F64 || terms.iter().any(|(_, data)| data.dtype() == DType::F64);
        let norms = match (terms.is_empty() && source.dtype() == self.step.dtype, wide) {
            (true, _) => self.copy(&source).map(|()| Norms::default())?,
            (false, true) => self.compute::<f64>(&source, &terms)?,
            (false, false) => self.compute::<f32>(&source, &terms)?,
        };
        Ok(((!terms.is_empty()).then_some(norms), self.non_finite_outputs(&source)?))
    }

    /// The names of the outputs that hold NaN or infinity. A run of a storage may hold bytes that belong to none of its
    /// tensors, so that there each tensor is looked at by itself.
    fn non_finite_outputs(&self, source: &TensorData<'_>) -> Result<Vec<String>> {
        let outputs = self.plan.outputs.iter().filter(|output| self.bad && output.step == self.index);
        let Source::Run { tensor, .. } = self.step.source else {
            return Ok(outputs.map(|output| output.spec.name.clone()).collect());
        };
        let mut names = Vec::new();
        for output in outputs {
            let view = source.reshaped(&output.spec.shape, &output.strides, output.offset).map_err(|problem| {
                let path = self.inputs[tensor.input].checkpoint().path().to_owned();
                Error::Tensor { path, tensor: output.spec.name.clone(), problem: TensorProblem::View(problem) }
            })?;
            let mut bad = false;
            view.for_each_piece(&mut Vec::new(), |bytes| {
                bad |= kernels::becomes_non_finite(view.dtype(), bytes, self.step.dtype);
            });
            names.extend(bad.then(|| output.spec.name.clone()));
        }
        Ok(names)
    }

    fn copy(&mut self, source: &TensorData<'_>) -> Result<()> {
        let view = source.view();
        let mut buffer = Vec::new();
        let mut result = Ok(());
        view.for_each_piece(&mut buffer, |bytes| {
            if result.is_ok() {
                result = self.write(bytes);
            }
        });
        result
    }

    fn compute<T: Real>(&mut self, source: &TensorData<'_>, terms: &[(f64, TensorData<'_>)]) -> Result<Norms> {
        let view = source.view();
        let terms: Vec<_> = terms.iter().map(|(lambda, data)| (T::lambda(*lambda), data.view())).collect();
        let (mut raw, mut sum, mut values, mut change, mut out) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut norms = Norms::default();
        let mut first = 0;
        while first < view.numel() {
            let count = PIECE.min(view.numel() - first);
            let mut load = |view: &TensorView<'_>, into: &mut Vec<T>| {
                into.clear();
                let size = view.dtype().size();
                if let Some(bytes) = view.as_bytes() {
                    T::load(view.dtype(), &bytes[first * size..(first + count) * size], into);
                } else {
                    raw.resize(count * size, 0);
                    view.read(first, &mut raw);
                    T::load(view.dtype(), &raw, into);
                }
            };
            load(&view, &mut sum);
            if !terms.is_empty() {
                norms.source += kernels::sum_of_squares(&sum);
                change.clear();
                change.resize(count, T::default());
                for (lambda, term) in &terms {
                    load(term, &mut values);
                    kernels::add_scaled(&mut sum, &mut change, *lambda, &values);
                }
                norms.change += kernels::sum_of_squares(&change);
            }
            out.clear();
            T::store(self.step.dtype, &sum, &mut out);
            if self.step.dtype != view.dtype() {
                let (overflow, underflow) = kernels::count_lost(&sum, self.step.dtype, &out);
                self.lost.overflow += overflow;
                self.lost.underflow += underflow;
            }
            self.write(&out)?;
            first += count;
        }
        Ok(norms)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        self.bad = self.bad || kernels::has_non_finite(self.step.dtype, bytes);
        self.sink.write(bytes)?;
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }

    /// The error that says which input a value of the output `name` that is not finite comes from.
    fn non_finite(&self, name: &str) -> Result<Error> {
        let tensor = name.to_owned();
        let from = |input: usize, source: &str| {
            let (path, tensor) = (self.inputs[input].checkpoint().path().to_owned(), tensor.clone());
            Ok(Error::NonFinite { tensor, origin: NonFiniteOrigin::Input { path, tensor: source.to_owned() } })
        };
        let holds = |view: &TensorView<'_>| {
            let mut bad = false;
            view.for_each_piece(&mut Vec::new(), |bytes| bad |= kernels::has_non_finite(view.dtype(), bytes));
            bad
        };
        if let Source::Run { tensor: source, .. } = self.step.source {
            let data = self.source()?;
            let output = self.plan.outputs.iter().find(|output| output.step == self.index && output.spec.name == name);
            let view = output.and_then(|o| data.reshaped(&o.spec.shape, &o.strides, o.offset).ok());
            if view.is_some_and(|view| holds(&view)) {
                return from(source.input, name);
            }
        } else {
            let sources = std::iter::once(self.step.source.tensor()).chain(self.step.terms.iter().map(|t| t.source));
            for source in sources {
                if holds(&self.read(source)?.view()) {
                    return from(source.input, &self.inputs[source.input].specs()[source.tensor].name);
                }
            }
        }
        Ok(Error::NonFinite { tensor, origin: NonFiniteOrigin::Overflow { dtype: self.step.dtype } })
    }
}
