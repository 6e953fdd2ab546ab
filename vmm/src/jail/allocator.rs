//! What the C library's allocator must know before threads install their filters.

use std::thread;

/// `M_ARENA_MAX` (malloc.h).
const ARENA_MAX: libc::c_int = -8;
/// What the C library takes on 64-bit machines, for each processor (malloc/arena.c, `NARENAS_FROM_NCORES`).
const ARENAS_FOR_EACH_PROCESSOR: usize = 8;

/// Tells the allocator how many heaps threads may have. It would read the number of processors from `/sys` in the thread
/// that needs the ninth, and a thread with a filter must not open files.
pub fn limit_heaps() {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let heaps = processors.saturating_mul(ARENAS_FOR_EACH_PROCESSOR);
    // SAFETY: the call takes numbers.
    unsafe { libc::mallopt(ARENA_MAX, libc::c_int::try_from(heaps).unwrap_or(libc::c_int::MAX)) };
}
