//! `kine snapshot`: work with snapshot files, without serving anything. Saving is `etcdctl snapshot save`.

use crate::bbolt::etcd::TrailerPolicy;
use crate::config::{ParseError, parse_endpoint};
use crate::snapshot::{Restore, RestoreError, restore};
use clap::{Parser, Subcommand};
use std::fs::File;
use std::path::PathBuf;

/// Work with snapshot files of etcd and of this server.
#[derive(Debug, Parser)]
#[command(name = "kine snapshot", bin_name = "kine snapshot")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make a new database from a snapshot file
    Restore {
        file: PathBuf,
        /// The database to make: sqlite:///path/to/file
        #[arg(long, env = "KINE_ENDPOINT", hide_env_values = true)]
        endpoint: String,
        /// Take a file without its SHA-256: one copied from a data directory (member/snap/db)
        #[arg(long)]
        skip_hash_check: bool,
        /// Raise the revision by this much, so that no client takes the new store for the old one
        #[arg(long, default_value_t = 0, requires = "mark_compacted")]
        bump_revision: u64,
        /// Mark everything up to the raised revision as compacted; goes with --bump-revision
        #[arg(long, requires = "bump_revision")]
        mark_compacted: bool,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Endpoint(#[from] ParseError),
    #[error("snapshot {path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error("snapshot {path}")]
    Restore { path: PathBuf, source: RestoreError },
}

/// Does what the command line says: `kine snapshot restore FILE --endpoint sqlite://PATH`.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), RunError> {
    // The first is the program, the second the word that led here.
    let Args { task } = Args::parse_from(arguments.skip(1));
    let Task::Restore { file: path, endpoint, skip_hash_check, bump_revision, mark_compacted: _ } = task;
    let endpoint = parse_endpoint(&endpoint)?;
    let source = File::open(&path).map_err(|error| RunError::File { path: path.clone(), error })?;
    let trailer = if skip_hash_check { TrailerPolicy::Skipped } else { TrailerPolicy::Required };
    let restored = restore(source, &endpoint, Restore { trailer, bump_revision })
        .map_err(|source| RunError::Restore { path: path.clone(), source })?;
    for name in &restored.unknown {
        eprintln!("Warning: left out, as this release does not know it: {name}");
    }
    println!(
        "restored {} at revision {}: {} revision records, {} leases",
        path.display(),
        restored.revision,
        restored.rows,
        restored.leases
    );
    Ok(())
}
