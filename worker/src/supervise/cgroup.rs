//! One cgroup per component, so that no descendant escapes, whatever it does to its session or parents.
//!
//! Only cgroup v2 with `cgroup.kill` (Linux 5.14) is used: one write ends everything in a group, including what is
//! forked during it. Version 1 has nothing alike; there, and where the hierarchy is not writable, the process group
//! has to do. No controller is enabled and no limit is set.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How often a group that was killed is looked at until nothing is left in it.
const POLL: Duration = Duration::from_millis(2);
/// Bytes of the digest of the state directory in a group's name: enough to tell the nodes on one machine apart.
const NAME_DIGEST_BYTES: usize = 6;

/// The place where the cgroups of a host's components are made: below the cgroup of k0s itself.
#[derive(Debug)]
pub(super) struct Cgroups {
    parent: PathBuf,
    /// The same at each start with the same state directory, so that a group left behind is met again.
    prefix: String,
}

impl Cgroups {
    /// # Errors
    /// Why cgroups cannot be used here, in words.
    pub fn find(state_dir: &Path) -> Result<Cgroups, String> {
        let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
        let parent = own_cgroup(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
            .ok_or("no cgroup v2 hierarchy is mounted")?;
        let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
        let digest: String =
            digest.iter().take(NAME_DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
        let cgroups = Cgroups { parent, prefix: format!("k0s-{digest}") };
        cgroups.probe()?;
        Ok(cgroups)
    }

    pub fn component(&self, name: &str) -> Cgroup {
        Cgroup { dir: self.parent.join(format!("{}-{name}", self.prefix)) }
    }

    fn probe(&self) -> Result<(), String> {
        let probe = Cgroup { dir: self.parent.join(format!("{}.probe", self.prefix)) };
        let usable = probe.open().map(|_procs| probe.dir.join("cgroup.kill").exists());
        // Removing is tried even after a failed open: the directory may have been made.
        let removed = probe.remove();
        match usable {
            Ok(true) => removed.map_err(|error| format!("{}: {error}", probe.dir.display())),
            Ok(false) => Err("the kernel has no cgroup.kill (Linux 5.14)".to_owned()),
            Err(error) => Err(format!("{}: {error}", probe.dir.display())),
        }
    }
}

/// Finds the directory of this process's own version 2 cgroup.
fn own_cgroup(proc_cgroup: &str, mountinfo: &str) -> Option<PathBuf> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        // "36 35 98:0 /root /mount/point rw,noatime optional... - cgroup2 source options"
        let (mount, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(mount_point).join(below))
    })
}

/// The cgroup of one component.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// A group by the path recorded when it was made.
    pub fn at(dir: PathBuf) -> Cgroup {
        Cgroup { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the group if need be. A process that writes `0` to the file moves itself into the group.
    pub fn open(&self) -> io::Result<File> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        File::options().write(true).open(self.dir.join("cgroup.procs"))
    }

    /// Whether the process is in this very group.
    pub fn holds(&self, pid: Pid) -> io::Result<bool> {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid()))?;
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        Ok(path.is_some_and(|path| Path::new(path).file_name() == self.dir.file_name()))
    }

    /// Sends SIGKILL to everything in the group.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }

    /// Whether a process that has not ended is in the group. A group that is gone is empty.
    pub fn is_populated(&self) -> io::Result<bool> {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills what is in the group and waits until it is gone; answers whether that came true in time.
    pub async fn clear(&self, deadline: Instant) -> io::Result<bool> {
        while self.is_populated()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.kill()?;
            tokio::time::sleep(POLL).await;
        }
        Ok(true)
    }

    /// Removes the group if it is empty. One that is not, because its processes go on, is met again by the next start.
    pub fn discard(&self) {
        if let Err(error) = self.remove() {
            tracing::debug!(cgroup = %self.dir.display(), %error, "a cgroup is left behind");
        }
    }

    /// One that is gone is no error.
    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 1 0:22 / /sys rw - sysfs sysfs rw\n\
        30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        31 24 0:27 /lxc/a /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn own_cgroup_is_found_below_the_mounted_root() {
        let found = own_cgroup("4:memory:/x\n0::/lxc/a/system.slice/k0s.service\n", MOUNTS);
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/system.slice/k0s.service")));
        assert_eq!(own_cgroup("0::/lxc/a\n", MOUNTS), Some(PathBuf::from("/sys/fs/cgroup")));
    }

    #[test]
    fn cgroup_outside_of_the_mount_or_version_1_alone_is_not_usable() {
        assert_eq!(own_cgroup("0::/elsewhere\n", MOUNTS), None);
        assert_eq!(own_cgroup("4:memory:/x\n", MOUNTS), None);
        assert_eq!(own_cgroup("0::/lxc/a\n", "24 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
