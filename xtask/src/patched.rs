//! A copy of an upstream module with a few files of ours in it, for groups whose tests are to start our server.
//!
//! Go's compiler replaces no file in its module cache (`-overlay` refuses), so the whole module is copied beside the binaries,
//! built through a `go.mod` that points there, and removed again. `go.rs` is the only caller.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::go::{go_command, read};
use crate::versions::Group;

/// Directory beside the binaries for what tests read.
pub const DATA: &str = "data";

pub struct Patched {
    dir: PathBuf,
    sources: PathBuf,
}

impl Patched {
    /// Makes the copy in `dir`; `None` for a group without patches.
    pub fn new(group: &Group, dir: &Path) -> Result<Option<Self>> {
        if group.patches.is_empty() {
            return Ok(None);
        }
        let patched = Self { dir: dir.to_owned(), sources: dir.join("sources") };
        copy_dir(&module_dir(group, &group.module)?, &patched.sources)?;
        for (name, ours) in &group.patches {
            let path = patched.sources.join(name);
            fs::remove_file(&path).with_context(|| format!("{} has no {name} to replace", group.module))?;
            if !ours.is_empty() {
                fs::write(&path, read(&group.dir.join(ours))?)
                    .with_context(|| format!("cannot write {name}"))?;
            }
        }
        let mut go_mod = read(&group.dir.join("go.mod"))?;
        go_mod.extend(format!("\nreplace {} => {}\n", group.module, patched.sources.display()).bytes());
        fs::write(dir.join("go.mod"), go_mod).context("cannot write go.mod")?;
        fs::write(dir.join("go.sum"), read(&group.dir.join("go.sum"))?).context("cannot write go.sum")?;
        Ok(Some(patched))
    }

    /// What `go` must be told.
    pub fn argument(&self) -> OsString {
        let mut argument = OsString::from("-modfile=");
        argument.push(self.dir.join("go.mod"));
        argument
    }

    /// Leaves what the group's tests read, below [`DATA`], and nothing else.
    pub fn keep(self, group: &Group) -> Result<()> {
        let data = self.dir.join(DATA);
        for name in &group.data {
            copy_dir(&self.sources.join(name), &data.join(name))?;
        }
        for (name, module) in &group.files {
            copy_file(&module_dir(group, module)?.join(name), &data.join(name))?;
        }
        for name in ["go.mod", "go.sum"] {
            fs::remove_file(self.dir.join(name)).with_context(|| format!("cannot remove {name}"))?;
        }
        fs::remove_dir_all(&self.sources).with_context(|| format!("cannot remove {}", self.sources.display()))
    }
}

/// What the binaries depend on besides what all groups have.
pub fn key(group: &Group) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    if group.tests {
        parts.push(format!("tests {:?}", group.data).into_bytes());
    }
    if !group.files.is_empty() {
        parts.push(format!("files {:?}", group.files).into_bytes());
    }
    for (name, ours) in &group.patches {
        let ours = if ours.is_empty() { Vec::new() } else { read(&group.dir.join(ours))? };
        parts.extend([name.clone().into_bytes(), ours]);
    }
    Ok(parts)
}

/// Where Go keeps the sources of a module of the group, fetched now unless they are there.
fn module_dir(group: &Group, module: &str) -> Result<PathBuf> {
    let mut dir = String::new();
    for question in [&["mod", "download"][..], &["list", "-mod=readonly", "-m", "-f", "{{.Dir}}"]] {
        let output = go_command()
            .current_dir(&group.dir)
            .args(question)
            .arg(module)
            .output()
            .context("cannot run `go`")?;
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr);
            bail!("`go {} {module}` failed: {}", question.join(" "), problem.trim());
        }
        dir = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    }
    Ok(dir.into())
}

/// Copies files and directories.
fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if from.is_dir() {
            copy_dir(&from, &to)?;
        } else {
            copy_file(&from, &to)?;
        }
    }
    Ok(())
}

/// The copy is writable, whatever the file was.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::write(to, read(from)?).with_context(|| format!("cannot write {}", to.display()))
}
