//! Bodies of gRPC calls that count what passes: messages, bytes, and the status in the trailers.

use crate::metrics::grpc::{Call, Grpc, MessageCounter, Method};
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntCounter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::{Code, Status};

/// What a client sends.
pub struct Received {
    body: Body,
    method: Arc<Method>,
    bytes: IntCounter,
    messages: MessageCounter,
}

impl Received {
    pub fn body(body: Body, method: Arc<Method>, grpc: &Grpc) -> Body {
        Body::new(Received {
            body,
            method,
            bytes: grpc.received_bytes.clone(),
            messages: MessageCounter::default(),
        })
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let messages = self.messages.feed(data);
            self.bytes.inc_by(data.len() as u64);
            self.method.received.inc_by(messages);
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

/// What a client gets.
pub struct Sent {
    body: Body,
    call: Call,
    bytes: IntCounter,
    messages: MessageCounter,
}

impl Sent {
    /// A response whose status ends the call: in its headers, or later in its trailers.
    pub fn response(response: Response<Body>, mut call: Call, bytes: IntCounter) -> Response<Body> {
        match status(response.headers()) {
            Some(code) => {
                call.finish(code);
                response
            }
            None => response
                .map(|body| Body::new(Sent { body, call, bytes, messages: MessageCounter::default() })),
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let messages = self.messages.feed(data);
                self.bytes.inc_by(data.len() as u64);
                self.call.method().sent.inc_by(messages);
            } else if let Some(code) = frame.trailers_ref().and_then(status) {
                self.call.finish(code);
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
