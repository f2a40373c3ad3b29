//! One process per database: an advisory lock on `<database>.lock`, whose content names the owner.
//!
//! The lock belongs to the open file, so it goes with the process however it ends; the file itself stays.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub struct LockFile {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("database {database} is in use by {owner}; stop that process or use another path")]
    Held { database: PathBuf, owner: String },
    #[error("lock file {path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
}

impl LockFile {
    pub fn acquire(database: &Path) -> Result<Self, LockError> {
        let path = super::beside(database, ".lock");
        let failed = |error| LockError::Io { path: path.clone(), error };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                file.read_to_string(&mut owner).map_err(failed)?;
                return Err(LockError::Held { database: database.into(), owner: owner.trim().to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        let executable = std::env::current_exe().unwrap_or_default();
        writeln!(file, "process {} ({})", std::process::id(), executable.display()).map_err(failed)?;
        Ok(LockFile { _file: file })
    }
}
