//! The newest changesets in memory: a watcher only a little behind is fed from here.

use super::event::encode;
use super::memory::Memory;
use crate::rows::{Change, Changeset};
use bytes::Bytes;
use proto::mvccpb::KeyValue;
use std::collections::VecDeque;
use std::sync::Arc;

/// Changesets kept in memory so that a watcher only a little behind needs no disk.
const RECENT_CHANGES_MAX: usize = 16 << 10;
const RECENT_BYTES_MAX: usize = 8 << 20;

/// A changeset with its events, each encoded when first wanted.
pub(super) struct Entry {
    pub(super) changeset: Arc<Changeset>,
    plain: Vec<Option<Bytes>>,
    with_prev: Vec<Option<Bytes>>,
}

impl Entry {
    pub(super) fn new(changeset: Arc<Changeset>) -> Self {
        let none = vec![None; changeset.changes.len()];
        Entry { plain: none.clone(), with_prev: none, changeset }
    }

    pub(super) fn encoded(
        &mut self,
        at: usize,
        prev_kv: bool,
        memory: &Memory,
        load: impl FnOnce(&Change) -> Option<KeyValue>,
    ) -> Bytes {
        let change = &self.changeset.changes[at];
        // What creates a key has no previous value: one encoding serves both.
        let with_prev = prev_kv && change.old.is_some();
        let slot = if with_prev { &mut self.with_prev[at] } else { &mut self.plain[at] };
        slot.get_or_insert_with(|| encode(change, if with_prev { load(change) } else { None }, memory))
            .clone()
    }

    fn bytes(&self) -> usize {
        self.changeset.changes.iter().map(|change| change.key.len() + change.value.len()).sum()
    }
}

/// The newest changesets, without a gap.
#[derive(Default)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    changes: usize,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, entry: Entry) {
        self.changes += entry.changeset.changes.len();
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.changes > RECENT_CHANGES_MAX || self.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.changes -= oldest.changeset.changes.len();
            self.bytes -= oldest.bytes();
        }
    }

    pub(super) fn reaches(&self, revision: i64) -> bool {
        self.entries.front().is_some_and(|oldest| oldest.changeset.revision <= revision)
    }

    pub(super) fn from(&mut self, revision: i64) -> impl Iterator<Item = &mut Entry> {
        let first = self.entries.partition_point(|entry| entry.changeset.revision < revision);
        self.entries.range_mut(first..)
    }
}
