//! WebSockets on the gateway's paths, as a page of a browser would use them.

use crate::process::{DEADLINE, Face, Ports, etcds, post, same};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

/// The example of RFC 6455.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTED: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

struct Socket(WebSocketStream<TcpStream>);

/// Opens a socket; the head of a refusal.
async fn open(address: SocketAddr, path: &str, headers: &str) -> Result<Socket, String> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // Not a byte beyond the head: it would be of the socket.
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("answered"));
    }
    let answer = String::from_utf8(answer).expect("text");
    if !answer.starts_with("HTTP/1.1 101 ") {
        return Err(answer);
    }
    let lower = answer.to_lowercase();
    assert!(lower.contains(&ACCEPTED.to_lowercase()), "{answer}");
    assert_eq!(lower.contains("sec-websocket-protocol: bearer\r\n"), headers.contains("Bearer"), "{answer}");
    Ok(Socket(WebSocketStream::from_raw_socket(stream, Role::Client, None).await))
}

impl Socket {
    async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.expect("sent");
    }

    /// The next message; `None` when there are no more.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let next = timeout(DEADLINE, self.0.next()).await.expect("an answer in time");
            match next {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).expect("JSON")),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }
}

/// Asks both in their own time; the ports are the same, so that ids are too.
fn compare<T, F>(ask: impl Fn(Ports) -> F) -> T
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = T>,
{
    let ports = Ports::new();
    same(&etcds(), |face: &Face| {
        let running = face.start(ports, &[]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let answer = runtime.block_on(ask(ports));
        drop(runtime);
        running.end();
        answer
    })
}

/// The codes and texts of an error, without the copy of the text that is for old clients.
fn error(value: Option<Value>) -> Value {
    let value = value.expect("an answer");
    let error = if value["error"].is_object() { &value["error"] } else { &value };
    json!([error["code"], error["message"]])
}

fn put(ports: Ports, key: &str) {
    let body = format!(r#"{{"key":"{key}","value":"eA=="}}"#);
    let answer = post(ports.client(), "/v3/kv/put", &body);
    assert!(answer["code"].is_null(), "{answer}");
}

#[test]
fn a_watch_takes_requests_and_sends_events() {
    let messages = compare(|ports| async move {
        let mut socket = open(ports.client(), "/v3/watch", "").await.expect("open");
        socket.send(json!({"create_request": {"key": "YQ==", "watch_id": "5"}})).await;
        let mut messages = vec![socket.next().await];
        put(ports, "YQ==");
        messages.push(socket.next().await);
        // A second request on the same stream, in binary and in two messages' worth of JSON at once.
        let both = br#"{"create_request":{"key":"Yg=="}}{"cancel_request":{"watch_id":"5"}}"#;
        socket.0.send(Message::binary(both.to_vec())).await.expect("sent");
        messages.extend([socket.next().await, socket.next().await]);
        put(ports, "Yg==");
        messages.push(socket.next().await);
        // Pings are answered while messages go.
        socket.0.send(Message::Ping("x".into())).await.expect("sent");
        let pong =
            timeout(DEADLINE, socket.0.next()).await.expect("in time").expect("open").expect("a message");
        assert_eq!(pong, Message::Pong("x".into()));
        socket.0.close(None).await.expect("closed");
        messages
    });
    let event = &messages[4].as_ref().expect("an event")["result"]["events"][0];
    assert_eq!(event["kv"]["key"], "Yg==");
}

#[test]
fn a_lease_is_kept_alive_message_by_message() {
    compare(|ports| async move {
        let grant = post(ports.client(), "/v3/lease/grant", r#"{"TTL":"100","ID":"7"}"#);
        assert_eq!(grant["ID"], "7");
        let mut socket = open(ports.client(), "/v3/lease/keepalive", "").await.expect("open");
        let mut answers = Vec::new();
        for id in ["7", "8", "7"] {
            socket.send(json!({"ID": id})).await;
            answers.push(socket.next().await);
        }
        answers
    });
}

#[test]
fn a_call_with_one_answer_ends_the_socket_with_it() {
    // etcd 3.7 waits for the end of the request's body, which for a socket is its end, and so never answers.
    let (ports, faces) = (Ports::new(), etcds());
    let running = faces[1].start(ports, &[]);
    put(ports, "YQ==");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let mut socket = open(ports.client(), "/v3/kv/range?method=DELETE", "").await.expect("open");
        socket.send(json!({"key": "YQ=="})).await;
        assert_eq!(socket.next().await.expect("an answer")["count"], "1");
        assert_eq!(socket.next().await, None);
        let mut refused = open(ports.client(), "/v3/kv/range", "").await.expect("open");
        refused.send(json!({})).await;
        assert_eq!(error(refused.next().await), json!([3, "etcdserver: key is not provided"]));
    });
    running.end();
}

#[test]
fn errors_are_messages_too() {
    compare(|ports| async move {
        let mut unknown = open(ports.client(), "/v3/nope", "").await.expect("open");
        (error(unknown.next().await), unknown.next().await)
    });
    // etcd only writes into its log that it could not read a message of a stream, and leaves the client waiting.
    let (ports, faces) = (Ports::new(), etcds());
    let running = faces[1].start(ports, &[]);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let mut wrong = open(ports.client(), "/v3/watch", "").await.expect("open");
        wrong.0.send(Message::text("{]")).await.expect("sent");
        assert_eq!(error(wrong.next().await)[0], 3);
        assert_eq!(wrong.next().await, None);
    });
    running.end();
}

#[test]
fn a_token_comes_as_a_subprotocol_or_as_a_cookie() {
    let answers = compare(|ports| async move {
        let setup = [
            ("user/add", r#"{"name":"root","password":"r"}"#),
            ("role/add", r#"{"name":"root"}"#),
            ("user/grant", r#"{"user":"root","role":"root"}"#),
            ("enable", "{}"),
        ];
        for (path, body) in setup {
            let answer = post(ports.client(), &format!("/v3/auth/{path}"), body);
            assert!(answer["code"].is_null(), "{path}: {answer}");
        }
        let login = post(ports.client(), "/v3/auth/authenticate", r#"{"name":"root","password":"r"}"#);
        let token = login["token"].as_str().expect("a token").to_owned();
        let headers = [
            String::new(),
            "Sec-WebSocket-Protocol: Bearer, wrong.1\r\n".to_owned(),
            format!("Sec-WebSocket-Protocol: Bearer, {token}\r\n"),
            format!("Cookie: a=b; token={token}\r\n"),
            format!("Cookie: token={token}\r\nSec-WebSocket-Protocol: Bearer, wrong.1\r\n"),
        ];
        let mut answers = Vec::new();
        for headers in headers {
            let mut socket = open(ports.client(), "/v3/watch", &headers).await.expect("open");
            socket.send(json!({"create_request": {"key": "YQ=="}})).await;
            answers.push(socket.next().await.expect("an answer"));
        }
        answers
    });
    let refused: Vec<_> = answers.iter().map(|answer| answer["result"]["canceled"] == true).collect();
    assert_eq!(refused, [true, true, false, false, false], "{answers:?}");
}

#[test]
fn a_page_of_another_origin_connects_only_with_leave() {
    // etcd opens sockets to every page, whatever --cors says.
    let (ports, faces) = (Ports::new(), etcds());
    let running = faces[1].start(ports, &["--cors=http://good:1"]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let status = |origin: &str| {
        let origin = format!("Origin: {origin}\r\n");
        let opened = runtime.block_on(open(ports.client(), "/v3/watch", &origin));
        opened.err().map(|head| head[9..12].to_owned())
    };
    assert_eq!(status("http://good:1"), None);
    assert_eq!(status("http://evil").as_deref(), Some("403"));
    running.end();
}

#[test]
fn an_open_socket_does_not_hold_up_a_stop() {
    let (ports, faces) = (Ports::new(), etcds());
    let running = faces[1].start(ports, &[]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut keepalive = open(ports.client(), "/v3/lease/keepalive", "").await.expect("open");
        let mut watch = open(ports.client(), "/v3/watch", "").await.expect("open");
        watch.send(json!({"create_request": {"key": "YQ=="}})).await;
        assert_eq!(watch.next().await.expect("created")["result"]["created"], true);
        let ended = tokio::task::spawn_blocking(move || running.end());
        assert_eq!(error(watch.next().await), json!([14, "etcdserver: server stopped"]));
        assert_eq!(watch.next().await, None);
        assert_eq!(keepalive.next().await, None);
        timeout(Duration::from_secs(30), ended).await.expect("in time").expect("no panic");
    });
}
