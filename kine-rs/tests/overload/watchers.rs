//! Ten thousand watchers, however they are spread: each gets its events, once, in order.

use crate::keys::put_all;
use crate::servers::{Inside, Process};
use kine_rs::config::Config;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use std::collections::HashMap;
use std::ops::Range;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const WATCHERS: usize = 10_000;

/// A stream of watchers, each of one key.
struct Stream {
    responses: Streaming<WatchResponse>,
    /// Watched keys by watch id.
    keys: HashMap<i64, usize>,
    _requests: mpsc::Sender<WatchRequest>,
}

async fn connect(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).expect("a URL").connect().await.expect("connected")
}

fn name(key: usize) -> String {
    format!("watched/{key}")
}

impl Stream {
    /// Watches `keys`, one watcher for each.
    async fn open(channel: &Channel, keys: impl Iterator<Item = usize>) -> Stream {
        let (requests, sent) = mpsc::channel(64);
        let keys: Vec<usize> = keys.collect();
        let wanted = keys.clone();
        let sender = requests.clone();
        tokio::spawn(async move {
            for key in wanted {
                let create = WatchCreateRequest { key: name(key).into(), ..Default::default() };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                sender.send(request).await.expect("the stream is open");
            }
        });
        let client = WatchClient::new(channel.clone());
        let mut responses = client
            .max_decoding_message_size(usize::MAX)
            .watch(ReceiverStream::new(sent))
            .await
            .expect("opened")
            .into_inner();
        let mut ids = HashMap::new();
        for key in keys {
            let response = responses.message().await.expect("answered").expect("open");
            assert!(response.created && !response.canceled, "{response:?}");
            assert_eq!(ids.insert(response.watch_id, key), None);
        }
        Stream { responses, keys: ids, _requests: requests }
    }

    /// Reads as many events for each watcher; they must be those of its key, once each, in order.
    async fn expect(&mut self, events: usize) {
        let mut seen: HashMap<i64, Vec<i64>> = HashMap::new();
        let mut left = events * self.keys.len();
        while left > 0 {
            let response = self.responses.message().await.expect("no error").expect("open");
            let key = self.keys[&response.watch_id];
            for event in response.events {
                let kv = event.kv.expect("a key");
                assert_eq!(kv.key, name(key));
                seen.entry(response.watch_id).or_default().push(kv.version);
                left -= 1;
            }
        }
        let last = seen.values().next().expect("there are watchers").last().copied().expect("an event");
        let expected: Vec<i64> = (last - events as i64 + 1..=last).collect();
        assert!(seen.values().all(|versions| *versions == expected), "{expected:?}");
    }
}

async fn put(kv: &mut KvClient<Channel>, keys: Range<usize>) {
    let put = |key| PutRequest { key: name(key).into(), value: "v".into(), ..Default::default() };
    put_all(kv, keys.map(put)).await;
}

/// Spreads watchers over streams of one connection and writes every key twice.
async fn every_watcher_gets_its_events(streams: usize) {
    let server = Inside::start(Config::default());
    let channel = connect(&server.url()).await;
    let per_stream = WATCHERS / streams;
    let mut open = Vec::new();
    for stream in 0..streams {
        open.push(Stream::open(&channel, stream * per_stream..(stream + 1) * per_stream).await);
    }
    // On another connection: what is watched waits for nobody.
    let mut kv = KvClient::new(connect(&server.url()).await);
    for _ in 0..2 {
        put(&mut kv, 0..WATCHERS).await;
    }
    for stream in &mut open {
        stream.expect(2).await;
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watchers_on_one_stream_get_their_events_once() {
    every_watcher_gets_its_events(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watchers_on_a_hundred_streams_of_one_connection_get_their_events_once() {
    every_watcher_gets_its_events(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watchers_on_a_thousand_streams_of_one_connection_get_their_events_once() {
    every_watcher_gets_its_events(1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watchers_of_one_key_get_each_of_its_events_once() {
    const EVENTS: usize = 20;
    let server = Inside::start(Config::default());
    let channel = connect(&server.url()).await;
    let mut stream = Stream::open(&channel, std::iter::repeat_n(0, WATCHERS)).await;
    let mut kv = KvClient::new(connect(&server.url()).await);
    for _ in 0..EVENTS {
        put(&mut kv, 0..1).await;
    }
    stream.expect(EVENTS).await;
    server.stop();
}

/// Memory of a watcher: its place in the hub, its key, and its share of the stream.
const WATCHER_BYTES_MAX: usize = 2 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_costs_little() {
    let server = Process::kine(&[]);
    let channel = connect(&server.url()).await;
    // What the first of everything costs is not theirs.
    let first = Stream::open(&channel, 0..100).await;
    let before = server.rss_bytes();
    let more = Stream::open(&channel, 100..100 + WATCHERS).await;
    let each = server.rss_bytes().saturating_sub(before) / WATCHERS;
    eprintln!("{each} bytes for each of {WATCHERS} watchers");
    assert!(each < WATCHER_BYTES_MAX, "{each} bytes");
    drop((first, more));
}
