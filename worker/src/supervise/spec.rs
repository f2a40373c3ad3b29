//! What a component is: the plain data by which `controller::plan` says what to run and how to keep it running.
//!
//! Nothing here does anything. The supervisor reads it, and never changes it.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
pub use rustix::process::Signal;

use super::user::User;

/// How long a start may wait for readiness unless the spec says otherwise (as upstream k0s).
pub const READY_WITHIN: Duration = Duration::from_secs(120);
/// How often a ready component is asked whether it still is unless the spec says otherwise (as upstream k0s).
pub const CHECK_EVERY: Duration = Duration::from_secs(10);
/// How long a component may take to stop unless the spec says otherwise (as upstream k0s).
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a process must stay up to count as running where there is nothing to probe.
pub const SETTLE: Duration = Duration::from_secs(1);

/// One supervised process of a node.
#[derive(Clone, Debug)]
pub struct ComponentSpec {
    /// Names the component in logs and status and its files in the state directory: lower-case letters, digits, `-`.
    pub name: String,
    /// Absolute path; PATH is not searched.
    pub executable: PathBuf,
    /// Without `argv[0]`. Visible to every user of the machine: no secrets.
    pub args: Vec<String>,
    /// The whole environment: nothing is inherited. See [`component_environment`](super::component_environment).
    pub env: Vec<(String, String)>,
    /// The account to switch to, which needs root; `None` stays what k0s is.
    pub user: Option<User>,
    /// Must exist and be accessible to `user`.
    pub working_dir: PathBuf,
    pub readiness: Readiness,
    /// How long a start waits for readiness before it is given up.
    pub ready_within: Duration,
    /// How often the probe is asked once it has said yes. The answers are for the status and the log: nothing is restarted
    /// because of them.
    pub check_every: Duration,
    pub stop: StopPolicy,
    pub restart: Backoff,
}

impl ComponentSpec {
    /// A component with the usual policies, no arguments, an empty environment and `/` as its directory.
    pub fn new(name: impl Into<String>, executable: impl Into<PathBuf>) -> ComponentSpec {
        ComponentSpec {
            name: name.into(),
            executable: executable.into(),
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            working_dir: PathBuf::from("/"),
            readiness: Readiness::RunningFor(SETTLE),
            ready_within: READY_WITHIN,
            check_every: CHECK_EVERY,
            stop: StopPolicy::default(),
            restart: Backoff::default(),
        }
    }
}

/// When a started process counts as ready. Decided anew for every incarnation of the process.
#[derive(Clone)]
pub enum Readiness {
    /// It has stayed up this long.
    RunningFor(Duration),
    /// The probe says so. It is called every 100 ms until it does, then every `check_every`, never twice at once.
    Probe(Arc<dyn Probe>),
}

impl Readiness {
    /// Readiness by an async closure; its error says in a few words why the component is not ready yet.
    pub fn probe<F, R>(probe: F) -> Readiness
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        Readiness::Probe(Arc::new(ProbeFn(probe)))
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Readiness::RunningFor(settle) => f.debug_tuple("RunningFor").field(settle).finish(),
            Readiness::Probe(_) => f.write_str("Probe"),
        }
    }
}

/// Asks a running component whether it is ready. An attempt that takes longer than five seconds is dropped and
/// counts as a no.
pub trait Probe: Send + Sync {
    /// # Errors
    /// Why the component is not ready yet, in a few words.
    fn probe(&self) -> BoxFuture<'_, Result<(), String>>;
}

struct ProbeFn<F>(F);

impl<F, R> Probe for ProbeFn<F>
where
    F: Fn() -> R + Send + Sync,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    fn probe(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin((self.0)())
    }
}

/// How a component is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPolicy {
    /// Sent to the main process only, which is expected to end its own children.
    pub signal: Signal,
    /// What is left after this time is killed.
    pub grace: Duration,
    pub descendants: Descendants,
}

impl Default for StopPolicy {
    fn default() -> StopPolicy {
        StopPolicy { signal: Signal::TERM, grace: STOP_GRACE, descendants: Descendants::Kill }
    }
}

/// What happens to the processes a component has started and left behind when its main process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descendants {
    /// They are killed before the component is started again or reported as stopped.
    Kill,
    /// They go on, like the shims of containerd, which carry the containers over its restart.
    Keep,
}

/// How fast a component that ends by itself is started again: `first`, doubled each time up to `max`, minus up to a
/// quarter at random so that components which fell together do not rise together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
    /// A component that was ready and ran this long is healthy: its next delay is `first` again.
    pub healthy_after: Duration,
    /// Ends in a row without ever having been ready after which the component has failed and is left alone.
    /// A component that was ready once is restarted for ever.
    pub starts_max: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            first: Duration::from_millis(100),
            max: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            starts_max: 5,
        }
    }
}
