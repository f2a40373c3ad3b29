//! Requests on keys that were slow: counted, timed and logged once they are answered.
//!
//! Nothing is written, formatted or measured twice on the way: the caller looks at the clock before and after, and what a
//! line says is put together only when there is a line. The names of its fields are etcd's, as people search logs for them.

use super::Api;
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
use tonic::Status;

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
        answer: &Result<RangeResponse, Status>,
        took: Duration,
    ) {
        self.store.metrics().requests.observe(Kind::Range, answer.is_ok(), took);
        self.slow_read(
            "read-only range ",
            took,
            || describe::range(request),
            || match answer {
                Ok(response) => {
                    format!("range_response_count:{} size:{}", response.kvs.len(), response.encoded_len())
                }
                Err(_) => String::new(),
            },
        );
        self.slow.log("/etcdserverpb.KV/Range", took, || Facts {
            request_count: 0,
            request_size: request.encoded_len() as i64,
            response_count: answer.as_ref().map_or(0, |response| response.count),
            response_size: answer.as_ref().map_or(0, |response| response.encoded_len() as i64),
            content: describe::range(request),
        });
    }

    pub(super) fn put_done(
        &self,
        request: &PutRequest,
        answer: &Result<PutResponse, Status>,
        took: Duration,
    ) {
        self.slow.log("/etcdserverpb.KV/Put", took, || Facts {
            request_count: 1,
            request_size: request.encoded_len() as i64,
            response_count: 0,
            response_size: answer.as_ref().map_or(0, |response| response.encoded_len() as i64),
            content: describe::put(request),
        });
    }

    pub(super) fn delete_done(
        &self,
        request: &DeleteRangeRequest,
        answer: &Result<DeleteRangeResponse, Status>,
        took: Duration,
    ) {
        self.slow.log("/etcdserverpb.KV/DeleteRange", took, || Facts {
            request_count: 0,
            request_size: request.encoded_len() as i64,
            response_count: answer.as_ref().map_or(0, |response| response.deleted),
            response_size: answer.as_ref().map_or(0, |response| response.encoded_len() as i64),
            content: describe::delete_range(request),
        });
    }

    pub(super) fn txn_done(
        &self,
        request: &TxnRequest,
        answer: &Result<TxnResponse, Status>,
        took: Duration,
    ) {
        if is_read_only(request) {
            self.store.metrics().requests.observe(Kind::ReadonlyTxn, answer.is_ok(), took);
            self.slow_read(
                "read-only txn ",
                took,
                || describe::txn(request),
                || match answer {
                    Ok(response) => ranges(response),
                    Err(_) => String::new(),
                },
            );
        }
        self.slow.log("/etcdserverpb.KV/Txn", took, || {
            let run: &[RequestOp] = match answer {
                Ok(response) if response.succeeded => &request.success,
                Ok(_) => &request.failure,
                Err(_) => &[],
            };
            Facts {
                request_count: run.len() as i64,
                request_size: run.iter().map(|operation| operation.encoded_len() as i64).sum(),
                response_count: 0,
                response_size: answer.as_ref().map_or(0, |response| response.encoded_len() as i64),
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

fn ranges(response: &TxnResponse) -> String {
    let counts = response.responses.iter().filter_map(|response| match &response.response {
        Some(Reply::ResponseRange(range)) => Some(format!("range_response_count:{}", range.kvs.len())),
        _ => None,
    });
    format!("responses:<{}> size:{}", counts.collect::<Vec<_>>().join(" "), response.encoded_len())
}
