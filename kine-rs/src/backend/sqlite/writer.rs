//! The writer connection: commits batches and keeps the WAL and the file small.

use super::checkpoint::Checkpointer;
use super::integrity::IntegrityCheck;
use super::lock::LockFile;
use super::reader::visit;
use crate::mvcc::Version;
use crate::rows::{Batch, CommitError, ReadError, RowWriter, Size, copied};
use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::hooks::Wal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// WAL pages after which the background checkpoint is asked to run: 4 MiB.
const CHECKPOINT_PAGES: i32 = 1000;
/// WAL pages at which the writer finishes a checkpoint itself, so that the WAL starts over: 32 MiB.
const WAL_PAGES_MAX: i32 = 8192;
/// Pages given back per step, and the share of free pages below which they are kept for the next writes.
const RELEASE_PAGES: i64 = 256;
const FREE_PAGES_KEPT: i64 = 1024;

pub struct SqliteWriter {
    connection: Connection,
    /// Pages in the WAL after the last commit.
    wal_pages: Arc<AtomicI32>,
    checkpointer: Checkpointer,
    page_size: u64,
    check: Option<IntegrityCheck>,
    _lock: LockFile,
}

impl SqliteWriter {
    pub fn new(
        mut connection: Connection,
        path: PathBuf,
        lock: LockFile,
        check: Option<IntegrityCheck>,
    ) -> rusqlite::Result<Self> {
        connection.set_prepared_statement_cache_capacity(32);
        // The hook replaces SQLite's automatic checkpoint, which would run inside a commit.
        let wal_pages = Arc::new(AtomicI32::new(0));
        let noted = wal_pages.clone();
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            noted.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        let page_size = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        Ok(SqliteWriter {
            connection,
            wal_pages,
            checkpointer: Checkpointer::start(path),
            page_size,
            check,
            _lock: lock,
        })
    }

    fn write(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO rows (location, revision, sub, key, create_revision, version, lease, value)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for row in &batch.rows {
            insert.execute((
                row.version.location,
                row.version.mod_revision,
                row.sub,
                row.key.as_ref(),
                row.version.create_revision,
                row.version.version,
                row.version.lease,
                row.value.as_ref(),
            ))?;
        }
        let mut delete = self.connection.prepare_cached("DELETE FROM rows WHERE location = ?1")?;
        for location in &batch.removed {
            delete.execute([location])?;
        }
        for record in &batch.records {
            let bucket = record.bucket as i64;
            match &record.value {
                Some(value) => self
                    .connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO records (bucket, key, value) VALUES (?1, ?2, ?3)",
                    )?
                    .execute((bucket, &record.key, value))?,
                None => self
                    .connection
                    .prepare_cached("DELETE FROM records WHERE bucket = ?1 AND key = ?2")?
                    .execute((bucket, &record.key))?,
            };
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Undoes a failed write; `Full` only when SQLite says that nothing but space was missing.
    fn undo(&self, error: rusqlite::Error) -> CommitError {
        let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        if !full {
            return fatal(error);
        }
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            return fatal(error);
        }
        CommitError::Full
    }

    /// Runs a statement to its end: a vacuum answers with a row for every page, and stops where nobody asks for the next.
    fn run(&self, statement: &str) -> Result<(), CommitError> {
        let run = || {
            let mut statement = self.connection.prepare_cached(statement)?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        };
        run().map_err(|error| self.undo(error))
    }

    fn bound_wal(&self) -> Result<(), CommitError> {
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages >= WAL_PAGES_MAX {
            self.connection
                .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
                .or_else(|error| if is_full(&error) { Ok(()) } else { Err(fatal(error)) })?;
        } else if pages >= CHECKPOINT_PAGES {
            self.checkpointer.ask();
        }
        Ok(())
    }

    fn number(&self, pragma: &str) -> rusqlite::Result<i64> {
        self.connection.prepare_cached(&format!("PRAGMA {pragma}"))?.query_row([], |row| row.get(0))
    }
}

impl Drop for SqliteWriter {
    /// Leaves an empty WAL, which the next start need not read. SQLite does it only where no reader has a connection.
    fn drop(&mut self) {
        self.check = None;
        if let Err(error) = self.run("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the WAL stays; the next start reads it");
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

fn fatal(error: rusqlite::Error) -> CommitError {
    CommitError::Fatal(error.to_string())
}

impl RowWriter for SqliteWriter {
    fn commit(&mut self, batch: &Batch) -> Result<(), CommitError> {
        self.write(batch).map_err(|error| self.undo(error))?;
        self.bound_wal()
    }

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        copied(versions.len(), |each| visit(&self.connection, versions, each))
    }

    fn release_space(&mut self) -> Result<bool, CommitError> {
        let (free, pages) =
            (self.number("freelist_count").map_err(fatal)?, self.number("page_count").map_err(fatal)?);
        if free < FREE_PAGES_KEPT || free < pages / 4 {
            return Ok(false);
        }
        self.run(&format!("PRAGMA incremental_vacuum({RELEASE_PAGES})"))?;
        self.bound_wal()?;
        Ok(self.number("freelist_count").map_err(fatal)? < free)
    }

    fn defragment(&mut self) -> Result<(), CommitError> {
        /// SQLite's number for it; a file that was taken over can be without.
        const INCREMENTAL: i64 = 2;
        if self.number("auto_vacuum").map_err(fatal)? == INCREMENTAL {
            self.run("PRAGMA incremental_vacuum")?;
        } else {
            self.run("PRAGMA auto_vacuum = INCREMENTAL")?;
            self.run("VACUUM")?;
        }
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn size(&self) -> Size {
        let bytes = |pragma| self.number(pragma).map_or(0, |pages| pages as u64 * self.page_size);
        let allocated = bytes("page_count");
        Size { allocated, in_use: allocated.saturating_sub(bytes("freelist_count")) }
    }
}
