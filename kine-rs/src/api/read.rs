//! Reads: ranges, transactions that only read, and ranges in a stream.
//!
//! Reads run on the published view. What is small and in memory is answered on the spot. The rest is planned on a thread that
//! may block, on a view whose rows a pin holds back from compaction; a reply that turns out large is written in pieces while
//! the client reads it (see `reply`). All replies but the smallest hold memory of one budget until they are written; those
//! that find none left wait in line, and a full line is etcd's "too many requests".

use super::Api;
use super::error::{COMPACTED, FUTURE};
use super::kv::blocking;
use super::reply::{Held, Long, LongBody, Message, Rows, Source};
use crate::apply::{range_bytes, txn_bytes};
use crate::auth::{Caller, permit};
use crate::budget::{Taken, UNCOUNTED_BYTES_MAX};
use crate::mvcc::range::{
    KeyRange, RangeError, Values, is_in_key_order, plan, planning_bytes, range, read_revision,
};
use crate::mvcc::{ReadView, State, Version};
use crate::rows::ReadError;
use crate::store::Store;
use crate::txn::{EvaluateError, Transaction};
use bytes::Bytes;
use prost::Message as _;
use proto::etcdserverpb::range_request::SortTarget;
use proto::etcdserverpb::{
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
    request_op::Request as Op,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Response, Status};

/// Keys of one range up to which it is answered on the spot; a longer one would hold up other requests.
const INLINE_KEYS_MAX: i64 = 1000;
/// A reply up to this size is made at once; a larger one is written in pieces. Pages of lists are usually smaller.
const WHOLE_BYTES_MAX: usize = 1 << 20;
/// How long a reply may hold back compaction.
const PIN_MAX: Duration = Duration::from_secs(600);
/// Keys of the first message of a stream, as in etcd.
const FIRST_CHUNK_KEYS: i64 = 10;
/// `response_range` of a ResponseOp, `responses` of a TxnResponse, `range_response` of a RangeStreamResponse.
const RESPONSE_RANGE: u32 = 1;
const RESPONSES: u32 = 3;
const RANGE_RESPONSE: u32 = 1;

impl Api {
    /// Answers a range at the newest state.
    pub(super) async fn range_reply(
        &self,
        caller: &Caller,
        request: &RangeRequest,
    ) -> Result<Response<RangeResponse>, Status> {
        let view = self.store.view();
        permit::range(&view, caller, request)?;
        let missed = match self.range_at_once(&view, request) {
            Ok(answer) => {
                let (mut response, taken) = answer?;
                response.header = Some(self.header(response.header));
                return Ok(holding(response, taken));
            }
            Err(missed) => missed,
        };
        let ranges = vec![request.clone()];
        let (caller, request) = (caller.clone(), request.clone());
        self.planned(missed, ranges, move |api, view| {
            permit::range(view, &caller, &request)?;
            let plan = plan(view, &request, &mut Stored(&api.store))?;
            let header = Some(api.store.identity().header(plan.revision));
            let message = Message::range(header, plan, view);
            if message.bytes() > WHOLE_BYTES_MAX {
                return Ok(Answer::Long(RangeResponse::default(), message));
            }
            let response = range(view, &request, &mut Stored(&api.store))?;
            Ok(Answer::Whole(RangeResponse { header, ..response }, message.bytes()))
        })
        .await
    }

    /// Answers a range of few keys, for this server's own use.
    pub(super) async fn read_range(
        &self,
        caller: &Caller,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        let view = self.store.view();
        permit::range(&view, caller, &request)?;
        if let Ok(answer) = self.range_at_once(&view, &request) {
            return Ok(answer?.0);
        }
        let (store, caller) = (self.store.clone(), caller.clone());
        blocking(move || {
            let (view, _pin) = store.pin(Some(PIN_MAX));
            permit::range(&view, &caller, &request)?;
            Ok(range(&view, &request, &mut Stored(&store))?)
        })
        .await
    }

    /// The answer from memory, unless it needs the disk, takes long or is large.
    fn range_at_once(
        &self,
        view: &ReadView,
        request: &RangeRequest,
    ) -> Result<Result<(RangeResponse, Option<Taken>), Status>, Missed> {
        let bounded = request.range_end.is_empty()
            || request.count_only
            || ((1..=INLINE_KEYS_MAX).contains(&request.limit) && is_in_key_order(request))
            || view.count(KeyRange::new(&request.key, &request.range_end).span(), i64::MAX)
                <= INLINE_KEYS_MAX as u64;
        if !bounded {
            return Err(Missed { bytes: None });
        }
        let mut values = AtOnce::new(&self.store);
        match range(view, request, &mut values) {
            Ok(response) => {
                let taken = self.counted(range_bytes(&response)).ok_or(Missed { bytes: None })?;
                Ok(Ok((response, taken)))
            }
            Err(RangeError::Load(NotAtOnce)) => Err(Missed { bytes: values.wanted }),
            Err(RangeError::Compacted { .. }) => Ok(Err(Status::out_of_range(COMPACTED))),
            Err(RangeError::Future { .. }) => Ok(Err(Status::out_of_range(FUTURE))),
        }
    }

    /// Memory for a reply of this size, if it needs to be counted; `None`: there is none left.
    pub(super) fn counted(&self, bytes: usize) -> Option<Option<Taken>> {
        if bytes <= UNCOUNTED_BYTES_MAX { Some(None) } else { self.store.replies().try_take(bytes).map(Some) }
    }

    /// Answers a transaction that only reads.
    pub(super) async fn txn_reply(
        &self,
        caller: &Caller,
        request: &Arc<TxnRequest>,
    ) -> Result<Response<TxnResponse>, Status> {
        let view = self.store.view();
        permit::txn(&view, caller, request)?;
        match evaluate(&view, request, &mut AtOnce::new(&self.store)) {
            Ok(response) => {
                if let Some(taken) = self.counted(txn_bytes(&response)) {
                    self.store.metrics().operations.count_ranges(response.responses.len());
                    let header = Some(self.header(response.header));
                    return Ok(holding(TxnResponse { header, ..response }, taken));
                }
            }
            Err(EvaluateError::Load(NotAtOnce) | EvaluateError::Range(RangeError::Load(NotAtOnce))) => {}
            Err(EvaluateError::Range(RangeError::Compacted { .. })) => {
                return Err(Status::out_of_range(COMPACTED));
            }
            Err(EvaluateError::Range(RangeError::Future { .. })) => return Err(Status::out_of_range(FUTURE)),
            Err(
                EvaluateError::LeaseNotFound(_) | EvaluateError::KeyNotFound | EvaluateError::ReplyTooLarge,
            ) => {
                unreachable!("a transaction of ranges neither puts nor leases")
            }
        }
        let (caller, request) = (caller.clone(), request.clone());
        self.planned(Missed { bytes: None }, ranges(&request), move |api, view| {
            permit::txn(view, &caller, &request)?;
            let (head, message) = plan_txn(api, view, &request)?;
            if message.bytes() > WHOLE_BYTES_MAX {
                return Ok(Answer::Long(head, message));
            }
            let response = evaluate(view, &request, &mut Stored(&api.store))?;
            let header = Some(api.header(response.header));
            Ok(Answer::Whole(TxnResponse { header, ..response }, message.bytes()))
        })
        .await
    }

    /// The same range in messages that grow to half a request's size, all of one view.
    pub(super) async fn stream_reply<T>(
        &self,
        caller: &Caller,
        request: RangeRequest,
        nothing: T,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
    {
        if request.sort_target != SortTarget::Key as i32 && !request.count_only {
            return self.sorted_stream_reply(caller, request, nothing).await;
        }
        let view = self.store.view();
        permit::range(&view, caller, &request)?;
        let revision = read_revision::<ReadError>(&view, request.revision)?;
        let chunks = Chunks {
            header: self.store.identity().header(view.revision),
            view: view.clone(),
            request_bytes_max: self.limits.request_bytes_max,
            limit: request.limit,
            next: Some(RangeRequest { revision, sort_order: 0, sort_target: 0, ..request }),
            chunk_keys: FIRST_CHUNK_KEYS,
            sent: 0,
        };
        // The later messages may need more: see `Writing`.
        let taken = self.store.replies().take(Message::default().writing_bytes()).await?;
        let rows = Rows::Until { revision };
        let source = Source { store: self.store.clone(), view, rows, messages: Box::new(chunks) };
        Ok(written_in_pieces(source, taken, nothing))
    }

    /// A stream that is sorted has one message: all of it has to be looked at for the first key. etcd sorts each of its
    /// messages by itself, and goes on behind its last key.
    async fn sorted_stream_reply<T: Send + 'static>(
        &self,
        caller: &Caller,
        request: RangeRequest,
        nothing: T,
    ) -> Result<Response<T>, Status> {
        let (ranges, caller) = (vec![request.clone()], caller.clone());
        self.planned(Missed { bytes: None }, ranges, move |api, view| {
            permit::range(view, &caller, &request)?;
            let plan = plan(view, &request, &mut Stored(&api.store))?;
            let header = Some(api.store.identity().header(plan.revision));
            Ok(Answer::Long(nothing, Message::range(header, plan, view).within(RANGE_RESPONSE)))
        })
        .await
    }

    /// Plans a reply where it may block, within the memory that takes, and answers with it.
    async fn planned<T: Send + 'static>(
        &self,
        missed: Missed,
        ranges: Vec<RangeRequest>,
        answer: impl FnOnce(&Api, &ReadView) -> Result<Answer<T>, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let mut bytes = missed.bytes.unwrap_or(WHOLE_BYTES_MAX);
        if !ranges.iter().all(is_in_key_order) {
            let view = self.store.view();
            let measure = move || Ok(ranges.iter().map(|range| planning_bytes(&view, range)).sum::<usize>());
            bytes += blocking(measure).await?;
        }
        let planning =
            if bytes > UNCOUNTED_BYTES_MAX { Some(self.store.replies().take(bytes).await?) } else { None };
        let api = self.clone();
        let (answer, planning, view, pin) = blocking(move || {
            let (view, pin) = api.store.pin(Some(PIN_MAX));
            Ok((answer(&api, &view)?, planning, view, pin))
        })
        .await?;
        match answer {
            Answer::Whole(response, bytes) => {
                let taken = match planning {
                    Some(mut taken) => {
                        taken.shrink(bytes);
                        Some(taken)
                    }
                    // It has grown since it was looked at.
                    None => (bytes > UNCOUNTED_BYTES_MAX).then(|| self.store.replies().owe(bytes)),
                };
                Ok(holding(response, taken))
            }
            Answer::Long(head, message) => {
                message.check_len()?;
                let (bytes, outline) = (message.writing_bytes(), message.outline());
                let taken = match planning {
                    Some(mut taken) if taken.bytes() >= bytes => {
                        taken.shrink(bytes);
                        taken
                    }
                    // Given back first: nobody waits for memory while holding some.
                    planning => {
                        drop(planning);
                        self.store.replies().take(bytes).await?
                    }
                };
                let messages = Box::new(std::iter::once(message));
                let source = Source { store: self.store.clone(), view, rows: Rows::Pinned(pin), messages };
                let mut response = written_in_pieces(source, taken, head);
                response.extensions_mut().insert(outline);
                Ok(response)
            }
        }
    }

    /// The full header of an answer whose evaluation left the revision in it.
    fn header(&self, evaluated: Option<ResponseHeader>) -> ResponseHeader {
        self.store.identity().header(evaluated.map_or(0, |header| header.revision))
    }
}

/// What planning comes to.
enum Answer<T> {
    /// The reply, and how long it is.
    Whole(T, usize),
    /// The message that is written, and what is told of it here.
    Long(T, Message),
}

/// A response that holds memory until it is written.
pub(super) fn holding<T>(message: T, taken: Option<Taken>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(taken) = taken {
        response.extensions_mut().insert(Held::from(taken));
    }
    response
}

/// A response whose body is written while the client reads it; `nothing` stands for its messages.
fn written_in_pieces<T>(source: Source, taken: Taken, nothing: T) -> Response<T> {
    let held = Held::from(taken);
    let mut response = Response::new(nothing);
    response.extensions_mut().insert(LongBody::from(Long::new(source, held.clone())));
    response.extensions_mut().insert(held);
    response
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

/// The reply to a transaction that only reads, which counts it, and the same without its ranges.
fn plan_txn(api: &Api, view: &ReadView, request: &TxnRequest) -> Result<(TxnResponse, Message), Status> {
    let mut state = State::clone(view);
    let mut values = Stored(&api.store);
    let plan = Transaction::new(&mut state, &mut values).plan(request)?;
    api.store.metrics().operations.count_ranges(plan.responses.len());
    let header = Some(api.store.identity().header(view.revision));
    let head = TxnResponse { header, succeeded: plan.succeeded, responses: Vec::new() };
    let mut message = Message::of(&head);
    for range in plan.responses {
        // As etcd: these headers tell the revision only.
        let header = Some(ResponseHeader { revision: view.revision, ..Default::default() });
        let response = Message::range(header, range, view).within(RESPONSE_RANGE);
        message.append(response.within(RESPONSES));
    }
    Ok((head, message))
}

fn ranges(request: &TxnRequest) -> Vec<RangeRequest> {
    let operations = request.success.iter().chain(&request.failure);
    let range = |op: &RequestOp| match &op.request {
        Some(Op::RequestRange(range)) => Some(range.clone()),
        _ => None,
    };
    operations.filter_map(range).collect()
}

/// Why a range was not answered at once.
struct Missed {
    /// Bytes of the values that must be read for it, if that is known.
    bytes: Option<usize>,
}

/// Values of a small reply from memory.
struct AtOnce<'a> {
    store: &'a Store,
    left: usize,
    /// What was asked for in vain.
    wanted: Option<usize>,
}

/// Some value is not in memory, or they are too many.
#[derive(Debug)]
struct NotAtOnce;

impl<'a> AtOnce<'a> {
    fn new(store: &'a Store) -> Self {
        AtOnce { store, left: WHOLE_BYTES_MAX, wanted: None }
    }
}

impl Values for AtOnce<'_> {
    type Error = NotAtOnce;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, NotAtOnce> {
        let bytes = versions.iter().map(|version| version.value_len as usize).sum();
        self.left = self.left.checked_sub(bytes).ok_or(NotAtOnce)?;
        self.store.cached_values(versions).ok_or_else(|| {
            self.wanted = Some(bytes);
            NotAtOnce
        })
    }
}

/// Values from memory or disk; blocks.
struct Stored<'a>(&'a Store);

impl Values for Stored<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.0.stored_values(versions)
    }
}

/// The messages of a stream: chunks that grow as etcd's do.
struct Chunks {
    view: ReadView,
    header: ResponseHeader,
    request_bytes_max: usize,
    limit: i64,
    /// What is left of the range; `None` after the last message.
    next: Option<RangeRequest>,
    chunk_keys: i64,
    sent: i64,
}

impl Iterator for Chunks {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let mut request = self.next.take()?;
        let left = if self.limit > 0 { self.limit - self.sent } else { i64::MAX };
        request.limit = if request.count_only { self.limit } else { self.chunk_keys.min(left) };
        let plan = plan(&self.view, &request, &mut Unneeded).expect("the view has not changed");
        let keys = if request.count_only { 0 } else { plan.count.min(request.limit) };
        self.sent += keys;
        let mut last_key = Vec::new();
        let key_values = Message::key_values(plan.versions, &self.view, |key| {
            last_key.clear();
            last_key.extend_from_slice(key);
        });
        let chunk = if request.count_only || !plan.more || self.sent == self.limit {
            let unsent = if request.count_only { 0 } else { plan.count - keys };
            let count = if request.count_only { plan.count } else { self.sent + unsent };
            let header = RangeResponse { header: Some(self.header), ..Default::default() };
            let mut chunk = Message::of(&header);
            chunk.append(key_values);
            chunk.append(Message::of(&RangeResponse { more: unsent > 0, count, ..Default::default() }));
            chunk
        } else {
            let rest = RangeResponse {
                header: Some(self.header),
                more: plan.more,
                count: plan.count,
                ..Default::default()
            };
            let bytes = key_values.bytes() + rest.encoded_len();
            if bytes < self.request_bytes_max / 2 {
                self.chunk_keys = self.chunk_keys.saturating_mul(2);
            } else if bytes > self.request_bytes_max * 2 {
                self.chunk_keys = (self.chunk_keys / 2).max(1);
            }
            last_key.push(0);
            self.next = Some(RangeRequest { key: last_key.into(), ..request });
            key_values
        };
        Some(chunk.within(RANGE_RESPONSE))
    }
}

/// In key order no value is looked at.
struct Unneeded;

impl Values for Unneeded {
    type Error = std::convert::Infallible;

    fn load(&mut self, _: &[Version]) -> Result<Vec<Bytes>, Self::Error> {
        unreachable!("values of a range in key order are loaded when they are written")
    }
}
