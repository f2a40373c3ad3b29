//! Memory of the server under load, against the budgets it names; weighed from outside.

use crate::http2::{Client, DATA, Frame, PING};
use crate::keys::{everything, put_all};
use crate::servers::Process;
use bytes::Bytes;
use kine_rs::config::{REPLY_BYTES, WATCH_BYTES};
use prost::Message;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    LeaseKeepAliveRequest, PutRequest, RangeRequest, SnapshotRequest, WatchCreateRequest, WatchRequest,
};
use std::collections::HashSet;
use std::thread;
use tonic::transport::Channel;

const MIB: usize = 1 << 20;
/// What the process may grow beside its budgets: stacks, allocators' own, a page cache of the database, noise.
const SLACK: usize = 40 * MIB;
/// What one HTTP/2 stream costs.
const STREAM_BYTES: usize = 32 << 10;

const KEYS: usize = 46_000;
const VALUE_BYTES: usize = 1_000;
const LIST_BYTES: usize = KEYS * VALUE_BYTES;

async fn fill(server: &Process) -> KvClient<Channel> {
    let mut kv = KvClient::connect(server.url()).await.expect("connected");
    let put = |n: usize| {
        let value = vec![n as u8; VALUE_BYTES].into();
        PutRequest { key: format!("k{n:06}").into(), value, ..Default::default() }
    };
    put_all(&mut kv, (0..KEYS).map(put)).await;
    kv
}

/// Reads a response to its end and throws it away; its length.
fn drain(client: &mut Client, stream: u32) -> usize {
    let mut bytes = 0;
    loop {
        let frame = client.next().expect("the connection goes on");
        if frame.kind == DATA && !frame.payload.is_empty() {
            client.allow(0, frame.payload.len() as u32);
            client.allow(stream, frame.payload.len() as u32);
            bytes += frame.payload.len();
        }
        if frame.ends(stream) {
            return bytes;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_large_lists_at_once_take_a_fraction_of_one() {
    let server = Process::kine(&[]);
    fill(&server).await;
    let before = server.rss_bytes();
    server.forget_peak();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let address = server.address();
            thread::spawn(move || {
                let mut client = Client::with_window(address, MIB as u32);
                client.allow(0, MIB as u32);
                let stream = client.call("/etcdserverpb.KV/Range", &everything());
                assert!(drain(&mut client, stream) > LIST_BYTES);
            })
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().expect("it read all"));
    let grown = server.peak_rss_bytes().saturating_sub(before);
    assert!(grown < LIST_BYTES, "{} MiB for eight lists of {} MiB", grown / MIB, LIST_BYTES / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_lists_that_nobody_reads_stay_within_the_budget_of_replies() {
    const CONNECTIONS: usize = 8;
    const STREAMS: usize = 50;
    /// Fewer replies than fill the budget, whatever they are.
    const HOLDERS: usize = REPLY_BYTES / (4 * MIB);
    let server = Process::kine(&[]);
    let mut kv = fill(&server).await;
    let before = server.rss_bytes();
    server.forget_peak();
    let connect = || {
        let mut client = Client::with_window(server.address(), 64 << 10);
        client.allow(0, (STREAMS * (64 << 10)) as u32);
        let ask = |n: usize| match n % 3 {
            0 => client.call("/etcdserverpb.KV/Range", &everything()),
            1 => client.call("/etcdserverpb.KV/RangeStream", &everything()),
            _ => client.call("/etcdserverpb.Maintenance/Snapshot", &SnapshotRequest {}),
        };
        let streams: Vec<u32> = (0..STREAMS).map(ask).collect();
        (client, streams)
    };
    let (mut first, streams) = connect();
    let mut begun = HashSet::new();
    while begun.len() < HOLDERS {
        let data = |frame: &Frame| frame.kind == DATA && streams.contains(&frame.stream);
        begun.insert(first.until(data).expect("they begin").stream);
    }
    let others: Vec<_> = (1..CONNECTIONS).map(|_| connect()).collect();
    // Others are served meanwhile.
    let one = RangeRequest { key: "k000001".into(), ..Default::default() };
    assert_eq!(kv.range(one).await.expect("answered").into_inner().kvs.len(), 1);
    let grown = server.peak_rss_bytes().saturating_sub(before);
    let allowed = REPLY_BYTES + CONNECTIONS * STREAMS * STREAM_BYTES + SLACK;
    assert!(grown < allowed, "{} MiB, allowed are {}", grown / MIB, allowed / MIB);
    // Whoever waits gets its turn when they are gone.
    drop((first, others));
    let mut client = Client::with_window(server.address(), MIB as u32);
    let stream = client.call("/etcdserverpb.KV/Range", &everything());
    assert!(drain(&mut client, stream) > LIST_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_nobody_reads_stay_within_the_budget_of_watches() {
    const CHANNELS: usize = 8;
    const WATCHES: usize = 64;
    const VALUE: usize = 64 << 10;
    const WRITES: usize = 80;
    /// Of a stream, beside the budget: what the connection holds, the message being sent, the queue's least share.
    const HELD: usize = (256 + 512 + 64) << 10;
    let server = Process::kine(&[]);
    let mut kv = KvClient::connect(server.url()).await.expect("connected");
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        let channel = Channel::from_shared(server.url()).expect("a URL").connect().await.expect("connected");
        channels.push(channel);
    }
    let mut watches = Vec::new();
    for n in 0..WATCHES {
        let create = WatchCreateRequest { key: format!("w{n}").into(), ..Default::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
        let mut client =
            WatchClient::new(channels[n % CHANNELS].clone()).max_decoding_message_size(usize::MAX);
        let mut watch = client.watch(requests).await.expect("opened").into_inner();
        assert!(watch.message().await.expect("answered").expect("open").created);
        watches.push(watch);
    }
    let before = server.rss_bytes();
    server.forget_peak();
    let value = Bytes::from(vec![7; VALUE]);
    let mut revisions = vec![Vec::new(); WATCHES];
    for _ in 0..WRITES {
        for (n, revisions) in revisions.iter_mut().enumerate() {
            let put = PutRequest { key: format!("w{n}").into(), value: value.clone(), ..Default::default() };
            let header = kv.put(put).await.expect("put").into_inner().header;
            revisions.push(header.expect("a header").revision);
        }
    }
    let grown = server.peak_rss_bytes().saturating_sub(before);
    let allowed = WATCH_BYTES + WATCHES * HELD + SLACK;
    assert!(allowed < WATCHES * WRITES * VALUE, "the test writes more than that");
    assert!(grown < allowed, "{} MiB, allowed are {}", grown / MIB, allowed / MIB);
    // And nothing is lost for them. Together, as they share the windows of their connections.
    let read = watches.into_iter().zip(revisions).map(|(mut watch, revisions)| async move {
        let mut seen = Vec::new();
        while seen.len() < revisions.len() {
            let response = watch.message().await.expect("no error").expect("open");
            seen.extend(response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision));
        }
        assert_eq!(seen, revisions);
    });
    futures::future::join_all(read).await;
}

/// One stream after the other is filled with requests up to its window, and no answer is read.
fn flood(server: &Process, path: &str, request: &impl Message, connections: usize, streams: usize) {
    /// What the server takes in for a start, of a stream and of a connection.
    const STREAM_WINDOW: usize = MIB;
    let encoded = request.encode_to_vec();
    let framed = [&[0][..], &(encoded.len() as u32).to_be_bytes(), &encoded].concat();
    let piece = framed.repeat((16 << 10) / framed.len());
    let before = server.rss_bytes();
    server.forget_peak();
    let _clients: Vec<Client> = (0..connections)
        .map(|_| {
            let mut client = Client::sending(server.address());
            for _ in 0..streams {
                let stream = client.open(path);
                for _ in 0..STREAM_WINDOW / piece.len() {
                    client.send(DATA, 0, stream, &piece);
                }
            }
            // Everything before has been taken in once this is answered.
            client.send(PING, 0, 0, b"12345678");
            client.until(|frame| frame.kind == PING).expect("the connection goes on");
            client
        })
        .collect();
    let grown = server.peak_rss_bytes().saturating_sub(before);
    // What the client sent, and about as much again for what became of it.
    let allowed = 2 * connections * streams * STREAM_WINDOW + SLACK;
    assert!(grown < allowed, "{path}: {} MiB, allowed are {}", grown / MIB, allowed / MIB);
}

#[test]
fn requests_whose_answers_nobody_reads_are_not_taken_without_end() {
    let server = Process::kine(&[]);
    flood(&server, "/etcdserverpb.Lease/LeaseKeepAlive", &LeaseKeepAliveRequest { id: 1 << 60 }, 4, 7);
    let create = WatchCreateRequest { key: "some/key".into(), ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    flood(&server, "/etcdserverpb.Watch/Watch", &create, 2, 4);
    let progress = RequestUnion::ProgressRequest(proto::etcdserverpb::WatchProgressRequest {});
    let progress = WatchRequest { request_union: Some(progress) };
    flood(&server, "/etcdserverpb.Watch/Watch", &progress, 4, 7);
}
