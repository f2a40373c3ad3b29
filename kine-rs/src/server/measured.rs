//! Bodies of requests and responses; those of gRPC calls count what passes: messages, bytes, and the status at the end.
//!
//! Each is one type for all cases, so that no body is boxed only to be counted.

use crate::metrics::grpc::{Call, Grpc, MessageCounter, Method};
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntCounter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::{Code, Status};

/// What a client sends.
pub struct Received {
    source: Source,
    counted: Option<(Arc<Method>, Counts)>,
}

enum Source {
    Client(Incoming),
    Gateway(Body),
}

/// Bytes and messages of one body.
struct Counts {
    bytes: IntCounter,
    messages: MessageCounter,
}

impl Counts {
    fn new(bytes: IntCounter) -> Self {
        Counts { bytes, messages: MessageCounter::default() }
    }

    /// Counts the bytes; the messages that begin in this piece are for the caller to count.
    fn feed(&mut self, piece: &[u8]) -> u64 {
        self.bytes.inc_by(piece.len() as u64);
        self.messages.feed(piece)
    }
}

impl From<Incoming> for Received {
    fn from(body: Incoming) -> Self {
        Received { source: Source::Client(body), counted: None }
    }
}

impl From<Body> for Received {
    fn from(body: Body) -> Self {
        Received { source: Source::Gateway(body), counted: None }
    }
}

impl Received {
    /// The same, counted as this method's.
    pub fn counted(self, method: Arc<Method>, grpc: &Grpc) -> Self {
        Received { counted: Some((method, Counts::new(grpc.received_bytes.clone()))), ..self }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = match &mut self.source {
            Source::Client(body) => {
                ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(Into::into))
            }
            Source::Gateway(body) => {
                ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map_err(Into::into))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Some((method, counts)) = &mut self.counted
        {
            method.received.inc_by(counts.feed(data));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Client(body) => body.is_end_stream(),
            Source::Gateway(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Client(body) => body.size_hint(),
            Source::Gateway(body) => body.size_hint(),
        }
    }
}

/// What a client gets.
pub struct Sent {
    body: Body,
    counted: Option<(Call, Counts)>,
}

impl From<Body> for Sent {
    fn from(body: Body) -> Self {
        Sent { body, counted: None }
    }
}

impl Sent {
    /// A response whose status ends the call: in its headers, or later in its trailers.
    pub fn response(response: Response<Body>, mut call: Call, bytes: IntCounter) -> Response<Sent> {
        match status(response.headers()) {
            Some(code) => {
                call.finish(code);
                response.map(Sent::from)
            }
            None => response.map(|body| Sent { body, counted: Some((call, Counts::new(bytes))) }),
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let sent = self.get_mut();
        let frame = ready!(Pin::new(&mut sent.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some((call, counts)) = &mut sent.counted
        {
            if let Some(data) = frame.data_ref() {
                call.method().sent.inc_by(counts.feed(data));
            } else if let Some(code) = frame.trailers_ref().and_then(status) {
                call.finish(code);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn status(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}
