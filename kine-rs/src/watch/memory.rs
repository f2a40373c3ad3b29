//! What all watches together hold in memory: encoded events, and the places of queues.
//!
//! An event counts once, however many queues it is in, from its encoding until the last of them has sent it. The less is
//! left, the shorter every queue may be, so that clients that do not read leave room for those that do; nobody waits for
//! memory: what a queue does not take is read from history later.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone)]
pub struct Memory {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Memory {
    pub fn new(bytes_max: usize) -> Self {
        Memory { used: Arc::default(), bytes_max }
    }

    pub fn free(&self) -> usize {
        self.bytes_max.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The same bytes, counted until the last copy of them is dropped.
    pub(super) fn counted(&self, bytes: Vec<u8>) -> Bytes {
        self.add(bytes.len());
        Bytes::from_owner(Counted { bytes, memory: self.clone() })
    }
}

struct Counted {
    bytes: Vec<u8>,
    memory: Memory,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.remove(self.bytes.len());
    }
}
