//! Messages of a WebSocket while they arrive: what has come of one is taken from the budget of requests.
//!
//! tungstenite keeps a message until all of it is there and tells nothing before; so the bytes that it reads are counted
//! beneath it, from one message to the next. What is small is not counted, as everywhere. A message for which there is no
//! memory ends the connection, and so does one that its client leaves unfinished.

use crate::budget::{Budget, Covered};
use crate::server::measured::Arrivals;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a control frame beside its payload: its head, and the mask every client sends.
const CONTROL_BYTES: usize = 2 + 4;

/// The message that is arriving.
#[derive(Clone)]
pub struct Arriving {
    budget: Arc<Budget>,
    stall_max: Duration,
    message: Arc<Mutex<Begun>>,
}

#[derive(Default)]
struct Begun {
    bytes: usize,
    covered: Covered,
}

impl Arriving {
    pub fn new(arrivals: &Arrivals) -> Self {
        let (budget, stall_max) = (arrivals.budget.clone(), arrivals.stall_max);
        Arriving { budget, stall_max, message: Arc::default() }
    }

    /// The same stream, with what is read from it counted.
    pub fn of<S>(&self, stream: S) -> Counted<S> {
        Counted { stream, arriving: self.clone() }
    }

    /// A message that is there: counted until it is dropped, while the next one begins.
    pub fn whole(&self, message: Bytes) -> Bytes {
        let Begun { covered, .. } = std::mem::take(&mut *self.lock());
        Bytes::from_owner(Whole { message, _covered: covered })
    }

    /// A control frame came, which is no part of any message.
    pub fn aside(&self, payload_bytes: usize) {
        let mut message = self.lock();
        message.bytes = message.bytes.saturating_sub(payload_bytes + CONTROL_BYTES);
    }

    /// Done when a message that is counted has got no further for too long.
    pub async fn stalled(&self) {
        let mut seen = None;
        loop {
            tokio::time::sleep(self.stall_max).await;
            let now = self.counted_bytes();
            if now.is_some() && now == seen {
                return;
            }
            seen = now;
        }
    }

    fn counted_bytes(&self) -> Option<usize> {
        let message = self.lock();
        message.covered.is_counted().then_some(message.bytes)
    }

    fn came(&self, bytes: usize) -> io::Result<()> {
        let mut message = self.lock();
        message.bytes += bytes;
        let bytes = message.bytes;
        message.covered.cover(&self.budget, bytes).map_err(io::Error::other)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.message.lock().expect("no holder of a message panics")
    }
}

struct Whole {
    message: Bytes,
    _covered: Covered,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

pub struct Counted<S> {
    stream: S,
    arriving: Arriving,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(self.arriving.came(buffer.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
