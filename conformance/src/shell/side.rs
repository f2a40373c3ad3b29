//! One of the two servers of a script, with the processes that talk to it.
//!
//! Every process runs in the side's own directory, so that relative file names are the same on both; what it prints goes
//! to files there, so that nothing is lost however it ends. No process outlives its side.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proto::etcdserverpb::MemberListRequest;
use proto::etcdserverpb::cluster_client::ClusterClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::normal::Names;
use crate::server::{Flavor, Options, Server, connect, upstream_path};

/// Longer than any command of etcdctl waits by itself.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// How a command ended, with names in the place of what must differ.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub status: String,
    stdout: String,
    stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "status {}", self.status)?;
        for (name, text) in [("out", &self.stdout), ("err", &self.stderr)] {
            for line in text.lines() {
                writeln!(f, "{name} {line}")?;
            }
        }
        Ok(())
    }
}

pub struct Side {
    background: HashMap<String, (Child, Printed)>,
    names: Names,
    dir: PathBuf,
    /// Where programs are looked for: upstream's first.
    path: OsString,
    server: Server,
}

/// A command line and the files that it prints to.
#[derive(Clone)]
struct Printed {
    words: Vec<String>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Side {
    /// # Errors
    /// When the server does not start.
    pub async fn start(flavor: Flavor, options: Options) -> Result<Self> {
        let server = Server::start(flavor, options).await?;
        let dir = server.dir().join("shell");
        fs::create_dir(&dir).context("the directory of the commands")?;
        let channel = connect(&server.endpoint()).await?;
        let members =
            ClusterClient::new(channel).member_list(MemberListRequest::default()).await?.into_inner();
        let cluster = members.header.context("a header")?.cluster_id;
        let member = members.members.first().context("a member")?;
        let mut names = Names::default();
        names.id(member.id, "MEMBER");
        names.id(cluster, "CLUSTER");
        for peer in &member.peer_ur_ls {
            names.text(peer.trim_start_matches("http://"), "PEER");
        }
        names.text(&server.address(), "ENDPOINT");
        let upstream = upstream_path("etcdctl")?;
        let machine = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(
            upstream.parent().into_iter().map(PathBuf::from).chain(env::split_paths(&machine)),
        )
        .context("PATH")?;
        Ok(Self { background: HashMap::new(), names, dir, path, server })
    }

    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn run(&mut self, words: &[String], input: &str) -> Result<Outcome> {
        let (mut child, printed) = self.spawn("command", words)?;
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        // A command that reads nothing closes it; that is its business.
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
        let status = timeout(DEADLINE, child.wait()).await.context("it does not end")??;
        self.outcome(status, &printed)
    }

    /// # Errors
    /// When it never prints that many lines.
    pub async fn until(&mut self, lines: usize, words: &[String]) -> Result<Outcome> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let outcome = self.run(words, "").await?;
            if outcome.stdout.lines().count() == lines {
                return Ok(outcome);
            }
            if Instant::now() > deadline {
                bail!("it still says:\n{outcome}");
            }
            sleep(POLL).await;
        }
    }

    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, name: &str, words: &[String]) -> Result<()> {
        let started = self.spawn(name, words)?;
        match self.background.insert(name.to_owned(), started) {
            Some(_) => bail!("{name} runs already"),
            None => Ok(()),
        }
    }

    /// # Errors
    /// When it does not take input any more.
    pub async fn type_line(&mut self, name: &str, line: &str) -> Result<()> {
        let (child, _) = self.running(name)?;
        let stdin = child.stdin.as_mut().expect("its input is a pipe");
        stdin.write_all(format!("{line}\n").as_bytes()).await.context("its input")
    }

    /// Waits until a process in the background has printed that many lines.
    ///
    /// # Errors
    /// When it does not.
    pub async fn lines(&mut self, name: &str, count: usize) -> Result<()> {
        let printed = self.running(name)?.1.clone();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let stdout = fs::read(&printed.stdout).context("what it printed")?;
            let text = String::from_utf8_lossy(&stdout);
            if text.lines().count() >= count {
                self.names.learn(&printed.words, &text);
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("it printed only {text:?}");
            }
            sleep(POLL).await;
        }
    }

    /// # Errors
    /// When there is no such process.
    pub fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let id = self.running(name)?.0.id().context("it has ended")?;
        let pid = Pid::from_raw(id.cast_signed()).context("its process id")?;
        kill_process(pid, signal).context("a signal")
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn finish(&mut self, name: &str) -> Result<Outcome> {
        let (mut child, printed) = self.background.remove(name).context("no such process")?;
        drop(child.stdin.take());
        let status = timeout(DEADLINE, child.wait()).await.context("it does not end")??;
        self.outcome(status, &printed)
    }

    /// Waits until the server has that many watchers: etcdctl does not say when its watch is there.
    ///
    /// # Errors
    /// When it never has.
    pub async fn watchers(&self, count: usize) -> Result<()> {
        let wanted = format!("\netcd_debugging_mvcc_watcher_total {count}\n");
        let deadline = Instant::now() + DEADLINE;
        loop {
            let metrics = metrics(&self.server.address()).await?;
            if metrics.contains(&wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("there are not {count} watchers");
            }
            sleep(POLL).await;
        }
    }

    fn running(&mut self, name: &str) -> Result<&mut (Child, Printed)> {
        self.background.get_mut(name).with_context(|| format!("no process {name}"))
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<(Child, Printed)> {
        let words: Vec<String> = words.iter().map(|word| self.names.fill(word)).collect();
        let (program, arguments) = words.split_first().context("an empty command")?;
        let file = |kind: &str| self.dir.join(format!("{name}.{kind}"));
        let printed = Printed { words: words.clone(), stdout: file("out"), stderr: file("err") };
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.dir)
            .env("PATH", &self.path)
            .env("ETCDCTL_ENDPOINTS", self.server.address())
            .stdin(Stdio::piped())
            .stdout(File::create(&printed.stdout).context("a file for its output")?)
            .stderr(File::create(&printed.stderr).context("a file for its output")?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.clone())?;
        Ok((child, printed))
    }

    fn outcome(&mut self, status: ExitStatus, printed: &Printed) -> Result<Outcome> {
        let stdout = fs::read(&printed.stdout).context("what it printed")?;
        let stderr = fs::read(&printed.stderr).context("what it printed")?;
        self.names.learn(&printed.words, &String::from_utf8_lossy(&stdout));
        let status =
            status.code().map_or_else(|| format!("signal {:?}", status.signal()), |code| code.to_string());
        let is_message = printed.words.iter().any(|word| word == "protobuf");
        let stdout = if is_message { self.names.message(&stdout) } else { self.names.printed(&stdout) };
        Ok(Outcome { status, stdout, stderr: self.names.printed(&stderr) })
    }
}

async fn metrics(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.context("ask for metrics")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("metrics")?;
    Ok(answer)
}
