//! `cargo xtask differential`: builds our kine and a real etcd, then hands over to the differential tester.
//!
//! What is compared and how is the business of crate `conformance`; its flags are passed on as they are.

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
    /// --seed N, --ops N, --endless, --right memory, --replay FILE, ...; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(root: &Path, cache: &Cache, versions: &Versions, options: &Options) -> Result<()> {
    let upstream = upstream::build(cache, versions, &["etcd", "kine"])?;
    let release = cargo::build_release(root, &["conformance", "kine-rs"])?;
    let mut tester = Command::new(release.join("differential"));
    tester.args(&options.arguments);
    tester.env("K0S_TEST_BIN_DIR", upstream).env("K0S_TEST_KINE", release.join("kine"));
    cargo::run(&mut tester)
}
