//! The store as the API sees it: propose a command, read a view, watch.
//!
//! `Store::open` starts the threads (writer, watch hub, lease expiry) that own the state; the handle is cheap to clone and
//! owns nothing. `Threads::stop` ends them in order; what was acknowledged is on disk before and after.

use crate::apply::{ApplyError, Command, Identity, Machine, Reply};
use crate::auth::Caller;
use crate::auth::sessions::Sessions;
use crate::backend::{
    Answer, Compacted, Endpoint, HashError, Hashes, Hashing, Indexer, OpenError, Opened, Pin, Pins, Proposal,
    Weight, Writer,
};
use crate::budget::Budget;
use crate::cache::ValueCache;
use crate::lease::Lessor;
use crate::metrics::Metrics;
use crate::metrics::requests::{Applied, Kind};
use crate::metrics::rows::{MeasuredReader, MeasuredWriter, Slow};
use crate::mvcc::hash::Hasher;
use crate::mvcc::{ReadView, State, Version};
use crate::rows::{ReadError, RowReader, RowWriter, Size};
use crate::watch::{Hub, HubHandle, Memory};
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for the writer; one more is refused with "too many requests".
const PROPOSALS_MAX: usize = 8192;
/// Bytes that waiting commands may hold; one more is refused likewise.
const PROPOSAL_BYTES_MAX: usize = 64 << 20;
/// Reads that may wait for memory for their replies; one more is refused likewise.
const REPLIES_WAITING_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct Options {
    /// Budget of the value cache.
    pub cache_bytes: usize,
    /// Budget of replies that are not small.
    pub reply_bytes: usize,
    /// Budget of events that wait for clients.
    pub watch_bytes: usize,
    pub progress_interval: Duration,
    /// How long an unused simple token lives.
    pub session_ttl: Duration,
    pub metrics: Arc<Metrics>,
    pub slow: Slow,
    /// As `api::Limits` has it.
    pub quota_bytes: u64,
    /// Time to apply a command above which it is logged; `None`: never.
    pub slow_apply: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("too many requests wait for the writer")]
    TooMany,
    #[error("the store is stopping")]
    Stopped,
}

#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    proposals: mpsc::Sender<Proposal>,
    published: Arc<ArcSwap<State>>,
    cache: Arc<ValueCache>,
    reader: Arc<dyn RowReader>,
    lessor: Arc<Lessor>,
    sessions: Arc<Sessions>,
    hub: HubHandle,
    allocated: Arc<AtomicU64>,
    waiting_bytes: Arc<AtomicUsize>,
    pins: Pins,
    hashes: Hashes,
    replies: Arc<Budget>,
    metrics: Arc<Metrics>,
}

/// The threads behind a store.
pub struct Threads {
    store: Store,
    writer: JoinHandle<()>,
    hub: JoinHandle<()>,
    expiry: JoinHandle<()>,
}

impl Store {
    /// Opens the endpoint and starts serving it. Blocks while the index is rebuilt.
    pub fn open(endpoint: &Endpoint, options: &Options) -> Result<(Store, Threads), OpenError> {
        let Opened { writer: rows, reader, state, identity, images } = endpoint.open()?;
        let (metrics, slow) = (options.metrics.clone(), options.slow);
        let rows: Box<dyn RowWriter> = Box::new(MeasuredWriter { rows, metrics: metrics.clone(), slow });
        let reader: Arc<dyn RowReader> =
            Arc::new(MeasuredReader { rows: reader, metrics: metrics.clone(), slow });
        let lessor = Arc::new(Lessor::default());
        let now = Instant::now();
        for (id, granted) in state.lease_ids() {
            lessor.grant(id, granted.ttl, now);
        }
        let sessions = Arc::new(Sessions::new(options.session_ttl, state.auth.enabled));
        let published = Arc::new(ArcSwap::from_pointee(state.clone()));
        let cache = Arc::new(ValueCache::new(options.cache_bytes));
        let (hub, hub_handle) = Hub::new(
            identity,
            published.clone(),
            cache.clone(),
            reader.clone(),
            options.progress_interval,
            Memory::new(options.watch_bytes),
        );
        let (proposals, waiting) = mpsc::channel(PROPOSALS_MAX);
        let waiting_bytes = Arc::<AtomicUsize>::default();
        let wake = {
            let proposals = proposals.downgrade();
            // In a full queue it is not missed: the writer looks with every batch.
            move || {
                if let Some(proposals) = proposals.upgrade() {
                    drop(proposals.try_send(Proposal::Wake));
                }
            }
        };
        let allocated = Arc::new(AtomicU64::new(rows.size().allocated));
        let (pins, hashes) = (Pins::waking(wake.clone()), Hashes::default());
        let replies = Budget::new(options.reply_bytes, REPLIES_WAITING_MAX);
        let writer = Writer {
            machine: Machine::new(identity, state),
            rows,
            cache: cache.clone(),
            published: published.clone(),
            publisher: hub_handle.publisher(),
            lessor: lessor.clone(),
            sessions: sessions.clone(),
            proposals: waiting,
            allocated: allocated.clone(),
            quota_bytes: options.quota_bytes,
            pins: pins.clone(),
            replies: replies.clone(),
            hashing: Hashing::new(hashes.clone(), reader.clone()),
            indexer: images.map(|images| Indexer::start(images, wake)),
            applied: Applied { metrics: metrics.clone(), slow: options.slow_apply },
        };
        let store = Store {
            inner: Arc::new(Inner {
                identity,
                proposals: proposals.clone(),
                published,
                cache,
                reader,
                lessor: lessor.clone(),
                sessions,
                hub: hub_handle,
                allocated,
                waiting_bytes: waiting_bytes.clone(),
                pins,
                hashes,
                replies,
                metrics: metrics.clone(),
            }),
        };
        let threads = Threads {
            store: store.clone(),
            writer: start("kine-writer", move || writer.run()),
            hub: start("kine-watch", move || hub.run()),
            expiry: start("kine-expiry", move || expire(&lessor, &proposals, &waiting_bytes, &metrics)),
        };
        Ok((store, threads))
    }

    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The newest published state: everything acknowledged before this call is in it.
    pub fn view(&self) -> ReadView {
        self.inner.published.load_full()
    }

    pub fn lessor(&self) -> &Lessor {
        &self.inner.lessor
    }

    /// Who is logged in with a simple token, and whether anybody has to be.
    pub fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub fn hub(&self) -> &HubHandle {
        &self.inner.hub
    }

    /// Commands that wait for the writer.
    pub fn proposals_pending(&self) -> usize {
        self.inner.proposals.max_capacity() - self.inner.proposals.capacity()
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    pub fn reader(&self) -> &Arc<dyn RowReader> {
        &self.inner.reader
    }

    /// Bytes the database had allocated after the last commit.
    pub fn allocated(&self) -> u64 {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// Memory of replies that are not small.
    pub fn replies(&self) -> &Arc<Budget> {
        &self.inner.replies
    }

    /// Orders a command on behalf of `caller`; returns once it is durable and visible.
    pub async fn propose(&self, caller: Caller, command: Command) -> Result<Reply, ProposeError> {
        Ok(self.propose_counted(caller, command).await?.reply)
    }

    /// The same for a command whose reply can be large.
    pub async fn propose_counted(&self, caller: Caller, command: Command) -> Result<Answer, ProposeError> {
        let (kind, started) = (Kind::of(&command), Instant::now());
        let weight = Weight::add(&self.inner.waiting_bytes, &command, PROPOSAL_BYTES_MAX)
            .ok_or(ProposeError::TooMany)?;
        let answer =
            self.ask(|reply| Proposal::Apply { caller, command, reply: Some(reply), weight }).await?;
        if let Some(kind) = kind {
            self.inner.metrics.requests.observe(kind, answer.is_ok(), started.elapsed());
        }
        answer.map_err(ProposeError::Apply)
    }

    pub async fn compact_physically(&self, caller: Caller, revision: i64) -> Result<Reply, ProposeError> {
        let started = Instant::now();
        let answer = self.ask(|reply| Proposal::CompactPhysically { caller, revision, reply }).await?;
        self.inner.metrics.requests.observe(Kind::Compaction, answer.is_ok(), started.elapsed());
        Ok(answer?.reply)
    }

    pub async fn size(&self) -> Result<Size, ProposeError> {
        self.ask(|reply| Proposal::Size { reply }).await
    }

    pub async fn defragment(&self) -> Result<(), ProposeError> {
        self.ask(|reply| Proposal::Defragment { reply }).await
    }

    /// The newest view, with its rows held back from compaction while the pin is, for at most `held_max` if that is given.
    pub fn pin(&self, held_max: Option<Duration>) -> (ReadView, Pin) {
        // In this order: what the pin holds back are the rows of views loaded after it.
        let pin = self.inner.pins.give(Instant::now(), held_max);
        (self.view(), pin)
    }

    /// The hash of what a view has up to a revision; blocks. The view is `pin`'s.
    pub fn hash(&self, view: &State, revision: i64, pin: &Pin) -> Result<u32, HashError> {
        crate::backend::hash(Hasher::new(view, revision), pin, self.inner.reader.as_ref())
    }

    /// The compaction to exactly this revision, if the hash from before it is known or will be.
    pub fn compacted_at(&self, revision: i64) -> Option<Compacted> {
        self.inner.hashes.at(revision)
    }

    /// Values from memory; `None` when one of them is not there.
    pub fn cached_values(&self, versions: &[Version]) -> Option<Vec<Bytes>> {
        self.inner.cache.load(versions, |_| Err(())).ok()
    }

    /// Values from memory or disk, kept in memory; blocks.
    pub fn stored_values(&self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.inner.cache.load(versions, |missing| self.inner.reader.load(missing))
    }

    /// Shows the values that are not empty, in any order, each with the place of its version; blocks. For one of many steps of
    /// a long read: it must not push out what is read more often.
    pub fn visit_values(
        &self,
        versions: &[Version],
        each: impl FnMut(usize, &[u8]),
    ) -> Result<(), ReadError> {
        self.inner.cache.visit(versions, each, |missing, each| self.inner.reader.visit(missing, each))
    }

    async fn ask<T>(&self, proposal: impl FnOnce(oneshot::Sender<T>) -> Proposal) -> Result<T, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.inner.proposals.try_send(proposal(reply)).map_err(|error| {
            self.inner.metrics.proposals_failed.inc();
            match error {
                mpsc::error::TrySendError::Full(_) => ProposeError::TooMany,
                mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
            }
        })?;
        answer.await.map_err(|_| ProposeError::Stopped)
    }
}

impl Threads {
    /// Commits what waits and ends all threads. Blocks.
    pub fn stop(self) {
        let Threads { store, writer, hub, expiry } = self;
        store.inner.lessor.close();
        join(expiry);
        // The writer has gone already only when it stopped the process.
        drop(store.inner.proposals.blocking_send(Proposal::Stop));
        join(writer);
        store.inner.hub.stop();
        join(hub);
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .expect("a thread can be started while the process starts")
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Turns deadlines that have passed into ordinary revokes.
fn expire(
    lessor: &Lessor,
    proposals: &mpsc::Sender<Proposal>,
    waiting_bytes: &Arc<AtomicUsize>,
    metrics: &Metrics,
) {
    while let Some(due) = lessor.wait_due() {
        metrics.leases.expired.inc_by(due.len() as u64);
        for id in due {
            let command = Command::LeaseRevoke { id };
            let weight = Weight::add(waiting_bytes, &command, usize::MAX).expect("no bound is given");
            let revoke = Proposal::Apply { caller: Caller::Server, command, reply: None, weight };
            if proposals.blocking_send(revoke).is_err() {
                return;
            }
        }
    }
}
