//! A snapshot of the whole store as etcd's file, made piece by piece while the store goes on.
//!
//! Consistent: all of it is one view, whose rows a pin holds back from compaction. Two passes (see `bbolt`): the lengths of
//! all rows, then the rows. Memory is one piece, whatever the store's size. The Snapshot RPC pulls the pieces at the pace
//! of its client; nothing runs in between. `restore` is the way back.

mod restore;

pub use restore::{Restore, RestoreError, restore};

use crate::api::About;
use crate::api::maintenance::minor_release;
use crate::apply::Identity;
use crate::backend::{Pin, PinLost};
use crate::bbolt::WriteError;
use crate::bbolt::etcd::{
    Auth, ClusterSettings, ConfState, Image, KeyValueLen, LeaseRecord, Member, Meta, RecordKey, SnapshotPlan,
    SnapshotPlanner, SnapshotWriter,
};
use crate::mvcc::hash::record;
use crate::mvcc::{ReadView, State};
use crate::rows::{ReadError, Row, RowReader, ScanFrom};
use prost::Message;
use proto::etcdserverpb::AlarmMember;
use std::sync::Arc;

/// Rows read at a time when only their lengths are asked for.
const HEADS_MAX: usize = 4096;
/// Rows and value bytes read at a time: a piece is about as long.
const PIECE_ROWS_MAX: usize = 1000;
pub const PIECE_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the snapshot was abandoned: {0}")]
    Abandoned(#[from] PinLost),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a snapshot is made from.
pub struct Source {
    pub view: ReadView,
    pub pin: Pin,
    pub reader: Arc<dyn RowReader>,
}

/// A snapshot under way.
pub struct Snapshot {
    source: Source,
    file_len: u64,
    next: ScanFrom,
    /// `None` once the file is complete.
    writer: Option<SnapshotWriter<Vec<u8>>>,
    /// The digest, until it is taken.
    digest: Option<Vec<u8>>,
}

impl Snapshot {
    /// Measures the store. Blocks.
    pub fn plan(source: Source, image: &Image) -> Result<Self, SnapshotError> {
        let plan = measure(&source, image)?;
        let file_len = plan.file_len();
        let writer = SnapshotWriter::new(Vec::new(), plan)?;
        Ok(Snapshot { source, file_len, next: ScanFrom::Location(0), writer: Some(writer), digest: None })
    }

    /// Length of the file, without the digest.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The next piece of the file, not empty; `None` after the last. Blocks.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        while let Some(mut writer) = self.writer.take() {
            let rows = scan(&self.source, self.next)?;
            if let Some(last) = rows.last() {
                self.next = ScanFrom::Location(last.version.location + 1);
                for row in rows.iter().filter(|row| is_kept(&self.source.view, row)) {
                    writer.record(record_key(row), &record(row).encode_to_vec())?;
                }
                let piece = std::mem::take(writer.out_mut());
                self.writer = Some(writer);
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
            } else {
                if let Some(key) = raise(&self.source)? {
                    writer.record(key, &[])?;
                }
                let (piece, digest) = writer.finish()?;
                self.digest = Some(digest.to_vec());
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// SHA-256 of the file, once after its last piece.
    pub fn digest(&mut self) -> Option<Vec<u8>> {
        self.digest.take()
    }
}

/// The rows of the view from `from` on, up to a piece.
fn scan(source: &Source, from: ScanFrom) -> Result<Vec<Row>, SnapshotError> {
    source.pin.touch()?;
    let mut rows = source.reader.scan(from, PIECE_ROWS_MAX, PIECE_BYTES_MAX)?;
    cut(&source.view, &mut rows);
    Ok(rows)
}

fn measure(source: &Source, image: &Image) -> Result<SnapshotPlan, SnapshotError> {
    let mut planner = SnapshotPlanner::new(image)?;
    let mut from = ScanFrom::Location(0);
    loop {
        source.pin.touch()?;
        let mut heads = source.reader.scan_heads(from, HEADS_MAX)?;
        cut(&source.view, &mut heads);
        let Some(last) = heads.last() else { break };
        from = ScanFrom::Location(last.version.location + 1);
        for head in heads.iter().filter(|head| is_kept(&source.view, head)) {
            planner.record(record_key(head), record_len(head))?;
        }
    }
    if let Some(key) = raise(source)? {
        planner.record(key, 0)?;
    }
    Ok(planner.finish()?)
}

/// Drops rows that came after the view.
fn cut(view: &State, rows: &mut Vec<Row>) {
    let inside = rows.partition_point(|row| row.version.location < view.next_location);
    rows.truncate(inside);
}

/// Whether compaction leaves the row: as in etcd, also a tombstone of the compacted revision itself.
fn is_kept(view: &State, row: &Row) -> bool {
    let (compacted, revision) = (view.compact_revision, row.version.mod_revision);
    revision > compacted
        || (revision == compacted && row.version.is_tombstone())
        || view.get_at(&row.key, compacted).is_some_and(|kept| kept.location == row.version.location)
}

/// A file's revision is its last record's, or the compaction's. Where no row is left of the newest revision, a tombstone
/// of no key at all, which etcd takes for nothing else, keeps it from going back.
fn raise(source: &Source) -> Result<Option<RecordKey>, SnapshotError> {
    let view = &source.view;
    let last = source.reader.scan_heads(ScanFrom::Revision(view.revision), 1)?;
    let told = last.first().is_some_and(|row| row.version.mod_revision == view.revision);
    let raised = told || view.revision <= view.compact_revision.max(1);
    Ok((!raised).then_some(RecordKey { main: view.revision, sub: 0, tombstone: true }))
}

fn record_key(row: &Row) -> RecordKey {
    RecordKey { main: row.version.mod_revision, sub: row.sub, tombstone: row.version.is_tombstone() }
}

/// Length of `record(row)`, from a row without value.
fn record_len(head: &Row) -> usize {
    let version = &head.version;
    let lengths = if version.is_tombstone() {
        KeyValueLen { key_len: head.key.len(), ..KeyValueLen::default() }
    } else {
        KeyValueLen {
            key_len: head.key.len(),
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value_len: version.value_len as usize,
            lease: version.lease,
        }
    };
    lengths.encoded_len()
}

/// Everything of the store but its rows, as etcd keeps it.
pub fn image(view: &State, identity: &Identity, about: &About) -> Image {
    let compacted = (view.compact_revision >= 0).then_some(view.compact_revision);
    let release = minor_release(&about.version);
    Image {
        meta: Meta {
            consistent_index: view.next_location,
            term: identity.term,
            scheduled_compact: compacted,
            finished_compact: compacted,
            conf_state: Some(ConfState { voters: vec![identity.member_id], ..ConfState::default() }),
            storage_version: Some(release.clone()),
        },
        leases: view
            .lease_ids()
            .into_iter()
            .map(|(id, granted)| LeaseRecord { id, ttl: granted.ttl, remaining_ttl: 0 })
            .collect(),
        alarms: view.alarms.iter().map(|&(member_id, alarm)| AlarmMember { member_id, alarm }).collect(),
        auth: Auth { enabled: Some(view.auth.enabled), revision: view.auth.revision },
        users: view.auth.users().cloned().collect(),
        roles: view.auth.roles().cloned().collect(),
        cluster: ClusterSettings { version: Some(release), downgrade: None },
        members: vec![Member {
            id: identity.member_id,
            peer_urls: view.peer_urls.as_deref().unwrap_or_default().to_vec(),
            is_learner: false,
            name: about.member_name.clone(),
            client_urls: about.client_urls.clone(),
        }],
        removed_members: Vec::new(),
        unknown: Vec::new(),
    }
}
