//! The image of the index beside the database: which file, and whether it goes with these rows.
//!
//! Invariant: an image is used only if the database names it by its random id. The name is committed after the image is
//! durable, so a database that has it has every row that the image knows, but for those that compaction dropped; and it
//! goes away with any row that another program changes (`GUARDS`) and with any start that does not use it. So no copy or
//! backup of either file, older or newer than the other, can be taken for the right one. `docs/sqlite-format.md` has the
//! argument at length.
//!
//! An image that can't be used is no error: all rows are read then.

use super::beside;
use super::open::{OpenError, directory_of, meta, meta_bytes, sync_directory};
use super::reader::scan_heads;
use crate::apply::{META_COMPACT_REVISION, META_INDEX};
use crate::backend::ImageStore;
use crate::mvcc::image::{self, ImageError, ImageId};
use crate::mvcc::{Known, Location, State, Version};
use crate::rows::{Bucket, RecordWrite};
use rusqlite::Connection;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whoever changes rows without knowing of the index (every program but this release and later ones) voids it. Our own
/// connections run no triggers.
pub(super) const GUARDS: &str = "
CREATE TRIGGER IF NOT EXISTS index_void_by_insert AFTER INSERT ON rows
BEGIN DELETE FROM records WHERE bucket = 0 AND key = CAST('index' AS BLOB); END;
CREATE TRIGGER IF NOT EXISTS index_void_by_update AFTER UPDATE ON rows
BEGIN DELETE FROM records WHERE bucket = 0 AND key = CAST('index' AS BLOB); END;
CREATE TRIGGER IF NOT EXISTS index_void_by_delete AFTER DELETE ON rows
BEGIN DELETE FROM records WHERE bucket = 0 AND key = CAST('index' AS BLOB); END";

/// Live keys compared with their rows before anything is served.
const SAMPLES: u64 = 32;
/// Rows compared at a time afterwards.
const COMPARED_ROWS_MAX: usize = 4096;
/// No image is written when less than this would be left on the file system: the database needs it more.
const SPACE_KEPT_BYTES: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is missing")]
    NoFile,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("it does not agree with row {0}")]
    Row(Location),
    #[error("rows of {0} versions are missing")]
    Rows(u64),
    #[error("it is ahead of the database's compaction")]
    Compaction,
    #[error(transparent)]
    Tail(#[from] OpenError),
    #[error("reading the database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// The two files of a database. The first is the image in use. The second is being written, or was just named and is about
/// to become the first.
#[derive(Clone, Debug)]
pub(super) struct IndexFiles {
    current: PathBuf,
    new: PathBuf,
    fsync: bool,
}

impl IndexFiles {
    pub(super) fn beside(database: &Path, fsync: bool) -> Self {
        IndexFiles { current: beside(database, ".index"), new: beside(database, ".index.new"), fsync }
    }

    /// The index as the image has it, if the database names one that fits.
    pub(super) fn load(
        &self,
        connection: &Connection,
        compact_revision: i64,
    ) -> Result<Option<State>, Unusable> {
        let Some(id) = meta_bytes(connection, META_INDEX)? else { return Ok(None) };
        let state = self.read(ImageId(id))?;
        if state.compact_revision > compact_revision {
            return Err(Unusable::Compaction);
        }
        Ok(Some(state))
    }

    fn read(&self, id: ImageId) -> Result<State, Unusable> {
        let mut why = Unusable::NoFile;
        for path in [&self.current, &self.new] {
            match File::open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(ImageError::from(error).into()),
                Ok(mut file) => match image::read(id, &mut file) {
                    Ok(state) => {
                        if *path == self.new {
                            std::fs::rename(&self.new, &self.current).map_err(ImageError::from)?;
                        }
                        return Ok(state);
                    }
                    Err(error) => why = error.into(),
                },
            }
        }
        Err(why)
    }

    pub(super) fn path(&self) -> &Path {
        &self.current
    }

    /// Removes what is not in use: a file that was not finished, and the image itself if it was not used.
    pub(super) fn tidy(&self, used: bool) {
        for path in [&self.new, &self.current].into_iter().take(if used { 1 } else { 2 }) {
            if let Err(error) = remove(path) {
                tracing::warn!(file = %path.display(), %error, "the file is of no use and could not be removed");
            }
        }
    }
}

impl ImageStore for IndexFiles {
    fn write(&mut self, state: &State, cancelled: &AtomicBool) -> io::Result<RecordWrite> {
        let id = ImageId(rand::random());
        let written = self.write_new(state, id, cancelled);
        if written.is_err() {
            self.discard()?;
        }
        let told =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.new.display()));
        written.map_err(told)?;
        Ok(RecordWrite { bucket: Bucket::Meta, key: META_INDEX.to_vec(), value: Some(id.0.to_vec()) })
    }

    /// Needs no sync: both names are looked at.
    fn adopt(&mut self) -> io::Result<()> {
        std::fs::rename(&self.new, &self.current)
    }

    fn discard(&mut self) -> io::Result<()> {
        remove(&self.new)
    }
}

impl IndexFiles {
    fn write_new(&self, state: &State, id: ImageId, cancelled: &AtomicBool) -> io::Result<()> {
        remove(&self.new)?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&self.new)?;
        let mut paced = Paced { file, len: 0, cancelled };
        image::write(state, id, &mut paced)?;
        if self.fsync {
            paced.file.sync_all()?;
            sync_directory(directory_of(&self.new))?;
        }
        Ok(())
    }
}

/// A file whose bytes are on their way to the disk before more are written. Otherwise a commit that has to wait for the file
/// system's journal would wait for all of them.
struct Paced<'a> {
    file: File,
    len: u64,
    cancelled: &'a AtomicBool,
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the store is stopping"));
        }
        let space = rustix::fs::fstatvfs(&self.file)?;
        if space.f_bavail.saturating_mul(space.f_frsize) < SPACE_KEPT_BYTES {
            return Err(ErrorKind::StorageFull.into());
        }
        let written = self.file.write(bytes)?;
        sync_range(&self.file, self.len, written)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sync_range(file: &File, from: u64, len: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open, and the other arguments are numbers.
    let status = unsafe {
        libc::sync_file_range(file.as_raw_fd(), from as libc::off64_t, len as libc::off64_t, flags)
    };
    match io::Error::last_os_error() {
        _ if status == 0 => Ok(()),
        // Not on this kernel or file system; it is no more than a courtesy.
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE)) => Ok(()),
        error => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Compares some live keys with their rows.
pub(super) fn sample(connection: &Connection, state: &State) -> Result<(), Unusable> {
    let samples = state.keys().min(SAMPLES);
    for sample in 0..samples {
        let (key, version) = state.nth(sample * state.keys() / samples).expect("there are so many keys");
        let row = scan_heads(connection, version.location, 1)?.pop();
        if !row.is_some_and(|row| row.key == key && row.version == version) {
            return Err(Unusable::Row(version.location));
        }
    }
    Ok(())
}

/// Compares every row with the index that was read with them, while the store goes on: rows that compaction drops
/// meanwhile are not missed.
pub(super) fn compare(connection: &Connection, state: &State) -> Result<(), Unusable> {
    let (mut live, mut past, mut from) = (0, 0, 0);
    loop {
        let mut rows = scan_heads(connection, from, COMPARED_ROWS_MAX)?;
        rows.retain(|row| row.version.location < state.next_location);
        let Some(last) = rows.last() else { break };
        from = last.version.location + 1;
        for row in rows {
            match state.known(&row.key, row.version.location) {
                Some(Known::Live(version)) if version == row.version => live += 1,
                Some(Known::Past(known)) if is_same(&known.version, &row.version) => {
                    past += u64::from(known.end > state.compact_revision);
                }
                Some(Known::Buried) if row.version.is_tombstone() => {}
                _ => return Err(Unusable::Row(row.version.location)),
            }
        }
    }
    let missing = state.keys() + state.past_from(state.compact_revision) - live - past;
    let compacted = meta(connection, META_COMPACT_REVISION)?.unwrap_or(-1) > state.compact_revision;
    if missing == 0 || compacted { Ok(()) } else { Err(Unusable::Rows(missing)) }
}

/// The create revision of a tombstone's row means nothing.
fn is_same(known: &Version, row: &Version) -> bool {
    let create_revision = if known.is_tombstone() { row.create_revision } else { known.create_revision };
    Version { create_revision, ..*known } == *row
}
