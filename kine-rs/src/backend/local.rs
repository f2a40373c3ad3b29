//! The order of one process: a writer thread takes all commands that wait, applies them, and makes them durable together.
//!
//! Apply, commit, publish, then answer: a reply is sent only when its batch is on disk and visible to readers and watchers.
//! While one batch is being committed the next one gathers, so one fsync serves everybody who waited. A batch that can't be
//! stored is undone by going back to the last published state.

use super::hashes::{Before, HASHED_BYTES_MAX, Hashing};
use super::indexer::Indexer;
use super::pin::Pins;
use crate::apply::{ApplyError, Command, Machine, Reply};
use crate::auth::Caller;
use crate::auth::sessions::Sessions;
use crate::budget::{Budget, Taken, UNCOUNTED_BYTES_MAX};
use crate::cache::ValueCache;
use crate::lease::Lessor;
use crate::metrics::requests::Applied;
use crate::mvcc::range::Values;
use crate::mvcc::{Location, State, Version};
use crate::rows::{Batch, Bucket, CommitError, ReadError, RowWriter, Size};
use crate::watch::Publisher;
use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::etcdserverpb::AlarmType;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Most commands of one batch; more wait for the next.
const BATCH_COMMANDS_MAX: usize = 4096;
/// Values of one batch and its replies, after which it is closed: bounds the time of a commit and the memory it holds.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Compacted rows dropped with one batch, so that compaction never holds up a write for longer than this takes.
const GARBAGE_ROWS_MAX: usize = 512;

/// What a proposal comes to, and where it is awaited.
type Outcome = Result<Answer, ApplyError>;
type Waiter = oneshot::Sender<Outcome>;

/// A reply, and the memory that is counted for it when it is large.
pub struct Answer {
    pub reply: Reply,
    pub held: Option<Taken>,
}

/// What the writer thread is asked to do.
pub enum Proposal {
    Apply {
        caller: Caller,
        command: Command,
        reply: Option<Waiter>,
        weight: Weight,
    },
    /// A compaction that answers once the compacted rows are gone.
    CompactPhysically {
        caller: Caller,
        revision: i64,
        reply: Waiter,
    },
    Defragment {
        reply: oneshot::Sender<()>,
    },
    Size {
        reply: oneshot::Sender<Size>,
    },
    /// Something that is looked at with every batch has come: an image of the index to be named, the end of a pin.
    Wake,
    Stop,
}

pub struct Writer {
    pub machine: Machine,
    pub rows: Box<dyn RowWriter>,
    pub cache: Arc<ValueCache>,
    pub published: Arc<ArcSwap<State>>,
    pub publisher: Publisher,
    pub lessor: Arc<Lessor>,
    pub sessions: Arc<Sessions>,
    pub proposals: mpsc::Receiver<Proposal>,
    /// Bytes allocated after the last commit, for the quota.
    pub allocated: Arc<AtomicU64>,
    /// What they are held against; 0: no quota. Told when an alarm is raised.
    pub quota_bytes: u64,
    pub pins: Pins,
    /// `None`: the store is not opened a second time.
    pub indexer: Option<Indexer>,
    pub hashing: Hashing,
    /// Memory of replies.
    pub replies: Arc<Budget>,
    pub applied: Applied,
}

/// Replies that wait for the batch they belong to.
#[derive(Default)]
struct Round {
    replies: Vec<(Waiter, Outcome)>,
    physical: Vec<(Waiter, Answer)>,
    sizes: Vec<oneshot::Sender<Size>>,
    defragments: Vec<oneshot::Sender<()>>,
    /// Of commands and of replies.
    bytes: usize,
    compacted: bool,
    hashes: Vec<Before>,
    unreadable: Option<String>,
    stop: bool,
}

/// Work left over from compactions.
#[derive(Default)]
struct Cleanup {
    garbage: bool,
    /// Since the compaction that made it.
    since: Option<Instant>,
    space: bool,
    /// Tombstones from here on had to stay so far.
    covered: Location,
    /// There was no space to tidy up; to be tried again after the next commit that fits.
    stalled: bool,
    waiting: Vec<(Waiter, Answer)>,
}

impl Writer {
    /// Runs until told to stop. Compacted rows that the last run left are dropped first thing.
    pub fn run(mut self) {
        let mut cleanup = Cleanup { garbage: true, ..Cleanup::default() };
        loop {
            let covered = self.indexer.as_ref().map_or(Location::MAX, Indexer::covered);
            cleanup.garbage |= covered > std::mem::replace(&mut cleanup.covered, covered);
            // Rows that a pin holds wait for the command after it ends. A view that is loaded from here on is at or above
            // this compaction, so a pin that is given meanwhile misses nothing that goes with it.
            let compacted = self.published.load().compact_revision;
            let droppable = cleanup.garbage && !self.pins.hold(Instant::now());
            let tidying = if cleanup.garbage { droppable } else { cleanup.space };
            let first = if tidying {
                match self.proposals.try_recv() {
                    Ok(proposal) => Some(proposal),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            } else {
                match self.proposals.blocking_recv() {
                    Some(proposal) => Some(proposal),
                    None => return,
                }
            };
            let idle = first.is_none();
            let round = self.apply_waiting(first);
            let garbage_done = droppable && self.collect_garbage(compacted, covered) && !round.compacted;
            let stop = round.stop;
            self.commit(round, &mut cleanup);
            if garbage_done && !cleanup.stalled {
                cleanup.garbage = false;
                cleanup.space = true;
                if let Some(since) = cleanup.since.take() {
                    self.applied.metrics.upkeep.compaction_ms.observe(since.elapsed().as_secs_f64() * 1e3);
                }
                answer(cleanup.waiting.drain(..).map(|(reply, response)| (reply, Ok(response))));
            }
            if idle && cleanup.space && !cleanup.garbage {
                cleanup.space = self.settle(|rows| rows.release_space());
            }
            if stop {
                return self.leave_image();
            }
        }
    }

    /// One step of dropping compacted rows; true when none are left.
    fn collect_garbage(&mut self, compacted: i64, covered: Location) -> bool {
        let started = Instant::now();
        let done = self.machine.collect_garbage(GARBAGE_ROWS_MAX, compacted, covered);
        let pause = &self.applied.metrics.upkeep.index_compaction_pause_ms;
        pause.observe(started.elapsed().as_secs_f64() * 1e3);
        done
    }

    /// Applies `first` and everything that waits behind it, up to the bounds of a batch.
    fn apply_waiting(&mut self, first: Option<Proposal>) -> Round {
        let mut round = Round::default();
        let mut count = 0;
        let mut next = first;
        while let Some(proposal) = next {
            self.apply(proposal, &mut round);
            count += 1;
            if round.stop
                || round.unreadable.is_some()
                || count >= BATCH_COMMANDS_MAX
                || round.bytes >= BATCH_BYTES_MAX
            {
                break;
            }
            next = self.proposals.try_recv().ok();
        }
        round
    }

    fn apply(&mut self, proposal: Proposal, round: &mut Round) {
        match proposal {
            Proposal::Apply { caller, command, reply, weight } => {
                round.bytes += weight.bytes;
                round.compacted |= matches!(command, Command::Compact { .. });
                let result = self.apply_command(&caller, &command, round);
                if let Some(reply) = reply {
                    round.replies.push((reply, result));
                }
            }
            Proposal::CompactPhysically { caller, revision, reply } => {
                match self.apply_command(&caller, &Command::Compact { revision }, round) {
                    Ok(response) => {
                        round.compacted = true;
                        round.physical.push((reply, response));
                    }
                    Err(error) => round.replies.push((reply, Err(error))),
                }
            }
            Proposal::Size { reply } => round.sizes.push(reply),
            Proposal::Defragment { reply } => round.defragments.push(reply),
            Proposal::Wake => {}
            Proposal::Stop => round.stop = true,
        }
    }

    fn apply_command(&mut self, caller: &Caller, command: &Command, round: &mut Round) -> Outcome {
        // A reply is made before its size is known, so one may exceed what is left, but not another one after it.
        if self.replies.is_overdrawn() && command.returns_values() {
            return Err(ApplyError::Busy);
        }
        let before = self.before_compaction(command);
        let mut stored = Stored { cache: &self.cache, rows: self.rows.as_mut() };
        let started = Instant::now();
        let result = self.machine.apply(caller, command, &mut stored);
        self.applied.observe(command, &result, started.elapsed());
        if let Err(ApplyError::Read(error)) = &result {
            // The command may have been applied by half.
            round.unreadable = Some(error.to_string());
        }
        let reply = result?;
        round.hashes.extend(before);
        let bytes = reply.value_bytes();
        round.bytes += bytes;
        let held = (bytes > UNCOUNTED_BYTES_MAX).then(|| self.replies.owe(bytes));
        Ok(Answer { reply, held })
    }

    /// What a compaction makes invisible, for its hash.
    fn before_compaction(&self, command: &Command) -> Option<Before> {
        match command {
            Command::Compact { revision } if self.allocated.load(Ordering::Relaxed) <= HASHED_BYTES_MAX => {
                let pin = self.pins.give(Instant::now(), None);
                Some(Before { state: self.machine.state.clone(), pin, revision: *revision })
            }
            _ => None,
        }
    }

    fn commit(&mut self, mut round: Round, cleanup: &mut Cleanup) {
        let mut batch = self.machine.take_batch();
        if let Some(detail) = round.unreadable.take() {
            self.undo();
            fail(&mut round, || ApplyError::Read(ReadError::Io(detail.clone())));
        } else if self.name_image(&mut batch) || !batch.is_empty() {
            match self.rows.commit(&batch) {
                Ok(()) => {
                    self.publish(&batch);
                    cleanup.garbage |= std::mem::take(&mut cleanup.stalled);
                    if let Some(indexer) = &mut self.indexer {
                        indexer.committed(&self.machine.state);
                    }
                }
                Err(CommitError::Full) => {
                    self.undo();
                    if let Some(indexer) = &mut self.indexer {
                        indexer.refused();
                    }
                    self.raise_nospace();
                    fail(&mut round, || ApplyError::NoSpace);
                    cleanup.stalled |= std::mem::take(&mut cleanup.garbage);
                    cleanup.space = false;
                }
                Err(CommitError::Fatal(error)) => stop_process(&error),
            }
        }
        for change in self.machine.take_sessions() {
            self.sessions.apply(change, Instant::now());
        }
        // Before they are answered, as they are asked for then.
        for before in round.hashes {
            self.hashing.start(before);
        }
        answer(round.replies.into_iter());
        if round.compacted {
            // Only now: no row goes before everybody can know that its revision is compacted.
            cleanup.garbage = true;
            cleanup.since.get_or_insert_with(Instant::now);
            cleanup.waiting.append(&mut round.physical);
        }
        for reply in round.defragments {
            self.settle(|rows| rows.defragment().map(|()| false));
            self.allocated.store(self.rows.size().allocated, Ordering::Relaxed);
            reply.send(()).ok();
        }
        for reply in round.sizes {
            reply.send(self.rows.size()).ok();
        }
    }

    /// Has the batch name an image that is written, if one is; whether it did.
    fn name_image(&mut self, batch: &mut Batch) -> bool {
        let record = self.indexer.as_mut().and_then(Indexer::finished);
        let names_image = record.is_some();
        batch.records.extend(record);
        names_image
    }

    /// The last image, at a stop: the next start then reads no row.
    fn leave_image(&mut self) {
        let Some(indexer) = &mut self.indexer else { return };
        let Some(record) = indexer.last(&self.machine.state) else { return };
        match self.rows.commit(&Batch { records: vec![record], ..Batch::default() }) {
            Ok(()) => indexer.committed(&self.machine.state),
            Err(CommitError::Full) => indexer.refused(),
            Err(CommitError::Fatal(error)) => stop_process(&error),
        }
    }

    fn publish(&mut self, batch: &Batch) {
        for row in &batch.rows {
            self.cache.insert(row.version.location, row.value.clone());
        }
        self.allocated.store(self.rows.size().allocated, Ordering::Relaxed);
        for record in batch.records.iter().filter(|record| record.bucket == Bucket::Lease) {
            let id =
                i64::from_be_bytes(record.key.as_slice().try_into().expect("a lease id has eight bytes"));
            match &record.value {
                Some(ttl) => {
                    let ttl = i64::from_be_bytes(ttl.as_slice().try_into().expect("a TTL has eight bytes"));
                    self.lessor.grant(id, ttl, Instant::now());
                }
                None => self.lessor.revoke(id),
            }
        }
        self.show();
        self.sessions.enforce(self.machine.state.auth.enabled);
        self.publisher.publish(self.machine.state.revision, &batch.changesets);
    }

    fn undo(&mut self) {
        self.machine.roll_back(State::clone(&self.published.load()));
    }

    /// In memory only: there is no space to record it, and the next commit that fits does.
    fn raise_nospace(&mut self) {
        let alarm = (self.machine.identity.member_id, AlarmType::Nospace as i32);
        Arc::make_mut(&mut self.machine.state.alarms).insert(alarm);
        self.show();
    }

    /// Readers see what was applied, and whoever reads the log sees alarms that were not raised before.
    fn show(&mut self) {
        let before = self.published.swap(Arc::new(self.machine.state.clone()));
        let alarms = &self.machine.state.alarms;
        if Arc::ptr_eq(alarms, &before.alarms) {
            return;
        }
        for (member, alarm) in alarms.difference(&before.alarms) {
            tracing::warn!(
                alarm = AlarmType::try_from(*alarm).map_or("NONE", |alarm| alarm.as_str_name()),
                from = format!("{member:x}"),
                size_bytes = self.allocated.load(Ordering::Relaxed),
                quota_size_bytes = self.quota_bytes,
                "alarm raised"
            );
        }
    }

    /// Runs a step that only tidies: out of space means "not now", anything else is fatal.
    fn settle(&mut self, step: impl FnOnce(&mut dyn RowWriter) -> Result<bool, CommitError>) -> bool {
        match step(self.rows.as_mut()) {
            Ok(more) => more,
            Err(CommitError::Full) => false,
            Err(CommitError::Fatal(error)) => stop_process(&error),
        }
    }
}

/// Sends replies; a client that has gone does not want its own.
fn answer(replies: impl Iterator<Item = (Waiter, Outcome)>) {
    for (reply, result) in replies {
        drop(reply.send(result));
    }
}

/// Answers every command of a round that could not be stored.
fn fail(round: &mut Round, error: impl Fn() -> ApplyError) {
    round.compacted = false;
    round.hashes.clear();
    let physical = round.physical.drain(..).map(|(reply, _)| (reply, Err(error())));
    answer(round.replies.drain(..).map(|(reply, result)| (reply, result.and(Err(error())))).chain(physical));
}

/// The bytes a waiting command holds, given back when it is taken or dropped.
pub struct Weight {
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

impl Weight {
    /// Adds a command to what is `waiting`; `None` when that would exceed `bytes_max`.
    pub fn add(waiting: &Arc<AtomicUsize>, command: &Command, bytes_max: usize) -> Option<Weight> {
        use prost::Message;
        let bytes = match command {
            Command::Put(request) => request.key.len() + request.value.len(),
            Command::Txn(request) => request.encoded_len(),
            Command::PeerUrls(urls) => urls.iter().map(String::len).sum(),
            _ => 0,
        };
        let weight = Weight { bytes, waiting: waiting.clone() };
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        (before + bytes <= bytes_max).then_some(weight)
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Ends the process: what is on disk is unknown, and only a restart reads it anew.
pub fn stop_process(reason: &str) -> ! {
    tracing::error!(reason, "stopping: the store can't promise durability any more");
    eprintln!("fatal: {reason}");
    std::process::exit(1);
}

/// Values of committed rows: the cache, then the writer's connection.
struct Stored<'a> {
    cache: &'a ValueCache,
    rows: &'a mut dyn RowWriter,
}

impl Values for Stored<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.cache.load(versions, |missing| self.rows.load(missing))
    }
}
