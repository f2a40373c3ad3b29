//! Requests on keys that were slow: counted, timed and logged once they are answered.
//!
//! Nothing is written, formatted or measured twice on the way: the caller looks at the clock before and after, and what a
//! line says is put together only when there is a line. The names of its fields are etcd's, as people search logs for them.
//! A long reply is planned then, and written while its client reads it: how fast that goes says nothing of this server.

use super::Api;
use super::reply::{Counts, Outline};
use crate::config::SlowRequests;
use crate::describe;
use crate::metrics::requests::Kind;
use crate::txn::is_read_only;
use prost::Message;
use proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse, response_op::Response as Reply,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Response, Status};

/// What a request is measured by, and who sent it.
#[derive(Clone, Debug, Default)]
pub struct Slow {
    pub limits: SlowRequests,
    /// The client's address.
    pub remote: Arc<str>,
}

/// What a line says of a request and its answer; -1: unknown.
struct Facts {
    request_count: i64,
    request_size: i64,
    response_count: i64,
    response_size: i64,
    content: String,
}

impl Slow {
    /// A unary request of whose content nothing is said.
    pub fn unary(&self, method: &str, took: Duration) {
        let facts = || Facts {
            request_count: -1,
            request_size: -1,
            response_count: -1,
            response_size: -1,
            content: String::new(),
        };
        self.log(method, took, facts);
    }

    /// As etcd: what is slow at `warn`, everything at `debug` when that is logged.
    fn log(&self, method: &str, took: Duration, facts: impl FnOnce() -> Facts) {
        let debug = tracing::enabled!(tracing::Level::DEBUG);
        if !debug && self.limits.unary.is_none_or(|limit| took <= limit) {
            return;
        }
        let Facts { request_count, request_size, response_count, response_size, content } = facts();
        let started = crate::logs::time((SystemTime::now() - took).into());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    "start time" = started,
                    "time spent" = ?took,
                    remote = &*self.remote,
                    "response type" = method,
                    "request count" = request_count,
                    "request size" = request_size,
                    "response count" = response_count,
                    "response size" = response_size,
                    "request content" = content,
                    "request stats"
                )
            };
        }
        if debug { line!(debug) } else { line!(warn) }
    }
}

impl Api {
    pub(super) fn range_done(
        &self,
        request: &RangeRequest,
        answer: &Result<Response<RangeResponse>, Status>,
        took: Duration,
    ) {
        self.store.metrics().requests.observe(Kind::Range, answer.is_ok(), took);
        self.slow_read(
            "read-only range ",
            took,
            || describe::range(request),
            || match answer.as_ref().map(of_range) {
                Ok(outline) => format!("{} size:{}", counts(&outline), outline.bytes),
                Err(_) => String::new(),
            },
        );
        self.slow.log("/etcdserverpb.KV/Range", took, || {
            let outline = answer.as_ref().map(of_range).ok();
            let all = outline.iter().flat_map(|outline| &outline.ranges).map(|counts| counts.all).sum();
            Facts {
                request_count: 0,
                request_size: request.encoded_len() as i64,
                response_count: all,
                response_size: outline.map_or(0, |outline| outline.bytes as i64),
                content: describe::range(request),
            }
        });
    }

    pub(super) fn put_done(
        &self,
        request: &PutRequest,
        answer: &Result<Response<PutResponse>, Status>,
        took: Duration,
    ) {
        self.slow.log("/etcdserverpb.KV/Put", took, || Facts {
            request_count: 1,
            request_size: request.encoded_len() as i64,
            response_count: 0,
            response_size: answer.as_ref().map_or(0, |response| response.get_ref().encoded_len() as i64),
            content: describe::put(request),
        });
    }

    pub(super) fn delete_done(
        &self,
        request: &DeleteRangeRequest,
        answer: &Result<Response<DeleteRangeResponse>, Status>,
        took: Duration,
    ) {
        self.slow.log("/etcdserverpb.KV/DeleteRange", took, || Facts {
            request_count: 0,
            request_size: request.encoded_len() as i64,
            response_count: answer.as_ref().map_or(0, |response| response.get_ref().deleted),
            response_size: answer.as_ref().map_or(0, |response| response.get_ref().encoded_len() as i64),
            content: describe::delete_range(request),
        });
    }

    pub(super) fn txn_done(
        &self,
        request: &TxnRequest,
        answer: &Result<Response<TxnResponse>, Status>,
        took: Duration,
    ) {
        if is_read_only(request) {
            self.store.metrics().requests.observe(Kind::ReadonlyTxn, answer.is_ok(), took);
            self.slow_read(
                "read-only txn ",
                took,
                || describe::txn(request),
                || match answer.as_ref().map(of_txn) {
                    Ok(outline) => format!("responses:<{}> size:{}", counts(&outline), outline.bytes),
                    Err(_) => String::new(),
                },
            );
        }
        self.slow.log("/etcdserverpb.KV/Txn", took, || {
            let run: &[RequestOp] = match answer {
                Ok(response) if response.get_ref().succeeded => &request.success,
                Ok(_) => &request.failure,
                Err(_) => &[],
            };
            Facts {
                request_count: run.len() as i64,
                request_size: run.iter().map(|operation| operation.encoded_len() as i64).sum(),
                response_count: 0,
                response_size: answer.as_ref().map_or(0, |response| of_txn(response).bytes as i64),
                content: describe::txn(request),
            }
        });
    }

    /// A read is applied where it is answered; the rest is the writer's to tell.
    fn slow_read(
        &self,
        prefix: &str,
        took: Duration,
        request: impl FnOnce() -> String,
        response: impl FnOnce() -> String,
    ) {
        if let Some(expected) = self.slow.limits.apply.filter(|limit| took > *limit) {
            self.store.metrics().requests.count_slow();
            tracing::warn!(
                ?took,
                expected_duration = ?expected,
                prefix,
                request = request(),
                response = response(),
                "apply request took too long"
            );
        }
    }
}

/// The numbers of an answer, which may be still to be written.
fn of_range(response: &Response<RangeResponse>) -> Outline {
    planned(response).unwrap_or_else(|| {
        let response = response.get_ref();
        Outline { ranges: vec![in_range(response)], bytes: response.encoded_len() }
    })
}

fn of_txn(response: &Response<TxnResponse>) -> Outline {
    planned(response).unwrap_or_else(|| {
        let response = response.get_ref();
        let ranges = response.responses.iter().filter_map(|response| match &response.response {
            Some(Reply::ResponseRange(range)) => Some(in_range(range)),
            _ => None,
        });
        Outline { ranges: ranges.collect(), bytes: response.encoded_len() }
    })
}

fn planned<T>(response: &Response<T>) -> Option<Outline> {
    response.extensions().get().cloned()
}

fn in_range(response: &RangeResponse) -> Counts {
    Counts { returned: response.kvs.len(), all: response.count }
}

fn counts(outline: &Outline) -> String {
    let count = |counts: &Counts| format!("range_response_count:{}", counts.returned);
    outline.ranges.iter().map(count).collect::<Vec<_>>().join(" ")
}
