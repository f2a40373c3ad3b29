//! `k0s stop`: asks the running k0s to stop and waits until it is gone.
//!
//! Invariant: only a process that answers on the status socket is signalled, and through a descriptor that was opened
//! before it answered, so a process that merely has the same number later is never hit.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::instance;
use super::{LogFlags, PathFlags};
use crate::status::client::{self, AskError};

/// A little more than k0s takes at most with its default stop time.
const GONE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    paths: PathFlags,
    #[command(flatten)]
    logs: LogFlags,
}

impl Stop {
    pub fn run(self) -> anyhow::Result<()> {
        self.logs.install();
        let located = instance::locate(self.paths.choices())?;
        let socket = &located.paths.status_socket;
        super::runtime()?.block_on(async {
            let stream = match client::connect(socket).await {
                Err(AskError::NotRunning { .. }) if located.hidden.is_none() => bail!("already stopped"),
                connected => connected.map_err(|error| located.unanswered(error))?,
            };
            let pid = stream
                .peer_cred()?
                .pid()
                .and_then(Pid::from_raw)
                .context("cannot tell which process answers")?;
            let process = pidfd_open(pid, PidfdFlags::empty()).context("cannot look at the running k0s")?;
            client::ask(stream, socket, "/status").await?;
            pidfd_send_signal(&process, Signal::TERM).context("cannot signal the running k0s")?;

            let within = Timespec { tv_sec: GONE_WITHIN.as_secs() as i64, tv_nsec: 0 };
            let mut ends = [PollFd::new(&process, PollFlags::IN)];
            if poll(&mut ends, Some(&within)).context("cannot wait for the running k0s")? == 0 {
                bail!(
                    "k0s (pid {}) was asked to stop and still runs after {GONE_WITHIN:?}",
                    pid.as_raw_pid()
                );
            }
            Ok(())
        })
    }
}
