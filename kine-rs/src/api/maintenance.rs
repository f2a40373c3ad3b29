//! Maintenance: status, hashes, alarms, defragmentation, snapshots, and what leaders and downgrades are with one member.

use super::Api;
use super::error::{
    BAD_LEADER_TRANSFEREE, INVALID_DOWNGRADE_VERSION, UNKNOWN_METHOD, WRONG_DOWNGRADE_VERSION,
};
use super::kv::blocking;
use super::read::holding;
use crate::apply::{ApplyError, Command, Reply};
use crate::auth::Caller;
use crate::metrics::Metrics;
use crate::mvcc::Release;
use crate::mvcc::range::read_revision;
use crate::rows::ReadError;
use crate::snapshot::{PIECE_BYTES_MAX, Snapshot, Source, image};
use bytes::Bytes;
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::etcdserverpb::maintenance_server::Maintenance;
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    alarm_request::AlarmAction,
};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status};

/// etcd's size of a snapshot's messages.
const SNAPSHOT_BLOB_BYTES: usize = 32 << 10;
/// What a snapshot has in memory while it is sent: a piece, the rows it is made of, and what the connection holds.
const SNAPSHOT_BYTES: usize = 2 * PIECE_BYTES_MAX + (1 << 20);

#[tonic::async_trait]
impl Maintenance for Api {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let get = request.get_ref().action == AlarmAction::Get as i32;
        let caller = if get { self.known_caller(&request)? } else { self.root_caller(&request)? };
        match self.store.propose(caller, Command::Alarm(request.into_inner())).await? {
            Reply::Alarm(response) => Ok(Response::new(response)),
            other => unreachable!("an alarm is answered with an alarm, not {other:?}"),
        }
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.known_caller(&request)?;
        let size = self.store.size().await?;
        let view = self.store.view();
        let identity = self.store.identity();
        let raised = view.alarms.iter().map(|(member, alarm)| {
            let alarm = AlarmType::try_from(*alarm).map_or("NONE", |alarm| alarm.as_str_name());
            format!("memberID:{member} alarm:{alarm}")
        });
        Ok(Response::new(StatusResponse {
            header: Some(identity.header(view.revision)),
            version: self.about.version.clone(),
            db_size: size.allocated as i64,
            db_size_in_use: size.in_use as i64,
            leader: identity.member_id,
            raft_index: view.next_location,
            raft_applied_index: view.next_location,
            raft_term: identity.term,
            errors: raised.collect(),
            is_learner: false,
            storage_version: view
                .downgrade
                .map_or_else(|| minor_release(&self.about.version), |target| format!("{target}.0")),
            db_size_quota: self.limits.quota_bytes as i64,
            downgrade_info: Some(view.downgrade.map_or_else(DowngradeInfo::default, |target| {
                DowngradeInfo { enabled: true, target_version: format!("{target}.0") }
            })),
        }))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.root_caller(&request)?;
        self.store.defragment().await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.root_caller(&request)?;
        let started = Instant::now();
        let response = self.hash_upto(0).await?;
        self.store.metrics().upkeep.hash_seconds.observe(started.elapsed().as_secs_f64());
        Ok(Response::new(HashResponse { header: response.header, hash: response.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.root_caller(&request)?;
        let started = Instant::now();
        let response = self.hash_upto(request.into_inner().revision).await?;
        self.store.metrics().upkeep.hash_rev_seconds.observe(started.elapsed().as_secs_f64());
        Ok(Response::new(response))
    }

    type SnapshotStream = Pin<Box<dyn futures::Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.root_caller(&request)?;
        let taken = self.store.replies().take(SNAPSHOT_BYTES).await?;
        let (view, pin) = self.store.pin(None);
        let image = image(&view, self.store.identity(), &self.about);
        let source = Source { view, pin, reader: self.store.reader().clone() };
        let snapshot = blocking(move || Ok(Snapshot::plan(source, &image)?)).await?;
        let sent = stream(snapshot, minor_release(&self.about.version), self.store.metrics().clone());
        let sent: Self::SnapshotStream = Box::pin(sent);
        Ok(holding(sent, Some(taken)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.root_caller(&request)?;
        if request.into_inner().target_id != self.store.identity().member_id {
            return Err(Status::failed_precondition(BAD_LEADER_TRANSFEREE));
        }
        // The one member leads already; as etcd without a transfer: no header.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let DowngradeRequest { action, version } = request.into_inner();
        let view = self.store.view();
        let before = view.downgrade.map_or_else(|| release(&self.about.version), |target| target.to_string());
        let mut response = match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => {
                self.downgrade_target(&version)?;
                if view.downgrade.is_some() {
                    return Err(ApplyError::DowngradeInProgress.into());
                }
                DowngradeResponse {
                    header: Some(self.store.identity().header(view.revision)),
                    ..Default::default()
                }
            }
            Ok(DowngradeAction::Enable) => {
                let target = Some(self.downgrade_target(&version)?);
                self.change_downgrade(caller, target).await?
            }
            Ok(DowngradeAction::Cancel) => self.change_downgrade(caller, None).await?,
            Err(_) => return Err(Status::unknown(UNKNOWN_METHOD)),
        };
        response.version = before;
        Ok(Response::new(response))
    }
}

impl Api {
    /// The release that a client wants to go down to: the one before ours.
    fn downgrade_target(&self, version: &str) -> Result<Release, Status> {
        let target =
            parse_release(version).ok_or_else(|| Status::invalid_argument(WRONG_DOWNGRADE_VERSION))?;
        let one_above = Release { minor: target.minor.saturating_add(1), ..target };
        if one_above.to_string() == release(&self.about.version) {
            Ok(target)
        } else {
            Err(Status::invalid_argument(INVALID_DOWNGRADE_VERSION))
        }
    }

    async fn change_downgrade(
        &self,
        caller: Caller,
        target: Option<Release>,
    ) -> Result<DowngradeResponse, Status> {
        match self.store.propose(caller, Command::Downgrade { target }).await? {
            Reply::Downgrade(response) => Ok(response),
            other => unreachable!("a downgrade is answered with a downgrade, not {other:?}"),
        }
    }

    async fn hash_upto(&self, requested: i64) -> Result<HashKvResponse, Status> {
        if let Some(compacted) = self.store.compacted_at(requested)
            && let Ok(hash) = compacted.hash.await
        {
            let header = Some(self.store.identity().header(self.store.view().revision));
            let (compact_revision, hash_revision) = (compacted.compact_revision, compacted.revision);
            return Ok(HashKvResponse { header, hash, compact_revision, hash_revision });
        }
        let (view, pin) = self.store.pin(None);
        // As etcd: below zero there is nothing to hash, and that is said.
        let revision = if requested < 0 { requested } else { read_revision::<ReadError>(&view, requested)? };
        let (compact_revision, current) = (view.compact_revision, view.revision);
        let store = self.store.clone();
        let hash = blocking(move || Ok(store.hash(&view, revision, &pin)?)).await?;
        let header = Some(self.store.identity().header(current));
        Ok(HashKvResponse { header, hash, compact_revision, hash_revision: revision })
    }
}

/// The messages of a snapshot: the file in blobs, then its digest. A client that stops reading stops the work, and loses
/// the snapshot after a while (see `server::stalls` and `backend::Pin`).
fn stream(
    mut snapshot: Snapshot,
    version: String,
    metrics: Arc<Metrics>,
) -> impl futures::Stream<Item = Result<SnapshotResponse, Status>> + Send {
    async_stream::try_stream! {
        let started = Instant::now();
        let mut remaining_bytes = snapshot.file_len();
        let message = |remaining_bytes, blob| SnapshotResponse {
            header: None,
            remaining_bytes,
            blob,
            version: version.clone(),
        };
        loop {
            let (rest, piece) = blocking(move || {
                let piece = snapshot.piece()?;
                Ok((snapshot, piece))
            })
            .await?;
            snapshot = rest;
            let Some(piece) = piece else { break };
            let mut piece = Bytes::from(piece);
            while !piece.is_empty() {
                let blob = piece.split_to(piece.len().min(SNAPSHOT_BLOB_BYTES));
                remaining_bytes -= blob.len() as u64;
                yield message(remaining_bytes, blob);
            }
        }
        if let Some(digest) = snapshot.digest() {
            yield message(0, digest.into());
        }
        metrics.upkeep.snapshot_seconds.observe(started.elapsed().as_secs_f64());
    }
}

/// `3.7.1` -> `3.7`.
fn release(version: &str) -> String {
    let full = minor_release(version);
    full.strip_suffix(".0").unwrap_or(&full).to_owned()
}

/// `3.6` or `3.6.2` -> 3.6, as etcd reads the target of a downgrade.
fn parse_release(version: &str) -> Option<Release> {
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    if let Some(patch) = parts.next() {
        patch.parse::<u32>().ok()?;
    }
    parts.next().is_none().then_some(Release { major, minor })
}

/// `3.7.1` -> `3.7.0`: etcd's cluster and storage versions name the minor release.
pub fn minor_release(version: &str) -> String {
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}.0"),
        _ => version.to_owned(),
    }
}
