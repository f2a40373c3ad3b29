//! Feeding watchers of one stream from history until they have everything that was published when the last step began.
//!
//! Reads rows in the order of revisions in bounded steps and waits for room in the stream's queue before each, so a slow
//! reader costs one step of memory. Decides nothing about liveness: it reports how far it got, the hub decides.

use super::event::{Events, Item, encode};
use super::hub::{CaughtUp, Create, Outcome};
use super::queue::Queue;
use crate::cache::ValueCache;
use crate::mvcc::{ReadView, State};
use crate::rows::{Change, ReadError, Row, RowReader, ScanFrom};
use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::mvccpb::KeyValue;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Rows and bytes read per step.
const STEP_ROWS_MAX: usize = 1000;
const STEP_BYTES_MAX: usize = 2 << 20;

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
}

impl Job {
    /// `None` when the stream has closed.
    pub async fn run(mut self) -> Option<Vec<CaughtUp>> {
        let mut done = Vec::new();
        let mut from = self.watchers.iter().map(|behind| behind.next).min().unwrap_or(i64::MAX);
        // The hub knows everything up to its own revision; it brings the watchers live from wherever this ends.
        let upto = self.published.load().revision;
        while from <= upto && !self.watchers.is_empty() {
            if !self.queue.room().await {
                return None;
            }
            let step = Step { from, upto, published: self.published.clone(), reader: self.reader.clone() };
            let read =
                tokio::task::spawn_blocking(move || step.read()).await.expect("reading rows does not panic");
            let (changes, next) = match read {
                Ok(step) => step,
                Err(error) => crate::backend::stop_process(&format!("watch history: {error}")),
            };
            // Rows below the compact revision may have been dropped while they were read.
            let compact_revision = self.published.load().compact_revision;
            let (lost, kept) = std::mem::take(&mut self.watchers)
                .into_iter()
                .partition(|behind| behind.next.max(from) < compact_revision);
            self.watchers = kept;
            done.extend(
                Vec::into_iter(lost).map(|behind| behind.finish(Outcome::Compacted { compact_revision })),
            );
            self.watchers.sort_by_key(|behind| behind.watch_id);
            let cache = self.cache.clone();
            let reader = self.reader.clone();
            let watchers = std::mem::take(&mut self.watchers);
            let queue = self.queue.clone();
            self.watchers = tokio::task::spawn_blocking(move || {
                let load = |change: &Change| prev_kv(&cache, reader.as_ref(), change);
                feed(&queue, &watchers, &changes, upto, &load);
                watchers
            })
            .await
            .expect("encoding events does not panic");
            for behind in &mut self.watchers {
                behind.next = behind.next.max(next);
            }
            from = next;
        }
        done.extend(self.watchers.into_iter().map(|behind| {
            let next = behind.next;
            behind.finish(Outcome::Upto { next })
        }));
        Some(done)
    }
}

impl Behind {
    fn finish(self, outcome: Outcome) -> CaughtUp {
        CaughtUp { watcher: self.watcher, cancelled: self.cancelled, outcome }
    }
}

struct Step {
    from: i64,
    upto: i64,
    published: Arc<ArcSwap<State>>,
    reader: Arc<dyn RowReader>,
}

impl Step {
    /// Whole revisions from `from` on, and the revision to go on with.
    fn read(&self) -> Result<(Vec<Change>, i64), ReadError> {
        let mut rows = self.reader.scan(ScanFrom::Revision(self.from), STEP_ROWS_MAX, STEP_BYTES_MAX)?;
        let next = loop {
            let Some(last) = rows.last() else { break self.upto + 1 };
            let (revision, location) = (last.version.mod_revision, last.version.location);
            let more = self.reader.scan(ScanFrom::Location(location + 1), STEP_ROWS_MAX, STEP_BYTES_MAX)?;
            match more.first() {
                None => break self.upto + 1,
                Some(row) if row.version.mod_revision != revision => break revision + 1,
                // A revision larger than a step: it must be delivered whole.
                Some(_) => rows.extend(more),
            }
        };
        let next = next.min(self.upto + 1);
        rows.retain(|row| row.version.mod_revision < next);
        let view = self.published.load_full();
        Ok((rows.into_iter().map(|row| change(&view, row)).collect(), next))
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

/// Queues one response per watcher with all its events among `changes`.
fn feed(
    queue: &Queue,
    watchers: &[Behind],
    changes: &[Change],
    revision: i64,
    prev_kv: &dyn Fn(&Change) -> Option<KeyValue>,
) {
    for behind in watchers {
        let create = &behind.create;
        let wanted = |change: &&Change| {
            let deleted = change.version.is_tombstone();
            change.version.mod_revision >= behind.next
                && create.watched.contains(&change.key)
                && !(if deleted { create.no_delete } else { create.no_put })
        };
        let encoded = |change: &Change| encode(change, if create.prev_kv { prev_kv(change) } else { None });
        let events: Vec<Bytes> = changes.iter().filter(wanted).map(encoded).collect();
        if !events.is_empty() {
            let events = Events::Many(events.into());
            let fragment = create.fragment;
            let item = Item::Events { watch_id: behind.watch_id, revision, fragment, events };
            queue.push_unless(&behind.cancelled, item);
        }
    }
}
