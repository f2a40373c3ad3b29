//! WebSockets on the gateway's paths: what a client would write into the body of a request comes as messages, what it
//! would read line by line goes as messages.
//!
//! One session is one call. It ends when either side has said its last word: the call's answer is complete, or the client
//! closes, or the server stops: then the call is told that its client has said all. A session runs in the task of the
//! connection it took over (see `server`), so it counts among the connections, and as a request for as long as it lasts.
//! Handshake, framing and pings are tungstenite's; etcd's peculiarities are here: a token comes as a subprotocol or as a
//! cookie, because pages of a browser can set nothing else.
//!
//! Memory is counted as for other requests and replies: see `arriving` for what comes. A line goes in as many frames as the
//! gateway makes it in, and what the answer holds of the budget is held until its last frame is written.

mod arriving;

use super::gateway;
use crate::api::reply::Held;
use crate::config::Http;
use crate::server::http::text;
use crate::server::requests::Admitted;
use crate::server::service::Faces;
use ::http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use arriving::Arriving;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Sink, SinkExt, Stream, StreamExt};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Piece;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tonic::body::Body;

/// What a server appends to a client's key before it is hashed (RFC 6455, section 4.2.2).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const VERSION: &str = "13";
/// Length of a client's key once it is decoded.
const KEY_BYTES: usize = 16;
/// Messages that wait for the call to take them; one more is left in the socket.
const WAITING_MESSAGES: usize = 1;
/// What a session reads at once. Most messages are a line, and sessions are many.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// The subprotocol that carries a token: `Bearer, <token>`.
const BEARER: &str = "Bearer";
const TOKEN_COOKIE: &str = "token";

/// Whether the client wants to speak WebSocket on this connection.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let lists = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    };
    lists(CONNECTION, "upgrade") && lists(UPGRADE, "websocket")
}

/// Answers the handshake and leaves the session with the connection, which starts it once the answer is out.
pub fn accept(faces: &Faces, mut request: Request<Body>, options: &Http) -> Response<Body> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| is_key(key));
    let version = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == VERSION);
    let (Some(key), true) = (key.cloned(), version) else { return refused(StatusCode::BAD_REQUEST) };
    if !origin_allowed(options, headers) {
        return text(StatusCode::FORBIDDEN, "pages of this origin may not connect\n");
    }
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|protocol| protocol.to_str().ok());
    let bearer = protocol.is_some_and(|protocol| protocol.starts_with(BEARER));
    let call = Call::of(request.uri().clone(), headers);
    let upgrade = hyper::upgrade::on(&mut request);
    faces.take_over(|faces, stop| call.run(faces, upgrade, stop));

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, acceptance(&key));
    if bearer {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    response
}

/// The call a session makes, on behalf of whoever opened it.
struct Call {
    uri: Uri,
    headers: HeaderMap,
}

impl Call {
    fn of(uri: Uri, asked: &HeaderMap) -> Call {
        let mut headers = HeaderMap::new();
        for name in [HOST, ORIGIN] {
            if let Some(value) = asked.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if let Some(token) = token(asked) {
            headers.insert(AUTHORIZATION, token);
        }
        Call { uri, headers }
    }

    async fn run(self, faces: Faces, upgrade: OnUpgrade, stop: BoxFuture<'static, ()>) {
        let Some(mut admitted) = faces.admit() else { return };
        let connection = match upgrade.await {
            Ok(connection) => TokioIo::new(connection),
            Err(error) => {
                tracing::debug!(%error, "a client left before its WebSocket was open");
                return;
            }
        };
        let bytes_max = Some(super::json_bytes_max(&faces));
        let config = WebSocketConfig::default()
            .max_message_size(bytes_max)
            .max_frame_size(bytes_max)
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0);
        let arriving = Arriving::new(faces.arrivals());
        let connection = arriving.of(connection);
        let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
        let (mut to_client, from_client) = socket.split();
        let (to_call, messages) = mpsc::channel(WAITING_MESSAGES);
        let body = Body::new(StreamBody::new(ReceiverStream::new(messages)));
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) =
            (Method::POST, self.uri, self.headers);
        tokio::select! {
            () = read(from_client, &arriving, to_call, stop) => {}
            () = arriving.stalled() => tracing::debug!("a WebSocket ends: its client does not finish a message"),
            () = write(gateway(&faces, request), &mut to_client, &mut admitted) => {}
        }
        // The client may be gone.
        to_client.close().await.ok();
    }
}

/// Feeds the call until the client has nothing more to say; from a stop on it is not listened to.
async fn read<E: std::fmt::Display>(
    mut from_client: impl Stream<Item = Result<Message, E>> + Unpin,
    arriving: &Arriving,
    to_call: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    mut stop: BoxFuture<'static, ()>,
) {
    loop {
        let message = tokio::select! {
            message = from_client.next() => message,
            () = &mut stop => {
                drop(to_call);
                return std::future::pending().await;
            }
        };
        let Some(message) = message else { return };
        let payload = match message {
            Ok(Message::Text(text)) => Bytes::from(text),
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Close(_)) => return,
            // Pings are answered where they are read.
            Ok(control) => {
                arriving.aside(control.len());
                continue;
            }
            Err(error) => return tracing::debug!(%error, "a WebSocket ended"),
        };
        if to_call.send(Ok(Frame::data(arriving.whole(payload)))).await.is_err() {
            // The call takes no more, but its answer may still be under way.
            std::future::pending::<()>().await;
        }
    }
}

/// Sends the call's answer, each line a message. The gateway's body has a line in one frame or in several, and the next one
/// in another; the last line need not end.
async fn write<S>(answer: impl Future<Output = Response<Body>>, to_client: &mut S, admitted: &mut Admitted)
where
    S: Sink<Message> + Unpin,
{
    let mut answer = answer.await;
    let held = answer.extensions_mut().remove::<Held>();
    if held.is_some() {
        admitted.hold();
    }
    let mut body = answer.into_body();
    let mut begun = false;
    while let Some(frame) = body.frame().await {
        // What breaks off stays without an end: nobody must take it for the whole.
        let Ok(frame) = frame else { return };
        let Ok(mut line) = frame.into_data() else { continue };
        let ends = line.ends_with(b"\n");
        if ends {
            line.truncate(line.len() - 1);
        }
        let last = ends || body.is_end_stream();
        if to_client.send(piece(line, begun, last)).await.is_err() {
            return;
        }
        begun = !last;
    }
    if begun {
        to_client.send(piece(Bytes::new(), begun, true)).await.ok();
    }
}

/// A part of a message: the first one says what the message is.
fn piece(line: Bytes, begun: bool, last: bool) -> Message {
    let kind = if begun { Data::Continue } else { Data::Text };
    Message::Frame(Piece::message(line, OpCode::Data(kind), last))
}

/// As `Authorization` would have it.
fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut cookies =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.split_once('='));
    let cookie = cookies.find(|(name, _)| name.trim() == TOKEN_COOKIE).map(|(_, value)| value.trim());
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|protocol| protocol.to_str().ok());
    let offered = protocol.and_then(|protocol| Some(protocol.split_once("Bearer,")?.1.trim()));
    HeaderValue::try_from(format!("{BEARER} {}", cookie.or(offered)?)).ok()
}

/// Unlike a plain request, a socket of a page tells the page everything: the origin must be one that may read answers.
fn origin_allowed(options: &Http, headers: &HeaderMap) -> bool {
    match headers.get(ORIGIN) {
        None => true,
        Some(origin) => options.cors.iter().any(|allowed| allowed == "*" || allowed == origin),
    }
}

fn is_key(key: &HeaderValue) -> bool {
    BASE64_STANDARD.decode(key.as_bytes()).is_ok_and(|key| key.len() == KEY_BYTES)
}

fn acceptance(key: &HeaderValue) -> HeaderValue {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), ACCEPT_SUFFIX.as_bytes()].concat());
    HeaderValue::try_from(BASE64_STANDARD.encode(hash)).expect("base64 can be a header")
}

/// As the library etcd uses: the reason is the status, and the version that is spoken.
fn refused(status: StatusCode) -> Response<Body> {
    let mut response = text(status, format!("{}\n", status.canonical_reason().unwrap_or_default()));
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(::http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header"))).collect()
    }

    #[test]
    fn a_handshake_is_recognised_in_every_spelling() {
        assert!(is_wanted(&headers(&[(CONNECTION, "keep-alive, Upgrade"), (UPGRADE, "WebSocket")])));
        assert!(!is_wanted(&headers(&[(CONNECTION, "keep-alive"), (UPGRADE, "websocket")])));
        assert!(!is_wanted(&headers(&[(CONNECTION, "Upgrade"), (UPGRADE, "h2c")])));
    }

    #[test]
    fn a_key_is_accepted_as_the_standard_says() {
        // The example of RFC 6455, section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(is_key(&key));
        assert_eq!(acceptance(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!is_key(&HeaderValue::from_static("c2hvcnQ=")));
    }

    #[test]
    fn a_token_comes_as_a_subprotocol_or_as_a_cookie() {
        let token = |pairs: &[_]| token(&headers(pairs)).map(|token| token.to_str().unwrap().to_owned());
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer, abc.1")]), Some("Bearer abc.1".into()));
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer,abc.1")]), Some("Bearer abc.1".into()));
        assert_eq!(token(&[(SEC_WEBSOCKET_PROTOCOL, "chat")]), None);
        let both = [(SEC_WEBSOCKET_PROTOCOL, "Bearer, abc.1"), (COOKIE, "a=b; token=def.2")];
        assert_eq!(token(&both), Some("Bearer def.2".into()));
    }

    #[test]
    fn a_page_needs_leave_to_connect() {
        let allowed = |cors: &[&str], origin: &[_]| {
            let cors = cors.iter().map(|origin| (*origin).to_owned()).collect();
            origin_allowed(&Http { cors, ..Http::default() }, &headers(origin))
        };
        assert!(allowed(&[], &[]));
        assert!(!allowed(&[], &[(ORIGIN, "http://a")]));
        assert!(allowed(&["*"], &[(ORIGIN, "http://a")]));
        assert!(!allowed(&["http://b"], &[(ORIGIN, "http://a")]));
    }
}
