//! Bodies of requests and responses; those of gRPC calls count what passes: messages, bytes, and the status at the end.
//!
//! Each is one type for all cases, so that no body is boxed only to be counted. A response also keeps what its request
//! counts for: its place among the requests under way, and the memory that a reply which is not small holds until the
//! connection has written all of it.

use super::requests::Admitted;
use super::stalls;
use crate::api::reply::{Held, PIECE_BYTES};
use crate::budget::{Budget, Exhausted, Taken, UNCOUNTED_BYTES_MAX};
use crate::metrics::grpc::{Call, Grpc, MessageCounter, Method};
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus::IntCounter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::{Code, Status};

/// etcd waits for ever.
pub const UNFINISHED: &str = "etcdserver: the request was not sent to its end in time";

/// What a client sends.
pub struct Received {
    source: Source,
    counted: Option<Counted>,
}

enum Source {
    Client(Incoming),
    Gateway(Body),
}

/// The body of a known call.
struct Counted {
    method: Arc<Method>,
    counts: Counts,
    arrivals: Arrivals,
    large: Option<Large>,
}

/// Memory that messages take while they arrive, unless they are small.
#[derive(Clone)]
pub struct Arrivals {
    pub budget: Arc<Budget>,
    pub message_bytes_max: usize,
    /// How long a client may leave such a message unfinished without sending more of it.
    pub stall_max: Duration,
}

/// A message that is not small: what it takes until the next one begins, and by when more of it must come.
struct Large {
    _taken: Taken,
    deadline: Option<Pin<Box<Sleep>>>,
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

    /// Counts the bytes; the messages that begin in this piece, whose lengths are told, are for the caller to count.
    fn feed(&mut self, piece: &[u8], begun: impl FnMut(usize)) -> u64 {
        self.bytes.inc_by(piece.len() as u64);
        self.messages.feed(piece, begun)
    }
}

impl Counted {
    fn feed(&mut self, piece: &[u8]) -> Result<(), Status> {
        let Counted { method, counts, arrivals, large } = self;
        let mut taken = Ok(());
        method.received.inc_by(counts.feed(piece, |length| {
            // The message before is complete. One over the limit is refused as soon as that is known of it.
            let length = length.min(arrivals.message_bytes_max);
            *large = None;
            if length > UNCOUNTED_BYTES_MAX {
                match arrivals.budget.try_take(length).ok_or(Exhausted) {
                    Ok(taken) => *large = Some(Large { _taken: taken, deadline: None }),
                    Err(exhausted) => taken = Err(exhausted.into()),
                }
            }
        }));
        if let Some(large) = large {
            let unfinished = !counts.messages.is_between();
            large.deadline = unfinished.then(|| Box::pin(tokio::time::sleep(arrivals.stall_max)));
        }
        taken
    }

    /// Ready when a message has been left unfinished for too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        match &mut self.large {
            Some(Large { deadline: Some(deadline), .. }) => {
                deadline.as_mut().poll(context).map(|()| Status::resource_exhausted(UNFINISHED))
            }
            _ => Poll::Pending,
        }
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
    /// The same, counted as this method's, and against what may arrive at a time.
    pub fn counted(self, method: Arc<Method>, grpc: &Grpc, arrivals: &Arrivals) -> Self {
        let counts = Counts::new(grpc.received_bytes.clone());
        Received {
            counted: Some(Counted { method, counts, arrivals: arrivals.clone(), large: None }),
            ..self
        }
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
            Source::Client(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Source::Gateway(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        };
        let Some(counted) = &mut self.counted else { return frame };
        let failed = match &frame {
            Poll::Pending => match counted.poll_late(context) {
                Poll::Ready(status) => Err(status),
                Poll::Pending => Ok(()),
            },
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(Ok(()), |data| counted.feed(data)),
            Poll::Ready(_) => Ok(()),
        };
        match failed {
            Ok(()) => frame,
            Err(status) => Poll::Ready(Some(Err(status.into()))),
        }
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
    admitted: Option<Admitted>,
    holding: Option<Holding>,
}

/// Memory that a response holds until it is written.
struct Holding {
    held: Held,
    begun: bool,
    /// What is left of the data that came last.
    data: Bytes,
    /// What comes after the data, kept back until all of that is written: the request is under way until then.
    end: Option<Option<Frame<Bytes>>>,
}

impl From<Body> for Sent {
    fn from(body: Body) -> Self {
        Sent { body, counted: None, admitted: None, holding: None }
    }
}

impl Sent {
    /// A response whose status ends the call: in its headers, or later in its trailers.
    pub fn response(response: Response<Body>, measure: Option<(Call, IntCounter)>) -> Response<Sent> {
        let counted = measure.and_then(|(mut call, bytes)| match status(response.headers()) {
            Some(code) => {
                call.finish(code);
                None
            }
            None => Some((call, Counts::new(bytes))),
        });
        response.map(|body| Sent { counted, ..Sent::from(body) })
    }

    /// The same, for a request that counts until it is done.
    pub fn admitted(self, admitted: Option<Admitted>) -> Self {
        Sent { admitted, ..self }
    }

    /// The same, holding memory until it is written.
    pub fn holding(mut self, held: Option<Held>) -> Self {
        if let (Some(admitted), true) = (&mut self.admitted, held.is_some()) {
            admitted.hold();
        }
        let holding = held.map(|held| Holding { held, begun: false, data: Bytes::new(), end: None });
        Sent { holding, ..self }
    }

    /// The memory it holds, for whoever passes its content on in another form.
    pub fn take_held(&mut self) -> Option<Held> {
        self.holding.take().map(|holding| holding.held)
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some((call, counts)) = &mut self.counted
        {
            if let Some(data) = frame.data_ref() {
                call.method().sent.inc_by(counts.feed(data, |_| ()));
            } else if let Some(code) = frame.trailers_ref().and_then(status) {
                call.finish(code);
            }
        }
        Poll::Ready(frame)
    }

    fn poll_holding(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let Some(Holding { held, begun, data, end }) = &mut self.holding else {
                unreachable!("asked for a response that holds memory")
            };
            if !data.is_empty() {
                if !std::mem::replace(begun, true) {
                    stalls::begin(held);
                }
                // In pieces, so that it shows when a client reads, if slowly.
                let piece = data.split_to(data.len().min(PIECE_BYTES));
                return Poll::Ready(Some(Ok(Frame::data(held.lend(piece)))));
            }
            if end.is_some() {
                ready!(held.poll_returned(context));
                return Poll::Ready(end.take().flatten().map(Ok));
            }
            let next = ready!(self.poll_body(context)).transpose();
            let next = match next {
                Ok(next) => next,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let Some(Holding { data, end, .. }) = &mut self.holding else { unreachable!("as above") };
            match next.map(Frame::into_data) {
                Some(Ok(more)) => *data = more,
                Some(Err(trailers)) => *end = Some(Some(trailers)),
                None => *end = Some(None),
            }
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
        if sent.holding.is_some() { sent.poll_holding(context) } else { sent.poll_body(context) }
    }

    fn is_end_stream(&self) -> bool {
        // The end of a response that holds memory is seen only once it is written.
        self.holding.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn status(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}
