//! Making a fresh database from a snapshot file of etcd, or of ours: all of it in one transaction, or nothing.
//!
//! What etcdutl's restore keeps is kept: keys with their history, revisions, leases (which begin anew), alarms, users and roles. Ids of
//! the cluster and its member are new, as there. Called by `kine snapshot restore`.

use crate::apply::{META_COMPACT_REVISION, META_REVISION_FLOOR, alarm_key};
use crate::auth;
use crate::backend::{Endpoint, Filler, OpenError, SqliteError};
use crate::bbolt::ReadAt;
use crate::bbolt::etcd::{
    Auth, Image, RecordKey, RevisionRecord, SnapshotReadError, SnapshotReader, TrailerPolicy,
};
use crate::lease::{TTL_MAX_SECONDS, TTL_MIN_SECONDS};
use crate::mvcc::{REVISION_MAX, Version};
use crate::rows::{Bucket, RecordWrite, Row};
use bytes::Bytes;
use prost::Message;
use proto::mvccpb::KeyValue;

/// How to restore, as etcdutl's flags say it.
#[derive(Clone, Copy, Debug)]
pub struct Restore {
    /// Skipped for a file copied from a data directory.
    pub trailer: TrailerPolicy,
    /// Raises the revision by this much and marks everything before as compacted, so that no client takes the restored
    /// store for the one it knew; 0: leaves both as they are.
    pub bump_revision: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotReadError),
    #[error(transparent)]
    Database(#[from] OpenError),
    #[error("record {main}/{sub}: not a KeyValue")]
    Value { main: i64, sub: i64, source: prost::DecodeError },
    #[error("record {main}/{sub}: it says mod revision {found}, create revision {create}, version {version}")]
    Revisions { main: i64, sub: i64, found: i64, create: i64, version: i64 },
    #[error("the revision {revision} can't be raised by {by}")]
    Bump { revision: i64, by: u64 },
}

impl From<SqliteError> for RestoreError {
    fn from(error: SqliteError) -> Self {
        RestoreError::Database(error.into())
    }
}

/// What was restored, for the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub rows: u64,
    pub revision: i64,
    pub leases: usize,
    /// `bucket` or `bucket/key` of what this release does not know and left out.
    pub unknown: Vec<String>,
}

/// Reads `source` into a new database at `endpoint`, which must not exist or be empty.
///
/// # Errors
/// The snapshot is damaged or not etcd's, the database exists, or it could not be written. Nothing is left of it then.
pub fn restore(source: impl ReadAt, endpoint: &Endpoint, how: Restore) -> Result<Restored, RestoreError> {
    let snapshot = SnapshotReader::open(source, how.trailer)?;
    endpoint.create(|filler| fill(filler, &snapshot, how))
}

fn fill(
    filler: &mut Filler,
    snapshot: &SnapshotReader<impl ReadAt>,
    how: Restore,
) -> Result<Restored, RestoreError> {
    let image = snapshot.image();
    let mut restored =
        Restored { rows: 0, revision: 1, leases: image.leases.len(), unknown: image.unknown.clone() };
    let mut records = snapshot.records();
    while let Some(record) = records.next()? {
        restored.revision = record.key.main.max(1);
        // Without content it only says that the revision was reached.
        if !record.value.is_empty() {
            filler.row(&row(record)?)?;
            restored.rows += 1;
        }
    }
    let mut compacted = image.meta.scheduled_compact.max(image.meta.finished_compact);
    restored.revision = restored.revision.max(compacted.unwrap_or(1));
    if how.bump_revision > 0 {
        let bump = RestoreError::Bump { revision: restored.revision, by: how.bump_revision };
        let raised = restored.revision.checked_add_unsigned(how.bump_revision);
        restored.revision = raised.filter(|revision| *revision <= REVISION_MAX).ok_or(bump)?;
        compacted = Some(restored.revision);
    }
    for write in records_of(image, compacted, restored.revision) {
        filler.record(&write)?;
    }
    Ok(restored)
}

fn row(record: RevisionRecord<'_>) -> Result<Row, RestoreError> {
    let RecordKey { main, sub, tombstone } = record.key;
    let kv = KeyValue::decode(record.value).map_err(|source| RestoreError::Value { main, sub, source })?;
    let sound = kv.mod_revision == main && (1..=main).contains(&kv.create_revision) && kv.version > 0;
    if !tombstone && !sound {
        let (found, create, version) = (kv.mod_revision, kv.create_revision, kv.version);
        return Err(RestoreError::Revisions { main, sub, found, create, version });
    }
    let (version, value) =
        if tombstone { (Version::default(), Bytes::new()) } else { (version(&kv), kv.value) };
    Ok(Row { sub, key: kv.key, version: Version { mod_revision: main, ..version }, value })
}

/// The location is the filler's to give.
fn version(kv: &KeyValue) -> Version {
    Version {
        create_revision: kv.create_revision,
        version: kv.version,
        lease: kv.lease,
        value_len: kv.value.len() as u32,
        ..Version::default()
    }
}

fn records_of(image: &Image, compacted: Option<i64>, revision: i64) -> Vec<RecordWrite> {
    let write = |bucket: Bucket, key: &[u8], value: Vec<u8>| RecordWrite {
        bucket,
        key: key.to_vec(),
        value: Some(value),
    };
    let number = |value: i64| value.to_be_bytes().to_vec();
    let mut all = vec![write(Bucket::Meta, META_REVISION_FLOOR, number(revision))];
    all.extend(compacted.map(|revision| write(Bucket::Meta, META_COMPACT_REVISION, number(revision))));
    for lease in &image.leases {
        // As etcd does when it starts.
        let ttl = lease.ttl.clamp(TTL_MIN_SECONDS, TTL_MAX_SECONDS);
        all.push(write(Bucket::Lease, &lease.id.to_be_bytes(), number(ttl)));
    }
    let alarms = image.alarms.iter().map(|alarm| alarm_key((alarm.member_id, alarm.alarm)));
    all.extend(alarms.map(|alarm| write(Bucket::Alarm, &alarm, Vec::new())));
    let Auth { enabled, revision } = image.auth;
    all.extend(enabled.map(|enabled| write(Bucket::Auth, auth::ENABLED, vec![u8::from(enabled)])));
    if revision > 0 {
        all.push(write(Bucket::Auth, auth::REVISION, revision.to_be_bytes().to_vec()));
    }
    all.extend(image.users.iter().map(|user| write(Bucket::User, &user.name, user.encode_to_vec())));
    all.extend(image.roles.iter().map(|role| write(Bucket::Role, &role.name, role.encode_to_vec())));
    all
}
