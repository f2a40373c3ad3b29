//! The order of one process: a writer thread takes all commands that wait, applies them, and makes them durable together.
//!
//! Apply, commit, publish, then answer: a reply is sent only when its batch is on disk and visible to readers and watchers.
//! While one batch is being committed the next one gathers, so one fsync serves everybody who waited. A batch that can't be
//! stored is undone by going back to the last published state.

use super::pin::{Pin, Pins};
use crate::apply::{ApplyError, Command, Machine, Reply};
use crate::auth::Caller;
use crate::auth::sessions::Sessions;
use crate::cache::ValueCache;
use crate::lease::Lessor;
use crate::metrics::requests::Applied;
use crate::mvcc::range::Values;
use crate::mvcc::{ReadView, State, Version};
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
/// Values of one batch, after which it is closed: bounds the time of a commit and the memory it holds.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Compacted rows dropped with one batch, so that compaction never holds up a write for longer than this takes.
const GARBAGE_ROWS_MAX: usize = 512;

/// What a proposal comes to, and where it is awaited.
type Outcome = Result<Reply, ApplyError>;
type Waiter = oneshot::Sender<Outcome>;

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
    /// The newest view, with its rows held back from compaction.
    Pin {
        reply: oneshot::Sender<(ReadView, Pin)>,
    },
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
    pub pins: Pins,
    pub applied: Applied,
}

/// Replies that wait for the batch they belong to.
#[derive(Default)]
struct Round {
    replies: Vec<(Waiter, Outcome)>,
    physical: Vec<(Waiter, Reply)>,
    sizes: Vec<oneshot::Sender<Size>>,
    defragments: Vec<oneshot::Sender<()>>,
    pins: Vec<oneshot::Sender<(ReadView, Pin)>>,
    compacted: bool,
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
    /// There was no space to tidy up; to be tried again after the next commit that fits.
    stalled: bool,
    waiting: Vec<(Waiter, Reply)>,
}

impl Writer {
    /// Runs until told to stop. Compacted rows that the last run left are dropped first thing.
    pub fn run(mut self) {
        let mut cleanup = Cleanup { garbage: true, ..Cleanup::default() };
        loop {
            // Rows that a pin holds wait for the command after it ends.
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
            let garbage_done = droppable && self.collect_garbage();
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
                return;
            }
        }
    }

    /// One step of dropping compacted rows; true when none are left.
    fn collect_garbage(&mut self) -> bool {
        let started = Instant::now();
        let done = self.machine.collect_garbage(GARBAGE_ROWS_MAX);
        let pause = &self.applied.metrics.upkeep.index_compaction_pause_ms;
        pause.observe(started.elapsed().as_secs_f64() * 1e3);
        done
    }

    /// Applies `first` and everything that waits behind it, up to the bounds of a batch.
    fn apply_waiting(&mut self, first: Option<Proposal>) -> Round {
        let mut round = Round::default();
        let (mut count, mut bytes) = (0, 0);
        let mut next = first;
        while let Some(proposal) = next {
            self.apply(proposal, &mut round, &mut bytes);
            count += 1;
            if round.stop
                || round.unreadable.is_some()
                || count >= BATCH_COMMANDS_MAX
                || bytes >= BATCH_BYTES_MAX
            {
                break;
            }
            next = self.proposals.try_recv().ok();
        }
        round
    }

    fn apply(&mut self, proposal: Proposal, round: &mut Round, bytes: &mut usize) {
        match proposal {
            Proposal::Apply { caller, command, reply, weight } => {
                *bytes += weight.bytes;
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
            Proposal::Pin { reply } => round.pins.push(reply),
            Proposal::Defragment { reply } => round.defragments.push(reply),
            Proposal::Stop => round.stop = true,
        }
    }

    fn apply_command(&mut self, caller: &Caller, command: &Command, round: &mut Round) -> Outcome {
        let mut stored = Stored { cache: &self.cache, rows: self.rows.as_mut() };
        let started = Instant::now();
        let result = self.machine.apply(caller, command, &mut stored);
        self.applied.observe(command, &result, started.elapsed());
        if let Err(ApplyError::Read(error)) = &result {
            // The command may have been applied by half.
            round.unreadable = Some(error.to_string());
        }
        result
    }

    fn commit(&mut self, mut round: Round, cleanup: &mut Cleanup) {
        let batch = self.machine.take_batch();
        if let Some(detail) = round.unreadable.take() {
            self.undo();
            fail(&mut round, || ApplyError::Read(ReadError::Io(detail.clone())));
        } else if !batch.is_empty() {
            match self.rows.commit(&batch) {
                Ok(()) => {
                    self.publish(&batch);
                    cleanup.garbage |= std::mem::take(&mut cleanup.stalled);
                }
                Err(CommitError::Full) => {
                    self.undo();
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
        for reply in round.pins {
            reply.send((self.published.load_full(), self.pins.give(Instant::now()))).ok();
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
        self.published.store(Arc::new(self.machine.state.clone()));
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
        self.published.store(Arc::new(self.machine.state.clone()));
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
