//! Events on the wire: encoded once, shared by every watcher that gets them.

use super::memory::Memory;
use crate::apply::Identity;
use crate::rows::Change;
use bytes::{BufMut, Bytes, BytesMut};
use prost::{Message, length_delimiter_len};
use proto::etcdserverpb::WatchResponse;
use proto::mvccpb::{Event, KeyValue, event::EventType};
use std::sync::Arc;

/// Tag of `WatchResponse.events`: field 11, length-delimited.
const EVENTS_TAG: u8 = 11 << 3 | 2;

/// One thing to send on a stream.
#[derive(Debug)]
pub enum Item {
    /// A response without events.
    Answer(WatchResponse),
    Events {
        watch_id: i64,
        revision: i64,
        fragment: bool,
        events: Events,
    },
}

#[derive(Clone, Debug)]
pub enum Events {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Events {
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            Events::One(event) => std::slice::from_ref(event),
            Events::Many(events) => events,
        }
    }
}

impl Item {
    /// What its place in a queue takes, without the bytes of its events.
    pub fn place_bytes(&self) -> usize {
        let own = size_of::<Item>() + size_of::<usize>();
        match self {
            Item::Answer(response) => own + response.cancel_reason.len(),
            Item::Events { events: Events::One(_), .. } => own,
            Item::Events { events: Events::Many(events), .. } => own + size_of_val::<[Bytes]>(events),
        }
    }

    pub fn event_bytes(&self) -> usize {
        match self {
            Item::Answer(_) => 0,
            Item::Events { events, .. } => events.as_slice().iter().map(Bytes::len).sum(),
        }
    }

    /// Where its event is, if it has one only.
    pub fn address(&self) -> Option<usize> {
        match self {
            Item::Events { events: Events::One(event), .. } => Some(event.as_ptr().addr()),
            _ => None,
        }
    }

    pub fn event_count(&self) -> usize {
        match self {
            Item::Answer(_) => 0,
            Item::Events { events, .. } => events.as_slice().len(),
        }
    }

    /// The responses to send for this item: one, unless it asks for fragments and is larger than `fragment_bytes`.
    pub fn into_frames(self, identity: &Identity, fragment_bytes: usize) -> Vec<Frame> {
        let (watch_id, revision, fragment, events) = match self {
            Item::Answer(response) => return vec![Frame { head: response, events: Vec::new() }],
            Item::Events { watch_id, revision, fragment, events } => (watch_id, revision, fragment, events),
        };
        let head = WatchResponse { header: Some(identity.header(revision)), watch_id, ..Default::default() };
        let events = events.as_slice();
        let head_len = head.encoded_len() + 2;
        let mut frames = Vec::with_capacity(1);
        let mut rest = events;
        while !rest.is_empty() {
            let mut take = rest.len();
            if fragment {
                let mut bytes = head_len;
                take = rest
                    .iter()
                    .take_while(|event| {
                        bytes += event.len();
                        bytes < fragment_bytes
                    })
                    .count()
                    .max(1);
            }
            let (now, later) = rest.split_at(take);
            let head = WatchResponse { fragment: !later.is_empty(), ..head.clone() };
            frames.push(Frame { head, events: now.to_vec() });
            rest = later;
        }
        frames
    }
}

/// A response whose events are encoded already.
#[derive(Debug)]
pub struct Frame {
    /// Everything but the events.
    pub head: WatchResponse,
    /// Each with its tag and length.
    pub events: Vec<Bytes>,
}

impl Frame {
    pub fn encode(&self, out: &mut impl BufMut) {
        self.head.encode(out).expect("the gRPC buffer grows");
        for event in &self.events {
            out.put_slice(event);
        }
    }

    pub fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    /// The plain message, for whoever does not speak gRPC.
    pub fn into_response(self) -> WatchResponse {
        let mut bytes = BytesMut::with_capacity(self.encoded_len());
        self.encode(&mut bytes);
        WatchResponse::decode(bytes.freeze()).expect("what was encoded decodes")
    }
}

/// Encodes one change as a field of a response.
pub fn encode(change: &Change, prev_kv: Option<KeyValue>, memory: &Memory) -> Bytes {
    let version = &change.version;
    let (kind, kv) = if version.is_tombstone() {
        let kv =
            KeyValue { key: change.key.clone(), mod_revision: version.mod_revision, ..Default::default() };
        (EventType::Delete, kv)
    } else {
        (EventType::Put, version.key_value(change.key.clone(), change.value.clone()))
    };
    let event = Event { r#type: kind as i32, kv: Some(kv), prev_kv };
    let length = event.encoded_len();
    let mut out = Vec::with_capacity(1 + length_delimiter_len(length) + length);
    out.push(EVENTS_TAG);
    event.encode_length_delimited(&mut out).expect("the buffer grows");
    memory.counted(out)
}
