//! Reading rows beside the writer: a small pool of read-only connections, one statement per call.

use super::open::connect;
use crate::mvcc::Version;
use crate::rows::{ReadError, Row, RowReader, ScanFrom};
use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

/// Idle connections kept; more are opened when more threads read at once (their number is bounded by the runtime) and
/// closed when done.
const IDLE_MAX: usize = 4;
/// Rows in neighbouring locations are read in one walk when no gap is wider than this.
const GAP_MAX: u64 = 8;

pub struct SqliteReader {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl SqliteReader {
    pub fn new(path: PathBuf) -> Self {
        SqliteReader { path, idle: Mutex::default() }
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let pooled = self.idle().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => self.connect().map_err(failed)?,
        };
        let result = read(&connection);
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        result
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("no holder of the connection pool panics")
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.pragma_update(None, "cache_size", -1024)?;
        Ok(connection)
    }
}

fn failed(error: rusqlite::Error) -> ReadError {
    ReadError::Io(error.to_string())
}

/// Shows values in location order, neighbours in one walk.
pub(super) fn visit(
    connection: &Connection,
    versions: &[Version],
    each: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), ReadError> {
    let mut order: Vec<usize> = (0..versions.len()).filter(|&at| versions[at].value_len > 0).collect();
    order.sort_unstable_by_key(|&at| versions[at].location);
    let near = |a: &usize, b: &usize| versions[*b].location - versions[*a].location <= GAP_MAX;
    for run in order.chunk_by(near) {
        visit_run(connection, versions, run, each)?;
    }
    Ok(())
}

fn visit_run(
    connection: &Connection,
    versions: &[Version],
    run: &[usize],
    each: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), ReadError> {
    let location = |at: usize| versions[run[at]].location;
    let mut statement = connection
        .prepare_cached("SELECT location, value FROM rows WHERE location BETWEEN ?1 AND ?2")
        .map_err(failed)?;
    let mut rows = statement.query((location(0), location(run.len() - 1))).map_err(failed)?;
    let mut next = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        let found: u64 = row.get(0).map_err(failed)?;
        // Several requests may name one location.
        while next < run.len() && location(next) == found {
            let value = row.get_ref(1).map_err(failed)?.as_blob();
            each(run[next], value.map_err(|error| ReadError::Io(error.to_string()))?);
            next += 1;
        }
    }
    if next < run.len() { Err(ReadError::Gone(location(next))) } else { Ok(()) }
}

impl RowReader for SqliteReader {
    fn visit(&self, versions: &[Version], each: &mut dyn FnMut(usize, &[u8])) -> Result<(), ReadError> {
        self.with(|connection| visit(connection, versions, each))
    }

    fn scan(&self, from: ScanFrom, rows_max: usize, bytes_max: usize) -> Result<Vec<Row>, ReadError> {
        self.with(|connection| {
            let start = start(connection, from).map_err(failed)?;
            scan(connection, start, rows_max, bytes_max).map_err(failed)
        })
    }

    fn scan_heads(&self, from: ScanFrom, rows_max: usize) -> Result<Vec<Row>, ReadError> {
        self.with(|connection| {
            let start = start(connection, from).map_err(failed)?;
            scan_heads(connection, start, rows_max).map_err(failed)
        })
    }
}

fn start(connection: &Connection, from: ScanFrom) -> rusqlite::Result<u64> {
    match from {
        ScanFrom::Location(location) => Ok(location),
        ScanFrom::Revision(revision) => first_location(connection, revision),
    }
}

fn scan(
    connection: &Connection,
    start: u64,
    rows_max: usize,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT location, revision, create_revision, version, lease, sub, key, value FROM rows
         WHERE location >= ?1 ORDER BY location LIMIT ?2",
    )?;
    let mut rows = statement.query((start, rows_max as i64))?;
    let (mut out, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_max
        && let Some(row) = rows.next()?
    {
        let value = Bytes::copy_from_slice(row.get_ref(7)?.as_blob()?);
        bytes += value.len();
        let head = head(row, value.len() as u32)?;
        out.push(Row { value, ..head });
    }
    Ok(out)
}

pub(super) fn scan_heads(connection: &Connection, start: u64, rows_max: usize) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT location, revision, create_revision, version, lease, sub, key, length(value) FROM rows
         WHERE location >= ?1 ORDER BY location LIMIT ?2",
    )?;
    let mut rows = statement.query((start, rows_max as i64))?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(head(row, row.get(7)?)?);
    }
    Ok(out)
}

/// A row without its value, from the columns both scans begin with.
fn head(row: &rusqlite::Row, value_len: u32) -> rusqlite::Result<Row> {
    let version = Version {
        location: row.get(0)?,
        mod_revision: row.get(1)?,
        create_revision: row.get(2)?,
        version: row.get(3)?,
        lease: row.get(4)?,
        value_len,
    };
    let key = Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?);
    Ok(Row { sub: row.get(5)?, key, version, value: Bytes::new() })
}

/// The first location of all rows, and the one after the last. Asked for one by one: for both at once SQLite would read
/// the whole table.
pub(super) fn bounds(connection: &Connection) -> rusqlite::Result<Range<u64>> {
    connection
        .prepare_cached(
            "SELECT coalesce((SELECT min(location) FROM rows), 0), coalesce((SELECT max(location) FROM rows) + 1, 0)",
        )?
        .query_row([], |row| Ok(row.get(0)?..row.get(1)?))
}

/// The first location at or above `revision`: rows are in the order of both, so it is found by halving.
fn first_location(connection: &Connection, revision: i64) -> rusqlite::Result<u64> {
    let Range { start: mut low, end: mut high } = bounds(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT location, revision FROM rows WHERE location >= ?1 ORDER BY location LIMIT 1",
    )?;
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(u64, i64)> =
            statement.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            Some((location, found)) if found < revision => low = location + 1,
            // No row at all: the last ones were dropped since the bounds were read.
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(u64, i64)]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE rows (location INTEGER PRIMARY KEY, revision INTEGER)")
            .unwrap();
        for row in rows {
            connection.execute("INSERT INTO rows VALUES (?1, ?2)", *row).unwrap();
        }
        connection
    }

    #[test]
    fn first_location_is_found_among_gaps_and_in_an_empty_table() {
        assert_eq!(first_location(&table(&[]), 1).unwrap(), 0);
        let rows = [(5, 2), (6, 2), (9, 3), (20, 7)];
        for (revision, expected) in [(1, 5), (2, 5), (3, 9), (4, 20), (7, 20), (8, 21)] {
            let found = first_location(&table(&rows), revision).unwrap();
            // Any location in the gap before the row leads to the same row.
            assert!(
                found <= expected && rows.iter().all(|(l, r)| *l < found || *r >= revision),
                "{revision}: {found}"
            );
            assert!(rows.iter().all(|(l, r)| *r < revision || *l >= found), "{revision}: {found}");
        }
    }
}
