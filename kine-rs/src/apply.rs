//! The state machine: commands in order go in; replies, changes and what must be stored come out.
//!
//! Deterministic: no clock, no randomness, no I/O but loading values, so every member and every backend that applies the same
//! commands ends in the same state. Called by the backends' drivers; `txn` gives KV commands their meaning.

use crate::auth::sessions::SessionChange;
use crate::auth::{Access, Accounts, Caller, Change, Refusal, permit};
use crate::lease::TTL_MAX_SECONDS;
use crate::mvcc::range::Values;
use crate::mvcc::{Granted, Location, Release, State};
use crate::rows::{Batch, Bucket, Changeset, ReadError, Recent, RecordWrite};
use crate::txn::{EvaluateError, REPLY_BYTES_MAX, Transaction};
use prost::Message;
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, AuthenticateResponse, CompactionResponse,
    DeleteRangeRequest, DeleteRangeResponse, DowngradeResponse, LeaseGrantResponse, LeaseRevokeResponse,
    Member, PutRequest, PutResponse, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse, alarm_request::AlarmAction, request_op::Request, response_op::Response,
};
use proto::mvccpb::KeyValue;
use std::sync::Arc;

/// Keys of `Bucket::Meta`; values are 8 bytes big endian where nothing else is said.
pub const META_COMPACT_REVISION: &[u8] = b"compact_revision";
/// The revision at the last compaction: the newest rows may be gone, the revision must not go back.
pub const META_REVISION_FLOOR: &[u8] = b"revision_floor";
pub const META_CLUSTER_ID: &[u8] = b"cluster_id";
pub const META_MEMBER_ID: &[u8] = b"member_id";
pub const META_TERM: &[u8] = b"term";
/// The release a downgrade that was enabled goes to: major and minor, 4 bytes big endian each.
pub const META_DOWNGRADE: &[u8] = b"downgrade";
/// Protobuf `etcdserverpb.Member` with its peer URLs only.
pub const META_PEER_URLS: &[u8] = b"peer_urls";
/// The image of the index that goes with these rows: its id, 16 bytes.
pub const META_INDEX: &[u8] = b"index";

/// A change to be ordered. Requests have passed the checks that need no state.
#[derive(Clone, Debug)]
pub enum Command {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    /// Shared with whoever waits for the reply: a request that was slow is told of in full.
    Txn(Arc<TxnRequest>),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        id: i64,
        ttl: i64,
    },
    LeaseRevoke {
        id: i64,
    },
    Alarm(AlarmRequest),
    Accounts(Change),
    /// A login whose password was compared while the accounts were at `auth_revision`.
    Authenticate {
        user: String,
        token_prefix: String,
        auth_revision: u64,
    },
    /// Begins a downgrade, or ends it.
    Downgrade {
        target: Option<Release>,
    },
    /// The one member is reached at these from now on.
    PeerUrls(Arc<[String]>),
}

#[derive(Debug)]
pub enum Reply {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    Alarm(AlarmResponse),
    Accounts(ResponseHeader),
    Authenticate(AuthenticateResponse),
    Downgrade(DowngradeResponse),
    PeerUrls,
}

impl Command {
    /// Whether the reply can have keys and values in it.
    pub fn returns_values(&self) -> bool {
        match self {
            Command::Put(request) => request.prev_kv,
            Command::DeleteRange(request) => request.prev_kv,
            Command::Txn(request) => txn_returns_values(request),
            _ => false,
        }
    }
}

fn txn_returns_values(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|RequestOp { request }| match request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestPut(put)) => put.prev_kv,
        Some(Request::RequestDeleteRange(delete)) => delete.prev_kv,
        Some(Request::RequestTxn(nested)) => txn_returns_values(nested),
        None => false,
    })
}

impl Reply {
    /// Bytes of the keys and values in it.
    pub fn value_bytes(&self) -> usize {
        match self {
            Reply::Put(response) => response.prev_kv.as_ref().map_or(0, kv_bytes),
            Reply::DeleteRange(response) => response.prev_kvs.iter().map(kv_bytes).sum(),
            Reply::Txn(response) => txn_bytes(response),
            _ => 0,
        }
    }
}

fn kv_bytes(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}

/// Bytes of the keys and values in a reply.
pub fn range_bytes(response: &RangeResponse) -> usize {
    response.kvs.iter().map(kv_bytes).sum()
}

/// The same of a transaction's.
pub fn txn_bytes(response: &TxnResponse) -> usize {
    let bytes = |ResponseOp { response }: &ResponseOp| match response {
        Some(Response::ResponseRange(range)) => range_bytes(range),
        Some(Response::ResponsePut(put)) => put.prev_kv.as_ref().map_or(0, kv_bytes),
        Some(Response::ResponseDeleteRange(deleted)) => deleted.prev_kvs.iter().map(kv_bytes).sum(),
        Some(Response::ResponseTxn(nested)) => txn_bytes(nested),
        None => 0,
    };
    response.responses.iter().map(bytes).sum()
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("revision {requested} is already compacted")]
    Compacted { requested: i64 },
    #[error("revision {requested} is in the future")]
    Future { requested: i64 },
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    #[error("lease {0} exists")]
    LeaseExists(i64),
    #[error("a lease of {0} seconds is too long")]
    LeaseTtlTooLarge(i64),
    #[error("ignore_value or ignore_lease without an existing key")]
    KeyNotFound,
    #[error("a downgrade is in progress")]
    DowngradeInProgress,
    #[error("the database is out of space")]
    NoSpace,
    #[error("a member is corrupt")]
    Corrupt,
    /// Nothing was changed.
    #[error("the reply would have more than {REPLY_BYTES_MAX} bytes")]
    ReplyTooLarge,
    /// Nothing was changed: see `budget`.
    #[error("replies hold all the memory they may")]
    Busy,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<EvaluateError<ReadError>> for ApplyError {
    fn from(error: EvaluateError<ReadError>) -> Self {
        use crate::mvcc::range::RangeError;
        match error {
            EvaluateError::LeaseNotFound(id) => ApplyError::LeaseNotFound(id),
            EvaluateError::KeyNotFound => ApplyError::KeyNotFound,
            EvaluateError::ReplyTooLarge => ApplyError::ReplyTooLarge,
            EvaluateError::Range(RangeError::Compacted { requested, .. }) => {
                ApplyError::Compacted { requested }
            }
            EvaluateError::Range(RangeError::Future { requested, .. }) => ApplyError::Future { requested },
            EvaluateError::Range(RangeError::Load(error)) | EvaluateError::Load(error) => {
                ApplyError::Read(error)
            }
        }
    }
}

/// Who answers: in every reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    pub term: u64,
}

impl Identity {
    pub fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.term,
        }
    }
}

pub struct Machine {
    pub identity: Identity,
    pub state: State,
    /// What the commands applied since the last `take_batch` must store.
    batch: Batch,
    /// What the same commands did to logins.
    sessions: Vec<SessionChange>,
}

impl Machine {
    pub fn new(identity: Identity, state: State) -> Self {
        Machine { identity, state, batch: Batch::default(), sessions: Vec::new() }
    }

    pub fn take_batch(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    pub fn take_sessions(&mut self) -> Vec<SessionChange> {
        std::mem::take(&mut self.sessions)
    }

    /// Goes back to `state`: what was applied since could not be stored.
    pub fn roll_back(&mut self, state: State) {
        self.state = state;
        self.batch = Batch::default();
        self.sessions.clear();
    }

    pub fn apply<V>(
        &mut self,
        caller: &Caller,
        command: &Command,
        stored: &mut V,
    ) -> Result<Reply, ApplyError>
    where
        V: Values<Error = ReadError>,
    {
        self.check_alarms(command)?;
        if self.state.auth.enabled {
            self.check_caller(caller, command)?;
        }
        match command {
            Command::Put(request) => {
                self.transact(stored, |txn| txn.put(request)).map(|mut response: PutResponse| {
                    response.header = self.header();
                    Reply::Put(response)
                })
            }
            Command::DeleteRange(request) => self.transact(stored, |txn| txn.delete_range(request)).map(
                |mut response: DeleteRangeResponse| {
                    response.header = self.header();
                    Reply::DeleteRange(response)
                },
            ),
            Command::Txn(request) => {
                self.transact(stored, |txn| txn.txn(request)).map(|mut response: TxnResponse| {
                    response.header = self.header();
                    Reply::Txn(response)
                })
            }
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl } => self.grant(*id, *ttl),
            Command::LeaseRevoke { id } => self.revoke(*id, stored),
            Command::Alarm(request) => Ok(Reply::Alarm(self.alarm(request))),
            Command::Accounts(change) => self.change_accounts(change.clone()),
            Command::Authenticate { user, token_prefix, auth_revision } => {
                self.authenticate(user, token_prefix, *auth_revision)
            }
            Command::Downgrade { target } => self.downgrade(*target),
            Command::PeerUrls(urls) => Ok(self.change_peer_urls(urls)),
        }
    }

    /// Takes up to `rows_max` rows out that compaction up to `revision` has made invisible; true when none are left but
    /// tombstones that no image of the index covers.
    pub fn collect_garbage(&mut self, rows_max: usize, revision: i64, covered: Location) -> bool {
        let garbage = self.state.take_garbage(rows_max, revision, covered);
        self.batch.removed.extend(garbage.rows);
        !garbage.more
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(self.identity.header(self.state.revision))
    }

    fn transact<V, T>(
        &mut self,
        stored: &mut V,
        evaluate: impl FnOnce(&mut Transaction<'_, Recent<'_, V>>) -> Result<T, EvaluateError<ReadError>>,
    ) -> Result<T, ApplyError>
    where
        V: Values<Error = ReadError>,
    {
        let mut values = Recent { rows: &self.batch.rows, stored };
        let mut transaction = Transaction::new(&mut self.state, &mut values).within(REPLY_BYTES_MAX);
        let response = evaluate(&mut transaction)?;
        let (rows, changes) = transaction.finish();
        if !changes.is_empty() {
            let revision = self.state.revision;
            self.batch.rows.extend(rows);
            self.batch.changesets.push(Arc::new(Changeset { revision, changes }));
        }
        Ok(response)
    }

    fn compact(&mut self, revision: i64) -> Result<Reply, ApplyError> {
        if revision <= self.state.compact_revision {
            return Err(ApplyError::Compacted { requested: revision });
        }
        if revision > self.state.revision {
            return Err(ApplyError::Future { requested: revision });
        }
        self.state.compact_revision = revision;
        self.record(Bucket::Meta, META_COMPACT_REVISION.to_vec(), Some(revision.to_be_bytes().to_vec()));
        let floor = self.state.revision;
        self.record(Bucket::Meta, META_REVISION_FLOOR.to_vec(), Some(floor.to_be_bytes().to_vec()));
        Ok(Reply::Compact(CompactionResponse { header: self.header() }))
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<Reply, ApplyError> {
        // Here and not at the door: a raised alarm is told first.
        if ttl > TTL_MAX_SECONDS {
            return Err(ApplyError::LeaseTtlTooLarge(ttl));
        }
        if self.state.lease(id).is_some() {
            return Err(ApplyError::LeaseExists(id));
        }
        self.state.grant(id, Granted { ttl });
        self.record(Bucket::Lease, id.to_be_bytes().to_vec(), Some(ttl.to_be_bytes().to_vec()));
        Ok(Reply::LeaseGrant(LeaseGrantResponse { header: self.header(), id, ttl, error: String::new() }))
    }

    fn revoke<V>(&mut self, id: i64, stored: &mut V) -> Result<Reply, ApplyError>
    where
        V: Values<Error = ReadError>,
    {
        if self.state.lease(id).is_none() {
            return Err(ApplyError::LeaseNotFound(id));
        }
        let keys = self.state.lease_keys(id);
        self.transact(stored, |txn| {
            txn.delete_keys(keys);
            Ok(())
        })?;
        self.state.forget_lease(id);
        self.record(Bucket::Lease, id.to_be_bytes().to_vec(), None);
        Ok(Reply::LeaseRevoke(LeaseRevokeResponse { header: self.header() }))
    }

    fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let wanted = |alarm: i32| request.alarm == AlarmType::None as i32 || request.alarm == alarm;
        let entry = (request.member_id, request.alarm);
        let concerned: Vec<(u64, i32)> = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                self.state.alarms.iter().copied().filter(|(_, alarm)| wanted(*alarm)).collect()
            }
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                Arc::make_mut(&mut self.state.alarms).insert(entry);
                self.record(Bucket::Alarm, alarm_key(entry), Some(Vec::new()));
                vec![entry]
            }
            Ok(AlarmAction::Deactivate) if Arc::make_mut(&mut self.state.alarms).remove(&entry) => {
                self.record(Bucket::Alarm, alarm_key(entry), None);
                vec![entry]
            }
            _ => Vec::new(),
        };
        let alarms =
            concerned.into_iter().map(|(member_id, alarm)| AlarmMember { member_id, alarm }).collect();
        AlarmResponse { header: self.header(), alarms }
    }

    fn change_accounts(&mut self, change: Change) -> Result<Reply, ApplyError> {
        let mut accounts = Accounts::clone(&self.state.auth);
        let touched = accounts.apply(change)?;
        self.state.auth = Arc::new(accounts);
        self.batch.records.extend(touched.records);
        self.sessions.extend(touched.ended.map(SessionChange::End));
        Ok(Reply::Accounts(self.identity.header(self.state.revision)))
    }

    fn authenticate(
        &mut self,
        user: &str,
        token_prefix: &str,
        auth_revision: u64,
    ) -> Result<Reply, ApplyError> {
        self.state.auth.login(user)?;
        if auth_revision != self.state.auth.revision {
            // The password may have changed since it was compared.
            return Err(Refusal::OldRevision.into());
        }
        let token = format!("{token_prefix}.{}", self.state.next_location);
        self.sessions.push(SessionChange::Begin { token: token.clone(), user: user.to_owned() });
        Ok(Reply::Authenticate(AuthenticateResponse { header: self.header(), token }))
    }

    fn check_caller(&self, caller: &Caller, command: &Command) -> Result<(), Refusal> {
        let state = &self.state;
        match command {
            Command::Put(request) => permit::put(state, caller, request),
            Command::DeleteRange(request) => permit::delete_range(state, caller, request),
            Command::Txn(request) => permit::txn(state, caller, request),
            Command::LeaseRevoke { id } => permit::lease(state, caller, Access::Write, *id),
            Command::LeaseGrant { .. } => state.auth.check_known(caller),
            Command::Alarm(request) if request.action == AlarmAction::Get as i32 => {
                state.auth.check_known(caller)
            }
            Command::Alarm(_)
            | Command::Compact { .. }
            | Command::Accounts(_)
            | Command::Downgrade { .. }
            | Command::PeerUrls(_) => state.auth.check_root(caller),
            Command::Authenticate { .. } => Ok(()),
        }
    }

    fn downgrade(&mut self, target: Option<Release>) -> Result<Reply, ApplyError> {
        if target.is_some() && self.state.downgrade.is_some() {
            return Err(ApplyError::DowngradeInProgress);
        }
        if target != self.state.downgrade {
            self.state.downgrade = target;
            self.record(
                Bucket::Meta,
                META_DOWNGRADE.to_vec(),
                target.map(|release| release.encode().to_vec()),
            );
        }
        Ok(Reply::Downgrade(DowngradeResponse { header: self.header(), version: String::new() }))
    }

    fn change_peer_urls(&mut self, urls: &Arc<[String]>) -> Reply {
        self.state.peer_urls = Some(urls.clone());
        self.record(Bucket::Meta, META_PEER_URLS.to_vec(), Some(encode_peer_urls(urls)));
        Reply::PeerUrls
    }

    /// What a raised alarm forbids: NOSPACE all that grows the store, CORRUPT all that changes keys or leases.
    fn check_alarms(&self, command: &Command) -> Result<(), ApplyError> {
        if self.state.alarms.is_empty() {
            return Ok(());
        }
        let raised = |wanted: AlarmType| self.state.alarms.iter().any(|(_, alarm)| *alarm == wanted as i32);
        let changes = match command {
            Command::Alarm(_)
            | Command::Accounts(_)
            | Command::Authenticate { .. }
            | Command::Downgrade { .. }
            | Command::PeerUrls(_) => false,
            Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) => true,
            Command::Compact { .. } | Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } => true,
        };
        if raised(AlarmType::Corrupt) && changes {
            return Err(ApplyError::Corrupt);
        }
        let grows = match command {
            Command::Put(_) | Command::LeaseGrant { .. } => true,
            Command::Txn(request) => puts(request),
            _ => false,
        };
        if grows && raised(AlarmType::Nospace) {
            return Err(ApplyError::NoSpace);
        }
        Ok(())
    }

    fn record(&mut self, bucket: Bucket, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.batch.records.push(RecordWrite { bucket, key, value });
    }
}

/// As the record `peer_urls` has them: no longer than in the request they came with.
pub fn encode_peer_urls(urls: &[String]) -> Vec<u8> {
    Member { peer_ur_ls: urls.to_vec(), ..Member::default() }.encode_to_vec()
}

pub fn alarm_key((member_id, alarm): (u64, i32)) -> Vec<u8> {
    [member_id.to_be_bytes().as_slice(), &alarm.to_be_bytes()].concat()
}

fn puts(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|RequestOp { request }| match request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => puts(nested),
        _ => false,
    })
}
