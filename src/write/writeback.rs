//! The way to the disk, begun while the rest of a file is computed.

use std::fs::File;

/// Bytes that are worth a call of their own; fewer go to the disk with the rest.
#[cfg(target_os = "linux")]
const WORTH: usize = 64 << 10;

/// Has the system begin to write these bytes of a file, which it was given, to its disk, and does not wait for the disk, unless more is on the way there than it
/// takes. It makes nothing durable; `fsync`, to be called at the end, waits for less then, and tells of what went wrong.
#[cfg(target_os = "linux")]
pub(super) fn begin(file: &File, at: u64, bytes: usize) {
    use std::os::fd::AsRawFd;
    if bytes >= WORTH {
        // SAFETY: takes a descriptor that is open, and numbers.
        #[expect(unsafe_code, reason = "no safe wrapper of this call is among the dependencies")]
        let _ =
            unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, bytes as i64, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn begin(_: &File, _: u64, _: usize) {}
