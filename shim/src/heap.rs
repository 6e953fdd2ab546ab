//! The heaps of the C library's allocator.

/// `M_ARENA_MAX` (malloc.h).
const ARENA_MAX: libc::c_int = -8;
/// How many heaps the threads of a process share. The threads of a sandbox host process or a shim wait most of the time.
/// With a heap each, which is the C library's default, a pod costs the host 0.4 MiB more.
const HEAPS: libc::c_int = 2;

/// Limits the heaps of this process.
pub fn limit() {
    // SAFETY: the call takes numbers.
    unsafe { libc::mallopt(ARENA_MAX, HEAPS) };
}
