//! The executable under the name `etcd`: its command line, its logs, its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

const SIGTERM: i32 = 15;

/// The executable under its other name, in a directory of its own.
struct Etcd {
    dir: TempDir,
}

impl Etcd {
    fn new() -> Etcd {
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kine"), dir.path().join("etcd")).expect("a link");
        Etcd { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(self.file("etcd"));
        command.args(flags).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command(flags).output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (status.code(), text(stdout), text(stderr))
    }

    /// Starts it with its data in `data` and waits until it says that it is ready.
    fn start(&self, flags: &[&str]) -> Running {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let scheme = if flags.contains(&"--auto-tls") { "https" } else { "http" };
        let url = format!("{scheme}://{free}");
        let mut child = self
            .command(&["--data-dir=data", "--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut lines = Vec::new();
        loop {
            let line = log.next().unwrap_or_else(|| panic!("it ended: {lines:#?}")).expect("a line");
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let ready = line["msg"] == "ready to serve client requests";
            lines.push(line);
            if ready {
                break;
            }
        }
        Running { child, address: free, lines }
    }
}

struct Running {
    child: Child,
    address: SocketAddr,
    lines: Vec<serde_json::Value>,
}

impl Running {
    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        text
    }

    /// The signal that ended it after SIGTERM.
    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
        self.child.wait().expect("it ends").signal()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[test]
fn the_command_line_is_answered_as_etcd_does() {
    let etcd = Etcd::new();
    let (status, stdout, _) = etcd.run(&["--version"]);
    assert_eq!((status, stdout.lines().next()), (Some(0), Some("etcd Version: 3.7.1")));
    let (status, _, stderr) = etcd.run(&["--nope"]);
    assert_eq!((status, stderr.lines().next()), (Some(2), Some("flag provided but not defined: -nope")));
    let (status, _, stderr) = etcd.run(&["--initial-cluster=default=http://a:1,b=http://b:1"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("names 2 members, but this store has one"), "{stderr}");
    let last: serde_json::Value = serde_json::from_str(stderr.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["msg"], "failed to verify flags");
    assert!(!etcd.file("default.etcd").exists());
}

#[test]
fn data_survive_a_restart_and_a_stop_is_a_signal() {
    let etcd = Etcd::new();
    let running = etcd.start(&["--name=n", "--snapshot-count=5"]);
    let warned = running.lines.iter().find(|line| line["flags"] == "snapshot-count");
    assert_eq!(warned.expect("one warning")["level"], "warn");
    assert!(running.post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).starts_with("HTTP/1.1 200 "));
    assert_eq!(running.terminate(), Some(SIGTERM));
    let running = etcd.start(&["--name=n"]);
    let found = running.post("/v3/kv/range", r#"{"key":"Zm9v"}"#);
    assert!(found.contains(r#""value":"YmFy""#), "{found}");
    assert_eq!(running.terminate(), Some(SIGTERM));
    assert!(Path::new(&etcd.file("data/member/state.db")).exists());
}

#[test]
fn a_real_etcds_directory_is_left_alone() {
    let etcd = Etcd::new();
    std::fs::create_dir_all(etcd.file("data/member/wal")).expect("made");
    let (status, _, stderr) = etcd.run(&["--data-dir=data"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("data holds the log of a real etcd"), "{stderr}");
}

#[test]
fn auto_tls_makes_a_certificate() {
    let etcd = Etcd::new();
    let running = etcd.start(&["--auto-tls"]);
    assert!(etcd.file("data/fixtures/client/cert.pem").exists());
    assert_eq!(running.terminate(), Some(SIGTERM));
}
