//! Keeps the processes of a node running: starts, watches, restarts and stops them, and logs what they say.
//!
//! The invariant: a process that was started here is either watched by its [`Supervisor`], or dead, or (after a
//! `kill -9` of k0s that it survived) found by its identity and ended at the next start. Nothing else is signalled.
//!
//! ```text
//! Group ──► Supervisor (handle) ──► its task ──► Spawner (the one thread that forks)
//!                │                     ├──► Process (pidfd, process group, cgroup)
//!                └── status, stop      ├──► Output (pipes ──► tracing, last lines)
//!                                      └──► StateFile (who it is, for the next start)
//! ```
//!
//! `controller::run` calls this; which components there are and how they are configured is not decided here. A component
//! that hangs is reported and otherwise left to its own devices, one that ends is restarted.

mod cgroup;
mod environment;
mod group;
mod host;
mod orphan;
mod output;
mod pidfd;
mod proc_stat;
mod process;
mod restart;
mod spawn;
mod spec;
mod state_file;
mod status;
mod supervisor;
mod user;

pub use environment::{MANAGED, component_environment};
pub use group::{Group, StatusBoard};
pub use host::{CgroupUse, Host, HostConfig, HostError};
pub use orphan::OrphanError;
pub use spawn::SpawnError;
pub use spec::{
    Backoff, CHECK_EVERY, ComponentSpec, Descendants, Probe, READY_WITHIN, Readiness, SETTLE, STOP_GRACE,
    Signal, StopPolicy,
};
pub use status::{Check, ComponentStatus, Exit, State};
pub use supervisor::{StartError, StopError, Supervisor};
pub use user::{LookupError, User};
