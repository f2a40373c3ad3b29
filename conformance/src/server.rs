//! The process under test: a real etcd, our `kine` or the Go one, with a directory of its own and a free port.
//!
//! A started server answers a linearizable read and has settled before anybody gets it, dies with its owner, and leaves
//! its directory behind, with its path printed, when the owner panics. Executables: `K0S_TEST_BIN_DIR` holds `etcd` and the
//! Go `kine`; `K0S_TEST_KINE` is our `kine`, or else the one this workspace was last built with.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::{RangeRequest, StatusRequest, StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// From exec to the first answered read; etcd needs a second when the machine is idle.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A dying process closes its sockets before it is gone.
const ENDING_DEADLINE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
/// Another process can take a free port between our look and the server's bind.
const PORT_ATTEMPTS: usize = 5;
const LOG_LINES_SHOWN: usize = 20;
/// What etcd detects in a storage that no version was written to yet.
pub const STORAGE_VERSION_UNSETTLED: &str = "3.5.0";
/// etcd's quota when none is given; kine has none, so it is told.
const ETCD_QUOTA_BYTES: u64 = 2 << 30;
/// Where development keeps the upstream executables.
const BIN_DIR_FALLBACK: &str = "/tmp/up/bin";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    Etcd,
    KineSqlite,
    KineMemory,
    /// Our `kine` under the name and with the flags of `etcd`, on SQLite.
    KineAsEtcd,
    GoKine,
}

impl Flavor {
    /// Whether a restarted server still knows what the one before it knew.
    pub fn survives_restart(self) -> bool {
        self != Self::KineMemory
    }
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub progress_interval: Option<Duration>,
    pub quota_bytes: Option<u64>,
    /// More flags of etcd, for those that take them.
    pub etcd_flags: Vec<String>,
    /// How many revisions the Go kine does not compact, where it can be told; otherwise 1,000, and it compacts by itself.
    pub go_kine_retains: Option<u32>,
    /// Wait for the disk; off unless a test is about losing power or being killed.
    pub durable: bool,
}

pub struct Server {
    flavor: Flavor,
    options: Options,
    /// `None` once the directory was given up to be kept.
    dir: Option<TempDir>,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// # Errors
    /// When the executable is missing or does not answer in time; the message has the end of its log.
    pub async fn start(flavor: Flavor, options: Options) -> Result<Self> {
        Self::start_on(flavor, options, |_| Ok(())).await
    }

    /// Starts on what `prepare` puts into the directory; a SQLite database is `state.db` in it.
    ///
    /// # Errors
    /// As [`Self::start`], and those of `prepare`.
    pub async fn start_on(
        flavor: Flavor,
        options: Options,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("k0s-conformance-")
            .tempdir()
            .context("a directory for the server")?;
        prepare(dir.path())?;
        let mut server = Self { flavor, options, dir: Some(dir), port: 0, child: None };
        for attempt in 1.. {
            server.port = free_port()?;
            match server.launch().await {
                Err(error) if attempt < PORT_ATTEMPTS && server.log().contains("address already in use") => {
                    eprintln!("{error:#}; trying another port");
                }
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        Ok(server)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("the directory is given up only by drop").path()
    }

    /// The file of a server on SQLite.
    pub fn database(&self) -> PathBuf {
        self.dir().join("state.db")
    }

    /// The process id, while there is a process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process has ended by itself; waits a moment for one that is about to.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub async fn has_ended(&mut self) -> Result<bool> {
        let deadline = Instant::now() + ENDING_DEADLINE;
        loop {
            let Some(child) = self.child.as_mut() else { return Ok(true) };
            if child.try_wait().context("wait for the server")?.is_some() {
                self.child = None;
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }

    /// Stops with SIGTERM and starts again on the same data.
    ///
    /// # Errors
    /// When it does not stop or start in time.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.launch().await
    }

    /// Starts a server that was stopped.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn resume(&mut self) -> Result<()> {
        self.launch().await
    }

    /// SIGKILL; the process is gone on return.
    ///
    /// # Errors
    /// When there is no process.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the server is not running")?;
        child.kill().context("kill")?;
        child.wait().context("wait for the killed server")
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When there is no process or it does not stop in time.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the server is not running")?;
        kill_process(Pid::from_child(child), Signal::TERM).context("SIGTERM")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(status) = child.try_wait().context("wait for the stopped server")? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{:?} did not stop within {STOP_DEADLINE:?}; {}", self.flavor, self.log());
            }
            sleep(POLL).await;
        }
    }

    async fn launch(&mut self) -> Result<()> {
        let log =
            File::options().create(true).append(true).open(self.log_path()).context("the server's log")?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("the log's second handle")?).stderr(log);
        // SAFETY: only async-signal-safe calls happen between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        let program = command.get_program().to_owned();
        self.child = Some(command.spawn().with_context(|| format!("start {}", program.display()))?);
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                self.child = None;
                let status = status.context("wait for the server")?;
                let how = status.signal().map_or(status.to_string(), |signal| format!("signal {signal}"));
                bail!("{} ended with {how} before it answered; {}", program.display(), self.log());
            }
            if self.answers().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not answer within {START_DEADLINE:?}; {}", program.display(), self.log());
            }
            sleep(POLL).await;
        }
    }

    async fn answers(&self) -> bool {
        let Ok(channel) = connect(&self.endpoint()).await else { return false };
        let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
        let answer = timeout(CONNECT_DEADLINE, KvClient::new(channel.clone()).range(request)).await;
        answer.is_ok_and(|result| result.map_or_else(|status| is_refusal(&status), |_| true))
            && self.has_settled(channel).await
    }

    /// etcd gives its storage the cluster's version a moment after it answers, and tells both in Status.
    async fn has_settled(&self, channel: Channel) -> bool {
        let mut maintenance = MaintenanceClient::new(channel);
        let answer = timeout(CONNECT_DEADLINE, maintenance.status(StatusRequest {})).await;
        let has_version = |response: Response<StatusResponse>| {
            response.into_inner().storage_version != STORAGE_VERSION_UNSETTLED
        };
        answer.is_ok_and(|result| result.map_or_else(|status| is_refusal(&status), has_version))
    }

    fn command(&self) -> Result<Command> {
        match self.flavor {
            Flavor::Etcd => self.etcd(&upstream_path("etcd")?),
            Flavor::KineAsEtcd => self.etcd(&self.kine_named_etcd()?),
            Flavor::KineSqlite => self.kine(&format!("sqlite://{}", self.database().display())),
            Flavor::KineMemory => self.kine("memory://"),
            Flavor::GoKine => self.go_kine(),
        }
    }

    fn kine_named_etcd(&self) -> Result<PathBuf> {
        let link = self.dir().join("bin/etcd");
        if !link.exists() {
            fs::create_dir_all(self.dir().join("bin")).context("a directory for the link")?;
            symlink(kine_path()?, &link).context("a link to kine")?;
        }
        Ok(link)
    }

    fn etcd(&self, program: &Path) -> Result<Command> {
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let client = self.endpoint();
        let mut command = Command::new(program);
        command
            .arg(format!("--data-dir={}", self.dir().join("etcd").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg("--log-level=warn")
            // The password hash is not under test, and the default cost takes longer than everything else.
            .arg("--bcrypt-cost=4")
            .args(&self.options.etcd_flags);
        if let Some(interval) = self.options.progress_interval {
            command.arg(format!("--watch-progress-notify-interval={}ms", interval.as_millis()));
        }
        if let Some(bytes) = self.options.quota_bytes {
            command.arg(format!("--quota-backend-bytes={bytes}"));
        }
        if !self.options.durable {
            command.arg("--unsafe-no-fsync");
        }
        Ok(command)
    }

    fn kine(&self, endpoint: &str) -> Result<Command> {
        let mut command = Command::new(kine_path()?);
        command
            .args(["--endpoint", endpoint, "--metrics-bind-address", "0"])
            .args(["--listen-address", &format!("127.0.0.1:{}", self.port)]);
        if let Some(interval) = self.options.progress_interval {
            command.arg(format!("--watch-progress-notify-interval={}ms", interval.as_millis()));
        }
        let quota = self.options.quota_bytes.unwrap_or(ETCD_QUOTA_BYTES);
        command.arg(format!("--quota-backend-bytes={quota}"));
        if !self.options.durable {
            command.arg("--unsafe-no-fsync");
        }
        Ok(command)
    }

    /// With flags that every kine from 0.9 on has.
    fn go_kine(&self) -> Result<Command> {
        let mut command = Command::new(upstream_path("kine")?);
        let settings = "_journal=WAL&cache=shared&_busy_timeout=30000";
        command
            .arg(format!("--endpoint=sqlite://{}?{settings}", self.database().display()))
            .arg(format!("--listen-address=127.0.0.1:{}", self.port))
            .arg("--metrics-bind-address=0");
        if let Some(revisions) = self.options.go_kine_retains {
            command.args([format!("--compact-min-retain={revisions}"), "--compact-interval=0".into()]);
        }
        Ok(command)
    }

    /// That at least `starts_min` starts of our server on a file read an image of its index, and none found one it could not
    /// use: a test of restarts that reads all rows each time tests half of them.
    ///
    /// # Panics
    /// When it is not so.
    pub fn assert_images_read(&self, starts_min: usize) {
        let log = fs::read_to_string(self.log_path()).expect("the server has a log");
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        let read = lines("read the image of the index");
        assert!(read >= starts_min, "{read} starts read an image of the index");
        assert_eq!(lines("the image of the index can't be used"), 0);
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("server.log")
    }

    /// The end of the server's log, for messages.
    fn log(&self) -> String {
        let path = self.log_path();
        let text = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        format!("{} ends with:\n{}", path.display(), shown.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("{:?} at {}: {error:#}", self.flavor, self.dir().display());
        }
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("{:?}: data and log are kept in {}", self.flavor, dir.keep().display());
        }
    }
}

/// With auth on, a refusal is an answer too.
fn is_refusal(status: &Status) -> bool {
    status.message().contains("user name is empty")
}

/// # Errors
/// When nothing listens there.
pub async fn connect(endpoint: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_string()).context("endpoint")?;
    endpoint.connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true).connect().await.context("connect")
}

/// # Errors
/// When the machine has none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("the free port's number")?.port())
}

/// A program of `cargo xtask upstream`.
///
/// # Errors
/// When it is not there.
pub fn upstream_path(program: &str) -> Result<PathBuf> {
    let dir =
        std::env::var_os("K0S_TEST_BIN_DIR").map_or_else(|| PathBuf::from(BIN_DIR_FALLBACK), PathBuf::from);
    existing(
        dir.join(program),
        "run `make test`, or set K0S_TEST_BIN_DIR to `cargo xtask upstream`'s directory",
    )
}

/// Our kine.
///
/// # Errors
/// When it was not built.
pub fn kine_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("K0S_TEST_KINE") {
        return existing(path.into(), "K0S_TEST_KINE must be our kine");
    }
    let own = std::env::current_exe().context("this test's own path")?;
    let target = own.ancestors().find(|dir| dir.join("deps").is_dir()).unwrap_or(Path::new("."));
    existing(target.join("kine"), "run `cargo build -p kine-rs --bin kine`, or set K0S_TEST_KINE")
}

fn existing(path: PathBuf, otherwise: &str) -> Result<PathBuf> {
    if path.is_file() { Ok(path) } else { bail!("{} does not exist: {otherwise}", path.display()) }
}
