//! What the kernel knows about a running server: CPU time, memory, bytes written.
//!
//! CPU time is the process's own clock (nanoseconds; `/proc/<pid>/stat` counts in ticks of 10 ms, too coarse for an idle
//! server), memory is `/proc/<pid>/smaps_rollup` and `status`, device bytes are `write_bytes` of `/proc/<pid>/io`.

use std::fs;
use std::io;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub pid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    #[error("{path} has no {field}")]
    Missing { path: String, field: &'static str },
    #[error("cannot read the CPU clock of process {pid}")]
    Clock { pid: u32, source: io::Error },
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub written_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
}

impl Process {
    pub fn usage(self) -> Result<Usage, ProcessError> {
        Ok(Usage { cpu: self.cpu()?, written_bytes: self.field("io", "write_bytes:")? })
    }

    /// User and system time of all threads, the finished ones too.
    pub fn cpu(self) -> Result<Duration, ProcessError> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut clock = 0;
        // SAFETY: both pointers are to initialised locals that outlive the calls.
        let status = unsafe {
            match libc::clock_getcpuclockid(self.pid as libc::pid_t, &mut clock) {
                0 if libc::clock_gettime(clock, &mut time) == 0 => 0,
                0 => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL),
                error => error,
            }
        };
        if status != 0 {
            return Err(ProcessError::Clock { pid: self.pid, source: io::Error::from_raw_os_error(status) });
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    pub fn memory(self) -> Result<Memory, ProcessError> {
        let kib = 1024;
        Ok(Memory {
            rss_bytes: self.field("smaps_rollup", "Rss:")? * kib,
            anonymous_bytes: self.field("status", "RssAnon:")? * kib,
        })
    }

    /// The most resident memory since `forget_peak`.
    pub fn peak_rss_bytes(self) -> Result<u64, ProcessError> {
        Ok(self.field("status", "VmHWM:")? * 1024)
    }

    /// Starts over with the peak from what is resident now; for a process of the same user.
    pub fn forget_peak(self) -> Result<(), ProcessError> {
        /// See proc(5).
        const RESET_PEAK: &str = "5";
        let path = format!("/proc/{}/clear_refs", self.pid);
        fs::write(&path, RESET_PEAK).map_err(|source| ProcessError::Write { path, source })
    }

    /// Number after `field` in `/proc/<pid>/<file>`.
    fn field(self, file: &str, field: &'static str) -> Result<u64, ProcessError> {
        let path = format!("/proc/{}/{file}", self.pid);
        let text =
            fs::read_to_string(&path).map_err(|source| ProcessError::Read { path: path.clone(), source })?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or(ProcessError::Missing { path, field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_grows_with_work() {
        let process = Process { pid: std::process::id() };
        let before = process.usage().unwrap();
        while process.cpu().unwrap() - before.cpu < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let memory = process.memory().unwrap();
        assert!(memory.rss_bytes >= memory.anonymous_bytes && memory.anonymous_bytes > 0, "{memory:?}");
    }

    #[test]
    fn a_peak_is_remembered_until_it_is_forgotten() {
        const BYTES: usize = 64 << 20;
        let process = Process { pid: std::process::id() };
        let before = process.memory().unwrap().rss_bytes;
        drop(std::hint::black_box(vec![1u8; BYTES]));
        assert!(process.peak_rss_bytes().unwrap() >= before + BYTES as u64 / 2);
        process.forget_peak().unwrap();
        assert!(process.peak_rss_bytes().unwrap() < before + BYTES as u64 / 2);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let gone = Process { pid: child.id() };
        assert!(gone.cpu().is_err() && gone.memory().is_err());
    }
}
