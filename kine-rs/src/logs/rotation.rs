//! A log file that is put aside when it is full, and what becomes of those put aside.
//!
//! Names, numbers and the order of things are lumberjack's, which etcd uses: `server.log` becomes
//! `server-2006-01-02T15-04-05.000.log`, and that `….log.gz`. A line is never split and never lost to rotation: where a new
//! file can't be had, the old one goes on. Old files are compressed and removed by a thread of their own, as that takes
//! seconds; the file being written is never touched by it.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

const MEGABYTE: u64 = 1 << 20;
const SIZE_DEFAULT_MEGABYTES: u64 = 100;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:3]");
const COMPRESSED: &str = ".gz";
/// A new log is its owner's alone.
const MODE: u32 = 0o600;

/// When a file is full, and how long old ones stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub size_max: u64,
    /// `None`: no limit.
    pub age_max: Option<Duration>,
    /// `None`: no limit.
    pub backups_max: Option<usize>,
    pub local_time: bool,
    pub compress: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("improperly formatted log rotation config: {0}")]
    Json(serde_json::Error),
    #[error("invalid log rotation config: {name} is {value}, not {wanted}")]
    Value { name: &'static str, value: serde_json::Value, wanted: &'static str },
}

impl Rotation {
    /// etcd's JSON: `maxsize` (MB), `maxage` (days), `maxbackups` (files), `localtime`, `compress`.
    ///
    /// # Errors
    /// When it is no JSON, or a value is of another kind.
    pub fn parse(json: &str) -> Result<Rotation, RotationError> {
        let entries: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).map_err(RotationError::Json)?;
        let entry = |name: &'static str| {
            let found = entries.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value).filter(|value| !value.is_null())
        };
        let number = |name| match entry(name) {
            None => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| RotationError::Value {
                name,
                value: value.clone(),
                wanted: "a whole number from 0",
            }),
        };
        let flag = |name| match entry(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| RotationError::Value {
                name,
                value: value.clone(),
                wanted: "true or false",
            }),
        };
        let some = |number: u64| (number > 0).then_some(number);
        Ok(Rotation {
            size_max: some(number("maxsize")?).unwrap_or(SIZE_DEFAULT_MEGABYTES).saturating_mul(MEGABYTE),
            age_max: some(number("maxage")?).map(|days| DAY.saturating_mul(days.min(u32::MAX.into()) as u32)),
            backups_max: some(number("maxbackups")?).map(|files| files as usize),
            local_time: flag("localtime")?,
            compress: flag("compress")?,
        })
    }
}

/// The log file and those put aside, in one directory.
pub struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
    /// Tells the thread that looks after old files; `None`: there is nothing to look after.
    tidy: Option<SyncSender<()>>,
}

impl RotatingFile {
    /// Goes on with the file that is there.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<RotatingFile> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let backups = Backups { path: path.to_owned(), rotation };
        let tidy = backups.are_limited().then(|| backups.start()).transpose()?;
        let mut log = RotatingFile { path: path.to_owned(), rotation, file, size, tidy };
        log.tidy();
        Ok(log)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mode = self.file.metadata().map_or(MODE, |metadata| metadata.permissions().mode());
        fs::rename(&self.path, Names::of(&self.path).free_backup(now(self.rotation.local_time)))?;
        self.file = append(&self.path)?;
        self.file.set_permissions(Permissions::from_mode(mode))?;
        self.size = 0;
        self.tidy();
        Ok(())
    }

    fn tidy(&mut self) {
        if let Some(tidy) = &self.tidy {
            // One call is waiting already: it will see this too.
            tidy.try_send(()).ok();
        }
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0
            && self.size + line.len() as u64 > self.rotation.size_max
            && let Err(error) = self.rotate()
        {
            writeln!(io::stderr(), "log {} can't be rotated: {error}", self.path.display()).ok();
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(MODE).open(path)
}

fn now(local: bool) -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    if local { now.to_offset(local_offset(now)) } else { now }
}

fn local_offset(now: OffsetDateTime) -> UtcOffset {
    let seconds = now.unix_timestamp() as libc::time_t;
    // SAFETY: both point to values of this function; `localtime_r` keeps neither.
    let parts = unsafe {
        let mut parts = std::mem::zeroed::<libc::tm>();
        if libc::localtime_r(&raw const seconds, &raw mut parts).is_null() {
            return UtcOffset::UTC;
        }
        parts
    };
    i32::try_from(parts.tm_gmtoff)
        .ok()
        .and_then(|east| UtcOffset::from_whole_seconds(east).ok())
        .unwrap_or(UtcOffset::UTC)
}

/// How the files of one log are called.
struct Names<'a> {
    dir: &'a Path,
    stem: String,
    /// With its dot.
    extension: String,
}

impl<'a> Names<'a> {
    fn of(path: &'a Path) -> Names<'a> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, extension) = name.split_at(name.rfind('.').unwrap_or(name.len()));
        Names { dir, stem: stem.to_owned(), extension: extension.to_owned() }
    }

    fn backup(&self, at: OffsetDateTime) -> PathBuf {
        let stamp = at.format(STAMP).expect("every time has these parts");
        self.dir.join(format!("{}-{stamp}{}", self.stem, self.extension))
    }

    /// The first such name that is not taken: no file put aside replaces another.
    fn free_backup(&self, mut at: OffsetDateTime) -> PathBuf {
        loop {
            let path = self.backup(at);
            if !path.exists() {
                return path;
            }
            at += Duration::from_millis(1);
        }
    }

    /// When a file was put aside; `None`: it is none of ours.
    fn time(&self, name: &str) -> Option<PrimitiveDateTime> {
        let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
        let stamp = name.strip_prefix(&self.stem)?.strip_prefix('-')?.strip_suffix(&self.extension)?;
        PrimitiveDateTime::parse(stamp, STAMP).ok()
    }
}

/// The files put aside.
struct Backups {
    path: PathBuf,
    rotation: Rotation,
}

impl Backups {
    fn are_limited(&self) -> bool {
        self.rotation.compress || self.rotation.age_max.is_some() || self.rotation.backups_max.is_some()
    }

    /// Starts the thread that tidies when told to; it ends with the log.
    fn start(self) -> io::Result<SyncSender<()>> {
        let (tidy, wanted) = sync_channel(1);
        std::thread::Builder::new().name("kine-logs".into()).spawn(move || {
            while wanted.recv().is_ok() {
                // Into the log itself it would be one more line to rotate.
                if let Err(error) = self.tidy() {
                    writeln!(io::stderr(), "old logs of {} stay: {error}", self.path.display()).ok();
                }
            }
        })?;
        Ok(tidy)
    }

    fn tidy(&self) -> io::Result<()> {
        let (kept, gone) = self.divide(self.list()?, now(self.rotation.local_time));
        for path in gone {
            fs::remove_file(path)?;
        }
        if self.rotation.compress {
            for path in kept.iter().filter(|path| !path.to_string_lossy().ends_with(COMPRESSED)) {
                compress(path)?;
            }
        }
        Ok(())
    }

    /// Newest first.
    fn list(&self) -> io::Result<Vec<(PrimitiveDateTime, PathBuf)>> {
        let names = Names::of(&self.path);
        let mut files = Vec::new();
        for entry in fs::read_dir(names.dir)? {
            let entry = entry?;
            if let Some(time) = names.time(&entry.file_name().to_string_lossy()) {
                files.push((time, entry.path()));
            }
        }
        files.sort();
        files.reverse();
        Ok(files)
    }

    /// Those to keep and those to remove.
    fn divide(
        &self,
        files: Vec<(PrimitiveDateTime, PathBuf)>,
        now: OffsetDateTime,
    ) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let now = PrimitiveDateTime::new(now.date(), now.time());
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        let (mut number, mut last) = (0, None);
        for (time, path) in files {
            // A file and its compressed half are one.
            number += usize::from(last.replace(time) != Some(time));
            let too_many = self.rotation.backups_max.is_some_and(|max| number > max);
            let too_old = self.rotation.age_max.is_some_and(|max| now - time > max);
            if too_many || too_old { gone.push(path) } else { kept.push(path) }
        }
        (kept, gone)
    }
}

/// Replaces a file by its compressed twin; what a stop leaves half done is done again.
fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(COMPRESSED);
    let mut plain = File::open(path)?;
    let mode = plain.metadata()?.permissions().mode();
    let target = File::options().create(true).write(true).truncate(true).mode(mode).open(&name)?;
    let mut encoder = GzEncoder::new(target, Compression::default());
    io::copy(&mut plain, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use time::macros::datetime;

    fn parse(json: &str) -> Rotation {
        Rotation::parse(json).expect("valid")
    }

    #[test]
    fn the_configuration_is_etcds() {
        let default =
            parse(r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#);
        assert_eq!(parse("{}"), default);
        assert_eq!((default.size_max, default.age_max, default.backups_max), (100 << 20, None, None));
        let all =
            parse(r#"{"MaxSize": 1, "maxage": 2, "maxbackups": 3, "localtime": true, "compress": true}"#);
        let wanted = Rotation {
            size_max: 1 << 20,
            age_max: Some(DAY * 2),
            backups_max: Some(3),
            local_time: true,
            compress: true,
        };
        assert_eq!(all, wanted);
        let error = |json| Rotation::parse(json).unwrap_err().to_string();
        assert!(error(r#"{"maxsize":"#).starts_with("improperly formatted log rotation config: "));
        assert_eq!(
            error(r#"{"maxage": "a"}"#),
            "invalid log rotation config: maxage is \"a\", not a whole number from 0"
        );
    }

    #[test]
    fn a_full_file_is_put_aside_and_no_line_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.log");
        let mut log = RotatingFile::open(&path, Rotation { size_max: 10, ..parse("{}") }).expect("opened");
        for line in ["first 1\n", "second\n", "a line longer than the file\n", "x\n"] {
            log.write_all(line.as_bytes()).expect("written");
        }
        assert_eq!(fs::read_to_string(&path).expect("there"), "x\n");
        let backups = Backups { path, rotation: log.rotation }.list().expect("listed");
        let texts: Vec<_> =
            backups.iter().map(|(_, path)| fs::read_to_string(path).expect("there")).collect();
        assert_eq!(texts, ["a line longer than the file\n", "second\n", "first 1\n"]);
    }

    #[test]
    fn old_files_go_and_the_others_are_compressed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.log");
        let names = Names::of(&path);
        for hour in 0..4u8 {
            let at = datetime!(2026-01-01 00:00 UTC) + DAY * u32::from(hour);
            fs::write(names.backup(at), format!("{hour}")).expect("written");
        }
        fs::write(dir.path().join("server-notes.log"), "mine").expect("written");
        let rotation = Rotation { backups_max: Some(2), compress: true, ..parse("{}") };
        Backups { path: path.clone(), rotation }.tidy().expect("tidied");
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        left.sort();
        let wanted = [
            "server-2026-01-03T00-00-00.000.log.gz",
            "server-2026-01-04T00-00-00.000.log.gz",
            "server-notes.log",
        ];
        assert_eq!(left, wanted);
        let mut text = String::new();
        let file = File::open(dir.path().join(&left[1])).expect("there");
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "3");
    }

    #[test]
    fn files_are_too_old_by_the_time_in_their_names() {
        let rotation = Rotation { age_max: Some(DAY), ..parse("{}") };
        let backups = Backups { path: "server.log".into(), rotation };
        let file = |time| (time, PathBuf::from("x"));
        let files = vec![file(datetime!(2026-01-02 12:00)), file(datetime!(2026-01-01 11:59))];
        let (kept, gone) = backups.divide(files, datetime!(2026-01-02 12:00 UTC));
        assert_eq!((kept.len(), gone.len()), (1, 1));
    }
}
