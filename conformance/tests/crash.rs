//! A hundred times kill -9 under load: no acknowledged write is lost or half visible, no revision is used twice, and a watch
//! that resumes where it was cut off misses nothing and sees nothing twice.
//!
//! Every write is one transaction of two puts by one of several writers, so every revision has exactly two events and says
//! who wrote it; more puts beside them make for an index that is worth an image. The server is killed after a seeded number
//! of acknowledgements, while others are under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use conformance::server::{Flavor, Options, Server, connect};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc};
use tonic::transport::Channel;

const ROUNDS: u64 = 100;
const WRITERS: usize = 8;
/// Keys that each write puts beside those that are watched: images of the index are written every few rounds.
const BESIDE: usize = 14;

/// A write: who, and which of his.
type Write = (usize, u64);

/// What is known for sure across all rounds.
#[derive(Default)]
struct Known {
    /// Acknowledged writes by revision.
    acknowledged: BTreeMap<i64, Write>,
    /// What the watch has delivered, by revision.
    events: BTreeMap<i64, Write>,
    /// The last write of each writer that is known to be stored.
    stored: [u64; WRITERS],
}

fn key(writer: usize, half: &str) -> Bytes {
    format!("w/{writer}/{half}").into()
}

async fn write(kv: &mut KvClient<Channel>, writer: usize, number: u64) -> Result<i64, tonic::Status> {
    let put = |key| {
        let put = PutRequest { key, value: number.to_string().into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    let beside = (0..BESIDE).map(|n| put(format!("x/{writer}/{number}/{n}").into()));
    let success = [put(key(writer, "a")), put(key(writer, "b"))].into_iter().chain(beside).collect();
    let txn = TxnRequest { success, ..Default::default() };
    let response = kv.txn(txn).await?.into_inner();
    assert!(response.succeeded);
    Ok(response.header.unwrap().revision)
}

/// Writes until the server is gone; the acknowledged writes by revision.
async fn writer(
    channel: Channel,
    writer: usize,
    first: u64,
    acknowledgements: Arc<AtomicUsize>,
    acknowledged: Arc<Notify>,
) -> Vec<(i64, Write)> {
    let mut kv = KvClient::new(channel);
    let mut done = Vec::new();
    for number in first.. {
        match write(&mut kv, writer, number).await {
            Ok(revision) => done.push((revision, (writer, number))),
            Err(_) => return done,
        }
        acknowledgements.fetch_add(1, Ordering::Relaxed);
        acknowledged.notify_one();
    }
    unreachable!("numbers do not run out")
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Reads events from `next` on until the server is gone or `upto` is reached.
async fn watch(channel: Channel, next: i64, upto: Option<i64>) -> BTreeMap<i64, Write> {
    let (requests, sent) = mpsc::channel(1);
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"w/"),
        range_end: Bytes::from_static(b"w0"),
        start_revision: next,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.unwrap();
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut seen = BTreeMap::new();
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let Ok(responses) = client.watch(sent).await else { return seen };
    let mut responses = responses.into_inner();
    let mut next = next;
    while upto.is_none_or(|upto| next <= upto) {
        let Ok(Some(response)) = responses.message().await else { break };
        assert!(!response.canceled, "{response:?}");
        let (pairs, rest) = response.events.as_chunks::<2>();
        assert!(rest.is_empty(), "all events of a revision come together");
        for [a, b] in pairs {
            let (a, b) = (a.kv.as_ref().unwrap(), b.kv.as_ref().unwrap());
            assert_eq!((a.mod_revision, b.mod_revision), (next, next), "no revision is skipped or repeated");
            assert_eq!(a.value, b.value);
            let by = (0..WRITERS).find(|&writer| a.key == key(writer, "a") && b.key == key(writer, "b"));
            seen.insert(next, (by.expect("both halves are of one writer"), number(&a.value)));
            next += 1;
        }
    }
    drop(requests);
    seen
}

async fn round(server: &mut Server, known: &mut Known, kill_after: usize) {
    let acknowledgements = Arc::<AtomicUsize>::default();
    let acknowledged = Arc::<Notify>::default();
    let mut writers = tokio::task::JoinSet::new();
    for by in 0..WRITERS {
        let channel = connect(&server.endpoint()).await.unwrap();
        let first = known.stored[by] + 1;
        writers.spawn(writer(channel, by, first, acknowledgements.clone(), acknowledged.clone()));
    }
    let resume = known.events.last_key_value().map_or(2, |(revision, _)| revision + 1);
    let watcher = tokio::spawn(watch(connect(&server.endpoint()).await.unwrap(), resume, None));
    while acknowledgements.load(Ordering::Relaxed) < kill_after {
        acknowledged.notified().await;
    }
    server.kill().unwrap();
    while let Some(finished) = writers.join_next().await {
        for (revision, write) in finished.unwrap() {
            let before = known.acknowledged.insert(revision, write);
            assert_eq!(before, None, "revision {revision} was given to two writes");
            known.stored[write.0] = known.stored[write.0].max(write.1);
        }
    }
    for (revision, write) in watcher.await.unwrap() {
        assert_eq!(known.events.insert(revision, write), None);
    }
}

async fn check(server: &Server, known: &mut Known) {
    let mut kv = KvClient::new(connect(&server.endpoint()).await.unwrap());
    let all = RangeRequest {
        key: Bytes::from_static(b"w/"),
        range_end: Bytes::from_static(b"w0"),
        ..Default::default()
    };
    let response = kv.range(all).await.unwrap().into_inner();
    let head = response.header.unwrap().revision;
    let newest = known.acknowledged.keys().chain(known.events.keys()).max().copied().unwrap_or(1);
    assert!(head >= newest, "revision {newest} was seen, the store is at {head}");
    let stored: BTreeMap<Bytes, u64> =
        response.kvs.iter().map(|kv| (kv.key.clone(), number(&kv.value))).collect();
    for by in 0..WRITERS {
        let (a, b) = (stored.get(&key(by, "a")), stored.get(&key(by, "b")));
        assert_eq!(a, b, "a transaction is visible as a whole or not at all");
        let stored = a.copied().unwrap_or(0);
        let acknowledged = known.stored[by];
        // The one write that was under way may be there; the next number is above it either way.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&stored),
            "writer {by} had {acknowledged} acknowledged, {stored} is stored"
        );
        known.stored[by] = stored;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_lose_nothing() {
    let seed = 20_261_121;
    let mut random = StdRng::seed_from_u64(seed);
    let mut known = Known::default();
    let options = Options { durable: true, ..Options::default() };
    let mut server = Server::start(Flavor::KineSqlite, options).await.unwrap();
    for number in 0..ROUNDS {
        round(&mut server, &mut known, random.random_range(1..200)).await;
        server.resume().await.unwrap_or_else(|error| panic!("round {number}, seed {seed}: {error:#}"));
        check(&server, &mut known).await;
    }
    // The whole history once more: every acknowledged write is at its revision, and what was watched has not changed.
    let mut kv = KvClient::new(connect(&server.endpoint()).await.unwrap());
    let head = write(&mut kv, 0, known.stored[0] + 1).await.unwrap();
    let history = watch(connect(&server.endpoint()).await.unwrap(), 2, Some(head)).await;
    assert_eq!(history.keys().copied().collect::<Vec<_>>(), (2..=head).collect::<Vec<_>>());
    for (revision, write) in known.acknowledged.iter().chain(&known.events) {
        assert_eq!(history[revision], *write, "revision {revision}");
    }
    assert!(known.acknowledged.len() as u64 >= ROUNDS);
    server.assert_images_read(ROUNDS as usize / 2);
}
