//! A connection whose client may not ping it more often than it was told: gRPC's keepalive enforcement.
//!
//! The bytes of a connection pass through here unchanged, and their frames are counted by their heads (see `frames`). The
//! rules are grpc-go's, which real etcd and kine apply: a ping that comes too soon after the one before is a strike, with
//! no request under way any ping within two hours is; response headers or data that were sent since forgive all strikes;
//! the third strike ends the connection with GOAWAY, ENHANCE_YOUR_CALM and `too_many_pings`, by which gRPC clients know
//! that they are to ping less often. HTTP/1 is left alone.
//!
//! hyper answers pings itself and knows nothing of this. A connection that is told to go takes no more from hyper, so that
//! nothing follows the GOAWAY, and throws away what the client still sends: closing at once would reset the connection, and
//! the client would not get to read why.

use super::frames::{ACK, DATA, Frames, HEADERS, Head, PING};
use super::requests::Connection;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Strikes that are forgiven.
const STRIKES_MAX: u32 = 2;
/// The least time between two pings while no request is under way: gRPC's default.
const IDLE_INTERVAL_MIN: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a client that was told to go may take to read that.
const FAREWELL: Duration = Duration::from_secs(1);
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
const REASON: &[u8] = b"too_many_pings";

/// A stream of bytes whose pings are counted.
pub struct Policed<S> {
    stream: S,
    connection: Arc<Connection>,
    /// The least time between two pings while requests are under way.
    interval_min: Duration,
    protocol: Protocol,
}

enum Protocol {
    /// Not known yet: so many bytes of HTTP/2's preface have come.
    Unknown(usize),
    /// HTTP/1, or not to be counted.
    Uncounted,
    Http2(Counting),
    Leaving(Leaving),
}

#[derive(Default)]
struct Counting {
    received: Frames,
    sent: Frames,
    /// Something of a response was sent since the last ping.
    answered: bool,
    last_ping: Option<Instant>,
    strikes: u32,
    /// The newest stream of the client.
    last_stream: u32,
}

struct Leaving {
    goaway: Vec<u8>,
    written: usize,
    shut: bool,
    until: Pin<Box<Sleep>>,
}

impl<S> Policed<S> {
    /// Without an interval nothing is counted.
    pub fn new(stream: S, connection: Arc<Connection>, interval_min: Option<Duration>) -> Self {
        let protocol = if interval_min.is_some() { Protocol::Unknown(0) } else { Protocol::Uncounted };
        Policed { stream, connection, interval_min: interval_min.unwrap_or_default(), protocol }
    }

    /// Looks at what the client sent; false: it has to go.
    fn received(&mut self, mut bytes: &[u8]) -> bool {
        if let Protocol::Unknown(seen) = &mut self.protocol {
            let taken = (PREFACE.len() - *seen).min(bytes.len());
            if bytes[..taken] != PREFACE[*seen..*seen + taken] {
                self.protocol = Protocol::Uncounted;
                return true;
            }
            *seen += taken;
            bytes = &bytes[taken..];
            if *seen < PREFACE.len() {
                return true;
            }
            self.protocol = Protocol::Http2(Counting::default());
        }
        let Protocol::Http2(counting) = &mut self.protocol else { return true };
        let Counting { received, answered, last_ping, strikes, last_stream, .. } = counting;
        received.feed(bytes, |Head { kind, flags, stream }| match kind {
            HEADERS => *last_stream = (*last_stream).max(stream),
            PING if flags & ACK == 0 => {
                let now = Instant::now();
                let idle = self.connection.requests() == 0;
                let interval_min = if idle { IDLE_INTERVAL_MIN } else { self.interval_min };
                let too_soon = last_ping.is_some_and(|last| now.duration_since(last) < interval_min);
                *strikes = if std::mem::take(answered) { 0 } else { *strikes + u32::from(too_soon) };
                *last_ping = Some(now);
            }
            _ => {}
        });
        *strikes <= STRIKES_MAX
    }

    /// Looks at what was sent to the client.
    fn sent(&mut self, bytes: &[u8]) {
        if let Protocol::Http2(counting) = &mut self.protocol {
            let answered = &mut counting.answered;
            counting.sent.feed(bytes, |head| *answered |= matches!(head.kind, DATA | HEADERS));
        }
    }

    /// Turns the connection into one that ends. A client that reads so little that a frame is stuck half sent can't be told.
    fn dismiss(&mut self) -> io::Result<()> {
        tracing::debug!("closing a connection: too many pings");
        let Protocol::Http2(Counting { sent, last_stream, .. }) = &self.protocol else {
            unreachable!("only HTTP/2 has pings")
        };
        if !sent.is_between() {
            return Err(gone());
        }
        let mut goaway = Vec::with_capacity(9 + 8 + REASON.len());
        goaway.extend_from_slice(&[0, 0, 8 + REASON.len() as u8, GOAWAY, 0, 0, 0, 0, 0]);
        goaway.extend_from_slice(&last_stream.to_be_bytes());
        goaway.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        goaway.extend_from_slice(REASON);
        let until = Box::pin(tokio::time::sleep(FAREWELL));
        self.protocol = Protocol::Leaving(Leaving { goaway, written: 0, shut: false, until });
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the client pinged too often")
}

impl Leaving {
    /// Says farewell and waits until the client has heard it; ends with an error, for there is nothing more to read.
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Error> {
        match self.poll_tell(stream, context) {
            Poll::Ready(Ok(())) => {
                let filled = buffer.filled().len();
                loop {
                    match Pin::new(&mut *stream).poll_read(context, buffer) {
                        Poll::Ready(Ok(())) if buffer.filled().len() > filled => buffer.set_filled(filled),
                        Poll::Ready(_) => return Poll::Ready(gone()),
                        Poll::Pending => break,
                    }
                }
            }
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            Poll::Pending => {}
        }
        self.until.as_mut().poll(context).map(|()| gone())
    }

    fn poll_tell<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.goaway.len() {
            let left = &self.goaway[self.written..];
            match ready!(Pin::new(&mut *stream).poll_write(context, left))? {
                0 => return Poll::Ready(Err(gone())),
                written => self.written += written,
            }
        }
        if !self.shut {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Policed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !matches!(this.protocol, Protocol::Leaving(_)) {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            if this.received(&buffer.filled()[before..]) {
                return Poll::Ready(Ok(()));
            }
            buffer.set_filled(before);
            this.dismiss()?;
        }
        let Protocol::Leaving(leaving) = &mut this.protocol else { unreachable!("it was told to go") };
        leaving.poll(&mut this.stream, context, buffer).map(Err)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Policed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.protocol, Protocol::Leaving(_)) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.protocol, Protocol::Leaving(_)) {
            return Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()));
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, pieces))?;
        let mut left = written;
        for piece in pieces {
            let sent = left.min(piece.len());
            this.sent(&piece[..sent]);
            left -= sent;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.protocol, Protocol::Leaving(_)) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
