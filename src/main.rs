//! Sets up the allocator, then hands over to `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    leave_few_gaps_in_memory();
    zoom_chat_reports::cli::main()
}

/// glibc gives allocations of 128 kB and more a mapping of their own, which goes back to the system when it is freed, but by
/// default raises that threshold when the first one is freed. Later buffers of large answers then come from the heaps of its
/// threads and leave gaps in them. Setting the threshold fixes it; two heaps instead of one for nearly every thread have fewer.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc's allocator has no other settings that a program can make for itself")]
fn leave_few_gaps_in_memory() {
    const LARGE: libc::c_int = 128 << 10;
    const HEAPS: libc::c_int = 2;
    for (setting, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, HEAPS)] {
        // SAFETY: takes two numbers; there is no other thread yet.
        unsafe { libc::mallopt(setting, value) };
    }
}
