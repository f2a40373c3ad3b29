//! A snapshot: an [`Image`] and the revision records, written to a stream or read from a file.
//!
//! Writing: `SnapshotPlanner::new(&image)`, one [`SnapshotPlanner::record`] for each record in revision order, `finish`;
//! then the same with a [`SnapshotWriter`] and the records themselves. The image is encoded once, in the planner, so it
//! may change between the passes; the records may not. etcd's stream is the file and then, as a message of its own, the
//! digest that [`SnapshotWriter::finish`] returns.
//!
//! Reading checks the trailer before it trusts anything.

use std::collections::BTreeMap;
use std::io::Write;

use super::image::Bucket as ImageBucket;
use super::{BUCKETS, Image, KEY, META, RecordFault, RecordKey};
use crate::bbolt::{
    Bucket, Digest, DigestWriter, Plan, Planner, ReadAt, ReadError, Reader, Records, TrailerError,
    WriteError, Writer, verify_trailer,
};

/// Bound for what a file can make us hold: keys and values of all buckets but `key`. A million leases have 30 MB.
const IMAGE_BYTES_MAX: usize = 512 << 20;

/// The first pass over a store.
///
/// No `Debug` here and below: the image has password hashes.
pub struct SnapshotPlanner {
    planner: Planner,
    buckets: BTreeMap<&'static str, ImageBucket>,
}

/// A snapshot whose length is known.
pub struct SnapshotPlan {
    plan: Plan,
    buckets: BTreeMap<&'static str, ImageBucket>,
}

impl SnapshotPlanner {
    /// # Errors
    /// A name or a value of the image is longer than bbolt allows, or empty.
    pub fn new(image: &Image) -> Result<Self, WriteError> {
        let (mut planner, buckets) = (Planner::new(), image.buckets());
        for (name, bucket) in buckets.range(..KEY) {
            plan_bucket(&mut planner, name, bucket)?;
        }
        planner.bucket(KEY.as_bytes())?;
        Ok(Self { planner, buckets })
    }

    /// Adds a revision record; `value_len` is the length of its protobuf `KeyValue` (see [`super::KeyValueLen`]).
    ///
    /// # Errors
    /// The value is longer than bbolt allows.
    pub fn record(&mut self, key: RecordKey, value_len: usize) -> Result<(), WriteError> {
        self.planner.record(key.encoded_len(), value_len)
    }

    /// # Errors
    /// As [`SnapshotPlanner::new`].
    pub fn finish(mut self) -> Result<SnapshotPlan, WriteError> {
        for (name, bucket) in self.buckets.range(KEY..) {
            plan_bucket(&mut self.planner, name, bucket)?;
        }
        Ok(SnapshotPlan { plan: self.planner.finish()?, buckets: self.buckets })
    }
}

impl SnapshotPlan {
    /// Length of the database file in bytes, without the digest: `remaining_bytes` before the first blob.
    pub fn file_len(&self) -> u64 {
        self.plan.file_len()
    }
}

/// The second pass over a store.
pub struct SnapshotWriter<W> {
    writer: Writer<DigestWriter<W>>,
    buckets: BTreeMap<&'static str, ImageBucket>,
}

impl<W: Write> SnapshotWriter<W> {
    /// `out` gets many small writes.
    ///
    /// # Errors
    /// The output failed.
    pub fn new(out: W, plan: SnapshotPlan) -> Result<Self, WriteError> {
        let (mut writer, buckets) = (Writer::new(DigestWriter::new(out), plan.plan)?, plan.buckets);
        for (name, bucket) in buckets.range(..KEY) {
            write_bucket(&mut writer, name, bucket)?;
        }
        writer.bucket(KEY.as_bytes())?;
        Ok(Self { writer, buckets })
    }

    /// Adds a revision record; `value` is its protobuf `KeyValue`.
    ///
    /// # Errors
    /// Not after the record before, not as planned, or the output failed.
    pub fn record(&mut self, key: RecordKey, value: &[u8]) -> Result<(), WriteError> {
        self.writer.record(&key.encode(), value)
    }

    /// The output, for a caller that takes from it what was written so far.
    pub fn out_mut(&mut self) -> &mut W {
        self.writer.out_mut().out_mut()
    }

    /// Completes the database file. The digest is the caller's to send or append; the output is not flushed.
    ///
    /// # Errors
    /// Not as planned, or the output failed.
    pub fn finish(mut self) -> Result<(W, Digest), WriteError> {
        for (name, bucket) in self.buckets.range(KEY..) {
            write_bucket(&mut self.writer, name, bucket)?;
        }
        Ok(self.writer.finish()?.finish())
    }
}

fn plan_bucket(planner: &mut Planner, name: &str, bucket: &ImageBucket) -> Result<(), WriteError> {
    planner.bucket(name.as_bytes())?;
    bucket.iter().try_for_each(|(key, value)| planner.record(key.len(), value.len()))
}

fn write_bucket(writer: &mut Writer<impl Write>, name: &str, bucket: &ImageBucket) -> Result<(), WriteError> {
    writer.bucket(name.as_bytes())?;
    bucket.iter().try_for_each(|(key, value)| writer.record(key, value))
}

/// Why a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotReadError {
    #[error("checking the snapshot's digest")]
    Trailer(#[from] TrailerError),
    #[error("reading the snapshot's database")]
    Database(#[from] ReadError),
    #[error("no bucket {0:?}: a bbolt file, but not etcd's")]
    NoBucket(&'static str),
    #[error("bucket {bucket:?}, key {key}")]
    Record { bucket: &'static str, key: String, source: RecordFault },
    #[error("the buckets beside {KEY:?} have more than {IMAGE_BYTES_MAX} bytes")]
    ImageTooLarge,
}

/// What is known about a file's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrailerPolicy {
    /// Saved by the Snapshot RPC: the digest must be there and match.
    Required,
    /// Copied from a data directory (`member/snap/db`): there is no digest.
    Skipped,
}

/// A snapshot file, open for reading.
pub struct SnapshotReader<S> {
    reader: Reader<S>,
    image: Image,
    key: Bucket,
}

/// A revision record; the value is a protobuf `KeyValue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevisionRecord<'a> {
    pub key: RecordKey,
    /// Empty in the record that `etcdutl snapshot restore --bump-revision` adds: it only raises the revision.
    pub value: &'a [u8],
}

impl<S: ReadAt> SnapshotReader<S> {
    /// Checks the digest if asked to, and reads everything but the revision records.
    ///
    /// # Errors
    /// The digest is missing or wrong; the file is damaged, not etcd's, or its image is too large.
    pub fn open(source: S, trailer: TrailerPolicy) -> Result<Self, SnapshotReadError> {
        if trailer == TrailerPolicy::Required {
            verify_trailer(&source)?;
        }
        let reader = Reader::open(source)?;
        let buckets = reader.buckets()?;
        let (mut image, mut image_bytes) = (Image::default(), 0);
        for bucket in &buckets {
            if bucket.name != KEY.as_bytes() {
                take_bucket(&reader, bucket, &mut image, &mut image_bytes)?;
            }
        }
        let find = |name: &'static str| {
            let found = buckets.iter().find(|bucket| bucket.name == name.as_bytes());
            found.ok_or(SnapshotReadError::NoBucket(name))
        };
        find(META)?;
        let key = find(KEY)?.clone();
        Ok(Self { reader, image, key })
    }

    pub fn image(&self) -> &Image {
        &self.image
    }

    /// All revision records in order.
    pub fn records(&self) -> RevisionRecords<'_, S> {
        RevisionRecords { records: self.reader.records(&self.key) }
    }
}

/// The revision records of a snapshot.
#[derive(Debug)]
pub struct RevisionRecords<'r, S> {
    records: Records<'r, S>,
}

impl<S: ReadAt> RevisionRecords<'_, S> {
    /// The next record, or `None` after the last. Not to be called again after an error.
    ///
    /// # Errors
    /// The file is damaged, or a key is not a revision.
    #[expect(clippy::should_implement_trait, reason = "the record borrows from the walk")]
    pub fn next(&mut self) -> Result<Option<RevisionRecord<'_>>, SnapshotReadError> {
        let Some(record) = self.records.next()? else { return Ok(None) };
        let key = RecordKey::decode(record.key).map_err(|source| fault(KEY, record.key, source))?;
        Ok(Some(RevisionRecord { key, value: record.value }))
    }
}

fn take_bucket(
    reader: &Reader<impl ReadAt>,
    bucket: &Bucket,
    image: &mut Image,
    image_bytes: &mut usize,
) -> Result<(), SnapshotReadError> {
    let Some(name) = BUCKETS.into_iter().find(|name| name.as_bytes() == bucket.name) else {
        image.unknown.push(bucket.name.escape_ascii().to_string());
        return Ok(());
    };
    let mut records = reader.records(bucket);
    while let Some(record) = records.next()? {
        *image_bytes += record.key.len() + record.value.len();
        if *image_bytes > IMAGE_BYTES_MAX {
            return Err(SnapshotReadError::ImageTooLarge);
        }
        image.take(name, record.key, record.value).map_err(|source| fault(name, record.key, source))?;
    }
    Ok(())
}

fn fault(bucket: &'static str, key: &[u8], source: RecordFault) -> SnapshotReadError {
    SnapshotReadError::Record { bucket, key: key.escape_ascii().to_string(), source }
}

#[cfg(test)]
mod tests {
    use proto::authpb::{Permission, Role, User, UserAddOptions};
    use proto::etcdserverpb::AlarmMember;

    use super::super::{Auth, ClusterSettings, ConfState, Downgrade, LeaseRecord, Member, Meta};
    use super::*;

    fn full_image() -> Image {
        let permission = Permission { perm_type: 2, key: "a".into(), range_end: "b".into() };
        Image {
            meta: Meta {
                consistent_index: 72,
                term: 2,
                scheduled_compact: Some(20),
                finished_compact: Some(19),
                conf_state: Some(ConfState { voters: vec![u64::MAX, 1], ..ConfState::default() }),
                storage_version: Some("3.7.0".into()),
            },
            leases: vec![
                LeaseRecord { id: 1, ttl: 60, remaining_ttl: 0 },
                LeaseRecord { id: i64::MAX, ttl: 600, remaining_ttl: 5 },
            ],
            alarms: vec![AlarmMember { member_id: 5, alarm: 1 }],
            auth: Auth { enabled: Some(true), revision: 8 },
            users: vec![User {
                name: "root".into(),
                password: "hash".into(),
                roles: vec!["root".into()],
                options: Some(UserAddOptions::default()),
            }],
            roles: vec![Role { name: "r1".into(), key_permission: vec![permission] }],
            cluster: ClusterSettings {
                version: Some("3.7.0".into()),
                downgrade: Some(Downgrade { target_version: "3.6.0".into(), enabled: true }),
            },
            members: vec![Member {
                id: 0xabc,
                peer_urls: vec!["http://127.0.0.1:2380".into()],
                name: "n1".into(),
                is_learner: true,
                client_urls: Vec::new(),
            }],
            removed_members: vec![7, 0xffff_ffff_ffff_ffff],
            unknown: Vec::new(),
        }
    }

    fn snapshot(image: &Image, records: &[(RecordKey, Vec<u8>)]) -> Vec<u8> {
        let mut planner = SnapshotPlanner::new(image).expect("a good image");
        for (key, value) in records {
            planner.record(*key, value.len()).expect("short");
        }
        let plan = planner.finish().expect("a good image");
        let len = plan.file_len();
        let mut writer = SnapshotWriter::new(Vec::new(), plan).expect("memory");
        for (key, value) in records {
            writer.record(*key, value).expect("as planned");
        }
        let (mut file, digest) = writer.finish().expect("as planned");
        assert_eq!(file.len() as u64, len);
        file.extend_from_slice(&digest);
        file
    }

    #[test]
    fn an_image_and_its_records_survive() {
        let records: Vec<_> = (2..3000)
            .map(|main| {
                (RecordKey { main, sub: main % 3, tombstone: main % 7 == 0 }, vec![9; main as usize % 50])
            })
            .collect();
        for image in [full_image(), Image::default()] {
            let file = snapshot(&image, &records);
            let reader = SnapshotReader::open(&file[..], TrailerPolicy::Required).expect("ours");
            assert_eq!(reader.image(), &image);
            let (mut found, mut read) = (Vec::new(), reader.records());
            while let Some(record) = read.next().expect("ours") {
                found.push((record.key, record.value.to_vec()));
            }
            assert_eq!(found, records);
        }
    }

    #[test]
    fn a_damaged_snapshot_is_refused_before_it_is_read() {
        let mut file = snapshot(&full_image(), &[]);
        file[9000] ^= 1;
        assert!(matches!(
            SnapshotReader::open(&file[..], TrailerPolicy::Required),
            Err(SnapshotReadError::Trailer(TrailerError::Mismatch { .. }))
        ));
        file.truncate(file.len() - 32);
        assert!(matches!(
            SnapshotReader::open(&file[..], TrailerPolicy::Required),
            Err(SnapshotReadError::Trailer(TrailerError::Missing { .. }))
        ));
    }

    /// A file with one bucket and one record.
    fn file_with(bucket: &str, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut planner = Planner::new();
        planner.bucket(bucket.as_bytes()).expect("a name");
        planner.record(key.len(), value.len()).expect("short");
        let mut writer = Writer::new(Vec::new(), planner.finish().expect("good")).expect("memory");
        writer.bucket(bucket.as_bytes()).expect("a name");
        writer.record(key, value).expect("short");
        writer.finish().expect("as planned")
    }

    #[test]
    fn a_record_that_is_not_etcds_is_named() {
        for (bucket, key, value) in [
            ("lease", &b"short"[..], &b""[..]),
            ("lease", b"12345678", b"\x08\x05"),
            ("members", b"xyz", b"{\"id\":1}"),
            ("members", b"1", b"{"),
            ("members_removed", b"\xff", b""),
            ("authUsers", b"a", b"\x0a\x01b"),
            ("authRoles", b"a", b"\xff"),
            ("alarm", b"\xff", b""),
            ("meta", b"term", b"7"),
            ("meta", b"scheduledCompactRev", b"7"),
            ("meta", b"storageVersion", b"\xff"),
        ] {
            let file = file_with(bucket, key, value);
            let error = SnapshotReader::open(&file[..], TrailerPolicy::Skipped).err().expect("not etcd's");
            assert_eq!(error.to_string(), format!("bucket {bucket:?}, key {}", key.escape_ascii()));
        }
        let error = SnapshotReader::open(&file_with("test", b"k", b"v")[..], TrailerPolicy::Skipped)
            .err()
            .expect("no meta");
        assert!(matches!(error, SnapshotReadError::NoBucket("meta")));
    }
}
