//! Keys under one prefix, in the order of their creation: the first one holds what the others wait for.
//!
//! What locks and elections share. Each contender has a key of its own, attached to its lease, so it gives way when it
//! disappears. All goes through the ordinary operations on behalf of the caller, permissions included. As in etcd every
//! error of these services has the code Unknown, and the text of what went wrong.

use super::Api;
use super::kv::own_puts;
use crate::apply::Command;
use crate::auth::Caller;
use crate::store::Store;
use crate::txn::{check_range, check_txn};
use crate::watch::{Create, Frame, Stream};
use bytes::Bytes;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, WatchResponse,
};
use tonic::Status;

/// Time to live of the lease of a contender that brings none, in seconds. Nobody keeps it alive.
const LEASE_TTL_SECONDS: i64 = 60;

/// All contenders for one thing.
pub struct Contest<'a> {
    pub api: &'a Api,
    pub caller: Caller,
    /// The name of the thing and a slash.
    prefix: Bytes,
}

/// A key in the contest.
#[derive(Clone, Debug)]
pub struct Contender {
    pub key: Bytes,
    pub create_revision: i64,
}

impl<'a> Contest<'a> {
    pub fn new(api: &'a Api, caller: Caller, name: &[u8]) -> Self {
        Contest { api, caller, prefix: [name, b"/"].concat().into() }
    }

    /// The key of whoever has this lease.
    pub fn key(&self, lease: i64) -> Bytes {
        [self.prefix.as_ref(), format!("{lease:x}").as_bytes()].concat().into()
    }

    /// The lease a contender brings, or a new one.
    pub async fn lease(&self, brought: i64) -> Result<i64, Status> {
        if brought != 0 {
            return Ok(brought);
        }
        let request = LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 };
        self.api.grant_lease(&self.caller, request).await.map(|granted| granted.id)
    }

    /// The oldest contender.
    pub fn first(&self) -> RangeRequest {
        RangeRequest { sort_order: SortOrder::Ascend as i32, ..self.one_by_creation() }
    }

    /// The youngest of those before `contender`.
    fn last_before(&self, contender: &Contender) -> RangeRequest {
        RangeRequest {
            sort_order: SortOrder::Descend as i32,
            max_create_revision: contender.create_revision - 1,
            ..self.one_by_creation()
        }
    }

    fn one_by_creation(&self) -> RangeRequest {
        let (key, range_end) = self.range();
        RangeRequest {
            key,
            range_end,
            limit: 1,
            sort_target: SortTarget::Create as i32,
            ..Default::default()
        }
    }

    /// All keys of the contest: the byte behind the slash ends them.
    pub fn range(&self) -> (Bytes, Bytes) {
        let name = &self.prefix[..self.prefix.len() - 1];
        (self.prefix.clone(), [name, b"0"].concat().into())
    }

    pub async fn read(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        check_range(&request)?;
        self.api.read_range(&self.caller, request).await
    }

    pub async fn run(&self, mut request: TxnRequest) -> Result<TxnResponse, Status> {
        check_txn(&request, self.api.limits.txn_operations_max)?;
        own_puts(&mut request);
        let (response, _) = self.api.run_txn(self.caller.clone(), request.into()).await?;
        Ok(response)
    }

    /// Waits until every contender before this one has gone. Ending the wait early, by an error or because the client has
    /// gone, takes the contender out of the contest.
    pub async fn wait(&self, contender: &Contender) -> Result<(), Status> {
        let mut withdraw = Withdraw { store: &self.api.store, contender, armed: true };
        loop {
            let before = self.read(self.last_before(contender)).await?;
            let Some(kv) = before.kvs.into_iter().next() else { break };
            let mut deletes = self.api.follow(Create {
                no_put: true,
                start_revision: revision(&before.header) + 1,
                ..Create::of(&kv.key, &[])
            });
            // Any answer but an event means that the watch is of no use: looking again tells how things stand.
            deletes.next().await?;
        }
        withdraw.armed = false;
        Ok(())
    }
}

/// Takes a contender out of the contest unless told not to.
struct Withdraw<'a> {
    store: &'a Store,
    contender: &'a Contender,
    armed: bool,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (store, txn) = (self.store.clone(), self.contender.delete());
        runtime.spawn(async move {
            // The key is this call's own, so its removal is too. It goes with its lease if this fails.
            if let Err(error) = store.propose(Caller::Server, Command::Txn(txn.into())).await {
                tracing::debug!(%error, "an abandoned contender stays until its lease ends");
            }
        });
    }
}

impl Contender {
    /// The transaction that deletes the key if it is still this contender's.
    pub fn delete(&self) -> TxnRequest {
        let delete = DeleteRangeRequest { key: self.key.clone(), ..Default::default() };
        TxnRequest {
            compare: vec![created_at(&self.key, self.create_revision)],
            success: vec![operation(Op::RequestDeleteRange(delete))],
            failure: Vec::new(),
        }
    }
}

/// What a watch by the server itself brings.
pub struct Follow<'a> {
    api: &'a Api,
    create: Option<Create>,
    stream: Option<Stream>,
    frames: std::vec::IntoIter<Frame>,
}

impl Api {
    /// Watches keys that the caller has just been allowed to read.
    pub fn follow(&self, create: Create) -> Follow<'_> {
        Follow { api: self, create: Some(create), stream: None, frames: Vec::new().into_iter() }
    }
}

impl Follow<'_> {
    /// The next events; `None`: the watch was cancelled, as its start was compacted.
    pub async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        let stopped = || Status::unavailable(super::error::STOPPED);
        loop {
            if let Some(frame) = self.frames.next() {
                let response = frame.into_response();
                if response.canceled {
                    return Ok(None);
                }
                if !response.events.is_empty() {
                    return Ok(Some(response));
                }
                continue;
            }
            if let Some(create) = self.create.take() {
                let stream = self.api.store.hub().open().await.ok_or_else(stopped)?;
                stream.create(create).await;
                self.stream = Some(stream);
            }
            let stream = self.stream.as_ref().expect("the first turn opened the stream");
            let item = stream.queue.pop().await.ok_or_else(stopped)?;
            self.frames = item.into_frames(self.api.store.identity(), usize::MAX).into_iter();
        }
    }
}

pub fn operation(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Holds while the key is the one created at `revision`; 0: while there is none.
pub fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

pub fn put(key: &Bytes, value: Bytes, lease: i64) -> RequestOp {
    operation(Op::RequestPut(PutRequest { key: key.clone(), value, lease, ..Default::default() }))
}

pub fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..Default::default() }
}

pub fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// As these services answer: etcd's text, without its code.
pub fn unknown(status: Status) -> Status {
    Status::unknown(status.message())
}
