//! Bytes as a database file: it opens or is refused with a reason, and what opened can be read to its end. Nothing panics.
//!
//! A hang is libFuzzer's to notice (see `-timeout` in run.sh).

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use conformance::command::Command;
use kine_rs::apply::{Command as Applied, Machine};
use kine_rs::auth::Caller;
use kine_rs::backend::Endpoint;
use kine_rs::mvcc::Version;
use kine_rs::mvcc::range::Values;
use kine_rs::rows::{ReadError, RowWriter, ScanFrom};
use kine_rs::txn::{check_delete, check_put, check_txn};
use libfuzzer_sys::{Corpus, fuzz_target};
use tempfile::TempDir;

const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
const ROWS: usize = 100;
const BYTES: usize = 1 << 20;

/// In memory where there is such a file system: every run writes a file.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.expect("a directory for the database")
});

const SEEDS: u64 = 6;
const OPERATIONS_MAX: usize = 128;

fuzz_target!(init: fuzz::write(SEEDS, database), |data: &[u8]| -> Corpus {
    // Anything else is refused by its first bytes, and there is nothing more to find.
    if !data.starts_with(SQLITE_MAGIC) {
        return Corpus::Reject;
    }
    empty_dir();
    let path = DIR.path().join("state.db");
    std::fs::write(&path, data).expect("space for a small file");
    match Endpoint::sqlite(&path).without_fsync().open() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(opened) => {
            let mut next = 0;
            // An error is an answer; a scan that does not move on would never end.
            while let Ok(rows) = opened.reader.scan(ScanFrom::Location(next), ROWS, BYTES) {
                let Some(last) = rows.last() else { break };
                assert!(last.version.location >= next, "a scan goes back");
                next = match last.version.location.checked_add(1) {
                    Some(next) => next,
                    None => break,
                };
            }
        }
    }
    Corpus::Keep
});

struct Stored<'w>(&'w mut dyn RowWriter);

impl Values for Stored<'_> {
    type Error = ReadError;

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.0.load(versions)
    }
}

/// The file of a store that has run the program's writes.
fn database(program: &[Command]) -> Vec<u8> {
    let path = DIR.path().join("state.db");
    {
        let opened = Endpoint::sqlite(&path).without_fsync().open().expect("a new database");
        let (mut machine, mut writer) = (Machine::new(opened.identity, opened.state), opened.writer);
        for command in program.iter().filter_map(applied) {
            // A refused command is as good a part of a life as any.
            let _refused = machine.apply(&Caller::Nobody, &command, &mut Stored(writer.as_mut())).is_err();
            writer.commit(&machine.take_batch()).expect("the batch is stored");
        }
    }
    let file = std::fs::read(&path).expect("the database was closed");
    empty_dir();
    file
}

fn applied(command: &Command) -> Option<Applied> {
    Some(match command.clone() {
        Command::Put(request) if check_put(&request).is_ok() => Applied::Put(request),
        Command::Delete(request) if check_delete(&request).is_ok() => Applied::DeleteRange(request),
        Command::Txn(request) if check_txn(&request, OPERATIONS_MAX).is_ok() => Applied::Txn(request.into()),
        Command::LeaseGrant(request) if request.id != 0 => {
            Applied::LeaseGrant { id: request.id, ttl: request.ttl }
        }
        _ => return None,
    })
}

fn empty_dir() {
    for entry in DIR.path().read_dir().expect("our own directory") {
        std::fs::remove_file(entry.expect("our own directory").path()).expect("our own file");
    }
}
