//! Values by location, within a byte budget: what was written or read lately is served without the disk.
//!
//! A value never changes (a location is written once), so there is nothing to invalidate. Sharded to keep the writer and
//! the readers out of each other's way; each shard evicts in insertion order, with a second chance for what was read.

use crate::mvcc::{Location, Version};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

const SHARDS: usize = 16;
/// What an entry costs beside its value: table slot, queue slot, allocation header.
const ENTRY_OVERHEAD: usize = 96;

pub struct ValueCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<Location, Slot, foldhash::fast::RandomState>,
    order: VecDeque<Location>,
    bytes: usize,
}

struct Slot {
    value: Bytes,
    visited: bool,
}

impl ValueCache {
    pub fn new(bytes_max: usize) -> Self {
        ValueCache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / SHARDS,
        }
    }

    /// Values of `versions` in their order; those not cached come from `load_missing` and are kept.
    pub fn load<E>(
        &self,
        versions: &[Version],
        load_missing: impl FnOnce(&[Version]) -> Result<Vec<Bytes>, E>,
    ) -> Result<Vec<Bytes>, E> {
        self.look_up(versions, |missing| {
            let loaded = load_missing(missing)?;
            for (version, value) in missing.iter().zip(&loaded) {
                self.insert(version.location, value.clone());
            }
            Ok(loaded)
        })
    }

    /// The same without keeping them.
    pub fn look_up<E>(
        &self,
        versions: &[Version],
        load_missing: impl FnOnce(&[Version]) -> Result<Vec<Bytes>, E>,
    ) -> Result<Vec<Bytes>, E> {
        let mut missing = Vec::new();
        let mut places = Vec::new();
        let mut values = Vec::with_capacity(versions.len());
        for version in versions {
            let value = if version.value_len == 0 { Some(Bytes::new()) } else { self.get(version.location) };
            if value.is_none() {
                places.push(values.len());
                missing.push(*version);
            }
            values.push(value.unwrap_or_default());
        }
        if !missing.is_empty() {
            for (place, value) in places.into_iter().zip(load_missing(&missing)?) {
                values[place] = value;
            }
        }
        Ok(values)
    }

    /// Shows the values of `versions` that are not empty, each with its place: those that are cached, then the others, which
    /// `visit_missing` shows and which are not kept.
    pub fn visit<E>(
        &self,
        versions: &[Version],
        mut each: impl FnMut(usize, &[u8]),
        visit_missing: impl FnOnce(&[Version], &mut dyn FnMut(usize, &[u8])) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut missing, mut places) = (Vec::new(), Vec::new());
        for (at, version) in versions.iter().enumerate().filter(|(_, version)| version.value_len > 0) {
            match self.get(version.location) {
                Some(value) => each(at, &value),
                None => {
                    missing.push(*version);
                    places.push(at);
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        visit_missing(&missing, &mut |at, value| each(places[at], value))
    }

    pub fn get(&self, location: Location) -> Option<Bytes> {
        let mut shard = self.shard(location);
        let slot = shard.slots.get_mut(&location)?;
        slot.visited = true;
        Some(slot.value.clone())
    }

    /// A value larger than an eighth of a shard is not kept: it would push out hundreds of others.
    pub fn insert(&self, location: Location, value: Bytes) {
        let cost = value.len() + ENTRY_OVERHEAD;
        if value.is_empty() || cost > self.shard_bytes_max / 8 {
            return;
        }
        let mut shard = self.shard(location);
        if shard.slots.insert(location, Slot { value, visited: false }).is_some() {
            return;
        }
        shard.order.push_back(location);
        shard.bytes += cost;
        while shard.bytes > self.shard_bytes_max {
            shard.evict_one();
        }
    }

    fn shard(&self, location: Location) -> std::sync::MutexGuard<'_, Shard> {
        self.shards[location as usize % SHARDS].lock().expect("no holder of a cache shard panics")
    }
}

impl Shard {
    fn evict_one(&mut self) {
        let Some(location) = self.order.pop_front() else { return };
        let slot = self.slots.get_mut(&location).expect("the queue lists what the table holds");
        if std::mem::take(&mut slot.visited) {
            self.order.push_back(location);
            return;
        }
        self.bytes -= slot.value.len() + ENTRY_OVERHEAD;
        self.slots.remove(&location);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_budget_and_keeps_what_is_read() {
        let cache = ValueCache::new(SHARDS * 10 * (1000 + ENTRY_OVERHEAD));
        cache.insert(0, Bytes::from(vec![7; 1000]));
        for n in 1..100u64 {
            cache.insert(n * SHARDS as u64, Bytes::from(vec![0; 1000]));
            assert!(cache.get(0).is_some(), "value 0 was read before every insert");
        }
        let kept = (0..100u64).filter(|n| cache.get(n * SHARDS as u64).is_some()).count();
        assert_eq!(kept, 10);
    }
}
