//! `cargo xtask`: what developers and the Makefile do besides cargo's own verbs.
//!
//! Progress goes to stderr; stdout carries only the answer (a directory), so that `dir=$(cargo xtask kubernetes)` works.
//! The upstream binaries come from [`upstream`], the comparisons with etcd and kine from [`bench`]
//! and [`differential`].
//! Nothing here is part of the product.

mod bench;
mod cache;
mod cargo;
mod differential;
mod download;
mod go;
mod patched;
mod python;
mod suites;
mod upstream;
mod versions;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::cache::Cache;
use crate::versions::Versions;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer tasks of this repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the Kubernetes binaries (or download the official ones) and print their directory
    Kubernetes(Kubernetes),
    /// Build what tests and benchmarks compare us with (etcd, etcdctl, etcdutl, Go kine) and print the directory
    Peers,
    /// Build all of it, and the clients and test suites that tests run, and print one directory with every program
    Upstream,
    /// Measure ours beside real etcd and real kine-SQLite, in one run
    Bench(bench::Options),
    /// Run random programs on ours and on a real etcd, and show the first answer that differs
    #[command(disable_help_flag = true)]
    Differential(differential::Options),
    /// Run the test suites of Kubernetes' storage and of etcd on ours
    #[command(disable_help_flag = true)]
    Suites(suites::Options),
}

#[derive(Args)]
struct Kubernetes {
    /// Fetch the official release and verify its SHA-256 instead of compiling (needs curl and internet access)
    #[arg(long)]
    download: bool,
    /// Download server [default: the project's own, from xtask/upstream/versions.toml]
    #[arg(long, requires = "download", value_name = "URL")]
    base_url: Option<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let root = workspace_root()?;
    let versions = Versions::read(&root.join("xtask/upstream"))?;
    let cache = Cache::from_environment()?;
    match cli.task {
        Task::Kubernetes(Kubernetes { download: true, base_url }) => {
            print_dir(download::install(&cache, versions.group("kubernetes")?, base_url.as_deref())?)
        }
        Task::Kubernetes(_) => print_dir(upstream::build(&cache, &versions, &["kubernetes"])?),
        Task::Peers => print_dir(upstream::build(&cache, &versions, &["etcd", "kine"])?),
        Task::Upstream => print_dir(upstream::for_tests(&cache, &versions, &root)?),
        Task::Bench(options) => bench::run(&root, &cache, &versions, &options),
        Task::Differential(options) => differential::run(&root, &cache, &versions, &options),
        Task::Suites(options) => suites::run(&root, &cache, &versions, &options),
    }
}

fn print_dir(dir: PathBuf) -> Result<()> {
    println!("{}", dir.display());
    Ok(())
}

/// The checkout that `cargo xtask` was called in. Asked at run time: clones at other paths share one target directory.
fn workspace_root() -> Result<PathBuf> {
    let xtask =
        std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`, inside the checkout")?;
    let root = PathBuf::from(xtask).parent().context("CARGO_MANIFEST_DIR has no parent")?.to_owned();
    Ok(root)
}
