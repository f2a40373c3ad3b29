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
    /// Why the component is not ready, or no longer answers: the probe's answer, or why it could not be started.
    pub reason: Option<String>,
    /// The last answers of its probe, oldest first; empty where there is nothing to ask.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The end of what the component wrote, oldest first, over restarts.
    pub last_log_lines: Vec<String>,
}

/// Answers kept for each component, as upstream k0s does.
const CHECKS_KEPT_MAX: usize = 3;

/// One answer of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub at_unix_seconds: u64,
    /// `None`: it serves.
    pub error: Option<String>,
}

impl ComponentStatus {
    pub(super) fn note(&mut self, check: Check) {
        self.reason = check.error.clone();
        if self.checks.len() == CHECKS_KEPT_MAX {
            self.checks.remove(0);
        }
        self.checks.push(check);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_answers_of_a_probe_are_kept() {
        let mut status = ComponentStatus {
            name: "x".to_owned(),
            state: State::Ready,
            pid: None,
            restarts: 0,
            started_at_unix_seconds: None,
            last_exit: None,
            reason: None,
            checks: Vec::new(),
            last_log_lines: Vec::new(),
        };
        for second in 0..5 {
            let error = (second % 2 == 0).then(|| "shut".to_owned());
            status.note(Check { at_unix_seconds: second, error });
        }
        let seconds: Vec<u64> = status.checks.iter().map(|check| check.at_unix_seconds).collect();
        assert_eq!((seconds, status.reason.as_deref()), (vec![2, 3, 4], Some("shut")));
    }
}
