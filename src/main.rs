//! Sets up the allocator, parses arguments, builds the runtime, returns an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_large_allocations();
    zoom_chat_reports::cli::main()
}

/// Large answers have maps of their own, which go back to the system with them. glibc begins like this, but the first that
/// is freed makes it take them from the heaps of the threads, where they leave gaps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc's allocator has no other setting that a program can make for itself")]
fn give_back_large_allocations() {
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: takes two numbers; there is no other thread yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}
