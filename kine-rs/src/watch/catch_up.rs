//! Feeding watchers of one stream from history until they have everything that was published when the last step began.
//!
//! Reads rows in the order of revisions in bounded steps, values only of what is watched, and takes a step only while there
//! is room in the stream's queue, so a client that does not read costs nothing but its queue. A step that does not fit for
//! all watchers is read again for the rest. Decides nothing about liveness: it reports how far it got, the hub decides.

use super::event::{Events, Item};
use super::hub::{CaughtUp, Create, Outcome};
use super::memory::Memory;
use super::queue::Queue;
use super::recent::Entry;
use crate::cache::ValueCache;
use crate::mvcc::{ReadView, State, Version};
use crate::rows::{Change, Changeset, ReadError, Row, RowReader, ScanFrom};
use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::mvccpb::KeyValue;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Rows looked at per step, and bytes of values read, which is also about what one response has.
const STEP_ROWS_MAX: usize = 1000;
const STEP_BYTES_MAX: usize = 512 << 10;
/// With more watchers than this all rows count as watched: to ask each of them would take longer than to read.
const WATCHERS_ASKED_MAX: usize = 64;

pub struct Behind {
    pub watcher: usize,
    pub watch_id: i64,
    pub create: Create,
    pub next: i64,
    pub cancelled: Arc<AtomicBool>,
}

pub struct Job {
    pub watchers: Vec<Behind>,
    pub queue: Arc<Queue>,
    pub published: Arc<ArcSwap<State>>,
    pub cache: Arc<ValueCache>,
    pub reader: Arc<dyn RowReader>,
    pub memory: Memory,
}

impl Job {
    /// `None` when the stream has closed.
    pub async fn run(mut self) -> Option<Vec<CaughtUp>> {
        let mut done = Vec::new();
        self.watchers.sort_by_key(|behind| behind.watch_id);
        // The hub knows everything up to its own revision; it brings the watchers live from wherever this ends.
        let upto = self.published.load().revision;
        while let Some(from) = self.watchers.iter().map(|behind| behind.next).min()
            && from <= upto
        {
            if !self.queue.room().await {
                return None;
            }
            let step = tokio::task::spawn_blocking(move || {
                let lost = self.step(from, upto);
                (self, lost)
            });
            let (job, lost) = step.await.expect("a step of catching up does not panic");
            match lost {
                Ok(lost) => done.extend(lost),
                Err(error) => crate::backend::stop_process(&format!("watch history: {error}")),
            }
            self = job;
        }
        done.extend(self.watchers.into_iter().map(|behind| {
            let next = behind.next;
            behind.finish(Outcome::Upto { next })
        }));
        Some(done)
    }

    /// Reads one step and queues it for as many watchers as there is room for. Returns those whose next revision was
    /// compacted meanwhile. Blocks.
    fn step(&mut self, from: i64, upto: i64) -> Result<Vec<CaughtUp>, ReadError> {
        let (changes, next) = match self.read(from, upto) {
            // Compaction has passed this step: whoever needs it is told below, the others go on behind it.
            Err(ReadError::Gone(_)) => (Vec::new(), from),
            read => read?,
        };
        // Rows below the compact revision may have been dropped while they were read.
        let compact_revision = self.published.load().compact_revision;
        let (lost, kept) = std::mem::take(&mut self.watchers)
            .into_iter()
            .partition(|behind| behind.next.max(from) < compact_revision);
        self.watchers = kept;
        let mut entry = Entry::new(Arc::new(Changeset { revision: next, changes }));
        for behind in self.watchers.iter_mut().filter(|behind| behind.next < next) {
            let load = |change: &Change| prev_kv(&self.cache, self.reader.as_ref(), change);
            behind.feed(&mut entry, upto, &self.queue, &self.memory, load);
            behind.next = next;
            if !self.queue.has_room() {
                break;
            }
        }
        let lost = Vec::into_iter(lost).map(|behind| behind.finish(Outcome::Compacted { compact_revision }));
        Ok(lost.collect())
    }

    /// What is watched in whole revisions from `from` on, and the revision to go on with.
    fn read(&self, from: i64, upto: i64) -> Result<(Vec<Change>, i64), ReadError> {
        let mut rows = self.reader.scan_heads(ScanFrom::Revision(from), STEP_ROWS_MAX)?;
        let mut next = loop {
            let Some(last) = rows.last() else { break upto + 1 };
            let (revision, location) = (last.version.mod_revision, last.version.location);
            match self.reader.scan_heads(ScanFrom::Location(location + 1), 1)?.first() {
                None => break upto + 1,
                Some(row) if row.version.mod_revision != revision => break revision + 1,
                // The revision goes on behind the step: it must be delivered whole.
                Some(row) => {
                    let rest = ScanFrom::Location(row.version.location);
                    rows.extend(self.reader.scan_heads(rest, STEP_ROWS_MAX)?);
                }
            }
        };
        next = next.min(upto + 1);
        rows.retain(|row| row.version.mod_revision < next && self.is_watched(&row.key));
        let mut bytes = 0;
        let too_many = |row: &&Row| {
            bytes += row.version.value_len as usize;
            bytes > STEP_BYTES_MAX && row.version.mod_revision > rows[0].version.mod_revision
        };
        if let Some(row) = rows.iter().find(too_many) {
            next = row.version.mod_revision;
            rows.retain(|row| row.version.mod_revision < next);
        }
        let versions: Vec<Version> = rows.iter().map(|row| row.version).collect();
        let values = self.cache.look_up(&versions, |missing| self.reader.load(missing))?;
        let view = self.published.load_full();
        let changes =
            rows.into_iter().zip(values).map(|(row, value)| change(&view, Row { value, ..row })).collect();
        Ok((changes, next))
    }

    fn is_watched(&self, key: &[u8]) -> bool {
        self.watchers.len() > WATCHERS_ASKED_MAX
            || self.watchers.iter().any(|behind| behind.create.watched.contains(key))
    }
}

impl Behind {
    fn finish(self, outcome: Outcome) -> CaughtUp {
        CaughtUp { watcher: self.watcher, cancelled: self.cancelled, outcome }
    }

    /// Queues one response with all its events of a step.
    fn feed(
        &self,
        step: &mut Entry,
        revision: i64,
        queue: &Queue,
        memory: &Memory,
        load: impl Fn(&Change) -> Option<KeyValue>,
    ) {
        let create = &self.create;
        let wanted = |change: &Change| {
            let deleted = change.version.is_tombstone();
            change.version.mod_revision >= self.next
                && create.watched.contains(&change.key)
                && !(if deleted { create.no_delete } else { create.no_put })
        };
        let changeset = step.changeset.clone();
        let concerned = (0..changeset.changes.len()).filter(|&at| wanted(&changeset.changes[at]));
        let events: Vec<Bytes> =
            concerned.map(|at| step.encoded(at, create.prev_kv, memory, &load)).collect();
        if !events.is_empty() {
            let events = Events::Many(events.into());
            let (watch_id, fragment) = (self.watch_id, create.fragment);
            queue.push_unless(&self.cancelled, Item::Events { watch_id, revision, fragment, events });
        }
    }
}

fn change(view: &ReadView, row: Row) -> Change {
    let created = !row.version.is_tombstone() && row.version.version == 1;
    // As etcd: the value before the compact revision is not readable, though it may still be stored.
    let readable = row.version.mod_revision > view.compact_revision;
    let old = if created || !readable { None } else { view.before(&row.key, row.version.mod_revision) };
    Change { key: row.key, version: row.version, value: row.value, old }
}

fn prev_kv(cache: &ValueCache, reader: &dyn RowReader, change: &Change) -> Option<KeyValue> {
    let old = change.old?;
    let value = cache.load(&[old], |missing| reader.load(missing)).ok()?.pop()?;
    Some(old.key_value(change.key.clone(), value))
}
