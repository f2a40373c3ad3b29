//! Random commands against a naive model: a full copy of the key space per revision.
//!
//! The state machine keeps an index, drops compacted rows in steps and is opened again now and then, from all rows or from
//! an image of the index and the rows after it; the model does nothing clever. After every command they must agree on what
//! the command returned and on what can be read.

use bytes::Bytes;
use kine_rs::apply::{ApplyError, Command, Identity, Machine, Reply};
use kine_rs::auth::Caller;
use kine_rs::mvcc::image::{self, ImageId};
use kine_rs::mvcc::range::{RangeError, Values, range};
use kine_rs::mvcc::{Granted, Location, Rebuild, Replay, State, Version};
use kine_rs::rows::{Bucket, ReadError, Row};
use proptest::prelude::*;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare::CompareResult,
    compare::CompareTarget, compare::TargetUnion, request_op::Request, response_op::Response,
};
use proto::mvccpb::KeyValue;
use std::collections::{BTreeMap, BTreeSet};

type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Default)]
struct Model {
    /// The key space at each revision; index 0 and 1 are the empty store.
    at: Vec<Keys>,
    compact_revision: i64,
    leases: BTreeSet<i64>,
}

impl Model {
    fn new() -> Self {
        Model { at: vec![Keys::new(), Keys::new()], compact_revision: -1, leases: BTreeSet::new() }
    }

    fn revision(&self) -> i64 {
        self.at.len() as i64 - 1
    }

    fn now(&self) -> &Keys {
        self.at.last().unwrap()
    }

    fn put(&self, keys: &mut Keys, key: &Bytes, value: &Bytes, lease: i64) {
        let mod_revision = self.revision() + 1;
        let (create_revision, version) =
            keys.get(key).map_or((mod_revision, 1), |old| (old.create_revision, old.version + 1));
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision,
            version,
            lease,
        };
        keys.insert(key.clone(), kv);
    }

    fn commit(&mut self, keys: Keys, changed: bool) {
        if changed {
            self.at.push(keys);
        }
    }

    fn in_range(keys: &Keys, from: &Bytes, to: &Bytes) -> Vec<KeyValue> {
        keys.values().filter(|kv| inside(&kv.key, from, to)).cloned().collect()
    }
}

fn inside(key: &Bytes, from: &Bytes, to: &Bytes) -> bool {
    match to.as_ref() {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < to,
    }
}

/// What a backend would hold.
#[derive(Default)]
struct Rows {
    rows: BTreeMap<Location, Row>,
    leases: BTreeMap<i64, i64>,
}

impl Values for &Rows {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        let load = |version: &Version| match self.rows.get(&version.location) {
            Some(row) => Ok(row.value.clone()),
            None => Err(ReadError::Gone(version.location)),
        };
        versions.iter().map(load).collect()
    }
}

const ID: ImageId = ImageId([7; 16]);

/// An image of the index, and the first location after it.
type Image = (Vec<u8>, Location);

struct Sut {
    machine: Machine,
    rows: Rows,
    /// The image that goes with the rows.
    named: Option<Image>,
    /// One that was taken and not named yet.
    taken: Option<Image>,
    /// Rows that were dropped before the last reopening, and that the image may know.
    dropped: BTreeSet<Location>,
}

impl Sut {
    fn new() -> Self {
        let identity = Identity { cluster_id: 1, member_id: 2, term: 2 };
        Sut {
            machine: Machine::new(identity, State::default()),
            rows: Rows::default(),
            named: None,
            taken: None,
            dropped: BTreeSet::new(),
        }
    }

    fn apply(&mut self, command: Command) -> Result<Reply, ApplyError> {
        let reply = self.machine.apply(&Caller::Server, &command, &mut &self.rows);
        self.store();
        reply
    }

    fn store(&mut self) {
        let batch = self.machine.take_batch();
        self.rows.rows.extend(batch.rows.into_iter().map(|row| (row.version.location, row)));
        for location in batch.removed {
            let removed = self.rows.rows.remove(&location).is_some();
            assert!(removed || self.dropped.remove(&location), "a row is removed once");
        }
        for record in batch.records.into_iter().filter(|record| record.bucket == Bucket::Lease) {
            let id = i64::from_be_bytes(record.key.try_into().unwrap());
            match record.value {
                Some(ttl) => self.rows.leases.insert(id, i64::from_be_bytes(ttl.try_into().unwrap())),
                None => self.rows.leases.remove(&id),
            };
        }
    }

    /// As `backend::Indexer` tells the writer.
    fn covered(&self) -> Location {
        self.named.as_ref().or(self.taken.as_ref()).map_or(Location::MAX, |(_, next)| *next)
    }

    fn collect(&mut self, rows: usize, covered: Location) -> bool {
        let done = self.machine.collect_garbage(rows, self.machine.state.compact_revision, covered);
        self.store();
        done
    }

    fn take_image(&mut self) {
        let mut bytes = Vec::new();
        image::write(&self.machine.state, ID, &mut bytes).unwrap();
        self.taken = Some((bytes, self.machine.state.next_location));
    }

    /// What opening the store again makes of the rows, and of the image if there is one: the same.
    fn reopen(&mut self, way: Way) {
        let (compact_revision, revision) = (self.machine.state.compact_revision, self.machine.state.revision);
        let mut rebuild = Rebuild::new(compact_revision);
        self.rows.rows.values().for_each(|row| rebuild.row(&row.key, row.version));
        self.leases().for_each(|(id, granted)| rebuild.lease(id, granted));
        let from_rows = rebuild.finish(revision);
        self.taken = None;
        let Some((bytes, covered)) = self.named.clone().filter(|_| way == Way::FromImage) else {
            // Locations may be given again.
            self.named = None;
            self.dropped.clear();
            self.machine.state = from_rows;
            return;
        };
        let image = image::read(ID, &mut bytes.as_slice()).unwrap();
        assert_eq!(image.next_location, covered);
        let mut replay = Replay::new(image, compact_revision);
        self.leases().for_each(|(id, granted)| replay.lease(id, granted));
        self.rows.rows.range(covered..).for_each(|(_, row)| replay.row(&row.key, row.version));
        let from_image = replay.finish(revision);
        assert_eq!(self.without_garbage(&from_image), self.without_garbage(&from_rows));
        self.dropped = (1..from_image.next_location).filter(|at| !self.rows.rows.contains_key(at)).collect();
        self.machine.state = from_image;
    }

    fn leases(&self) -> impl Iterator<Item = (i64, Granted)> {
        self.rows.leases.iter().map(|(id, ttl)| (*id, Granted { ttl: *ttl }))
    }

    /// The rows that are left once compacted rows are dropped, and everything else that can be read above the compact
    /// revision: the create revision of a tombstone at that revision is made up where the row before it is gone.
    fn without_garbage(&self, state: &State) -> (Vec<Location>, String) {
        let mut state = state.clone();
        let dropped: BTreeSet<Location> =
            state.take_garbage(usize::MAX, state.compact_revision, Location::MAX).rows.into_iter().collect();
        let left = self.rows.rows.keys().copied().filter(|location| !dropped.contains(location)).collect();
        state.compact_revision += 1;
        state.take_garbage(usize::MAX, state.compact_revision, Location::MAX);
        state.next_location = 0;
        (left, format!("{state:?}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    FromRows,
    FromImage,
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    Delete {
        from: Bytes,
        to: Bytes,
    },
    /// If the version of `key` equals `version`, then put, delete and read back; else read.
    Txn {
        key: Bytes,
        version: i64,
        put: Bytes,
        from: Bytes,
        to: Bytes,
    },
    Compact {
        back: i64,
    },
    Grant {
        id: i64,
    },
    Revoke {
        id: i64,
    },
    Collect {
        rows: usize,
    },
    TakeImage,
    NameImage,
    Reopen(Way),
    Read {
        from: Bytes,
        to: Bytes,
        back: i64,
        limit: i64,
    },
}

fn key() -> impl Strategy<Value = Bytes> {
    let keys = ["a", "a\0", "aa", "ab", "b", "b/1", "b/2", "b/3", "c", "\0"];
    prop::sample::select(keys.map(|key| Bytes::from_static(key.as_bytes())).to_vec())
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![2 => Just(Bytes::new()), 1 => Just(Bytes::from_static(&[0])), 3 => key()]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..4).prop_map(Bytes::from)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (key(), value(), 0..4i64).prop_map(|(key, value, lease)| Step::Put { key, value, lease }),
        3 => (key(), end()).prop_map(|(from, to)| Step::Delete { from, to }),
        4 => (key(), 0..3i64, key(), key(), end())
            .prop_map(|(key, version, put, from, to)| Step::Txn { key, version, put, from, to }),
        2 => (-1..12i64).prop_map(|back| Step::Compact { back }),
        1 => (1..4i64).prop_map(|id| Step::Grant { id }),
        1 => (1..4i64).prop_map(|id| Step::Revoke { id }),
        2 => (1..5usize).prop_map(|rows| Step::Collect { rows }),
        1 => Just(Step::TakeImage),
        1 => Just(Step::NameImage),
        2 => prop::sample::select(vec![Way::FromImage, Way::FromImage, Way::FromRows]).prop_map(Step::Reopen),
        6 => (key(), end(), -1..12i64, 0..4i64)
            .prop_map(|(from, to, back, limit)| Step::Read { from, to, back, limit }),
    ]
}

fn read(sut: &Sut, model: &Model, from: &Bytes, to: &Bytes, revision: i64, limit: i64) {
    let request =
        RangeRequest { key: from.clone(), range_end: to.clone(), revision, limit, ..Default::default() };
    let result = range(&sut.machine.state, &request, &mut &sut.rows);
    if revision > model.revision() {
        assert!(matches!(result, Err(RangeError::Future { .. })));
    } else if revision > 0 && revision < model.compact_revision {
        assert!(matches!(result, Err(RangeError::Compacted { .. })));
    } else {
        let response = result.expect("a readable revision");
        let keys = if revision <= 0 { model.now() } else { &model.at[revision as usize] };
        let mut expected = Model::in_range(keys, from, to);
        assert_eq!(response.count, expected.len() as i64);
        let cut = limit > 0 && expected.len() as i64 > limit;
        if cut {
            expected.truncate(limit as usize);
        }
        assert_eq!((response.kvs, response.more), (expected, cut));
    }
}

fn run(sut: &mut Sut, model: &mut Model, step: Step) {
    match step {
        Step::Put { key, value, lease } => {
            let request = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
            let result = sut.apply(Command::Put(request));
            if lease != 0 && !model.leases.contains(&lease) {
                assert!(matches!(result, Err(ApplyError::LeaseNotFound(_))));
                return;
            }
            let mut keys = model.now().clone();
            model.put(&mut keys, &key, &value, lease);
            model.commit(keys, true);
            assert!(matches!(result, Ok(Reply::Put(_))));
        }
        Step::Delete { from, to } => {
            let request = DeleteRangeRequest { key: from.clone(), range_end: to.clone(), prev_kv: true };
            let Ok(Reply::DeleteRange(response)) = sut.apply(Command::DeleteRange(request)) else {
                panic!("a delete does not fail")
            };
            let deleted = Model::in_range(model.now(), &from, &to);
            let mut keys = model.now().clone();
            keys.retain(|key, _| !inside(key, &from, &to));
            model.commit(keys, !deleted.is_empty());
            assert_eq!(response.prev_kvs, deleted);
        }
        Step::Txn { key, version, put, from, to } => {
            if inside(&put, &from, &to) {
                return;
            }
            let op = |request| RequestOp { request: Some(request) };
            let all = RangeRequest {
                key: Bytes::from_static(&[0]),
                range_end: Bytes::from_static(&[0]),
                ..Default::default()
            };
            let request = TxnRequest {
                compare: vec![Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Version as i32,
                    key: key.clone(),
                    target_union: Some(TargetUnion::Version(version)),
                    ..Default::default()
                }],
                success: vec![
                    op(Request::RequestPut(PutRequest {
                        key: put.clone(),
                        value: key.clone(),
                        ..Default::default()
                    })),
                    op(Request::RequestDeleteRange(DeleteRangeRequest {
                        key: from.clone(),
                        range_end: to.clone(),
                        prev_kv: false,
                    })),
                    op(Request::RequestRange(all.clone())),
                ],
                failure: vec![op(Request::RequestRange(all))],
            };
            let Ok(Reply::Txn(response)) = sut.apply(Command::Txn(request.into())) else {
                panic!("a valid transaction")
            };
            let holds = model.now().get(&key).map_or(0, |kv| kv.version) == version;
            assert_eq!(response.succeeded, holds);
            if holds {
                let mut keys = model.now().clone();
                model.put(&mut keys, &put, &key, 0);
                keys.retain(|key, _| !inside(key, &from, &to));
                model.commit(keys, true);
            }
            let Some(Response::ResponseRange(seen)) = response.responses.last().unwrap().response.clone()
            else {
                panic!("the last operation is a range")
            };
            assert_eq!(seen.kvs, model.now().values().cloned().collect::<Vec<_>>());
            assert_eq!(response.header.unwrap().revision, model.revision());
        }
        Step::Compact { back } => {
            let revision = model.revision() - back;
            let result = sut.apply(Command::Compact { revision });
            if revision > model.revision() {
                assert!(matches!(result, Err(ApplyError::Future { .. })));
            } else if revision <= model.compact_revision {
                assert!(matches!(result, Err(ApplyError::Compacted { .. })));
            } else {
                assert!(matches!(result, Ok(Reply::Compact(_))));
                model.compact_revision = revision;
            }
        }
        Step::Grant { id } => {
            let granted = sut.apply(Command::LeaseGrant { id, ttl: 60 }).is_ok();
            assert_eq!(granted, model.leases.insert(id));
        }
        Step::Revoke { id } => {
            let revoked = sut.apply(Command::LeaseRevoke { id }).is_ok();
            assert_eq!(revoked, model.leases.remove(&id));
            let mut keys = model.now().clone();
            keys.retain(|_, kv| kv.lease != id || !revoked);
            let changed = keys.len() != model.now().len();
            model.commit(keys, changed);
        }
        Step::Collect { rows } => {
            sut.collect(rows, sut.covered());
        }
        Step::TakeImage => sut.take_image(),
        Step::NameImage => sut.named = sut.taken.take().or(sut.named.take()),
        Step::Reopen(way) => sut.reopen(way),
        Step::Read { from, to, back, limit } => {
            read(sut, model, &from, &to, (model.revision() - back).max(0), limit);
        }
    }
    assert_eq!(sut.machine.state.revision, model.revision());
    read(sut, model, &Bytes::from_static(&[0]), &Bytes::from_static(&[0]), 0, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_state_machine_agrees_with_a_naive_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut sut = Sut::new();
        let mut model = Model::new();
        for step in steps {
            run(&mut sut, &mut model, step);
        }
        // Once more over every revision that can be read, after all garbage is gone.
        while !sut.collect(3, Location::MAX) {}
        let oldest = model.compact_revision.max(1);
        for revision in oldest..=model.revision() {
            read(&sut, &model, &Bytes::from_static(&[0]), &Bytes::from_static(&[0]), revision, 0);
        }
        // Nothing is kept that nobody can read: live keys at each readable revision and tombstones above the oldest.
        let readable: BTreeSet<(Bytes, i64)> = (oldest..=model.revision())
            .flat_map(|revision| model.at[revision as usize].values().map(|kv| (kv.key.clone(), kv.mod_revision)))
            .collect();
        let kept = sut.rows.rows.values().filter(|row| !row.version.is_tombstone());
        let kept: BTreeSet<(Bytes, i64)> = kept.map(|row| (row.key.clone(), row.version.mod_revision)).collect();
        prop_assert_eq!(kept, readable);
    }
}
