//! Finds the process that an earlier k0s left behind and ends it before a new one is started.
//!
//! A component normally dies with k0s. It survives a `kill -9` when it resets its death signal, and its descendants
//! survive in any case. The invariant: nothing is signalled unless boot, pid, start time and executable all are those
//! of the state file (or it is in the group of that very process, or in the cgroup that the file names); and a process
//! is signalled through a pidfd that was opened before it was compared.

use std::io;
use std::path::PathBuf;

use rustix::process::{Pid, Signal};
use tokio::time::{Instant, timeout_at};

use super::cgroup::Cgroup;
use super::pidfd::PidFd;
use super::proc_stat::{followers, is_in_group};
use super::process::KILLED_WITHIN;
use super::spec::{Descendants, StopPolicy};
use super::state_file::{Identity, StateFile, boot_id};

/// What an earlier k0s left behind cannot be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    #[error(
        "{name}: process {pid} of an earlier k0s does not end although it was killed; \
         a restart of the machine will end it"
    )]
    Unkillable { name: String, pid: i32 },
    #[error(
        "{name}: processes of an earlier k0s in {cgroup} do not end although they were killed; \
         a restart of the machine will end them"
    )]
    Descendants { name: String, cgroup: PathBuf },
    #[error("{name}: cannot find out whether process {pid} is of an earlier k0s, by {file}")]
    Inspect {
        name: String,
        pid: i32,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name}: cannot read or remove {file}")]
    StateFile {
        name: String,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Ends what the state file describes, if it still runs, and removes the file.
pub(super) async fn reclaim(name: &str, state_file: &StateFile, stop: StopPolicy) -> Result<(), OrphanError> {
    let file = || state_file.path().to_owned();
    let of_file = |source| OrphanError::StateFile { name: name.to_owned(), file: file(), source };
    match state_file.read() {
        Ok(None) => return Ok(()),
        Ok(Some(identity)) => {
            let inspect = |source| OrphanError::Inspect {
                name: name.to_owned(),
                pid: identity.pid,
                file: file(),
                source,
            };
            if identity.boot_id == boot_id().map_err(inspect)? {
                match find(name, &identity).map_err(inspect)? {
                    Some(orphan) => orphan.end(name, stop).await?,
                    None => {
                        tracing::debug!(component = name, pid = identity.pid, "an earlier process has ended")
                    }
                }
                clear_cgroup(name, &identity, stop.descendants).await?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(component = name, file = %file().display(), %error, "a state file makes no sense: ignored");
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::warn!(component = name, file = %file().display(), %error, "a state file is cut off: ignored");
        }
        Err(error) => return Err(of_file(error)),
    }
    state_file.remove().map_err(of_file)
}

struct Orphan {
    pid: Pid,
    pidfd: PidFd,
    /// The other processes of its group while it was alive: afterwards the group's number could be a stranger's.
    group: Vec<PidFd>,
}

/// The process of that identity, if it still runs.
fn find(name: &str, identity: &Identity) -> io::Result<Option<Orphan>> {
    // Neither zero nor negative: those mean groups to the kernel, and are no pids.
    let Some(pid) = u32::try_from(identity.pid).ok().and_then(|_| Pid::from_raw(identity.pid)) else {
        return Ok(None);
    };
    // First the descriptor, then the comparison: what is compared is what the descriptor refers to.
    let Some(pidfd) = PidFd::open(pid)? else { return Ok(None) };
    match Identity::of(pid, identity.cgroup.clone()) {
        Ok(Some(found)) if found == *identity => {}
        // Of another user, whose processes cannot be looked into: not one that this k0s could have started.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        Ok(None) => return Ok(None),
        Ok(Some(_)) | Err(_) => {
            tracing::info!(
                component = name,
                pid = identity.pid,
                "the pid has a new owner, which is left alone"
            );
            return Ok(None);
        }
    }
    let group = group_of(pid)?;
    Ok(Some(Orphan { pid, pidfd, group }))
}

/// The other processes of the group that `leader` leads.
fn group_of(leader: Pid) -> io::Result<Vec<PidFd>> {
    let mut members = Vec::new();
    for pid in followers(leader)? {
        // Asked again with the descriptor open: then the answer is about the process that it refers to.
        if let Some(pidfd) = PidFd::open(pid)?
            && is_in_group(pid, leader)?
        {
            members.push(pidfd);
        }
    }
    Ok(members)
}

impl Orphan {
    async fn end(self, name: &str, stop: StopPolicy) -> Result<(), OrphanError> {
        let pid = self.pid.as_raw_pid();
        tracing::warn!(component = name, pid, "found running from an earlier k0s that was killed; ending it");
        self.signal(name, stop.signal);
        if !self.ended_by(Instant::now() + stop.grace).await {
            tracing::warn!(component = name, pid, "it did not stop within {:?}: killing it", stop.grace);
            self.signal(name, Signal::KILL);
            if !self.ended_by(Instant::now() + KILLED_WITHIN).await {
                return Err(OrphanError::Unkillable { name: name.to_owned(), pid });
            }
        }
        if stop.descendants == Descendants::Kill {
            self.group.iter().for_each(|member| send(name, member, Signal::KILL));
        }
        Ok(())
    }

    fn signal(&self, name: &str, signal: Signal) {
        send(name, &self.pidfd, signal);
    }

    async fn ended_by(&self, deadline: Instant) -> bool {
        timeout_at(deadline, self.pidfd.ended()).await.is_ok()
    }
}

fn send(name: &str, pidfd: &PidFd, signal: Signal) {
    if let Err(error) = pidfd.signal(signal) {
        tracing::error!(component = name, ?signal, %error, "cannot signal a process of an earlier k0s");
    }
}

/// Ends what is left in the cgroup of the earlier process: it only ever held that process and its descendants.
async fn clear_cgroup(name: &str, identity: &Identity, descendants: Descendants) -> Result<(), OrphanError> {
    let (Some(dir), Descendants::Kill) = (&identity.cgroup, descendants) else { return Ok(()) };
    let inspect =
        |source| OrphanError::Inspect { name: name.to_owned(), pid: identity.pid, file: dir.clone(), source };
    let cgroup = Cgroup::at(dir.clone());
    if cgroup.is_populated().map_err(inspect)? {
        tracing::warn!(component = name, cgroup = %dir.display(), "killing leftovers of an earlier k0s");
        if !cgroup.clear(Instant::now() + KILLED_WITHIN).await.map_err(inspect)? {
            return Err(OrphanError::Descendants { name: name.to_owned(), cgroup: dir.clone() });
        }
    }
    cgroup.discard();
    Ok(())
}
