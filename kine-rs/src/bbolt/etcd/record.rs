//! The key of a revision record, and its value without the key-value's own: how long it is, and all around it.

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

const SEPARATOR_AT: usize = 8;
const SEPARATOR: u8 = b'_';
const PLAIN_LEN: usize = 17;
const MARKED_LEN: usize = 18;
const TOMBSTONE: u8 = b't';

/// Key of a record in the bucket `key`. Its order is the order of the encoded keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKey {
    /// Not negative.
    pub main: i64,
    /// Place among the changes of one revision, from 0.
    pub sub: i64,
    pub tombstone: bool,
}

/// Why a record is not what etcd writes.
#[derive(Debug, thiserror::Error)]
pub enum RecordFault {
    #[error("{actual} bytes, expected {expected}")]
    Length { actual: usize, expected: usize },
    #[error("a revision key of {actual} bytes, expected {PLAIN_LEN} or {MARKED_LEN}")]
    KeyLength { actual: usize },
    #[error("a revision key without '_' after 8 bytes or with an unknown mark")]
    KeyForm,
    #[error("negative revision {main}, {sub}")]
    Negative { main: i64, sub: i64 },
    #[error("not a member id in hexadecimal")]
    MemberId,
    #[error("not UTF-8")]
    Text,
    #[error("the value belongs to {0}")]
    OtherName(String),
    #[error("not the protobuf message expected")]
    Protobuf(#[from] prost::DecodeError),
    #[error("not the JSON expected")]
    Json(#[from] serde_json::Error),
}

impl RecordKey {
    /// 17 bytes, or 18 for a tombstone.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MARKED_LEN);
        bytes.extend_from_slice(&self.main.to_be_bytes());
        bytes.push(SEPARATOR);
        bytes.extend_from_slice(&self.sub.to_be_bytes());
        bytes.extend(self.tombstone.then_some(TOMBSTONE));
        bytes
    }

    pub fn encoded_len(self) -> usize {
        if self.tombstone { MARKED_LEN } else { PLAIN_LEN }
    }

    /// # Errors
    /// Not a key that etcd writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordFault> {
        let tombstone = match bytes.len() {
            PLAIN_LEN => false,
            MARKED_LEN => true,
            actual => return Err(RecordFault::KeyLength { actual }),
        };
        if bytes[SEPARATOR_AT] != SEPARATOR || (tombstone && bytes[PLAIN_LEN] != TOMBSTONE) {
            return Err(RecordFault::KeyForm);
        }
        let main = i64::from_be_bytes(bytes[..SEPARATOR_AT].try_into().expect("8 bytes"));
        let sub = i64::from_be_bytes(bytes[SEPARATOR_AT + 1..PLAIN_LEN].try_into().expect("8 bytes"));
        if main < 0 || sub < 0 {
            return Err(RecordFault::Negative { main, sub });
        }
        Ok(Self { main, sub, tombstone })
    }
}

/// Fields of a protobuf `KeyValue` that decide its length: what a planner needs, and a key index has without loading
/// the value.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyValueLen {
    pub key_len: usize,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value_len: usize,
    pub lease: i64,
}

impl KeyValueLen {
    pub fn encoded_len(&self) -> usize {
        // All field numbers are below 16: one byte of tag.
        let bytes = |len: usize| if len == 0 { 0 } else { 1 + encoded_len_varint(len as u64) + len };
        let number = |n: i64| if n == 0 { 0 } else { 1 + encoded_len_varint(n as u64) };
        bytes(self.key_len)
            + number(self.create_revision)
            + number(self.mod_revision)
            + number(self.version)
            + bytes(self.value_len)
            + number(self.lease)
    }

    /// Appends the record with zeros for its value, whose place it returns.
    pub fn encode_around(&self, key: &[u8], buffer: &mut BytesMut) -> Range<usize> {
        let number = |field, n: i64, buffer: &mut BytesMut| {
            if n != 0 {
                encode_key(field, WireType::Varint, buffer);
                encode_varint(n as u64, buffer);
            }
        };
        let head = |field, len: usize, buffer: &mut BytesMut| {
            if len > 0 {
                encode_key(field, WireType::LengthDelimited, buffer);
                encode_varint(len as u64, buffer);
            }
        };
        head(1, key.len(), buffer);
        buffer.put_slice(key);
        number(2, self.create_revision, buffer);
        number(3, self.mod_revision, buffer);
        number(4, self.version, buffer);
        head(5, self.value_len, buffer);
        let place = buffer.len()..buffer.len() + self.value_len;
        buffer.put_bytes(0, self.value_len);
        number(6, self.lease, buffer);
        place
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use proto::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn keys_look_as_etcd_writes_them() {
        let put = RecordKey { main: 0x36, sub: 1, tombstone: false };
        assert_eq!(put.encode(), b"\0\0\0\0\0\0\0\x36_\0\0\0\0\0\0\0\x01");
        let delete = RecordKey { tombstone: true, ..put };
        assert_eq!(delete.encode(), b"\0\0\0\0\0\0\0\x36_\0\0\0\0\0\0\0\x01t");
        assert!(matches!(RecordKey::decode(b"abc"), Err(RecordFault::KeyLength { actual: 3 })));
        assert!(matches!(
            RecordKey::decode(b"\0\0\0\0\0\0\0\x36-\0\0\0\0\0\0\0\x01"),
            Err(RecordFault::KeyForm)
        ));
        assert!(matches!(
            RecordKey::decode(b"\0\0\0\0\0\0\0\x36_\0\0\0\0\0\0\0\x01x"),
            Err(RecordFault::KeyForm)
        ));
        assert!(matches!(RecordKey::decode(&[b'_' | 0x80; 17]), Err(RecordFault::KeyForm)));
        assert!(matches!(
            RecordKey::decode(b"\xff\0\0\0\0\0\0\0_\0\0\0\0\0\0\0\0"),
            Err(RecordFault::Negative { .. })
        ));
    }

    proptest! {
        #[test]
        fn keys_survive_and_keep_their_order(
            a in (0..i64::MAX, 0..i64::MAX, any::<bool>()),
            b in (0..i64::MAX, 0..i64::MAX, any::<bool>()),
        ) {
            let key = |(main, sub, tombstone)| RecordKey { main, sub, tombstone };
            let (a, b) = (key(a), key(b));
            prop_assert_eq!(RecordKey::decode(&a.encode()).expect("ours"), a);
            prop_assert_eq!(a.encode().len(), a.encoded_len());
            prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
        }

        #[test]
        fn a_record_is_that_of_the_message_around_its_value(
            key in prop::collection::vec(any::<u8>(), 0..300),
            value in prop::collection::vec(any::<u8>(), 0..300),
            numbers in any::<[i64; 4]>(),
        ) {
            let [create_revision, mod_revision, version, lease] = numbers.map(|n| if n % 5 == 0 { 0 } else { n });
            let len = KeyValueLen {
                key_len: key.len(), create_revision, mod_revision, version, value_len: value.len(), lease,
            };
            let mut record = BytesMut::new();
            let place = len.encode_around(&key, &mut record);
            record[place].copy_from_slice(&value);
            let message = KeyValue {
                key: key.into(), create_revision, mod_revision, version, value: value.into(), lease,
            };
            prop_assert_eq!(len.encoded_len(), message.encoded_len());
            prop_assert_eq!(&record[..], message.encode_to_vec());
        }
    }
}
