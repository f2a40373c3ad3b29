//! Lock: a mutex as a contest of keys. Whoever has the oldest key has the lock.

use super::Api;
use super::contest::{Contender, Contest, created_at, get, operation, put, revision, unknown};
use super::error::SESSION_EXPIRED;
use crate::txn::check_delete;
use bytes::Bytes;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{DeleteRangeRequest, TxnRequest, TxnResponse};
use proto::mvccpb::KeyValue;
use proto::v3lockpb::lock_server::Lock;
use proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Lock for Api {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        self.acquire(request).await.map(Response::new).map_err(unknown)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        self.release(request).await.map(Response::new).map_err(unknown)
    }
}

impl Api {
    async fn acquire(&self, request: Request<LockRequest>) -> Result<LockResponse, Status> {
        let contest = Contest::new(self, self.caller(&request)?, &request.get_ref().name);
        let lease = contest.lease(request.get_ref().lease).await?;
        let key = contest.key(lease);
        let entered = contest.run(enter(&contest, &key, lease)).await?;
        // The key is there already when the lease has the lock, or waits for it, by another call.
        let mine = first_of(&entered, 0).map(|kv| kv.create_revision);
        let create_revision = mine.unwrap_or_else(|| revision(&entered.header));
        let holder = first_of(&entered, 1).map_or(create_revision, |kv| kv.create_revision);
        if holder == create_revision {
            return Ok(LockResponse { header: entered.header, key });
        }
        contest.wait(&Contender { key: key.clone(), create_revision }).await?;
        let own = contest.read(get(&key)).await?;
        if own.kvs.is_empty() {
            return Err(Status::unknown(SESSION_EXPIRED));
        }
        Ok(LockResponse { header: own.header, key })
    }

    async fn release(&self, request: Request<UnlockRequest>) -> Result<UnlockResponse, Status> {
        let caller = self.caller(&request)?;
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..Default::default() };
        check_delete(&delete)?;
        let (deleted, _) = self.run_delete(caller, delete).await?;
        Ok(UnlockResponse { header: deleted.header })
    }
}

/// Puts the key unless it exists, and tells the oldest.
fn enter(contest: &Contest<'_>, key: &Bytes, lease: i64) -> TxnRequest {
    let first = || operation(Op::RequestRange(contest.first()));
    TxnRequest {
        compare: vec![created_at(key, 0)],
        success: vec![put(key, Bytes::new(), lease), first()],
        failure: vec![operation(Op::RequestRange(get(key))), first()],
    }
}

/// The first key that the range at this place of the transaction found.
fn first_of(response: &TxnResponse, place: usize) -> Option<&KeyValue> {
    match &response.responses.get(place)?.response {
        Some(Answer::ResponseRange(range)) => range.kvs.first(),
        _ => None,
    }
}
