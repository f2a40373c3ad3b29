//! Runs a controller from start to stop.
//!
//! ```text
//! directories, lock ─► status socket ─► certificates ─► datastore ─► kube-apiserver ─► its clients ─► READY
//!                                                    (stop: the same, from the right)
//! ```
//! Invariant: what was started is stopped in reverse order, whether a signal ends the run or a component that does not
//! start. The stop order is written in one function, `Running::stop`. What runs and how is decided
//! by `plan`; keeping it running is `worker::supervise`'s. Called by `cli`.

mod facts;
mod identity;
mod signals;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use worker::supervise::{
    CgroupUse, Group, Host as ProcessHost, HostConfig, HostError, OrphanError, Readiness, StartError,
};

use crate::api_probe::{ApiProbe, ApiProbeError};
use crate::config::{self, ClusterConfig};
use crate::datastore::{Datastore, DatastoreError};
use crate::durable_file::FileError;
use crate::executables::MissingExecutable;
use crate::paths::{Paths, PathsError};
use crate::pki::{self, PkiError};
use crate::plan::log_levels::LogLevels;
use crate::plan::{self, Disableable, Facts, Plan, PlanError};
use crate::ports::{self, PortInUse};
use crate::release;
use crate::runtime_config::{RuntimeConfigError, RuntimeConfigSpec, RuntimeLock};
use crate::status::server::{StatusServer, StatusServerError, StatusSource};
use crate::status::{ConnectionStatus, Status};
use crate::vars::K0sVars;
use identity::{Identity, IdentityError};
use signals::Signals;

/// For everything to stop after a signal. The datastore closes within what the components leave of it.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Of that, for the datastore: its work is to finish what was acknowledged, which is durable already.
const DATASTORE_STOP_WITHIN: Duration = Duration::from_secs(4);
/// Beside kube-apiserver's own stop time: its clients stop before it.
const CLIENTS_STOP_WITHIN: Duration = Duration::from_secs(6);

/// What `k0s controller` was asked to do.
#[derive(Debug)]
pub struct Options {
    pub paths: Paths,
    pub config: ClusterConfig,
    /// What `config.spec.storage` means.
    pub datastore: config::Datastore,
    /// Where the configuration came from, for the status.
    pub config_source: PathBuf,
    pub host: config::Host,
    pub log_levels: LogLevels,
    pub disabled: BTreeSet<Disableable>,
    pub controller_manager_extra_args: BTreeMap<String, String>,
    pub api_server_stop_timeout: Option<Duration>,
    /// When the process began, for the time to readiness.
    pub started: Instant,
    /// What the user types to reach the new cluster.
    pub next_command: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot use {path}: choose another directory with {flag}")]
    Directory { path: PathBuf, flag: &'static str, source: FileError },
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    RuntimeConfig(#[from] RuntimeConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Executable(#[from] MissingExecutable),
    #[error(transparent)]
    ServiceCidr(#[from] config::ServiceCidrTooSmall),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Probe(#[from] ApiProbeError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Status(#[from] StatusServerError),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Supervision(#[from] HostError),
    #[error(transparent)]
    Orphan(#[from] OrphanError),
    #[error(transparent)]
    Port(#[from] PortInUse),
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("stopped by a second signal before everything had ended")]
    Killed,
    #[error("not everything could be stopped: {0}")]
    Stop(String),
}

/// Runs until a signal asks to stop; that is the only way to return without an error.
pub async fn controller(options: Options) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let lock = claim_directories(&options.paths)?;
    let vars = K0sVars::new(&options.paths, facts::invocation_id(), &options.config_source);
    lock.publish(RuntimeConfigSpec { node_config: options.config.to_document(), k0s_vars: vars.clone() })?;
    let ended = answering(&options, vars, &mut signals).await;
    lock.remove()?;
    ended
}

/// From here on `k0s status` and `k0s stop` are answered, whatever takes its time.
async fn answering(options: &Options, vars: K0sVars, signals: &mut Signals) -> Result<(), RunError> {
    let host = ProcessHost::open(HostConfig {
        state_dir: options.paths.processes_dir(),
        cgroups: CgroupUse::WherePossible,
    })?;
    let group = Group::new(host.clone());
    let status = StatusServer::bind(&options.paths.status_socket)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(status.run(status_source(options, vars, &group)));
    let ended = running(options, &host, group, signals).await;
    tasks.shutdown().await;
    ended
}

async fn running(
    options: &Options,
    host: &ProcessHost,
    group: Group,
    signals: &mut Signals,
) -> Result<(), RunError> {
    let (plan, mut running) = tokio::select! {
        biased;
        signal = signals.next() => {
            tracing::info!("{signal}: nothing has been started yet");
            notify(NotifyState::Stopping);
            return Ok(());
        }
        begun = begin(options, host, group) => begun?,
    };
    let ended = running.until_end(plan, options, signals).await;
    notify(NotifyState::Stopping);
    match (ended, running.stop(signals).await) {
        (Ended::Asked, stopped) => stopped,
        (Ended::NotStarted(error), Ok(())) => Err(error.into()),
        (Ended::NotStarted(error), Err(stop)) => {
            tracing::error!("{stop}");
            Err(error.into())
        }
    }
}

/// Everything before the first component. Where this is dropped it leaves nothing that the next start does not complete.
async fn begin(options: &Options, host: &ProcessHost, group: Group) -> Result<(Plan, Running), RunError> {
    let Prepared { owners, plan, stop_within } = prepare(options).await?;
    // What an earlier k0s left running holds its ports, so it is ended before they are looked at.
    for spec in plan.stages.iter().flatten() {
        host.reclaim(spec).await?;
    }
    ports::check(&plan.ports)?;
    let datastore = Datastore::start(&options.datastore, &options.paths, owners.kube_apiserver).await?;
    Ok((plan, Running { group, datastore, stop_within }))
}

/// `--init-only`: directories, certificates, kubeconfigs, and the check that everything needed is there.
pub async fn initialise(options: &Options) -> Result<(), RunError> {
    let _lock = claim_directories(&options.paths)?;
    prepare(options).await.map(|_| ())
}

/// From here on no other k0s touches these directories.
fn claim_directories(paths: &Paths) -> Result<RuntimeLock, RunError> {
    paths.check()?;
    facts::create_directories(paths)?;
    Ok(RuntimeLock::take(paths)?)
}

/// Everything that is there before the first process.
struct Prepared {
    owners: pki::Owners,
    plan: Plan,
    stop_within: Duration,
}

async fn prepare(options: &Options) -> Result<Prepared, RunError> {
    let Options { paths, config, .. } = options;
    let identity = Identity::of_process(&config.spec.install_config.users)?;
    identity.announce(&paths.data_dir);
    let executables = facts::executables(paths, &options.disabled)?;
    reconcile_pki(options, identity.owners).await?;

    let api = &config.spec.api;
    let probed = if api.only_bind_to_address { api.address } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let probe = ApiProbe::new(&paths.pki_dir(), probed, api.port.get())?;
    let facts = Facts {
        paths,
        executables: &executables,
        users: &identity.users,
        environment: facts::environment(),
        log_levels: options.log_levels.clone(),
        disabled: options.disabled.clone(),
        controller_manager_extra_args: options.controller_manager_extra_args.clone(),
        api_server_stop_timeout: options.api_server_stop_timeout,
        // A SQLite file belongs to one controller; anything else may be shared.
        many_controllers: options.datastore.kind() != config::DatastoreKind::Sqlite,
        api_server_readiness: Readiness::Probe(Arc::new(probe)),
    };
    let plan = plan::controller(config, &facts)?;
    for overridden in &plan.overridden {
        tracing::warn!("{overridden}");
    }
    let longest = plan.stages.iter().flatten().map(|spec| spec.stop.grace).max().unwrap_or_default();
    Ok(Prepared {
        owners: identity.owners,
        plan,
        stop_within: (STOP_WITHIN - DATASTORE_STOP_WITHIN).max(longest + CLIENTS_STOP_WITHIN),
    })
}

async fn reconcile_pki(options: &Options, owners: pki::Owners) -> Result<(), RunError> {
    let directory = options.paths.pki_dir();
    let request = facts::pki_request(&options.config.spec, &options.host, owners)?;
    let reconcile = move || pki::reconcile(&directory, &request, OffsetDateTime::now_utc());
    let changes =
        tokio::task::spawn_blocking(reconcile).await.expect("it does not panic and is not cancelled")?;
    for change in changes {
        match change {
            pki::Change::AuthorityEnds { .. } => tracing::warn!("{change}"),
            _ => tracing::info!("{change}"),
        }
    }
    Ok(())
}

fn status_source(options: &Options, vars: K0sVars, group: &Group) -> StatusSource {
    let board = group.board();
    let status = Status {
        version: release::K0S.to_owned(),
        pid: std::process::id(),
        parent_pid: std::os::unix::process::parent_id(),
        role: "controller".to_owned(),
        sys_init: String::new(),
        stub_file: String::new(),
        output: String::new(),
        workloads: false,
        single_node: false,
        args: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        worker_to_api: ConnectionStatus::default(),
        cluster_config: options.config.to_document(),
        k0s_vars: vars,
    };
    StatusSource { status, components: Box::new(move || board.snapshot()) }
}

/// Why a run is over.
enum Ended {
    Asked,
    NotStarted(StartError),
}

/// What has to be stopped in order.
struct Running {
    group: Group,
    datastore: Datastore,
    stop_within: Duration,
}

impl Running {
    async fn until_end(&mut self, plan: Plan, options: &Options, signals: &mut Signals) -> Ended {
        let group = &mut self.group;
        let start = async {
            for stage in plan.stages {
                let is_api_server = stage.iter().any(|spec| spec.name == plan::KUBE_APISERVER);
                group.start_stage(stage).await?;
                if is_api_server {
                    announce_api(options);
                }
            }
            notify(NotifyState::Ready);
            tracing::info!("everything runs");
            Ok(())
        };
        let run = async {
            match start.await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        tokio::select! {
            biased;
            signal = signals.next() => {
                tracing::info!("{signal}: stopping (again to kill)");
                Ended::Asked
            }
            error = run => Ended::NotStarted(error),
        }
    }

    /// Clients of kube-apiserver, kube-apiserver, the datastore: each when the one before is gone.
    async fn stop(self, signals: &mut Signals) -> Result<(), RunError> {
        let errors = tokio::select! {
            biased;
            // Dropping the group kills what is left of it.
            _ = signals.next() => return Err(RunError::Killed),
            errors = self.group.stop(self.stop_within) => errors,
        };
        self.datastore.stop(DATASTORE_STOP_WITHIN).await;
        if errors.is_empty() {
            tracing::info!("everything has stopped");
            return Ok(());
        }
        Err(RunError::Stop(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }
}

fn announce_api(options: &Options) {
    let seconds = options.started.elapsed().as_secs_f64();
    tracing::info!("the Kubernetes API is ready after {seconds:.1} s; type: {}", options.next_command);
}

/// To systemd, when it started us and wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager about the state");
    }
}
