//! One running process with everything it starts: waiting for it, signalling it, ending it.
//!
//! The invariant: the process is not reaped before its descendants were dealt with, so its pid and process group
//! cannot have passed to a stranger when they are signalled. Dropping it kills it.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::{Instant, timeout_at};

use super::cgroup::Cgroup;
use super::pidfd::PidFd;
use super::proc_stat::followers;
use super::spec::Descendants;
use super::status::Exit;

/// How long the kernel may take to end what was killed. Only a process stuck in a device or a network file system
/// takes longer.
pub(super) const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How often a killed process group is looked at until it is empty.
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    pidfd: PidFd,
    cgroup: Option<Cgroup>,
    descendants: Descendants,
    reaped: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "process {pid} does not end although it was killed; it hangs in the kernel (device or network file system?)"
)]
pub(super) struct Unkillable {
    pub pid: u32,
}

impl Process {
    /// Takes charge of a child that leads its own session.
    pub fn new(pid: Pid, pidfd: PidFd, cgroup: Option<Cgroup>, descendants: Descendants) -> Process {
        Process { pid, pidfd, cgroup, descendants, reaped: false }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Waits until the main process has ended. It stays a zombie until [`Process::finish`].
    pub async fn ended(&self) {
        self.pidfd.ended().await;
    }

    /// Signals the main process.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = self.pidfd.signal(signal) {
            tracing::error!(pid = self.pid(), ?signal, %error, "cannot signal a component");
        }
    }

    /// Kills the main process, and its descendants if the policy says so.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        if self.descendants == Descendants::Kill {
            self.kill_descendants();
        }
    }

    fn kill_descendants(&self) {
        match kill_process_group(self.pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                tracing::error!(pid = self.pid(), %error, "cannot kill the process group of a component")
            }
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill()
        {
            tracing::error!(cgroup = %cgroup.dir().display(), %error, "cannot kill the cgroup of a component");
        }
    }

    /// After the main process has ended or was killed: ends the descendants (if that is the policy) and reaps it.
    ///
    /// # Errors
    /// When the process does not end within [`KILLED_WITHIN`].
    pub async fn finish(mut self) -> Result<Exit, Unkillable> {
        let deadline = Instant::now() + KILLED_WITHIN;
        let unkillable = Unkillable { pid: self.pid() };
        if self.descendants == Descendants::Kill {
            self.kill_descendants();
        }
        if timeout_at(deadline, self.ended()).await.is_err() {
            return Err(unkillable);
        }
        let Some(exit) = self.reap() else { return Err(unkillable) };
        if self.descendants == Descendants::Kill && !self.descendants_gone(deadline).await {
            tracing::error!(
                pid = self.pid(),
                "descendants of a component do not end although they were killed"
            );
        }
        self.cgroup.iter().for_each(Cgroup::discard);
        Ok(exit)
    }

    fn reap(&mut self) -> Option<Exit> {
        let exit = self.pidfd.reap().unwrap_or_else(|error| {
            tracing::error!(pid = self.pid(), %error, "cannot wait for a component");
            None
        });
        self.reaped = exit.is_some();
        exit
    }

    /// Waits for the end of killed descendants: they may still hold ports and locks.
    async fn descendants_gone(&self, deadline: Instant) -> bool {
        let gone = match &self.cgroup {
            Some(cgroup) => cgroup.clear(deadline).await,
            None => self.followers_gone(deadline).await,
        };
        gone.unwrap_or_else(|error| {
            tracing::error!(pid = self.pid(), %error, "cannot find out whether descendants of a component have ended");
            false
        })
    }

    async fn followers_gone(&self, deadline: Instant) -> io::Result<bool> {
        while !followers(self.pid)?.is_empty() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(true)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            // Most often too early, and then init does it when k0s ends.
            self.reap();
        }
    }
}
