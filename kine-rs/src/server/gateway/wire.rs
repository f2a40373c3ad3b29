//! JSON values <-> gRPC messages: `Values` are taken from a client's body, `Messages` from a call's.

use crate::budget::{Covered, UNCOUNTED_BYTES_MAX};
use crate::server::measured::{Arrivals, Sent, UNFINISHED};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Deserializer;
use tonic::body::Body;
use tonic::{Code, Status};

/// A flag for compression and the length, before each message.
pub const HEADER_BYTES: usize = 5;

/// The JSON values of a body, one after the other.
pub struct Values {
    body: Body,
    input: MessageDescriptor,
    waiting: BytesMut,
    /// Bytes of one value.
    bytes_max: usize,
    arrivals: Arrivals,
    covered: Covered,
    ended: bool,
}

impl Values {
    pub fn new(body: Body, input: MessageDescriptor, bytes_max: usize, arrivals: &Arrivals) -> Self {
        let (arrivals, covered) = (arrivals.clone(), Covered::default());
        Values { body, input, waiting: BytesMut::new(), bytes_max, arrivals, covered, ended: false }
    }

    /// The one message of a request that is no stream; nothing stands for an empty message.
    pub async fn only(mut self) -> Result<Bytes, Status> {
        match self.next().await? {
            Some(message) => Ok(message),
            None => Ok(frame(&DynamicMessage::new(self.input))),
        }
    }

    /// All messages, as the body of a gRPC request.
    pub fn into_frames(mut self) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
        async_stream::try_stream! {
            while let Some(message) = self.next().await? {
                yield Frame::data(message);
            }
        }
    }

    /// The next message, as gRPC frames it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            match self.frame().await? {
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.waiting.extend_from_slice(&data);
                    }
                    if self.waiting.len() > self.bytes_max {
                        let text =
                            format!("received message larger than max ({} bytes of JSON)", self.bytes_max);
                        return Err(Status::resource_exhausted(text));
                    }
                    self.covered.cover(&self.arrivals.budget, self.waiting.len())?;
                }
                None => self.ended = true,
            }
        }
    }

    /// More of the body; a client may take its time, but not while a value holds memory that others wait for.
    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Status> {
        let frame = self.body.frame();
        let frame = if self.waiting.len() > UNCOUNTED_BYTES_MAX {
            let late = |_| Status::resource_exhausted(UNFINISHED);
            tokio::time::timeout(self.arrivals.stall_max, frame).await.map_err(late)?
        } else {
            frame.await
        };
        frame.transpose()
    }

    /// The first whole value that waits; `None` while more bytes are needed, or when only blanks are left.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let blanks = self.waiting.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.waiting.advance(blanks);
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let mut values = Deserializer::from_slice(&self.waiting).into_iter::<&serde_json::value::RawValue>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) if error.is_eof() && !self.ended => return Ok(None),
            Some(Err(error)) => return Err(Status::invalid_argument(format!("json: {error}"))),
            None => return Ok(None),
        };
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut deserializer = Deserializer::from_str(value.get());
        let message =
            DynamicMessage::deserialize_with_options(self.input.clone(), &mut deserializer, &options)
                .map_err(|error| Status::invalid_argument(format!("json: {error}")))?;
        let taken = values.byte_offset();
        self.waiting.advance(taken);
        Ok(Some(frame(&message)))
    }
}

fn frame(message: &DynamicMessage) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

/// The messages of a call's answer, and its status when it is an error.
pub struct Messages {
    body: Sent,
    waiting: BytesMut,
    /// Bytes of the message that was begun and are not taken yet.
    left: usize,
    ended: bool,
}

impl Messages {
    pub fn new(body: Sent) -> Self {
        Messages { body, waiting: BytesMut::new(), left: 0, ended: false }
    }

    /// Begins the next message and tells its length; all of the one before has been taken.
    pub async fn begin(&mut self) -> Option<Result<usize, Status>> {
        debug_assert_eq!(self.left, 0, "a message was left half read");
        while self.waiting.len() < HEADER_BYTES {
            if self.ended {
                return None;
            }
            if let Err(status) = self.read().await {
                self.ended = true;
                return (status.code() != Code::Ok).then_some(Err(status));
            }
        }
        let header = self.waiting.split_to(HEADER_BYTES);
        let length = header[1..].try_into().expect("four bytes");
        self.left = u32::from_be_bytes(length) as usize;
        Some(Ok(self.left))
    }

    /// All of the message that was begun.
    pub async fn whole(&mut self) -> Result<Bytes, Status> {
        let length = self.left;
        self.at_least(length).await?;
        Ok(self.take(length))
    }

    /// Makes sure that so many bytes of the message have come.
    pub async fn at_least(&mut self, bytes: usize) -> Result<(), Status> {
        while self.waiting.len() < bytes {
            self.read().await?;
        }
        Ok(())
    }

    /// What has come of the message.
    pub fn come(&self) -> &[u8] {
        &self.waiting[..self.waiting.len().min(self.left)]
    }

    pub fn take(&mut self, bytes: usize) -> Bytes {
        self.left -= bytes;
        self.waiting.split_to(bytes).freeze()
    }

    /// Adds what comes next; the status of the call when that is the end.
    async fn read(&mut self) -> Result<(), Status> {
        let no_status = || Status::internal("the call ended without a status");
        match self.body.frame().await.ok_or_else(no_status)??.into_data() {
            Ok(data) => {
                self.waiting.extend_from_slice(&data);
                Ok(())
            }
            Err(frame) => {
                Err(frame.trailers_ref().and_then(Status::from_header_map).unwrap_or_else(no_status))
            }
        }
    }
}

/// A message as etcd's gateway writes it: names of the contract, numbers of 64 bits as text, nothing that is at its default.
pub fn to_json(descriptor: &MessageDescriptor, message: Bytes) -> Vec<u8> {
    let message = DynamicMessage::decode(descriptor.clone(), message).expect("this server encoded it");
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut out);
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(&mut serializer, &options).expect("every message can be written as JSON");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcdserverpb::{RangeRequest, WatchRequest};

    fn descriptor(name: &str) -> MessageDescriptor {
        proto::descriptors::pool().get_message_by_name(name).expect("the contract has this message")
    }

    fn arrivals() -> Arrivals {
        let stall_max = std::time::Duration::from_secs(60);
        Arrivals { budget: crate::budget::Budget::new(0, 0), message_bytes_max: 1000, stall_max }
    }

    async fn parse(name: &str, pieces: Vec<&'static str>) -> Result<Vec<Bytes>, Status> {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::from(piece))));
        let body = Body::new(http_body_util::StreamBody::new(tokio_stream::iter(pieces)));
        let mut values = Values::new(body, descriptor(name), 100, &arrivals());
        let mut all = Vec::new();
        while let Some(message) = values.next().await? {
            all.push(message.slice(HEADER_BYTES..));
        }
        Ok(all)
    }

    #[tokio::test]
    async fn every_spelling_of_a_field_is_understood() {
        let json = r#"{"key":"-_8","rangeEnd":"+/8=","sort_order":"DESCEND","sortTarget":3,"limit":"7","revision":8,"no":1}"#;
        let mut messages = Vec::new();
        for piece in [json] {
            let body = Body::new(http_body_util::Full::new(Bytes::from(piece)));
            let input = descriptor("etcdserverpb.RangeRequest");
            messages.push(Values::new(body, input, 1000, &arrivals()).only().await.unwrap());
        }
        let request = RangeRequest::decode(messages[0].slice(HEADER_BYTES..)).unwrap();
        let wanted = RangeRequest {
            key: Bytes::from_static(&[0xfb, 0xff]),
            range_end: Bytes::from_static(&[0xfb, 0xff]),
            sort_order: 2,
            sort_target: 3,
            limit: 7,
            revision: 8,
            ..Default::default()
        };
        assert_eq!(request, wanted);
    }

    #[tokio::test]
    async fn a_stream_of_values_may_be_cut_anywhere() {
        let pieces = vec!["{\"create_req", "uest\":{\"key\":\"YQ", "==\"}} {\"progress_request\":{}}\n", " "];
        let requests = parse("etcdserverpb.WatchRequest", pieces).await.unwrap();
        assert_eq!(requests.len(), 2);
        assert!(WatchRequest::decode(requests[1].clone()).unwrap().request_union.is_some());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        for bad in ["{\"key\":\"Zm9", "{\"key\":\"!!\"}", "{\"key\":5}", "[]", "{bad"] {
            let error = parse("etcdserverpb.RangeRequest", vec![bad]).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error}");
        }
        let long = format!("{{\"key\":\"{}\"}}", "A".repeat(200));
        let error = parse("etcdserverpb.RangeRequest", vec![long.leak()]).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
}
