//! Bytes as etcd's snapshot file: read to the end or refused with a reason, never a panic, never more memory than the file
//! is worth.

#![no_main]

use conformance::command::Command;
use kine_rs::bbolt::etcd::{
    Image, LeaseRecord, RecordKey, SnapshotPlanner, SnapshotReader, SnapshotWriter, TrailerPolicy,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::mvccpb::KeyValue;

const SEEDS: u64 = 3;

fuzz_target!(init: fuzz::write(SEEDS, snapshot), |data: &[u8]| {
    let Ok(snapshot) = SnapshotReader::open(data, TrailerPolicy::Skipped) else { return };
    let mut records = snapshot.records();
    let mut bytes = 0;
    while let Ok(Some(record)) = records.next() {
        bytes += record.value.len();
        // Pages may be shared by a hostile file, but not so often that a walk has no end.
        assert!(bytes <= data.len().saturating_mul(data.len()), "more records than the file can hold");
    }
});

/// A file with a revision per put of the program.
fn snapshot(program: &[Command]) -> Vec<u8> {
    let records: Vec<(RecordKey, Vec<u8>)> = (2..).zip(program).filter_map(record).collect();
    let image = Image { leases: vec![LeaseRecord::default()], ..Image::default() };
    let mut planner = SnapshotPlanner::new(&image).expect("a small image");
    for (key, value) in &records {
        planner.record(*key, value.len()).expect("keys ascend");
    }
    let mut writer =
        SnapshotWriter::new(Vec::new(), planner.finish().expect("a plan")).expect("memory takes all");
    for (key, value) in &records {
        writer.record(*key, value).expect("the record as planned");
    }
    let (file, _digest) = writer.finish().expect("all records were written");
    file
}

fn record((revision, command): (i64, &Command)) -> Option<(RecordKey, Vec<u8>)> {
    let Command::Put(put) = command else { return None };
    let kv = KeyValue {
        key: put.key.clone(),
        value: put.value.clone(),
        mod_revision: revision,
        ..Default::default()
    };
    Some((RecordKey { main: revision, sub: 0, tombstone: false }, kv.encode_to_vec()))
}
