//! Programs under test: started in a directory of their own, their log read as it is written, killed with their owner.

use conformance::server::{free_port, kine_path, upstream_path};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a program may take to say something, or to end.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const READY: &str = "ready to serve client requests";
const KINE_READY: &str = "Kine available at";
const KINE_READY_OURS: &str = "listening on";

/// A program with the directory it runs in.
pub struct Face {
    pub name: &'static str,
    program: PathBuf,
    dir: TempDir,
}

/// A real etcd, and ours under its name.
pub fn etcds() -> [Face; 2] {
    let ours = Face::new("ours", kine_path().expect("built"));
    let link = ours.file("etcd");
    std::os::unix::fs::symlink(&ours.program, &link).expect("a link");
    [Face::new("etcd", upstream_path("etcd").expect("built")), Face { program: link, ..ours }]
}

/// A real kine, and ours.
pub fn kines() -> [Face; 2] {
    [Face::new("kine", upstream_path("kine").expect("built")), Face::new("ours", kine_path().expect("built"))]
}

/// What both say, which must be the same.
pub fn same<T: PartialEq + std::fmt::Debug>(faces: &[Face; 2], ask: impl Fn(&Face) -> T) -> T {
    let [theirs, ours] = [ask(&faces[0]), ask(&faces[1])];
    assert_eq!(theirs, ours, "left: {}, right: ours", faces[0].name);
    ours
}

/// What a program said that ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Face {
    fn new(name: &'static str, program: PathBuf) -> Face {
        let dir = tempfile::Builder::new().prefix("k0s-faces-").tempdir().expect("a directory");
        Face { name, program, dir }
    }

    pub fn is_ours(&self) -> bool {
        self.name == "ours"
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with these flags, which dies with whoever started it.
    pub fn command(&self, flags: &[impl AsRef<str>]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(flags.iter().map(AsRef::as_ref))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("ETCD_") || name.starts_with("KINE_"))
        {
            command.env_remove(name);
        }
        // SAFETY: only async-signal-safe calls happen between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        command
    }

    /// Runs a program that is to end by itself, and ends it when it is ready instead: then it has no status.
    pub fn run(&self, flags: &[impl AsRef<str>]) -> Ended {
        self.run_command(self.command(flags))
    }

    pub fn run_command(&self, mut command: Command) -> Ended {
        let mut child = command.spawn().expect("it starts");
        let mut stdout = child.stdout.take().expect("a pipe");
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let running = Running::new(self.name, child);
        running
            .wait_for(|line| [READY, KINE_READY, KINE_READY_OURS].iter().any(|ready| line.contains(ready)));
        let (status, stderr) = running.end();
        Ended { status: status.code(), stdout: stdout.join().expect("read").expect("text"), stderr }
    }

    /// Starts an etcd whose addresses are free ones of this machine, and waits until it is ready.
    pub fn start(&self, ports: Ports, flags: &[&str]) -> Running {
        let mut all = ports.flags();
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.start_as(&all, READY)
    }

    /// Starts a kine with these flags, and waits until clients can connect.
    pub fn start_kine(&self, flags: &[impl AsRef<str>]) -> Running {
        self.start_as(flags, if self.is_ours() { KINE_READY_OURS } else { KINE_READY })
    }

    /// Starts it with exactly these flags, and waits until it says so.
    pub fn start_as(&self, flags: &[impl AsRef<str>], ready: &str) -> Running {
        let mut command = self.command(flags);
        command.stdout(Stdio::null());
        let running = Running::new(self.name, command.spawn().expect("it starts"));
        assert!(running.wait_for(|line| line.contains(ready)), "{} ended: {}", self.name, running.log());
        running
    }
}

/// Addresses of one etcd. Both that are compared get the same ones, one after the other, as ids come from them.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub client: u16,
    pub peer: u16,
}

impl Ports {
    pub fn new() -> Ports {
        Ports { client: free_port().expect("a port"), peer: free_port().expect("a port") }
    }

    pub fn client(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.client).into()
    }

    pub fn peer(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.peer).into()
    }

    fn flags(&self) -> Vec<String> {
        let (client, peer) = (format!("http://{}", self.client()), format!("http://{}", self.peer()));
        vec![
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--data-dir=data".to_owned(),
            "--unsafe-no-fsync".to_owned(),
        ]
    }
}

/// A program that runs, and what it has written to its standard error.
pub struct Running {
    name: &'static str,
    child: Child,
    log: Arc<(Mutex<Log>, Condvar)>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

impl Running {
    fn new(name: &'static str, mut child: Child) -> Running {
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let log = Arc::<(Mutex<Log>, Condvar)>::default();
        let shared = log.clone();
        std::thread::spawn(move || {
            let (log, changed) = &*shared;
            for line in stderr.lines().map_while(Result::ok) {
                log.lock().expect("no reader panics").lines.push(line);
                changed.notify_all();
            }
            log.lock().expect("no reader panics").ended = true;
            changed.notify_all();
        });
        Running { name, child, log }
    }

    /// Waits until a line is one of these; false when the program ends before.
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let (log, changed) = &*self.log;
        let mut log = log.lock().expect("no reader panics");
        let deadline = Instant::now() + DEADLINE;
        loop {
            if log.lines.iter().any(|line| wanted(line)) {
                return true;
            }
            if log.ended {
                return false;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} says nothing: {:#?}", self.name, log.lines);
            log = changed.wait_timeout(log, left).expect("no reader panics").0;
        }
    }

    pub fn log(&self) -> String {
        self.log.0.lock().expect("no reader panics").lines.join("\n")
    }

    /// The lines that are objects.
    pub fn lines(&self) -> Vec<Value> {
        let log = self.log.0.lock().expect("no reader panics");
        log.lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it unless it has ended; what it has said.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = match self.wait_if_over() {
            Some(status) => status,
            None => {
                kill_process(Pid::from_child(&self.child), Signal::TERM).expect("sent");
                self.child.wait().expect("it ends")
            }
        };
        self.wait_for(|_| false);
        (status, self.log())
    }

    /// Its status when its output is over: then it ends without being told.
    fn wait_if_over(&mut self) -> Option<ExitStatus> {
        let over = self.log.0.lock().expect("no reader panics").ended;
        over.then(|| self.child.wait().expect("it ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// An answer of HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `name: value`, in order of their names, without the date.
    pub headers: Vec<String>,
    pub body: String,
}

/// One exchange on a connection of its own. `head` is the request line and headers, each with its end of line.
pub fn ask(address: SocketAddr, head: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    exchange(&mut stream, head, body)
}

pub fn exchange(stream: &mut (impl Read + Write), head: &str, body: &str) -> Answer {
    let length = body.len();
    write!(stream, "{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let skipped = ["Date:", "Connection:", "Transfer-Encoding:", "Content-Length:"];
    let mut headers: Vec<String> =
        lines.filter(|line| !skipped.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect();
    headers.sort();
    let body = if text.contains("Transfer-Encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Answer { status, headers, body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        whole += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"), "")
}

/// The JSON a gateway answers.
pub fn post(address: SocketAddr, path: &str, body: &str) -> Value {
    let answer = ask(address, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n"), body);
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Runs etcdctl against one of them; its output.
pub fn etcdctl(dir: &Path, flags: &[&str]) -> Ended {
    let mut command = Command::new(upstream_path("etcdctl").expect("built"));
    let output = command.args(flags).current_dir(dir).stdin(Stdio::null()).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ended { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
