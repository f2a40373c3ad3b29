//! Bytes as requests: a sequence of frames (kind, length, protobuf) that are decoded, checked and applied in order.
//!
//! Nothing may panic; a message that decodes must encode to what decodes to it again; revisions never go back, and what
//! one transaction wrote can be read. Everything runs in this thread, so a finding repeats.

#![no_main]

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use conformance::command;
use kine_rs::apply::{Command, Identity, Machine};
use kine_rs::auth::Caller;
use kine_rs::mvcc::range::{Values, range};
use kine_rs::mvcc::{Location, State, Version};
use kine_rs::rows::{ReadError, Row};
use kine_rs::txn::{check_delete, check_put, check_range, check_txn, is_read_only, is_serializable};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::etcdserverpb::*;

const OPERATIONS_MAX: usize = 128;
const GARBAGE_ROWS: usize = 3;
/// Kind and length.
const HEAD_BYTES: usize = 3;

const SEEDS: u64 = 60;

fuzz_target!(init: fuzz::write(SEEDS, frames), |data: &[u8]| {
    let mut store = Store::default();
    let mut rest = data;
    while let Some((head, tail)) = rest.split_at_checked(HEAD_BYTES) {
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(tail.len());
        let (message, tail) = tail.split_at(length);
        store.request(head[0], Bytes::copy_from_slice(message));
        rest = tail;
    }
});

/// The state machine over rows in memory.
struct Store {
    machine: Machine,
    rows: Rows,
}

#[derive(Default)]
struct Rows(BTreeMap<Location, Row>);

impl Default for Store {
    fn default() -> Self {
        let identity = Identity { cluster_id: 1, member_id: 2, term: 2 };
        Self { machine: Machine::new(identity, State::default()), rows: Rows::default() }
    }
}

impl Values for &Rows {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        let row =
            |version: &Version| self.0.get(&version.location).expect("a version that can be read has a row");
        Ok(versions.iter().map(|version| row(version).value.clone()).collect())
    }
}

impl Store {
    fn request(&mut self, kind: u8, message: Bytes) {
        match kind % 24 {
            0 => self.range(message),
            1 => self.apply::<PutRequest>(message, |put| check_put(put).is_ok(), Command::Put),
            2 => self.apply::<DeleteRangeRequest>(
                message,
                |delete| check_delete(delete).is_ok(),
                Command::DeleteRange,
            ),
            3 => self.apply::<TxnRequest>(message, checked, |txn| Command::Txn(txn.into())),
            4 => self.apply::<CompactionRequest>(
                message,
                |_| true,
                |compact| Command::Compact { revision: compact.revision },
            ),
            5 => self.apply::<LeaseGrantRequest>(
                message,
                |grant| grant.id != 0,
                |grant| Command::LeaseGrant { id: grant.id, ttl: grant.ttl },
            ),
            6 => self.apply::<LeaseRevokeRequest>(
                message,
                |_| true,
                |revoke| Command::LeaseRevoke { id: revoke.id },
            ),
            7 => self.apply::<AlarmRequest>(message, |_| true, Command::Alarm),
            kind => decode_other(kind, message),
        }
    }

    fn range(&mut self, message: Bytes) {
        let Some(request) = decode::<RangeRequest>(message) else { return };
        if check_range(&request).is_err() {
            return;
        }
        if let Ok(response) = range(&self.machine.state, &request, &mut &self.rows) {
            let limited = request.limit > 0 && !request.count_only;
            assert!(!limited || response.kvs.len() as i64 <= request.limit);
            assert!(response.kvs.len() as i64 <= response.count);
        }
    }

    fn apply<M: Message + Default + PartialEq>(
        &mut self,
        message: Bytes,
        acceptable: impl FnOnce(&M) -> bool,
        command: impl FnOnce(M) -> Command,
    ) {
        let Some(request) = decode::<M>(message) else { return };
        if !acceptable(&request) {
            return;
        }
        let before = self.machine.state.revision;
        // A refusal is an answer like any other.
        let refused = self.machine.apply(&Caller::Nobody, &command(request), &mut &self.rows).is_err();
        let after = self.machine.state.revision;
        assert!(after == before || (after == before + 1 && !refused), "from revision {before} to {after}");
        let compacted = self.machine.state.compact_revision;
        self.machine.collect_garbage(GARBAGE_ROWS, compacted, Location::MAX);
        let batch = self.machine.take_batch();
        self.rows.0.extend(batch.rows.into_iter().map(|row| (row.version.location, row)));
        for location in batch.removed {
            self.rows.0.remove(&location).expect("a row is removed once");
        }
        self.read_everything();
    }

    fn read_everything(&mut self) {
        let all = Bytes::from_static(b"\0");
        let request = RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() };
        let response = range(&self.machine.state, &request, &mut &self.rows);
        let response = response.expect("the present can be read");
        assert_eq!(response.kvs.len() as i64, response.count);
    }
}

fn checked(txn: &TxnRequest) -> bool {
    // Asked of every transaction, valid or not.
    let (read_only, serializable) = (is_read_only(txn), is_serializable(txn));
    assert!(read_only || !serializable);
    check_txn(txn, OPERATIONS_MAX).is_ok()
}

fn decode<M: Message + Default + PartialEq>(message: Bytes) -> Option<M> {
    let decoded = M::decode(message).ok()?;
    let again = M::decode(decoded.encode_to_vec().as_slice()).expect("what was encoded decodes");
    assert!(decoded == again, "decoding what was encoded gives another message");
    Some(decoded)
}

fn decode_other(kind: u8, message: Bytes) {
    fn all<M: Message + Default + PartialEq + Debug>(message: Bytes) {
        if let Some(decoded) = decode::<M>(message) {
            assert!(!format!("{decoded:?}").is_empty());
        }
    }
    match kind {
        8 => all::<WatchRequest>(message),
        9 => all::<LeaseKeepAliveRequest>(message),
        10 => all::<LeaseTimeToLiveRequest>(message),
        11 => all::<MemberAddRequest>(message),
        12 => all::<MemberUpdateRequest>(message),
        13 => all::<HashKvRequest>(message),
        14 => all::<DowngradeRequest>(message),
        15 => all::<MoveLeaderRequest>(message),
        16 => all::<AuthUserAddRequest>(message),
        17 => all::<AuthenticateRequest>(message),
        18 => all::<AuthRoleGrantPermissionRequest>(message),
        19 => all::<AuthRoleRevokePermissionRequest>(message),
        20 => all::<proto::v3lockpb::LockRequest>(message),
        21 => all::<proto::v3electionpb::CampaignRequest>(message),
        22 => all::<proto::v3electionpb::ProclaimRequest>(message),
        _ => all::<proto::authpb::User>(message),
    }
}

/// A program's requests as this target reads them.
fn frames(program: &[command::Command]) -> Vec<u8> {
    program.iter().filter_map(frame).flatten().collect()
}

fn frame(command: &command::Command) -> Option<Vec<u8>> {
    let (kind, message) = match command {
        command::Command::Range(request) => (0, request.encode_to_vec()),
        command::Command::Put(request) => (1, request.encode_to_vec()),
        command::Command::Delete(request) => (2, request.encode_to_vec()),
        command::Command::Txn(request) => (3, request.encode_to_vec()),
        command::Command::Compact(request) => (4, request.encode_to_vec()),
        command::Command::LeaseGrant(request) => (5, request.encode_to_vec()),
        _ => return None,
    };
    let length = u16::try_from(message.len()).ok()?.to_le_bytes();
    Some([&[kind], length.as_slice(), message.as_slice()].concat())
}
