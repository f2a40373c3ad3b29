//! One k0s under test: its directories, its ports, its process, and questions to it.
//!
//! Invariant: no process outlives the test. A failed test keeps its directory and prints where it is.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// For whatever should take a few seconds, on a machine that does ten other things.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub fn bin_dir() -> PathBuf {
    let Some(dir) = std::env::var_os("K0S_TEST_BIN_DIR") else {
        panic!(
            "K0S_TEST_BIN_DIR is not set: it is the directory with kube-apiserver, kube-controller-manager, \
             kube-scheduler and kubectl. `make test` sets it; by hand: \
             K0S_TEST_BIN_DIR=$(cargo xtask kubernetes) cargo test -p controller"
        );
    };
    dir.into()
}

pub fn k0s() -> PathBuf {
    std::env::var_os("K0S_TEST_K0S").map_or_else(|| env!("CARGO_BIN_EXE_k0s").into(), PathBuf::from)
}

/// Below the range that the kernel takes ports of outgoing connections from, and each only once in this process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const RANGE: std::ops::Range<u16> = 20_000..32_000;
    let start = std::process::id() as u16;
    for _ in 0..RANGE.len() {
        let offset =
            start.wrapping_mul(7).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % RANGE.len() as u16;
        let port = RANGE.start + offset;
        if TcpListener::bind(("::", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// Asks until the answer is there.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn send(signal: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {signal} {pid}");
}

pub struct Cluster {
    dir: Option<TempDir>,
    data_dir: PathBuf,
    pub port: u16,
    process: Option<Child>,
    starts: u32,
    k0s: PathBuf,
    bin_dir: PathBuf,
    /// `--storage=…`, unless the configuration says it.
    storage: Option<&'static str>,
    /// Put before every command, to run as somebody else or somewhere else.
    prefix: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Cluster {
    pub fn new() -> Cluster {
        let dir = tempfile::Builder::new().prefix("k0s-e2e-").tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "spec:\n  \
               api: {{port: {port}}}\n  \
               controllerManager: {{extraArgs: {{secure-port: \"{}\"}}}}\n  \
               scheduler: {{extraArgs: {{secure-port: \"{}\"}}}}\n",
            free_port(),
            free_port()
        );
        fs::write(dir.path().join("k0s.yaml"), config).unwrap();
        let data_dir = dir.path().join("data");
        Cluster {
            dir: Some(dir),
            data_dir,
            port,
            process: None,
            starts: 0,
            k0s: k0s(),
            bin_dir: bin_dir(),
            storage: Some("--storage=sqlite"),
            prefix: Vec::new(),
            environment: Vec::new(),
        }
    }

    pub fn through(prefix: &[&str]) -> Cluster {
        let mut cluster = Cluster::new();
        cluster.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
        cluster
    }

    /// Copies (or links) into the test's directory: another user may not enter the home directory they are in.
    pub fn use_executables_others_can_reach(&mut self) {
        let bin_dir = self.dir().join("bin");
        fs::create_dir(&bin_dir).unwrap();
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] {
            copy_executable(&self.bin_dir.join(name), &bin_dir.join(name));
        }
        let k0s = self.dir().join("k0s");
        copy_executable(&self.k0s, &k0s);
        fs::set_permissions(self.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        (self.k0s, self.bin_dir) = (k0s, bin_dir);
    }

    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// As upstream's users choose it.
    pub fn use_storage_of_config(&mut self, kind: &str) {
        let config = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), format!("{config}  storage: {{type: {kind}}}\n")).unwrap();
        self.storage = None;
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("it is there until the drop").path()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn run_dir(&self) -> PathBuf {
        self.data_dir.join("run")
    }

    pub fn config(&self) -> PathBuf {
        self.dir().join("k0s.yaml")
    }

    /// Where this start's output goes.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join(format!("log.{}", self.starts))).unwrap_or_default()
    }

    /// `k0s` with these arguments and the flags that say which cluster is meant.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.prefix.split_first() {
            None => Command::new(&self.k0s),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&self.k0s);
                command
            }
        };
        command.args(arguments).arg("--data-dir").arg(&self.data_dir).arg("--run-dir").arg(self.run_dir());
        command.env_remove("KUBECONFIG").envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    pub fn controller(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&["controller"]);
        command
            .args(self.storage)
            .arg("--config")
            .arg(self.config())
            .arg("--bin-dir")
            .arg(&self.bin_dir)
            .args(arguments);
        command
    }

    pub fn start(&mut self) {
        self.starts += 1;
        let log = File::create(self.dir().join(format!("log.{}", self.starts))).unwrap();
        let mut command = self.controller(&[]);
        // A group of its own: what is typed at the terminal that runs the tests is not for it.
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.process = Some(command.spawn().unwrap());
    }

    /// Waits until the log says that everything runs.
    pub fn wait_until_up(&mut self) {
        until("k0s to say that everything runs", || {
            if let Some(status) = self.process.as_mut().unwrap().try_wait().unwrap() {
                panic!("k0s ended: {status}\n{}", self.log());
            }
            self.log().contains("k0s: everything runs").then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it was started").id()
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it was started");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }

    /// How k0s ended after it was asked to, and how long that took.
    pub fn wait_until_ended(&mut self) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        let mut process = self.process.take().expect("it was started");
        let status = until("k0s to end", || process.try_wait().unwrap());
        (status, asked.elapsed())
    }

    /// Standard output of a `k0s` command that must succeed.
    pub fn k0s(&self, arguments: &[&str]) -> String {
        successful(arguments, self.command(arguments).output().unwrap())
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().unwrap()
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        successful(arguments, self.try_kubectl(arguments))
    }

    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&["kubectl"]);
        command.args(arguments);
        command
    }

    pub fn kubectl_json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["-o", "json"]].concat();
        serde_json::from_str(&self.kubectl(&arguments)).unwrap()
    }

    /// Pid of a component as `k0s status components` tells it, and how often it was restarted.
    pub fn component(&self, name: &str) -> Option<(u32, u64, String)> {
        let output = self.command(&["status", "components"]).output().unwrap();
        let document: Value = serde_saphyr::from_slice(&output.stdout).ok()?;
        let component = document["components"].as_array()?.iter().find(|c| c["name"] == name)?;
        let pid = component["pid"].as_u64()?.try_into().unwrap();
        Some((pid, component["restarts"].as_u64()?, component["state"].as_str()?.to_owned()))
    }

    /// Processes that were started for this cluster: they carry its data directory in their arguments.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = format!("{}/", self.data_dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(arguments) = fs::read(entry.path().join("cmdline")) else { continue };
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            let program = arguments.split('\0').next().unwrap_or_default();
            if arguments.contains(&needle) && program.contains("/kube-") {
                found.push((pid, program.rsplit('/').next().unwrap().to_owned()));
            }
        }
        found
    }

    pub fn process_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.processes().into_iter().map(|(_, name)| name).collect();
        names.sort();
        names
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The components die with k0s.
            process.kill().ok();
            process.wait().ok();
        }
        if std::thread::panicking() {
            let kept = self.dir.take().expect("only the drop takes it").keep();
            eprintln!("kept for a look: {}", kept.display());
        }
    }
}

/// A link where that is possible: the executables together have hundreds of megabytes.
fn copy_executable(from: &Path, to: &Path) {
    // The file itself: a link to a link leads into directories that the other user may not enter.
    let from = fs::canonicalize(from).unwrap();
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).unwrap();
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

fn successful(arguments: &[&str], output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
