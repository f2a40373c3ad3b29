//! The database file: whose it is, what it survives, and that it does not grow without need.

use crate::servers::{Dir, Server, run, stderr, text};
use rusqlite::Connection;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// What kine says when it refuses a database.
pub fn refused(database: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kine"))
        .args(["--listen-address", "127.0.0.1:0", "--metrics-bind-address", "0", "--endpoint"])
        .arg(format!("sqlite://{}", database.display()))
        .output()
        .expect("kine runs");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    stderr(&output)
}

/// Puts a value that is too long for an argument.
fn put_large(server: &Server, key: &str, len: usize) -> bool {
    let mut child = server
        .command(&["put", key])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcdctl runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&vec![b'v'; len]).expect("etcdctl reads");
    drop(stdin);
    child.wait().expect("our child").success()
}

pub fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// A database with a key, closed in order.
fn closed(dir: &Dir) -> PathBuf {
    let database = dir.join("state.db");
    let server = Server::kine(&database);
    server.ctl(&["put", "k", "v"]);
    server.stop();
    database
}

fn assert_untouched(database: &Path, message: &str) {
    let before = std::fs::read(database).expect("the database");
    let said = refused(database);
    assert!(said.contains(message) && said.contains(text(database)), "{said}");
    assert!(std::fs::read(database).expect("the database") == before, "it was changed");
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!beside(database, suffix).exists(), "{suffix}");
    }
}

#[test]
fn a_newer_format_is_refused_and_not_touched() {
    let dir = Dir::new();
    let database = closed(&dir);
    let connection = Connection::open(&database).expect("a database");
    connection.pragma_update(None, "user_version", 2).expect("written");
    connection.close().expect("closed");
    assert_untouched(&database, "has format 2, this release knows up to 1");
}

#[test]
fn a_newer_format_that_was_not_closed_in_order_keeps_its_wal() {
    let dir = Dir::new();
    let database = closed(&dir);
    let copy = dir.join("copy.db");
    let connection = Connection::open(&database).expect("a database");
    connection.pragma_update(None, "user_version", 2).expect("written");
    for suffix in ["", "-wal"] {
        std::fs::copy(beside(&database, suffix), beside(&copy, suffix)).expect("room");
    }
    let read =
        || [std::fs::read(&copy).expect("a file"), std::fs::read(beside(&copy, "-wal")).expect("a file")];
    let before = read();
    assert!(refused(&copy).contains("has format 2"));
    assert!(read() == before);
}

#[test]
fn a_database_of_another_program_is_refused_and_not_touched() {
    let dir = Dir::new();
    let database = dir.join("theirs.db");
    let connection = Connection::open(&database).expect("a database");
    connection.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").expect("a table");
    connection.close().expect("closed");
    assert_untouched(&database, "is a database of another program");
}

#[test]
fn a_damaged_database_is_refused_by_name() {
    let dir = Dir::new();
    let database = closed(&dir);
    let good = std::fs::read(&database).expect("the database");
    for (from, to) in [(0, 16), (100, 200), (4096, 6000), (8192, 9000)] {
        let mut bad = good.clone();
        bad[from..to].fill(0xa5);
        std::fs::write(&database, &bad).expect("room");
        let said = refused(&database);
        assert!(said.contains("corrupt") && said.contains(text(&database)), "bytes {from} to {to}: {said}");
    }
    std::fs::write(&database, &good).expect("room");
    let server = Server::kine(&database);
    assert_eq!(server.ctl(&["get", "k", "--print-value-only"]), "v\n");
    server.stop();
}

#[test]
fn a_database_with_numbers_that_no_store_reaches_is_refused_as_corrupt() {
    const FLOOR: &str = "INSERT OR REPLACE INTO records VALUES (0, CAST('revision_floor' AS BLOB), ?1)";
    const LEASE: &str = "INSERT INTO records VALUES (1, CAST('12345678' AS BLOB), ?1)";
    let dir = Dir::new();
    let database = closed(&dir);
    let good = std::fs::read(&database).expect("the database");
    for (change, number, message) in [
        (FLOOR, i64::MAX, "revision 9223372036854775807"),
        (FLOOR, (1 << 62) + 1, "revision 4611686018427387905"),
        (LEASE, i64::MAX, "lease record"),
        (LEASE, 0, "lease record"),
    ] {
        std::fs::write(&database, &good).expect("room");
        let connection = Connection::open(&database).expect("a database");
        connection.execute(change, [number.to_be_bytes()]).expect("a record");
        drop(connection);
        let said = refused(&database);
        assert!(said.contains("corrupt") && said.contains(message), "{change} {number}: {said}");
    }
}

#[test]
fn a_second_process_is_refused_with_the_name_of_the_first() {
    let dir = Dir::new();
    let database = dir.join("state.db");
    let server = Server::kine(&database);
    let said = refused(&database);
    let owner = format!("in use by process {} (", server.id());
    assert!(said.contains(&owner) && said.contains(text(&database)), "{said}");
    server.ctl(&["put", "k", "v"]);
    // The lock goes with its process, however that ends.
    server.kill();
    let server = Server::kine(&database);
    assert_eq!(server.ctl(&["get", "k", "--print-value-only"]), "v\n");
    server.stop();
}

#[test]
fn the_wal_stays_small_under_load_with_readers() {
    const WAL_BYTES_MAX: u64 = 64 << 20;
    let dir = Dir::new();
    let database = dir.join("state.db");
    let server = Server::kine(&database);
    let done = AtomicBool::new(false);
    let mut largest = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                server.ctl(&["get", "", "--from-key", "--limit", "20"]);
            }
        });
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let server = &server;
                scope.spawn(move || (0..50).all(|n| put_large(server, &format!("{writer}/{n}"), MIB)))
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            largest = largest.max(size(&beside(&database, "-wal")));
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        assert!(writers.into_iter().all(|writer| writer.join().expect("a writer")));
    });
    assert!(largest > 0 && largest < WAL_BYTES_MAX, "{largest} bytes");
    server.stop();
}

#[test]
fn space_goes_back_to_the_file_system_after_a_compaction() {
    let dir = Dir::new();
    let database = dir.join("state.db");
    let server = Server::kine(&database);
    for n in 0..40 {
        assert!(put_large(&server, &format!("large/{}", n % 10), MIB));
    }
    server.ctl(&["del", "large/", "--prefix"]);
    let revision = server.json(&["get", "x"])["header"]["revision"].to_string();
    server.ctl(&["compact", &revision, "--physical"]);
    server.ctl(&["defrag"]);
    let left = size(&database);
    assert!(left < MIB as u64, "{left} bytes are left");

    // And by itself, in steps, down to what is kept for the next writes.
    for n in 0..40 {
        assert!(put_large(&server, &format!("large/{}", n % 10), MIB));
    }
    server.ctl(&["del", "large/", "--prefix"]);
    let revision = server.json(&["get", "x"])["header"]["revision"].to_string();
    server.ctl(&["compact", &revision]);
    let allocated = || server.json(&["endpoint", "status"])[0]["Status"]["dbSize"].as_u64().expect("a size");
    let deadline = Instant::now() + Duration::from_secs(30);
    while allocated() > 6 * MIB as u64 {
        assert!(Instant::now() < deadline, "{} bytes are left", allocated());
    }
    server.stop();
}

/// Builds the library that makes calls fail.
pub fn fault_library(dir: &Dir) -> PathBuf {
    let library = dir.join("fault.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durable/fault.c");
    run(Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o", text(&library), text(&source), "-ldl"]));
    library
}

/// A server whose database can be made to fail by writing a fault to the file.
pub fn faulty(database: &Path, library: &Path, fault: &Path) -> Server {
    Server::kine_with(database, |command| {
        command.env("LD_PRELOAD", library).env("FAULT_FILE", fault);
    })
}

#[test]
fn a_failed_write_or_sync_ends_the_process_and_acknowledges_nothing() {
    const EIO: i32 = 5;
    let dir = Dir::new();
    let library = fault_library(&dir);
    for (call, spared) in [("sync", 0), ("sync", 1), ("sync", 9), ("write", 0), ("write", 1), ("write", 400)]
    {
        let database = dir.join(&format!("{call}-{spared}.db"));
        let fault = dir.join("fault");
        let mut server = faulty(&database, &library, &fault);
        assert!(put_large(&server, "key/before", 10));
        std::fs::write(&fault, format!("{call} {EIO} {spared}")).expect("room");
        let mut acknowledged = vec!["key/before".to_owned()];
        // Large enough for the checkpoint, too, to have its turn.
        for n in 0..60 {
            let key = format!("key/{n:02}");
            if server.has_ended() || !put_large(&server, &key, MIB / 2) {
                break;
            }
            acknowledged.push(key);
        }
        let log = server.log();
        assert!(!server.ended().success(), "{call} {spared}: {log}");
        std::fs::remove_file(&fault).expect("ours");
        let server = Server::kine(&database);
        let found = server.ctl(&["get", "key/", "--prefix", "--keys-only"]);
        for key in &acknowledged {
            assert!(found.contains(key.as_str()), "{call} {spared}: {key} was acknowledged and is gone");
        }
        assert!(server.log().contains("stopping: the store can't promise durability"), "{}", server.log());
        server.stop();
    }
}

#[test]
fn a_full_disk_raises_nospace_and_is_recovered_from_without_a_restart() {
    const ENOSPC: i32 = 28;
    let dir = Dir::new();
    let library = fault_library(&dir);
    let (database, fault) = (dir.join("state.db"), dir.join("fault"));
    let mut server = faulty(&database, &library, &fault);
    server.ctl(&["put", "k", "v"]);
    std::fs::write(&fault, format!("write {ENOSPC} 0")).expect("room");
    let put = || stderr(&server.try_ctl(&["put", "k", "w"]));
    for _ in 0..3 {
        let said = put();
        assert!(said.contains("etcdserver: mvcc: database space exceeded"), "{said}");
    }
    assert_eq!(server.ctl(&["get", "k", "--print-value-only"]), "v\n");
    assert!(server.ctl(&["alarm", "list"]).contains("alarm:NOSPACE"));
    // A delete does not grow the store for good, but it can't be written now.
    let said = stderr(&server.try_ctl(&["del", "k"]));
    assert!(said.contains("database space exceeded"), "{said}");
    server.json(&["endpoint", "status"]);
    std::fs::remove_file(&fault).expect("ours");
    assert!(put().contains("database space exceeded"), "the alarm is still raised");
    server.ctl(&["alarm", "disarm"]);
    server.ctl(&["put", "k", "w"]);
    assert_eq!(server.ctl(&["alarm", "list"]), "");
    assert!(!server.has_ended());
    server.kill();
    let server = Server::kine(&database);
    assert_eq!(server.ctl(&["get", "k", "--print-value-only"]), "w\n");
    server.stop();
}
