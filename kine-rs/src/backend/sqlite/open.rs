//! Opening a database: whose file it is, that it is sound, and the state its rows amount to.
//!
//! Nothing is changed before the file is known to be ours and of a format we write.

use super::index::{self, GUARDS, IndexFiles, Unusable};
use super::integrity::{IntegrityCheck, Loaded, Pages};
use super::lock::{LockError, LockFile};
use super::reader::{SqliteReader, bounds};
use super::takeover::{self, take_over};
use super::{APPLICATION_ID, FORMAT, VALUE_BYTES_MAX, beside, writer::SqliteWriter};
use crate::apply::{
    Identity, META_CLUSTER_ID, META_COMPACT_REVISION, META_DOWNGRADE, META_INDEX, META_MEMBER_ID,
    META_PEER_URLS, META_REVISION_FLOOR, META_TERM, alarm_key, encode_peer_urls,
};
use crate::auth::Accounts;
use crate::backend::{Ids, Images, Opened, new_identity};
use crate::lease::TTL_MAX_SECONDS;
use crate::mvcc::{Granted, Location, REVISION_MAX, Rebuild, Release, Replay, State, Version};
use crate::rows::Bucket;
use prost::Message;
use proto::etcdserverpb::Member;
use rusqlite::{Connection, OpenFlags, OptionalExtension, config::DbConfig, limits::Limit};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// SQLite before 3.51.3 can corrupt a database when a WAL reset races with a checkpoint.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// A file up to this size is checked before anything is served; a larger one beside the first requests, because reading
/// all of it would hold up a restart for seconds.
const CHECK_FIRST_BYTES_MAX: u64 = 64 << 20;

/// The tables of a new file, for a transaction of the caller. The last two lines are `APPLICATION_ID` and `FORMAT`.
pub(super) const TABLES: &str = "
CREATE TABLE rows (
    location INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    sub INTEGER NOT NULL,
    key BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    value BLOB NOT NULL
) STRICT;
CREATE TABLE records (
    bucket INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (bucket, key)
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 1802071653;
PRAGMA user_version = 1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub path: PathBuf,
    /// False: `synchronous=OFF`, an acknowledged write can be lost. For tests only.
    pub fsync: bool,
    /// Ids of a new store; `None`: random ones.
    pub ids: Option<Ids>,
    /// Peer URLs of a store that has none yet; `None`: it gets none.
    pub peer_urls: Option<Arc<[String]>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("database {path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error("directory {path}: {error}")]
    Directory { path: PathBuf, error: std::io::Error },
    #[error(
        "database {path} has format {found}, this release knows up to {FORMAT}; it was left untouched, use a newer release"
    )]
    NewerFormat { path: PathBuf, found: i64 },
    #[error(
        "{path} is a database of another program (application id {application_id:#x}); it was left untouched"
    )]
    Foreign { path: PathBuf, application_id: i64 },
    #[error("database {path} is not empty; it was left untouched, use another path or move it away")]
    NotEmpty { path: PathBuf },
    #[error("database {path} is open in another process; stop it (a Go kine?) and start again")]
    InUse { path: PathBuf },
    #[error(
        "database {path} has a table \"kine\" without column {missing}, which no kine from 0.9 to 0.16 writes; \
         it was left untouched"
    )]
    UnknownKine { path: PathBuf, missing: String },
    #[error("database {path} is corrupt: {detail}; restore a backup or move the file away")]
    Corrupt { path: PathBuf, detail: String },
    #[error("SQLite {0} is too old: versions before 3.51.3 can corrupt a database")]
    Library(&'static str),
    #[error("database {path}: {error}")]
    Sqlite { path: PathBuf, error: rusqlite::Error },
}

pub fn open(options: &Options) -> Result<Opened, OpenError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(OpenError::Library(rusqlite::version()));
    }
    let path = &options.path;
    create_directory(path)?;
    let lock = LockFile::acquire(path)?;
    create_file(path)?;
    let failed = |error| from_sqlite(path, error);
    let mut connection = connect_to_unknown(path).map_err(failed)?;
    let owner = check_owner(path, &connection)?;
    if owner == Owner::GoKine {
        drop(connection);
        take_over(path)?;
        connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    }
    let fresh = owner == Owner::Nobody;
    configure_writer(&connection, options, fresh).map_err(failed)?;
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if fresh {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES}; COMMIT")).map_err(failed)?;
    } else if bytes <= CHECK_FIRST_BYTES_MAX {
        check_integrity(path, &connection)?;
    }
    let files = IndexFiles::beside(path, options.fsync);
    let Rebuilt { mut state, covered } = rebuild(path, &connection, &files)?;
    state.peer_urls = state.peer_urls.or_else(|| options.peer_urls.clone());
    let identity = identify(&connection, options.ids, state.peer_urls.as_deref(), covered).map_err(failed)?;
    // Not before the record that may have named them is gone.
    files.tidy(covered.is_some());
    let reader = Arc::new(SqliteReader::new(path.clone()));
    let loaded = covered.map(|_| Loaded { state: state.clone(), files: files.clone() });
    let pages = (bytes > CHECK_FIRST_BYTES_MAX).then_some(Pages);
    let check = IntegrityCheck::start(path.clone(), pages, loaded);
    let writer = SqliteWriter::new(connection, path.clone(), lock, check).map_err(failed)?;
    let images = Some(Images { store: Box::new(files), covered });
    Ok(Opened { writer: Box::new(writer), reader, state, identity, images })
}

/// Every connection: bounded values, no tricks from a hostile file.
pub(super) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// For a file that may not be ours: closing it again leaves everything as it was found.
pub(super) fn connect_to_unknown(path: &Path) -> rusqlite::Result<Connection> {
    let has_wal = beside(path, "-wal").exists();
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_wal)?;
    Ok(connection)
}

/// Makes the database's directory where it is missing, durably: each new directory's name is synced in its parent. The
/// names in the directory itself SQLite syncs with its first commit.
pub(super) fn create_directory(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    let absent = |ancestor: &&Path| !ancestor.as_os_str().is_empty() && !ancestor.exists();
    let missing: Vec<&Path> = directory_of(path).ancestors().take_while(absent).collect();
    for directory in missing.into_iter().rev() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| sync_directory(directory_of(directory)))
            .map_err(|error| OpenError::Directory { path: directory.into(), error })?;
    }
    Ok(())
}

/// The file holds secrets: only its owner may read it. SQLite gives the WAL the same mode.
pub(super) fn create_file(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let created = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(OpenError::File { path: path.into(), error })
        }
        _ => Ok(()),
    }
}

/// The directory a path lies in; the working directory for a bare name.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

/// Whose file it is that may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is new.
    Nobody,
    Us,
    /// To be taken over.
    GoKine,
}

/// Refuses what is not ours without having written anything.
pub(super) fn check_owner(path: &Path, connection: &Connection) -> Result<Owner, OpenError> {
    let failed = |error| from_sqlite(path, error);
    let number = |pragma: &str| {
        connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(failed)
    };
    let application_id = number("application_id")?;
    let format = number("user_version")?;
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    match (application_id, format) {
        (0, 0) if objects == 0 => Ok(Owner::Nobody),
        (APPLICATION_ID, found) if found > FORMAT => Err(OpenError::NewerFormat { path: path.into(), found }),
        (APPLICATION_ID, FORMAT) => Ok(Owner::Us),
        (0, 0) if has_table(connection, takeover::TABLE).map_err(failed)? => Ok(Owner::GoKine),
        _ => Err(OpenError::Foreign { path: path.into(), application_id }),
    }
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = ?1",
        [name],
        |row| row.get(0),
    )
}

fn configure_writer(connection: &Connection, options: &Options, fresh: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    if fresh {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", if options.fsync { "FULL" } else { "OFF" })?;
    connection.pragma_update(None, "cache_size", -8192)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "locking_mode", "NORMAL")
}

pub(super) fn check_integrity(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| from_sqlite(path, error))?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Corrupt { path: path.into(), detail: verdict }) }
}

/// Ids of the store, made at its creation, and its peer URLs; the term counts its starts, as a member's elections would. In
/// the same transaction the image of the index is given up if it was not used: from now on rows may get locations that it
/// knows.
fn identify(
    connection: &Connection,
    ids: Option<Ids>,
    peer_urls: Option<&[String]>,
    covered: Option<Location>,
) -> rusqlite::Result<Identity> {
    let stored = |key: &[u8]| meta(connection, key).map(|value| value.map(|number| number as u64));
    let identity = match (stored(META_CLUSTER_ID)?, stored(META_MEMBER_ID)?, stored(META_TERM)?) {
        (Some(cluster_id), Some(member_id), Some(term)) => Identity { cluster_id, member_id, term: term + 1 },
        _ => new_identity(ids),
    };
    let mut statement =
        connection.prepare("INSERT OR REPLACE INTO records (bucket, key, value) VALUES (?1, ?2, ?3)")?;
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {GUARDS}"))?;
    if covered.is_none() {
        let delete = "DELETE FROM records WHERE bucket = ?1 AND key = ?2";
        connection.execute(delete, (Bucket::Meta as i64, META_INDEX))?;
    }
    for (key, value) in [
        (META_CLUSTER_ID, identity.cluster_id),
        (META_MEMBER_ID, identity.member_id),
        (META_TERM, identity.term),
    ] {
        statement.execute((Bucket::Meta as i64, key, value.to_be_bytes().as_slice()))?;
    }
    if let Some(urls) = peer_urls {
        statement.execute((Bucket::Meta as i64, META_PEER_URLS, encode_peer_urls(urls)))?;
    }
    connection.execute_batch("COMMIT")?;
    Ok(identity)
}

/// A number of the store.
pub(super) fn meta(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<i64>> {
    Ok(meta_bytes(connection, key)?.map(i64::from_be_bytes))
}

/// A record of the store that has `N` bytes, or else counts as absent.
pub(super) fn meta_bytes<const N: usize>(
    connection: &Connection,
    key: &[u8],
) -> rusqlite::Result<Option<[u8; N]>> {
    Ok(meta_value(connection, key)?.and_then(|value| value.try_into().ok()))
}

fn meta_value(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<Vec<u8>>> {
    let select = "SELECT value FROM records WHERE bucket = ?1 AND key = ?2";
    connection.query_row(select, (Bucket::Meta as i64, key), |row| row.get(0)).optional()
}

struct Rebuilt {
    state: State,
    /// The first location after the image it was read from; `None`: from all rows.
    covered: Option<Location>,
}

fn rebuild(path: &Path, connection: &Connection, files: &IndexFiles) -> Result<Rebuilt, OpenError> {
    let records = Records::read(path, connection)?;
    match from_image(path, connection, files, &records) {
        Ok(Some(rebuilt)) => return Ok(rebuilt),
        Ok(None) => {}
        Err(why) => {
            let file = files.path().display();
            tracing::warn!(%file, %why, "the image of the index can't be used; all rows are read instead");
        }
    }
    let mut rebuild = Rebuild::new(records.compact_revision);
    for part in read_all(path, connection)? {
        rebuild.append(part);
    }
    for (id, granted) in &records.leases {
        rebuild.lease(*id, *granted);
    }
    let state = records.complete(path, rebuild.finish(records.revision_floor))?;
    Ok(Rebuilt { state, covered: None })
}

fn from_image(
    path: &Path,
    connection: &Connection,
    files: &IndexFiles,
    records: &Records,
) -> Result<Option<Rebuilt>, Unusable> {
    let Some(image) = files.load(connection, records.compact_revision)? else { return Ok(None) };
    let (covered, revision) = (image.next_location, image.revision + 1);
    let mut replay = Replay::new(image, records.compact_revision);
    for (id, granted) in &records.leases {
        replay.lease(*id, *granted);
    }
    let rest = covered..i64::MAX as Location;
    read_rows(path, connection, rest, revision, &mut |key, version| replay.row(key, version))?;
    let state = records.complete(path, replay.finish(records.revision_floor))?;
    index::sample(connection, &state)?;
    let rows = state.next_location - covered;
    tracing::info!(keys = state.keys(), rows, "read the image of the index and the rows after it");
    Ok(Some(Rebuilt { state, covered: Some(covered) }))
}

/// What a database keeps beside the rows.
struct Records {
    compact_revision: i64,
    revision_floor: i64,
    leases: Vec<(i64, Granted)>,
    alarms: Arc<BTreeSet<(u64, i32)>>,
    auth: Arc<Accounts>,
    downgrade: Option<Release>,
    peer_urls: Option<Arc<[String]>>,
}

impl Records {
    fn read(path: &Path, connection: &Connection) -> Result<Self, OpenError> {
        let failed = |error| from_sqlite(path, error);
        let corrupt = |detail: String| OpenError::Corrupt { path: path.into(), detail };
        let (mut leases, mut alarms) = (Vec::new(), BTreeSet::new());
        let mut accounts = crate::auth::Load::default();
        let mut statement =
            connection.prepare("SELECT bucket, key, value FROM records WHERE bucket != 0").map_err(failed)?;
        let mut records = statement.query([]).map_err(failed)?;
        while let Some(record) = records.next().map_err(failed)? {
            let bucket: i64 = record.get(0).map_err(failed)?;
            let (key, value): (Vec<u8>, Vec<u8>) =
                (record.get(1).map_err(failed)?, record.get(2).map_err(failed)?);
            if bucket == Bucket::Lease as i64 {
                let (id, ttl) =
                    lease(&key, &value).ok_or_else(|| corrupt(format!("lease record {key:02x?}")))?;
                leases.push((id, Granted { ttl }));
            } else if bucket == Bucket::Alarm as i64 {
                alarms.insert(alarm(&key).ok_or_else(|| corrupt(format!("alarm record {key:02x?}")))?);
            } else {
                accounts.record(bucket, &key, &value).map_err(|error| corrupt(error.to_string()))?;
            }
        }
        let member = meta_value(connection, META_PEER_URLS).map_err(failed)?;
        let member = member.map(|member| Member::decode(member.as_slice())).transpose();
        let member = member.map_err(|error| corrupt(format!("record peer_urls: {error}")))?;
        let number = |key| meta(connection, key).map_err(failed);
        Ok(Records {
            compact_revision: number(META_COMPACT_REVISION)?.unwrap_or(-1),
            revision_floor: number(META_REVISION_FLOOR)?.unwrap_or(1),
            leases,
            alarms: Arc::new(alarms),
            auth: Arc::new(accounts.finish()),
            downgrade: number(META_DOWNGRADE)?.map(|both| Release::decode(both.to_be_bytes())),
            peer_urls: member.map(|member| member.peer_ur_ls.into()),
        })
    }

    /// A state that lacks nothing but these records.
    fn complete(&self, path: &Path, mut state: State) -> Result<State, OpenError> {
        if state.revision > REVISION_MAX {
            let detail = format!("it is at revision {}", state.revision);
            return Err(OpenError::Corrupt { path: path.into(), detail });
        }
        state.alarms = self.alarms.clone();
        state.auth = self.auth.clone();
        state.downgrade = self.downgrade;
        state.peer_urls = self.peer_urls.clone();
        Ok(state)
    }
}

/// Reads all rows, a part of them per core. Parts are in order.
fn read_all(path: &Path, connection: &Connection) -> Result<Vec<Rebuild>, OpenError> {
    let Range { start: first, end } = bounds(connection).map_err(|error| from_sqlite(path, error))?;
    let parts = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let bound = |part: u64| first + (end - first) * part / parts;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..parts)
            .map(|part| scope.spawn(move || read_part(path, bound(part)..bound(part + 1))))
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader of rows does not panic")).collect()
    })
}

fn read_part(path: &Path, locations: Range<Location>) -> Result<Rebuild, OpenError> {
    let connection =
        connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| from_sqlite(path, error))?;
    let mut part = Rebuild::new(0);
    read_rows(path, &connection, locations, 1, &mut |key, version| part.row(key, version))?;
    Ok(part)
}

/// Reads rows but their values, in order; all must be of `revision` or a later one.
fn read_rows(
    path: &Path,
    connection: &Connection,
    locations: Range<Location>,
    revision: i64,
    take: &mut dyn FnMut(&[u8], Version),
) -> Result<(), OpenError> {
    let failed = |error| from_sqlite(path, error);
    let corrupt = |detail: String| OpenError::Corrupt { path: path.into(), detail };
    let mut statement = connection
        .prepare(
            "SELECT location, revision, create_revision, version, lease, length(value), key FROM rows
             WHERE location >= ?1 AND location < ?2 ORDER BY location",
        )
        .map_err(failed)?;
    let mut rows = statement.query((locations.start, locations.end)).map_err(failed)?;
    let mut revision_before = revision;
    while let Some(row) = rows.next().map_err(failed)? {
        let version = version(row).map_err(failed)?;
        if version.mod_revision < revision_before || version.create_revision > version.mod_revision {
            return Err(corrupt(format!("row {} has revision {}", version.location, version.mod_revision)));
        }
        revision_before = version.mod_revision;
        let key = row.get_ref(6).map_err(failed)?.as_blob().map_err(|error| corrupt(error.to_string()))?;
        take(key, version);
    }
    Ok(())
}

fn version(row: &rusqlite::Row) -> rusqlite::Result<Version> {
    Ok(Version {
        location: row.get(0)?,
        mod_revision: row.get(1)?,
        create_revision: row.get(2)?,
        version: row.get(3)?,
        lease: row.get(4)?,
        value_len: row.get(5)?,
    })
}

fn lease(key: &[u8], value: &[u8]) -> Option<(i64, i64)> {
    let (id, ttl) = (i64::from_be_bytes(key.try_into().ok()?), i64::from_be_bytes(value.try_into().ok()?));
    (1..=TTL_MAX_SECONDS).contains(&ttl).then_some((id, ttl))
}

fn alarm(key: &[u8]) -> Option<(u64, i32)> {
    let (member, kind) = key.split_at_checked(8)?;
    let alarm = (u64::from_be_bytes(member.try_into().ok()?), i32::from_be_bytes(kind.try_into().ok()?));
    debug_assert_eq!(alarm_key(alarm), key);
    Some(alarm)
}

pub(super) fn from_sqlite(path: &Path, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            OpenError::Corrupt { path: path.into(), detail: error.to_string() }
        }
        _ => OpenError::Sqlite { path: path.into(), error },
    }
}
