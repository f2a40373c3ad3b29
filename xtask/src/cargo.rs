//! Programs of this workspace that a task starts: built in the release profile, then run.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Builds all programs of `packages`; the directory they are in.
pub fn build_release(root: &Path, packages: &[&str]) -> Result<PathBuf> {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(root).args(["build", "--locked", "--release"]);
    for package in packages {
        build.args(["--package", package]);
    }
    run(&mut build)?;
    Ok(target_dir()?.join("release"))
}

pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} failed ({status})", command.get_program());
    }
    Ok(())
}

/// Where cargo has put this program, and hence the others: `<target>/<profile>/xtask`.
fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let dir = own.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(dir.to_owned())
}
