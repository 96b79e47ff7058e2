//! Writing no faster than is allowed.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A limit of bytes per second, over everything that all threads write.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<NonZeroU64>,
    started: Instant,
    bytes: AtomicU64,
}

impl Pace {
    pub(super) fn new(limit: Option<NonZeroU64>) -> Pace {
        Pace { limit, started: Instant::now(), bytes: AtomicU64::new(0) }
    }

    /// So many bytes were written: waits until they may have been, or `stop` is set.
    pub(super) fn wrote(&self, bytes: usize, stop: &AtomicBool) {
        /// How long to wait before looking at `stop` again.
        const NAP: Duration = Duration::from_millis(50);
        let Some(limit) = self.limit else { return };
        let bytes = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        // Hours, if somebody wants a byte a second; but no number of seconds that there is none of.
        let due = Duration::try_from_secs_f64(bytes as f64 / limit.get() as f64).unwrap_or(Duration::MAX);
        while let Some(left) = due.checked_sub(self.started.elapsed()).filter(|left| !left.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
