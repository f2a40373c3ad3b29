//! Maintenance: status, hashes, alarms, defragmentation.

use super::Api;
use super::kv::blocking;
use crate::apply::{Command, Reply};
use crate::mvcc::hash::Hasher;
use crate::mvcc::range::read_revision;
use crate::rows::{ReadError, ScanFrom};
use proto::etcdserverpb::maintenance_server::Maintenance;
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    alarm_request::AlarmAction,
};
use std::pin::Pin;
use tonic::{Request, Response, Status};

/// Rows and bytes read at a time while hashing.
const HASH_ROWS_MAX: usize = 1000;
const HASH_BYTES_MAX: usize = 4 << 20;

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
            format!("memberID:{member} alarm:{alarm} ")
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
            storage_version: minor_release(&self.about.version),
            db_size_quota: self.limits.quota_bytes as i64,
            downgrade_info: Some(DowngradeInfo::default()),
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
        let response = self.hash_upto(0).await?;
        Ok(Response::new(HashResponse { header: response.header, hash: response.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.root_caller(&request)?;
        self.hash_upto(request.into_inner().revision).await.map(Response::new)
    }

    type SnapshotStream = Pin<Box<dyn futures::Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.root_caller(&request)?;
        Err(Status::unimplemented("etcdserver: snapshot is not supported yet"))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.root_caller(&request)?;
        Err(Status::unimplemented("etcdserver: this store has one member"))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.root_caller(&request)?;
        Err(Status::unimplemented("etcdserver: downgrade is not supported yet"))
    }
}

impl Api {
    async fn hash_upto(&self, requested: i64) -> Result<HashKvResponse, Status> {
        let view = self.store.view();
        // As etcd: below zero there is nothing to hash, and that is said.
        let revision = if requested < 0 { requested } else { read_revision::<ReadError>(&view, requested)? };
        let (compact_revision, current) = (view.compact_revision, view.revision);
        let reader = self.store.reader().clone();
        let hash = blocking(move || {
            let mut hasher = Hasher::new(&view, revision);
            let mut from = ScanFrom::Revision(0);
            'rows: loop {
                let rows = reader.scan(from, HASH_ROWS_MAX, HASH_BYTES_MAX)?;
                let Some(last) = rows.last() else { break };
                from = ScanFrom::Location(last.version.location + 1);
                for row in &rows {
                    if !hasher.row(row) {
                        break 'rows;
                    }
                }
            }
            Ok(hasher.finish())
        })
        .await?;
        let header = Some(self.store.identity().header(current));
        Ok(HashKvResponse { header, hash, compact_revision, hash_revision: revision })
    }
}

/// `3.7.1` -> `3.7.0`: etcd's cluster and storage versions name the minor release.
pub fn minor_release(version: &str) -> String {
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}.0"),
        _ => version.to_owned(),
    }
}
