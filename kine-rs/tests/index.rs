//! The image of the index beside a SQLite database: a start that reads it finds what a start that reads all rows finds,
//! and whatever is wrong with it, all rows are read.
//!
//! A start that reads an image compares it with all rows beside (`backend::sqlite::integrity`) and ends this process if they
//! differ.

use bytes::Bytes;
use kine_rs::apply::{Command, Machine};
use kine_rs::auth::Caller;
use kine_rs::backend::{Endpoint, ImageStore, Opened};
use kine_rs::metrics::Metrics;
use kine_rs::metrics::rows::Slow;
use kine_rs::mvcc::range::Values;
use kine_rs::mvcc::{Location, State, Version};
use kine_rs::rows::{Batch, ReadError, RecordWrite, RowReader, RowWriter, ScanFrom};
use kine_rs::store::{self, Store};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(60);

fn open(database: &Path) -> Opened {
    Endpoint::sqlite(database).without_fsync().open().unwrap()
}

/// A store driven step by step: what the writer and the indexer do, without their threads.
struct Driver {
    machine: Machine,
    rows: Box<dyn RowWriter>,
    images: Box<dyn ImageStore>,
    /// First locations after the image that is named, and after one that was taken since.
    named: Option<Location>,
    taken: Option<(Location, RecordWrite)>,
    /// The named one has not got its file name yet.
    unadopted: bool,
}

impl Driver {
    fn open(database: &Path) -> Self {
        let Opened { writer: rows, state, identity, images, .. } = open(database);
        let images = images.expect("a file outlives its process");
        Driver {
            machine: Machine::new(identity, state),
            rows,
            images: images.store,
            named: images.covered,
            taken: None,
            unadopted: false,
        }
    }

    fn apply(&mut self, command: Command) {
        let refused = self.machine.apply(&Caller::Server, &command, &mut Stored(self.rows.as_mut())).is_err();
        let batch = self.machine.take_batch();
        assert!(!refused || batch.is_empty());
        self.rows.commit(&batch).unwrap();
    }

    fn put(&mut self, key: &str, value: &str, lease: i64) {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        self.apply(Command::Put(PutRequest { key, value, lease, ..Default::default() }));
    }

    fn delete(&mut self, key: &str) {
        self.apply(Command::DeleteRange(DeleteRangeRequest {
            key: key.to_owned().into(),
            ..Default::default()
        }));
    }

    fn collect(&mut self, rows: usize) {
        let taken = self.taken.as_ref().map(|(next, _)| *next);
        self.machine.collect_garbage(
            rows,
            self.machine.state.compact_revision,
            self.named.or(taken).unwrap_or(Location::MAX),
        );
        let batch = self.machine.take_batch();
        self.rows.commit(&batch).unwrap();
    }

    fn take_image(&mut self) {
        // As the indexer's thread does: one thing after the other.
        self.adopt_image();
        let record = self.images.write(&self.machine.state, &Arc::new(AtomicBool::new(false))).unwrap();
        self.taken = Some((self.machine.state.next_location, record));
    }

    /// Commits the name; the file gets its own later.
    fn name_image(&mut self) {
        let Some((next, record)) = self.taken.take() else { return };
        self.rows.commit(&Batch { records: vec![record], ..Batch::default() }).unwrap();
        self.named = Some(next);
        self.unadopted = true;
    }

    fn adopt_image(&mut self) {
        if std::mem::take(&mut self.unadopted) {
            self.images.adopt().unwrap();
        }
    }
}

struct Stored<'w>(&'w mut dyn RowWriter);

impl Values for Stored<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.0.load(versions)
    }
}

const SUFFIXES: [&str; 4] = ["", "-wal", ".index", ".index.new"];

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a kill at this moment would leave.
fn copy(database: &Path, to: &Path) {
    for suffix in SUFFIXES {
        let (from, to) = (beside(database, suffix), beside(to, suffix));
        std::fs::remove_file(&to).ok();
        if from.exists() {
            std::fs::copy(from, to).unwrap();
        }
    }
}

fn remove_index(database: &Path) {
    for suffix in [".index", ".index.new"] {
        std::fs::remove_file(beside(database, suffix)).ok();
    }
}

/// The rows left and everything that can be read above the compact revision, once compacted rows are dropped.
fn content(state: &State, reader: &dyn RowReader) -> (Vec<Location>, String) {
    let mut state = state.clone();
    let dropped: BTreeSet<Location> =
        state.take_garbage(usize::MAX, state.compact_revision, Location::MAX).rows.into_iter().collect();
    let rows = reader.scan_heads(ScanFrom::Location(0), usize::MAX >> 1).unwrap();
    let stored = rows.iter().map(|row| row.version.location);
    let left = stored.filter(|location| !dropped.contains(location)).collect();
    state.compact_revision += 1;
    state.take_garbage(usize::MAX, state.compact_revision, Location::MAX);
    state.next_location = 0;
    (left, format!("{state:?}"))
}

/// The content, and whether an image was read. Closes the store again.
fn reopened(database: &Path) -> ((Vec<Location>, String), bool) {
    let opened = open(database);
    let read_image = opened.images.as_ref().unwrap().covered.is_some();
    (content(&opened.state, opened.reader.as_ref()), read_image)
}

#[test]
fn a_killed_store_is_found_the_same_with_its_image_and_without() {
    const STEPS: usize = 1500;
    let seed = 20_261_128;
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let (database, with, without) =
        (dir.path().join("state.db"), dir.path().join("with.db"), dir.path().join("without.db"));
    let mut store = Driver::open(&database);
    let (mut kills, mut images_read) = (0, 0);
    for step in 0..STEPS {
        let key = format!("k{:03}", random.random_range(0..150));
        let id = random.random_range(1..4);
        match random.random_range(0..100) {
            0..45 => store.put(&key, "value", 0),
            45..50 => store.put(&key, "value", id),
            50..75 => store.delete(&key),
            75..78 => store.apply(Command::LeaseGrant { id, ttl: 60 }),
            78..80 => store.apply(Command::LeaseRevoke { id }),
            80..84 => {
                let revision = store.machine.state.revision - random.random_range(0..40);
                store.apply(Command::Compact { revision });
            }
            84..92 => store.collect(random.random_range(1..60)),
            92..94 => store.take_image(),
            94..96 => store.name_image(),
            96 => store.adopt_image(),
            _ => {
                copy(&database, &with);
                copy(&database, &without);
                remove_index(&without);
                let (from_image, read_image) = reopened(&with);
                let (from_rows, no_image) = reopened(&without);
                assert!(!no_image);
                assert_eq!(read_image, store.named.is_some(), "step {step}, seed {seed}");
                assert!(from_image == from_rows, "step {step}, seed {seed}");
                assert!(!beside(&with, ".index.new").exists());
                kills += 1;
                images_read += usize::from(read_image);
                if random.random_range(0..10) == 0 {
                    // Go on with one of them.
                    drop(store);
                    copy(if random.random() { &with } else { &without }, &database);
                    store = Driver::open(&database);
                }
            }
        }
    }
    assert!(kills > 30 && images_read > 15, "{kills} kills, {images_read} images read");
}

/// A closed store with an image that is not its last state, and what is in it.
fn closed(dir: &TempDir) -> (PathBuf, (Vec<Location>, String)) {
    let database = dir.path().join("state.db");
    let mut store = Driver::open(&database);
    store.apply(Command::LeaseGrant { id: 1, ttl: 60 });
    for n in 0..400 {
        store.put(&format!("/registry/k{:03}", n % 300), "value", n % 2);
    }
    for n in 0..30 {
        store.delete(&format!("/registry/k{n:03}"));
    }
    store.apply(Command::Compact { revision: 350 });
    store.take_image();
    store.name_image();
    store.adopt_image();
    for n in 200..350 {
        store.put(&format!("/registry/k{n:03}"), "value", 0);
    }
    for n in 100..150 {
        store.delete(&format!("/registry/k{n:03}"));
    }
    drop(store);
    let copied = dir.path().join("rows.db");
    copy(&database, &copied);
    remove_index(&copied);
    (database, reopened(&copied).0)
}

/// Opens a copy of the store with something wrong beside it: all rows are read, and what was wrong is removed.
fn assert_ignored(database: &Path, expected: &(Vec<Location>, String), what: &str, harm: impl FnOnce(&Path)) {
    let copied = database.with_file_name("copied.db");
    copy(database, &copied);
    harm(&copied);
    for start in ["first", "second"] {
        let (found, read_image) = reopened(&copied);
        assert!(!read_image, "{what}: the {start} start read the image");
        assert!(found == *expected, "{what}: the {start} start");
        assert!(!beside(&copied, ".index").exists() && !beside(&copied, ".index.new").exists(), "{what}");
    }
}

#[test]
fn an_image_that_is_missing_or_damaged_anywhere_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (database, expected) = closed(&dir);
    let (found, read_image) = reopened(&database);
    assert!(read_image && found == expected, "the image is good before it is harmed");
    let image = std::fs::read(beside(&database, ".index")).unwrap();
    let write =
        |bytes: Vec<u8>| move |copied: &Path| std::fs::write(beside(copied, ".index"), bytes).unwrap();

    assert_ignored(&database, &expected, "missing", remove_index);
    assert_ignored(&database, &expected, "longer", write([image.as_slice(), b"\0"].concat()));
    let mut newer = image.clone();
    newer[11] += 1;
    assert_ignored(&database, &expected, "a newer format", write(newer));
    let mut places = vec![0, 8, 16, 32, 40, 48, 60];
    let mut lengths = vec![0, 1, 63, 64, 65, image.len() - 1];
    let mut at = 64;
    while at < image.len() {
        let len = u32::from_be_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let end = at + 12 + len;
        places.extend([at, at + 4, at + 8, at + 12, at + 12 + len / 2, end - 1]);
        lengths.extend([at, at + 6, at + 12, at + 12 + len / 2]);
        at = end;
    }
    assert!(places.len() > 30, "the image has a block of every section");
    for place in places {
        let mut bad = image.clone();
        bad[place] ^= 1;
        assert_ignored(&database, &expected, &format!("byte {place} is wrong"), write(bad));
    }
    for length in lengths {
        assert_ignored(&database, &expected, &format!("cut to {length}"), write(image[..length].to_vec()));
    }
}

#[test]
fn an_image_of_another_database_or_of_another_time_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (database, expected) = closed(&dir);
    let old = dir.path().join("old.db");
    copy(&database, &old);

    // A later life of the same database, with an image of its own.
    let mut store = Driver::open(&database);
    assert!(store.named.is_some());
    store.put("/registry/later", "value", 0);
    store.take_image();
    store.name_image();
    store.adopt_image();
    drop(store);
    let (later, read_image) = reopened(&database);
    assert!(read_image && later != expected);
    let exchange = |index_of: &Path, copied: &Path| {
        std::fs::copy(beside(index_of, ".index"), beside(copied, ".index")).unwrap();
    };
    assert_ignored(&old, &expected, "a newer image beside an older database", |copied| {
        exchange(&database, copied);
    });
    assert_ignored(&database, &later, "an older image beside a newer database", |copied| {
        exchange(&old, copied);
    });

    let other = tempfile::tempdir().unwrap();
    let (theirs, _) = closed(&other);
    assert_ignored(&database, &later, "the image of another database", |copied| exchange(&theirs, copied));
    assert_ignored(&database, &later, "an image that was not finished", |copied| {
        std::fs::rename(beside(copied, ".index"), beside(copied, ".index.new")).unwrap();
        let image = std::fs::read(beside(copied, ".index.new")).unwrap();
        std::fs::write(beside(copied, ".index.new"), &image[..image.len() / 2]).unwrap();
    });
    let empty = dir.path().join("empty.db");
    drop(open(&empty));
    let (nothing, _) = reopened(&empty);
    assert_ignored(&empty, &nothing, "an image beside a new database", |copied| exchange(&database, copied));
}

#[test]
fn whoever_changes_rows_without_knowing_of_the_index_voids_it() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = closed(&dir);
    let insert = "INSERT INTO rows SELECT max(location) + 1, max(revision) + 1, 0, 'new', max(revision) + 1, 1, 0, 'v' \
                  FROM rows";
    let insert = &insert.replace("'new'", "CAST('new' AS BLOB)").replace("'v'", "CAST('v' AS BLOB)");
    for change in [
        "DELETE FROM rows WHERE key = CAST('/registry/k299' AS BLOB)",
        "UPDATE rows SET key = CAST('/registry/moved' AS BLOB) WHERE key = CAST('/registry/k299' AS BLOB)",
        insert,
    ] {
        let copied = dir.path().join("changed.db");
        copy(&database, &copied);
        // As the releases before the index have a file open.
        let older = Connection::open(&copied).unwrap();
        older.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).unwrap();
        older.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false).unwrap();
        older.execute_batch(change).unwrap();
        drop(older);
        let bare = dir.path().join("bare.db");
        copy(&copied, &bare);
        remove_index(&bare);
        let expected = reopened(&bare).0;
        assert!(expected != reopened(&database).0, "{change}");
        assert_ignored(&copied, &expected, change, |_| {});
    }
    // Nothing that a row says is changed by these.
    let copied = dir.path().join("tidied.db");
    copy(&database, &copied);
    Connection::open(&copied)
        .unwrap()
        .execute_batch("VACUUM; REINDEX; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    assert!(reopened(&copied).1);
}

#[test]
fn an_image_that_a_start_did_not_use_is_never_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = closed(&dir);
    let kept = dir.path().join("kept");
    std::fs::rename(beside(&database, ".index"), &kept).unwrap();
    let mut store = Driver::open(&database);
    assert!(store.named.is_none());
    store.put("new", "value", 0);
    store.delete("/registry/k299");
    store.apply(Command::Compact { revision: store.machine.state.revision });
    // Nothing is held back for an image that is not there.
    store.collect(usize::MAX >> 1);
    drop(store);
    let expected = reopened(&database).0;
    assert_ignored(&database, &expected, "put back", |copied| {
        std::fs::copy(&kept, beside(copied, ".index")).unwrap();
    });
}

fn options() -> store::Options {
    store::Options {
        cache_bytes: 1 << 20,
        progress_interval: Duration::from_secs(600),
        session_ttl: Duration::from_secs(300),
        metrics: Arc::new(Metrics::default()),
        reply_bytes: 16 << 20,
        watch_bytes: 16 << 20,
        slow: Slow::default(),
        quota_bytes: 0,
        slow_apply: None,
    }
}

/// Puts keys, a hundred at a time.
async fn fill(store: &Store, keys: std::ops::Range<u64>) {
    let keys: Vec<u64> = keys.collect();
    for some in keys.chunks(100) {
        let put = |n: &u64| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: format!("/registry/{n:06}").into(),
                value: Bytes::from_static(b"value"),
                ..Default::default()
            })),
        };
        let txn = TxnRequest { success: some.iter().map(put).collect(), ..Default::default() };
        store.propose(Caller::Server, Command::Txn(txn.into())).await.unwrap();
    }
}

/// Rows that a start now would read after an image.
fn rows_after_image(database: &Path) -> Option<u64> {
    let copied = database.with_file_name("copied.db");
    copy(database, &copied);
    let opened = open(&copied);
    opened.images.unwrap().covered.map(|covered| opened.state.next_location - covered)
}

#[tokio::test]
async fn images_are_written_after_enough_rows_and_at_a_stop_and_never_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("state.db");
    let endpoint = Endpoint::sqlite(&database).without_fsync();
    let start = || Store::open(&endpoint, &options()).unwrap();
    let index = beside(&database, ".index");
    let id = || std::fs::read(&index).unwrap()[16..32].to_vec();

    let (store, threads) = start();
    fill(&store, 0..4000).await;
    assert_eq!(rows_after_image(&database), None, "few rows are read faster than an image");
    fill(&store, 4000..4100).await;
    // It is named with the next batch, or by one of its own when there is none: nothing is written here meanwhile.
    let deadline = Instant::now() + WITHIN;
    while !index.exists() {
        assert!(Instant::now() < deadline, "no image was written");
        tokio::task::yield_now().await;
    }
    assert_eq!(rows_after_image(&database), Some(0));
    let first = id();
    fill(&store, 0..4000).await;
    assert_eq!(rows_after_image(&database), Some(4000));
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
    assert_eq!((rows_after_image(&database), id()), (Some(4000), first.clone()), "not at a stop either");

    let (store, threads) = start();
    assert_eq!(store.view().keys(), 4100);
    fill(&store, 4000..4090).await;
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
    assert_eq!(id(), first);
    let (store, threads) = start();
    fill(&store, 4090..4100).await;
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
    assert_eq!(rows_after_image(&database), Some(0));
    let second = id();
    assert_ne!(second, first);

    let (_store, threads) = start();
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
    assert_eq!(id(), second, "a start and a stop alone write none");
}

#[tokio::test]
async fn a_store_opened_without_an_image_writes_one_after_its_first_commit() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("state.db");
    let endpoint = Endpoint::sqlite(&database).without_fsync();
    let (store, threads) = Store::open(&endpoint, &options()).unwrap();
    fill(&store, 0..5000).await;
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
    remove_index(&database);
    let (store, threads) = Store::open(&endpoint, &options()).unwrap();
    fill(&store, 0..1).await;
    let deadline = Instant::now() + WITHIN;
    while !beside(&database, ".index").exists() {
        assert!(Instant::now() < deadline, "no image was written");
        tokio::task::yield_now().await;
    }
    assert_eq!(rows_after_image(&database), Some(0));
    tokio::task::spawn_blocking(|| threads.stop()).await.unwrap();
}
