//! The one thread that forks.
//!
//! PR_SET_PDEATHSIG ends a child when the *thread* that forked it ends, not the process. So no child is ever forked
//! on a runtime thread, which may retire: this thread lives as long as any handle of the [`Host`](super::Host) does,
//! and if k0s dies, by whatever signal, it dies with it and so do the children.
//!
//! A child gets its own session, its cgroup, its user, and exactly the environment of its spec. Nothing else of k0s is
//! passed on, no file descriptor either.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{
    Gid, Pid, Signal, Uid, geteuid, getpid, getppid, set_parent_process_death_signal, setsid,
};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::cgroup::Cgroup;
use super::pidfd::PidFd;
use super::process::Process;
use super::spec::ComponentSpec;
use super::state_file::{Identity, StateFile};
use super::user::User;

/// Requests waiting for the thread. A request takes a millisecond; a full queue makes the next one wait.
const REQUESTS_MAX: usize = 16;

/// A process that could not be started at all.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("{name}: executable {path} must be an absolute path")]
    Relative { name: String, path: PathBuf },
    #[error("{name}: {path} does not exist")]
    Missing { name: String, path: PathBuf },
    #[error("{name}: the interpreter or dynamic loader that {path} asks for does not exist")]
    InterpreterMissing { name: String, path: PathBuf },
    #[error(
        "{name}: no permission to execute {path}: it must be a file with execute permission, \
         on a file system without noexec, in directories that its user may enter"
    )]
    Permission { name: String, path: PathBuf },
    #[error("{name}: {path} is not a program for this machine ({machine})")]
    Format { name: String, path: PathBuf, machine: &'static str },
    #[error("{name}: working directory {path} does not exist or cannot be entered")]
    WorkingDir { name: String, path: PathBuf },
    #[error("{name}: switching to uid {uid} needs root, and k0s runs as uid {own}")]
    UserSwitch { name: String, uid: u32, own: u32 },
    #[error("{name}: {path} cannot be started")]
    Exec {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name}: process cannot be watched; k0s needs Linux 5.4 or newer and free file descriptors")]
    Watch {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name}: not started, as the supervisor is shutting down")]
    ShuttingDown { name: String },
}

/// What the thread needs to know to start a process.
#[derive(Debug)]
pub(super) struct Launch {
    pub spec: Arc<ComponentSpec>,
    pub cgroup: Option<Cgroup>,
    pub state_file: StateFile,
}

/// A process that was started, and its pipes.
#[derive(Debug)]
pub(super) struct Launched {
    pub process: Process,
    pub stdout: pipe::Receiver,
    pub stderr: pipe::Receiver,
}

struct Request {
    launch: Launch,
    reply: oneshot::Sender<Result<Launched, SpawnError>>,
}

/// Handle of the thread. It ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. Processes are registered with the current runtime.
    pub fn start() -> io::Result<Spawner> {
        let runtime = Handle::current();
        let (requests, mut queue) = mpsc::channel::<Request>(REQUESTS_MAX);
        std::thread::Builder::new().name("k0s-spawn".to_owned()).spawn(move || {
            let _in_runtime = runtime.enter();
            while let Some(Request { launch, reply }) = queue.blocking_recv() {
                // Nobody waits any more: the process is dropped, and that kills it.
                if let Err(unwanted) = reply.send(spawn(launch)) {
                    drop(unwanted);
                }
            }
        })?;
        Ok(Spawner { requests })
    }

    pub async fn spawn(&self, launch: Launch) -> Result<Launched, SpawnError> {
        let shutting_down = SpawnError::ShuttingDown { name: launch.spec.name.clone() };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request { launch, reply }).await.is_err() {
            return Err(shutting_down);
        }
        answer.await.unwrap_or(Err(shutting_down))
    }
}

fn spawn(launch: Launch) -> Result<Launched, SpawnError> {
    let Launch { spec, cgroup, state_file } = launch;
    check(&spec)?;
    let (cgroup, procs) = enter(cgroup);
    let mut child = match command(&spec, procs).spawn() {
        Ok(child) => child,
        Err(error) => {
            cgroup.iter().for_each(Cgroup::discard);
            return Err(explain(&spec, error));
        }
    };
    let watch = |source: io::Error| SpawnError::Watch { name: spec.name.clone(), source };
    let pid = Pid::from_child(&child);
    // The child has not been reaped, so the pid is still its own.
    let pidfd = match PidFd::open(pid).and_then(|pidfd| pidfd.ok_or(io::ErrorKind::NotFound.into())) {
        Ok(pidfd) => pidfd,
        Err(error) => return Err(watch(abandon(child, error))),
    };
    // From here on dropping `process` ends the child.
    let cgroup = cgroup.filter(|cgroup| is_inside(cgroup, pid));
    let cgroup_dir = cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned());
    let process = Process::new(pid, pidfd, cgroup, spec.stop.descendants);
    record(&state_file, pid, cgroup_dir);
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
    Ok(Launched {
        process,
        stdout: pipe::Receiver::from_owned_fd(stdout.into()).map_err(watch)?,
        stderr: pipe::Receiver::from_owned_fd(stderr.into()).map_err(watch)?,
    })
}

/// What can be said better before forking than from the error number afterwards.
fn check(spec: &ComponentSpec) -> Result<(), SpawnError> {
    let name = || spec.name.clone();
    let path = || spec.executable.clone();
    if !spec.executable.is_absolute() {
        return Err(SpawnError::Relative { name: name(), path: path() });
    }
    if !spec.working_dir.is_dir() {
        return Err(SpawnError::WorkingDir { name: name(), path: spec.working_dir.clone() });
    }
    if let Some(user) = &spec.user
        && !geteuid().is_root()
    {
        return Err(SpawnError::UserSwitch { name: name(), uid: user.uid, own: geteuid().as_raw() });
    }
    // The C library's exec would hand a program of another machine to the shell as a script.
    match (ExecutableKind::of(&spec.executable), ExecutableKind::of(Path::new("/proc/self/exe"))) {
        (Ok(ExecutableKind::Script), _) => Ok(()),
        (Ok(kind), Ok(own)) if kind != own => {
            Err(SpawnError::Format { name: name(), path: path(), machine: std::env::consts::ARCH })
        }
        // What cannot be read is left to exec to judge.
        _ => Ok(()),
    }
}

/// What the first bytes of a file say about how it is executed.
#[derive(Debug, PartialEq, Eq)]
enum ExecutableKind {
    Script,
    /// Word size, byte order, and machine number as stored.
    Elf([u8; 4]),
    Unknown,
}

impl ExecutableKind {
    fn of(path: &Path) -> io::Result<ExecutableKind> {
        let mut head = Vec::new();
        File::open(path)?.take(20).read_to_end(&mut head)?;
        Ok(match head.as_slice() {
            [b'#', b'!', ..] => ExecutableKind::Script,
            [0x7f, b'E', b'L', b'F', word, order, .., m0, m1] if head.len() == 20 => {
                ExecutableKind::Elf([*word, *order, *m0, *m1])
            }
            _ => ExecutableKind::Unknown,
        })
    }
}

fn enter(cgroup: Option<Cgroup>) -> (Option<Cgroup>, Option<File>) {
    let Some(cgroup) = cgroup else { return (None, None) };
    match cgroup.open() {
        Ok(procs) => (Some(cgroup), Some(procs)),
        Err(error) => {
            let cgroup = cgroup.dir().display();
            tracing::warn!(%cgroup, %error, "cannot make a cgroup: the component gets a process group only");
            (None, None)
        }
    }
}

fn command(spec: &ComponentSpec, procs: Option<File>) -> Command {
    let mut command = Command::new(&spec.executable);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&spec.working_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let parent = getpid();
    let credentials = spec.user.as_ref().map(Credentials::of);
    let prepare = move || prepare_child(parent, procs.as_ref(), credentials.as_ref());
    // SAFETY: between fork and exec only async-signal-safe things are allowed. `prepare_child` makes plain system
    // calls on values that were made before the fork: it allocates nothing, takes no lock and does not panic.
    unsafe { command.pre_exec(prepare) };
    command
}

struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Credentials {
    fn of(user: &User) -> Credentials {
        let groups = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        Credentials { uid: Uid::from_raw(user.uid), gid: Gid::from_raw(user.gid), groups }
    }
}

/// Runs in the child between fork and exec.
fn prepare_child(parent: Pid, procs: Option<&File>, credentials: Option<&Credentials>) -> io::Result<()> {
    setsid()?;
    close_on_exec();
    default_signals();
    if let Some(mut procs) = procs {
        // A refusal is no reason not to start: the parent looks where the child has ended up.
        match procs.write(b"0") {
            Ok(_) | Err(_) => {}
        }
    }
    if let Some(Credentials { uid, gid, groups }) = credentials {
        set_thread_groups(groups)?;
        set_thread_res_gid(*gid, *gid, *gid)?;
        set_thread_res_uid(*uid, *uid, *uid)?;
        // Neither a set-uid program nor file capabilities give back what was just given up.
        set_no_new_privs(true)?;
    }
    // Last, because a change of credentials resets it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above: then nobody will send that signal any more.
    if getppid() != Some(parent) {
        return Err(Errno::SRCH.into());
    }
    Ok(())
}

/// Keeps what k0s itself inherited (from a service manager, a shell) from its children; everything that k0s opens is
/// closed on exec anyway. Linux before 5.11 refuses, and the child is then no worse off than under any other parent.
fn close_on_exec() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: takes no pointers and closes nothing now: it sets a flag of descriptors of this forked process.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Gives the child every signal's default action: one that k0s was started to ignore (SIGINT and SIGQUIT under a shell's
/// `&`, SIGHUP under nohup) would stay ignored over exec, and the child's stop signal with it.
fn default_signals() {
    const LAST: libc::c_int = 64;
    for signal in 1..=LAST {
        // SAFETY: sets no handler. Those that can't be set (SIGKILL, SIGSTOP, libc's own) are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ends a child that cannot be watched.
fn abandon(mut child: Child, cause: io::Error) -> io::Error {
    match child.kill().and_then(|()| child.wait()) {
        Ok(_) => cause,
        Err(error) => io::Error::new(cause.kind(), format!("{cause}; and it cannot be killed: {error}")),
    }
}

fn is_inside(cgroup: &Cgroup, pid: Pid) -> bool {
    match cgroup.holds(pid) {
        Ok(true) => true,
        outside => {
            let cgroup = cgroup.dir().display();
            tracing::warn!(%cgroup, ?outside, "the component did not get into its cgroup: it has a process group only");
            false
        }
    }
}

/// Notes who was started. Without the note the component runs as well; should k0s be killed and the component survive
/// that, the next start would not know it.
fn record(state_file: &StateFile, pid: Pid, cgroup: Option<PathBuf>) {
    let written = match Identity::of(pid, cgroup) {
        Ok(Some(identity)) => state_file.write(&identity),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::warn!(file = %state_file.path().display(), %error, "cannot note the process of a component");
    }
}

/// Turns the error of fork, of the steps before exec, or of exec into what is wrong with the spec.
fn explain(spec: &ComponentSpec, source: io::Error) -> SpawnError {
    let name = spec.name.clone();
    let path = spec.executable.clone();
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) if exists(&path) => SpawnError::InterpreterMissing { name, path },
        Some(Errno::NOENT | Errno::NOTDIR) => SpawnError::Missing { name, path },
        Some(Errno::ACCESS) => SpawnError::Permission { name, path },
        Some(Errno::NOEXEC) => SpawnError::Format { name, path, machine: std::env::consts::ARCH },
        _ => SpawnError::Exec { name, path, source },
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_apart_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |bytes: &[u8]| {
            let path = dir.path().join("x");
            fs::write(&path, bytes).unwrap();
            ExecutableKind::of(&path).unwrap()
        };
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 183;
        assert_eq!(kind(&elf), ExecutableKind::Elf([2, 1, 183, 0]));
        assert_eq!(kind(&elf[..19]), ExecutableKind::Unknown);
        assert_eq!(kind(b"#!/bin/sh\n"), ExecutableKind::Script);
        assert_eq!(kind(b""), ExecutableKind::Unknown);
        assert_eq!(
            ExecutableKind::of(Path::new("/proc/self/exe")).unwrap(),
            ExecutableKind::of(Path::new("/bin/sh")).unwrap()
        );
    }
}
