//! Files that are made shorter while they are mapped.
//!
//! The operating system answers the next read of a page that is gone with the signal SIGBUS, which ends a process without
//! a word. A program can ask for better with [`exit_on_shrunk_file`]; a library has no business installing signal
//! handlers behind its user's back. On Windows a mapped file cannot be made shorter, and there is nothing to do.

/// Makes this process end with exit status `code`, and a message on standard error, when a checkpoint that it is reading
/// is made shorter meanwhile, or its disk fails. Unfinished output files are removed; destructors do not run, and what
/// other buffers hold is lost.
///
/// For programs, to be called once before they open anything: it installs a handler for the signal SIGBUS, which leaves
/// what does not concern this crate to the handler before it. Does nothing where there are no such signals.
///
/// # Errors
/// The operating system's, if it refuses the handler.
pub fn exit_on_shrunk_file(code: i32) -> std::io::Result<()> {
    handler::install(code)
}

pub(super) use handler::watch_map;
pub(crate) use handler::{Watch, watch_scratch};

/// All that the handler needs is prepared beforehand: a list of the mapped files with the messages for each, and of the
/// unfinished output files. Entries are added at its end and never freed, so that it can be walked at any time. (Programs
/// open few files; without a handler there are no entries.)
#[cfg(unix)]
mod handler {
    #![expect(unsafe_code, reason = "signal handlers are unsafe by nature; see the SAFETY notes")]

    use std::ffi::CString;
    use std::io::{self, IsTerminal};
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Installed {
        before: libc::sigaction,
        code: i32,
    }

    static INSTALLED: OnceLock<Installed> = OnceLock::new();

    /// What the handler knows of one file.
    #[derive(Debug)]
    enum File {
        /// A mapped file: its addresses, a descriptor of it, and what to say if it was made shorter, or cannot be read.
        Mapped { start: usize, bytes: usize, descriptor: i32, shorter: String, unreadable: String },
        /// A file that is to be removed.
        Scratch(CString),
    }

    #[derive(Debug)]
    struct Entry {
        file: File,
        /// Cleared when the file is of no interest any more.
        live: AtomicBool,
        next: OnceLock<Box<Entry>>,
    }

    static ENTRIES: OnceLock<Box<Entry>> = OnceLock::new();

    /// The entries of interest.
    fn entries() -> impl Iterator<Item = &'static Entry> {
        let chain = std::iter::successors(ENTRIES.get(), |entry| entry.next.get());
        chain.map(Box::as_ref).filter(|entry| entry.live.load(Ordering::Acquire))
    }

    /// A file that the handler knows of until this is dropped.
    #[derive(Debug)]
    pub(crate) struct Watch(&'static Entry);

    impl Drop for Watch {
        fn drop(&mut self) {
            self.0.live.store(false, Ordering::Release);
        }
    }

    /// Adds a file to the list, if there is a handler to read it.
    fn watch(file: impl FnOnce() -> Option<File>) -> Option<Watch> {
        INSTALLED.get()?;
        let mut entry = Box::new(Entry { file: file()?, live: AtomicBool::new(true), next: OnceLock::new() });
        let mut end = &ENTRIES;
        loop {
            match end.set(entry) {
                Ok(()) => return end.get().map(|entry| Watch(entry)),
                // The end was elsewhere.
                Err(rejected) => entry = rejected,
            }
            end = &end.get()?.next;
        }
    }

    /// Makes the handler, if there is one, remove the unfinished file at `path`.
    pub(crate) fn watch_scratch(path: &Path) -> Option<Watch> {
        watch(|| CString::new(path.as_os_str().as_encoded_bytes()).ok().map(File::Scratch))
    }

    /// Makes the handler, if there is one, know the file at `path`, which is mapped to `map`.
    pub(crate) fn watch_map(path: &Path, file: &std::fs::File, map: &[u8]) -> Option<Watch> {
        watch(|| {
            // A name must not steer the terminal; and a progress bar may be in the way.
            let name = path.display().to_string().replace(char::is_control, "?");
            let line = if io::stderr().is_terminal() { "\n" } else { "" };
            Some(File::Mapped {
                start: map.as_ptr().addr(),
                bytes: map.len(),
                descriptor: file.as_raw_fd(),
                shorter: format!("{line}error: {}\n", crate::error::shorter(&name)),
                unreadable: format!(
                    "{line}error: cannot read {name}: its disk or network fails; copy it to a sound disk first\n"
                ),
            })
        })
    }

    pub(super) fn install(code: i32) -> io::Result<()> {
        let mut before = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks for the present action only, which is written to a place of the right type.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, and so wrote it.
        let before = unsafe { before.assume_init() };
        if INSTALLED.set(Installed { before, code }).is_err() {
            return Ok(());
        }
        // SAFETY: zeros are a valid `sigaction`: no flags, an empty mask, the default action.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let function: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = function as usize;
        // On the stack that Rust keeps for signals.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is initialised; its function has the signature that SA_SIGINFO asks for, and does only what
        // a signal handler may do (see there).
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// May run between any two instructions of the program, and so takes no lock, allocates nothing and cannot panic: it
    /// reads atomics and memory that is never freed, and calls functions that POSIX lists as safe in a handler.
    extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let Some(installed) = INSTALLED.get() else { return };
        // SAFETY: under SA_SIGINFO the system passes a valid pointer, and for SIGBUS the address is set.
        let address = unsafe { (*info).si_addr() }.addr();
        let message = entries().find_map(|entry| match &entry.file {
            File::Mapped { start, bytes, descriptor, shorter, unreadable } if address.wrapping_sub(*start) < *bytes => {
                let mut status = MaybeUninit::<libc::stat>::uninit();
                // SAFETY: `fstat` is async-signal-safe, and the descriptor is open as long as the entry is live; the
                // status is read only if the call succeeded, and so wrote it.
                let size = unsafe {
                    match libc::fstat(*descriptor, status.as_mut_ptr()) {
                        0 => Some(status.assume_init().st_size),
                        _ => None,
                    }
                };
                let whole = size.is_some_and(|size| u64::try_from(size).is_ok_and(|size| size >= *bytes as u64));
                Some(if whole { unreadable } else { shorter })
            }
            _ => None,
        });
        let Some(message) = message else {
            // Not ours. The instruction runs and fails again after this, and the handler before this one answers.
            // SAFETY: `sigaction` is async-signal-safe, and the action is one that the system gave.
            unsafe { libc::sigaction(signal, &raw const installed.before, std::ptr::null_mut()) };
            return;
        };
        for entry in entries() {
            if let File::Scratch(path) = &entry.file {
                // SAFETY: `unlink` is async-signal-safe; the path ends in a zero byte and is never freed.
                unsafe { libc::unlink(path.as_ptr()) };
            }
        }
        // SAFETY: `write` and `_exit` are async-signal-safe; the message is a live buffer of that length.
        unsafe {
            libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
            libc::_exit(installed.code)
        }
    }
}

#[cfg(not(unix))]
mod handler {
    use std::fs::File;
    use std::path::Path;

    /// There is no handler that a file could be watched by.
    #[derive(Debug)]
    pub(crate) enum Watch {}

    pub(crate) fn watch_scratch(_: &Path) -> Option<Watch> {
        None
    }

    pub(crate) fn watch_map(_: &Path, _: &File, _: &[u8]) -> Option<Watch> {
        None
    }

    pub(super) fn install(_: i32) -> std::io::Result<()> {
        Ok(())
    }
}
