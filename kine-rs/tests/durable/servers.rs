//! Running servers, ours and real ones, and asking them with the real etcdctl.

use conformance::server::free_port;
use serde_json::Value;
use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const WITHIN: Duration = Duration::from_secs(60);

/// A temporary directory that stays, with its path printed, when the test fails.
pub struct Dir(Option<tempfile::TempDir>);

impl Dir {
    pub fn new() -> Self {
        Dir(Some(tempfile::tempdir().expect("a temporary directory")))
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.as_ref().expect("until drop").path().join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

pub struct Server {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Server {
    /// Our kine on a database, ready.
    pub fn kine(database: &Path) -> Self {
        Server::kine_with(database, |_| {})
    }

    pub fn kine_with(database: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kine"));
        prepare(&mut command);
        Server::start_kine(command, database)
    }

    /// The real Go kine on a database, ready.
    pub fn go_kine(database: &Path) -> Self {
        let mut command = Command::new(binary("kine"));
        command.args(["--compact-min-retain", "0"]);
        Server::start_kine(command, database)
    }

    fn start_kine(mut command: Command, database: &Path) -> Self {
        let address = free_address();
        command
            .args(["--listen-address", &address, "--metrics-bind-address", "0", "--endpoint"])
            .arg(format!("sqlite://{}?_journal_mode=WAL&cache=shared", database.display()));
        Server::start(command, address, database.with_extension("log"))
    }

    /// A real etcd on a data directory, ready.
    pub fn etcd(data_dir: &Path, peer_url: &str) -> Self {
        let address = free_address();
        let url = format!("http://{address}");
        let mut command = Command::new(binary("etcd"));
        command
            .args(["--name", "m1", "--data-dir"])
            .arg(data_dir)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url])
            .args(["--initial-cluster", &format!("m1={peer_url}")]);
        Server::start(command, address, data_dir.with_extension("log"))
    }

    fn start(mut command: Command, address: String, log: PathBuf) -> Self {
        let out = File::options().create(true).append(true).open(&log).expect("a log file");
        let child = command.stdout(Stdio::null()).stderr(out).spawn().expect("the server starts");
        let mut server = Server { child, address, log };
        let deadline = Instant::now() + WITHIN;
        while !server.answers() {
            assert!(server.child.try_wait().expect("our child").is_none(), "ended: {}", server.log());
            assert!(Instant::now() < deadline, "not ready: {}", server.log());
            std::thread::yield_now();
        }
        server
    }

    /// Whether a read is answered, if only with a refusal.
    fn answers(&self) -> bool {
        TcpStream::connect(&self.address).is_ok() && {
            let output = self.try_ctl(&["get", "ready"]);
            output.status.success() || stderr(&output).contains("user name is empty")
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("etcdctl"));
        command.args(["--endpoints", &self.address, "--command-timeout", "30s"]).args(args);
        command
    }

    pub fn try_ctl(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("etcdctl runs")
    }

    pub fn ctl(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(&[args, &["-w", "json"]].concat())).expect("JSON")
    }

    /// All keys, at the newest revision or an older one.
    pub fn content(&self, revision: i64) -> Value {
        let mut answer = self.json(&["get", "", "--from-key", "--rev", &revision.to_string()]);
        answer["kvs"].take()
    }

    /// HashKV up to a revision, with the compact revision; 0: all.
    pub fn hash(&self, revision: i64) -> (Value, Value) {
        let answer = self.json(&["endpoint", "hashkv", "--rev", &revision.to_string()]);
        let hash = &answer[0]["HashKV"];
        (hash["hash"].clone(), hash["compact_revision"].clone())
    }

    /// Events of some keys from a revision on, as etcdctl prints them, until `last` and the line after it are in them.
    pub fn watch(&self, keys: &[&str], from: i64, last: &str) -> String {
        use std::io::{BufRead, BufReader};
        let mut child = self
            .command(&[&["watch"], keys, &["--rev", &from.to_string()]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("etcdctl runs");
        let mut seen = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut is_last = false;
        while !is_last {
            is_last = seen.contains(last);
            seen += &lines.next().expect("more events").expect("text");
            seen.push('\n');
        }
        child.kill().and_then(|()| child.wait()).expect("our child");
        seen
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    pub fn kill(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("our child");
    }

    pub fn stop(mut self) {
        run(Command::new("kill").arg(self.child.id().to_string()));
        self.child.wait().expect("our child");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    /// Waits for it to end by itself.
    pub fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on: {}", self.log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none())
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait())
        {
            eprintln!("process {}: {error}", self.child.id());
        }
    }
}

pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("K0S_TEST_BIN_DIR").expect("K0S_TEST_BIN_DIR has etcd, etcdctl and kine");
    Path::new(&dir).join(name)
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port().expect("a free port"))
}

pub fn free_url() -> String {
    format!("http://{}", free_address())
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
