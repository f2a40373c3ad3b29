//! A watcher that does not read falls behind alone: nobody waits for it, and nothing is lost for it.

use bytes::Bytes;
use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen};
use kine_rs::embed::Datastore;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    PutRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

/// Together more than a stream's queue and more than what the hub keeps in memory.
const WRITES: i64 = 400;
const VALUE_BYTES: usize = 64 << 10;

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watch {
    async fn open(url: &str) -> Watch {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
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

async fn slow_watcher(url: &str) {
    let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    let mut kv = KvClient::new(channel);
    let (mut slow, mut quick) = (Watch::open(url).await, Watch::open(url).await);
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    for n in 0..WRITES {
        let put =
            PutRequest { key: format!("k{}", n % 10).into(), value: value.clone(), ..Default::default() };
        kv.put(put).await.unwrap();
        quick.read_upto(n + 2, n + 2).await;
    }
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

fn over(endpoint: Endpoint) {
    let config =
        Config { endpoint, listen: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())], ..Config::default() };
    let store = Datastore::start(config).unwrap();
    let url = format!("http://{}", store.addresses()[0]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), slow_watcher(&url)).await.expect("no step may hang");
    });
    drop(runtime);
    store.stop(Duration::from_secs(2));
}

#[test]
fn a_watcher_that_does_not_read_misses_nothing_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    over(Endpoint::sqlite(directory.path().join("state.db")).without_fsync());
}

#[test]
fn a_watcher_that_does_not_read_misses_nothing_in_memory() {
    over(Endpoint::Memory);
}
