//! The hub: owner of every watch registration, and the fan-out.
//!
//! Invariants: a watcher that is live has, in its stream's queue or on the wire, every event up to the hub's revision; the
//! hub's revision only grows; answers to a stream's requests are queued in the order of the requests. The hub waits for
//! nobody: a full queue turns the watcher into one that is behind.

use super::catch_up::{Behind, Job};
use super::event::{Events, Item};
use super::handle::{Counts, HubHandle};
use super::index::{Index, Watched};
use super::memory::Memory;
use super::queue::Queue;
use super::recent::{Entry, Recent};
use crate::apply::Identity;
use crate::cache::ValueCache;
use crate::mvcc::State;
use crate::rows::{Change, Changeset, RowReader};
use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::etcdserverpb::{ResponseHeader, WatchResponse};
use proto::mvccpb::KeyValue;
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Messages that may wait for the hub; more make the writer or the client wait.
const MAILBOX_MAX: usize = 4096;
/// Watchers of all streams; one more is refused. Each takes a few hundred bytes.
const WATCHERS_MAX: usize = 1 << 20;
/// What a watcher missed is sent in responses of about this size.
const RESPONSE_BYTES: usize = 512 << 10;

/// A watch to register.
#[derive(Clone, Debug)]
pub struct Create {
    pub watched: Watched,
    /// 0: from the next change on.
    pub start_revision: i64,
    /// 0: the hub picks one.
    pub watch_id: i64,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub fragment: bool,
    pub progress_notify: bool,
}

impl Create {
    /// Every change of a range from the next one on.
    pub fn of(key: &[u8], range_end: &[u8]) -> Self {
        Create {
            watched: Create::watched(key, range_end),
            start_revision: 0,
            watch_id: 0,
            prev_kv: false,
            no_put: false,
            no_delete: false,
            fragment: false,
            progress_notify: false,
        }
    }

    /// Range of a create request: an empty key means the first, `\0` as end means "from the key on".
    pub fn watched(key: &[u8], range_end: &[u8]) -> Watched {
        let start = if key.is_empty() { Bytes::from_static(&[0]) } else { Bytes::copy_from_slice(key) };
        match range_end {
            [] => Watched::Key(start),
            [0] => Watched::Range { start, end: None },
            end => Watched::Range { start, end: Some(Bytes::copy_from_slice(end)) },
        }
    }
}

pub(super) enum Message {
    Publish {
        revision: i64,
        changesets: Vec<Arc<Changeset>>,
    },
    Open {
        stream: u64,
        queue: Arc<Queue>,
    },
    Close {
        stream: u64,
    },
    Create {
        stream: u64,
        create: Create,
    },
    /// A watch that was refused before it reached the hub; answered here to keep the order.
    Refuse {
        stream: u64,
        reason: String,
    },
    Cancel {
        stream: u64,
        watch_id: i64,
    },
    Progress {
        stream: u64,
    },
    CaughtUp {
        stream: u64,
        caught_up: Vec<CaughtUp>,
    },
    /// Everything is counted when somebody asks: nothing on the way of an event keeps numbers in step.
    Count {
        reply: oneshot::Sender<Counts>,
    },
    Stop,
}

/// How far one watcher got through history.
pub(super) struct CaughtUp {
    pub watcher: usize,
    pub cancelled: Arc<AtomicBool>,
    pub outcome: Outcome,
}

pub(super) enum Outcome {
    /// Everything below `next` was queued.
    Upto {
        next: i64,
    },
    Compacted {
        compact_revision: i64,
    },
}

pub struct Hub {
    mailbox: mpsc::Receiver<Message>,
    core: Core,
}

struct Core {
    identity: Identity,
    published: Arc<ArcSwap<State>>,
    cache: Arc<ValueCache>,
    reader: Arc<dyn RowReader>,
    to_self: mpsc::Sender<Message>,
    progress_interval: Duration,
    revision: i64,
    streams: HashMap<u64, Registered>,
    watchers: Slab<Watcher>,
    index: Index,
    recent: Recent,
    jobs: JoinSet<()>,
    progress_watchers: usize,
    memory: Memory,
}

struct Registered {
    queue: Arc<Queue>,
    watchers: HashMap<i64, usize>,
    next_id: i64,
    /// Watchers that are behind and not in a running catch-up.
    behind: Vec<usize>,
    catching_up: bool,
    progress_wanted: bool,
}

struct Watcher {
    stream: u64,
    watch_id: i64,
    create: Create,
    /// The first revision it still has to get.
    next: i64,
    standing: Standing,
    cancelled: Arc<AtomicBool>,
    /// Got an event since the last progress tick.
    busy: bool,
}

/// What one response brings a watcher that missed it.
struct Missed {
    /// The first revision in it.
    next: i64,
    bytes: usize,
    events: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Live,
    Behind,
    /// Its start was compacted; the client has been told, the id stays taken until it cancels.
    Compacted,
}

impl Hub {
    pub fn new(
        identity: Identity,
        published: Arc<ArcSwap<State>>,
        cache: Arc<ValueCache>,
        reader: Arc<dyn RowReader>,
        progress_interval: Duration,
        memory: Memory,
    ) -> (Hub, HubHandle) {
        let (to_self, mailbox) = mpsc::channel(MAILBOX_MAX);
        let handle = HubHandle::new(to_self.clone(), memory.clone());
        let revision = published.load().revision;
        let core = Core {
            identity,
            published,
            cache,
            reader,
            to_self,
            progress_interval,
            revision,
            streams: HashMap::new(),
            watchers: Slab::new(),
            index: Index::default(),
            recent: Recent::default(),
            jobs: JoinSet::new(),
            progress_watchers: 0,
            memory,
        };
        (Hub { mailbox, core }, handle)
    }

    /// Runs on the calling thread until stopped.
    pub fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(2)
            .thread_name("kine-catch-up")
            .build()
            .expect("a runtime can be built while the process starts");
        runtime.block_on(self.serve());
    }

    async fn serve(mut self) {
        let core = &mut self.core;
        let mut tick = tokio::time::Instant::now() + core.progress_interval;
        loop {
            let message = if core.progress_watchers > 0 {
                tokio::select! {
                    message = self.mailbox.recv() => message,
                    () = tokio::time::sleep_until(tick) => {
                        core.tick();
                        tick = tokio::time::Instant::now() + core.progress_interval;
                        continue;
                    }
                }
            } else {
                self.mailbox.recv().await
            };
            while let Some(finished) = core.jobs.try_join_next() {
                finished.expect("a catch-up does not panic");
            }
            match message {
                Some(Message::Stop) | None => break,
                Some(message) => {
                    let idle_before = core.progress_watchers == 0;
                    core.handle(message);
                    if idle_before && core.progress_watchers > 0 {
                        tick = tokio::time::Instant::now() + core.progress_interval;
                    }
                }
            }
        }
        for stream in core.streams.values() {
            stream.queue.close();
        }
        core.jobs.shutdown().await;
    }
}

impl Core {
    fn count(&self) -> Counts {
        Counts {
            streams: self.streams.len(),
            watchers: self.watchers.len(),
            slow: self.watchers.iter().filter(|(_, watcher)| watcher.standing == Standing::Behind).count(),
            pending_events: self.streams.values().map(|stream| stream.queue.event_count()).sum(),
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Publish { revision, changesets } => self.publish(revision, changesets),
            Message::Open { stream, queue } => {
                let registered = Registered {
                    queue,
                    watchers: HashMap::new(),
                    next_id: 0,
                    behind: Vec::new(),
                    catching_up: false,
                    progress_wanted: false,
                };
                self.streams.insert(stream, registered);
            }
            Message::Close { stream } => self.close(stream),
            Message::Create { stream, create } => self.create(stream, create),
            Message::Refuse { stream, reason } => self.refuse(stream, reason),
            Message::Cancel { stream, watch_id } => self.cancel(stream, watch_id),
            Message::Progress { stream } => {
                if let Some(registered) = self.streams.get_mut(&stream)
                    && !registered.watchers.is_empty()
                {
                    registered.progress_wanted = true;
                    self.answer_progress(stream);
                }
            }
            Message::CaughtUp { stream, caught_up } => self.caught_up(stream, caught_up),
            // Who asked may have gone.
            Message::Count { reply } => drop(reply.send(self.count())),
            Message::Stop => {}
        }
    }

    fn publish(&mut self, revision: i64, changesets: Vec<Arc<Changeset>>) {
        for changeset in changesets {
            let mut entry = Entry::new(changeset);
            self.deliver(&mut entry);
            self.recent.push(entry);
        }
        self.revision = revision;
    }

    /// Queues one changeset's events for every live watcher they concern.
    fn deliver(&mut self, entry: &mut Entry) {
        let revision = entry.changeset.revision;
        let changes = entry.changeset.clone();
        let mut concerned: Vec<(usize, u32)> = Vec::new();
        for (at, change) in changes.changes.iter().enumerate() {
            self.index.matching(&change.key, |watcher| concerned.push((watcher, at as u32)));
        }
        if changes.changes.len() > 1 {
            concerned.sort_unstable();
        }
        for events in concerned.chunk_by(|a, b| a.0 == b.0) {
            let key = events[0].0;
            let watcher = &self.watchers[key];
            if watcher.standing != Standing::Live || watcher.next > revision {
                continue;
            }
            if let Some(events) = self.encode_for(watcher, entry, events.iter().map(|(_, at)| *at)) {
                self.queue_events(key, revision, events);
            }
        }
    }

    /// The events of `changes` that pass the watcher's filters, encoded; `None` when none do.
    fn encode_for(
        &self,
        watcher: &Watcher,
        entry: &mut Entry,
        changes: impl Iterator<Item = u32>,
    ) -> Option<Events> {
        let compact_revision = self.published.load().compact_revision;
        let mut events = Vec::new();
        for at in changes {
            let change = &entry.changeset.changes[at as usize];
            let deleted = change.version.is_tombstone();
            if (deleted && watcher.create.no_delete) || (!deleted && watcher.create.no_put) {
                continue;
            }
            // As etcd: the value before the compact revision is not readable, though it may still be stored.
            let readable = change.version.mod_revision > compact_revision;
            let prev_kv = watcher.create.prev_kv && readable;
            events.push(entry.encoded(at as usize, prev_kv, &self.memory, |change| self.prev_kv(change)));
        }
        match events.len() {
            0 => None,
            1 => events.pop().map(Events::One),
            _ => Some(Events::Many(events.into())),
        }
    }

    fn prev_kv(&self, change: &Change) -> Option<KeyValue> {
        let old = change.old?;
        // Compaction may have dropped the old row meanwhile: then there is no previous value, as in etcd.
        let value = self.cache.load(&[old], |missing| self.reader.load(missing)).ok()?.pop()?;
        Some(old.key_value(change.key.clone(), value))
    }

    fn queue_events(&mut self, key: usize, revision: i64, events: Events) {
        let watcher = &mut self.watchers[key];
        let Some(stream) = self.streams.get_mut(&watcher.stream) else { return };
        let fragment = watcher.create.fragment;
        watcher.busy = true;
        if stream.queue.try_push(Item::Events { watch_id: watcher.watch_id, revision, fragment, events }) {
            watcher.next = revision + 1;
        } else {
            watcher.standing = Standing::Behind;
            watcher.next = revision;
            stream.behind.push(key);
            let stream = watcher.stream;
            self.catch_up(stream);
        }
    }

    fn create(&mut self, stream: u64, create: Create) {
        let revision = self.revision;
        if create.start_revision < 0 {
            return self.refuse(stream, crate::api::error::COMPACTED.into());
        }
        if let Watched::Range { start, end: Some(end) } = &create.watched
            && end <= start
        {
            return self.refuse(stream, "mvcc: watcher range is empty".into());
        }
        if self.watchers.len() >= WATCHERS_MAX {
            return self.refuse(stream, crate::api::error::TOO_MANY_REQUESTS.into());
        }
        let Some(registered) = self.streams.get_mut(&stream) else { return };
        let Some(watch_id) = registered.claim_id(create.watch_id) else {
            return self.refuse(stream, "mvcc: duplicate watch ID provided on the WatchStream".into());
        };
        let header = Some(self.identity.header(revision));
        registered.queue.push(Item::Answer(WatchResponse {
            header,
            watch_id,
            created: true,
            ..Default::default()
        }));
        let next = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
        self.progress_watchers += usize::from(create.progress_notify);
        let key = self.watchers.insert(Watcher {
            stream,
            watch_id,
            next,
            standing: Standing::Live,
            cancelled: Arc::default(),
            busy: false,
            create,
        });
        registered.watchers.insert(watch_id, key);
        self.index.insert(&self.watchers[key].create.watched, key);
        self.bring_live(key);
    }

    /// Feeds a watcher what it has missed: from memory when that reaches back far enough, else from history.
    fn bring_live(&mut self, key: usize) {
        let watcher = &self.watchers[key];
        let (stream, next) = (watcher.stream, watcher.next);
        if next > self.revision {
            self.watchers[key].standing = Standing::Live;
            return;
        }
        let compact_revision = self.published.load().compact_revision;
        if next < compact_revision {
            return self.tell_compacted(key, compact_revision);
        }
        self.watchers[key].standing = Standing::Live;
        if !self.recent.reaches(next) {
            return self.fall_behind(key);
        }
        let mut recent = std::mem::take(&mut self.recent);
        self.feed_recent(key, recent.from(next));
        self.recent = recent;
        self.answer_progress(stream);
    }

    /// Queues what a watcher missed of `entries`, in responses of whole revisions; what does not fit leaves it behind.
    fn feed_recent<'a>(&mut self, key: usize, entries: impl Iterator<Item = &'a mut Entry>) {
        let watcher = &self.watchers[key];
        let mut missed = Missed { next: watcher.next, bytes: 0, events: Vec::new() };
        for entry in entries {
            let watcher = &self.watchers[key];
            let changeset = entry.changeset.clone();
            let concerned = (0..changeset.changes.len() as u32)
                .filter(|at| watcher.create.watched.contains(&changeset.changes[*at as usize].key));
            if let Some(encoded) = self.encode_for(watcher, entry, concerned) {
                missed.bytes += encoded.as_slice().iter().map(Bytes::len).sum::<usize>();
                missed.events.extend_from_slice(encoded.as_slice());
            }
            if missed.bytes >= RESPONSE_BYTES {
                if !self.queue_missed(key, missed) {
                    return;
                }
                missed = Missed { next: changeset.revision + 1, bytes: 0, events: Vec::new() };
            }
        }
        if missed.events.is_empty() || self.queue_missed(key, missed) {
            self.watchers[key].next = self.revision + 1;
        }
    }

    /// Queues what a watcher missed as one response; false: there was no room, and the watcher is behind again.
    fn queue_missed(&mut self, key: usize, missed: Missed) -> bool {
        let watcher = &mut self.watchers[key];
        watcher.busy = true;
        let Some(stream) = self.streams.get(&watcher.stream) else { return false };
        let fragment = watcher.create.fragment;
        let events = Events::Many(missed.events.into());
        let item = Item::Events { watch_id: watcher.watch_id, revision: self.revision, fragment, events };
        let queued = stream.queue.try_push(item);
        if !queued {
            watcher.next = missed.next;
            self.fall_behind(key);
        }
        queued
    }

    fn fall_behind(&mut self, key: usize) {
        let watcher = &mut self.watchers[key];
        watcher.standing = Standing::Behind;
        let stream = watcher.stream;
        if let Some(registered) = self.streams.get_mut(&stream) {
            registered.behind.push(key);
            self.catch_up(stream);
        }
    }

    /// Starts feeding the stream's watchers that are behind, unless that is under way.
    fn catch_up(&mut self, stream: u64) {
        let Some(registered) = self.streams.get_mut(&stream) else { return };
        if registered.catching_up || registered.behind.is_empty() {
            return;
        }
        registered.catching_up = true;
        let behind = std::mem::take(&mut registered.behind);
        let watchers = behind
            .into_iter()
            .map(|key| {
                let watcher = &self.watchers[key];
                Behind {
                    watcher: key,
                    watch_id: watcher.watch_id,
                    create: watcher.create.clone(),
                    next: watcher.next,
                    cancelled: watcher.cancelled.clone(),
                }
            })
            .collect();
        let job = Job {
            watchers,
            queue: registered.queue.clone(),
            published: self.published.clone(),
            cache: self.cache.clone(),
            reader: self.reader.clone(),
            memory: self.memory.clone(),
        };
        let to_hub = self.to_self.clone();
        self.jobs.spawn(async move {
            if let Some(caught_up) = job.run().await {
                // The hub has stopped: nobody waits for the outcome.
                drop(to_hub.send(Message::CaughtUp { stream, caught_up }).await);
            }
        });
    }

    fn caught_up(&mut self, stream: u64, caught_up: Vec<CaughtUp>) {
        if let Some(registered) = self.streams.get_mut(&stream) {
            registered.catching_up = false;
        }
        for CaughtUp { watcher, cancelled, outcome } in caught_up {
            // A cancelled watcher's place may belong to another by now.
            if cancelled.load(Ordering::Acquire) {
                continue;
            }
            match outcome {
                Outcome::Upto { next } => {
                    self.watchers[watcher].next = next;
                    self.bring_live(watcher);
                }
                Outcome::Compacted { compact_revision } => self.tell_compacted(watcher, compact_revision),
            }
        }
        self.catch_up(stream);
        self.answer_progress(stream);
    }

    fn tell_compacted(&mut self, key: usize, compact_revision: i64) {
        let watcher = &mut self.watchers[key];
        watcher.standing = Standing::Compacted;
        let (stream, watch_id) = (watcher.stream, watcher.watch_id);
        let answer = WatchResponse {
            // As etcd: no revision in this one.
            header: Some(ResponseHeader { revision: 0, ..self.identity.header(0) }),
            watch_id,
            canceled: true,
            compact_revision,
            ..Default::default()
        };
        if let Some(registered) = self.streams.get(&stream) {
            registered.queue.push(Item::Answer(answer));
        }
        self.answer_progress(stream);
    }

    fn refuse(&mut self, stream: u64, cancel_reason: String) {
        if let Some(registered) = self.streams.get(&stream) {
            let answer = WatchResponse {
                header: Some(self.identity.header(self.revision)),
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason,
                ..Default::default()
            };
            registered.queue.push(Item::Answer(answer));
        }
    }

    fn cancel(&mut self, stream: u64, watch_id: i64) {
        let Some(registered) = self.streams.get_mut(&stream) else { return };
        let Some(key) = registered.watchers.remove(&watch_id) else { return };
        registered.behind.retain(|&other| other != key);
        let header = Some(self.identity.header(self.revision));
        let answer = WatchResponse { header, watch_id, canceled: true, ..Default::default() };
        let queue = registered.queue.clone();
        let watcher = self.forget(key);
        queue.cancel(&watcher.cancelled, Some(Item::Answer(answer)));
        self.answer_progress(stream);
    }

    fn close(&mut self, stream: u64) {
        let Some(registered) = self.streams.remove(&stream) else { return };
        for key in registered.watchers.into_values() {
            let watcher = self.forget(key);
            registered.queue.cancel(&watcher.cancelled, None);
        }
    }

    fn forget(&mut self, key: usize) -> Watcher {
        let watcher = self.watchers.remove(key);
        self.index.remove(&watcher.create.watched, key);
        self.progress_watchers -= usize::from(watcher.create.progress_notify);
        watcher
    }

    /// Answers a wanted progress once every watcher of the stream has all events up to the hub's revision.
    fn answer_progress(&mut self, stream: u64) {
        let Some(registered) = self.streams.get_mut(&stream) else { return };
        if !registered.progress_wanted {
            return;
        }
        let standing = |key: &usize| &self.watchers[*key];
        if registered.watchers.values().map(standing).any(|watcher| watcher.standing == Standing::Behind) {
            return;
        }
        registered.progress_wanted = false;
        // As etcd: a watcher that starts in the future gets no progress before its start.
        let started = |watcher: &Watcher| {
            watcher.standing == Standing::Compacted || watcher.create.start_revision <= self.revision
        };
        if registered.watchers.values().map(standing).all(started) {
            let header = Some(self.identity.header(self.revision));
            let answer = WatchResponse { header, watch_id: -1, ..Default::default() };
            registered.queue.push(Item::Answer(answer));
        }
    }

    /// Periodic progress for watchers that asked for it and had no event since the last time.
    fn tick(&mut self) {
        for (_, watcher) in &mut self.watchers {
            let quiet = !std::mem::take(&mut watcher.busy);
            let due = watcher.create.progress_notify
                && watcher.standing == Standing::Live
                && watcher.create.start_revision <= self.revision;
            if quiet
                && due
                && let Some(registered) = self.streams.get(&watcher.stream)
            {
                let header = Some(self.identity.header(self.revision));
                let answer = WatchResponse { header, watch_id: watcher.watch_id, ..Default::default() };
                // A full queue has events for the client, which tell it more.
                registered.queue.try_push(Item::Answer(answer));
            }
        }
    }
}

impl Registered {
    /// The id a new watch gets; `None` when the wanted one is taken.
    fn claim_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.watchers.contains_key(&wanted)).then_some(wanted);
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }
}
