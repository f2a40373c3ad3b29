//! One large message -> JSON, in pieces, while it comes: in memory is one field at a time.
//!
//! Goes down into messages that are too large to be turned as a whole, and turns the rest with the descriptors, as `wire`
//! does. Relies on what our encoders do: fields come in ascending order, and the elements of a list one after the other.

use super::wire::{Messages, to_json};
use bytes::Bytes;
use prost_reflect::{Kind, MessageDescriptor};
use tonic::Status;

/// A field up to this size is turned as a whole; of larger ones only messages are gone down into.
const FIELD_BYTES_MAX: usize = 64 << 10;
/// JSON that is passed on at a time.
const PIECE_BYTES: usize = 64 << 10;
/// The longest tag and length.
const HEAD_BYTES_MAX: usize = 20;

pub struct Transcoder {
    /// The message being written, inside of which it is, and so on.
    levels: Vec<Level>,
}

struct Level {
    message: MessageDescriptor,
    /// Bytes that are still to come.
    left: usize,
    /// The list whose elements are being written.
    list: Option<u32>,
    empty: bool,
}

/// A field's tag and length.
struct Head {
    number: u32,
    bytes: usize,
    /// Length of the payload that follows, when it is delimited by one.
    payload: usize,
    delimited: bool,
}

impl Transcoder {
    /// For a message of this length.
    pub fn new(message: MessageDescriptor, length: usize) -> Self {
        Transcoder { levels: vec![Level { message, left: length, list: None, empty: true }] }
    }

    /// The next piece of JSON; `None` after the last.
    pub async fn next(&mut self, messages: &mut Messages) -> Result<Option<Bytes>, Status> {
        let mut out = Vec::new();
        while out.len() < PIECE_BYTES
            && let Some(level) = self.levels.last_mut()
        {
            if level.left == 0 {
                level.close(&mut out);
                self.levels.pop();
                continue;
            }
            messages.at_least(level.left.min(HEAD_BYTES_MAX)).await?;
            let head = Head::parse(messages.come()).ok_or_else(malformed)?;
            let whole = head.bytes + head.payload;
            level.left = level.left.checked_sub(whole).ok_or_else(malformed)?;
            if let Some(inner) = level.large(&head) {
                messages.take(head.bytes);
                level.begin(&head, &mut out);
                self.levels.push(Level { message: inner, left: head.payload, list: None, empty: true });
                continue;
            }
            messages.at_least(whole).await?;
            level.write(&head, messages.take(whole), &mut out);
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }
}

impl Level {
    /// The message that the field is, if it is too large to be turned as a whole.
    fn large(&self, head: &Head) -> Option<MessageDescriptor> {
        if head.payload <= FIELD_BYTES_MAX || !head.delimited {
            return None;
        }
        match self.message.get_field(head.number)?.kind() {
            Kind::Message(inner) => Some(inner),
            _ => None,
        }
    }

    /// Writes what comes before a field's value.
    fn begin(&mut self, head: &Head, out: &mut Vec<u8>) {
        let first = std::mem::take(&mut self.empty);
        if first {
            out.push(b'{');
        }
        if self.list == Some(head.number) {
            return out.push(b',');
        }
        if self.list.take().is_some() {
            out.push(b']');
        }
        if !first {
            out.push(b',');
        }
        let field = self.message.get_field(head.number).expect("only known fields are written");
        out.extend_from_slice(format!("{:?}:", field.name()).as_bytes());
        if field.is_list() {
            self.list = Some(head.number);
            out.push(b'[');
        }
    }

    /// Writes a field that has come as a whole.
    fn write(&mut self, head: &Head, field: Bytes, out: &mut Vec<u8>) {
        let json = to_json(&self.message, field);
        let is_list = self.message.get_field(head.number).is_some_and(|field| field.is_list());
        // {"name":value}, or {"name":[value]}, or nothing at all for what JSON leaves out.
        let Some(colon) = json.iter().position(|&byte| byte == b':') else { return };
        let value = &json[colon + 1..json.len() - 1];
        self.begin(head, out);
        out.extend_from_slice(if is_list { &value[1..value.len() - 1] } else { value });
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.list.take().is_some() {
            out.push(b']');
        }
        if std::mem::take(&mut self.empty) {
            out.push(b'{');
        }
        out.push(b'}');
    }
}

impl Head {
    fn parse(mut bytes: &[u8]) -> Option<Head> {
        let all = bytes.len();
        let tag = prost::encoding::decode_varint(&mut bytes).ok()?;
        let tag_bytes = all - bytes.len();
        let (payload, delimited) = match tag & 7 {
            0 => {
                let before = bytes.len();
                prost::encoding::decode_varint(&mut bytes).ok()?;
                return Some(Head {
                    number: u32::try_from(tag >> 3).ok()?,
                    bytes: tag_bytes,
                    payload: before - bytes.len(),
                    delimited: false,
                });
            }
            1 => (8, false),
            2 => (usize::try_from(prost::encoding::decode_varint(&mut bytes).ok()?).ok()?, true),
            5 => (4, false),
            _ => return None,
        };
        Some(Head { number: u32::try_from(tag >> 3).ok()?, bytes: all - bytes.len(), payload, delimited })
    }
}

fn malformed() -> Status {
    Status::internal("a message can't be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::measured::Sent;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use prost::Message;
    use proto::etcdserverpb::{
        RangeResponse, ResponseHeader, ResponseOp, TxnResponse, response_op::Response as Answered,
    };
    use proto::mvccpb::KeyValue;
    use tonic::body::Body;

    fn range(keys: usize, value_bytes: usize) -> RangeResponse {
        let kv = |n: usize| KeyValue {
            key: format!("key-{n}").into(),
            value: vec![n as u8; value_bytes + n].into(),
            mod_revision: n as i64,
            ..Default::default()
        };
        let header = Some(ResponseHeader { revision: 7, ..Default::default() });
        RangeResponse { header, kvs: (0..keys).map(kv).collect(), more: true, count: keys as i64 }
    }

    async fn transcoded(name: &str, message: &impl Message, step: usize) -> Vec<u8> {
        let descriptor = proto::descriptors::pool().get_message_by_name(name).expect("it is in the contract");
        let encoded = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&(encoded.len() as u32).to_be_bytes());
        framed.extend_from_slice(&encoded);
        let pieces: Vec<_> = framed
            .chunks(step)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let mut messages = Messages::new(Sent::from(Body::new(StreamBody::new(tokio_stream::iter(pieces)))));
        let length = messages.begin().await.expect("a message").expect("no error");
        let mut transcoder = Transcoder::new(descriptor, length);
        let mut json = Vec::new();
        while let Some(piece) = transcoder.next(&mut messages).await.expect("it can be read") {
            json.extend_from_slice(&piece);
        }
        json
    }

    #[tokio::test]
    async fn json_in_pieces_is_that_of_the_whole() {
        let op = |range| ResponseOp { response: Some(Answered::ResponseRange(range)) };
        // Small elements, large ones, values larger than a field may be, and no elements at all.
        let responses =
            vec![op(range(3, 10)), op(range(300, 500)), op(range(2, 2 * FIELD_BYTES_MAX)), op(range(0, 0))];
        let txn = TxnResponse {
            header: Some(ResponseHeader { revision: 9, ..Default::default() }),
            succeeded: true,
            responses,
        };
        let descriptor =
            proto::descriptors::pool().get_message_by_name("etcdserverpb.TxnResponse").expect("it is there");
        let whole = to_json(&descriptor, txn.encode_to_vec().into());
        for step in [1_000_000, 16_384, 777] {
            let pieces = transcoded("etcdserverpb.TxnResponse", &txn, step).await;
            assert!(pieces == whole, "in pieces of {step}");
        }
    }

    #[tokio::test]
    async fn an_empty_message_is_an_empty_object() {
        assert_eq!(transcoded("etcdserverpb.TxnResponse", &TxnResponse::default(), 3).await, b"{}");
    }
}
