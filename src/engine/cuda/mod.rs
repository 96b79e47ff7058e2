//! Terms that are computed on an NVIDIA GPU, bit for bit as on the processor.
//!
//! A thread of the executor that has to compute a part of a step copies a block of each tensor into memory that the GPU fetches by itself, and while that
//! uploads, computes and brings back the results, copies the next block into the other of its two slots (`run.rs`); then it
//! writes what came back. Whatever cannot be done there, the processor does: nothing fails for want of a GPU.

mod driver;
mod layout;
mod run;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driver::{CudaError, Gpu, Slot};

use super::Computer;

/// Bytes of the output in a unit of a step with terms: several blocks, so that the two slots overlap.
pub(super) const UNIT: usize = 4 << 20;

/// The GPU of a run.
#[derive(Debug)]
pub(crate) struct Cuda {
    number: usize,
    /// What threads that are done have left for others.
    lanes: Mutex<Vec<Lane>>,
    /// Bytes that a slot takes at a time: fewer, once memory was short.
    room: AtomicUsize,
    /// Whether it is not to be used any more.
    broken: AtomicBool,
    gpu: Arc<Gpu>,
}

/// The two slots of a thread.
#[derive(Debug)]
struct Lane {
    room: usize,
    slots: [Slot; 2],
}

impl Cuda {
    pub(super) fn open(number: usize) -> Result<Cuda, CudaError> {
        let gpu = Arc::new(Gpu::open(number)?);
        let (room, broken) = (AtomicUsize::new(layout::ROOM), AtomicBool::new(false));
        Ok(Cuda { number, lanes: Mutex::new(Vec::new()), room, broken, gpu })
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Slots for a thread: smaller ones where memory is short. What cannot be had is noted.
    fn lane(&self, computer: &Computer) -> Option<Lane> {
        if let Some(lane) = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Some(lane);
        }
        let mut room = self.room.load(Ordering::Relaxed);
        loop {
            let sizes = layout::sizes(room);
            let slots = Slot::new(&self.gpu, sizes).and_then(|slot| Ok([slot, Slot::new(&self.gpu, sizes)?]));
            match slots {
                Ok(slots) => return Some(Lane { room, slots }),
                Err(error) if error.is_out_of_memory() => {
                    if room / 2 < layout::LEAST_ROOM {
                        computer.note(format!(
                            "cuda:{}: its memory, or that which it can use here, is full ({error}); the processor computes what has no room there",
                            self.number
                        ));
                        return None;
                    }
                    room /= 2;
                    // Others need not try what has just failed.
                    self.room.fetch_min(room, Ordering::Relaxed);
                }
                Err(error) => {
                    self.fail(&error, computer);
                    return None;
                }
            }
        }
    }

    /// The GPU failed: it is left alone from now on.
    fn fail(&self, error: &CudaError, computer: &Computer) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            computer.note(format!(
                "cuda:{} failed ({error}); the processor computes the rest, with the same result",
                self.number
            ));
        }
    }
}

/// The slots that a thread has of a [`Cuda`]: made when they are needed, and left to others in the end.
pub(super) struct Hand<'c> {
    computer: &'c Computer,
    lane: Option<Lane>,
    /// There are none to be had.
    none: bool,
}

impl<'c> Hand<'c> {
    pub(super) fn new(computer: &'c Computer) -> Hand<'c> {
        Hand { computer, lane: None, none: false }
    }

    /// The slots, to be put back with [`Hand::put`] when they are to be used again.
    fn take(&mut self) -> Option<(&'c Cuda, Lane)> {
        let cuda = self.computer.cuda.as_ref()?;
        if self.none || cuda.is_broken() {
            return None;
        }
        let lane = self.lane.take().or_else(|| cuda.lane(self.computer));
        self.none = lane.is_none();
        Some((cuda, lane?))
    }

    fn put(&mut self, lane: Lane) {
        self.lane = Some(lane);
    }
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        if let (Some(cuda), Some(lane)) = (&self.computer.cuda, self.lane.take()) {
            cuda.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
        }
    }
}
