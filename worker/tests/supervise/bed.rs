//! What the tests stand on: a host in its own directory, components made of shell scripts, and waiting for conditions.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use worker::supervise::{CgroupUse, ComponentSpec, Host, HostConfig, Readiness, Supervisor};

/// Far more than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub host: Host,
}

impl Bed {
    pub fn new() -> Bed {
        Bed::with(CgroupUse::WherePossible)
    }

    pub fn with(cgroups: CgroupUse) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::open(HostConfig { state_dir: state_dir(dir.path()), cgroups }).unwrap();
        Bed { dir, host }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn start(&self, spec: ComponentSpec) -> Supervisor {
        Supervisor::start(spec, &self.host).await.unwrap()
    }
}

pub fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

/// A component that is ready as soon as it runs.
pub fn sh(name: &str, script: &str) -> ComponentSpec {
    ComponentSpec {
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        readiness: Readiness::RunningFor(Duration::ZERO),
        ..ComponentSpec::new(name, "/bin/sh")
    }
}

/// Polls until the condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a line of output and returns what follows `start` in it.
pub async fn line_after(supervisor: &Supervisor, start: &str) -> String {
    let find = || {
        supervisor.status().last_log_lines.iter().find_map(|line| line.strip_prefix(start).map(str::to_owned))
    };
    until(&format!("a line {start}..."), || find().is_some()).await;
    find().unwrap()
}

/// Whether a process runs; one that waits to be reaped does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}
