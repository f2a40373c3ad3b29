//! A hundred kill -9 under writes, deletions and compactions: what is stored is what a resumed watch has told, key by key
//! with all revisions and versions, and no previous value is wrong.
//!
//! Every write is a transaction of its writer that moves a pair of keys and many of a ring from `n` to `n + 1`, or deletes
//! the ring, under the condition that the pair is as the writer left it. Each makes one revision, so the watch must see every revision
//! there is, each with exactly the events of one write. `crash.rs` has puts only, and looks at the whole history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use conformance::server::{self, Flavor, Options, Server};
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use rand::Rng;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::Channel;

const ROUNDS: usize = 100;
const WRITERS: usize = 6;
/// Keys of a ring that a write puts, of so many in all: rows enough for an image of the index every few rounds.
const RING: u64 = 20;
const RING_KEYS: u64 = 30;
/// Load before a kill: from a server that has just begun to one in full swing.
const LOAD_MS: std::ops::Range<u64> = 5..250;
/// How far behind the watch the compaction stays, in revisions, so that a resumed watch is never compacted away.
const COMPACTION_DISTANCE: i64 = 50;
const COMPACTION_EVERY: Duration = Duration::from_millis(20);
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(20);
const ALL: &[u8] = b"\0";

/// What one writer knows of its own keys.
#[derive(Clone, Debug, Default)]
struct Writer {
    id: usize,
    /// The last write that is known to be there, and its revision; 0 before the first.
    done: u64,
    revision: i64,
    /// A write whose answer never came.
    in_flight: Option<u64>,
}

/// Everything the watch has told: the keys as they must be now.
#[derive(Default)]
struct Model {
    revision: i64,
    keys: BTreeMap<Bytes, KeyValue>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_while_compacting_leave_what_was_watched() {
    let mut server = start().await;
    let mut writers: Vec<Writer> = (0..WRITERS).map(|id| Writer { id, ..Writer::default() }).collect();
    let mut model = Model { revision: 1, ..Model::default() };
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let channel = server::connect(&server.endpoint()).await.unwrap();
        let mut events = resume(&channel, model.revision).await;
        check(&channel, &mut model, &mut events, &mut writers).await;
        let before: u64 = writers.iter().map(|writer| writer.done).sum();

        let seen = Arc::new(AtomicI64::new(model.revision));
        let watching = tokio::spawn(follow(model, events, seen.clone()));
        let compacting = tokio::spawn(compact(channel.clone(), seen));
        let mut writing = JoinSet::new();
        for writer in writers.drain(..) {
            writing.spawn(write(channel.clone(), writer));
        }
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(LOAD_MS))).await;
        server.kill().unwrap();

        writers = writing.join_all().await;
        writers.sort_by_key(|writer| writer.id);
        model = watching.await.unwrap();
        compacting.await.unwrap();
        acknowledged += writers.iter().map(|writer| writer.done).sum::<u64>() - before;
        server.resume().await.unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    let channel = server::connect(&server.endpoint()).await.unwrap();
    let mut events = resume(&channel, model.revision).await;
    check(&channel, &mut model, &mut events, &mut writers).await;
    println!("{ROUNDS} kills, {acknowledged} acknowledged writes, {} revisions, none lost", model.revision);
    assert!(acknowledged > 20 * ROUNDS as u64, "hardly any load: {acknowledged} writes");
    server.assert_images_read(ROUNDS / 2);
}

async fn start() -> Server {
    let options = Options { durable: true, ..Options::default() };
    Server::start(Flavor::KineSqlite, options).await.unwrap_or_else(|error| panic!("{error:#}"))
}

/// A watch on everything after `revision`, confirmed.
async fn resume(channel: &Channel, revision: i64) -> Streaming<WatchResponse> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(ALL),
        range_end: Bytes::from_static(ALL),
        start_revision: revision + 1,
        prev_kv: true,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The sending side stays open: a stream that never ends follows the one request.
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut events = WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
    let created = events.message().await.unwrap().unwrap();
    assert!(created.created && !created.canceled, "{created:?}");
    events
}

/// Catches up with the present and compares everything with it.
async fn check(
    channel: &Channel,
    model: &mut Model,
    events: &mut Streaming<WatchResponse>,
    writers: &mut [Writer],
) {
    let request = RangeRequest {
        key: Bytes::from_static(ALL),
        range_end: Bytes::from_static(ALL),
        ..Default::default()
    };
    let now = KvClient::new(channel.clone()).range(request).await.unwrap().into_inner();
    let head = now.header.unwrap().revision;
    let newest = writers.iter().map(|writer| writer.revision).max().unwrap();
    assert!(head >= newest, "revision {newest} was acknowledged, the server is at {head}");
    assert!(head >= model.revision, "the watch saw revision {}, the server is at {head}", model.revision);
    while model.revision < head {
        let response = tokio::time::timeout(CATCH_UP_DEADLINE, events.message()).await;
        model.apply(response.expect("the watch catches up").unwrap().unwrap());
    }
    let keys: Vec<&KeyValue> = model.keys.values().collect();
    assert_eq!(now.kvs.iter().collect::<Vec<_>>(), keys, "what is stored is what was watched");
    for writer in writers {
        writer.settle(model);
    }
}

impl Writer {
    fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}/{name}", self.id))
    }

    /// Finds out what became of the write in flight; everything else must be as it was acknowledged.
    fn settle(&mut self, model: &Model) {
        let pair = ["a", "b"].map(|name| model.keys.get(&self.key(name)));
        let [Some(a), Some(b)] = pair else {
            assert_eq!(pair, [None, None], "half of the first write of {self:?}");
            assert_eq!(self.done, 0, "all writes of {self:?} are gone");
            self.in_flight = None;
            return;
        };
        let number: u64 = std::str::from_utf8(&a.value).unwrap().parse().unwrap();
        assert_eq!((&a.value, a.mod_revision), (&b.value, b.mod_revision), "half of a write of {self:?}");
        if number == self.done {
            assert_eq!(a.mod_revision, self.revision, "{self:?}");
        } else {
            assert_eq!(Some(number), self.in_flight, "not what {self:?} has written");
            assert!(a.mod_revision > self.revision, "{self:?} went back to revision {}", a.mod_revision);
        }
        (self.done, self.revision, self.in_flight) = (number, a.mod_revision, None);
    }

    /// The transaction that makes write `number`.
    fn transaction(&self, number: u64) -> TxnRequest {
        let put = |key: Bytes| {
            let value = Bytes::from(number.to_string());
            operation(Operation::RequestPut(PutRequest { key, value, ..Default::default() }))
        };
        let mut success = vec![put(self.key("a")), put(self.key("b"))];
        if number.is_multiple_of(3) {
            let (key, range_end) = (self.key("ring/"), self.key("ring0"));
            let delete = DeleteRangeRequest { key, range_end, ..Default::default() };
            success.push(operation(Operation::RequestDeleteRange(delete)));
        } else {
            success.extend(
                (0..RING).map(|place| put(self.key(&format!("ring/{}", (number + place) % RING_KEYS)))),
            );
        }
        let unchanged = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.key("a"),
            target_union: Some(TargetUnion::ModRevision(self.revision)),
            ..Default::default()
        };
        TxnRequest { compare: vec![unchanged], success, failure: Vec::new() }
    }
}

fn operation(request: Operation) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Writes until the server is gone.
async fn write(channel: Channel, mut writer: Writer) -> Writer {
    let mut client = KvClient::new(channel);
    loop {
        let number = writer.done + 1;
        writer.in_flight = Some(number);
        let Ok(response) = client.txn(writer.transaction(number)).await else { return writer };
        let response = response.into_inner();
        assert!(response.succeeded, "somebody else has written the keys of {writer:?}");
        let revision = response.header.unwrap().revision;
        assert!(revision > writer.revision, "revision {revision} for {writer:?}");
        (writer.done, writer.revision, writer.in_flight) = (number, revision, None);
    }
}

/// Watches until the server is gone.
async fn follow(mut model: Model, mut events: Streaming<WatchResponse>, seen: Arc<AtomicI64>) -> Model {
    while let Ok(Some(response)) = events.message().await {
        model.apply(response);
        seen.store(model.revision, Ordering::Relaxed);
    }
    model
}

/// Compacts what the watch has left behind until the server is gone.
async fn compact(channel: Channel, seen: Arc<AtomicI64>) {
    let mut client = KvClient::new(channel);
    loop {
        tokio::time::sleep(COMPACTION_EVERY).await;
        let request = CompactionRequest {
            revision: seen.load(Ordering::Relaxed) - COMPACTION_DISTANCE,
            ..CompactionRequest::default()
        };
        match client.compact(request).await {
            Ok(_) => {}
            // Nothing new to compact since the last time, here or before the kill.
            Err(status) if status.code() == tonic::Code::OutOfRange => {}
            Err(_) => return,
        }
    }
}

impl Model {
    fn apply(&mut self, response: WatchResponse) {
        assert!(!response.canceled, "{response:?}");
        for events in response.events.chunk_by(|one, next| revision(one) == revision(next)) {
            self.apply_revision(events);
        }
    }

    fn apply_revision(&mut self, events: &[Event]) {
        let next = revision(&events[0]);
        assert_eq!(next, self.revision + 1, "a revision is missing, or came twice");
        let mut write = None;
        for event in events {
            let kv = event.kv.clone().unwrap();
            let before = match event.r#type() {
                EventType::Put => {
                    write = write.or_else(|| write_of(&kv));
                    assert_eq!(write_of(&kv), write, "two writes in revision {next}: {events:?}");
                    self.keys.insert(kv.key.clone(), kv)
                }
                EventType::Delete => self.keys.remove(&kv.key),
            };
            assert_eq!(event.prev_kv, before, "the previous value in {event:?}");
        }
        let (writer, number) = write.expect("every write puts a pair");
        let ring = format!("{writer}/ring/");
        let is_whole = if number.is_multiple_of(3) {
            !self.keys.keys().any(|key| key.starts_with(ring.as_bytes()))
        } else {
            events.len() as u64 == 2 + RING
        };
        assert!(is_whole, "half of a write in revision {next}: {events:?}");
        self.revision = next;
    }
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().expect("an event has a key").mod_revision
}

/// Writer and number, from a key and a value.
fn write_of(kv: &KeyValue) -> Option<(usize, u64)> {
    let writer = std::str::from_utf8(&kv.key).ok()?.split('/').next()?.parse().ok()?;
    Some((writer, std::str::from_utf8(&kv.value).ok()?.parse().ok()?))
}
