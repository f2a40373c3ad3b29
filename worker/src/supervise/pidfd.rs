//! A process by file descriptor: it keeps meaning the same process when the pid has passed to another.
//!
//! Nothing in this crate waits for or signals a single process by number.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::status::Exit;

#[derive(Debug)]
pub(super) struct PidFd(AsyncFd<OwnedFd>);

impl PidFd {
    /// Of the process that has this pid now, child or not; `None` if there is none. Needs a runtime.
    pub fn open(pid: Pid) -> io::Result<Option<PidFd>> {
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // SAFETY: the `OwnedFd` is open, moves into the `AsyncFd`, is only lent out from there, and always
        // answers with the same descriptor.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Some(PidFd(fd)))
    }

    /// Waits until the process has ended, reaped or not.
    pub async fn ended(&self) {
        if self.0.readable().await.is_err() {
            // Only when the runtime is shutting down: this task is about to be dropped.
            std::future::pending::<()>().await;
        }
    }

    /// A process that has ended takes no signal, and that is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.0.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reaps a child if it has ended. Not to be repeated after it told how.
    pub fn reap(&self) -> io::Result<Option<Exit>> {
        let status =
            waitid(WaitId::PidFd(self.0.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        }))
    }
}
