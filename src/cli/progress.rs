//! Progress on a terminal, and stopping on a signal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use m2pt_surgery::Progress;

/// Set by the first signal that asks to stop. Signals that this process was told to ignore (`nohup`, `command &` in a
/// script) stay ignored.
static STOPPED: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| {
    let stopped = Arc::new(AtomicBool::new(false));
    let ignored = ignored_signals();
    for signal in ASKING {
        if ignored & 1 << (signal - 1) == 0 {
            // Without a handler the signal ends the program at once, which leaves a scratch file behind and no more.
            let _ = signal_hook::flag::register(*signal, Arc::clone(&stopped));
        }
    }
    stopped
});

/// The signals that ask a program to stop.
#[cfg(unix)]
const ASKING: &[i32] = {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    &[SIGINT, SIGTERM, SIGHUP]
};
#[cfg(not(unix))]
const ASKING: &[i32] = &[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];

/// The signals that this process ignores, as a bit mask from signal 1; none where the system does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A bar of bytes, rate and time left on standard error; invisible where that is no terminal.
#[derive(Clone)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(bytes: u64, what: &str, quiet: bool) -> Bar {
        Bar::with(bytes, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}", what, quiet)
    }

    /// The same of things that are counted.
    #[cfg(feature = "verify")]
    pub(super) fn counting(count: u64, what: &str, quiet: bool) -> Bar {
        Bar::with(count, "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}", what, quiet)
    }

    /// Says more behind the bar's name.
    #[cfg(feature = "verify")]
    pub(super) fn say(&self, text: String) {
        self.0.set_message(text);
    }

    fn with(total: u64, style: &str, what: &str, quiet: bool) -> Bar {
        LazyLock::force(&STOPPED);
        let visible = !quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Bar(bar)
    }
}

impl Progress for Bar {
    fn advance(&mut self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        STOPPED.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
