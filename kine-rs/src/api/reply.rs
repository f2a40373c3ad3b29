//! Replies that are large: encoded in pieces while the client reads them, and counted until it has.
//!
//! A [`Message`] is the shape of a reply: its exact length, and parts that are either bytes or key-values still to be loaded.
//! [`Long`] writes messages piece by piece from a pinned view, so a reply of any size costs the memory of a few pieces. A
//! message whose length has been announced is written to that length or not to its end: then the stream is reset.
//! [`Held`] is memory of the budget that a reply holds from its evaluation until the last byte is on its way.
//!
//! `read` makes both; they travel in the extensions of a response to `server`, which sends them. What fits and who waits is
//! decided there and in `budget`, not here.

use super::error::COMPACTED;
use crate::backend::{Pin, PinLost};
use crate::bbolt::etcd::KeyValueLen;
use crate::budget::Taken;
use crate::mvcc::range::{Plan, Shown, Versions};
use crate::mvcc::{Location, ReadView, Version};
use crate::rows::ReadError;
use crate::store::Store;
use bytes::{BufMut, Bytes, BytesMut};
use futures::task::AtomicWaker;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use proto::etcdserverpb::{RangeResponse, ResponseHeader};
use std::collections::VecDeque;
use std::pin::Pin as Pinned;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use tokio::task::JoinHandle;
use tonic::Status;

/// How much is encoded at a time: large enough that the way to a thread and back does not count.
pub const PIECE_BYTES: usize = 128 << 10;
/// The largest message gRPC sends, as in etcd.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
/// `kvs` of a RangeResponse.
const KVS: u32 = 2;
/// What a connection may hold of one response before it takes more of it.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A message to be written: its length, and what it is made of.
#[derive(Default)]
pub struct Message {
    len: usize,
    parts: VecDeque<Part>,
    value_bytes_max: usize,
    ranges: Vec<Counts>,
}

/// What the answer to a range counts.
#[derive(Clone, Copy)]
pub struct Counts {
    /// Key-values in it.
    pub returned: usize,
    /// Keys of the range.
    pub all: i64,
}

/// A long reply in numbers, for whoever tells of it: its messages are not there yet.
#[derive(Clone)]
pub struct Outline {
    pub ranges: Vec<Counts>,
    pub bytes: usize,
}

enum Part {
    Bytes(Bytes),
    KeyValues(Versions),
}

impl Message {
    /// A RangeResponse with everything `plan` names, found again on `view`.
    pub fn range(header: Option<ResponseHeader>, plan: Plan, view: &ReadView) -> Self {
        let head = RangeResponse { header, ..Default::default() };
        let tail = RangeResponse { more: plan.more, count: plan.count, ..Default::default() };
        let mut message = Message::of(&head);
        let mut returned = 0;
        message.append(Message::key_values(plan.versions, view, |_| returned += 1));
        message.append(Message::of(&tail));
        message.ranges.push(Counts { returned, all: plan.count });
        message
    }

    /// A message that is there already.
    pub fn of(message: &impl prost::Message) -> Self {
        let bytes = Bytes::from(message.encode_to_vec());
        Message { len: bytes.len(), parts: VecDeque::from([Part::Bytes(bytes)]), ..Message::default() }
    }

    /// `kvs` of a RangeResponse; `seen` is shown every key.
    pub fn key_values(versions: Versions, view: &ReadView, mut seen: impl FnMut(&[u8])) -> Self {
        let shown = versions.shown();
        let (mut len, mut value_bytes_max) = (0, 0);
        versions.each(view, |key, version| {
            let record = record(key.len(), version, shown).encoded_len();
            len += key_len(KVS) + encoded_len_varint(record as u64) + record;
            value_bytes_max = value_bytes_max.max(version.value_len as usize);
            seen(key);
        });
        let parts = VecDeque::from([Part::KeyValues(versions)]);
        Message { len, parts, value_bytes_max, ranges: Vec::new() }
    }

    /// The same as a field of another message.
    pub fn within(mut self, field: u32) -> Self {
        let mut head = BytesMut::new();
        encode_key(field, WireType::LengthDelimited, &mut head);
        encode_varint(self.len as u64, &mut head);
        self.len += head.len();
        self.parts.push_front(Part::Bytes(head.freeze()));
        self
    }

    pub fn append(&mut self, other: Message) {
        self.len += other.len;
        self.value_bytes_max = self.value_bytes_max.max(other.value_bytes_max);
        self.parts.extend(other.parts);
        self.ranges.extend(other.ranges);
    }

    pub fn outline(&self) -> Outline {
        Outline { ranges: self.ranges.clone(), bytes: self.len }
    }

    pub fn bytes(&self) -> usize {
        self.len
    }

    /// As gRPC refuses a message that is too large for it.
    pub fn check_len(&self) -> Result<(), Status> {
        if self.len > MESSAGE_BYTES_MAX {
            let text = format!(
                "grpc: trying to send message larger than max ({} vs. {MESSAGE_BYTES_MAX})",
                self.len
            );
            return Err(Status::resource_exhausted(text));
        }
        Ok(())
    }

    /// The most that is in memory while the message is written: what the connection holds, with the piece that fills it,
    /// the piece that waits for it, the one being made, and the values that is made of.
    pub fn writing_bytes(&self) -> usize {
        let parts = self.parts.iter().map(Part::held_bytes).sum::<usize>();
        SEND_BUFFER_BYTES + 4 * PIECE_BYTES.max(self.value_bytes_max) + parts
    }
}

impl Part {
    fn held_bytes(&self) -> usize {
        match self {
            Part::Bytes(bytes) => bytes.len(),
            Part::KeyValues(versions) => versions.held_bytes(),
        }
    }
}

/// A version's KeyValue, without its key and value.
fn record(key_len: usize, version: &Version, shown: Shown) -> KeyValueLen {
    KeyValueLen {
        key_len,
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        version: version.version,
        value_len: if shown.value { version.value_len as usize } else { 0 },
        lease: if shown.lease { version.lease } else { 0 },
    }
}

/// Where a long reply comes from: its messages, one after the other, and the view they are found on.
pub struct Source {
    pub store: Store,
    pub view: ReadView,
    pub rows: Rows,
    pub messages: Box<dyn Iterator<Item = Message> + Send>,
}

/// What keeps the rows of a reply from being compacted away.
pub enum Rows {
    /// They stay until it is written.
    Pinned(Pin),
    /// They stay while a message is made, which is made whole; once this revision is compacted there is none, as from etcd.
    Until { revision: i64 },
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{COMPACTED}")]
    Compacted,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Slow(#[from] PinLost),
    #[error("{0} bytes of the message are missing")]
    Length(usize),
    #[error("the value of row {0} is not as long as its index says")]
    Value(Location),
}

/// A reply under way.
struct Writing {
    source: Source,
    parts: VecDeque<Part>,
    /// Bytes of the current message that are still to come.
    left: usize,
    /// The reply's memory, kept while a thread works on it, even if the client has gone meanwhile.
    held: Held,
}

impl Writing {
    /// The next piece, of one message; empty at the end. Blocks.
    fn piece(&mut self) -> Result<Bytes, Failed> {
        match &self.source.rows {
            Rows::Pinned(pin) => {
                pin.touch()?;
                self.write(PIECE_BYTES)
            }
            Rows::Until { revision } => {
                let (newest, _pin) = self.source.store.pin(None);
                if newest.compact_revision > *revision {
                    return Err(Failed::Compacted);
                }
                self.write(usize::MAX)
            }
        }
    }

    /// Writes up to about `bytes_max`, or to the end of the message.
    fn write(&mut self, bytes_max: usize) -> Result<Bytes, Failed> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        while piece.len() < bytes_max {
            let before = piece.len();
            match self.parts.front_mut() {
                Some(Part::Bytes(bytes)) => {
                    piece.put_slice(bytes);
                    self.parts.pop_front();
                }
                Some(Part::KeyValues(versions)) => {
                    if !write_key_values(&self.source, versions, &mut piece)? {
                        self.parts.pop_front();
                    }
                }
                None if self.left > 0 => return Err(Failed::Length(self.left)),
                None if !piece.is_empty() => break,
                None => match self.source.messages.next() {
                    Some(message) => {
                        let whole = match self.source.rows {
                            Rows::Pinned(_) => 0,
                            Rows::Until { .. } => SEND_BUFFER_BYTES + message.len,
                        };
                        self.held.grow(message.writing_bytes().max(whole));
                        piece.put_u8(0);
                        piece.put_u32(u32::try_from(message.len).expect("the length was checked"));
                        (self.left, self.parts) = (message.len, message.parts);
                        continue;
                    }
                    None => break,
                },
            }
            let written = piece.len() - before;
            self.left = self.left.checked_sub(written).ok_or(Failed::Length(self.left))?;
        }
        Ok(piece.freeze())
    }
}

/// Appends key-values up to about a piece, one in any case; false: there were no more. First all but the values, and then
/// these, in the order in which they are stored, each to its place.
fn write_key_values(source: &Source, versions: &mut Versions, piece: &mut BytesMut) -> Result<bool, Failed> {
    let shown = versions.shown();
    let begin = piece.len();
    let end = begin - begin % PIECE_BYTES + PIECE_BYTES;
    let (mut wanted, mut places) = (Vec::new(), Vec::new());
    versions.take(&source.view, |key, version| {
        let record = record(key.len(), version, shown);
        let len = record.encoded_len();
        if piece.len() > begin && piece.len() + key_len(KVS) + encoded_len_varint(len as u64) + len > end {
            return false;
        }
        encode_key(KVS, WireType::LengthDelimited, piece);
        encode_varint(len as u64, piece);
        let place = record.encode_around(key, piece);
        if !place.is_empty() {
            wanted.push(*version);
            places.push(place);
        }
        true
    });
    let mut wrong = None;
    source.store.visit_values(&wanted, |at, value| {
        let place = &mut piece[places[at].clone()];
        if place.len() == value.len() {
            place.copy_from_slice(value);
        } else {
            wrong = Some(wanted[at].location);
        }
    })?;
    match wrong {
        Some(location) => Err(Failed::Value(location)),
        None => Ok(piece.len() > begin),
    }
}

/// The body of a reply that is written in pieces, each made on a thread that may block.
pub struct Long {
    state: State,
}

enum State {
    Ready(Box<Writing>),
    Working(JoinHandle<(Box<Writing>, Result<Bytes, Failed>)>),
    Done,
}

impl Long {
    pub fn new(source: Source, held: Held) -> Self {
        let writing = Writing { source, parts: VecDeque::new(), left: 0, held };
        Long { state: State::Ready(Box::new(writing)) }
    }
}

impl http_body::Body for Long {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pinned<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match &mut self.state {
                State::Ready(_) => {
                    let State::Ready(mut writing) = std::mem::replace(&mut self.state, State::Done) else {
                        unreachable!("it was ready")
                    };
                    self.state = State::Working(tokio::task::spawn_blocking(move || {
                        let piece = writing.piece();
                        (writing, piece)
                    }));
                }
                State::Working(work) => {
                    let (writing, piece) = ready!(Pinned::new(work).poll(context))
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                    self.state = State::Done;
                    let piece = match piece {
                        Ok(piece) => piece,
                        Err(Failed::Compacted) => {
                            let mut trailers = HeaderMap::new();
                            Status::out_of_range(COMPACTED).add_header(&mut trailers)?;
                            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a reply was broken off");
                            return Poll::Ready(Some(Err(Status::unavailable(error.to_string()))));
                        }
                    };
                    if piece.is_empty() {
                        let done = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
                        return Poll::Ready(Some(Ok(Frame::trailers(done))));
                    }
                    self.state = State::Ready(writing);
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

/// A long reply on its way to the server, in the extensions of the response whose body it is.
#[derive(Clone)]
pub struct LongBody(Arc<Mutex<Option<Long>>>);

impl From<Long> for LongBody {
    fn from(long: Long) -> Self {
        LongBody(Arc::new(Mutex::new(Some(long))))
    }
}

impl LongBody {
    /// The body, once.
    pub fn take(&self) -> Option<Long> {
        self.0.lock().expect("no holder of a body panics").take()
    }
}

/// Memory that a reply holds until its last byte is written.
#[derive(Clone)]
pub struct Held(Arc<Lent>);

struct Lent {
    taken: Mutex<Taken>,
    /// Pieces that the connection has.
    out: AtomicUsize,
    /// Pieces it has written, or given up.
    written: AtomicUsize,
    idle: AtomicWaker,
}

/// How far the connection has got with what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub out: usize,
    pub written: usize,
}

impl From<Taken> for Held {
    fn from(taken: Taken) -> Self {
        Held(Arc::new(Lent {
            taken: Mutex::new(taken),
            out: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            idle: AtomicWaker::new(),
        }))
    }
}

impl Held {
    /// The same bytes, counted until they are dropped.
    pub fn lend(&self, bytes: Bytes) -> Bytes {
        self.0.out.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Piece { bytes, lent: self.0.clone() })
    }

    /// Owes what is missing to `bytes`: the reply has turned out larger than it began.
    fn grow(&self, bytes: usize) {
        self.0.taken.lock().expect("no holder of a reply's memory panics").grow(bytes);
    }

    pub fn progress(&self) -> Progress {
        let written = self.0.written.load(Ordering::Acquire);
        Progress { out: self.0.out.load(Ordering::Acquire), written }
    }

    /// Ready once everything lent has been dropped.
    pub fn poll_returned(&self, context: &mut Context<'_>) -> Poll<()> {
        self.0.idle.register(context.waker());
        if self.0.out.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

struct Piece {
    bytes: Bytes,
    lent: Arc<Lent>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.lent.written.fetch_add(1, Ordering::Relaxed);
        if self.lent.out.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.lent.idle.wake();
        }
    }
}
