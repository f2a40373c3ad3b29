//! What one watch stream still has to send, in order.
//!
//! Bounded in items and bytes for events: when it is full the hub lets the watcher fall behind. Answers to the client's own
//! requests always fit, because the stream takes no further request while the queue is full.

use super::event::Item;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Events waiting in one stream, in number and bytes. Bytes are shared between streams, so this is the most a reader that
/// does not read can pin.
const ITEMS_MAX: usize = 16 << 10;
const BYTES_MAX: usize = 8 << 20;

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    closed: bool,
}

impl State {
    fn push(&mut self, item: Item) {
        self.bytes += item.size();
        self.items.push_back(item);
    }

    fn is_full(&self) -> bool {
        self.items.len() >= ITEMS_MAX || self.bytes >= BYTES_MAX
    }

    fn has_room(&self) -> bool {
        self.items.len() <= ITEMS_MAX / 2 && self.bytes <= BYTES_MAX / 2
    }
}

impl Queue {
    /// Adds an answer, whatever the queue holds.
    pub(super) fn push(&self, item: Item) {
        self.lock().push(item);
        self.readable.notify_one();
    }

    /// Adds an event unless the queue is full; false: it was not added.
    pub(super) fn try_push(&self, item: Item) -> bool {
        let mut state = self.lock();
        if state.is_full() {
            return false;
        }
        state.push(item);
        drop(state);
        self.readable.notify_one();
        true
    }

    /// Adds events of a watcher unless it was cancelled meanwhile.
    pub(super) fn push_unless(&self, cancelled: &AtomicBool, item: Item) {
        let mut state = self.lock();
        if !cancelled.load(Ordering::Acquire) {
            state.push(item);
            drop(state);
            self.readable.notify_one();
        }
    }

    /// Marks a watcher as cancelled and adds the answer: no event of it can follow.
    pub(super) fn cancel(&self, cancelled: &AtomicBool, answer: Option<Item>) {
        let mut state = self.lock();
        cancelled.store(true, Ordering::Release);
        if let Some(answer) = answer {
            state.push(answer);
            drop(state);
            self.readable.notify_one();
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
                if let Some(item) = state.items.pop_front() {
                    state.bytes -= item.size();
                    if state.has_room() {
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
                if state.has_room() {
                    return true;
                }
            }
            writable.await;
        }
    }

    /// Events that wait.
    pub(super) fn event_count(&self) -> usize {
        self.lock().items.iter().map(Item::event_count).sum()
    }

    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.readable.notify_one();
        self.writable.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of a watch queue panics")
    }
}
