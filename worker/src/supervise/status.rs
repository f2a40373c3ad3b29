//! What is known about a component at one moment: the snapshot that `k0s status components` shows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a component is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The process runs and is not ready yet.
    Starting,
    Ready,
    /// The process ended; the next start is waiting for its time.
    Backoff,
    /// Stopped because it was asked to.
    Stopped,
    /// It never became ready and is not tried again, or it could not be killed. `reason` says which.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Backoff => "backoff",
            State::Stopped => "stopped",
            State::Failed => "failed",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentStatus {
    pub name: String,
    pub state: State,
    /// Of the main process, while there is one.
    pub pid: Option<u32>,
    /// How often the process was started again by the supervisor.
    pub restarts: u32,
    /// When the current (or last) process was started.
    pub started_at_unix_seconds: Option<u64>,
    pub last_exit: Option<Exit>,
    /// Why the component is not ready: the probe's answer, or why it could not be started.
    pub reason: Option<String>,
    /// The end of what the component wrote, oldest first, over restarts.
    pub last_log_lines: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}
