//! When images of the index are written, beside the writer and from a frozen state, so that a restart reads few rows.
//!
//! An image goes through: taken (a state is frozen) -> written (durable, and nothing refers to it) -> named (a record is
//! committed with a batch) -> adopted (it replaces the one before). A crash anywhere in between leaves the named one.
//!
//! Invariant: the tombstones after the named image are all stored, and those after the one under way if none is named yet;
//! `covered` tells the writer which may go. So whatever compaction drops, an image and the rows after it never bring a
//! deleted key back (see `mvcc::Replay`).
//!
//! Owned by the writer, which tells it of each commit. Where images are and what names them is the backend's `ImageStore`.
//! Decides by counting rows: no clock runs, and a store that is left alone writes nothing.

use super::background;
use crate::mvcc::{Location, State};
use crate::rows::RecordWrite;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// So many rows are read within some milliseconds at start: no image is written for fewer.
const ROWS_MIN: u64 = 4096;
/// An image is written once the rows after the last are one in this many versions: a restart reads a fifth of the rows at
/// most, and each row pays for writing four versions' share of an image, about a hundred bytes.
const VERSIONS_PER_ROW: u64 = 4;
/// How long a stop waits for the last image. Without it the next start reads some more rows.
const STOP_MAX: Duration = Duration::from_secs(2);
/// A waiting write behind the adoption of the one before.
const TASKS_MAX: usize = 2;

/// Where a backend keeps images of its index.
pub trait ImageStore: Send {
    /// Writes an image; when this returns it is durable, and the record that names it can be committed. Ends early, with an
    /// error, once `cancelled` is set.
    fn write(&mut self, state: &State, cancelled: &AtomicBool) -> io::Result<RecordWrite>;
    /// The record is committed: the image takes the place of the one before.
    fn adopt(&mut self) -> io::Result<()>;
    /// The record will not be committed.
    fn discard(&mut self) -> io::Result<()>;
}

/// What a backend was opened with.
pub struct Images {
    pub store: Box<dyn ImageStore>,
    /// The first location after the image that the state was read from, if it was.
    pub covered: Option<Location>,
}

pub struct Indexer {
    worker: Worker,
    /// The first location after the named image.
    named: Option<Location>,
    /// The same of the image that is being written or waits to be named.
    under_way: Option<Location>,
    /// The same of the last one that was begun, however it ended.
    begun: Location,
    /// The record of the one under way is in the hands of the writer.
    offered: bool,
}

impl Indexer {
    /// `wake` makes the writer call `finished` soon.
    pub fn start(images: Images, wake: impl Fn() + Send + 'static) -> Self {
        let Images { store, covered } = images;
        let begun = covered.unwrap_or(State::default().next_location);
        Indexer { worker: Worker::start(store, wake), named: covered, under_way: None, begun, offered: false }
    }

    /// Tombstones from here on must stay.
    pub fn covered(&self) -> Location {
        self.named.or(self.under_way).unwrap_or(Location::MAX)
    }

    /// The record that names an image which is written now; `committed` or `refused` must follow.
    pub fn finished(&mut self) -> Option<RecordWrite> {
        let outcome = self.worker.outcome()?;
        self.offered = outcome.is_some();
        if outcome.is_none() {
            self.under_way = None;
        }
        outcome
    }

    /// A batch was committed, with the record if one was given out. Takes an image of `state`, if it is time.
    pub fn committed(&mut self, state: &State) {
        if std::mem::take(&mut self.offered) {
            self.named = self.under_way.take();
            self.worker.give(Task::Adopt);
        }
        let rows = state.next_location.saturating_sub(self.begun);
        if self.under_way.is_none() && rows >= ROWS_MIN && rows >= state.versions() / VERSIONS_PER_ROW {
            self.begin(state);
        }
    }

    /// The batch could not be stored.
    pub fn refused(&mut self) {
        if std::mem::take(&mut self.offered) {
            self.under_way = None;
            self.worker.give(Task::Discard);
        }
    }

    fn begin(&mut self, state: &State) {
        self.begun = state.next_location;
        self.under_way = Some(state.next_location);
        self.worker.give(Task::Write(state.clone()));
    }

    /// An image for the next start, unless there are few rows after the last: as `finished`. Blocks for `STOP_MAX` at most.
    pub fn last(&mut self, state: &State) -> Option<RecordWrite> {
        if self.under_way.take().is_some() {
            self.worker.cancel();
        }
        if state.next_location.saturating_sub(self.named.unwrap_or_default()) < ROWS_MIN {
            return None;
        }
        self.begin(state);
        let record = self.worker.outcome_within(STOP_MAX);
        self.offered = record.is_some();
        record
    }
}

enum Task {
    Write(State),
    Adopt,
    Discard,
}

/// The thread that writes.
struct Worker {
    /// `None` ends it.
    tasks: Option<SyncSender<Task>>,
    /// One for each `Write`; `None`: it failed or was cancelled.
    outcomes: Receiver<Option<RecordWrite>>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(store: Box<dyn ImageStore>, wake: impl Fn() + Send + 'static) -> Self {
        let (tasks, given) = sync_channel(TASKS_MAX);
        let (tell, outcomes) = channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let told = cancelled.clone();
        let thread = std::thread::Builder::new()
            .name("kine-index".into())
            .spawn(move || {
                background::yield_to_others();
                let mut store = store;
                while let Ok(task) = given.recv() {
                    let result = match task {
                        Task::Write(state) => {
                            let written = store.write(&state, &told);
                            // Before the writer is told: it may be waiting for the memory.
                            drop(state);
                            let (record, result) = match written {
                                Ok(record) => (Some(record), Ok(())),
                                Err(error) => (None, Err(error)),
                            };
                            tell.send(record).ok();
                            wake();
                            result
                        }
                        Task::Adopt => store.adopt(),
                        Task::Discard => store.discard(),
                    };
                    if let Err(error) = result
                        && !told.load(Ordering::Relaxed)
                    {
                        tracing::warn!(%error, "no image of the index; a restart now reads more rows");
                    }
                }
            })
            .expect("a thread can be started while the process starts");
        Worker { tasks: Some(tasks), outcomes, cancelled, thread: Some(thread) }
    }

    fn give(&self, task: Task) {
        let tasks = self.tasks.as_ref().expect("open until dropped");
        tasks.send(task).expect("the thread ends after its channel");
    }

    fn outcome(&self) -> Option<Option<RecordWrite>> {
        match self.outcomes.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => unreachable!("the thread ends after its channel"),
        }
    }

    /// Makes the write under way end, and waits for it.
    fn cancel(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        drop(self.outcomes.recv());
        self.cancelled.store(false, Ordering::Relaxed);
    }

    fn outcome_within(&mut self, patience: Duration) -> Option<RecordWrite> {
        self.outcomes.recv_timeout(patience).unwrap_or_else(|_| {
            self.cancel();
            None
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the index thread does not panic");
        }
    }
}
