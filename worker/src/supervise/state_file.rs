//! The note by which the next k0s recognises a process that this one left behind.
//!
//! One JSON file per component, mode 0600, in a directory of mode 0700, replaced by rename and removed only once the
//! process has been reaped. It is valid during one boot, so it is not synced. Reading and judging it is `orphan`'s.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::proc_stat::{Stat, is_gone};

/// Who a process is. Two processes never share all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_ticks: u64,
    pub executable_device: u64,
    pub executable_inode: u64,
    /// The directory of its cgroup, if it was given one.
    pub cgroup: Option<PathBuf>,
}

impl Identity {
    /// Of a process that runs now; `None` if there is none of that pid, or it has ended.
    pub fn of(pid: Pid, cgroup: Option<PathBuf>) -> io::Result<Option<Identity>> {
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
        let read = || -> io::Result<Identity> {
            let stat = Stat::read(pid)?;
            let executable = fs::metadata(proc.join("exe"))?;
            Ok(Identity {
                boot_id: boot_id()?,
                pid: pid.as_raw_pid(),
                start_ticks: stat.start_ticks,
                executable_device: executable.dev(),
                executable_inode: executable.ino(),
                cgroup,
            })
        };
        match read() {
            Ok(identity) => Ok(Some(identity)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Makes the directory of the state files, for nobody else to write or read.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // It may have been there with a wider mode.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// The state file of one component.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    pub fn new(dir: &Path, component: &str) -> StateFile {
        StateFile { path: dir.join(format!("{component}.process.json")) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, identity: &Identity) -> io::Result<()> {
        let text = serde_json::to_vec(identity)?;
        let new = self.path.with_extension("json.new");
        // A file of that name is what a kill left of an earlier write; its mode is not to be trusted.
        remove(&new)?;
        let mut file: File = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, &self.path)
    }

    /// `None` if there is no file. A file that is not ours to understand is `InvalidData`.
    pub fn read(&self) -> io::Result<Option<Identity>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_file_is_private_and_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let own = Identity::of(rustix::process::getpid(), None).unwrap().unwrap();
        let file = StateFile::new(dir.path(), "kubelet");
        assert_eq!(file.read().unwrap(), None);
        fs::write(file.path().with_extension("json.new"), "torn").unwrap();
        file.write(&own).unwrap();
        assert_eq!(file.read().unwrap(), Some(own));
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn state_directory_is_private_even_if_it_was_open() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        create_dir(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    }
}
