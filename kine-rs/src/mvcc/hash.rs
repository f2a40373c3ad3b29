//! HashKV: etcd's checksum of the key space, equal for equal histories whoever stores them.
//!
//! CRC-32C over the bucket's name and then every row up to a revision, as etcd would store it: a revision key and the record
//! in protobuf. Rows that compaction has made invisible do not count, whether they are still there or not.

use super::State;
use super::tree::Span;
use crate::rows::Row;
use prost::Message;
use proto::mvccpb::KeyValue;

/// etcd's bucket of revisions.
const BUCKET: &[u8] = b"key";

pub struct Hasher<'a> {
    state: &'a State,
    upto: i64,
    /// Nothing that compaction to `upto` would keep: etcd then skips nothing that it still stores.
    empty: bool,
    crc: u32,
    buffer: Vec<u8>,
}

impl<'a> Hasher<'a> {
    /// Hashes what `state` has up to and including revision `upto`.
    pub fn new(state: &'a State, upto: i64) -> Self {
        Hasher { empty: state.count(Span::ALL, upto) == 0, ..Hasher::compacting(state, upto) }
    }

    /// The same for the hash that etcd takes while it compacts `state` to `upto`. That keeps the tombstones of `upto`, and
    /// there are some where no key lives.
    pub fn compacting(state: &'a State, upto: i64) -> Self {
        Hasher { state, upto, empty: false, crc: crc32c::crc32c(BUCKET), buffer: Vec::new() }
    }

    /// Takes the next row in order; false once all that counts has been taken.
    pub fn row(&mut self, row: &Row) -> bool {
        let revision = row.version.mod_revision;
        if revision > self.upto {
            return false;
        }
        if revision <= self.state.compact_revision && !self.survives_compaction(row) {
            return true;
        }
        self.crc = crc32c::crc32c_append(self.crc, &revision_key(row));
        self.buffer.clear();
        record(row).encode(&mut self.buffer).expect("a vector grows");
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        true
    }

    /// Whether etcd would still store a row at or below the compact revision, and count it.
    fn survives_compaction(&self, row: &Row) -> bool {
        let is_visible_at = |revision| {
            self.state
                .get_at(&row.key, revision)
                .is_some_and(|version| version.location == row.version.location)
        };
        is_visible_at(self.upto) || (self.empty && is_visible_at(self.state.compact_revision))
    }

    pub fn finish(self) -> u32 {
        self.crc
    }
}

/// etcd's key of a row: main revision, `_`, sub revision, and `t` for a tombstone.
fn revision_key(row: &Row) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&row.version.mod_revision.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&row.sub.to_be_bytes());
    if row.version.is_tombstone() {
        key.push(b't');
    }
    key
}

/// etcd's record of a row: of a tombstone only the key.
pub fn record(row: &Row) -> KeyValue {
    if row.version.is_tombstone() {
        KeyValue { key: row.key.clone(), ..Default::default() }
    } else {
        row.version.key_value(row.key.clone(), row.value.clone())
    }
}
