//! KV: Range, RangeStream, Put, DeleteRange, Txn, Compact.
//!
//! Reads run on the published view; from memory on the spot, from disk (or when long) on a blocking thread.

use super::Api;
use super::error::{COMPACTED, NO_SPACE, REQUEST_TOO_LARGE};
use crate::apply::{Command, Reply};
use crate::auth::{Caller, Refusal, permit};
use crate::mvcc::range::{KeyRange, RangeError, Values, range};
use crate::mvcc::{ReadView, State};
use crate::rows::ReadError;
use crate::store::{NotCached, Store};
use crate::txn::{EvaluateError, Transaction, check_delete, check_put, check_range, check_txn, is_read_only};
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

/// Keys of one range up to which it is answered on the spot; a longer one would hold up other requests.
const INLINE_KEYS_MAX: i64 = 1000;
/// How often a read at "latest" starts over when compaction dropped a row under it.
const RETRIES_MAX: usize = 16;
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
        let answer = self.read_range(&caller, request.clone()).await;
        self.range_done(&request, &answer, started.elapsed());
        answer.map(Response::new)
    }

    type RangeStreamStream = Pin<Box<dyn futures::Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        check_range(request.get_ref())?;
        check_stream(request.get_ref())?;
        let caller = self.caller(&request)?;
        Ok(Response::new(Box::pin(self.clone().stream_range(caller, request.into_inner()))))
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
        let answer = match self.store.propose(caller, Command::Put(request)).await {
            Ok(Reply::Put(response)) => {
                self.store.metrics().operations.puts.inc();
                Ok(response)
            }
            Ok(other) => unreachable!("a put is answered with a put, not {other:?}"),
            Err(error) => Err(error.into()),
        };
        self.put_done(&asked, &answer, started.elapsed());
        answer.map(Response::new)
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
        self.delete_done(&request, &answer, started.elapsed());
        answer.map(Response::new)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let started = Instant::now();
        check_txn(request.get_ref(), self.limits.txn_operations_max)?;
        let caller = self.caller(&request)?;
        let mut request = request.into_inner();
        own_puts(&mut request);
        let request = Arc::new(request);
        let answer = self.run_txn(caller, request.clone()).await;
        self.txn_done(&request, &answer, started.elapsed());
        answer.map(Response::new)
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
    ) -> Result<DeleteRangeResponse, Status> {
        self.check_size(&request)?;
        match self.store.propose(caller, Command::DeleteRange(request)).await? {
            Reply::DeleteRange(response) => {
                self.store.metrics().operations.deletes.inc();
                Ok(response)
            }
            other => unreachable!("a delete is answered with a delete, not {other:?}"),
        }
    }

    /// Runs a checked transaction that owns its puts.
    pub(super) async fn run_txn(
        &self,
        caller: Caller,
        request: Arc<TxnRequest>,
    ) -> Result<TxnResponse, Status> {
        if is_read_only(&request) {
            let response = self.read_txn(&caller, request).await?;
            self.store.metrics().operations.count_txn(&response.responses);
            return Ok(response);
        }
        self.check_size(&*request)?;
        self.check_quota(txn_cost(&request)).await?;
        match self.store.propose(caller, Command::Txn(request)).await? {
            Reply::Txn(response) => {
                self.store.metrics().operations.count_txn(&response.responses);
                Ok(response)
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

    /// Answers a range at the newest state, with a full header.
    pub async fn read_range(&self, caller: &Caller, request: RangeRequest) -> Result<RangeResponse, Status> {
        let view = self.store.view();
        permit::range(&view, caller, &request)?;
        let mut response = match self.range_inline(&view, &request) {
            Some(result) => result?,
            None => {
                let (store, caller) = (self.store.clone(), caller.clone());
                blocking(move || {
                    read(&store, request.revision, |view| {
                        permit::range(view, &caller, &request)?;
                        range(view, &request, &mut store.stored_values()).map_err(Into::into)
                    })
                })
                .await?
            }
        };
        let revision = response.header.map_or(0, |header| header.revision);
        response.header = Some(self.store.identity().header(revision));
        Ok(response)
    }

    /// The answer from memory, or `None` when it needs the disk or takes long.
    fn range_inline(&self, view: &ReadView, request: &RangeRequest) -> Option<Result<RangeResponse, Status>> {
        let bounded = request.range_end.is_empty()
            || request.count_only
            || (1..=INLINE_KEYS_MAX).contains(&request.limit)
            || view.count(KeyRange::new(&request.key, &request.range_end).span(), i64::MAX)
                <= INLINE_KEYS_MAX as u64;
        if !bounded {
            return None;
        }
        match range(view, request, &mut self.store.cached_values()) {
            Ok(response) => Some(Ok(response)),
            Err(RangeError::Load(NotCached)) => None,
            Err(RangeError::Compacted { .. }) => Some(Err(Status::out_of_range(COMPACTED))),
            Err(RangeError::Future { .. }) => Some(Err(Status::out_of_range(super::error::FUTURE))),
        }
    }

    async fn read_txn(&self, caller: &Caller, request: Arc<TxnRequest>) -> Result<TxnResponse, Status> {
        let view = self.store.view();
        permit::txn(&view, caller, &request)?;
        let inline = evaluate(&view, &request, &mut self.store.cached_values());
        let mut response = match inline {
            Ok(response) => response,
            Err(EvaluateError::Load(NotCached) | EvaluateError::Range(RangeError::Load(NotCached))) => {
                let (store, caller) = (self.store.clone(), caller.clone());
                blocking(move || {
                    read(&store, 0, |view| {
                        permit::txn(view, &caller, &request)?;
                        evaluate(view, &request, &mut store.stored_values()).map_err(Into::into)
                    })
                })
                .await?
            }
            Err(EvaluateError::Range(RangeError::Compacted { .. })) => {
                return Err(Status::out_of_range(COMPACTED));
            }
            Err(EvaluateError::Range(RangeError::Future { .. })) => {
                return Err(Status::out_of_range(super::error::FUTURE));
            }
            Err(EvaluateError::LeaseNotFound(_) | EvaluateError::KeyNotFound) => {
                unreachable!("a transaction of ranges neither puts nor leases")
            }
        };
        let revision = response.header.map_or(0, |header| header.revision);
        response.header = Some(self.store.identity().header(revision));
        Ok(response)
    }

    /// The same range in chunks that grow to half a request's size, all at the revision of the first.
    fn stream_range(
        self,
        caller: Caller,
        request: RangeRequest,
    ) -> impl futures::Stream<Item = Result<RangeStreamResponse, Status>> + Send {
        const FIRST_CHUNK_KEYS: i64 = 10;
        async_stream::try_stream! {
            let mut chunk_keys = FIRST_CHUNK_KEYS;
            let mut next = request.clone();
            let mut sent: i64 = 0;
            let mut header = None;
            loop {
                let left = if request.limit > 0 { request.limit - sent } else { i64::MAX };
                next.limit = if request.count_only { request.limit } else { chunk_keys.min(left) };
                let mut chunk = self.read_range(&caller, next.clone()).await?;
                let opened = *header.get_or_insert_with(|| chunk.header.unwrap_or_default());
                if next.revision <= 0 {
                    next.revision = opened.revision;
                }
                sent += chunk.kvs.len() as i64;
                let last = request.count_only || !chunk.more || sent == request.limit;
                if last {
                    let unsent = chunk.count - chunk.kvs.len() as i64;
                    chunk.header = Some(opened);
                    chunk.count = if request.count_only { chunk.count } else { sent + unsent };
                    chunk.more = unsent > 0 && !request.count_only;
                    yield RangeStreamResponse { range_response: Some(chunk) };
                    break;
                }
                let bytes = chunk.encoded_len();
                if let Some(kv) = chunk.kvs.last() {
                    next.key = [kv.key.as_ref(), &[0]].concat().into();
                }
                (chunk.header, chunk.more, chunk.count) = (None, false, 0);
                yield RangeStreamResponse { range_response: Some(chunk) };
                if bytes < self.limits.request_bytes_max / 2 {
                    chunk_keys = chunk_keys.saturating_mul(2);
                } else if bytes > self.limits.request_bytes_max * 2 {
                    chunk_keys = (chunk_keys / 2).max(1);
                }
            }
        }
    }
}

/// Runs a transaction that only reads on a view.
fn evaluate<V: Values>(
    view: &State,
    request: &TxnRequest,
    values: &mut V,
) -> Result<TxnResponse, EvaluateError<V::Error>> {
    let mut state = view.clone();
    Transaction::new(&mut state, values).txn(request)
}

/// Reads from a fresh view, and again from a fresher one when compaction dropped a row of it meanwhile. A read pinned to a
/// revision does not start over: that revision is compacted.
fn read<T>(
    store: &Store,
    pinned: i64,
    attempt: impl Fn(&State) -> Result<T, ReadOutcome>,
) -> Result<T, Status> {
    for _ in 0..RETRIES_MAX {
        match attempt(&store.view()) {
            Ok(response) => return Ok(response),
            Err(ReadOutcome::Gone) if pinned <= 0 => {}
            Err(ReadOutcome::Gone) => return Err(Status::out_of_range(COMPACTED)),
            Err(ReadOutcome::Failed(status)) => return Err(status),
        }
    }
    Err(Status::unavailable("etcdserver: request timed out"))
}

enum ReadOutcome {
    Gone,
    Failed(Status),
}

impl From<Refusal> for ReadOutcome {
    fn from(refusal: Refusal) -> Self {
        ReadOutcome::Failed(refusal.into())
    }
}

impl From<RangeError<ReadError>> for ReadOutcome {
    fn from(error: RangeError<ReadError>) -> Self {
        match error {
            RangeError::Load(ReadError::Gone(_)) => ReadOutcome::Gone,
            error => ReadOutcome::Failed(error.into()),
        }
    }
}

impl From<EvaluateError<ReadError>> for ReadOutcome {
    fn from(error: EvaluateError<ReadError>) -> Self {
        match error {
            EvaluateError::Load(ReadError::Gone(_)) => ReadOutcome::Gone,
            EvaluateError::Range(error) => error.into(),
            error => ReadOutcome::Failed(error.into()),
        }
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
