//! A watcher that does not read falls behind alone: nobody waits for it, and nothing is lost for it, or it is told so. So is
//! every watcher when the server stops.

use bytes::Bytes;
use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen};
use kine_rs::embed::Datastore;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    CompactionRequest, PutRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// Together more than a stream's queue and more than what the hub keeps in memory.
const WRITES: i64 = 400;
const VALUE_BYTES: usize = 64 << 10;

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

async fn connect(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

impl Watch {
    async fn open(channel: Channel) -> Watch {
        let (requests, sent) = mpsc::channel(16);
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let create = WatchCreateRequest {
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            ..Default::default()
        };
        requests.send(wrap(RequestUnion::CreateRequest(create))).await.unwrap();
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut responses = client.watch(sent).await.unwrap().into_inner();
        assert!(responses.message().await.unwrap().unwrap().created);
        Watch { requests, responses }
    }

    async fn next(&mut self) -> WatchResponse {
        self.responses.message().await.unwrap().expect("the stream is open")
    }

    /// Reads until revision `last` has arrived; every revision from `first` on must come once, in order.
    async fn read_upto(&mut self, first: i64, last: i64) {
        let mut next = first;
        while next <= last {
            for event in self.next().await.events {
                assert_eq!(event.kv.unwrap().mod_revision, next);
                next += 1;
            }
        }
    }
}

fn wrap(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

/// Writes more than fits, while one watcher reads everything at once and the other one nothing.
async fn write(kv: &mut KvClient<Channel>, quick: &mut Watch) {
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    for n in 0..WRITES {
        let put =
            PutRequest { key: format!("k{}", n % 10).into(), value: value.clone(), ..Default::default() };
        kv.put(put).await.unwrap();
        quick.read_upto(n + 2, n + 2).await;
    }
}

async fn slow_watcher(url: &str) {
    let mut kv = KvClient::new(connect(url).await);
    // Streams of one connection: the one that stalls holds up neither the other nor the writer.
    let shared = connect(url).await;
    let (mut slow, mut quick) = (Watch::open(shared.clone()).await, Watch::open(shared).await);
    write(&mut kv, &mut quick).await;
    // Requests that wait behind a full queue are answered in their order once the client reads.
    slow.requests.send(wrap(RequestUnion::ProgressRequest(WatchProgressRequest {}))).await.unwrap();
    slow.read_upto(2, WRITES + 1).await;
    let progress = slow.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, WRITES + 1));
    // It is live again.
    kv.put(PutRequest { key: Bytes::from_static(b"k"), ..Default::default() }).await.unwrap();
    slow.read_upto(WRITES + 2, WRITES + 2).await;
    slow.requests.send(wrap(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }))).await.unwrap();
    assert!(slow.next().await.canceled);
}

async fn compacted_watcher(url: &str) {
    let mut kv = KvClient::new(connect(url).await);
    let (mut slow, mut quick) =
        (Watch::open(connect(url).await).await, Watch::open(connect(url).await).await);
    write(&mut kv, &mut quick).await;
    kv.compact(CompactionRequest { revision: WRITES + 1, physical: false }).await.unwrap();
    // What was on its way comes, then the reason why nothing more can.
    let mut next = 2;
    let cancelled = loop {
        let response = slow.next().await;
        for event in &response.events {
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, next);
            next += 1;
        }
        if response.canceled {
            break response;
        }
    };
    assert_eq!((cancelled.watch_id, cancelled.compact_revision), (0, WRITES + 1));
    assert!(next > 2 && next < WRITES + 1, "{next}");
    // The other one has missed nothing, and the stream of the one that has is as good as new.
    let create = WatchCreateRequest { key: Bytes::from_static(b"k"), ..Default::default() };
    slow.requests.send(wrap(RequestUnion::CreateRequest(create))).await.unwrap();
    assert!(slow.next().await.created);
    kv.put(PutRequest { key: Bytes::from_static(b"k"), ..Default::default() }).await.unwrap();
    quick.read_upto(WRITES + 2, WRITES + 2).await;
    slow.read_upto(WRITES + 2, WRITES + 2).await;
}

fn start(endpoint: Endpoint) -> (Datastore, String) {
    let config =
        Config { endpoint, listen: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())], ..Config::default() };
    let store = Datastore::start(config).unwrap();
    let url = format!("http://{}", store.addresses()[0]);
    (store, url)
}

fn over<T: Future<Output = ()>>(endpoint: Endpoint, watcher: impl FnOnce(String) -> T) {
    let (store, url) = start(endpoint);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), watcher(url)).await.expect("no step may hang");
    });
    drop(runtime);
    store.stop(Duration::from_secs(2));
}

fn on_sqlite<T: Future<Output = ()>>(watcher: impl FnOnce(String) -> T) {
    let directory = tempfile::tempdir().unwrap();
    over(Endpoint::sqlite(directory.path().join("state.db")).without_fsync(), watcher);
}

#[test]
fn a_watcher_that_does_not_read_misses_nothing_on_sqlite() {
    on_sqlite(|url| async move { slow_watcher(&url).await });
}

#[test]
fn a_watcher_that_does_not_read_misses_nothing_in_memory() {
    over(Endpoint::Memory, |url| async move { slow_watcher(&url).await });
}

#[test]
fn a_watcher_whose_history_was_compacted_is_told_so_on_sqlite() {
    on_sqlite(|url| async move { compacted_watcher(&url).await });
}

#[test]
fn a_watcher_whose_history_was_compacted_is_told_so_in_memory() {
    over(Endpoint::Memory, |url| async move { compacted_watcher(&url).await });
}

/// Go's client watches on, at the server that comes next, after this and not after an end without a complaint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_is_told_that_the_server_stops() {
    let (store, url) = start(Endpoint::Memory);
    let mut watch = Watch::open(connect(&url).await).await;
    let stopped = tokio::task::spawn_blocking(move || store.stop(Duration::from_secs(60)));
    let status = watch.responses.message().await.expect_err("the stream does not end well");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    drop(watch);
    stopped.await.unwrap();
}
