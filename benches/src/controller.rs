//! The whole controller: `k0s` from exec to a ready API, its memory, and the same kube-apiserver on real etcd.
//!
//! The peer is what any k0s on etcd has to start at the least: etcd, then kube-apiserver with the very arguments that ours
//! was started with (read from the kernel) except for the datastore's address. It finds certificates and keys ready made, so
//! ours is measured with those too (`--init-only` came before), besides its very first start. Ready means `/readyz` answers ok, asked by curl as the cluster's administrator.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::endpoint::Endpoint;
use crate::goals::Metric;
use crate::process::Process;
use crate::scenario::{Figures, mb, ms};
use crate::server::{Kind, Program, log_file};

const READY_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const API_SERVER: &str = "kube-apiserver";
const CONFIG: &str = "k0s.yaml";

#[derive(Debug, Clone)]
pub struct Controller {
    pub k0s: PathBuf,
    /// Directory with the Kubernetes binaries, etcd and kine.
    pub upstream: PathBuf,
}

impl Controller {
    pub fn measures(metric: Metric) -> bool {
        matches!(
            metric,
            Metric::ControllerRss | Metric::BinarySize | Metric::ReadyzAfter | Metric::FirstReadyzAfter
        )
    }

    /// One round: ours, then the peer, in `dir`. `settle` is how long the cluster idles before its memory is read.
    pub async fn run(&self, dir: &Path, settle: Duration) -> Result<Vec<(Kind, Figures)>> {
        let cluster = Cluster::new(self, dir)?;
        let first = cluster.start(&dir.join("first")).await?;
        let first_ready_after = first.ready_after;
        sleep(settle).await;
        let memory = Process { pid: first.k0s.child.id() }.memory()?;
        first.k0s.stop().await?;

        let data = dir.join("second");
        let prepared = cluster.command(&data).arg("--init-only").output().context("cannot run k0s")?;
        if !prepared.status.success() {
            bail!("k0s controller --init-only failed: {}", String::from_utf8_lossy(&prepared.stderr));
        }
        let second = cluster.start(&data).await?;
        let ready_after = second.ready_after;
        let arguments = descendant_arguments(second.k0s.child.id(), API_SERVER)?;
        second.k0s.stop().await?;
        let on_etcd = self.on_etcd(dir, &arguments, &second.readyz).await?;

        let ours = vec![
            (Metric::FirstReadyzAfter, ms(first_ready_after)),
            (Metric::ControllerRss, mb(memory.rss_bytes)),
            (Metric::ReadyzAfter, ms(ready_after)),
            (Metric::BinarySize, mb(size(&self.k0s)?)),
        ];
        let peers = size(&self.upstream.join("etcd"))? + size(&self.upstream.join("kine"))?;
        let peer = vec![(Metric::ReadyzAfter, ms(on_etcd)), (Metric::BinarySize, mb(peers))];
        Ok(vec![(Kind::Ours, ours), (Kind::Etcd, peer)])
    }

    /// From etcd's exec to a ready API.
    async fn on_etcd(&self, dir: &Path, arguments: &[String], readyz: &Readyz) -> Result<Duration> {
        let etcd_dir = dir.join("etcd");
        fs::create_dir(&etcd_dir).with_context(|| format!("cannot create {}", etcd_dir.display()))?;
        let etcd = Program { kind: Kind::Etcd, path: self.upstream.join("etcd"), cores: Vec::new() };
        let exec = Instant::now();
        let etcd = etcd.start(&etcd_dir).await?;
        let Endpoint::Tcp(address) = &etcd.endpoint else { bail!("etcd was not started on TCP") };
        let mut command = Command::new(self.upstream.join(API_SERVER));
        let kept = arguments.iter().filter(|argument| !argument.starts_with("--etcd-servers="));
        command.args(kept).arg(format!("--etcd-servers=http://{address}"));
        let mut running = Running::start(&mut command, &dir.join("kube-apiserver.log"))?;
        readyz.wait(&mut running).await?;
        let ready_after = exec.elapsed();
        running.stop().await?;
        etcd.stop().await?;
        Ok(ready_after)
    }
}

/// Our k0s on ports of its own, so that it starts beside another one.
struct Cluster<'a> {
    controller: &'a Controller,
    dir: &'a Path,
    port: u16,
}

/// A cluster whose API has become ready.
struct Ready {
    k0s: Running,
    readyz: Readyz,
    ready_after: Duration,
}

impl<'a> Cluster<'a> {
    fn new(controller: &'a Controller, dir: &'a Path) -> Result<Self> {
        let [port, manager, scheduler] = free_ports()?;
        let text = format!(
            "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec:\n  api:\n    port: {port}\n  \
             controllerManager:\n    extraArgs:\n      secure-port: \"{manager}\"\n  \
             scheduler:\n    extraArgs:\n      secure-port: \"{scheduler}\"\n"
        );
        let config = dir.join(CONFIG);
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Self { controller, dir, port })
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = Command::new(&self.controller.k0s);
        command.args(["controller", "--storage=sqlite", "--config"]).arg(self.dir.join(CONFIG));
        command.arg("--data-dir").arg(data).arg("--run-dir").arg(data.join("run"));
        command.arg("--bin-dir").arg(&self.controller.upstream);
        command
    }

    async fn start(&self, data: &Path) -> Result<Ready> {
        let readyz = Readyz { port: self.port, pki: data.join("pki") };
        let mut command = self.command(data);
        let exec = Instant::now();
        let mut k0s = Running::start(&mut command, &data.with_extension("log"))?;
        readyz.wait(&mut k0s).await?;
        Ok(Ready { k0s, readyz, ready_after: exec.elapsed() })
    }
}

/// A child that is killed when dropped.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = log_file(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    async fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_MAX;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("no end within {STOP_MAX:?} of SIGTERM, see {}", self.log.display());
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when the process has been waited for already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where and as whom to ask for readiness.
struct Readyz {
    port: u16,
    pki: PathBuf,
}

impl Readyz {
    async fn wait(&self, running: &mut Running) -> Result<()> {
        let deadline = Instant::now() + READY_MAX;
        while !self.is_ok()? {
            if let Some(status) = running.child.try_wait()? {
                bail!("ended before the API was ready ({status}), see {}", running.log.display());
            }
            if Instant::now() > deadline {
                bail!("the API is not ready after {READY_MAX:?}, see {}", running.log.display());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn is_ok(&self) -> Result<bool> {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "5", "--cacert"])
            .arg(self.pki.join("ca.crt"))
            .arg("--cert")
            .arg(self.pki.join("admin.crt"))
            .arg("--key")
            .arg(self.pki.join("admin.key"))
            .arg(format!("https://127.0.0.1:{}/readyz", self.port))
            .output()
            .context("cannot run curl")?;
        Ok(output.stdout == b"ok")
    }
}

/// Arguments of the process below `ancestor` whose executable is called `name`.
fn descendant_arguments(ancestor: u32, name: &str) -> Result<Vec<String>> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look; then it is not the one.
        let Ok(command_line) = fs::read_to_string(format!("/proc/{pid}/cmdline")) else { continue };
        let mut words = command_line.split_terminator('\0').map(str::to_owned);
        let called = words.next().unwrap_or_default();
        if Path::new(&called).file_name().is_some_and(|file| file == name) && descends(pid, ancestor) {
            return Ok(words.collect());
        }
    }
    bail!("no {name} runs below process {ancestor}")
}

fn descends(mut pid: u32, ancestor: u32) -> bool {
    while pid > 1 {
        if pid == ancestor {
            return true;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        pid = parent.and_then(|parent| parent.trim().parse().ok()).unwrap_or(0);
    }
    false
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len())
}

fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let held = [bind()?, bind()?, bind()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
