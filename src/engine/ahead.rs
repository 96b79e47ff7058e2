//! What is read soon, brought near.

/// Bytes ahead. On a processor of AMD's Zen 3, whose own guesses do not keep its arithmetic busy, 512 bytes to 8 KiB are alike.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1024;

/// Has the processor bring the line that is so far behind the start of this one into its first-level cache.
#[inline(always)]
pub(super) fn ahead(line: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: whatever is there, if anything is, nothing comes of it but that it is in the cache.
        #[expect(unsafe_code, reason = "the library of vectors has no such operation that is safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
