//! Conformance machinery: etcd's behaviour as data, run over a real etcd and over every backend of ours.
//!
//! A [`command::Command`] is one thing a client can ask; [`session::Session`] asks it and turns the whole answer into
//! text in which only what a server picks by itself is replaced by a name. Everything else here is built on that text:
//! [`transcript`] compares it with files, [`differential`] compares two servers on programs that [`generate`] makes up, and
//! [`shrink`] makes what they found small.
//! [`shell`] does the same to command lines of etcd's own programs.
//! [`told`] compares a Go kine with ours on one database.
//! [`server::Server`] owns the process under test. Nothing in here links the datastore: servers are reached by address.

pub mod command;
pub mod differential;
pub mod generate;
pub mod literal;
pub mod parse;
pub mod print;
pub mod render;
pub mod server;
pub mod session;
pub mod shell;
pub mod shrink;
pub mod streams;
pub mod suite;
pub mod symbol;
pub mod told;
pub mod transcript;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// Names of the data files in a directory, for tests that have one of each name.
///
/// # Errors
/// When it cannot be read.
pub fn names_of_files(dir: &Path) -> io::Result<BTreeSet<String>> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let data = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "txt"));
    Ok(data.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect())
}
