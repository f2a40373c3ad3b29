//! Clients that do not read what they asked for: they hold what they may, others wait their turn, and then they are cut off.

use crate::http2::{Client, DATA, RST_STREAM};
use crate::keys::{everything, put_all};
use crate::servers::Inside;
use kine_rs::config::{Config, Connections};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::{PutRequest, RangeRequest};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub const KEYS: usize = 3_000;
/// A list of them is more than the buffers of a socket take.
const VALUE_BYTES: usize = 8 << 10;
/// Memory for one large reply at a time.
const ONE_REPLY: usize = 1 << 20;
const TOO_MANY: &str = "etcdserver: too many requests";
const MAX_WINDOW: u32 = u32::MAX >> 1;

/// A server that cuts off at once, or never within a test.
pub async fn start(stall_max: Duration) -> (Inside, KvClient<Channel>) {
    let connections = Connections { stall_max, ..Connections::default() };
    let server = Inside::start(Config { reply_bytes: ONE_REPLY, connections, ..Config::default() });
    let mut kv =
        KvClient::connect(server.url()).await.expect("connected").max_decoding_message_size(usize::MAX);
    let put = |n: usize| {
        let value = vec![n as u8; VALUE_BYTES].into();
        PutRequest { key: format!("k{n:05}").into(), value, ..Default::default() }
    };
    put_all(&mut kv, (0..KEYS).map(put)).await;
    (server, kv)
}

pub const SOON: Duration = Duration::from_millis(200);
pub const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn list(mut kv: KvClient<Channel>) -> Result<usize, Status> {
    Ok(kv.range(everything()).await?.into_inner().kvs.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_is_reset_and_its_memory_is_free_again() {
    let (server, kv) = start(SOON).await;
    let mut stalled = Client::connect(server.address());
    let stream = stalled.call("/etcdserverpb.KV/Range", &everything());
    // It waits for memory, and gets it: the stream above is never read on.
    assert_eq!(list(kv.clone()).await.expect("its turn came"), KEYS);
    let reset = stalled.until(|frame| frame.ends(stream)).expect("the connection goes on");
    assert_eq!(reset.kind, RST_STREAM);
    let small = RangeRequest { key: "k00001".into(), ..Default::default() };
    let stream = stalled.call("/etcdserverpb.KV/Range", &small);
    stalled.allow(0, MAX_WINDOW / 2);
    stalled.until(|frame| frame.kind == DATA && frame.stream == stream).expect("other streams go on");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_read_is_closed_and_its_memory_is_free_again() {
    let (server, kv) = start(SOON).await;
    let mut stalled = Client::with_window(server.address(), MAX_WINDOW);
    stalled.allow(0, MAX_WINDOW - 65_535);
    stalled.call("/etcdserverpb.KV/Range", &everything());
    assert_eq!(list(kv.clone()).await.expect("its turn came"), KEYS);
    drop(stalled);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_client_that_does_not_read_is_cut_off_and_its_memory_is_free_again() {
    let (server, kv) = start(SOON).await;
    let body = r#"{"key":"aw==","range_end":"bA=="}"#;
    let mut stalled = TcpStream::connect(server.address()).expect("the server listens");
    let length = body.len();
    write!(stalled, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("sent");
    stalled.read_exact(&mut [0; 16]).expect("it has begun");
    assert_eq!(list(kv.clone()).await.expect("its turn came"), KEYS);
    drop(stalled);
    server.stop();
}

/// Reads that may wait for memory.
const WAITING_MAX: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_full_refuses_and_those_in_it_get_their_turn() {
    let (server, kv) = start(NEVER).await;
    let mut stalled = Client::connect(server.address());
    let stream = stalled.call("/etcdserverpb.KV/Range", &everything());
    stalled.until(|frame| frame.kind == DATA && frame.stream == stream).expect("it holds the memory");
    // Small replies need none.
    let mut small = kv.clone();
    small.range(RangeRequest { key: "k00001".into(), ..Default::default() }).await.expect("answered");

    const BEYOND: usize = 10;
    let (refusals, mut refused) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..WAITING_MAX + BEYOND {
        let (mut kv, refusals) = (kv.clone(), refusals.clone());
        waiting.spawn(async move {
            // Many keys, but little to send: planned within the memory, and then small.
            let request = RangeRequest { keys_only: true, ..everything() };
            match kv.range(request).await {
                Ok(answer) => usize::from(answer.into_inner().kvs.len() == KEYS),
                Err(status) => {
                    refusals.send(status).expect("the test waits for them");
                    0
                }
            }
        });
    }
    for _ in 0..BEYOND {
        let status = refused.recv().await.expect("one is refused");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, TOO_MANY));
    }
    drop(stalled);
    let answered: usize = waiting.join_all().await.into_iter().sum();
    assert_eq!(answered, WAITING_MAX);
    server.stop();
}

/// Announces a message of this size and sends half of it.
fn half_a_put(client: &mut Client, bytes: usize) -> u32 {
    let stream = client.open("/etcdserverpb.KV/Put");
    let header = [&[0][..], &(bytes as u32).to_be_bytes()].concat();
    client.send(DATA, 0, stream, &header);
    let half = vec![0; bytes / 2];
    for piece in half.chunks(16 << 10) {
        client.send(DATA, 0, stream, piece);
    }
    stream
}

pub async fn put(mut kv: KvClient<Channel>, bytes: usize) -> Result<(), Status> {
    let request = PutRequest { key: "p".into(), value: vec![7; bytes].into(), ..Default::default() };
    kv.put(request).await.map(drop)
}

async fn requests_arrive(stall_max: Duration) -> (Inside, KvClient<Channel>, Client) {
    let connections = Connections { stall_max, ..Connections::default() };
    let server = Inside::start(Config { request_bytes: 1 << 20, connections, ..Config::default() });
    let kv = KvClient::connect(server.url()).await.expect("connected");
    let mut half = Client::sending(server.address());
    let streams: Vec<u32> = (0..2).map(|_| half_a_put(&mut half, 500 << 10)).collect();
    assert_eq!(streams, [1, 3]);
    (server, kv, half)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_fit_in_memory_are_refused() {
    let (server, kv, mut half) = requests_arrive(NEVER).await;
    // The halves arrive beside this connection, and one that meets a put may be refused itself.
    let refusal = loop {
        if let Err(status) = put(kv.clone(), 300 << 10).await {
            break status;
        }
        half_a_put(&mut half, 500 << 10);
    };
    assert_eq!((refusal.code(), refusal.message()), (Code::ResourceExhausted, TOO_MANY));
    put(kv.clone(), 1 << 10).await.expect("small ones are not counted");
    drop(half);
    while put(kv.clone(), 300 << 10).await.is_err() {}
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_never_finished_is_refused_in_the_end() {
    let (server, kv, mut half) = requests_arrive(SOON).await;
    let mut unanswered = HashSet::from([1, 3]);
    while !unanswered.is_empty() {
        let frame = half.next().expect("the connection goes on");
        unanswered.retain(|stream| !frame.ends(*stream));
    }
    put(kv, 300 << 10).await.expect("the memory is free again");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_request_that_is_never_finished_is_refused_in_the_end() {
    let connections = Connections { stall_max: SOON, ..Connections::default() };
    let server = Inside::start(Config { request_bytes: 1 << 20, connections, ..Config::default() });
    let mut half = TcpStream::connect(server.address()).expect("the server listens");
    let length = 800 << 10;
    write!(half, "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 2 * length)
        .expect("sent");
    half.write_all(&vec![b' '; length]).expect("sent");
    half.write_all(br#"{"key":"YQ==","value":""#).expect("sent");
    half.write_all(&vec![b'A'; length / 2]).expect("sent");
    let mut head = [0; 12];
    half.read_exact(&mut head).expect("answered");
    assert_eq!(&head, b"HTTP/1.1 429");
    let kv = KvClient::connect(server.url()).await.expect("connected");
    put(kv, 900 << 10).await.expect("the memory is free again");
    server.stop();
}
