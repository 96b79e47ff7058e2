//! Work in numbered units, done by several threads.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::engine::Progress;
use crate::error::{Error, Result};

/// Threads that are started without being asked for, at most: more do not write faster to one file.
pub const MAX_DEFAULT_THREADS: usize = 16;

/// How often progress is told, and cancelling noticed.
const TICK: Duration = Duration::from_millis(50);

/// As many threads as asked for; as there are processors, up to [`MAX_DEFAULT_THREADS`], if `None`.
pub(crate) fn threads(wanted: Option<NonZeroUsize>) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_DEFAULT_THREADS);
    wanted.map_or_else(available, NonZeroUsize::get)
}

/// What threads at work and who watches them share.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Bytes that are done, and that nobody was told of yet.
    pub(crate) done: AtomicU64,
    /// Whether no more units should be begun.
    pub(crate) stop: AtomicBool,
}

/// Tells the supervisor when a thread is done, however it ends.
struct SignOff<'s> {
    running: &'s AtomicUsize,
    supervisor: &'s Thread,
}

impl Drop for SignOff<'_> {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Release);
        self.supervisor.unpark();
    }
}

/// Does the units `0..count`; each thread begins with a state of its own. Returns what came of each, in order.
///
/// # Errors
/// That of the first unit that fails, always the same one; [`Error::Cancelled`].
pub(crate) fn run<S, T: Send>(
    count: usize,
    threads: usize,
    watched: &Watched,
    progress: &mut dyn Progress,
    state: impl Fn() -> S + Sync,
    unit: impl Fn(&mut S, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let threads = threads.min(count);
    let running = AtomicUsize::new(threads);
    let supervisor = std::thread::current();
    let work = || {
        let _sign_off = SignOff { running: &running, supervisor: &supervisor };
        let (mut state, mut results) = (state(), Vec::new());
        while !watched.stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            match unit(&mut state, number) {
                Ok(result) => results.push((number, result)),
                Err(error) => {
                    watched.stop.store(true, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    // Units are taken in order, so that all before this one are done or will be: the first error is always
                    // the same one.
                    if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                        *failed = Some((number, error));
                    }
                }
            }
        }
        results
    };
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // This thread only watches, so that it is heard of even while all others wait for the disk.
        while running.load(Ordering::Acquire) > 0 {
            std::thread::park_timeout(TICK);
            progress.advance(watched.done.swap(0, Ordering::Relaxed));
            if progress.cancelled() {
                watched.stop.store(true, Ordering::Relaxed);
            }
        }
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    progress.advance(watched.done.swap(0, Ordering::Relaxed));
    if let Some((_, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if progress.cancelled() || watched.stop.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    results.sort_unstable_by_key(|(number, _)| *number);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn fails(unit: usize) -> Error {
        Error::NotAFile { path: PathBuf::from(unit.to_string()) }
    }

    #[test]
    fn results_come_in_order_and_the_first_error_wins() {
        for threads in [1, 2, 7] {
            let squares = run(100, threads, &Watched::default(), &mut (), || (), |(), unit| Ok(unit * unit)).unwrap();
            assert_eq!(squares, (0..100).map(|unit| unit * unit).collect::<Vec<_>>());
            let failed = run(
                100,
                threads,
                &Watched::default(),
                &mut (),
                || (),
                |(), unit| match unit {
                    30.. => Err(fails(unit)),
                    _ => Ok(()),
                },
            );
            assert!(matches!(failed, Err(Error::NotAFile { path }) if path.as_os_str() == "30"));
        }
    }

    #[test]
    fn who_cancels_is_heard() {
        struct Stops(u64);
        impl Progress for Stops {
            fn advance(&mut self, bytes: u64) {
                self.0 += bytes;
            }
            fn cancelled(&self) -> bool {
                self.0 > 0
            }
        }
        let watched = Watched::default();
        let cancelled = run(
            usize::MAX,
            2,
            &watched,
            &mut Stops(0),
            || (),
            |(), _| {
                watched.done.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            },
        );
        assert!(matches!(cancelled, Err(Error::Cancelled)));
    }
}
