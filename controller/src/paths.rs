//! Where everything of one controller is: the data directory, the run directory and what hangs below them.
//!
//! Invariant: pure, one place for every path; nothing is created or read here. Called by everybody; calls nobody.
//! Paths are those of k0s (docs: "Files"), so that tools written for it find what they look for.

use std::path::{Path, PathBuf};

pub const DEFAULT_DATA_DIR: &str = "/var/lib/k0s";
pub const ROOT_RUN_DIR: &str = "/run/k0s";

/// A Unix socket's address holds 108 bytes including the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub status_socket: PathBuf,
    /// `--bin-dir`: searched before `<data>/bin` and PATH.
    pub bin_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    #[error("cannot make {path} absolute")]
    NotAbsolute { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is {bytes} bytes long, a Unix socket's path can have {SOCKET_PATH_BYTES_MAX}: choose a shorter {flag}"
    )]
    SocketPathTooLong { path: PathBuf, bytes: usize, flag: &'static str },
    #[error("{path} is not UTF-8, and arguments of Kubernetes' components are: choose another {flag}")]
    NotUtf8 { path: PathBuf, flag: &'static str },
}

/// What the command line said; `None` means the default.
#[derive(Debug, Clone, Default)]
pub struct PathChoices {
    pub data_dir: Option<PathBuf>,
    pub run_dir: Option<PathBuf>,
    pub status_socket: Option<PathBuf>,
    pub bin_dir: Option<PathBuf>,
}

impl Paths {
    /// `is_root` decides the default run directory: `/run/k0s`, or `<data>/run` for an ordinary user.
    pub fn resolve(choices: PathChoices, is_root: bool) -> Result<Paths, PathsError> {
        let data_dir = absolute(choices.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()))?;
        let run_dir = match choices.run_dir {
            Some(dir) => absolute(dir)?,
            None if is_root => ROOT_RUN_DIR.into(),
            None => data_dir.join("run"),
        };
        let status_socket = match choices.status_socket {
            Some(path) => absolute(path)?,
            None => run_dir.join("status.sock"),
        };
        let bin_dir = choices.bin_dir.map(absolute).transpose()?;
        Ok(Paths { data_dir, run_dir, status_socket, bin_dir })
    }

    /// Whether a controller can run with these.
    ///
    /// # Errors
    /// If not: later it would be with a message that names neither the path nor the limit.
    pub fn check(&self) -> Result<(), PathsError> {
        let given = [
            (Some(&self.data_dir), "--data-dir"),
            (Some(&self.run_dir), "--run-dir"),
            (Some(&self.status_socket), "--status-socket"),
            (self.bin_dir.as_ref(), "--bin-dir"),
        ];
        for (path, flag) in given {
            if let Some(path) = path.filter(|path| path.to_str().is_none()) {
                return Err(PathsError::NotUtf8 { path: path.clone(), flag });
            }
        }
        let sockets =
            [(self.datastore_socket(), "--run-dir"), (self.status_socket.clone(), "--status-socket")];
        for (path, flag) in sockets {
            let bytes = path.as_os_str().len();
            if bytes > SOCKET_PATH_BYTES_MAX {
                return Err(PathsError::SocketPathTooLong { path, bytes, flag });
            }
        }
        Ok(())
    }

    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    pub fn pki(&self, file: &str) -> PathBuf {
        self.pki_dir().join(file)
    }

    pub fn staged_bin_dir(&self) -> PathBuf {
        self.data_dir.join("bin")
    }

    pub fn manifests_dir(&self) -> PathBuf {
        self.data_dir.join("manifests")
    }

    pub fn database_dir(&self) -> PathBuf {
        self.data_dir.join("db")
    }

    pub fn database(&self) -> PathBuf {
        self.database_dir().join("state.db")
    }

    pub fn datastore_socket_dir(&self) -> PathBuf {
        self.run_dir.join("kine")
    }

    pub fn datastore_socket(&self) -> PathBuf {
        self.datastore_socket_dir().join("kine.sock")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.pki("admin.conf")
    }

    /// Who the supervised processes are, for the next start.
    pub fn processes_dir(&self) -> PathBuf {
        self.run_dir.join("processes")
    }

    pub fn runtime_config(&self) -> PathBuf {
        self.run_dir.join("k0s.yaml")
    }

    pub fn runtime_lock(&self) -> PathBuf {
        self.run_dir.join("k0s.yaml.lock")
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, PathsError> {
    std::path::absolute(&path).map_err(|source| PathsError::NotAbsolute { path, source })
}

/// Whether two paths name the same existing file or directory.
pub fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn run_directory_is_run_k0s_for_root_and_below_the_data_directory_for_others() {
        let choices = PathChoices { data_dir: Some("/d".into()), ..PathChoices::default() };
        let root = Paths::resolve(choices.clone(), true).unwrap();
        assert_eq!(root.status_socket, Path::new("/run/k0s/status.sock"));
        let user = Paths::resolve(choices, false).unwrap();
        assert_eq!(user.datastore_socket(), Path::new("/d/run/kine/kine.sock"));
    }

    #[test]
    fn paths_that_cannot_work_are_refused_with_the_way_out() {
        let long = || Some(PathBuf::from(format!("/{}", "x".repeat(107))));
        let data_dir = PathChoices { data_dir: long(), ..Default::default() };
        let status_socket = PathChoices { status_socket: long(), ..Default::default() };
        let odd = PathBuf::from(OsStr::from_bytes(b"/d\xff"));
        let bin_dir = PathChoices { bin_dir: Some(odd), ..Default::default() };
        for (choices, way_out) in [
            (data_dir, "choose a shorter --run-dir"),
            (status_socket, "choose a shorter --status-socket"),
            (bin_dir, "choose another --bin-dir"),
        ] {
            let error = Paths::resolve(choices, false).unwrap().check().unwrap_err();
            assert!(error.to_string().ends_with(way_out), "{error}");
        }
    }
}
