//! Rows in a SQLite file: one narrow table in commit order, small records beside it. `docs/sqlite-format.md` describes it.
//!
//! Durable when the commit returns: WAL with `synchronous=FULL`. The writer connection belongs to the writer thread; readers
//! have connections of their own and never hold a transaction open between calls, so the WAL can always be checkpointed.
//! One process owns a file: a lock file beside it names the owner.

mod checkpoint;
mod fill;
mod index;
mod integrity;
mod lock;
mod open;
mod reader;
mod takeover;
mod writer;

pub use fill::{Filler, create};
pub use open::{OpenError, Options, open};

use std::path::{Path, PathBuf};

/// `application_id` of our files: "kine" in ASCII.
const APPLICATION_ID: i64 = 0x6b69_6e65;
/// `user_version`: the format this release reads and writes.
const FORMAT: i64 = 1;

/// An etcd request carries at most 1.5 MiB; anything near SQLite's own limit of a billion bytes is a damaged file.
const VALUE_BYTES_MAX: i32 = 64 << 20;

/// The file that goes with a database under its name and a suffix.
fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
