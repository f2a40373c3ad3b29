//! Hashes of the key space as it was when it was compacted: for the revision of a compaction HashKV answers with the hash
//! from before, as etcd does.
//!
//! The writer says what it compacts; once that is stored, a thread reads the rows that were visible before, which a pin holds
//! back so long. In memory only, as etcd's: after a restart the hash is that of what is still stored. So it is for a database
//! that would take too long to read with every compaction, and where compactions come faster than they are read.

use super::background::yield_to_others;
use super::pin::{Pin, PinLost};
use crate::mvcc::State;
use crate::mvcc::hash::Hasher;
use crate::rows::{ReadError, RowReader, ScanFrom};
use futures::FutureExt;
use futures::future::Shared;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Compactions whose hash is known, as in etcd; the oldest revision goes.
const HASHES_MAX: usize = 10;
/// Hashes that are being computed; a compaction beyond them has none.
const RUNNING_MAX: usize = 2;
/// A larger database is not read for its hash: Kubernetes compacts every five minutes, and this takes a tenth of a second.
pub const HASHED_BYTES_MAX: u64 = 64 << 20;
/// Rows and bytes read at a time.
const ROWS_MAX: usize = 1000;
const BYTES_MAX: usize = 4 << 20;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Lost(#[from] PinLost),
}

/// The hash of all rows that `hasher` takes. Blocks; `pin` was given before its state was loaded.
pub fn hash(mut hasher: Hasher, pin: &Pin, reader: &dyn RowReader) -> Result<u32, HashError> {
    let mut from = ScanFrom::Revision(0);
    loop {
        pin.touch()?;
        let rows = reader.scan(from, ROWS_MAX, BYTES_MAX)?;
        let Some(last) = rows.last() else { break };
        from = ScanFrom::Location(last.version.location + 1);
        if !rows.iter().all(|row| hasher.row(row)) {
            break;
        }
    }
    Ok(hasher.finish())
}

/// What is about to be compacted: the state before, its rows held back.
pub struct Before {
    pub state: State,
    pub pin: Pin,
    pub revision: i64,
}

/// A compaction, and the hash from before it.
#[derive(Clone)]
pub struct Compacted {
    /// The compaction before it.
    pub compact_revision: i64,
    pub revision: i64,
    /// An error: there is none.
    pub hash: Shared<oneshot::Receiver<u32>>,
}

/// The hashes that are known or will be, the oldest revision first.
#[derive(Clone, Default)]
pub struct Hashes(Arc<Mutex<VecDeque<Compacted>>>);

impl Hashes {
    pub fn at(&self, revision: i64) -> Option<Compacted> {
        self.lock().iter().find(|known| known.revision == revision).cloned()
    }

    fn add(&self, compacted: Compacted) {
        let mut known = self.lock();
        known.push_back(compacted);
        if known.len() > HASHES_MAX {
            known.pop_front();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Compacted>> {
        self.0.lock().expect("no holder of the hashes panics")
    }
}

/// The writer's end.
pub struct Hashing {
    hashes: Hashes,
    reader: Arc<dyn RowReader>,
    running: Vec<JoinHandle<()>>,
}

impl Hashing {
    pub fn new(hashes: Hashes, reader: Arc<dyn RowReader>) -> Self {
        Hashing { hashes, reader, running: Vec::new() }
    }

    /// Computes the hash of a compaction that is stored.
    pub fn start(&mut self, before: Before) {
        self.running.retain(|thread| !thread.is_finished());
        if self.running.len() >= RUNNING_MAX {
            return;
        }
        let (found, hash) = oneshot::channel();
        let (compact_revision, revision) = (before.state.compact_revision, before.revision);
        let reader = self.reader.clone();
        let run = move || {
            yield_to_others();
            let Before { state, pin, revision } = before;
            match self::hash(Hasher::compacting(&state, revision), &pin, reader.as_ref()) {
                // Nobody has asked.
                Ok(hash) => drop(found.send(hash)),
                Err(error) => tracing::debug!(%error, revision, "no hash of what was compacted"),
            }
        };
        match std::thread::Builder::new().name("kine-hash".into()).spawn(run) {
            Ok(thread) => {
                self.running.push(thread);
                self.hashes.add(Compacted { compact_revision, revision, hash: hash.shared() });
            }
            Err(error) => tracing::debug!(%error, revision, "no hash of what was compacted"),
        }
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        // It takes a moment only: see `HASHED_BYTES_MAX`.
        for thread in self.running.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
