//! Everything in a snapshot except the revision records, and its translation to and from bucket records.
//!
//! Invariant: what etcd wrote and we know comes out byte for byte as it went in. What we do not know (a bucket or a
//! setting of a later etcd) is listed by name in [`Image::unknown`], so that a restore can say what it leaves out.

use std::collections::BTreeMap;

use prost::Message;
use proto::authpb::{Role, User};
use proto::etcdserverpb::AlarmMember;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, LEASE, MEMBERS, MEMBERS_REMOVED, META, RecordFault,
    RecordKey,
};

const AUTH_ENABLED: &[u8] = b"authEnabled";
const AUTH_REVISION: &[u8] = b"authRevision";
const CLUSTER_VERSION: &[u8] = b"clusterVersion";
const DOWNGRADE: &[u8] = b"downgrade";
const CONF_STATE: &[u8] = b"confState";
const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
const STORAGE_VERSION: &[u8] = b"storageVersion";
const TERM: &[u8] = b"term";
const REMOVED: &[u8] = b"removed";

/// A bucket's records in order.
pub(super) type Bucket = BTreeMap<Vec<u8>, Vec<u8>>;

/// The state of a store beside its keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    pub meta: Meta,
    pub leases: Vec<LeaseRecord>,
    pub alarms: Vec<AlarmMember>,
    pub auth: Auth,
    pub users: Vec<User>,
    pub roles: Vec<Role>,
    pub cluster: ClusterSettings,
    pub members: Vec<Member>,
    pub removed_members: Vec<u64>,
    /// `bucket` or `bucket/key` of what was read and not understood. Not written.
    pub unknown: Vec<String>,
}

/// The bucket `meta`. What is zero or `None` is not in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Raft index that the content includes. `etcdutl snapshot restore` replaces it.
    pub consistent_index: u64,
    pub term: u64,
    /// Revision of the last compaction asked for.
    pub scheduled_compact: Option<i64>,
    /// Revision of the last compaction whose records are gone.
    pub finished_compact: Option<i64>,
    pub conf_state: Option<ConfState>,
    /// Such as `3.7.0`; etcd before 3.6 has none.
    pub storage_version: Option<String>,
}

/// Raft's membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfState {
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub voters: Vec<u64>,
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub learners: Vec<u64>,
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub voters_outgoing: Vec<u64>,
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
}

/// A lease. TTLs are in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LeaseRecord {
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// As granted.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// At the last checkpoint; 0: none, the lease begins anew.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// The bucket `auth`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Auth {
    /// `None`: authentication was never turned on.
    pub enabled: Option<bool>,
    /// From 1; 0 is not written.
    pub revision: u64,
}

/// The bucket `cluster`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Such as `3.7.0`.
    pub version: Option<String>,
    pub downgrade: Option<Downgrade>,
}

/// A downgrade that is in progress, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downgrade {
    #[serde(rename = "target-version")]
    pub target_version: String,
    pub enabled: bool,
}

/// A member. `etcdutl snapshot restore` replaces all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    pub id: u64,
    #[serde(rename = "peerURLs", deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(
        rename = "clientURLs",
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub client_urls: Vec<String>,
}

impl Image {
    /// The buckets, all of them, empty ones too: etcd expects them to be there.
    pub(super) fn buckets(&self) -> BTreeMap<&'static str, Bucket> {
        BTreeMap::from([
            (ALARM, self.alarms.iter().map(|alarm| (alarm.encode_to_vec(), Vec::new())).collect()),
            (AUTH, self.auth.bucket()),
            (AUTH_ROLES, self.roles.iter().map(|role| (role.name.to_vec(), role.encode_to_vec())).collect()),
            (AUTH_USERS, self.users.iter().map(|user| (user.name.to_vec(), user.encode_to_vec())).collect()),
            (CLUSTER, self.cluster.bucket()),
            (
                LEASE,
                self.leases
                    .iter()
                    .map(|lease| (lease.id.to_be_bytes().to_vec(), lease.encode_to_vec()))
                    .collect(),
            ),
            (MEMBERS, self.members.iter().map(|member| (member_key(member.id), json(member))).collect()),
            (
                MEMBERS_REMOVED,
                self.removed_members.iter().map(|id| (member_key(*id), REMOVED.to_vec())).collect(),
            ),
            (META, self.meta.bucket()),
        ])
    }

    /// Takes a record of any bucket but `key`.
    pub(super) fn take(&mut self, bucket: &str, key: &[u8], value: &[u8]) -> Result<(), RecordFault> {
        match bucket {
            ALARM => self.alarms.push(AlarmMember::decode(key)?),
            AUTH_ROLES => {
                let role = Role::decode(value)?;
                same_name(key, &role.name)?;
                self.roles.push(role);
            }
            AUTH_USERS => {
                let user = User::decode(value)?;
                same_name(key, &user.name)?;
                self.users.push(user);
            }
            LEASE => {
                let lease = LeaseRecord::decode(value)?;
                if u64_be(key)? != lease.id as u64 {
                    return Err(RecordFault::OtherName(format!("lease {:016x}", lease.id)));
                }
                self.leases.push(lease);
            }
            MEMBERS => {
                let member: Member = serde_json::from_slice(value)?;
                if member_id(key)? != member.id {
                    return Err(RecordFault::OtherName(format!("member {:x}", member.id)));
                }
                self.members.push(member);
            }
            MEMBERS_REMOVED => self.removed_members.push(member_id(key)?),
            _ => return self.take_setting(bucket, key, value),
        }
        Ok(())
    }

    fn take_setting(&mut self, bucket: &str, key: &[u8], value: &[u8]) -> Result<(), RecordFault> {
        match (bucket, key) {
            (AUTH, AUTH_ENABLED) => self.auth.enabled = Some(value == [1]),
            (AUTH, AUTH_REVISION) => self.auth.revision = u64_be(value)?,
            (CLUSTER, CLUSTER_VERSION) => self.cluster.version = Some(text(value)?),
            (CLUSTER, DOWNGRADE) => self.cluster.downgrade = Some(serde_json::from_slice(value)?),
            (META, CONF_STATE) => self.meta.conf_state = Some(serde_json::from_slice(value)?),
            (META, CONSISTENT_INDEX) => self.meta.consistent_index = u64_be(value)?,
            (META, FINISHED_COMPACT) => self.meta.finished_compact = Some(RecordKey::decode(value)?.main),
            (META, SCHEDULED_COMPACT) => self.meta.scheduled_compact = Some(RecordKey::decode(value)?.main),
            (META, STORAGE_VERSION) => self.meta.storage_version = Some(text(value)?),
            (META, TERM) => self.meta.term = u64_be(value)?,
            _ => self.unknown.push(format!("{bucket}/{}", key.escape_ascii())),
        }
        Ok(())
    }
}

impl Meta {
    fn bucket(&self) -> Bucket {
        let number = |n: u64| (n != 0).then(|| n.to_be_bytes().to_vec());
        let revision =
            |main: Option<i64>| main.map(|main| RecordKey { main, sub: 0, tombstone: false }.encode());
        present([
            (CONF_STATE, self.conf_state.as_ref().map(json)),
            (CONSISTENT_INDEX, number(self.consistent_index)),
            (FINISHED_COMPACT, revision(self.finished_compact)),
            (SCHEDULED_COMPACT, revision(self.scheduled_compact)),
            (STORAGE_VERSION, self.storage_version.as_ref().map(|version| version.clone().into_bytes())),
            (TERM, number(self.term)),
        ])
    }
}

impl Auth {
    fn bucket(self) -> Bucket {
        present([
            (AUTH_ENABLED, self.enabled.map(|enabled| vec![u8::from(enabled)])),
            (AUTH_REVISION, (self.revision != 0).then(|| self.revision.to_be_bytes().to_vec())),
        ])
    }
}

impl ClusterSettings {
    fn bucket(&self) -> Bucket {
        present([
            (CLUSTER_VERSION, self.version.as_ref().map(|version| version.clone().into_bytes())),
            (DOWNGRADE, self.downgrade.as_ref().map(json)),
        ])
    }
}

fn present<const N: usize>(settings: [(&[u8], Option<Vec<u8>>); N]) -> Bucket {
    settings.into_iter().filter_map(|(key, value)| Some((key.to_vec(), value?))).collect()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers, strings and lists of them are JSON")
}

fn member_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

fn member_id(key: &[u8]) -> Result<u64, RecordFault> {
    let text = std::str::from_utf8(key).map_err(|_| RecordFault::MemberId)?;
    u64::from_str_radix(text, 16).map_err(|_| RecordFault::MemberId)
}

fn u64_be(bytes: &[u8]) -> Result<u64, RecordFault> {
    let fault = RecordFault::Length { actual: bytes.len(), expected: 8 };
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| fault)?))
}

fn text(bytes: &[u8]) -> Result<String, RecordFault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| RecordFault::Text)
}

fn same_name(key: &[u8], name: &[u8]) -> Result<(), RecordFault> {
    if key == name { Ok(()) } else { Err(RecordFault::OtherName(name.escape_ascii().to_string())) }
}

/// Go writes an absent list as `null`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
