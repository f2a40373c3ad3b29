//! Filling a database that is not served yet: rows in order, then records, all in the caller's transaction.
//!
//! `create` makes a new file from what somebody else has; the takeover of Go-kine's files uses the same filler.

use super::lock::LockFile;
use super::open::{
    OpenError, Options, Owner, TABLES, check_owner, connect_to_unknown, create_directory, create_file,
    from_sqlite,
};
use crate::rows::{RecordWrite, Row};
use rusqlite::Connection;
use std::path::Path;

pub struct Filler<'c> {
    path: &'c Path,
    connection: &'c Connection,
    next_location: u64,
}

impl<'c> Filler<'c> {
    pub(super) fn new(path: &'c Path, connection: &'c Connection) -> Self {
        Filler { path, connection, next_location: 1 }
    }

    /// Appends a row, in ascending order of revision and place; its location is the next one, whatever it says.
    pub fn row(&mut self, row: &Row) -> Result<(), OpenError> {
        let version = &row.version;
        self.connection
            .prepare_cached(
                "INSERT INTO rows (location, revision, sub, key, create_revision, version, lease, value)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .and_then(|mut insert| {
                insert.execute((
                    self.next_location,
                    version.mod_revision,
                    row.sub,
                    row.key.as_ref(),
                    version.create_revision,
                    version.version,
                    version.lease,
                    row.value.as_ref(),
                ))
            })
            .map_err(|error| self.failed(error))?;
        self.next_location += 1;
        Ok(())
    }

    pub fn record(&mut self, record: &RecordWrite) -> Result<(), OpenError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO records (bucket, key, value) VALUES (?1, ?2, ?3)")
            .and_then(|mut insert| insert.execute((record.bucket as i64, &record.key, &record.value)))
            .map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn failed(&self, error: rusqlite::Error) -> OpenError {
        from_sqlite(self.path, error)
    }
}

/// Makes a new database of what `fill` puts into it; refuses a file that has anything in it.
pub fn create<T, E: From<OpenError>>(
    options: &Options,
    fill: impl FnOnce(&mut Filler) -> Result<T, E>,
) -> Result<T, E> {
    let path = &options.path;
    let (_lock, connection) = begin(path)?;
    let result = fill(&mut Filler::new(path, &connection))?;
    connection.execute_batch("COMMIT").map_err(|error| from_sqlite(path, error))?;
    Ok(result)
}

/// Opens a file that must be new and begins the transaction that makes it ours. Its rollback journal is empty, whereas a
/// WAL would hold everything a second time.
fn begin(path: &Path) -> Result<(LockFile, Connection), OpenError> {
    create_directory(path)?;
    let lock = LockFile::acquire(path)?;
    create_file(path)?;
    let failed = |error| from_sqlite(path, error);
    let connection = connect_to_unknown(path).map_err(failed)?;
    if check_owner(path, &connection)? != Owner::Nobody {
        return Err(OpenError::NotEmpty { path: path.into() });
    }
    let begin = format!("PRAGMA auto_vacuum = INCREMENTAL; BEGIN IMMEDIATE; {TABLES}");
    connection.execute_batch(&begin).map_err(failed)?;
    Ok((lock, connection))
}
