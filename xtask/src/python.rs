//! Python's etcd clients, in a virtual environment that tests run programs in.
//!
//! pip takes only what the requirements files beside the programs name, by version and SHA-256. They, the interpreter and
//! the platform make up the cache key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};

/// In this order: a package that comes as source is built with what the first file has installed.
const REQUIREMENTS: [&str; 2] = ["build-requirements.txt", "requirements.txt"];
const INSTALL_PYTHON: &str = "apt-get install python3-venv";

/// The virtual environment with the requirements in `dir`, made now unless the cache has it.
pub fn build(cache: &Cache, dir: &Path) -> Result<PathBuf> {
    let identity = identity()?;
    let mut parts = vec![identity.clone().into_bytes()];
    for name in REQUIREMENTS {
        let path = dir.join(name);
        parts.push(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let key = cache::key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    cache.entry(&format!("python-{key}"), |environment| {
        eprintln!("installing etcd clients for {}", identity.trim());
        run(Command::new("python3").args(["-m", "venv"]).arg(environment))?;
        for name in REQUIREMENTS {
            let mut pip = Command::new(environment.join("bin/python"));
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-build-isolation",
            ]);
            run(pip.args(["--require-hashes", "--requirement"]).arg(dir.join(name)))?;
        }
        Ok(())
    })
}

/// Release and platform, on which the files in the environment depend.
fn identity() -> Result<String> {
    let report = "import ensurepip, sys, sysconfig; print(sys.version, sys.prefix, sysconfig.get_platform())";
    match Command::new("python3").args(["-c", report]).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("python3 cannot make virtual environments: {INSTALL_PYTHON}\n{reason}")
        }
        Err(error) => bail!("cannot run python3 ({error}): {INSTALL_PYTHON}"),
    }
}

fn run(command: &mut Command) -> Result<()> {
    // stdout is for the task's answer.
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
