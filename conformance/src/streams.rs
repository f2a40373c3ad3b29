//! Watch streams of one session: opening, reading in order, and waiting until there is nothing more to read.
//!
//! Whatever comes on a stream is checked against the promises of a watch before anybody looks at it: events in revision
//! order, none twice, all events of one revision in one response unless fragmented, no header behind its events, and no
//! progress ahead of what follows. A broken promise becomes a line of the output.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::render::{self, Names};

/// How long an answer may take before the output says that there is none.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// etcd drops a progress request when a watch is behind; it has to be asked again.
const PROGRESS_RETRY: Duration = Duration::from_millis(30);
/// Requests and responses under way per stream; a full queue makes the server wait, as a slow client does.
const QUEUE: usize = 1024;
const BROADCAST_ID: i64 = -1;

pub struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: mpsc::Receiver<Result<WatchResponse, Status>>,
    /// Read from the wire and not shown yet.
    pending: VecDeque<Result<WatchResponse, Status>>,
    watches: BTreeMap<i64, Watch>,
    /// Highest revision a stream-wide progress answer has promised since the last watch was created.
    promised: i64,
    /// Progress requests since the last watch was created that were not answered yet, or were dropped.
    unanswered: usize,
    /// Such requests from before that watch: an answer to one of them says nothing about it.
    stale: usize,
    /// The revision at which the last watch was created; no stale answer is above it.
    created_at: i64,
    violations: Vec<String>,
    ended: bool,
}

/// Whether a stream has shown everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    Up,
    /// A watch of the stream starts above the current revision, which holds back every progress answer: what the
    /// others have delivered so far is a matter of timing.
    WaitsForTheFuture,
}

#[derive(Debug, Default)]
struct Watch {
    /// As asked for; 0 is from the next change on, and holds back no progress.
    start_revision: i64,
    /// The first revision that may come.
    first_revision: i64,
    fragment: bool,
    last_revision: i64,
    /// The last response said that more events of the same batch follow.
    in_fragments: bool,
    compacted: bool,
}

impl Stream {
    /// Opens a stream; nothing is sent before the first request.
    pub fn open(
        mut client: WatchClient<Channel>,
        wrap: impl FnOnce(ReceiverStream<WatchRequest>) -> Request<ReceiverStream<WatchRequest>>,
    ) -> Self {
        let (requests, outgoing) = mpsc::channel(QUEUE);
        let (incoming, responses) = mpsc::channel(QUEUE);
        let request = wrap(ReceiverStream::new(outgoing));
        tokio::spawn(async move {
            let mut stream = match client.watch(request).await {
                Ok(response) => response.into_inner(),
                // The receiver is gone only when nobody wants to know any more.
                Err(status) => return incoming.send(Err(status)).await.unwrap_or_default(),
            };
            loop {
                let message = match stream.message().await {
                    Ok(Some(response)) => Ok(response),
                    Ok(None) => return,
                    Err(status) => Err(status),
                };
                let failed = message.is_err();
                if incoming.send(message).await.is_err() || failed {
                    return;
                }
            }
        });
        Self {
            requests,
            responses,
            pending: VecDeque::new(),
            watches: BTreeMap::new(),
            promised: 0,
            unanswered: 0,
            stale: 0,
            created_at: 0,
            violations: Vec::new(),
            ended: false,
        }
    }

    async fn send(&self, request: RequestUnion) -> Result<()> {
        let request = WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.context("the stream is closed")
    }

    /// Creates a watch and shows its confirmation; what other watches deliver meanwhile is kept for later.
    pub async fn watch(&mut self, request: WatchCreateRequest, names: &Names) -> Result<String> {
        let start_revision = request.start_revision;
        let mut watch = Watch {
            start_revision,
            first_revision: start_revision,
            fragment: request.fragment,
            ..Watch::default()
        };
        self.send(RequestUnion::CreateRequest(request)).await?;
        let Some(confirmation) = self.read_until(|response| response.created).await? else {
            return Ok("no confirmation".into());
        };
        self.created_at = confirmation.header.map_or(0, |header| header.revision);
        self.stale += std::mem::take(&mut self.unanswered);
        self.promised = 0;
        if !confirmation.canceled {
            if start_revision == 0 {
                watch.first_revision = self.created_at + 1;
            }
            self.watches.insert(confirmation.watch_id, watch);
        }
        Ok(self.shown(names.watch(&confirmation)))
    }

    /// Cancels a watch and shows the confirmation.
    pub async fn cancel(&mut self, id: i64, names: &Names) -> Result<String> {
        let known = self.watches.remove(&id).is_some();
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await?;
        if !known {
            return Ok("sent".into());
        }
        let confirmation = self.read_until(|response| response.canceled && response.watch_id == id).await?;
        Ok(self.shown(confirmation.map_or("no confirmation".into(), |response| names.watch(&response))))
    }

    pub async fn progress(&mut self) -> Result<String> {
        self.ask_progress().await?;
        Ok("sent".into())
    }

    async fn ask_progress(&mut self) -> Result<()> {
        self.unanswered += 1;
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await
    }

    /// The next `count` responses, as they came.
    pub async fn expect(&mut self, count: usize, names: &Names) -> String {
        let mut lines = Vec::new();
        for _ in 0..count {
            match self.next(Instant::now() + ANSWER_DEADLINE).await {
                Some(Ok(response)) => lines.push(names.watch(&response)),
                Some(Err(status)) => lines.push(render::error(&status)),
                None => {
                    lines.push("nothing more".into());
                    break;
                }
            }
        }
        self.shown(lines.join("\n"))
    }

    /// Everything up to the `count`-th event, by watch.
    pub async fn events(&mut self, count: usize, names: &Names) -> String {
        let mut responses = Vec::new();
        let mut events = 0;
        while events < count {
            match self.next(Instant::now() + ANSWER_DEADLINE).await {
                Some(Ok(response)) => {
                    events += response.events.len();
                    responses.push(Ok(response));
                }
                Some(Err(status)) => responses.push(Err(status)),
                None => break,
            }
        }
        let mut text = by_watch(responses, names);
        if events < count {
            text.push_str(&format!("\nnothing more after {events} events"));
        }
        self.shown(text)
    }

    /// Reads until everything up to `head` has arrived, and keeps it.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn catch_up(&mut self, head: i64) -> Result<Caught> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        self.drop_compacted().await?;
        while !self.ended && !self.watches.is_empty() && self.promised < head {
            if self.watches.values().any(|watch| watch.start_revision > head) {
                return Ok(Caught::WaitsForTheFuture);
            }
            self.ask_progress().await?;
            let retry = Instant::now() + PROGRESS_RETRY;
            let stale = self.stale;
            while self.promised < head && self.stale == stale {
                let Some(message) = self.receive(retry).await else { break };
                self.keep(message);
                self.drop_compacted().await?;
            }
            if Instant::now() > deadline {
                bail!("the stream does not catch up with revision {head}");
            }
        }
        Ok(Caught::Up)
    }

    /// etcd keeps a compacted watch registered, which holds back progress, until the client cancels it.
    async fn drop_compacted(&mut self) -> Result<()> {
        while let Some(id) = self.watches.iter().find(|(_, watch)| watch.compacted).map(|(id, _)| *id) {
            self.watches.remove(&id);
            self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await?;
        }
        Ok(())
    }

    /// What has arrived and was not shown, by watch and without progress answers.
    pub fn take_pending(&mut self, names: &Names) -> String {
        let pending: Vec<_> = self.pending.drain(..).collect();
        let text = by_watch(pending.into_iter().filter(|message| !is_answer_to_sync(message)), names);
        self.shown(text)
    }

    async fn read_until(&mut self, wanted: impl Fn(&WatchResponse) -> bool) -> Result<Option<WatchResponse>> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.receive(deadline).await {
                Some(Ok(response)) if wanted(&response) => return Ok(Some(response)),
                Some(Err(status)) => bail!("{}", render::error(&status)),
                Some(message) => self.keep(message),
                None => return Ok(None),
            }
        }
    }

    async fn next(&mut self, deadline: Instant) -> Option<Result<WatchResponse, Status>> {
        match self.pending.pop_front() {
            Some(message) => Some(message),
            None => self.receive(deadline).await,
        }
    }

    fn keep(&mut self, message: Result<WatchResponse, Status>) {
        self.pending.push_back(message);
    }

    async fn receive(&mut self, deadline: Instant) -> Option<Result<WatchResponse, Status>> {
        let message = timeout_at(deadline, self.responses.recv()).await.ok()?;
        match &message {
            Some(Ok(response)) => self.check(response),
            Some(Err(_)) | None => self.ended = true,
        }
        message
    }

    fn check(&mut self, response: &WatchResponse) {
        let header_revision = response.header.as_ref().map_or(0, |header| header.revision);
        if render::is_progress(response) && response.watch_id == BROADCAST_ID {
            self.check_progress(header_revision);
        }
        let Some(watch) = self.watches.get_mut(&response.watch_id) else { return };
        watch.compacted |= response.compact_revision != 0;
        let Some(first) = response.events.first().and_then(|event| event.kv.as_ref()) else { return };
        let continues = watch.in_fragments && first.mod_revision == watch.last_revision;
        let mut violation =
            |what: String| self.violations.push(format!("violation: watch {} {what}", response.watch_id));
        if first.mod_revision <= watch.last_revision && !continues {
            violation(format!("got revision {} after {}", first.mod_revision, watch.last_revision));
        }
        if first.mod_revision <= self.promised {
            violation(format!("got revision {} after progress {}", first.mod_revision, self.promised));
        }
        if first.mod_revision < watch.first_revision {
            violation(format!(
                "got revision {} before its start {}",
                first.mod_revision, watch.first_revision
            ));
        }
        if response.fragment && !watch.fragment {
            violation("got a fragment it did not ask for".into());
        }
        for event in response.events.iter().filter_map(|event| event.kv.as_ref()) {
            if event.mod_revision < watch.last_revision {
                violation(format!("got revision {} after {}", event.mod_revision, watch.last_revision));
            }
            watch.last_revision = event.mod_revision;
        }
        if header_revision < watch.last_revision {
            violation(format!("got revision {} under header {header_revision}", watch.last_revision));
        }
        watch.in_fragments = response.fragment;
    }

    /// Answers come in the order of the questions, so one above `created_at` ends the stale ones.
    fn check_progress(&mut self, revision: i64) {
        if self.stale > 0 && revision <= self.created_at {
            self.stale -= 1;
            return;
        }
        self.stale = 0;
        self.unanswered = self.unanswered.saturating_sub(1);
        self.promised = self.promised.max(revision);
    }

    fn shown(&mut self, text: String) -> String {
        let mut lines: Vec<String> = if text.is_empty() { Vec::new() } else { vec![text] };
        lines.append(&mut self.violations);
        lines.join("\n")
    }
}

/// Progress answers and the confirmation of a compacted watch's cancellation: caused by waiting, not by the program.
fn is_answer_to_sync(message: &Result<WatchResponse, Status>) -> bool {
    message.as_ref().is_ok_and(|response| {
        render::is_progress(response)
            || (response.canceled && response.compact_revision == 0 && !response.created)
    })
}

fn by_watch(messages: impl IntoIterator<Item = Result<WatchResponse, Status>>, names: &Names) -> String {
    let mut watches: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    let mut errors = Vec::new();
    for message in messages {
        match message {
            Ok(response) => {
                let lines = watches.entry(response.watch_id).or_default();
                if response.events.is_empty() {
                    lines.push(names.watch_head(&response));
                }
                lines.extend(
                    response
                        .events
                        .iter()
                        .map(|event| format!("id={} {}", response.watch_id, names.event(event))),
                );
            }
            Err(status) => errors.push(render::error(&status)),
        }
    }
    watches.into_values().flatten().chain(errors).collect::<Vec<_>>().join("\n")
}
