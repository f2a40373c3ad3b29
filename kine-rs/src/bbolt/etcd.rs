//! What etcd keeps in its bbolt file, and the snapshot file around it.
//!
//! For what: the Snapshot RPC feeds a [`SnapshotPlanner`] and then a [`SnapshotWriter`]; the restore command reads with
//! a [`SnapshotReader`]. An [`Image`] is everything except the revision records: small enough to be held, while records
//! are passed one by one. This layer translates, it judges nothing: whether a lease is expired or a role allowed is
//! the store's business.
//!
//! Buckets of etcd 3.4 to 3.7, in the order they are in the file. Integers are big-endian:
//!
//! ```text
//! alarm            protobuf AlarmMember -> empty
//! auth             authEnabled -> 1 byte, 0 or 1;  authRevision -> u64
//! authRoles        name -> protobuf Role
//! authUsers        name -> protobuf User
//! cluster          clusterVersion -> "3.7.0";  downgrade -> JSON {target-version, enabled}
//! key              main revision i64, '_', sub revision i64, 't' on a tombstone -> protobuf KeyValue
//! lease            id i64 -> protobuf {1: id, 2: TTL, 3: remaining TTL}, TTLs in seconds
//! members          hex id -> JSON {id, peerURLs, isLearner, name, clientURLs}
//! members_removed  hex id -> "removed"
//! meta             consistent_index, term -> u64;  confState -> JSON;  storageVersion -> "3.7.0"
//!                  scheduledCompactRev, finishedCompactRev -> a record key with sub revision 0
//! ```
//!
//! A store's revision is the main revision of its last record, or the scheduled compaction's if that is higher.

mod image;
mod record;
mod snapshot;

pub use image::{Auth, ClusterSettings, ConfState, Downgrade, Image, LeaseRecord, Member, Meta};
pub use record::{KeyValueLen, RecordFault, RecordKey};
pub use snapshot::{
    RevisionRecord, RevisionRecords, SnapshotPlan, SnapshotPlanner, SnapshotReadError, SnapshotReader,
    SnapshotWriter, TrailerPolicy,
};

const ALARM: &str = "alarm";
const AUTH: &str = "auth";
const AUTH_ROLES: &str = "authRoles";
const AUTH_USERS: &str = "authUsers";
const CLUSTER: &str = "cluster";
const KEY: &str = "key";
const LEASE: &str = "lease";
const MEMBERS: &str = "members";
const MEMBERS_REMOVED: &str = "members_removed";
const META: &str = "meta";

/// All of them in the order of the file.
const BUCKETS: [&str; 10] =
    [ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META];
