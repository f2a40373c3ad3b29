//! `cargo xtask bench`: builds everything that is to be compared, then hands over to the load generator.
//!
//! What is measured and how is the business of crate `benches`; this only knows where the programs are.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::versions::Versions;
use crate::{cargo, upstream};

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
    let release = cargo::build_release(root, &["benches", "kine-rs", "controller"])?;
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
    cargo::run(&mut suite)
}
