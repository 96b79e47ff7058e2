//! Samples in batches, read by several threads beside the caller.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Preprocessing, SampleError, SampleSet};

/// Some samples, one after another in the set.
#[derive(Debug)]
pub struct Batch {
    /// The samples that could be read, as [`SampleSet::load`] numbers them.
    pub indices: Vec<usize>,
    /// Their inputs, [n, C, H, W].
    pub data: Vec<f32>,
    /// The samples that could not be read, and why.
    pub failed: Vec<(usize, SampleError)>,
}

type Loaded = Result<Vec<f32>, SampleError>;

/// All samples of a set in order; made by [`SampleSet::batches`].
///
/// Dropped early, it stops its threads and waits until each has finished the sample at hand.
#[derive(Debug)]
pub struct Batches {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    batch: usize,
}

#[derive(Debug)]
struct Shared {
    set: SampleSet,
    preprocessing: Preprocessing,
    state: Mutex<State>,
    /// A sample is ready, or there is room for another.
    changed: Condvar,
    /// How many samples may be read ahead.
    window: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The first sample that nobody reads yet.
    next: usize,
    /// The samples before `next` that were not handed out, as far as they are read.
    ahead: VecDeque<Option<Loaded>>,
    stop: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&'s self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads samples until there are no more.
    fn work(&self) {
        let mut state = self.state();
        loop {
            if state.stop || state.next == self.set.len() {
                return;
            }
            if state.ahead.len() == self.window {
                state = self.wait(state);
                continue;
            }
            let index = state.next;
            state.next += 1;
            state.ahead.push_back(None);
            drop(state);
            let loaded = self.set.load(index, &self.preprocessing);
            state = self.state();
            // Those before it may have been handed out meanwhile; it may not.
            let behind = state.next - index;
            let place = state.ahead.len() - behind;
            state.ahead[place] = Some(loaded);
            self.changed.notify_all();
        }
    }

    /// The next sample and its number; `None` after the last.
    fn pull(&self) -> Option<(usize, Loaded)> {
        let mut state = self.state();
        loop {
            let index = state.next - state.ahead.len();
            if index == self.set.len() {
                return None;
            }
            if let Some(Some(_)) = state.ahead.front() {
                let loaded = state.ahead.pop_front().flatten()?;
                self.changed.notify_all();
                return Some((index, loaded));
            }
            state = self.wait(state);
        }
    }
}

impl Batches {
    /// Starts the threads; the preprocessing has been checked.
    pub(super) fn start(set: SampleSet, preprocessing: Preprocessing, batch: usize, threads: usize) -> Batches {
        let batch = batch.max(1);
        let window = batch.saturating_mul(2).max(threads);
        let shared = Shared { set, preprocessing, state: Mutex::default(), changed: Condvar::new(), window };
        let shared = Arc::new(shared);
        // A thread that the system does not give is done without.
        let threads = (0..threads).filter_map(|number| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("samples-{number}")).spawn(move || shared.work()).ok()
        });
        let threads = threads.collect();
        Batches { shared, threads, batch }
    }

    /// The next sample and its number, read here if there are no threads.
    fn pull(&self) -> Option<(usize, Loaded)> {
        if !self.threads.is_empty() {
            return self.shared.pull();
        }
        let mut state = self.shared.state();
        let index = state.next;
        if index == self.shared.set.len() {
            return None;
        }
        state.next += 1;
        drop(state);
        Some((index, self.shared.set.load(index, &self.shared.preprocessing)))
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch { indices: Vec::new(), data: Vec::new(), failed: Vec::new() };
        while batch.indices.len() + batch.failed.len() < self.batch {
            let Some((index, loaded)) = self.pull() else { break };
            match loaded {
                Ok(input) => {
                    batch.indices.push(index);
                    batch.data.extend_from_slice(&input);
                }
                Err(error) => batch.failed.push((index, error)),
            }
        }
        (batch.indices.len() + batch.failed.len() > 0).then_some(batch)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Reading a sample does not panic: a decoder that does is caught there.
            let _ = thread.join();
        }
    }
}
