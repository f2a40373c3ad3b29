//! Finding the Kubernetes executables.
//!
//! Order: `--bin-dir`, `<data>/bin`, PATH. Invariant: a file that is this very k0s (it answers to the name `kubectl` through
//! a link) is never found, or running kubectl would run k0s for ever. Called by `run` and `cli::kubectl`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::paths::{self, Paths};

#[derive(Debug, thiserror::Error)]
#[error(
    "{name} was not found in {searched}: start the controller with --bin-dir DIR, or put it into PATH \
     (`cargo xtask kubernetes` in a checkout of k0s builds the Kubernetes executables and prints where they are)"
)]
pub struct MissingExecutable {
    pub name: String,
    pub searched: String,
}

/// Where executables of one node are looked for.
#[derive(Debug, Clone)]
pub struct SearchPath {
    directories: Vec<PathBuf>,
    described: String,
}

impl SearchPath {
    pub fn of(paths: &Paths) -> SearchPath {
        Self::with_path_variable(paths, env::var_os("PATH").as_deref())
    }

    fn with_path_variable(paths: &Paths, variable: Option<&OsStr>) -> SearchPath {
        let mut directories: Vec<PathBuf> = paths.bin_dir.iter().cloned().collect();
        directories.push(paths.staged_bin_dir());
        let own = directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
        // An empty entry of PATH means the working directory, which is nobody's intention here.
        let in_path = variable.into_iter().flat_map(env::split_paths).filter(|d| d.is_absolute());
        directories.extend(in_path);
        SearchPath { directories, described: format!("{own} or PATH") }
    }

    pub fn find(&self, name: &str) -> Result<PathBuf, MissingExecutable> {
        let own_executable = env::current_exe().ok();
        self.directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|file| {
                is_executable(file)
                    && !own_executable.as_deref().is_some_and(|own| paths::same_file(own, file))
            })
            .ok_or_else(|| MissingExecutable { name: name.to_owned(), searched: self.described.clone() })
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::PathChoices;

    fn executable(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn bin_dir_comes_before_staged_files_before_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let choices =
            PathChoices { data_dir: Some(at("data")), bin_dir: Some(at("bins")), ..Default::default() };
        let paths = Paths::resolve(choices, true).unwrap();
        let variable = env::join_paths([Path::new(""), &at("path")]).unwrap();
        let search = SearchPath::with_path_variable(&paths, Some(&variable));

        let error = search.find("kubectl").unwrap_err();
        assert!(error.searched.ends_with("data/bin or PATH"), "{error}");
        executable(&at("path/kubectl"), 0o755);
        assert_eq!(search.find("kubectl").unwrap(), at("path/kubectl"));
        executable(&at("data/bin/kubectl"), 0o755);
        assert_eq!(search.find("kubectl").unwrap(), at("data/bin/kubectl"));
        executable(&at("bins/kubectl"), 0o644);
        assert_eq!(search.find("kubectl").unwrap(), at("data/bin/kubectl"));
        executable(&at("bins/kubectl"), 0o755);
        assert_eq!(search.find("kubectl").unwrap(), at("bins/kubectl"));
    }

    #[test]
    fn this_executable_under_another_name_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(env::current_exe().unwrap(), dir.path().join("kubectl")).unwrap();
        let choices = PathChoices { bin_dir: Some(dir.path().to_owned()), ..Default::default() };
        let paths = Paths::resolve(choices, true).unwrap();
        assert!(SearchPath::with_path_variable(&paths, None).find("kubectl").is_err());
    }
}
