//! HashKV: etcd's checksum of the key space, equal for equal histories whoever stores them.
//!
//! CRC-32C over the bucket's name and then every row up to a revision, as etcd would store it: a revision key and the record
//! in protobuf. Rows that compaction has made invisible do not count, whether they are still there or not.

use super::State;
use crate::rows::Row;
use prost::Message;
use proto::mvccpb::KeyValue;

/// etcd's bucket of revisions.
const BUCKET: &[u8] = b"key";

pub struct Hasher<'a> {
    state: &'a State,
    upto: i64,
    crc: u32,
    buffer: Vec<u8>,
}

impl<'a> Hasher<'a> {
    /// Hashes what `state` has up to and including revision `upto`.
    pub fn new(state: &'a State, upto: i64) -> Self {
        Hasher { state, upto, crc: crc32c::crc32c(BUCKET), buffer: Vec::new() }
    }

    /// Takes the next row in order; false once all that counts has been taken.
    pub fn row(&mut self, row: &Row) -> bool {
        let revision = row.version.mod_revision;
        if revision > self.upto {
            return false;
        }
        let compacted = revision <= self.state.compact_revision;
        if compacted {
            let kept = self.state.get_at(&row.key, self.state.compact_revision);
            if kept.is_none_or(|kept| kept.location != row.version.location) {
                return true;
            }
        }
        self.crc = crc32c::crc32c_append(self.crc, &revision_key(row));
        self.buffer.clear();
        record(row).encode(&mut self.buffer).expect("a vector grows");
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        true
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
fn record(row: &Row) -> KeyValue {
    if row.version.is_tombstone() {
        KeyValue { key: row.key.clone(), ..Default::default() }
    } else {
        row.version.key_value(row.key.clone(), row.value.clone())
    }
}
