//! Watch fan-out: many watchers of the same keys, a steady writer, and the time from write to delivery.
//!
//! A value starts with the time at which its write was due, so that one clock (ours) measures the whole way. Each watcher
//! counts as one delivery per event, also where one stream carries many of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::endpoint::Connection;
use crate::load::{self, Caller, LoadError, Outcome, Pace, Plan, new_histogram};
use crate::process::Process;
use crate::request::{Kv, key, prefix_end, value};

/// How long the last events may take after the last write.
const DRAIN: Duration = Duration::from_secs(10);
const STAMP_BYTES: usize = size_of::<u64>();

#[derive(Debug, Clone)]
pub struct Shape {
    pub prefix: String,
    pub watchers: usize,
    /// gRPC streams that the watchers share; each connection carries its part of them.
    pub streams: usize,
    pub events_per_second: f64,
    pub value_bytes: usize,
}

/// Open watch streams. Dropping it closes them.
#[derive(Debug)]
pub struct Watchers {
    tasks: JoinSet<Result<(), Status>>,
    delivered: Arc<Mutex<Histogram<u64>>>,
    /// Keeps the request side of the streams open.
    _requests: Vec<mpsc::Sender<WatchRequest>>,
}

impl Watchers {
    /// Returns when the server has confirmed every watcher.
    pub async fn open(connections: &[Connection], shape: &Shape, epoch: Instant) -> Result<Self, Status> {
        let delivered = Arc::new(Mutex::new(new_histogram()));
        let (mut tasks, mut requests) = (JoinSet::new(), Vec::new());
        for stream in 0..shape.streams {
            let watchers =
                shape.watchers / shape.streams + usize::from(stream < shape.watchers % shape.streams);
            let (sender, outgoing) = mpsc::channel(watchers.max(1));
            for _ in 0..watchers {
                let create = WatchCreateRequest {
                    key: shape.prefix.clone().into(),
                    range_end: prefix_end(shape.prefix.as_bytes()),
                    ..WatchCreateRequest::default()
                };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                sender.try_send(request).expect("the channel has room for all of them");
            }
            let mut client = connections[stream % connections.len()].watch();
            let mut replies = client.watch(ReceiverStream::new(outgoing)).await?.into_inner();
            for _ in 0..watchers {
                let reply = next(&mut replies).await?;
                if !reply.created || reply.canceled {
                    return Err(Status::failed_precondition(format!(
                        "watcher refused: {}",
                        reply.cancel_reason
                    )));
                }
            }
            requests.push(sender);
            tasks.spawn(receive(replies, delivered.clone(), epoch));
        }
        Ok(Self { tasks, delivered, _requests: requests })
    }

    fn delivered(&self) -> u64 {
        self.delivered.lock().expect("receivers do not panic").len()
    }

    /// The first error of a stream, if one has ended.
    fn failure(&mut self) -> Option<Status> {
        let ended = self.tasks.try_join_next()?.expect("receivers do not panic");
        Some(ended.err().unwrap_or_else(|| Status::unavailable("a watch stream has ended")))
    }
}

async fn next(replies: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Status> {
    replies.message().await?.ok_or_else(|| Status::unavailable("a watch stream has ended"))
}

async fn receive(
    mut replies: Streaming<WatchResponse>,
    delivered: Arc<Mutex<Histogram<u64>>>,
    epoch: Instant,
) -> Result<(), Status> {
    loop {
        let reply = next(&mut replies).await?;
        let now = epoch.elapsed().as_nanos() as u64;
        let mut delivered = delivered.lock().expect("receivers do not panic");
        for event in reply.events {
            let stamp = event.kv.as_ref().and_then(|kv| kv.value.first_chunk::<STAMP_BYTES>());
            let stamp =
                stamp.ok_or_else(|| Status::data_loss("an event came without the value that was put"))?;
            delivered.saturating_record(now.saturating_sub(u64::from_le_bytes(*stamp)));
        }
    }
}

/// Puts values that carry the time of the call.
struct Stamped {
    kv: Kv,
    key: Bytes,
    filler: Bytes,
    epoch: Instant,
}

impl Caller for Stamped {
    async fn call(&mut self) -> Result<(), Status> {
        let stamp = self.epoch.elapsed().as_nanos() as u64;
        let value = [&stamp.to_le_bytes(), &self.filler[..]].concat().into();
        self.kv.put(PutRequest { key: self.key.clone(), value, ..PutRequest::default() }).await?;
        Ok(())
    }
}

/// Runs watchers and writers; the outcome counts deliveries, its latency is from write to delivery.
pub async fn run(
    connections: &[Connection],
    shape: &Shape,
    duration: Duration,
    server: Option<Process>,
) -> Result<Outcome, LoadError> {
    const WRITERS: usize = 16;
    let epoch = Instant::now();
    let mut watchers = Watchers::open(connections, shape, epoch).await?;
    let writers = (0..WRITERS).map(|writer| Stamped {
        kv: connections[writer % connections.len()].kv(),
        key: key(&shape.prefix, writer as u64),
        filler: value(shape.value_bytes.saturating_sub(STAMP_BYTES), writer as u64),
        epoch,
    });
    let pace = Pace::Open { per_second: shape.events_per_second };
    let plan = Plan { pace, warm_up: Duration::ZERO, duration };
    let writes = load::run(plan, server, writers.collect()).await?.flawless()?;

    let expected = writes.operations * shape.watchers as u64;
    let deadline = Instant::now() + DRAIN;
    while watchers.delivered() < expected {
        if let Some(failure) = watchers.failure() {
            return Err(failure.into());
        }
        if Instant::now() > deadline {
            let lost = format!("{} of {expected} events were delivered", watchers.delivered());
            return Err(Status::deadline_exceeded(lost).into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let latency = watchers.delivered.lock().expect("receivers do not panic").clone();
    Ok(Outcome { operations: latency.len(), latency, ..writes })
}
