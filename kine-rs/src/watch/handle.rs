//! How the writer and the streams reach the hub: its mailbox, behind one type for each of them.

use super::hub::{Create, Message};
use super::memory::Memory;
use super::queue::Queue;
use crate::rows::Changeset;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// How the writer and the streams reach the hub.
#[derive(Clone)]
pub struct HubHandle {
    mailbox: mpsc::Sender<Message>,
    next_stream: Arc<AtomicU64>,
    memory: Memory,
}

/// How many there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub streams: usize,
    pub watchers: usize,
    /// Watchers that are behind.
    pub slow: usize,
    /// Events that wait for their clients.
    pub pending_events: usize,
}

impl HubHandle {
    pub(super) fn new(mailbox: mpsc::Sender<Message>, memory: Memory) -> Self {
        HubHandle { mailbox, next_stream: Arc::default(), memory }
    }

    pub fn publisher(&self) -> Publisher {
        Publisher { mailbox: self.mailbox.clone() }
    }

    /// Nothing when the hub has stopped.
    pub async fn counts(&self) -> Counts {
        let (reply, answer) = oneshot::channel();
        drop(self.mailbox.send(Message::Count { reply }).await);
        answer.await.unwrap_or_default()
    }

    /// Opens a stream; `None` when the hub has stopped.
    pub async fn open(&self) -> Option<Stream> {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(Queue::new(self.memory.clone()));
        self.mailbox.send(Message::Open { stream: id, queue: queue.clone() }).await.ok()?;
        Some(Stream { id, queue, mailbox: self.mailbox.clone() })
    }

    /// Ends all streams and the hub: nothing is watched any more.
    pub async fn close(&self) {
        // Gone already: nothing to end.
        drop(self.mailbox.send(Message::Stop).await);
    }

    /// Ends the hub; blocks while its mailbox is full.
    pub fn stop(&self) {
        // Gone already: nothing to stop.
        drop(self.mailbox.blocking_send(Message::Stop));
    }
}

/// The writer's end.
pub struct Publisher {
    mailbox: mpsc::Sender<Message>,
}

impl Publisher {
    /// Hands over what was committed; blocks while the hub's mailbox is full.
    pub fn publish(&self, revision: i64, changesets: &[Arc<Changeset>]) {
        if !changesets.is_empty() {
            // The hub has stopped only when the process is about to.
            drop(self.mailbox.blocking_send(Message::Publish { revision, changesets: changesets.to_vec() }));
        }
    }
}

/// A stream's end: requests go to the hub, `queue` brings what to send.
pub struct Stream {
    id: u64,
    pub queue: Arc<Queue>,
    mailbox: mpsc::Sender<Message>,
}

impl Stream {
    pub async fn create(&self, create: Create) {
        self.send(Message::Create { stream: self.id, create }).await;
    }

    pub async fn refuse(&self, reason: String) {
        self.send(Message::Refuse { stream: self.id, reason }).await;
    }

    pub async fn cancel(&self, watch_id: i64) {
        self.send(Message::Cancel { stream: self.id, watch_id }).await;
    }

    pub async fn progress(&self) {
        self.send(Message::Progress { stream: self.id }).await;
    }

    async fn send(&self, message: Message) {
        if self.mailbox.send(message).await.is_err() {
            self.queue.close();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.queue.close();
        let (mailbox, stream) = (self.mailbox.clone(), self.id);
        if let Err(mpsc::error::TrySendError::Full(message)) = mailbox.try_send(Message::Close { stream })
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { drop(mailbox.send(message).await) });
        }
    }
}
