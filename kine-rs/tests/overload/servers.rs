//! Servers under load: ours in this process with bounds to test at, ours and a real etcd as processes to weigh.

use conformance::server::free_port;
use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen};
use kine_rs::embed::Datastore;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A server in this process, over rows in memory.
pub struct Inside {
    datastore: Datastore,
    _dir: Option<TempDir>,
}

impl Inside {
    pub fn start(config: Config) -> Inside {
        Inside::over(Endpoint::Memory, None, config)
    }

    /// The same over a file, with nothing cached: every value is read from it.
    pub fn on_disk(config: Config) -> Inside {
        let dir = tempfile::tempdir().expect("a directory");
        let endpoint = Endpoint::sqlite(dir.path().join("state.db")).without_fsync();
        Inside::over(endpoint, Some(dir), Config { cache_bytes: 0, ..config })
    }

    fn over(endpoint: Endpoint, dir: Option<TempDir>, config: Config) -> Inside {
        let listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        let datastore = Datastore::start(Config { endpoint, listen, ..config }).expect("the server starts");
        Inside { datastore, _dir: dir }
    }

    pub fn address(&self) -> SocketAddr {
        self.datastore.addresses()[0]
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn stop(self) {
        self.datastore.stop(Duration::from_secs(5));
    }
}

/// A server as a process of its own. Dies with its owner.
pub struct Process {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Process {
    /// Ours on a database, with nothing cached.
    pub fn kine(flags: &[&str]) -> Process {
        Process::start(|address, dir| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kine"));
            command
                .args(["--listen-address", &address.to_string(), "--metrics-bind-address", "0"])
                .args(["--unsafe-no-fsync", "--cache-mib", "0"])
                .arg(format!("--endpoint=sqlite://{}/state.db", dir.path().display()))
                .args(flags);
            command
        })
    }

    pub fn etcd(flags: &[&str]) -> Process {
        Process::start(|address, dir| {
            let (client, peer) = (format!("http://{address}"), format!("http://{}", free_address()));
            let bin = PathBuf::from(std::env::var_os("K0S_TEST_BIN_DIR").expect("K0S_TEST_BIN_DIR has etcd"));
            let mut command = Command::new(bin.join("etcd"));
            command
                .args(["--data-dir", &dir.path().join("etcd").display().to_string(), "--unsafe-no-fsync"])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}"), "--log-level=error"])
                .args(flags);
            command
        })
    }

    fn start(command: impl FnOnce(SocketAddr, &TempDir) -> Command) -> Process {
        let (address, dir) = (free_address(), tempfile::tempdir().expect("a directory"));
        let mut command = command(address, &dir);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut process = Process { child, address, _dir: dir };
        while TcpStream::connect(address).is_err() {
            let ended = process.child.try_wait().expect("our child");
            assert!(ended.is_none(), "{:?} ended: {ended:?}", command.get_program());
            std::thread::yield_now();
        }
        process
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Resident memory now.
    pub fn rss_bytes(&self) -> usize {
        self.status("VmRSS:")
    }

    /// The most there was since `forget_peak`.
    pub fn peak_rss_bytes(&self) -> usize {
        self.status("VmHWM:")
    }

    pub fn forget_peak(&self) {
        /// Resets the high-water mark, see proc(5).
        const RESET_PEAK: &str = "5";
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), RESET_PEAK).expect("our child's");
    }

    fn status(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port().expect("a free port")).into()
}
