//! What runs on a controller, in which order and with which arguments.
//!
//! Invariant: pure. The same configuration and facts give the same plan, down to the order of arguments; nothing is read,
//! created or asked here. `run` gathers the facts and executes the plan. One file per component below `plan/`.
//!
//! The datastore is not in the plan: it is a part of this process and is there before the first stage.

pub mod arguments;
mod kube_apiserver;
mod kube_controller_manager;
mod kube_scheduler;
pub mod log_levels;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use worker::supervise::{ComponentSpec, Readiness, StopPolicy, User, component_environment};

use crate::config::ClusterConfig;
use crate::paths::Paths;
use crate::ports::PortClaim;
use arguments::{Arguments, Overridden};
use log_levels::LogLevels;

pub use kube_apiserver::NAME as KUBE_APISERVER;
pub use kube_controller_manager::NAME as KUBE_CONTROLLER_MANAGER;
pub use kube_scheduler::NAME as KUBE_SCHEDULER;

/// What the plan must know beside the configuration.
pub struct Facts<'a> {
    pub paths: &'a Paths,
    pub executables: &'a Executables,
    pub users: &'a Users,
    /// k0s' own environment, of which components inherit.
    pub environment: Vec<(String, String)>,
    pub log_levels: LogLevels,
    pub disabled: BTreeSet<Disableable>,
    /// `--kube-controller-manager-extra-args`.
    pub controller_manager_extra_args: BTreeMap<String, String>,
    /// `--api-server-stop-timeout`.
    pub api_server_stop_timeout: Option<Duration>,
    /// Whether other controllers may share the datastore, so that only one scheduler may act.
    pub many_controllers: bool,
    /// How to tell that kube-apiserver serves.
    pub api_server_readiness: Readiness,
}

#[derive(Debug, Clone, Default)]
pub struct Executables {
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
}

/// The accounts to switch to; `None` stays what k0s is. kube-controller-manager shares kube-apiserver's, whose files it needs.
#[derive(Debug, Clone, Default)]
pub struct Users {
    pub kube_apiserver: Option<User>,
    pub kube_scheduler: Option<User>,
}

#[derive(Debug)]
pub struct Plan {
    /// Each stage starts together when the one before it is ready.
    pub stages: Vec<Vec<ComponentSpec>>,
    pub ports: Vec<PortClaim>,
    pub overridden: Vec<Overridden>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{path}: cannot be set here, k0s depends on it: use {instead}")]
    Reserved { path: String, instead: &'static str },
}

/// `--disable-components`: the names k0s knows. Disabling a part that this build does not have is already so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disableable(&'static str);

pub const DISABLEABLE: [&str; 17] = [
    "applier-manager",
    "autopilot",
    "control-api",
    "coredns",
    "csr-approver",
    "endpoint-reconciler",
    "helm",
    "konnectivity-server",
    KUBE_CONTROLLER_MANAGER,
    "kube-proxy",
    KUBE_SCHEDULER,
    "metrics-server",
    "network-provider",
    "node-role",
    "system-rbac",
    "update-prober",
    "windows-node",
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown component {0:?}: must be one of {names}", names = DISABLEABLE.join(", "))]
pub struct UnknownComponent(String);

/// A name upstream once knew and still takes, with a warning.
const NO_LONGER_DISABLEABLE: &str = "worker-config";

impl FromStr for Disableable {
    type Err = UnknownComponent;

    fn from_str(name: &str) -> Result<Self, UnknownComponent> {
        let known = DISABLEABLE.into_iter().chain([NO_LONGER_DISABLEABLE]).find(|known| *known == name);
        known.map(Disableable).ok_or_else(|| UnknownComponent(name.to_owned()))
    }
}

impl Disableable {
    pub fn name(&self) -> &'static str {
        self.0
    }

    pub fn is_obsolete(&self) -> bool {
        self.0 == NO_LONGER_DISABLEABLE
    }
}

/// One component on its way to become a [`ComponentSpec`].
struct Process {
    name: &'static str,
    argv: Vec<String>,
    stop_grace: Duration,
    port: PortClaim,
}

pub fn controller(config: &ClusterConfig, facts: &Facts<'_>) -> Result<Plan, PlanError> {
    let mut overridden = Vec::new();
    let mut ports = Vec::new();

    let api_server = kube_apiserver::process(config, facts, &mut overridden)?;
    ports.push(api_server.port.clone());
    let Executables { kube_apiserver, kube_controller_manager, kube_scheduler } = facts.executables;
    let mut api_server = component(api_server, kube_apiserver, &facts.users.kube_apiserver, facts);
    api_server.readiness = facts.api_server_readiness.clone();

    let mut clients = Vec::new();
    if !facts.disables(KUBE_CONTROLLER_MANAGER) {
        let process = kube_controller_manager::process(config, facts, &mut overridden);
        ports.push(process.port.clone());
        clients.push(component(process, kube_controller_manager, &facts.users.kube_apiserver, facts));
    }
    if !facts.disables(KUBE_SCHEDULER) {
        let process = kube_scheduler::process(config, facts, &mut overridden);
        ports.push(process.port.clone());
        clients.push(component(process, kube_scheduler, &facts.users.kube_scheduler, facts));
    }
    Ok(Plan { stages: vec![vec![api_server], clients], ports, overridden })
}

impl Facts<'_> {
    fn disables(&self, name: &'static str) -> bool {
        self.disabled.contains(&Disableable(name))
    }
}

fn component(
    process: Process,
    executable: &PathBuf,
    user: &Option<User>,
    facts: &Facts<'_>,
) -> ComponentSpec {
    let environment = facts.environment.iter().cloned();
    ComponentSpec {
        args: process.argv,
        env: component_environment(process.name, environment, &facts.paths.staged_bin_dir()),
        user: user.clone(),
        working_dir: facts.paths.data_dir.clone(),
        stop: StopPolicy { grace: process.stop_grace, ..StopPolicy::default() },
        ..ComponentSpec::new(process.name, executable)
    }
}

/// The port of a component that serves on loopback. A value that is no port is the component's to complain about.
fn loopback_port(
    component: &'static str,
    arguments: &Arguments,
    default: u16,
    configured_by: &'static str,
) -> PortClaim {
    let port = arguments.value("secure-port").and_then(|port| port.parse().ok()).unwrap_or(default);
    let address = arguments.value("bind-address").and_then(|address| address.parse().ok());
    PortClaim { component, address, port, configured_by }
}

fn joined(list: &[impl ToString]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
