//! Databases of the Go kine: what it wrote, we serve, and none is ever taken over by half.

use crate::servers::{Dir, Server, stderr};
use crate::sqlite_file::refused;
use rusqlite::Connection;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// A transaction in etcdctl's form; kine takes only those that kube-apiserver sends.
fn txn(server: &Server, compare: &str, then: &str, or: &str) {
    let mut child =
        server.command(&["txn"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("etcdctl runs");
    let mut stdin = child.stdin.take().expect("piped");
    write!(stdin, "{compare}\n\n{then}\n\n{or}\n\n").expect("etcdctl reads");
    drop(stdin);
    let answer = child.wait_with_output().expect("etcdctl ends").stdout;
    assert!(answer.starts_with(b"SUCCESS"), "{compare} {then}: {}", String::from_utf8_lossy(&answer));
}

fn create(server: &Server, key: &str, put: &str) {
    txn(server, &format!("mod(\"{key}\") = \"0\""), &format!("put {key} {put}"), "");
}

fn revision_of(server: &Server, key: &str) -> i64 {
    server.json(&["get", key])["kvs"][0]["mod_revision"].as_i64().expect("the key exists")
}

fn update(server: &Server, key: &str, put: &str) {
    let compare = format!("mod(\"{key}\") = \"{}\"", revision_of(server, key));
    txn(server, &compare, &format!("put {key} {put}"), &format!("get {key}"));
}

fn delete(server: &Server, key: &str) {
    let compare = format!("mod(\"{key}\") = \"{}\"", revision_of(server, key));
    txn(server, &compare, &format!("del {key}"), &format!("get {key}"));
}

/// All keys below `/` as kine tells them: without versions.
fn content(server: &Server, revision: i64) -> Vec<Value> {
    let mut answer = server.json(&["get", "/", "--prefix", "--rev", &revision.to_string()]);
    let mut kvs: Vec<Value> = serde_json::from_value(answer["kvs"].take()).unwrap_or_default();
    for kv in &mut kvs {
        kv.as_object_mut().expect("a key").remove("version");
    }
    kvs
}

/// The changes from a revision on, with what they replaced: kine tells that whether it was asked for or not.
fn changes(server: &Server, from: i64, last: &str) -> String {
    server.watch(&["/", "--prefix", "--prev-kv"], from, last)
}

#[test]
fn what_the_real_kine_wrote_is_served_and_watches_resume() {
    let dir = Dir::new();
    let database = dir.join("state.db");
    let theirs = Server::go_kine(&database);
    for key in ["/registry/a", "/registry/b", "/registry/c", "/registry/d"] {
        create(&theirs, key, &format!("{key}-1"));
    }
    let lease = theirs.json(&["lease", "grant", "3600"])["ID"].as_i64().expect("an id");
    assert_eq!(lease, 3600);
    txn(&theirs, "mod(\"/registry/e\") = \"0\"", "put /registry/e event --lease=e10", "");
    update(&theirs, "/registry/a", "/registry/a-2");
    update(&theirs, "/registry/a", "/registry/a-3");
    delete(&theirs, "/registry/b");
    update(&theirs, "/registry/c", "/registry/c-2");
    // kube-apiserver's own compaction mark.
    txn(&theirs, "ver(\"compact_rev_key\") = \"0\"", "put compact_rev_key 5", "get compact_rev_key");
    txn(&theirs, "ver(\"compact_rev_key\") = \"1\"", "put compact_rev_key 9", "get compact_rev_key");
    let compacted = revision_of(&theirs, "/registry/c");
    theirs.ctl(&["compact", &compacted.to_string()]);
    update(&theirs, "/registry/a", "/registry/a-4");
    create(&theirs, "/registry/b", "/registry/b-again");
    delete(&theirs, "/registry/d");
    create(&theirs, "/registry/last", "x");
    let last = revision_of(&theirs, "/registry/last");
    let mark = theirs.json(&["get", "compact_rev_key"])["kvs"][0].clone();
    let at: Vec<_> = (compacted..=last).map(|revision| content(&theirs, revision)).collect();
    let events = changes(&theirs, compacted + 1, "/registry/last");

    // Not while kine has it open.
    let said = refused(&database);
    assert!(said.contains("is open in another process") && said.contains("Go kine"), "{said}");
    assert_eq!(content(&theirs, 0), at[at.len() - 1]);
    theirs.stop();

    let ours = Server::kine(&database);
    for (revision, kvs) in (compacted..=last).zip(&at) {
        assert_eq!(content(&ours, revision), *kvs, "revision {revision}");
    }
    assert_eq!(changes(&ours, compacted + 1, "/registry/last"), events);
    let now = ours.json(&["get", "compact_rev_key"]);
    assert_eq!(now["header"]["revision"], last);
    assert_eq!((&now["kvs"][0]["version"], &now["kvs"][0]["value"]), (&2.into(), &mark["value"]));
    let old = stderr(&ours.try_ctl(&["get", "/registry/a", "--rev", &(compacted - 1).to_string()]));
    assert!(old.contains("required revision has been compacted"), "{old}");
    let version = |key: &str| ours.json(&["get", key])["kvs"][0]["version"].as_i64();
    assert_eq!((version("/registry/b"), version("/registry/last")), (Some(1), Some(1)));
    assert!(version("/registry/a") > Some(1));
    let lease = ours.ctl(&["lease", "timetolive", "e10", "--keys"]);
    assert!(lease.contains("TTL(3600s)") && lease.contains("/registry/e"), "{lease}");
    // Life goes on: the next revision, and kube-apiserver's next compaction.
    ours.ctl(&["put", "/registry/new", "v"]);
    assert_eq!(revision_of(&ours, "/registry/new"), last + 1);
    txn(&ours, "ver(\"compact_rev_key\") = \"2\"", "put compact_rev_key 12", "get compact_rev_key");
    ours.ctl(&["lease", "revoke", "e10"]);
    assert_eq!(ours.ctl(&["get", "/registry/e"]), "");
    ours.stop();

    let ours = Server::kine(&database);
    assert_eq!(revision_of(&ours, "/registry/new"), last + 1);
    ours.ctl(&["defrag"]);
    ours.stop();
    let kept = Connection::open(&database).expect("a database");
    assert!(count(&kept, "kine_before_takeover") > 0);
    let vacuum: i64 = kept.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).expect("a number");
    assert_eq!(vacuum, 2);
}

fn count(connection: &Connection, table: &str) -> i64 {
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a table")
}

/// kine's table as its releases made it: the columns are the same, types and indexes are not.
const SCHEMAS: [&str; 3] = [
    "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name INTEGER, created INTEGER, deleted INTEGER,
         create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
     CREATE INDEX kine_name_index ON kine (name);
     CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision)",
    "CREATE TABLE key_value (name INTEGER, value BLOB, create_revision INTEGER, revision INTEGER, ttl INTEGER,
         version INTEGER, del INTEGER, old_value BLOB, id INTEGER PRIMARY KEY AUTOINCREMENT);
     CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
         create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
     CREATE INDEX kine_name_index ON kine (name); CREATE INDEX kine_name_id_index ON kine (name, id);
     CREATE INDEX kine_id_deleted_index ON kine (id, deleted);
     CREATE INDEX kine_prev_revision_index ON kine (prev_revision);
     CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision)",
    "CREATE TABLE kine (id INTEGER PRIMARY KEY, old_value BLOB, value BLOB, lease INTEGER, prev_revision INTEGER,
         create_revision INTEGER, deleted INTEGER, created INTEGER, name TEXT)",
];

const INSERT: &str =
    "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

fn made(path: &Path, schema: &str) -> Connection {
    let connection = Connection::open(path).expect("a new file");
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; {schema}")).expect("tables");
    connection
}

#[test]
fn gaps_missing_history_and_old_marks_are_understood_in_every_schema() {
    let dir = Dir::new();
    for (at, schema) in SCHEMAS.into_iter().enumerate() {
        let path = dir.join(&format!("{at}.db"));
        let connection = made(&path, schema);
        type Kine<'a> = (i64, &'a str, i64, i64, i64, i64, i64, Option<&'a [u8]>);
        let rows: [Kine; 12] = [
            (1, "compact_rev_key", 1, 0, 0, 20, 0, Some(b"")),
            // Created at 3, before the compaction.
            (12, "/old", 0, 0, 3, 9, 15, Some(b"o")),
            (18, "/gone", 1, 0, 0, 0, 0, Some(b"g")),
            (21, "gap-21", 0, 1, 0, 0, 0, None),
            // 22 is missing altogether.
            (23, "/gone", 0, 1, 18, 18, 0, Some(b"g")),
            (24, "/old", 0, 0, 3, 12, 15, Some(b"o2")),
            (25, "compact_rev_key_apiserver", 1, 0, 0, 0, 0, Some(b"7")),
            (26, "compact_rev_key_apiserver", 0, 0, 25, 25, 0, Some(b"8|19")),
            (27, "gap-27", 1, 0, 0, 0, 0, Some(b"a key of a client")),
            (28, "/gone", 1, 0, 0, 23, 0, None),
            // A number in the column of old releases, whatever kine itself makes of it.
            (29, "12345", 1, 0, 0, 0, 0, Some(b"n")),
            (31, "gap-31", 0, 1, 0, 0, 0, None),
        ];
        for row in rows {
            connection.execute(INSERT, row).expect("a row");
        }
        drop(connection);
        let ours = Server::kine(&path);
        let get = |key: &str, revision: i64| {
            let kv = ours.json(&["get", key, "--rev", &revision.to_string()])["kvs"][0].clone();
            let number = |name: &str| kv[name].as_i64().unwrap_or(0);
            (number("create_revision"), number("mod_revision"), number("version"), number("lease"))
        };
        assert_eq!(get("/old", 20), (3, 12, 2, 15));
        assert_eq!(get("/old", 0), (3, 24, 3, 15));
        assert_eq!(get("/gone", 22), (18, 18, 1, 0));
        assert_eq!(get("/gone", 23), (0, 0, 0, 0));
        assert_eq!(get("/gone", 0), (28, 28, 1, 0));
        assert_eq!(get("compact_rev_key", 25), (25, 25, 7, 0));
        assert_eq!(get("compact_rev_key", 0), (25, 26, 8, 0));
        assert_eq!(ours.ctl(&["get", "compact_rev_key", "--print-value-only"]), "19\n");
        assert_eq!(get("gap-27", 0).1, 27);
        assert_eq!(get("gap-31", 0).1, 0);
        assert_eq!(get("12345", 0), (29, 29, 1, 0));
        assert_eq!(ours.json(&["get", "x"])["header"]["revision"], 31);
        let counts = |revision: i64| {
            let kvs = ours.json(&["get", "", "--from-key", "--rev", &revision.to_string()]);
            kvs["count"].as_i64()
        };
        assert_eq!((counts(20), counts(23), counts(31)), (Some(2), Some(1), Some(5)));
        ours.stop();
    }
}

#[test]
fn history_with_a_hole_counts_as_compacted() {
    let dir = Dir::new();
    let path = dir.join("state.db");
    let connection = made(&path, SCHEMAS[1]);
    for row in [
        (1, "compact_rev_key", 1, 0, 0, 3, 0, ""),
        (5, "/a", 1, 0, 0, 0, 0, "5"),
        (6, "/b", 1, 0, 0, 0, 0, "6"),
        // What it replaced is gone, though nobody wrote down that it was compacted.
        (9, "/a", 0, 0, 5, 8, 0, "9"),
        (10, "/a", 0, 0, 5, 9, 0, "10"),
    ] {
        connection.execute(INSERT, row).expect("a row");
    }
    drop(connection);
    let ours = Server::kine(&path);
    let said = stderr(&ours.try_ctl(&["get", "/a", "--rev", "8"]));
    assert!(said.contains("required revision has been compacted"), "{said}");
    assert_eq!(ours.ctl(&["get", "/", "--prefix", "--rev", "9", "--print-value-only"]), "9\n6\n");
    assert_eq!(changes(&ours, 10, "9\n/a"), "PUT\n/a\n9\n/a\n10\n");
    ours.stop();
}

#[test]
fn a_table_that_no_kine_wrote_is_refused_and_left_alone() {
    let dir = Dir::new();
    let path = dir.join("state.db");
    let schema = "CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT, value BLOB)";
    drop(made(&path, schema));
    let before = std::fs::read(&path).expect("a file");
    let said = refused(&path);
    assert!(said.contains("without column created, deleted, create_revision"), "{said}");
    assert!(std::fs::read(&path).expect("a file") == before);
}
