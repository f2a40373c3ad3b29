//! Watch: one bidirectional stream of many watchers. Requests go to the hub, its queue is what is sent.
//!
//! The service is written by hand because responses carry events that are encoded already.

use super::Api;
use super::caller::Credentials;
use crate::auth::{Access, Refusal};
use crate::watch::{Create, Frame, Item, Stream};
use bytes::Bytes;
use futures::Stream as Responses;
use prost::Message;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, StdError};
use tonic::{Request, Response, Status, Streaming};

type Frames = Pin<Box<dyn Responses<Item = Result<Frame, Status>> + Send>>;

impl Api {
    /// The frames of one watch stream.
    pub async fn watch(
        &self,
        credentials: Credentials,
        requests: Streaming<WatchRequest>,
    ) -> Result<Frames, Status> {
        let stream =
            self.store.hub().open().await.ok_or_else(|| Status::unavailable(super::error::STOPPED))?;
        Ok(Box::pin(self.clone().serve(credentials, stream, requests)))
    }

    fn serve(
        self,
        credentials: Credentials,
        stream: Stream,
        mut requests: Streaming<WatchRequest>,
    ) -> impl Responses<Item = Result<Frame, Status>> + Send {
        async_stream::try_stream! {
            // As etcd: a client that has no more requests still gets its events.
            let mut more_requests = true;
            loop {
                let next = tokio::select! {
                    item = stream.queue.pop() => Next::Send(item),
                    request = next_request(&stream, &mut requests), if more_requests => Next::Handle(request),
                };
                match next {
                    Next::Send(Some(item)) => {
                        self.store.metrics().operations.events.inc_by(item.event_count() as u64);
                        for frame in item.into_frames(self.store.identity(), self.limits.message_bytes_max()) {
                            yield frame;
                        }
                    }
                    Next::Handle(request) => match request? {
                        Some(request) => self.handle(&credentials, &stream, request).await,
                        None => more_requests = false,
                    },
                    // Whoever is told that all is well does not watch on elsewhere.
                    Next::Send(None) => Err(Status::unavailable(super::error::STOPPED))?,
                }
            }
        }
    }

    async fn handle(&self, credentials: &Credentials, stream: &Stream, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => match self.check_watch(credentials, &request) {
                Ok(()) => stream.create(create(&request)).await,
                Err(refusal) => stream.refuse(cancel_reason(refusal)).await,
            },
            Some(RequestUnion::CancelRequest(request)) => stream.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => stream.progress().await,
            None => {}
        }
    }

    fn check_watch(&self, credentials: &Credentials, request: &WatchCreateRequest) -> Result<(), Refusal> {
        let view = self.store.view();
        // A start below zero is refused as compacted, whoever asks.
        if !view.auth.enabled || request.start_revision < 0 {
            return Ok(());
        }
        let caller = self.identify(credentials)?;
        let first = Bytes::from_static(&[0]);
        let key = if request.key.is_empty() { &first } else { &request.key };
        view.auth.check_keys(&caller, Access::Read, key, &request.range_end)
    }
}

/// The text of the status, as Go prints one.
fn cancel_reason(refusal: Refusal) -> String {
    let status = Status::from(refusal);
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

enum Next {
    Send(Option<Item>),
    Handle(Result<Option<WatchRequest>, Status>),
}

/// The next request, taken only while the answers to earlier ones leave room: a client that does not read is not heard.
async fn next_request(
    stream: &Stream,
    requests: &mut Streaming<WatchRequest>,
) -> Result<Option<WatchRequest>, Status> {
    if !stream.queue.room().await {
        return Ok(None);
    }
    requests.message().await
}

fn create(request: &WatchCreateRequest) -> Create {
    Create {
        watched: Create::watched(&request.key, &request.range_end),
        start_revision: request.start_revision,
        watch_id: request.watch_id,
        prev_kv: request.prev_kv,
        no_put: request.filters.contains(&(FilterType::Noput as i32)),
        no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
        fragment: request.fragment,
        progress_notify: request.progress_notify,
    }
}

/// The gRPC service `etcdserverpb.Watch`.
#[derive(Clone)]
pub struct WatchServer {
    api: Api,
}

impl WatchServer {
    pub fn new(api: Api) -> Self {
        WatchServer { api }
    }
}

impl<B> Service<http::Request<B>> for WatchServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let api = self.api.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(
                    Status::unimplemented(format!("unknown method {}", request.uri().path())).into_http()
                );
            }
            let limit = api.limits.message_bytes_max();
            let mut grpc = tonic::server::Grpc::new(FrameCodec)
                .apply_max_message_size_config(Some(limit), Some(usize::MAX));
            Ok(grpc.streaming(WatchMethod { api }, request).await)
        })
    }
}

struct WatchMethod {
    api: Api,
}

impl tonic::server::StreamingService<WatchRequest> for WatchMethod {
    type Response = Frame;
    type ResponseStream = Frames;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let api = self.api.clone();
        let credentials = Credentials::of(&request);
        Box::pin(async move { api.watch(credentials, request.into_inner()).await.map(Response::new) })
    }
}

/// Requests as usual, responses from frames.
#[derive(Clone, Copy, Default)]
struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = WatchRequest;
    type Encoder = FrameEncoder;
    type Decoder = RequestDecoder;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> RequestDecoder {
        RequestDecoder
    }
}

struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.encoded_len());
        frame.encode(out);
        Ok(())
    }
}

struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
