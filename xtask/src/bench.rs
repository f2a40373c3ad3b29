//! `cargo xtask bench`: builds everything that is to be compared, then hands over to the load generator.
//!
//! What is measured and how is the business of crate `benches`; this only knows where the programs are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cache::Cache;
use crate::upstream;
use crate::versions::Versions;

#[derive(Args)]
pub struct Options {
    /// One short round, printed only; otherwise five rounds, written to docs/benchmarks
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// Rows of the goals to measure, for example 7,8,9 [default: all]
    #[arg(long)]
    rows: Option<String>,
}

pub fn run(root: &Path, cache: &Cache, versions: &Versions, options: &Options) -> Result<()> {
    let upstream = upstream::build(cache, versions, &["kubernetes", "etcd", "kine"])?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(root).args(["build", "--locked", "--release"]);
    build.args(["--package", "benches", "--package", "kine-rs", "--package", "controller"]);
    execute(&mut build)?;

    let release = target_dir()?.join("release");
    let mut suite = Command::new(release.join("benches"));
    suite.arg("suite").arg("--kine").arg(release.join("kine")).arg("--k0s").arg(release.join("k0s"));
    suite.arg("--upstream").arg(upstream).arg("--work-dir").arg(cache.scratch("bench"));
    if options.quick {
        suite.arg("--quick");
    } else {
        suite.arg("--out").arg(root.join("docs/benchmarks"));
    }
    if let Some(rounds) = options.rounds {
        suite.args(["--rounds", &rounds.to_string()]);
    }
    if let Some(rows) = &options.rows {
        suite.args(["--rows", rows]);
    }
    execute(&mut suite)
}

/// Where cargo has put this program, and hence the others: `<target>/<profile>/xtask`.
fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    let dir = own.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(dir.to_owned())
}

fn execute(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} failed ({status})", command.get_program());
    }
    Ok(())
}
