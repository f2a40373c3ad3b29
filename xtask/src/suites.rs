//! `cargo xtask suites`: builds our kine and the test suites of Kubernetes and etcd, then hands over to the program that runs
//! them.
//!
//! What is run and what may fail is the business of crate `conformance`; its flags are passed on as they are.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::versions::Versions;
use crate::{cargo, upstream};

#[derive(Args)]
pub struct Options {
    /// --server etcd, --run PATTERN, names of test binaries; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(root: &Path, cache: &Cache, versions: &Versions, options: &Options) -> Result<()> {
    let upstream = upstream::build(cache, versions, &["etcd", "kubernetes-suites", "etcd-suites"])?;
    let release = cargo::build_release(root, &["conformance", "kine-rs"])?;
    let mut suites = Command::new(release.join("suites"));
    suites.args(&options.arguments);
    suites.env("K0S_TEST_BIN_DIR", upstream).env("K0S_TEST_KINE", release.join("kine"));
    cargo::run(&mut suites)
}
