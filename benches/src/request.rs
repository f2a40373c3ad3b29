//! The requests of the experiments, in the very shape that kube-apiserver gives them.
//!
//! Each type is a [`Caller`]: one client that sends one kind of request, and checks that the answer is the expected one (a
//! lost race or an empty list would be fast for the wrong reason).

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, RangeRequest,
    RequestOp, ResponseHeader, TxnRequest, request_op::Request, response_op::Response,
};
use proto::mvccpb::KeyValue;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::endpoint::Connection;
use crate::load::Caller;

pub type Kv = KvClient<Connection>;

/// Before a gRPC message: whether it is compressed, and its length.
const MESSAGE_HEAD_BYTES: usize = 5;
const RANGE_RESPONSE_HEADER: u32 = 1;
const RANGE_RESPONSE_KVS: u32 = 2;
const RANGE_RESPONSE_MORE: u32 = 3;

/// What follows the last key that starts with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// Key number `number` of `prefix`, as wide as a usual Kubernetes key.
pub fn key(prefix: &str, number: u64) -> Bytes {
    format!("{prefix}namespace/object-{number:012}").into()
}

/// Bytes that don't compress, different for each key.
pub fn value(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(bytes + 8);
    while value.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend(state.to_le_bytes());
    }
    value.truncate(bytes);
    value.into()
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: Bytes, value: Bytes) -> PutRequest {
    PutRequest { key, value, ..PutRequest::default() }
}

/// If the key is at `revision` (0: absent) put it.
fn put_if(key: Bytes, value: Bytes, revision: i64, failure: Vec<RequestOp>) -> TxnRequest {
    let unchanged = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    };
    TxnRequest { compare: vec![unchanged], success: vec![op(Request::RequestPut(put(key, value)))], failure }
}

/// Creates one new object after another.
#[derive(Debug)]
pub struct Create {
    pub kv: Kv,
    pub prefix: String,
    pub value_bytes: usize,
    pub next: u64,
    /// Number of clients, each of which takes every n-th key.
    pub step: u64,
}

impl Caller for Create {
    async fn call(&mut self) -> Result<(), Status> {
        let number = self.next;
        self.next += self.step;
        let txn = put_if(key(&self.prefix, number), value(self.value_bytes, number), 0, Vec::new());
        let reply = self.kv.txn(txn).await?.into_inner();
        if reply.succeeded { Ok(()) } else { Err(Status::already_exists("the key to create exists")) }
    }
}

/// Updates a few objects of its own again and again, as GuaranteedUpdate does it.
#[derive(Debug)]
pub struct Update {
    kv: Kv,
    value_bytes: usize,
    keys: Vec<(Bytes, i64)>,
    turn: usize,
}

impl Update {
    pub async fn new(mut kv: Kv, prefix: &str, keys: u64, value_bytes: usize) -> Result<Self, Status> {
        let mut created = Vec::new();
        for number in 0..keys {
            let key = key(prefix, number);
            let reply =
                kv.txn(put_if(key.clone(), value(value_bytes, number), 0, Vec::new())).await?.into_inner();
            created.push((key, reply.header.map_or(0, |header| header.revision)));
        }
        Ok(Self { kv, value_bytes, keys: created, turn: 0 })
    }
}

impl Caller for Update {
    async fn call(&mut self) -> Result<(), Status> {
        self.turn += 1;
        let index = self.turn % self.keys.len();
        let (key, revision) = &mut self.keys[index];
        let current = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let failure = vec![op(Request::RequestRange(current))];
        let txn = put_if(key.clone(), value(self.value_bytes, self.turn as u64), *revision, failure);
        let reply = self.kv.txn(txn).await?.into_inner();
        if !reply.succeeded {
            return Err(Status::aborted("another client changed a key of this one"));
        }
        *revision = reply.header.map_or(0, |header| header.revision);
        Ok(())
    }
}

/// Plain puts of one key after another.
#[derive(Debug)]
pub struct Put {
    pub kv: Kv,
    pub prefix: String,
    pub value_bytes: usize,
    pub next: u64,
}

impl Caller for Put {
    async fn call(&mut self) -> Result<(), Status> {
        self.next += 1;
        self.kv.put(put(key(&self.prefix, self.next), value(self.value_bytes, self.next))).await?;
        Ok(())
    }
}

/// Linearizable gets of single keys, in an order that visits all of them.
#[derive(Debug)]
pub struct Get {
    pub kv: Kv,
    pub prefix: String,
    pub keys: u64,
    pub next: u64,
}

/// Prime, so that stepping by it visits every key whatever their number (below it) is.
const GET_STEP: u64 = 7_919;

impl Caller for Get {
    async fn call(&mut self) -> Result<(), Status> {
        self.next = (self.next + GET_STEP) % self.keys;
        let request = RangeRequest { key: key(&self.prefix, self.next), ..RangeRequest::default() };
        let reply = self.kv.range(request).await?.into_inner();
        if reply.kvs.len() == 1 { Ok(()) } else { Err(Status::not_found("a key that was put is gone")) }
    }
}

/// The first page of a list, as kube-apiserver asks for it.
#[derive(Debug)]
pub struct List {
    pub kv: Kv,
    pub prefix: String,
    pub limit: i64,
}

impl Caller for List {
    async fn call(&mut self) -> Result<(), Status> {
        let request = RangeRequest {
            key: self.prefix.clone().into(),
            range_end: prefix_end(self.prefix.as_bytes()),
            limit: self.limit,
            ..RangeRequest::default()
        };
        let reply = self.kv.range(request).await?.into_inner();
        let whole = reply.kvs.len() as i64 == self.limit.min(reply.count);
        if whole { Ok(()) } else { Err(Status::data_loss("a list is shorter than its limit and its count")) }
    }
}

/// How a client takes all of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One reply.
    Unary,
    /// One after the other, each of so many keys.
    Pages(i64),
    RangeStream,
}

/// All key-values of a prefix, thrown away as they come.
#[derive(Debug)]
pub struct ListAll {
    pub connection: Connection,
    pub prefix: String,
    pub way: Way,
    /// Number of keys and bytes of a value, to know that all of them came.
    pub keys: u64,
    pub value_bytes: usize,
}

const RANGE: &str = "http://localhost/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "http://localhost/etcdserverpb.KV/RangeStream";

impl Caller for ListAll {
    async fn call(&mut self) -> Result<(), Status> {
        let range_end = prefix_end(self.prefix.as_bytes());
        let all = RangeRequest { key: self.prefix.clone().into(), range_end, ..RangeRequest::default() };
        let mut bytes = 0;
        let mut count = |data: &[u8]| bytes += data.len() as u64;
        match self.way {
            Way::Unary => self.connection.call_raw(RANGE, &all, count).await?,
            Way::RangeStream => self.connection.call_raw(RANGE_STREAM, &all, count).await?,
            Way::Pages(limit) => {
                let mut page = RangeRequest { limit, ..all };
                // As kube-apiserver goes on: all pages at the revision of the first.
                loop {
                    let mut reply = Page::default();
                    let read = |data: &[u8]| {
                        count(data);
                        reply.feed(data);
                    };
                    self.connection.call_raw(RANGE, &page, read).await?;
                    if !reply.more {
                        break;
                    }
                    page.key = [reply.last_key()?.as_ref(), &[0]].concat().into();
                    page.revision = reply.revision()?;
                }
            }
        }
        if bytes > self.keys * self.value_bytes as u64 {
            Ok(())
        } else {
            Err(Status::data_loss(format!("a list of {bytes} bytes is shorter than its values")))
        }
    }
}

/// What the next page needs of a reply, found while its bytes come and without keeping them.
#[derive(Debug, Default)]
struct Page {
    /// From the first byte of a field on, until all of the field is there.
    incomplete: BytesMut,
    begun: bool,
    header: Vec<u8>,
    /// The last key-value so far.
    last: Vec<u8>,
    more: bool,
}

impl Page {
    fn feed(&mut self, data: &[u8]) {
        self.incomplete.extend_from_slice(data);
        if !self.begun && self.incomplete.len() >= MESSAGE_HEAD_BYTES {
            self.incomplete.advance(MESSAGE_HEAD_BYTES);
            self.begun = true;
        }
        while self.begun && self.field().is_some() {}
    }

    /// Takes one field of a RangeResponse; `None` as long as it is not complete.
    fn field(&mut self) -> Option<()> {
        let mut rest = &self.incomplete[..];
        let (field, wire_type) = decode_key(&mut rest).ok()?;
        let number = decode_varint(&mut rest).ok()?;
        let head = self.incomplete.len() - rest.len();
        if wire_type != WireType::LengthDelimited {
            self.incomplete.advance(head);
            self.more |= field == RANGE_RESPONSE_MORE && number != 0;
            return Some(());
        }
        let len = number as usize;
        let content = rest.get(..len)?;
        let kept = match field {
            RANGE_RESPONSE_HEADER => Some(&mut self.header),
            RANGE_RESPONSE_KVS => Some(&mut self.last),
            _ => None,
        };
        if let Some(kept) = kept {
            kept.clear();
            kept.extend_from_slice(content);
        }
        self.incomplete.advance(head + len);
        Some(())
    }

    fn last_key(&self) -> Result<Bytes, Status> {
        let last = KeyValue::decode(&self.last[..]).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(last.key)
    }

    fn revision(&self) -> Result<i64, Status> {
        let header =
            ResponseHeader::decode(&self.header[..]).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(header.revision)
    }
}

#[derive(Debug)]
pub struct Count {
    pub kv: Kv,
    pub prefix: String,
    pub expected: i64,
}

impl Caller for Count {
    async fn call(&mut self) -> Result<(), Status> {
        let request = RangeRequest {
            key: self.prefix.clone().into(),
            range_end: prefix_end(self.prefix.as_bytes()),
            count_only: true,
            ..RangeRequest::default()
        };
        let reply = self.kv.range(request).await?.into_inner();
        if reply.count == self.expected {
            Ok(())
        } else {
            Err(Status::data_loss(format!("count is {}", reply.count)))
        }
    }
}

/// Renews one lease over one stream.
#[derive(Debug)]
pub struct KeepAlive {
    lease: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    replies: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    pub async fn new(connection: &Connection, ttl_seconds: i64) -> Result<Self, Status> {
        let mut client = connection.lease();
        let lease = client.lease_grant(LeaseGrantRequest { ttl: ttl_seconds, id: 0 }).await?.into_inner().id;
        let (requests, outgoing) = mpsc::channel(1);
        // etcd answers a stream's headers with its first message only, so the first renewal goes ahead of the call.
        let ended = |_| Status::unavailable("the keepalive stream has ended");
        requests.send(LeaseKeepAliveRequest { id: lease }).await.map_err(ended)?;
        let replies = client.lease_keep_alive(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut caller = Self { lease, requests, replies };
        caller.receive().await?;
        Ok(caller)
    }

    async fn receive(&mut self) -> Result<(), Status> {
        match self.replies.message().await? {
            Some(reply) if reply.ttl > 0 => Ok(()),
            Some(_) => Err(Status::not_found("the lease has expired")),
            None => Err(Status::unavailable("the keepalive stream has ended")),
        }
    }
}

impl Caller for KeepAlive {
    async fn call(&mut self) -> Result<(), Status> {
        let request = LeaseKeepAliveRequest { id: self.lease };
        self.requests
            .send(request)
            .await
            .map_err(|_| Status::unavailable("the keepalive stream has ended"))?;
        self.receive().await
    }
}

/// Puts `count` keys in big transactions, several under way at a time; not measured, just fast.
pub async fn fill(
    connections: &[Connection],
    prefix: &str,
    keys: std::ops::Range<u64>,
    value_bytes: usize,
) -> Result<(), Status> {
    use futures::stream::{self, StreamExt, TryStreamExt};
    /// etcd's limit is 128 operations a transaction.
    const KEYS_PER_TXN: u64 = 100;
    const TXNS_UNDER_WAY: usize = 16;

    let starts = keys.clone().step_by(KEYS_PER_TXN as usize).enumerate();
    stream::iter(starts)
        .map(|(turn, start)| {
            let mut kv = connections[turn % connections.len()].kv();
            let numbers = start..keys.end.min(start + KEYS_PER_TXN);
            let puts = numbers.map(|n| op(Request::RequestPut(put(key(prefix, n), value(value_bytes, n)))));
            let txn = TxnRequest { success: puts.collect(), ..TxnRequest::default() };
            async move {
                let reply = kv.txn(txn).await?.into_inner();
                let all_put =
                    reply.responses.iter().all(|r| matches!(r.response, Some(Response::ResponsePut(_))));
                if all_put {
                    Ok(())
                } else {
                    Err(Status::data_loss("a put of a transaction was not answered"))
                }
            }
        })
        .buffer_unordered(TXNS_UNDER_WAY)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_follows_every_key_of_the_prefix() {
        assert_eq!(prefix_end(b"/registry/"), "/registry0");
        assert_eq!(prefix_end(b"a\xff\xff"), "b");
        assert_eq!(prefix_end(b"\xff"), "\0");
    }

    #[test]
    fn values_have_the_size_asked_for_and_differ() {
        assert_eq!(value(1021, 1).len(), 1021);
        assert_ne!(value(64, 1), value(64, 2));
        assert_ne!(value(64, 0), value(64, 2));
    }
}
