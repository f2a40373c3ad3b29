//! Taking over a database that the Go kine wrote: its table becomes our rows, in one transaction, once.
//!
//! Invariant: a file is wholly kine's or wholly ours, whenever the process or the machine stops. Revisions, keys, values,
//! create revisions and the history since the last compaction stay as they are, so clients resume their watches. Called by
//! `open` when it finds kine's table in a file that nobody has signed. `docs/sqlite-format.md` has the rules in words.
//!
//! What kine does not store is made up: versions are counted from what is left of a key's history, and a lease, which there
//! is no more than a number of seconds beside a key, becomes a lease of that many seconds under that number as its id.

use super::fill::Filler;
use super::open::{OpenError, TABLES, check_integrity, connect, from_sqlite};
use crate::apply::{META_COMPACT_REVISION, META_REVISION_FLOOR};
use crate::lease::{TTL_MAX_SECONDS, TTL_MIN_SECONDS};
use crate::mvcc::{REVISION_MAX, Version};
use crate::rows::{Bucket, RecordWrite, Row};
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use std::collections::{BTreeSet, HashMap};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// kine's table, and what it is called afterwards.
pub(super) const TABLE: &str = "kine";
const KEPT: &str = "kine_before_takeover";
/// The columns we read, the same in kine 0.9 to 0.16.
const COLUMNS: [&str; 8] =
    ["id", "name", "created", "deleted", "create_revision", "prev_revision", "lease", "value"];
/// The row whose `prev_revision` is kine's compact revision. No key of a client.
const COMPACT_ROW: &[u8] = b"compact_rev_key";
/// Where kine keeps the key that kube-apiserver calls `compact_rev_key`: its value is `version|value`.
const APISERVER_KEY: &[u8] = b"compact_rev_key_apiserver";

/// Makes kine's file ours. Nobody else may have it open.
pub(super) fn take_over(path: &Path) -> Result<(), OpenError> {
    let failed = |error| from_sqlite(path, error);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(())).map_err(failed)?;
    connection.execute_batch("PRAGMA synchronous = FULL; BEGIN EXCLUSIVE").map_err(|error| {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                OpenError::InUse { path: path.into() }
            }
            _ => failed(error),
        }
    })?;
    check_columns(path, &connection)?;
    check_integrity(path, &connection)?;
    connection.execute_batch(TABLES).map_err(failed)?;
    let (rows, revision) = convert(path, &connection)?;
    drop_indexes(&connection).map_err(failed)?;
    connection.execute_batch(&format!("ALTER TABLE {TABLE} RENAME TO {KEPT}; COMMIT")).map_err(failed)?;
    make_private(path);
    tracing::info!(path = %path.display(), rows, revision, "took over a database of kine; its table is kept as {KEPT}");
    // Only now, as it can't be undone, and is no loss if it is cut off: `Defragment` does it too.
    if let Err(error) = connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM") {
        tracing::warn!(%error, "space will not be given back to the file system before a defragmentation");
    }
    connection.close().map_err(|(_, error)| failed(error))
}

/// kine leaves its file readable by everybody. SQLite gives the mode of the file to those beside it.
fn make_private(path: &Path) {
    if let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(0o600)) {
        tracing::warn!(%error, path = %path.display(), "others may be able to read the database");
    }
}

fn check_columns(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error| from_sqlite(path, error);
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)").map_err(failed)?;
    let found: BTreeSet<String> =
        statement.query_map([TABLE], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| !found.contains(*column)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(OpenError::UnknownKine { path: path.into(), missing: missing.join(", ") })
    }
}

/// Copies all rows; returns their number and the revision reached.
fn convert(path: &Path, connection: &Connection) -> Result<(u64, i64), OpenError> {
    let failed = |error| from_sqlite(path, error);
    let compacted: i64 = connection
        .query_row(
            "SELECT coalesce(max(prev_revision), 0) FROM kine WHERE name = 'compact_rev_key'",
            [],
            |row| row.get(0),
        )
        .map_err(failed)?;
    let mut filler = Filler::new(path, connection);
    let mut lives = Lives { whole_since: compacted, ..Lives::default() };
    let (mut count, mut last) = (0, 0);
    let mut statement = connection
        .prepare(
            "SELECT id, name, created, deleted, create_revision, prev_revision, lease, value
             FROM kine ORDER BY id",
        )
        .map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let change = Change::read(row).map_err(failed)?;
        if change.revision <= last || change.name.is_empty() {
            let detail =
                format!("row {} of table kine has no name or no place in the order", change.revision);
            return Err(OpenError::Corrupt { path: path.into(), detail });
        }
        last = change.revision;
        if let Some(row) = lives.apply(change) {
            filler.row(&row)?;
            count += 1;
        }
    }
    let compacted = lives.whole_since;
    let revision = last.max(highest_id(connection).map_err(failed)?).max(compacted).max(1);
    if revision > REVISION_MAX {
        let detail = format!("table kine is at revision {revision}, after which there are too few");
        return Err(OpenError::Corrupt { path: path.into(), detail });
    }
    let number = |value: i64| Some(value.to_be_bytes().to_vec());
    let meta =
        |key: &[u8], value| RecordWrite { bucket: Bucket::Meta, key: key.to_vec(), value: number(value) };
    filler.record(&meta(META_REVISION_FLOOR, revision))?;
    if compacted > 0 {
        filler.record(&meta(META_COMPACT_REVISION, compacted))?;
    }
    for lease in lives.leases() {
        let key = lease.to_be_bytes().to_vec();
        let ttl = lease.clamp(TTL_MIN_SECONDS, TTL_MAX_SECONDS);
        filler.record(&RecordWrite { bucket: Bucket::Lease, key, value: number(ttl) })?;
    }
    Ok((count, revision))
}

/// The highest id that was ever given: its row may be gone, and no revision is used twice.
fn highest_id(connection: &Connection) -> rusqlite::Result<i64> {
    let counted: bool = connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'sqlite_sequence'",
        [],
        |row| row.get(0),
    )?;
    if !counted {
        return Ok(0);
    }
    let seq: Option<i64> = connection
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [TABLE], |row| row.get(0))
        .optional()?;
    Ok(seq.unwrap_or(0))
}

/// They are of no use to us, and kine makes them anew should somebody rename the table back.
fn drop_indexes(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL",
    )?;
    let names: Vec<String> = statement.query_map([TABLE], |row| row.get(0))?.collect::<Result<_, _>>()?;
    drop(statement);
    for name in names {
        connection.execute_batch(&format!("DROP INDEX \"{}\"", name.replace('"', "\"\"")))?;
    }
    Ok(())
}

/// A row of kine's table.
struct Change {
    revision: i64,
    name: Vec<u8>,
    created: bool,
    deleted: bool,
    create_revision: i64,
    prev_revision: i64,
    lease: i64,
    value: Vec<u8>,
}

impl Change {
    fn read(row: &rusqlite::Row) -> rusqlite::Result<Self> {
        let number = |column| row.get::<_, Option<i64>>(column).map(Option::unwrap_or_default);
        Ok(Change {
            revision: row.get(0)?,
            name: bytes(row, 1)?,
            created: number(2)? != 0,
            deleted: number(3)? != 0,
            create_revision: number(4)?,
            prev_revision: number(5)?,
            lease: number(6)?,
            value: bytes(row, 7)?,
        })
    }

    /// A row that kine put where an id was missing; it is no change of anything.
    fn is_gap(&self) -> bool {
        self.deleted && !self.created && self.name == format!("gap-{}", self.revision).as_bytes()
    }
}

/// Whatever type the column has in this file.
fn bytes(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => Vec::new(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        ValueRef::Integer(number) => number.to_string().into_bytes(),
        ValueRef::Real(number) => number.to_string().into_bytes(),
    })
}

/// A key that exists, since when, and how often it was put.
struct Life {
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    lease: i64,
}

/// All keys that exist after the changes so far.
#[derive(Default)]
struct Lives {
    keys: HashMap<Vec<u8>, Life>,
    /// From this revision on no change is missing: the compact revision, or later. kine 0.11 and 0.12 delete what a
    /// client's compaction passes without writing down that they did.
    whole_since: i64,
}

impl Lives {
    /// The row a change amounts to, if any.
    fn apply(&mut self, mut change: Change) -> Option<Row> {
        if change.name == COMPACT_ROW || change.is_gap() {
            return None;
        }
        let mut told = None;
        if change.name == APISERVER_KEY {
            change.name = COMPACT_ROW.to_vec();
            let (version, value) = split(&change.value);
            (told, change.value) = (Some(version), value);
        }
        self.miss(&change);
        let version = if change.deleted {
            self.keys.remove(&change.name);
            Version::default()
        } else {
            let life = self.put(&change, told);
            Version {
                create_revision: life.create_revision,
                version: life.version,
                lease: life.lease,
                value_len: change.value.len() as u32,
                ..Version::default()
            }
        };
        let value = if change.deleted { Bytes::new() } else { change.value.into() };
        Some(Row {
            sub: 0,
            key: change.name.into(),
            version: Version { mod_revision: change.revision, ..version },
            value,
        })
    }

    /// Notices when what a change replaces is not there although nobody says that it was compacted.
    fn miss(&mut self, change: &Change) {
        let before = self.keys.get(&change.name).map_or(0, |life| life.mod_revision);
        if !change.created && change.prev_revision > before.max(self.whole_since) {
            self.whole_since = change.revision;
        }
    }

    fn put(&mut self, change: &Change, told: Option<i64>) -> &Life {
        let revision = change.revision;
        let life = self.keys.entry(change.name.clone()).or_insert_with(|| {
            let is_update = !change.created && (1..revision).contains(&change.create_revision);
            // Of an older key's versions only this one is left: it is the second, at least.
            let (create_revision, before) =
                if is_update { (change.create_revision, 1) } else { (revision, 0) };
            Life { create_revision, mod_revision: 0, version: before, lease: 0 }
        });
        life.mod_revision = revision;
        life.version = told.filter(|version| (1..=revision).contains(version)).unwrap_or(life.version + 1);
        life.lease = change.lease.max(0);
        life
    }

    fn leases(&self) -> BTreeSet<i64> {
        self.keys.values().map(|life| life.lease).filter(|lease| *lease > 0).collect()
    }
}

/// `version|value`; kine before it stored the value had the version alone, and took the value for "0".
fn split(stored: &[u8]) -> (i64, Vec<u8>) {
    let (version, value) = match stored.iter().position(|byte| *byte == b'|') {
        Some(at) => (&stored[..at], &stored[at + 1..]),
        None => (stored, &b"0"[..]),
    };
    let version = std::str::from_utf8(version).ok().and_then(|text| text.parse().ok());
    (version.unwrap_or(0), value.to_vec())
}
