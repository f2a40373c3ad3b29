//! KV: Range, RangeStream, Put, DeleteRange, Txn, Compact.
//!
//! Writes are checked and ordered here; what only reads is answered by `read`.

use super::Api;
use super::error::{NO_SPACE, REQUEST_TOO_LARGE};
use super::read::holding;
use crate::apply::{Command, Reply};
use crate::auth::Caller;
use crate::backend::Answer;
use crate::budget::Taken;
use crate::txn::{check_delete, check_put, check_range, check_txn, is_read_only};
use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::kv_server::Kv;
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, TxnRequest,
    TxnResponse, alarm_request::AlarmAction, request_op::Request as Op,
};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status};

/// etcd wraps a request before it measures it: id, tag and lengths.
const ENVELOPE_BYTES: usize = 16;

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let started = Instant::now();
        check_range(request.get_ref())?;
        let caller = self.caller(&request)?;
        self.store.metrics().operations.ranges.inc();
        let request = request.into_inner();
        let answer = self.range_reply(&caller, &request).await;
        self.range_done(&request, &answer, started.elapsed());
        answer
    }

    type RangeStreamStream = Pin<Box<dyn futures::Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        check_range(request.get_ref())?;
        check_stream(request.get_ref())?;
        let caller = self.caller(&request)?;
        // What is sent is the body that comes with it.
        let nothing: Self::RangeStreamStream = Box::pin(futures::stream::empty());
        self.stream_reply(&caller, request.into_inner(), nothing).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let started = Instant::now();
        check_put(request.get_ref())?;
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        self.check_size(&request)?;
        self.check_quota(put_cost(&request)).await?;
        own(&mut request);
        // The key and value are shared, not copied.
        let asked = request.clone();
        let answer = match self.store.propose_counted(caller, Command::Put(request)).await {
            Ok(Answer { reply: Reply::Put(response), held }) => {
                self.store.metrics().operations.puts.inc();
                Ok(holding(response, held))
            }
            Ok(Answer { reply: other, .. }) => unreachable!("a put is answered with a put, not {other:?}"),
            Err(error) => Err(error.into()),
        };
        self.put_done(&asked, &answer, started.elapsed());
        answer
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let started = Instant::now();
        check_delete(request.get_ref())?;
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let answer = self.run_delete(caller, request.clone()).await;
        let answer = answer.map(|(response, held)| holding(response, held));
        self.delete_done(&request, &answer, started.elapsed());
        answer
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let started = Instant::now();
        check_txn(request.get_ref(), self.limits.txn_operations_max)?;
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        own_puts(&mut request);
        let request = Arc::new(request);
        let answer = if is_read_only(&request) {
            self.txn_reply(&caller, &request).await
        } else {
            let answer = self.run_txn(caller, request.clone()).await;
            answer.map(|(response, held)| holding(response, held))
        };
        self.txn_done(&request, &answer, started.elapsed());
        answer
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let CompactionRequest { revision, physical } = request.into_inner();
        let reply = if physical {
            self.store.compact_physically(caller, revision).await?
        } else {
            self.store.propose(caller, Command::Compact { revision }).await?
        };
        match reply {
            Reply::Compact(response) => Ok(Response::new(response)),
            other => unreachable!("a compaction is answered with a compaction, not {other:?}"),
        }
    }
}

impl Api {
    /// Deletes what a checked request names.
    pub(super) async fn run_delete(
        &self,
        caller: Caller,
        request: DeleteRangeRequest,
    ) -> Result<(DeleteRangeResponse, Option<Taken>), Status> {
        self.check_size(&request)?;
        let Answer { reply, held } =
            self.store.propose_counted(caller, Command::DeleteRange(request)).await?;
        match reply {
            Reply::DeleteRange(response) => {
                self.store.metrics().operations.deletes.inc();
                Ok((response, held))
            }
            other => unreachable!("a delete is answered with a delete, not {other:?}"),
        }
    }

    /// Orders a checked transaction that owns its puts.
    pub(super) async fn run_txn(
        &self,
        caller: Caller,
        request: Arc<TxnRequest>,
    ) -> Result<(TxnResponse, Option<Taken>), Status> {
        self.check_size(&*request)?;
        self.check_quota(txn_cost(&request)).await?;
        let Answer { reply, held } = self.store.propose_counted(caller, Command::Txn(request)).await?;
        match reply {
            Reply::Txn(response) => {
                self.store.metrics().operations.count_txn(&response.responses);
                Ok((response, held))
            }
            other => unreachable!("a transaction is answered with a transaction, not {other:?}"),
        }
    }

    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() + ENVELOPE_BYTES > self.limits.request_bytes_max {
            return Err(Status::invalid_argument(REQUEST_TOO_LARGE));
        }
        Ok(())
    }

    /// Refuses what would grow the database over its quota, and raises the alarm that says so.
    pub(super) async fn check_quota(&self, cost: u64) -> Result<(), Status> {
        let quota = self.limits.quota_bytes;
        if quota == 0 || cost == 0 || self.store.allocated() + cost <= quota {
            return Ok(());
        }
        let alarm = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: self.store.identity().member_id,
            alarm: AlarmType::Nospace as i32,
        };
        self.store.propose(Caller::Server, Command::Alarm(alarm)).await?;
        Err(Status::resource_exhausted(NO_SPACE))
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// What etcd does not stream; it says so before it asks who is there.
fn check_stream(request: &RangeRequest) -> Result<(), Status> {
    let natural = request.sort_order == 0 || (request.sort_order == 1 && request.sort_target == 0);
    if !natural {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let filters = request.min_mod_revision | request.max_mod_revision;
    if filters != 0 || request.min_create_revision != 0 || request.max_create_revision != 0 {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// What etcd reckons a put to cost, in bytes.
fn put_cost(put: &PutRequest) -> u64 {
    const PUT_OVERHEAD_BYTES: usize = 256;
    (PUT_OVERHEAD_BYTES + put.key.len() + put.value.len()) as u64
}

/// The dearer of both branches.
fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |operations: &[RequestOp]| -> u64 {
        operations
            .iter()
            .map(|RequestOp { request }| match request {
                Some(Op::RequestPut(put)) => put_cost(put),
                Some(Op::RequestTxn(nested)) => txn_cost(nested),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

/// Copies what will be stored to its exact size: a slice of the request's buffer would keep all of it.
fn own(put: &mut PutRequest) {
    put.key = Bytes::copy_from_slice(&put.key);
    put.value = Bytes::copy_from_slice(&put.value);
}

/// The same for all puts of a transaction.
pub(super) fn own_puts(txn: &mut TxnRequest) {
    for RequestOp { request } in txn.success.iter_mut().chain(&mut txn.failure) {
        match request {
            Some(Op::RequestPut(put)) => own(put),
            Some(Op::RequestTxn(nested)) => own_puts(nested),
            _ => {}
        }
    }
}
