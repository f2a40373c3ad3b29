//! Databases that real Go kines left when they were killed (`conformance/go-kine`): each is taken over whole, whatever
//! stops the takeover half way.

use crate::servers::{Dir, Server, stderr, text};
use crate::sqlite_file::{beside, fault_library};
use conformance::told::told;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One of every minor release but 0.15, with the version of the key that kube-apiserver calls `compact_rev_key`.
const VERSIONS: [(&str, i64); 7] = [
    ("0.9.9", 0),
    ("0.10.1", 0),
    ("0.11.11", 0),
    ("0.12.0", 0),
    ("0.13.17", 2),
    ("0.14.12", 2),
    ("0.16.4", 2),
];
/// The one that is stopped half way.
const NEWEST: &str = "0.16.4";
const WITHIN: Duration = Duration::from_secs(60);
const ENOSPC: i32 = 28;
/// For the fault library: not an error, but the end.
const KILL: i32 = 0;

fn recorded(version: &str, suffix: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/go-kine");
    directory.join(format!("{version}{suffix}"))
}

fn unzipped(version: &str, suffix: &str) -> Vec<u8> {
    let unzipped =
        Command::new("gzip").args(["-dc", text(&recorded(version, suffix))]).output().expect("gzip runs");
    assert!(unzipped.status.success(), "{}", stderr(&unzipped));
    unzipped.stdout
}

/// The database and the WAL that lay beside it.
fn unpack(version: &str, database: &Path) {
    for suffix in ["", "-wal"] {
        let bytes = unzipped(version, &format!(".db{suffix}.gz"));
        std::fs::write(beside(database, suffix), bytes).expect("room");
    }
}

/// What the kine told about it.
fn expected(version: &str) -> String {
    String::from_utf8(unzipped(version, ".txt.gz")).expect("a text")
}

fn tells(server: &Server) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(told(&server.url())).expect("it answers")
}

fn number_after(text: &str, word: &str) -> i64 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("{word} is not in {text}")).1;
    let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().expect("a number")
}

fn count(database: &Connection, table: &str) -> i64 {
    database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a table")
}

#[test]
fn every_kine_is_taken_over_with_all_it_told() {
    let dir = Dir::new();
    for (version, marks) in VERSIONS {
        let database = dir.join(&format!("{version}.db"));
        unpack(version, &database);
        std::fs::set_permissions(&database, Permissions::from_mode(0o644)).expect("ours");
        let found = dir.join("found.db");
        unpack(version, &found);
        let rows = count(&Connection::open(&found).expect("a database"), "kine");
        let expected = expected(version);
        let (head, compacted) =
            (number_after(&expected, "revision "), number_after(&expected, "compacted to "));

        let ours = Server::kine(&database);
        assert_eq!(tells(&ours), expected, "{version}");
        assert_eq!(ours.log().matches("took over a database of kine").count(), 1, "{version}");
        for suffix in ["", "-wal"] {
            let metadata = std::fs::metadata(beside(&database, suffix)).expect("a file");
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{version}{suffix}");
        }
        below_the_compact_revision_nothing_is_told(&ours, compacted);
        leases_are_kines_times_to_live(&ours, &expected);
        let mark = ours.json(&["get", "compact_rev_key"]);
        assert_eq!(mark["kvs"][0]["version"].as_i64().unwrap_or(0), marks, "{version}");
        ours.ctl(&["put", "/after", "the takeover"]);
        let put = ours.json(&["get", "/after"]);
        assert_eq!(put["kvs"][0]["mod_revision"], head + 1, "{version}");
        ours.kill();

        // Once: what came since is still there, and kine's table has what it had.
        let ours = Server::kine(&database);
        assert_eq!(ours.json(&["get", "/after"])["kvs"][0], put["kvs"][0], "{version}");
        assert_eq!(ours.log().matches("took over a database of kine").count(), 1, "{version}");
        ours.stop();
        let connection = Connection::open(&database).expect("a database");
        assert_eq!(count(&connection, "kine_before_takeover"), rows, "{version}");
    }
}

/// What `docs/sqlite-format.md` says.
#[test]
fn the_kept_table_leads_back_to_kine() {
    const BACK: &str = "ALTER TABLE kine_before_takeover RENAME TO kine; DROP TABLE rows; DROP TABLE records;
        PRAGMA application_id = 0; PRAGMA user_version = 0";
    let dir = Dir::new();
    let database = dir.join("state.db");
    unpack(NEWEST, &database);
    let ours = Server::kine(&database);
    ours.ctl(&["put", "/after", "the takeover"]);
    ours.stop();
    Connection::open(&database).and_then(|back| back.execute_batch(BACK)).expect("SQL of the documentation");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sqlite-format.md");
    let document = std::fs::read_to_string(document).expect("a document");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&document).contains(&words(BACK)));
    let theirs = Server::go_kine(&database);
    assert_eq!(tells(&theirs), expected(NEWEST));
    theirs.stop();
}

fn below_the_compact_revision_nothing_is_told(server: &Server, compacted: i64) {
    let before = (compacted - 1).to_string();
    let said = stderr(&server.try_ctl(&["get", "/", "--prefix", "--rev", &before]));
    assert!(said.contains("required revision has been compacted"), "{said}");
    let watch = server.try_ctl(&["watch", "/", "--prefix", "--rev", &before]);
    let said = stderr(&watch);
    assert!(said.contains("required revision has been compacted"), "{said}");
}

/// A lease of kine is a number of seconds; all keys with the same number share one here.
fn leases_are_kines_times_to_live(server: &Server, expected: &str) {
    let now = expected.split("\nat ").next().expect("the first part");
    let wanted: BTreeSet<i64> = now
        .lines()
        .filter(|line| line.contains(" lease="))
        .map(|line| number_after(line, " lease="))
        .collect();
    assert!(!wanted.is_empty());
    let list = server.json(&["lease", "list"]);
    let leases = list["leases"].as_array().expect("leases");
    let found: BTreeSet<i64> = leases.iter().map(|lease| lease["id"].as_i64().expect("an id")).collect();
    assert_eq!(found, wanted);
    for id in wanted {
        let lease = server.json(&["lease", "timetolive", &format!("{id:x}"), "--keys"]);
        assert_eq!(lease["granted-ttl"], id);
        let keys = lease["keys"].as_array().map_or(0, Vec::len);
        assert_eq!(keys, now.lines().filter(|line| line.ends_with(&format!(" lease={id}"))).count());
    }
}

/// How a start ended that a fault may have met.
#[derive(Debug, PartialEq)]
enum End {
    /// The fault came too late, or had no effect.
    Serves,
    Failed(String),
    Killed,
}

/// Starts our kine with a fault at a call; whatever happens, it is gone on return.
fn start_with_fault(database: &Path, library: &Path, what: &str, error: i32, spared: u32) -> End {
    let (fault, log) = (database.with_extension("fault"), database.with_extension("fault.log"));
    std::fs::write(&fault, format!("{what} {error} {spared}")).expect("room");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kine"))
        .args(["--listen-address", "127.0.0.1:0", "--metrics-bind-address", "0", "--endpoint"])
        .arg(format!("sqlite://{}", database.display()))
        .envs([("LD_PRELOAD", library), ("FAULT_FILE", &fault)])
        .stderr(Stdio::from(std::fs::File::create(&log).expect("a file")))
        .spawn()
        .expect("kine starts");
    let said = || std::fs::read_to_string(&log).expect("a log");
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return if status.code().is_none() { End::Killed } else { End::Failed(said()) };
        }
        if said().contains("listening on") {
            child.kill().and_then(|()| child.wait()).expect("our child");
            return End::Serves;
        }
        assert!(Instant::now() < deadline, "neither serves nor ends: {}", said());
        std::thread::yield_now();
    }
}

/// How many calls go well before the fault: every one of the first, and then fewer and fewer of them are tried.
fn spared() -> impl Iterator<Item = u32> {
    (0..4).chain((2..16).map(|power| 4_u32.pow(power)))
}

/// Whether a file that was left behind is still kine's: then it must be as it was, and otherwise wholly ours.
fn is_kines(database: &Path, rows: i64) -> bool {
    let found = Connection::open(database).expect("a database");
    let tables: BTreeSet<String> = found
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")
        .and_then(|mut tables| tables.query_map([], |row| row.get(0))?.collect())
        .expect("a schema");
    let has = |name: &str| tables.contains(name);
    let kines = has("kine");
    assert_eq!((has("kine_before_takeover"), has("rows"), has("records")), (!kines, !kines, !kines));
    assert_eq!(count(&found, if kines { "kine" } else { "kine_before_takeover" }), rows);
    let indexes: i64 = found
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'kine_%_index'", [], |row| row.get(0))
        .expect("a schema");
    assert_eq!(indexes > 0, kines);
    kines
}

/// The newest recorded database, in each of SQLite's journal modes.
fn journal_modes(dir: &Dir) -> [PathBuf; 2] {
    let (with_wal, with_journal) = (dir.join("wal.db"), dir.join("journal.db"));
    unpack(NEWEST, &with_wal);
    unpack(NEWEST, &with_journal);
    let connection = Connection::open(&with_journal).expect("a database");
    connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).expect("alone");
    [with_wal, with_journal]
}

/// A look at a copy rolls nothing back in the file itself.
fn copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-journal"] {
        let (from, to) = (beside(from, suffix), beside(to, suffix));
        if from.exists() {
            std::fs::copy(from, to).expect("room");
        } else if to.exists() {
            std::fs::remove_file(to).expect("ours");
        }
    }
}

#[test]
fn a_takeover_that_is_killed_leaves_kines_database_or_ours() {
    let dir = Dir::new();
    let (library, expected) = (fault_library(&dir), expected(NEWEST));
    for source in journal_modes(&dir) {
        let untouched = dir.join("rows.db");
        copy(&source, &untouched);
        let rows = count(&Connection::open(&untouched).expect("a database"), "kine");
        let (mut kines, mut ours) = (0, 0);
        for what in ["write", "sync"] {
            for spared in spared() {
                let name = source.file_stem().expect("a name").to_string_lossy();
                let database = dir.join(&format!("{name}-{what}-{spared}.db"));
                copy(&source, &database);
                if start_with_fault(&database, &library, what, KILL, spared) == End::Serves {
                    break;
                }
                let left = dir.join("left.db");
                copy(&database, &left);
                if is_kines(&left, rows) {
                    kines += 1
                } else {
                    ours += 1
                }
                let server = Server::kine(&database);
                assert_eq!(tells(&server), expected, "killed after {spared} calls of {what}");
                server.stop();
            }
        }
        assert!(kines > 1 && ours > 1, "{kines} were kine's, {ours} ours: the kills missed the commit");
    }
}

#[test]
fn a_takeover_without_room_leaves_kines_database_as_it_was() {
    let dir = Dir::new();
    let (library, expected) = (fault_library(&dir), expected(NEWEST));
    for source in journal_modes(&dir) {
        let untouched = dir.join("rows.db");
        copy(&source, &untouched);
        let rows = count(&Connection::open(&untouched).expect("a database"), "kine");
        let mut kines = 0;
        for spared in spared() {
            let name = source.file_stem().expect("a name").to_string_lossy();
            let database = dir.join(&format!("{name}-{spared}.db"));
            copy(&source, &database);
            match start_with_fault(&database, &library, "write", ENOSPC, spared) {
                End::Serves => break,
                End::Killed => panic!("nobody kills it"),
                End::Failed(said) => {
                    assert!(said.contains("full") && said.contains(text(&database)), "{said}");
                }
            }
            let left = dir.join("left.db");
            copy(&database, &left);
            kines += i32::from(is_kines(&left, rows));
            let server = Server::kine(&database);
            assert_eq!(tells(&server), expected, "full after {spared} writes");
            server.stop();
        }
        assert!(kines > 3, "{kines} were kine's");
    }
}
