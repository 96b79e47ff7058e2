//! The executor: runs any plan, in pieces of fixed size, on several threads.
//!
//! The files of the output are written one after the other. What a file holds is cut into units (`units.rs`), about as large as the
//! second-level cache; threads take one after another, compute it (`worker.rs`, `kernels.rs`), and write it to its place. Where
//! one is cut depends on the plan alone, and sums of several units are made in their order: what comes out does not depend on
//! the number of threads, nor does the error if there are several.

mod ahead;
mod blame;
mod buffer;
mod checks;
#[cfg(feature = "fold-cuda")]
mod cuda;
mod device;
#[cfg(target_arch = "x86_64")]
mod f16c;
mod input;
mod kernels;
mod pace;
mod remainders;
mod simd;
mod units;
mod worker;

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Mutex;

use crc32fast::Hasher;

use crate::checkpoint::StateDict;
use crate::error::Result;
use crate::parallel::{self, Watched};
use crate::plan::Plan;
use crate::write::{OpenFile, Writer};

pub(crate) use buffer::Buffer;
pub(crate) use device::Computer;
pub use device::Device;
#[cfg(feature = "verify")]
pub(crate) use kernels::has_non_finite;
use pace::Pace;
use worker::{Done, Worker};

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

/// Sums of squares over a step that has terms, to about six digits: the last ones may differ between kinds of processors.
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
    /// What computed the terms: `cpu`, `cuda:0`, or `cuda:0 and cpu`.
    pub device: String,
    /// Why that is not what was asked for.
    pub notes: Vec<String>,
}

/// How a plan is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Whether NaN and infinity may be in the result.
    pub allow_non_finite: bool,
    /// How many threads compute and write; as many as there are processors, up to
    /// [`MAX_DEFAULT_THREADS`](crate::MAX_DEFAULT_THREADS), if `None`.
    pub threads: Option<NonZeroUsize>,
    /// The most bytes that are written in a second, over the whole run.
    pub limit_rate: Option<NonZeroU64>,
    /// Whether the output is published without waiting for the disk: a power failure soon afterwards may leave a file without its
    /// data under the output's name.
    pub no_sync: bool,
    /// Whether SHA-256 of every input goes into the provenance that the output carries.
    pub hash_inputs: bool,
    /// Where the terms of a fold are computed; on the processor, with a note, if it cannot be had.
    pub device: Device,
}

/// What all threads of a run share.
struct Shared<'r> {
    plan: &'r Plan,
    inputs: &'r [StateDict<'r>],
    allow_non_finite: bool,
    computer: &'r Computer,
    pace: Pace,
    watched: Watched,
    /// Held by who makes tensors in memory, so that not every thread holds one of them.
    making: Mutex<()>,
}

/// Runs the steps of `plan` into the files of `writer`; `inputs` are the state dicts that it refers to.
///
/// Memory does not depend on the size of tensors: each is read, computed and written in pieces. (What is
/// compressed, stacked or computed is an exception; it is made whole while it is needed, one tensor at a time.)
///
/// # Errors
/// [`crate::Error::NonFinite`] for a NaN or infinity in a result, unless they are allowed; [`crate::Error::Zip`] for damaged input;
/// [`crate::Error::Io`] for a failed write; [`crate::Error::Cancelled`].
pub(crate) fn run(
    plan: &Plan,
    inputs: &[StateDict<'_>],
    writer: &mut Writer,
    options: &RunOptions,
    computer: &Computer,
    progress: &mut dyn Progress,
) -> Result<RunReport> {
    let shared = Shared {
        plan,
        inputs,
        allow_non_finite: options.allow_non_finite,
        computer,
        pace: Pace::new(options.limit_rate),
        watched: Watched::default(),
        making: Mutex::new(()),
    };
    let mut report = RunReport { norms: vec![None; plan.steps.len()], ..RunReport::default() };
    while let Some(file) = writer.current() {
        let done = shared.compute(file, parallel::threads(options.threads), progress)?;
        let crcs = shared.gather(file, done, &mut report)?;
        writer.next_file(&crcs)?;
    }
    (report.device, report.notes) = (computer.device(), computer.notes());
    Ok(report)
}

impl Shared<'_> {
    /// Computes and writes the data of one file; returns what was found in each unit, in order.
    fn compute<'s>(&'s self, file: &'s OpenFile, threads: usize, progress: &mut dyn Progress) -> Result<Vec<Done<'s>>> {
        let begin = |place| file.begin(place);
        let units = units::cut(self.plan, self.inputs, file.steps(), self.computer.unit(), begin);
        let state = || Worker::new(self, file);
        let unit = |worker: &mut Worker<'s>, number: usize| worker.run(&units[number]);
        let done = parallel::run(units.len(), threads, &self.watched, progress, state, unit)?;
        Ok(done.into_iter().flatten().collect())
    }

    /// Puts together what was found in the units of a file, and writes what follows the data of steps that were cut. Returns the
    /// checksums of the steps, in order.
    fn gather(&self, file: &OpenFile, done: Vec<Done<'_>>, report: &mut RunReport) -> Result<Vec<u32>> {
        let mut crcs = Vec::with_capacity(file.steps().len());
        let mut done = done.into_iter().peekable();
        while let Some(mut whole) = done.next() {
            while let Some(part) = done.next_if(|part| part.place == whole.place) {
                whole.join(part);
            }
            let (step, place) = (file.steps()[whole.place], whole.place);
            let outputs = || self.plan.outputs.iter().filter(move |output| output.step == step);
            let crc = whole.crc.take().map(Hasher::finalize).unwrap_or_default();
            if whole.cut {
                whole.settle()?;
                let tail = file.tail(place, crc);
                if !tail.is_empty() {
                    file.write_at(file.begin(place) + self.plan.steps[step].bytes(), &tail)?;
                }
            }
            if !self.plan.steps[step].terms.is_empty() {
                report.norms[step] = Some(whole.norms);
            }
            if whole.bad {
                report.non_finite.extend(self.non_finite_outputs(step)?);
            }
            if whole.lost != Lost::default() {
                report.lost.extend(outputs().next().map(|output| (output.spec.name.clone(), whole.lost)));
            }
            crcs.push(crc);
        }
        Ok(crcs)
    }
}
