//! Bytes as rows of the Go kine's table, however wrong: the table is refused with a reason and left alone, or taken over,
//! and then every revision has what kine's own query says. Nothing panics, and the store can be written to and opened again.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use conformance::command;
use kine_rs::apply::{Command, Machine};
use kine_rs::auth::Caller;
use kine_rs::backend::{Endpoint, Opened};
use kine_rs::mvcc::range::{Values, range};
use kine_rs::mvcc::{State, Version};
use kine_rs::rows::{ReadError, RowReader, RowWriter};
use libfuzzer_sys::fuzz_target;
use proto::etcdserverpb::{PutRequest, RangeRequest};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use tempfile::TempDir;

const SEEDS: u64 = 20;
const ROWS_MAX: usize = 64;
/// How many revisions are compared with kine's answer.
const REVISIONS: i64 = 8;
const NAMES: [&str; 10] =
    ["/a", "/b", "/a/b", "compact_rev_key", "compact_rev_key_apiserver", "gap-7", "gap-", "", "5", "/\u{e9}"];
/// A number below it is in its tag.
const LARGE: u8 = 0xf0;
const COLUMNS: &str = "created, deleted, create_revision, prev_revision, lease";

/// In memory where there is such a file system: every run writes a file.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.expect("a directory for the database")
});

fuzz_target!(init: fuzz::write(SEEDS, rows), |data: &[u8]| {
    let path = fresh();
    let rows = write_table(&path, data);
    let endpoint = Endpoint::sqlite(&path).without_fsync();
    match endpoint.open() {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(count(&path, "kine"), rows, "{error}");
        }
        Ok(opened) => {
            assert_eq!(count(&path, "kine_before_takeover"), rows);
            compare(&path, &opened);
            let revision = write(opened);
            assert_eq!(endpoint.open().expect("our own file").state.revision, revision);
        }
    }
});

fn fresh() -> PathBuf {
    for entry in DIR.path().read_dir().expect("our own directory") {
        std::fs::remove_file(entry.expect("our own directory").path()).expect("our own file");
    }
    DIR.path().join("state.db")
}

/// What the fuzzer's bytes mean.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> i64 {
        let tag = self.byte();
        if tag < LARGE {
            return i64::from(tag);
        }
        let raw = self.bytes(8);
        i64::from_le_bytes(std::array::from_fn(|at| raw.get(at).copied().unwrap_or(0)))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }

    fn name(&mut self) -> Value {
        match self.byte() {
            tag if usize::from(tag) < NAMES.len() => Value::Text(NAMES[usize::from(tag)].to_owned()),
            0xff => Value::Null,
            0xfe => Value::Integer(self.number()),
            tag => Value::Blob(self.bytes(usize::from(tag % 16))),
        }
    }

    fn value(&mut self) -> Value {
        match self.byte() {
            0xff => Value::Null,
            0xfe => Value::Integer(self.number()),
            0xfd => Value::Text("9|text".to_owned()),
            tag => Value::Blob(self.bytes(usize::from(tag))),
        }
    }

    /// Mostly a number.
    fn column(&mut self) -> Value {
        match self.byte() {
            0xff => Value::Null,
            0xfe => Value::Text("1x".to_owned()),
            0xfd => Value::Real(1.5),
            _ => Value::Integer(self.number()),
        }
    }
}

/// The table, and how many rows it has.
fn write_table(path: &Path, data: &[u8]) -> i64 {
    let mut input = Input(data);
    let affinity = if input.byte() % 2 == 0 { "TEXT" } else { "INTEGER" };
    let mut connection = Connection::open(path).expect("a new file");
    let create = format!(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;
         CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name {affinity}, created INTEGER, deleted INTEGER,
         create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)"
    );
    connection.execute_batch(&create).expect("a new table");
    let transaction = connection.transaction().expect("nobody else has it");
    let (mut id, mut rows) = (0_i64, 0);
    while !input.0.is_empty() && rows < ROWS_MAX as i64 {
        id = id.wrapping_add(input.number());
        let mut values = vec![Value::Integer(id), input.name(), input.value()];
        values.extend((0..5).map(|_| input.column()));
        let insert =
            format!("INSERT OR IGNORE INTO kine (id, name, value, {COLUMNS}) VALUES (?,?,?,?,?,?,?,?)");
        rows += transaction.execute(&insert, params_from_iter(values)).expect("a row") as i64;
    }
    transaction.commit().expect("space for some rows");
    rows
}

fn count(path: &Path, table: &str) -> i64 {
    let connection = Connection::open(path).expect("a database");
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("its table")
}

/// A key that exists: its name, revision, lease and value.
type Known = (Vec<u8>, i64, i64, Vec<u8>);

/// Every key at some revisions, as kine lists them.
fn compare(path: &Path, opened: &Opened) {
    let kine = Connection::open(path).expect("a database");
    let state = &opened.state;
    let oldest = state.compact_revision.max(1);
    let step = ((state.revision - oldest) / REVISIONS).max(1);
    for revision in (oldest..=state.revision).step_by(step as usize).chain([state.revision]) {
        let ours = list(state, revision, opened.reader.as_ref());
        let theirs = kine_list(&kine, revision);
        assert!(ours == theirs, "at {revision}: {ours:02x?} is not {theirs:02x?}");
    }
}

fn kine_list(kine: &Connection, revision: i64) -> Vec<Known> {
    let query =
        "SELECT CAST(name AS BLOB) AS key, id, max(coalesce(lease, 0), 0), coalesce(CAST(value AS BLOB), x'')
         FROM kine_before_takeover WHERE coalesce(deleted, 0) = 0 AND id IN (
             SELECT max(id) FROM kine_before_takeover
             WHERE id <= ?1 AND CAST(name AS BLOB) NOT IN (
                 CAST('compact_rev_key' AS BLOB), CAST('compact_rev_key_apiserver' AS BLOB))
             AND NOT (coalesce(deleted, 0) != 0 AND coalesce(created, 0) = 0
                      AND CAST(name AS BLOB) = CAST('gap-' || id AS BLOB))
             GROUP BY CAST(name AS BLOB))
         ORDER BY key";
    let mut statement = kine.prepare(query).expect("SQL");
    let rows =
        statement.query_map([revision], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
    rows.expect("a query").collect::<Result<_, _>>().expect("rows")
}

struct Loaded<'r>(&'r dyn RowReader);

impl Values for Loaded<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.0.load(versions)
    }
}

fn list(state: &State, revision: i64, reader: &dyn RowReader) -> Vec<Known> {
    let all = Bytes::from_static(b"\0");
    let request = RangeRequest { key: all.clone(), range_end: all, revision, ..RangeRequest::default() };
    let response = range(state, &request, &mut Loaded(reader)).expect("a revision that is not compacted");
    let known = response.kvs.into_iter().filter(|kv| kv.key != b"compact_rev_key"[..]);
    known.map(|kv| (kv.key.to_vec(), kv.mod_revision, kv.lease, kv.value.to_vec())).collect()
}

struct Stored<'w>(&'w mut dyn RowWriter);

impl Values for Stored<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.0.load(versions)
    }
}

/// One more write; the revision it has.
fn write(opened: Opened) -> i64 {
    let before = opened.state.revision;
    let (mut machine, mut writer) = (Machine::new(opened.identity, opened.state), opened.writer);
    let put = PutRequest { key: NAMES[0].into(), value: "more".into(), ..PutRequest::default() };
    let applied = machine.apply(&Caller::Nobody, &Command::Put(put), &mut Stored(writer.as_mut()));
    assert!(applied.is_ok(), "a put of a short value is refused");
    writer.commit(&machine.take_batch()).expect("the batch is stored");
    assert_eq!(machine.state.revision, before + 1);
    before + 1
}

/// A program's writes as this target reads rows: each of a revision of its own.
fn rows(program: &[command::Command]) -> Vec<u8> {
    let mut bytes = vec![0];
    for command in program {
        let (name, deleted, lease) = match command {
            command::Command::Put(put) => (put.key.first(), 0, put.lease),
            command::Command::Delete(delete) => (delete.key.first(), 1, 0),
            _ => continue,
        };
        bytes.extend([1, name.copied().unwrap_or(0) % NAMES.len() as u8]);
        bytes.extend([3, b'1', b'|', b'v']);
        for number in [1 - deleted, deleted, 0, 0, u8::try_from(lease).unwrap_or(0)] {
            bytes.extend([0, number]);
        }
    }
    bytes
}
