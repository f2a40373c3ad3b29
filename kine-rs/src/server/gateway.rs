//! The JSON gateway: `POST /v3/...` is the gRPC call of the same meaning, transcoded.
//!
//! Requests become gRPC requests to the very service the port serves, so every rule (limits, authentication, metrics) is
//! that service's own. What messages look like comes from the descriptors; only the paths are listed here. Statuses,
//! bodies of errors and the form of streams are those of etcd's gateway.

pub mod websocket;

mod paths;
mod transcode;
pub mod wire;

use super::http::{JSON, answer};
use super::measured::Received;
use super::service::Faces;
use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, TE};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use futures::Stream;
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use prost_reflect::MessageDescriptor;
use serde_json::json;
use std::pin::Pin;
use tonic::body::Body;
use tonic::{Code, Status};
use transcode::Transcoder;
use wire::{Messages, Values, to_json};

/// JSON is larger than the message it stands for: base64 and names.
const JSON_PER_MESSAGE: usize = 2;
/// A message up to this size is turned into JSON as a whole, a larger one in pieces.
const WHOLE_BYTES_MAX: usize = 64 << 10;

/// `/v3beta/` is what it was called once; etcd still answers there.
pub fn is_gateway(path: &str) -> bool {
    path.starts_with("/v3/") || path.starts_with("/v3beta/")
}

pub async fn gateway(faces: &Faces, request: Request<Body>) -> Response<Body> {
    let Some(method) = paths::method(request.uri().path()) else {
        return refused(StatusCode::NOT_FOUND, Code::NotFound, "Not Found");
    };
    if request.method() != Method::POST {
        return refused(StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, "Method Not Allowed");
    }
    let (input, output) = (method.input(), method.output());
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let (parts, body) = request.into_parts();
    let values = Values::new(body, input, json_bytes_max(faces), faces.arrivals());
    let body = if method.is_client_streaming() {
        Body::new(StreamBody::new(values.into_frames()))
    } else {
        match values.only().await {
            Ok(message) => Body::new(Full::new(message)),
            Err(status) => return failed(&status),
        }
    };
    let response = faces.grpc(call(&path, &parts.headers, body).map(Received::from), None).await;
    let Ok(mut response) = response;
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        return failed(&status);
    }
    // What the answer holds is held until its JSON is written.
    let held = response.body_mut().take_held();
    let messages = Messages::new(response.into_body());
    let mut response = if method.is_server_streaming() {
        stream(messages, output).await
    } else {
        single(messages, output).await
    };
    if let Some(held) = held {
        response.extensions_mut().insert(held);
    }
    response
}

/// The largest request a client may send.
fn json_bytes_max(faces: &Faces) -> usize {
    faces.arrivals().message_bytes_max * JSON_PER_MESSAGE
}

/// The gRPC request; who the client says it is goes along.
fn call(path: &str, headers: &HeaderMap, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build();
    *request.uri_mut() = uri.unwrap_or_else(|_| Uri::try_from(path).expect("paths of methods are paths"));
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    if let Some(token) = headers.get(AUTHORIZATION) {
        request.headers_mut().insert(AUTHORIZATION, token.clone());
    }
    request
}

async fn single(mut messages: Messages, output: MessageDescriptor) -> Response<Body> {
    let length = match messages.begin().await {
        Some(Ok(length)) => length,
        Some(Err(status)) => return failed(&status),
        None => return failed(&Status::internal("the call ended without an answer")),
    };
    if length > WHOLE_BYTES_MAX {
        return answered(Body::new(StreamBody::new(long(messages, output, length))));
    }
    let message = match messages.whole().await {
        Ok(message) => message,
        Err(status) => return failed(&status),
    };
    // The status of the call comes after its answer.
    match messages.begin().await {
        None => answered(Body::new(Full::new(to_json(&output, message).into()))),
        Some(Err(status)) => failed(&status),
        Some(Ok(_)) => failed(&Status::internal("the call has more than one answer")),
    }
}

/// A line of JSON for each message. The first one is awaited: an error before it is an error of the whole request.
async fn stream(mut messages: Messages, output: MessageDescriptor) -> Response<Body> {
    let first = match messages.begin().await {
        Some(Err(status)) => {
            return answer(http_status(status.code()), JSON, json!({"error": error(&status)}).to_string());
        }
        first => first,
    };
    answered(Body::new(StreamBody::new(lines(first, messages, output))))
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Status>> + Send>>;

/// The JSON of a message that was begun, piece by piece. An error breaks it off.
fn long(mut messages: Messages, output: MessageDescriptor, length: usize) -> Pieces {
    Box::pin(async_stream::try_stream! {
        let mut transcoder = Transcoder::new(output, length);
        while let Some(piece) = transcoder.next(&mut messages).await? {
            yield Frame::data(piece);
        }
        if let Some(Err(status)) = messages.begin().await {
            Err(status)?;
        }
    })
}

fn lines(first: Option<Result<usize, Status>>, mut messages: Messages, output: MessageDescriptor) -> Pieces {
    Box::pin(async_stream::try_stream! {
        let mut next = first;
        while let Some(begun) = next {
            match begun {
                Ok(length) if length > WHOLE_BYTES_MAX => {
                    yield Frame::data(Bytes::from_static(br#"{"result":"#));
                    let mut transcoder = Transcoder::new(output.clone(), length);
                    while let Some(piece) = transcoder.next(&mut messages).await? {
                        yield Frame::data(piece);
                    }
                    yield Frame::data(Bytes::from_static(b"}\n"));
                }
                Ok(_) => {
                    let message = messages.whole().await?;
                    let mut line = br#"{"result":"#.to_vec();
                    line.extend_from_slice(&to_json(&output, message));
                    line.extend_from_slice(b"}\n");
                    yield Frame::data(line.into());
                }
                Err(status) => {
                    let line = format!("{}\n", json!({"error": error(&status)}));
                    yield Frame::data(line.into());
                }
            }
            next = messages.begin().await;
        }
    })
}

fn answered(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response.headers_mut().insert("grpc-metadata-content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn failed(status: &Status) -> Response<Body> {
    answer(http_status(status.code()), JSON, error(status).to_string())
}

fn refused(http: StatusCode, code: Code, text: &str) -> Response<Body> {
    answer(http, JSON, error(&Status::new(code, text)).to_string())
}

/// The text twice: `message` is for clients of today, `error` for those of etcd 3.5 and before.
fn error(status: &Status) -> serde_json::Value {
    json!({"error": status.message(), "code": status.code() as i32, "message": status.message()})
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).expect("a status of three digits"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
