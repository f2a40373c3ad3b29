//! Starts a server in a directory of its own, knows when it answers, and ends it.
//!
//! Each kind gets the arguments that make it durable as its makers ship it; the log goes to a file beside the data. The
//! child inherits the core it is pinned to. A [`Server`] that is dropped is killed.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proto::etcdserverpb::RangeRequest;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::endpoint::{Connection, Endpoint};
use crate::process::Process;

/// 1 M keys have to be found again after a kill; Go kine and etcd take seconds for that.
const START_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_micros(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Ours,
    Etcd,
    /// Go kine on SQLite. Its default is `synchronous=NORMAL`: unlike the others it may lose its last writes at a power cut.
    Kine,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Etcd => "etcd",
            Self::Kine => "kine-sqlite",
        }
    }

    /// Go kine adds its default parameters only when it is given no path at all; without them it doesn't even use a WAL.
    fn sqlite_parameters(self) -> &'static str {
        match self {
            Self::Kine => {
                "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_stmt_cache_size=20&cache=shared"
            }
            Self::Ours | Self::Etcd => "",
        }
    }

    fn arguments(self, dir: &Path, client: u16, peer: u16) -> Vec<String> {
        let dir = dir.display();
        match self {
            Self::Ours | Self::Kine => vec![
                format!("--endpoint=sqlite://{dir}/state.db{}", self.sqlite_parameters()),
                format!("--listen-address=127.0.0.1:{client}"),
                "--metrics-bind-address=0".into(),
            ],
            Self::Etcd => vec![
                format!("--data-dir={dir}/member"),
                "--name=bench".into(),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster=bench=http://127.0.0.1:{peer}"),
                "--log-level=warn".into(),
            ],
        }
    }
}

#[derive(Debug, Clone)]
pub struct Program {
    pub kind: Kind,
    pub path: PathBuf,
    /// Cores the server is pinned to; none: it may use all.
    pub cores: Vec<usize>,
}

#[derive(Debug)]
pub struct Server {
    child: Child,
    pub endpoint: Endpoint,
    /// From exec to the first linearizable read that was answered.
    pub ready_after: Duration,
}

impl Program {
    pub fn on(&self, cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), ..self.clone() }
    }

    /// Starts on the data in `dir`, which may be empty, and waits until the server answers.
    pub async fn start(&self, dir: &Path) -> Result<Server> {
        let (client, peer) = free_ports()?;
        let log_path = dir.join("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .context("cannot create the server's log")?;
        let mut command = Command::new(&self.path);
        command.args(self.kind.arguments(dir, client, peer)).current_dir(dir).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let endpoint = Endpoint::Tcp(format!("127.0.0.1:{client}"));
        let exec = Instant::now();
        let child = spawn_on(&self.cores, &mut command)
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        let mut server = Server { child, endpoint, ready_after: Duration::ZERO };
        while !answers(&server.endpoint).await {
            if let Some(status) = server.child.try_wait()? {
                bail!("{} ended at once ({status}), see {}", self.path.display(), log_path.display());
            }
            if exec.elapsed() > START_MAX {
                bail!(
                    "{} does not answer after {START_MAX:?}, see {}",
                    self.path.display(),
                    log_path.display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        server.ready_after = exec.elapsed();
        Ok(server)
    }
}

impl Server {
    pub fn process(&self) -> Process {
        Process { pid: self.child.id() }
    }

    pub async fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        Ok(self.endpoint.connect_many(count).await?)
    }

    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the server to end, as an operator does.
    pub async fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_MAX;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("process {} did not end within {STOP_MAX:?} of SIGTERM", self.child.id());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process has been waited for already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn log_file(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

async fn answers(endpoint: &Endpoint) -> bool {
    let Ok(connection) = endpoint.connect().await else { return false };
    let request = RangeRequest { key: "ready?".into(), ..RangeRequest::default() };
    connection.kv().range(request).await.is_ok()
}

/// Two ports that were free a moment ago: etcd cannot be told to pick its own.
fn free_ports() -> io::Result<(u16, u16)> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

/// Spawns with this thread's affinity set to `cores` for the moment: a child inherits it before its first instruction, and
/// a Go runtime then sizes itself for the cores it really has.
fn spawn_on(cores: &[usize], command: &mut Command) -> io::Result<Child> {
    if cores.is_empty() {
        return command.spawn();
    }
    let own = sched_getaffinity(None)?;
    pin(cores)?;
    let spawned = command.spawn();
    sched_setaffinity(None, &own)?;
    spawned
}

/// Pins the calling thread, and the threads and children it starts from now on.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    Ok(sched_setaffinity(None, &set)?)
}
