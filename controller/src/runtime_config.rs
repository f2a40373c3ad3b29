//! `<run>/k0s.yaml` and its lock: one k0s per run directory and per data directory, and how other commands find it.
//!
//! Invariant: whoever holds the locks owns both directories; the file says what the holder runs with.
//! A file whose lock is free is a leftover and is ignored. Called by `run` (takes the lock) and `cli` (looks it up).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::durable_file::{self, Access, FileError};
use crate::paths::Paths;
use crate::vars::K0sVars;

const MODE: u32 = 0o600;
const API_VERSION: &str = "k0s.k0sproject.io/v1beta1";
const KIND: &str = "RuntimeConfig";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    api_version: String,
    kind: String,
    pub spec: RuntimeConfigSpec,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfigSpec {
    /// The ClusterConfig document with every default filled in.
    pub node_config: serde_json::Value,
    pub k0s_vars: K0sVars,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeConfigError {
    #[error("another k0s process is still running (it holds {lock})")]
    AlreadyRunning { lock: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write {path}")]
    Encode { path: PathBuf, source: serde_saphyr::SerializeError },
    #[error("{path} is not what a running k0s writes")]
    Decode { path: PathBuf, source: Box<serde_saphyr::Error> },
}

/// Held for the life of a controller.
#[derive(Debug)]
pub struct RuntimeLock {
    config: PathBuf,
    /// The locks are released when the kernel closes these, however the process ends.
    _locks: [File; 2],
}

impl RuntimeLock {
    /// The data directory is locked as such: two run directories must not lead to one set of certificates.
    pub fn take(paths: &Paths) -> Result<RuntimeLock, RuntimeConfigError> {
        let lock = paths.runtime_lock();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock)
            .map_err(FileError::on("open", &lock))?;
        lock_exclusively(&file, &lock)?;
        let directory = File::open(&paths.data_dir).map_err(FileError::on("open", &paths.data_dir))?;
        lock_exclusively(&directory, &paths.data_dir)?;
        Ok(RuntimeLock { config: paths.runtime_config(), _locks: [file, directory] })
    }

    pub fn publish(&self, spec: RuntimeConfigSpec) -> Result<(), RuntimeConfigError> {
        let document = RuntimeConfig { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), spec };
        let text = serde_saphyr::to_string(&document)
            .map_err(|source| RuntimeConfigError::Encode { path: self.config.clone(), source })?;
        Ok(durable_file::replace(&self.config, text.as_bytes(), Access::new(MODE))?)
    }

    /// For a clean exit. After any other exit the free lock tells that the file is a leftover.
    pub fn remove(self) -> Result<(), RuntimeConfigError> {
        match fs::remove_file(&self.config) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::on("remove", &self.config)(error).into())
            }
            _ => Ok(()),
        }
    }
}

/// A command that looks whether the lock is held (`is_locked`) holds it for an instant: try again.
const LOOKERS: (u32, Duration) = (10, Duration::from_millis(20));

fn lock_exclusively(file: &File, path: &Path) -> Result<(), RuntimeConfigError> {
    let (attempts, pause) = LOOKERS;
    for _ in 0..attempts {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(pause),
            Err(errno) => return Err(FileError::on("lock", path)(errno.into()).into()),
        }
    }
    Err(RuntimeConfigError::AlreadyRunning { lock: path.to_owned() })
}

/// What can be seen on a run directory.
#[derive(Debug, PartialEq)]
pub enum Instance {
    NotRunning,
    /// Another user's: nobody tells us whether it runs.
    Hidden {
        lock: PathBuf,
    },
    /// With what it was started.
    Running(Box<RuntimeConfigSpec>),
}

/// The k0s that runs on this run directory.
pub fn of_running_instance(paths: &Paths) -> Result<Instance, RuntimeConfigError> {
    let (config, lock) = (&paths.runtime_config(), &paths.runtime_lock());
    match is_locked(lock) {
        Ok(true) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Instance::Hidden { lock: lock.clone() });
        }
        Ok(false) | Err(_) => return Ok(Instance::NotRunning),
    }
    let text = match fs::read_to_string(config) {
        Ok(text) => text,
        // Between lock and publication.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Instance::NotRunning),
        Err(error) => return Err(FileError::on("read", config)(error).into()),
    };
    let document: RuntimeConfig = serde_saphyr::from_str(&text)
        .map_err(|source| RuntimeConfigError::Decode { path: config.to_owned(), source: Box::new(source) })?;
    Ok(Instance::Running(Box::new(document.spec)))
}

fn is_locked(lock: &Path) -> io::Result<bool> {
    // Our shared lock lasts until `file` is dropped, which is at once.
    let file = File::open(lock)?;
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PathChoices;

    #[test]
    fn running_instance_is_found_while_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let choices = PathChoices { data_dir: Some(dir.path().to_owned()), ..Default::default() };
        let paths = Paths { run_dir: dir.path().to_owned(), ..Paths::resolve(choices, true).unwrap() };
        let spec = RuntimeConfigSpec {
            node_config: serde_json::json!({"spec": {"api": {"port": 6443, "sans": [], "extraArgs": {}}, "x": null}}),
            k0s_vars: K0sVars::new(&paths, "id".into(), Path::new("-")),
        };

        assert_eq!(of_running_instance(&paths).unwrap(), Instance::NotRunning);
        let held = RuntimeLock::take(&paths).unwrap();
        assert_eq!(of_running_instance(&paths).unwrap(), Instance::NotRunning);
        held.publish(spec.clone()).unwrap();
        assert_eq!(of_running_instance(&paths).unwrap(), Instance::Running(Box::new(spec.clone())));
        let error = RuntimeLock::take(&paths).unwrap_err();
        assert!(error.to_string().starts_with("another k0s process is still running"), "{error}");

        // Another run directory does not make it another cluster.
        let other_run_dir = tempfile::tempdir().unwrap();
        let elsewhere = Paths { run_dir: other_run_dir.path().to_owned(), ..paths.clone() };
        let error = RuntimeLock::take(&elsewhere).unwrap_err();
        assert!(matches!(&error, RuntimeConfigError::AlreadyRunning { lock } if *lock == paths.data_dir));

        // As after kill -9: the file stays, the lock does not.
        drop(held);
        assert_eq!(of_running_instance(&paths).unwrap(), Instance::NotRunning);
        let held = RuntimeLock::take(&paths).unwrap();
        held.publish(spec).unwrap();
        held.remove().unwrap();
        assert!(!paths.runtime_config().exists());
    }
}
