//! What one watch stream still has to send, in order.
//!
//! Bounded in bytes for events, the more tightly the less memory all watches together have left: when it is full the hub
//! lets the watcher fall behind. Answers to the client's own requests always fit, because the stream takes no further
//! request while the queue is full.

use super::event::Item;
use super::memory::Memory;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Bytes waiting in one stream: the most that a client which does not read can pin.
const BYTES_MAX: usize = 8 << 20;
/// What a stream may have waiting even when no memory is left.
const SHARE_BYTES: usize = 64 << 10;
/// A queue may take this part of what is free.
const FREE_PART: usize = 2;

pub struct Queue {
    memory: Memory,
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

#[derive(Default)]
struct State {
    items: VecDeque<Waiting>,
    bytes: usize,
    /// Address of the event queued last, to tell that the next watcher's is the same.
    last: Option<usize>,
    closed: bool,
}

struct Waiting {
    item: Item,
    /// With the events that were not in the queue already.
    bytes: usize,
}

impl Queue {
    pub fn new(memory: Memory) -> Self {
        Queue { memory, state: Mutex::default(), readable: Notify::new(), writable: Notify::new() }
    }

    /// Adds an answer, whatever the queue holds.
    pub(super) fn push(&self, item: Item) {
        let mut state = self.lock();
        self.add(&mut state, item);
    }

    /// Adds an event unless the queue is full; false: it was not added.
    pub(super) fn try_push(&self, item: Item) -> bool {
        let mut state = self.lock();
        let fits = state.bytes < self.bytes_max();
        if fits {
            self.add(&mut state, item);
        }
        fits
    }

    /// Adds events of a watcher unless it was cancelled meanwhile.
    pub(super) fn push_unless(&self, cancelled: &AtomicBool, item: Item) {
        let mut state = self.lock();
        if !cancelled.load(Ordering::Acquire) {
            self.add(&mut state, item);
        }
    }

    /// Marks a watcher as cancelled and adds the answer: no event of it can follow.
    pub(super) fn cancel(&self, cancelled: &AtomicBool, answer: Option<Item>) {
        let mut state = self.lock();
        cancelled.store(true, Ordering::Release);
        if let Some(answer) = answer {
            self.add(&mut state, answer);
        }
    }

    /// The next item; `None` once the queue is closed.
    pub async fn pop(&self) -> Option<Item> {
        loop {
            let readable = self.readable.notified();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(Waiting { item, bytes }) = state.items.pop_front() {
                    state.bytes -= bytes;
                    self.memory.remove(item.place_bytes());
                    if self.has_room_in(&state) {
                        self.writable.notify_waiters();
                    }
                    return Some(item);
                }
            }
            readable.await;
        }
    }

    /// Waits until the queue is at most half full; false once it is closed.
    pub async fn room(&self) -> bool {
        loop {
            let writable = self.writable.notified();
            tokio::pin!(writable);
            writable.as_mut().enable();
            {
                let state = self.lock();
                if state.closed {
                    return false;
                }
                if self.has_room_in(&state) {
                    return true;
                }
            }
            writable.await;
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.has_room_in(&self.lock())
    }

    /// Events that wait.
    pub(super) fn event_count(&self) -> usize {
        self.lock().items.iter().map(|waiting| waiting.item.event_count()).sum()
    }

    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for Waiting { item, .. } in std::mem::take(&mut state.items) {
            self.memory.remove(item.place_bytes());
        }
        drop(state);
        self.readable.notify_one();
        self.writable.notify_waiters();
    }

    fn add(&self, state: &mut State, item: Item) {
        if state.closed {
            return;
        }
        let place = item.place_bytes();
        let address = item.address();
        let known = address.is_some() && address == state.last;
        state.last = address;
        let bytes = if known { place } else { place + item.event_bytes() };
        state.bytes += bytes;
        self.memory.add(place);
        state.items.push_back(Waiting { item, bytes });
        self.readable.notify_one();
    }

    fn has_room_in(&self, state: &State) -> bool {
        state.bytes <= self.bytes_max() / 2
    }

    /// What may wait now.
    fn bytes_max(&self) -> usize {
        (self.memory.free() / FREE_PART).clamp(SHARE_BYTES, BYTES_MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of a watch queue panics")
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Events;
    use super::*;

    fn event(memory: &Memory, bytes: usize) -> Item {
        item(memory.counted(vec![7; bytes]))
    }

    fn item(event: bytes::Bytes) -> Item {
        Item::Events { watch_id: 0, revision: 1, fragment: false, events: Events::One(event) }
    }

    /// Fills a queue with events of `bytes`; how many it took.
    fn fill(queue: &Queue, memory: &Memory, bytes: usize) -> usize {
        (0..).take_while(|_| queue.try_push(event(memory, bytes))).count()
    }

    #[test]
    fn queues_that_are_not_read_leave_room_for_others() {
        let memory = Memory::new(4 * BYTES_MAX);
        let queues: Vec<Queue> = (0..100).map(|_| Queue::new(memory.clone())).collect();
        let taken: Vec<usize> = queues.iter().map(|queue| fill(queue, &memory, 8 << 10)).collect();
        assert!(taken[0] * (8 << 10) >= BYTES_MAX * 9 / 10, "{taken:?}");
        assert!(taken.iter().all(|&taken| taken * (8 << 10) >= SHARE_BYTES * 9 / 10), "{taken:?}");
        let held: usize = taken.iter().sum::<usize>() * (8 << 10);
        assert!(held <= 4 * BYTES_MAX + 100 * 2 * SHARE_BYTES, "{held}");
        queues.iter().for_each(Queue::close);
        assert_eq!(memory.free(), 4 * BYTES_MAX, "all was given back");
    }

    #[test]
    fn an_event_for_many_watchers_of_a_stream_counts_once() {
        let memory = Memory::new(1 << 30);
        let queue = Queue::new(memory.clone());
        let shared = memory.counted(vec![7; 1 << 20]);
        for _ in 0..1000 {
            assert!(queue.try_push(item(shared.clone())));
        }
        assert!(fill(&queue, &memory, 1 << 20) >= 6);
    }
}
