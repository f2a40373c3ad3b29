//! What the kernel tells about other processes in `/proc/<pid>/stat`.
//!
//! By number, so what is read is true of whoever has the pid at that moment: to act on it, open a `PidFd` first.

use std::{fs, io};

use rustix::io::Errno;
use rustix::process::Pid;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// It has ended and only waits to be reaped.
    pub is_zombie: bool,
    pub group: i32,
    /// In clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    pub fn read(pid: Pid) -> io::Result<Stat> {
        let path = format!("/proc/{}/stat", pid.as_raw_pid());
        let text = fs::read(&path)?;
        Stat::parse(&String::from_utf8_lossy(&text))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path} has an unknown form")))
    }

    fn parse(stat: &str) -> Option<Stat> {
        // The second field is the program's own choice and may hold spaces and parentheses: start after the last one.
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace();
        let is_zombie = ["Z", "X"].contains(&fields.next()?); // field 3
        let group = fields.nth(1)?.parse().ok()?; // field 5
        let start_ticks = fields.nth(16)?.parse().ok()?; // field 22
        Some(Stat { is_zombie, group, start_ticks })
    }
}

/// Whether the process runs and is in the group that `leader` leads or led.
pub(super) fn is_in_group(pid: Pid, leader: Pid) -> io::Result<bool> {
    match Stat::read(pid) {
        Ok(stat) => Ok(stat.group == leader.as_raw_pid() && !stat.is_zombie),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The running processes of that group, the leader left out.
pub(super) fn followers(leader: Pid) -> io::Result<Vec<Pid>> {
    let mut followers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && pid != leader
            && is_in_group(pid, leader)?
        {
            followers.push(pid);
        }
    }
    Ok(followers)
}

/// Reading `/proc` of a process that ends meanwhile gives either of these.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_program_name() {
        let stat = "71 (a) S 1 2 (b) R) Z 1 71 70 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10\n";
        assert_eq!(Stat::parse(stat), Some(Stat { is_zombie: true, group: 71, start_ticks: 987_654 }));
        assert_eq!(Stat::parse("71 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
