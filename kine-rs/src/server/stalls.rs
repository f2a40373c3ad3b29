//! Clients that do not read: a reply that holds memory and makes no progress for too long is ended.
//!
//! Two places where a client can stop. On one stream of an HTTP/2 connection: then that stream is reset (`Tasks`). On its
//! socket, where nothing else of the connection gets on either: then the connection is closed (`Draining`). Both look at
//! replies that hold memory of the budget only; watches and other streams have bounded queues of their own, and may be read
//! as slowly as the client likes.

use super::requests::Connection;
use crate::api::reply::{Held, Progress};
use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

tokio::task_local! {
    /// The reply that the task being polled has begun to send.
    static SENDING: Cell<Option<Held>>;
}

/// Tells the task that polls a response that it holds memory.
pub fn begin(held: &Held) {
    // Outside of such a task (the gateway's HTTP/1) the socket is looked at alone.
    SENDING.try_with(|sending| sending.set(Some(held.clone()))).ok();
}

/// Runs the task of each HTTP/2 request, and drops it when its reply stalls: that resets the stream.
#[derive(Clone, Copy)]
pub struct Tasks {
    pub stall_max: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, request: F) {
        tokio::spawn(watched(request, self.stall_max));
    }
}

async fn watched(request: impl Future<Output = ()>, stall_max: Duration) {
    let mut request = pin!(request);
    let mut watch: Option<Watch> = None;
    std::future::poll_fn(|context| {
        let poll = || (request.as_mut().poll(context).is_ready(), SENDING.with(Cell::take));
        let (done, begun) = SENDING.sync_scope(Cell::new(None), poll);
        if done {
            return Poll::Ready(());
        }
        if let Some(held) = begun {
            watch = Some(Watch::new(held, stall_max));
        }
        match &mut watch {
            Some(watch) => watch.poll_stalled(context),
            None => Poll::Pending,
        }
    })
    .await;
}

/// Looks from time to time whether a reply has got on.
struct Watch {
    held: Held,
    seen: Progress,
    stall_max: Duration,
    look: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(held: Held, stall_max: Duration) -> Self {
        let seen = held.progress();
        Watch { held, seen, stall_max, look: Box::pin(tokio::time::sleep(stall_max)) }
    }

    /// Ready when the connection has had something of the reply all the while and got rid of none of it.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(context));
            let now = self.held.progress();
            if now.out > 0 && now.written == self.seen.written {
                tracing::debug!("resetting a stream: its client does not read");
                return Poll::Ready(());
            }
            self.seen = now;
            self.look.as_mut().reset(Instant::now() + self.stall_max);
        }
    }
}

/// A connection that breaks when it holds memory and nothing can be written to it for too long.
pub struct Draining<S> {
    stream: S,
    connection: Arc<Connection>,
    stall_max: Duration,
    /// Since when a write has been waiting.
    since: Option<Instant>,
    look: Option<Pin<Box<Sleep>>>,
}

impl<S> Draining<S> {
    pub fn new(stream: S, connection: Arc<Connection>, stall_max: Duration) -> Self {
        Draining { stream, connection, stall_max, since: None, look: None }
    }

    /// Passes on how a write went; one that has waited for too long fails.
    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.since = None;
            return written;
        }
        let until = *self.since.get_or_insert_with(Instant::now) + self.stall_max;
        let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        while look.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if until <= now && self.connection.is_holding() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")));
            }
            look.as_mut().reset(until.max(now + self.stall_max));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Draining<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Draining<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        this.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.watch(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
