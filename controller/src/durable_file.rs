//! Files that are either the old one or the new one, whole, with the right mode and owner from their first moment.
//!
//! Invariant: a reader never sees a half-written file and a secret is never readable wider than its final mode. Called by
//! `pki`, `kubeconfig` and `runtime_config`; knows nothing about what is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use worker::supervise::User;

/// The account and group a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub const ROOT: Owner = Owner { uid: 0, gid: 0 };
}

impl From<&User> for Owner {
    fn from(user: &User) -> Owner {
        Owner { uid: user.uid, gid: user.gid }
    }
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub mode: u32,
    /// `None` leaves the file with the user who runs k0s (an ordinary user can give nothing away).
    pub owner: Option<Owner>,
}

impl Access {
    pub const fn new(mode: u32) -> Self {
        Access { mode, owner: None }
    }

    pub const fn owned_by(mode: u32, owner: Option<Owner>) -> Self {
        Access { mode, owner }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError { action, path: path.to_owned(), source }
    }
}

/// Makes `path` hold exactly `content` with `access`. A file that already does is left alone, so its times tell when it changed.
pub fn ensure(path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    match fs::read(path) {
        Ok(existing) if existing == content => set_access(path, access),
        _ => replace(path, content, access),
    }
}

/// Writes beside the target, syncs, and renames over it.
pub fn replace(path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let temporary = temporary_beside(path);
    let result = write_temporary(&temporary, content, access)
        .and_then(|()| fs::rename(&temporary, path).map_err(FileError::on("write", path)))
        .and_then(|()| sync_directory_of(path));
    if result.is_err() && temporary.exists() {
        // The first error is the one worth reporting; a leftover is overwritten by the next attempt.
        fs::remove_file(&temporary).ok();
    }
    result
}

/// A directory of that mode and owner, with its parents (parents keep the usual mode).
pub fn ensure_directory(path: &Path, access: Access) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::on("create directory", path))?;
    set_access(path, access)
}

/// Whether files can be made in a directory; also says no on a read-only file system.
pub fn check_writable(directory: &Path) -> Result<(), FileError> {
    let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, directory, wanted, rustix::fs::AtFlags::EACCESS)
        .map_err(|errno| FileError::on("write to", directory)(errno.into()))
}

/// Corrects mode and owner where they differ: a data directory may come from a backup or from another user.
pub fn set_access(path: &Path, access: Access) -> Result<(), FileError> {
    let found = fs::metadata(path).map_err(FileError::on("inspect", path))?;
    if let Some(owner) = access.owner
        && (found.uid(), found.gid()) != (owner.uid, owner.gid)
    {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(FileError::on("change the owner of", path))?;
    }
    if found.permissions().mode() & 0o7777 != access.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
            .map_err(FileError::on("change the mode of", path))?;
    }
    Ok(())
}

fn write_temporary(temporary: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let failed = |action| FileError::on(action, temporary);
    // Created private; it gets its wider mode only when owner and content are in place.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(temporary)
        .map_err(failed("create"))?;
    file.write_all(content).map_err(failed("write"))?;
    set_access(temporary, access)?;
    file.sync_all().map_err(failed("sync"))
}

fn sync_directory_of(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().expect("a file that was just renamed into place has a parent directory");
    File::open(directory).and_then(|d| d.sync_all()).map_err(FileError::on("sync directory", directory))
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().expect("every file k0s writes has a name");
    path.with_file_name(format!(".{}.new", name.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_file_has_content_mode_and_no_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "old").unwrap();
        replace(&path, b"new", Access::new(0o640)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn ensure_corrects_a_mode_that_is_too_wide_without_rewriting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "same").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        ensure(&path, b"same", Access::new(0o600)).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.mode() & 0o777, after.ino()), (0o600, inode));
    }

    #[test]
    fn error_names_the_file() {
        let error = replace(Path::new("/nonexistent/dir/file"), b"x", Access::new(0o600)).unwrap_err();
        assert_eq!(error.to_string(), "cannot create /nonexistent/dir/.file.new");
    }
}
