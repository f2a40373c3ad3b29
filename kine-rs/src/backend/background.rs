//! Threads that do what nobody waits for: they leave the processor and the disk to those that answer requests.

use std::io;

/// Nice value: the thread still gets about a tenth of a core that others want.
const NICE: i32 = 10;
/// Best effort, the last of its levels. The idle class would never get to a disk that is always busy.
const IO_PRIORITY: libc::c_int = 2 << 13 | 7;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Lowers the priority of the calling thread, for good.
pub fn yield_to_others() {
    // SAFETY: both calls take numbers only; 0 is the calling thread.
    let refused = unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE) != 0
            || libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IO_PRIORITY) != 0
    };
    if refused {
        tracing::debug!(error = %io::Error::last_os_error(), "the priority of a thread could not be lowered");
    }
}
