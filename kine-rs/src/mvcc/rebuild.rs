//! The state from rows: what opening a store does. Rows come in the order they were written. No I/O.
//!
//! From all rows: one sort by key, then each key's rows tell which version is live and until when each older one was. From
//! an image of the index and the rows after it: each row is applied once more.

use super::tree::Tree;
use super::{Granted, Past, State, Version, attachment, history_key};

/// Rebuilds the state from rows in ascending location order, as the backend stored them.
pub struct Rebuild {
    state: State,
    /// All keys, one after the other.
    keys: Vec<u8>,
    rows: Vec<Stored>,
}

/// A row on its way into the index: its key is `keys[start..end]`.
#[derive(Clone, Copy)]
struct Stored {
    start: usize,
    end: usize,
    version: Version,
}

impl Rebuild {
    pub fn new(compact_revision: i64) -> Self {
        let state = State { compact_revision, ..State::default() };
        Rebuild { state, keys: Vec::new(), rows: Vec::new() }
    }

    /// `version.version == 0` is a tombstone; its `create_revision` is not read.
    pub fn row(&mut self, key: &[u8], version: Version) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.rows.push(Stored { start, end: self.keys.len(), version });
    }

    /// Takes over rows that all come after those seen so far.
    pub fn append(&mut self, later: Rebuild) {
        let base = self.keys.len();
        self.keys.extend_from_slice(&later.keys);
        self.rows.extend(later.rows.into_iter().map(|row| Stored {
            start: row.start + base,
            end: row.end + base,
            ..row
        }));
    }

    pub fn lease(&mut self, id: i64, granted: Granted) {
        self.state.grant(id, granted);
    }

    /// The state at the last row, raised to `revision_floor`: the rows of the newest revisions may have been compacted.
    pub fn finish(self, revision_floor: i64) -> State {
        let Rebuild { mut state, keys, mut rows } = self;
        state.revision = state.revision.max(revision_floor);
        if let Some(last) = rows.last() {
            state.revision = state.revision.max(last.version.mod_revision);
            state.next_location = last.version.location + 1;
        }
        let key = |row: &Stored| &keys[row.start..row.end];
        // Stable: rows of one key stay in the order they were written in.
        rows.sort_by(|a, b| key(a).cmp(key(b)));
        let mut past = Vec::new();
        let mut live = Vec::new();
        for same_key in rows.chunk_by(|a, b| key(a) == key(b)) {
            let mut create_revision = None;
            for (at, row) in same_key.iter().enumerate() {
                let next = same_key.get(at + 1).map(|next| next.version.mod_revision);
                if row.version.is_tombstone() {
                    let mod_revision = row.version.mod_revision;
                    let create_revision = create_revision.take().unwrap_or(mod_revision);
                    let version = Version { create_revision, ..row.version };
                    past.push((
                        history_key(key(row), version.location),
                        Past { version, end: mod_revision + 1 },
                    ));
                    continue;
                }
                create_revision = Some(row.version.create_revision);
                match next {
                    Some(end) => past.push((
                        history_key(key(row), row.version.location),
                        Past { version: row.version, end },
                    )),
                    None => live.push(*row),
                }
            }
        }
        for row in &live {
            // A lease that no longer exists does not hold the key.
            if row.version.lease != 0 && state.lease(row.version.lease).is_some() {
                state.attached.insert(&attachment(row.version.lease, key(row)), &());
            }
        }
        state.live = Tree::from_sorted(live.iter().map(|row| (key(row), row.version)));
        state.history = Tree::from_sorted(past.into_iter());
        state
    }
}

/// Takes an image of the index up to the last row.
///
/// Rows that compaction has dropped since the image may be missing, but no tombstone may. A put that is missing was followed
/// by a row at or below the compact revision; so what came before it gets a later end than it had, but still one that no
/// read can see beyond.
pub struct Replay {
    state: State,
}

impl Replay {
    pub fn new(image: State, compact_revision: i64) -> Self {
        Replay { state: State { compact_revision, ..image } }
    }

    pub fn lease(&mut self, id: i64, granted: Granted) {
        self.state.grant(id, granted);
    }

    /// As `Rebuild::row`.
    pub fn row(&mut self, key: &[u8], version: Version) {
        let Version { mod_revision, location, .. } = version;
        if !version.is_tombstone() {
            self.state.put(key, &version);
        } else if self.state.delete(key, mod_revision, location).is_none() {
            // What it ended was dropped.
            self.state.bury(key, mod_revision, mod_revision, location);
        }
        self.state.revision = mod_revision;
        self.state.next_location = location + 1;
    }

    /// As `Rebuild::finish`.
    pub fn finish(mut self, revision_floor: i64) -> State {
        self.state.revision = self.state.revision.max(revision_floor);
        self.state
    }
}
