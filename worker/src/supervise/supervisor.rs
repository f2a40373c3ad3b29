//! One component: its process, kept running until it is asked to stop.
//!
//! [`Supervisor`] is the handle; it owns the task that owns the process. The invariant: there is at most one process
//! per component, and when the task has ended (or the handle is dropped) there is none. The decision when to restart is
//! made by `restart`, which is pure.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::host::Host;
use super::orphan::OrphanError;
use super::output::{LastLines, Stream, pump};
use super::process::{Process, Unkillable};
use super::restart::{Restarts, Run, Verdict};
use super::spawn::{Launched, SpawnError};
use super::spec::{ComponentSpec, Probe, Readiness};
use super::status::{Check, ComponentStatus, Exit, State};

/// Between two questions to a probe.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// For one answer of a probe.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// How often a start that takes long says what it is waiting for.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// For the last output of a process that has ended: a survivor may hold the pipe open.
const LAST_OUTPUT_WITHIN: Duration = Duration::from_secs(1);
/// A name is part of file names (with `.process.json.new` after it) and cgroup names.
const NAME_BYTES_MAX: usize = 64;

/// A component that could not be started or did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("component name {0:?} must be 1 to 64 lower-case letters, digits and '-'")]
    Name(String),
    #[error(transparent)]
    Orphan(#[from] OrphanError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{name} failed: {reason}{}", quote(.last_log_lines))]
    Failed { name: String, reason: String, last_log_lines: Vec<String> },
    #[error("{name} is not ready after {waited:.1?}: {reason}{}", quote(.last_log_lines))]
    NotReady { name: String, waited: Duration, reason: String, last_log_lines: Vec<String> },
    #[error("{0} was stopped while it was starting")]
    Stopped(String),
}

/// A component that does not end.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct StopError {
    pub name: String,
    pub reason: String,
}

fn quote(lines: &[String]) -> String {
    match lines {
        [] => "; it has written nothing".to_owned(),
        lines => format!("; its last lines:\n  {}", lines.join("\n  ")),
    }
}

/// Handle of one component. Dropping it kills the process; [`Supervisor::stop`] is the orderly way.
#[derive(Debug)]
pub struct Supervisor {
    spec: Arc<ComponentSpec>,
    watched: Watched,
    /// The time by which the component must be gone, once it was asked to stop.
    stop: watch::Sender<Option<Instant>>,
    task: JoinSet<()>,
}

impl Supervisor {
    /// Ends what an earlier k0s left of the component, starts the process, and keeps it running from then on.
    /// Returns as soon as it runs; see [`Supervisor::ready`].
    ///
    /// # Errors
    /// When the process cannot be started at all, or its predecessor does not end.
    pub async fn start(spec: ComponentSpec, host: &Host) -> Result<Supervisor, StartError> {
        if !is_valid_name(&spec.name) {
            return Err(StartError::Name(spec.name));
        }
        let spec = Arc::new(spec);
        host.reclaim(&spec).await?;
        let first = host.launch(&spec).await?;
        let (status, watched_status) = watch::channel(ComponentStatus {
            name: spec.name.clone(),
            state: State::Starting,
            pid: Some(first.process.pid()),
            restarts: 0,
            started_at_unix_seconds: Some(unix_seconds()),
            last_exit: None,
            reason: None,
            checks: Vec::new(),
            last_log_lines: Vec::new(),
        });
        let (stop, stop_asked) = watch::channel(None);
        let last_lines = LastLines::default();
        let task = Task {
            spec: Arc::clone(&spec),
            host: host.clone(),
            status,
            stop: stop_asked,
            restarts: Restarts::new(spec.restart),
            last_lines: last_lines.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(first));
        let watched = Watched { status: watched_status, last_lines };
        Ok(Supervisor { spec, watched, stop, task: tasks })
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn status(&self) -> ComponentStatus {
        self.watched.snapshot()
    }

    /// What of the status may be looked at while somebody else holds the supervisor.
    pub(super) fn watched(&self) -> Watched {
        self.watched.clone()
    }

    /// Waits until the component is ready, and says from time to time what it is waiting for.
    ///
    /// # Errors
    /// When it fails, or is not ready within the time that its spec gives it. It keeps running in the latter case.
    pub async fn ready(&self) -> Result<(), StartError> {
        let name = self.name().to_owned();
        let since = Instant::now();
        let deadline = since + self.spec.ready_within;
        let mut status = self.watched.status.clone();
        let mut settled =
            pin!(status.wait_for(|now| matches!(now.state, State::Ready | State::Failed | State::Stopped)));
        loop {
            let progress = deadline.min(Instant::now() + PROGRESS_EVERY);
            match timeout_at(progress, &mut settled).await {
                Ok(Ok(now)) if now.state == State::Ready => {
                    tracing::info!(component = name, "ready after {:.1?}", since.elapsed());
                    return Ok(());
                }
                Ok(Ok(now)) if now.state == State::Failed => {
                    let reason = now.reason.clone().unwrap_or_default();
                    return Err(StartError::Failed {
                        name,
                        reason,
                        last_log_lines: self.watched.last_lines.snapshot(),
                    });
                }
                Ok(Ok(_)) | Ok(Err(_)) => return Err(StartError::Stopped(name)),
                Err(_) => {
                    let waited = since.elapsed();
                    let ComponentStatus { state, reason, last_log_lines, .. } = self.status();
                    let reason = reason.unwrap_or_else(|| format!("it is {state}"));
                    if Instant::now() >= deadline {
                        return Err(StartError::NotReady { name, waited, reason, last_log_lines });
                    }
                    tracing::info!(
                        component = name,
                        "waiting for it to become ready, {}s so far: {reason}",
                        waited.as_secs()
                    );
                }
            }
        }
    }

    /// Stops the component: its stop signal, the grace of its spec (cut short at `deadline`), then SIGKILL to all.
    /// Stopping one that has stopped or failed is no error.
    ///
    /// # Errors
    /// When the process does not even end when killed. Its state file is left for the next start.
    pub async fn stop(&mut self, deadline: Instant) -> Result<(), StopError> {
        self.stop.send_replace(Some(deadline));
        if let Some(Err(panicked)) = self.task.join_next().await {
            // The process was killed when the task was dropped.
            return Err(StopError {
                name: self.name().to_owned(),
                reason: format!("its supervisor ended: {panicked}"),
            });
        }
        let status = self.watched.status.borrow();
        match (status.state, status.pid) {
            (State::Failed, Some(_)) => Err(StopError {
                name: self.name().to_owned(),
                reason: status.reason.clone().unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }
}

/// The readable side of a component.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    status: watch::Receiver<ComponentStatus>,
    last_lines: LastLines,
}

impl Watched {
    pub fn snapshot(&self) -> ComponentStatus {
        let mut status = self.status.borrow().clone();
        status.last_log_lines = self.last_lines.snapshot();
        status
    }
}

fn is_valid_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Owns the process of a component.
struct Task {
    spec: Arc<ComponentSpec>,
    host: Host,
    status: watch::Sender<ComponentStatus>,
    stop: watch::Receiver<Option<Instant>>,
    restarts: Restarts,
    last_lines: LastLines,
}

/// Why a process is no longer tended.
enum Tended {
    Ended(Run),
    /// Stopped as asked, or not to be ended at all: in either case there is nothing left to do.
    Over,
}

impl Task {
    async fn run(mut self, first: Launched) {
        let mut launched = Ok(first);
        loop {
            let run = match launched {
                Ok(process) => match self.tend(process).await {
                    Tended::Ended(run) => run,
                    Tended::Over => return,
                },
                Err(error) => {
                    self.publish(|status| status.reason = Some(chain(&error)));
                    Run { lasted: Duration::ZERO, was_ready: false }
                }
            };
            let delay = match self.restarts.after(run, rand::random()) {
                Verdict::RestartIn(delay) => delay,
                Verdict::GiveUp => return self.give_up(),
            };
            if self.back_off(delay).await {
                return self.publish(|status| status.state = State::Stopped);
            }
            launched = self.host.launch(&self.spec).await;
            if let Ok(launched) = &launched {
                self.publish(|status| {
                    status.state = State::Starting;
                    status.pid = Some(launched.process.pid());
                    status.restarts = status.restarts.saturating_add(1);
                    status.started_at_unix_seconds = Some(unix_seconds());
                });
            }
        }
    }

    /// Looks after one process until it has ended, by itself or because it was asked to.
    async fn tend(&self, launched: Launched) -> Tended {
        let Launched { process, stdout, stderr } = launched;
        let started = Instant::now();
        tracing::info!(component = self.spec.name, pid = process.pid(), "started");
        let mut pumps = JoinSet::new();
        pumps.spawn(pump(self.spec.name.clone(), Stream::Stdout, stdout, self.last_lines.clone()));
        pumps.spawn(pump(self.spec.name.clone(), Stream::Stderr, stderr, self.last_lines.clone()));

        let mut was_ready = false;
        let asked_to_stop = {
            let mut ready = pin!(self.until_ready());
            let mut checks = pin!(self.check_for_ever());
            let mut stop = pin!(self.stop_asked());
            loop {
                tokio::select! {
                    biased;
                    () = process.ended() => break None,
                    deadline = &mut stop => break Some(deadline),
                    () = &mut ready, if !was_ready => {
                        was_ready = true;
                        self.publish(|status| {
                            status.state = State::Ready;
                            status.reason = None;
                        });
                    }
                    never = &mut checks, if was_ready => match never {},
                }
            }
        };
        if let Some(deadline) = asked_to_stop {
            self.ask_to_end(&process, deadline).await;
        }
        let lasted = started.elapsed();
        let exit = process.finish().await;
        read_to_the_end(pumps).await;
        match (exit, asked_to_stop) {
            (Err(unkillable), _) => {
                self.leave_behind(unkillable);
                Tended::Over
            }
            (Ok(exit), None) => {
                self.note_end(exit, lasted).await;
                Tended::Ended(Run { lasted, was_ready })
            }
            (Ok(exit), Some(_)) => {
                tracing::info!(component = self.spec.name, "stopped: {exit}");
                self.forget_process().await;
                self.publish(|status| {
                    status.state = State::Stopped;
                    status.pid = None;
                    status.last_exit = Some(exit);
                    status.reason = None;
                });
                Tended::Over
            }
        }
    }

    /// Completes when the process is ready; until then the status says why it is not.
    async fn until_ready(&self) {
        let probe = match &self.spec.readiness {
            Readiness::RunningFor(settle) => return sleep(*settle).await,
            Readiness::Probe(probe) => probe,
        };
        loop {
            let asked = Instant::now();
            if self.ask(probe.as_ref()).await.is_ok() {
                return;
            }
            sleep_until(asked + PROBE_EVERY).await;
        }
    }

    /// Asks a component that is ready whether it still is, and tells when the answer changes.
    async fn check_for_ever(&self) -> Infallible {
        let Readiness::Probe(probe) = &self.spec.readiness else { return std::future::pending().await };
        let mut answers = true;
        loop {
            sleep(self.spec.check_every).await;
            let answer = self.ask(probe.as_ref()).await;
            match &answer {
                Err(reason) if answers => {
                    tracing::warn!(component = self.spec.name, "no longer ready: {reason}");
                }
                Ok(()) if !answers => tracing::info!(component = self.spec.name, "ready again"),
                _ => {}
            }
            answers = answer.is_ok();
        }
    }

    /// One question to the probe, whose answer goes to the status.
    async fn ask(&self, probe: &dyn Probe) -> Result<(), String> {
        let answer = timeout(PROBE_WITHIN, probe.probe())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {PROBE_WITHIN:?}")));
        let error = answer.clone().err();
        self.publish(|status| status.note(Check { at_unix_seconds: unix_seconds(), error }));
        answer
    }

    async fn stop_asked(&self) -> Instant {
        let mut stop = self.stop.clone();
        match stop.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.expect("this is what was waited for"),
            // The handle was dropped, and this task is about to be.
            Err(_) => Instant::now(),
        }
    }

    /// Waits before the next start; answers whether it was asked to stop instead.
    async fn back_off(&self, delay: Duration) -> bool {
        self.publish(|status| status.state = State::Backoff);
        tracing::info!(component = self.spec.name, "starting again in {delay:.1?}");
        timeout(delay, self.stop_asked()).await.is_ok()
    }

    /// Signals and waits; kills at the end of the grace. Afterwards the process has ended or soon will.
    async fn ask_to_end(&self, process: &Process, deadline: Instant) {
        let grace_ends = deadline.min(Instant::now() + self.spec.stop.grace);
        tracing::info!(component = self.spec.name, pid = process.pid(), "stopping");
        process.signal(self.spec.stop.signal);
        if timeout_at(grace_ends, process.ended()).await.is_err() {
            tracing::warn!(
                component = self.spec.name,
                pid = process.pid(),
                "does not stop in time: killing it"
            );
            process.kill();
        }
    }

    async fn note_end(&self, exit: Exit, lasted: Duration) {
        tracing::error!(component = self.spec.name, "{exit} after {lasted:.1?}");
        self.forget_process().await;
        self.publish(|status| {
            status.state = State::Backoff;
            status.pid = None;
            status.last_exit = Some(exit);
            status.reason = Some(exit.to_string());
        });
    }

    fn give_up(&self) {
        let times = self.restarts.in_a_row();
        self.publish(|status| {
            let last = status.reason.take().unwrap_or_default();
            status.state = State::Failed;
            status.reason = Some(format!("{last}; tried {times} times, never ready, not tried again"));
        });
        tracing::error!(
            component = self.spec.name,
            "failed: tried {times} times, never ready, not tried again"
        );
    }

    fn leave_behind(&self, unkillable: Unkillable) {
        tracing::error!(component = self.spec.name, "{unkillable}");
        self.publish(|status| {
            status.state = State::Failed;
            status.pid = Some(unkillable.pid);
            status.reason = Some(unkillable.to_string());
        });
    }

    /// Removes the state file of a process that has been reaped.
    async fn forget_process(&self) {
        let state_file = self.host.state_file(&self.spec.name);
        if let Err(error) = tokio::fs::remove_file(state_file.path()).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %state_file.path().display(), %error, "cannot remove a state file");
        }
    }

    fn publish(&self, change: impl FnOnce(&mut ComponentStatus)) {
        self.status.send_modify(change);
    }
}

async fn read_to_the_end(mut pumps: JoinSet<()>) {
    let ends = async { while pumps.join_next().await.is_some() {} };
    if timeout(LAST_OUTPUT_WITHIN, ends).await.is_err() {
        tracing::debug!("a descendant holds the output of a component open");
    }
    pumps.shutdown().await;
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
