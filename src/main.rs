//! Sets up the allocator, then hands over to `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    limit_heap_fragmentation();
    zoom_chat_reports::cli::main()
}

/// glibc gives each allocation of 128 kB or more a mapping of its own, which is returned to the system on free, but by default
/// it raises that threshold when the first one is freed. Later buffers for large responses then come from the per-thread arenas
/// and fragment them. Setting the threshold prevents this; two arenas, instead of one for nearly every thread, fragment less.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc's allocator has no other settings that a program can make for itself")]
fn limit_heap_fragmentation() {
    const LARGE: libc::c_int = 128 << 10;
    const HEAPS: libc::c_int = 2;
    for (setting, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, HEAPS)] {
        // SAFETY: takes two numbers; there is no other thread yet.
        unsafe { libc::mallopt(setting, value) };
    }
}
