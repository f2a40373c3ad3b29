//! The backends: each puts commands in an order and makes them durable; none knows what a command means.
//!
//! `local` is the order of one process (a writer thread with group commit) over any `RowWriter`; `sqlite` and `memory` store
//! its rows, `indexer` keeps an image of the index for the next start, `hashes` those of what was compacted. `open` turns an endpoint into a running store.

mod background;
mod hashes;
mod indexer;
mod local;
mod memory;
mod pin;
mod sqlite;

pub use hashes::{Compacted, HashError, Hashes, Hashing, hash};
pub use indexer::{ImageStore, Images, Indexer};
pub use local::{Answer, Proposal, Weight, Writer, stop_process};
pub use pin::{Pin, PinLost, Pins};
pub use sqlite::{Filler, OpenError as SqliteError};

use crate::apply::Identity;
use crate::mvcc::State;
use crate::rows::{RowReader, RowWriter};
use std::path::PathBuf;
use std::sync::Arc;

/// Which backend and where; parsed from kine's `--endpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Sqlite(sqlite::Options),
    Memory,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    #[error("a store in memory can't be made from a file; give --endpoint sqlite:///path/to/file")]
    NotDurable,
}

/// What a backend is made of once it is open.
pub struct Opened {
    pub writer: Box<dyn RowWriter>,
    pub reader: Arc<dyn RowReader>,
    pub state: State,
    pub identity: Identity,
    /// `None`: nothing outlives the process.
    pub images: Option<Images>,
}

impl Endpoint {
    /// Default of kine: `./db/state.db`.
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Endpoint::Sqlite(sqlite::Options { path: path.into(), fsync: true, ids: None, peer_urls: None })
    }

    /// A new store gets these ids and peer URLs.
    pub fn with_member(self, ids: Ids, peer_urls: &[String]) -> Self {
        match self {
            Endpoint::Sqlite(options) => {
                let (ids, peer_urls) = (Some(ids), Some(peer_urls.into()));
                Endpoint::Sqlite(sqlite::Options { ids, peer_urls, ..options })
            }
            Endpoint::Memory => Endpoint::Memory,
        }
    }

    /// Without fsync an acknowledged write can be lost: for tests only.
    pub fn without_fsync(self) -> Self {
        match self {
            Endpoint::Sqlite(options) => Endpoint::Sqlite(sqlite::Options { fsync: false, ..options }),
            Endpoint::Memory => Endpoint::Memory,
        }
    }

    pub fn open(&self) -> Result<Opened, OpenError> {
        match self {
            Endpoint::Sqlite(options) => Ok(sqlite::open(options)?),
            Endpoint::Memory => Ok(memory::open()),
        }
    }

    /// Makes a new, durable store of what `fill` puts into it; all or nothing.
    pub fn create<T, E: From<OpenError> + From<SqliteError>>(
        &self,
        fill: impl FnOnce(&mut Filler) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Endpoint::Sqlite(options) => sqlite::create(options, fill),
            Endpoint::Memory => Err(OpenError::NotDurable.into()),
        }
    }
}

/// What sets a store apart from all others, made at its creation and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub cluster_id: u64,
    pub member_id: u64,
}

/// Who a new store is: random where nothing else is wanted, as two stores must never be taken for one another.
fn new_identity(ids: Option<Ids>) -> Identity {
    let Ids { cluster_id, member_id } =
        ids.unwrap_or_else(|| Ids { cluster_id: rand::random(), member_id: rand::random() });
    Identity { cluster_id, member_id, term: 2 }
}
