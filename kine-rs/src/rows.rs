//! What the state machine hands to a backend, and what a backend gives back: rows in order, small records beside them.
//!
//! A row is one stored version of a key, addressed by its location; rows are only ever appended (in location order) and
//! dropped. Everything else that must survive (leases, alarms, the compact revision, users) is a record in a named bucket.
//! A backend knows no more than this.

use crate::mvcc::range::Values;
use crate::mvcc::{Location, Version};
use bytes::Bytes;
use std::sync::Arc;

/// One change as it is stored. A tombstone has `version.version == 0` and no value.
#[derive(Clone, Debug)]
pub struct Row {
    /// Place among the changes of its revision, from 0.
    pub sub: i64,
    pub key: Bytes,
    pub version: Version,
    pub value: Bytes,
}

/// One change as watchers see it.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Bytes,
    /// `version.version == 0`: the key was deleted.
    pub version: Version,
    pub value: Bytes,
    /// The version before this revision, if the key existed then.
    pub old: Option<Version>,
}

/// All changes of one revision, in order.
#[derive(Clone, Debug)]
pub struct Changeset {
    pub revision: i64,
    pub changes: Vec<Change>,
}

/// A record outside the history: its bucket, its key, its new content (`None` removes it).
#[derive(Clone, Debug)]
pub struct RecordWrite {
    pub bucket: Bucket,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// The buckets; the discriminant is what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Bucket {
    /// Single values of the store: see the constants in `apply`.
    Meta = 0,
    /// Lease id, 8 bytes big endian -> TTL in seconds, 8 bytes big endian.
    Lease = 1,
    /// Member id, 8 bytes big endian, alarm type, 4 bytes big endian -> nothing.
    Alarm = 2,
    /// `enabled` -> 1 byte, 0 or 1; `revision` -> 8 bytes big endian.
    Auth = 3,
    /// User name -> protobuf `authpb.User`.
    User = 4,
    /// Role name -> protobuf `authpb.Role`.
    Role = 5,
}

/// Everything one commit makes durable, all or nothing.
#[derive(Default)]
pub struct Batch {
    pub rows: Vec<Row>,
    pub removed: Vec<Location>,
    pub records: Vec<RecordWrite>,
    /// What watchers get once the batch is durable.
    pub changesets: Vec<Arc<Changeset>>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.removed.is_empty() && self.records.is_empty()
    }
}

/// Values of rows that are not stored yet, then of the stored ones. `rows` have consecutive locations, above all stored.
pub struct Recent<'a, V> {
    pub rows: &'a [Row],
    pub stored: &'a mut V,
}

impl<V: Values> Values for Recent<'_, V> {
    type Error = V::Error;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, V::Error> {
        let first = self.rows.first().map_or(u64::MAX, |row| row.version.location);
        if versions.iter().all(|version| version.location < first) {
            return self.stored.load(versions);
        }
        let mut out = Vec::with_capacity(versions.len());
        for version in versions {
            if version.location >= first {
                out.push(self.rows[(version.location - first) as usize].value.clone());
            } else {
                out.extend(self.stored.load(std::slice::from_ref(version))?);
            }
        }
        Ok(out)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing of the batch was stored; the store is as before.
    #[error("no space left for the database")]
    Full,
    /// What is on disk is unknown (a failed write or fsync): the process must stop.
    #[error("the database could not be written: {0}")]
    Fatal(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Compaction dropped the row while a reader still held a view that refers to it.
    #[error("row {0} is gone")]
    Gone(Location),
    #[error("the database could not be read: {0}")]
    Io(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes allocated on disk.
    pub allocated: u64,
    /// Bytes of it that hold data.
    pub in_use: u64,
}

/// The one writer of a backend, owned by the thread that commits.
pub trait RowWriter: Send {
    /// Makes the batch durable; on return it survives a power cut.
    fn commit(&mut self, batch: &Batch) -> Result<(), CommitError>;
    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError>;
    /// One bounded step of giving unused space back; false when there is nothing (more) to give.
    fn release_space(&mut self) -> Result<bool, CommitError>;
    /// Gives all unused space back at once.
    fn defragment(&mut self) -> Result<(), CommitError>;
    fn size(&self) -> Size;
}

/// As many values, from what `visit` shows of them.
pub fn copied(
    count: usize,
    visit: impl FnOnce(&mut dyn FnMut(usize, &[u8])) -> Result<(), ReadError>,
) -> Result<Vec<Bytes>, ReadError> {
    let mut values = vec![Bytes::new(); count];
    visit(&mut |at, value| values[at] = Bytes::copy_from_slice(value))?;
    Ok(values)
}

/// Readers of a backend, used by many threads at once.
pub trait RowReader: Send + Sync {
    /// Shows the values that are not empty, in any order, each with the place of its version.
    fn visit(&self, versions: &[Version], each: &mut dyn FnMut(usize, &[u8])) -> Result<(), ReadError>;
    /// The values in the order of their versions.
    fn load(&self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        copied(versions.len(), |each| self.visit(versions, each))
    }
    /// Up to `rows_max` rows, and not many more than `bytes_max` of values, from the first row at or above `from`.
    fn scan(&self, from: ScanFrom, rows_max: usize, bytes_max: usize) -> Result<Vec<Row>, ReadError>;
    /// As `scan`, without the values: `version.value_len` has their length.
    fn scan_heads(&self, from: ScanFrom, rows_max: usize) -> Result<Vec<Row>, ReadError>;
}

#[derive(Clone, Copy, Debug)]
pub enum ScanFrom {
    Revision(i64),
    Location(Location),
}
