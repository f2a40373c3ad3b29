//! WebSockets: their messages and answers have the bounds of other requests and replies.

use crate::servers::Inside;
use crate::stalled::{KEYS, NEVER, SOON, list, put, start};
use futures::{SinkExt, StreamExt};
use kine_rs::config::{Config, Connections};
use proto::etcdserverpb::kv_client::KvClient;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tonic::transport::Channel;

const EVERYTHING: &str = r#"{"key":"aw==","range_end":"bA=="}"#;
/// Most of the memory there is for requests.
const LARGE: usize = 800 << 10;

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(address: SocketAddr, path: &str) -> Socket {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // Not a byte beyond the head: it would be of the socket.
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("answered"));
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        Socket(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("sent");
    }

    /// A part of a message.
    async fn part(&mut self, bytes: Vec<u8>, kind: Data, last: bool) {
        self.0.send(Message::Frame(Frame::message(bytes, OpCode::Data(kind), last))).await.expect("sent");
    }

    async fn next(&mut self) -> Option<Value> {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => Some(serde_json::from_str(&text).expect("JSON")),
            Some(Ok(Message::Close(_)) | Err(_)) | None => None,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_is_one_message_and_whole() {
    let (server, _) = start(NEVER).await;
    let mut socket = Socket::open(server.address(), "/v3/kv/range").await;
    socket.send(EVERYTHING).await;
    let answer = socket.next().await.expect("an answer");
    assert_eq!(answer["kvs"].as_array().map(Vec::len), Some(KEYS));
    assert_eq!(answer["count"], KEYS.to_string());
    assert_eq!(socket.next().await, None);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_not_read_is_closed_and_its_memory_is_free_again() {
    let (server, kv) = start(SOON).await;
    let mut stalled = Socket::open(server.address(), "/v3/kv/range").await;
    stalled.send(EVERYTHING).await;
    stalled.0.get_ref().readable().await.expect("it has begun");
    assert_eq!(list(kv.clone()).await.expect("its turn came"), KEYS);
    drop(stalled);
    server.stop();
}

/// A server with little memory for requests, and a socket with most of it in a message that is not finished.
async fn a_message_arrives(stall_max: Duration) -> (Inside, KvClient<Channel>, Socket) {
    let connections = Connections { stall_max, ..Connections::default() };
    let server = Inside::start(Config { request_bytes: 1 << 20, connections, ..Config::default() });
    let kv = KvClient::connect(server.url()).await.expect("connected");
    let mut socket = Socket::open(server.address(), "/v3/kv/put").await;
    socket.part(vec![b' '; LARGE], Data::Text, false).await;
    (server, kv, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_never_finished_ends_its_socket() {
    let (server, kv, mut socket) = a_message_arrives(SOON).await;
    assert_eq!(socket.next().await, None);
    put(kv, 300 << 10).await.expect("the memory is free again");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_fit_in_memory_ends_its_socket() {
    let (server, kv, mut first) = a_message_arrives(NEVER).await;
    // Answered when everything before it has come.
    first.0.send(Message::Ping("x".into())).await.expect("sent");
    assert_eq!(first.0.next().await.expect("open").expect("a message"), Message::Pong("x".into()));
    let mut second = Socket::open(server.address(), "/v3/kv/put").await;
    second.part(vec![b' '; LARGE], Data::Text, false).await;
    assert_eq!(second.next().await, None);
    let mut small = Socket::open(server.address(), "/v3/kv/put").await;
    small.send(r#"{"key":"Yg=="}"#).await;
    assert!(small.next().await.expect("small ones are not counted")["header"].is_object());
    // The first one is heard to its end, and then its memory is free again.
    first.part(br#"{"key":"YQ=="}"#.to_vec(), Data::Continue, true).await;
    assert!(first.next().await.expect("answered")["header"].is_object());
    put(kv, 300 << 10).await.expect("the memory is free again");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_no_part_of_a_message() {
    // Many more than what is not counted as small, in a socket that sends nothing else.
    let connections = Connections { stall_max: SOON, ..Connections::default() };
    let server = Inside::start(Config { request_bytes: 1, connections, ..Config::default() });
    let mut socket = Socket::open(server.address(), "/v3/watch").await;
    socket.send(r#"{"create_request":{"key":"YQ=="}}"#).await;
    assert_eq!(socket.next().await.expect("an answer")["result"]["created"], true);
    for _ in 0..1000 {
        socket.0.send(Message::Ping(vec![7; 100].into())).await.expect("sent");
        assert!(matches!(socket.0.next().await, Some(Ok(Message::Pong(_)))));
    }
    server.stop();
}
