//! Our snapshot files under the real etcd and etcdutl, and theirs under our reader.
//!
//! Needs `etcd`, `etcdctl` and `etcdutl` in `K0S_TEST_BIN_DIR`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use kine_rs::bbolt::etcd::{
    Image, KeyValueLen, LeaseRecord, Meta, RecordKey, SnapshotPlanner, SnapshotReader, SnapshotWriter,
    TrailerPolicy,
};
use prost::Message;
use proto::etcdserverpb::AlarmMember;
use proto::mvccpb::KeyValue;
use serde_json::Value;

const READY_WITHIN: Duration = Duration::from_secs(60);
const ROOT: [&str; 2] = ["--user", "root:secret"];

type Records = Vec<(RecordKey, Vec<u8>)>;

/// A temporary directory that stays, with its path printed, when the test fails.
struct Dir(Option<tempfile::TempDir>);

impl Dir {
    fn new() -> Self {
        Self(Some(tempfile::tempdir().expect("a temporary directory")))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.as_ref().expect("until drop").path().join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

/// A running real etcd.
struct Etcd {
    child: Child,
    endpoint: String,
}

impl Etcd {
    fn start(data_dir: &Path, peer_url: &str) -> Self {
        let endpoint = free_url();
        let log = File::create(data_dir.with_extension("log")).expect("a log file");
        let child = Command::new(binary("etcd"))
            .args(["--name", "m1", "--data-dir"])
            .arg(data_dir)
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url])
            .args(["--initial-cluster", &format!("m1={peer_url}")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        let mut etcd = Self { child, endpoint };
        etcd.wait_until_ready();
        etcd
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            // A read of a key works with and without authentication, as an answer or as a refusal.
            let output = self.command(&["get", "ready"]).output().expect("etcdctl runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() || text.contains("user name is empty") {
                return;
            }
            assert!(self.child.try_wait().expect("our child").is_none(), "etcd ended: {text}");
            assert!(Instant::now() < deadline, "etcd is not ready: {text}");
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("etcdctl"));
        command.args(["--endpoints", &self.endpoint, "--command-timeout", "30s"]).args(args);
        command
    }

    fn ctl(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(&[args, &["-w", "json"]].concat())).expect("JSON")
    }

    /// Puts these pairs in one transaction.
    fn put_all(&self, pairs: &[(String, String)]) {
        let puts: String = pairs.iter().map(|(key, value)| format!("put {key} {value}\n")).collect();
        let mut child =
            self.command(&["txn"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(format!("\n{puts}\n\n").as_bytes()).expect("etcdctl reads");
        drop(stdin);
        assert!(child.wait().expect("etcdctl ends").success());
    }

    /// All keys as etcdctl shows them.
    fn content(&self, user: &[&str]) -> BTreeMap<Vec<u8>, KeyValue> {
        let answer = self.json(&[&["get", "", "--from-key"], user].concat());
        let field = |kv: &Value, name: &str| kv[name].as_i64().unwrap_or(0);
        let bytes = |kv: &Value, name: &str| {
            base64::engine::general_purpose::STANDARD.decode(kv[name].as_str().unwrap_or("")).expect("base64")
        };
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        let content = kvs.iter().map(|kv| KeyValue {
            key: bytes(kv, "key").into(),
            value: bytes(kv, "value").into(),
            create_revision: field(kv, "create_revision"),
            mod_revision: field(kv, "mod_revision"),
            version: field(kv, "version"),
            lease: field(kv, "lease"),
        });
        content.map(|kv| (kv.key.to_vec(), kv)).collect()
    }

    fn stop(mut self) {
        run(Command::new("kill").arg(self.child.id().to_string()));
        self.child.wait().expect("our child");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("etcd {}: {error}", self.child.id());
        }
    }
}

fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("K0S_TEST_BIN_DIR").expect("K0S_TEST_BIN_DIR has etcd, etcdctl and etcdutl");
    Path::new(&dir).join(name)
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn utl(args: &[&str]) -> String {
    run(Command::new(binary("etcdutl")).args(args))
}

fn status(file: &Path) -> Value {
    let text = utl(&["snapshot", "status", file.to_str().expect("UTF-8"), "-w", "json"]);
    serde_json::from_str(&text).expect("JSON")
}

/// Restores a snapshot with etcdutl and starts etcd on it.
fn restore(file: &Path, data_dir: &Path) -> Etcd {
    let peer_url = free_url();
    utl(&[
        "snapshot",
        "restore",
        file.to_str().expect("UTF-8"),
        "--data-dir",
        data_dir.to_str().expect("UTF-8"),
        "--name",
        "m1",
        "--initial-cluster",
        &format!("m1={peer_url}"),
        "--initial-advertise-peer-urls",
        &peer_url,
    ]);
    Etcd::start(data_dir, &peer_url)
}

fn read(file: &Path, trailer: TrailerPolicy) -> (Image, Records) {
    let reader =
        SnapshotReader::open(File::open(file).expect("a snapshot"), trailer).expect("etcd's snapshot");
    let (mut found, mut records) = (Vec::new(), reader.records());
    while let Some(record) = records.next().expect("etcd's snapshot") {
        found.push((record.key, record.value.to_vec()));
    }
    (reader.image().clone(), found)
}

fn write(file: &Path, image: &Image, records: &Records) {
    let mut planner = SnapshotPlanner::new(image).expect("a good image");
    for (key, value) in records {
        planner.record(*key, value.len()).expect("allowed lengths");
    }
    let out = BufWriter::new(File::create(file).expect("a new file"));
    let mut writer =
        SnapshotWriter::new(out, planner.finish().expect("a good image")).expect("the first pages");
    for (key, value) in records {
        writer.record(*key, value).expect("as planned");
    }
    let (mut out, digest) = writer.finish().expect("as planned");
    out.write_all(&digest).and_then(|()| out.flush()).expect("the trailer");
}

/// The last version of every key that is not deleted.
fn latest(records: &Records) -> BTreeMap<Vec<u8>, KeyValue> {
    let mut content = BTreeMap::new();
    for (key, value) in records {
        let kv = KeyValue::decode(value.as_slice()).expect("a KeyValue");
        if key.tombstone {
            content.remove(&kv.key[..]);
        } else {
            assert_eq!(kv.mod_revision, key.main);
            content.insert(kv.key.to_vec(), kv);
        }
    }
    content
}

/// Fills a real etcd with everything that has a place in a snapshot, and saves one.
fn populated(dir: &Dir) -> (Etcd, PathBuf) {
    let etcd = Etcd::start(&dir.join("source"), &free_url());
    for round in 0..40 {
        let pairs: Vec<_> = (0..100).map(|n| (format!("key/{n:03}"), format!("value-{round}-{n}"))).collect();
        etcd.put_all(&pairs);
    }
    let lease = etcd.json(&["lease", "grant", "3600"])["ID"].as_i64().expect("an id");
    etcd.ctl(&["put", "leased", "v", "--lease", &format!("{lease:x}")]);
    for n in 1..60 {
        etcd.put_all(&[(format!("long/{n}"), "x".repeat(n * 700))]);
    }
    etcd.put_all(&[("longest".into(), "y".repeat(1_400_000))]);
    etcd.ctl(&["del", "key/01", "--prefix"]);
    etcd.ctl(&["compact", "20"]);
    etcd.ctl(&["role", "add", "reader"]);
    etcd.ctl(&["role", "grant-permission", "reader", "read", "key/", "key0"]);
    etcd.ctl(&["role", "add", "root"]);
    for (user, role) in [("root:secret", "root"), ("alice:pw", "reader")] {
        etcd.ctl(&["user", "add", user]);
        etcd.ctl(&["user", "grant-role", user.split(':').next().expect("a name"), role]);
    }
    etcd.ctl(&["auth", "enable"]);
    let file = dir.join("real.db");
    etcd.ctl(&[&ROOT[..], &["snapshot", "save", file.to_str().expect("UTF-8")]].concat());
    (etcd, file)
}

#[test]
fn etcds_snapshot_is_read_and_ours_restores_all_of_it() {
    let dir = Dir::new();
    let (etcd, real) = populated(&dir);
    let content = etcd.content(&ROOT);

    let (image, records) = read(&real, TrailerPolicy::Required);
    assert_eq!(latest(&records), content);
    assert_eq!(image.unknown, [""; 0]);
    assert_eq!(image.meta.scheduled_compact, Some(20));
    assert_eq!(image.auth.enabled, Some(true));
    assert_eq!(image.users.iter().map(|user| &user.name[..]).collect::<Vec<_>>(), [&b"alice"[..], b"root"]);
    assert_eq!(image.roles.len(), 2);
    assert_eq!(image.leases.iter().map(|lease| lease.ttl).collect::<Vec<_>>(), [3600]);
    let members = etcd.json(&[&["member", "list"], &ROOT[..]].concat());
    assert_eq!(Some(image.members[0].id), members["members"][0]["ID"].as_u64());
    assert_eq!(image.members[0].name, "m1");

    // The same content in our file has the same hash: names, keys and values of all buckets in order.
    let ours = dir.join("ours.db");
    write(&ours, &image, &records);
    let (their_status, our_status) = (status(&real), status(&ours));
    for field in ["hash", "revision", "totalKey", "version"] {
        assert_eq!(our_status[field], their_status[field], "{field}");
    }
    assert_eq!(our_status["totalKey"].as_u64(), Some(content.len() as u64));

    let restored = restore(&ours, &dir.join("restored"));
    assert_eq!(restored.content(&ROOT), content);
    assert_eq!(
        restored.json(&[&["lease", "list"], &ROOT[..]].concat())["leases"],
        etcd.json(&[&["lease", "list"], &ROOT[..]].concat())["leases"],
    );
    let alice = ["--user", "alice:pw"];
    assert_eq!(
        restored.ctl(&[&alice[..], &["get", "key/000", "--print-value-only"]].concat()),
        "value-39-0\n"
    );
    let denied = restored.command(&[&alice[..], &["get", "leased"]].concat()).output().expect("etcdctl runs");
    assert!(String::from_utf8_lossy(&denied.stderr).contains("permission denied"));
    let old = restored.ctl(&[&ROOT[..], &["get", "key/010", "--rev", "30", "--print-value-only"]].concat());
    assert_eq!(old, "value-28-10\n");
    let compacted = restored.command(&[&ROOT[..], &["get", "key/010", "--rev", "19"]].concat()).output();
    let compacted = compacted.expect("etcdctl runs").stderr;
    assert!(String::from_utf8_lossy(&compacted).contains("required revision has been compacted"));

    // etcdutl changes the file it hashes, so this comes last.
    let hashkv = |file: &Path| utl(&["hashkv", file.to_str().expect("UTF-8")]);
    assert_eq!(hashkv(&ours), hashkv(&real));

    // A data directory's file needs no digest.
    let at_rest = dir.join("restored/member/snap/db");
    restored.stop();
    let (after, records) = read(&at_rest, TrailerPolicy::Skipped);
    assert_eq!(latest(&records), content);
    assert_eq!(after.leases, image.leases);
    etcd.stop();
}

#[test]
fn damage_on_any_page_of_etcds_file_is_an_error_or_harmless() {
    let dir = Dir::new();
    let (etcd, real) = populated(&dir);
    etcd.stop();
    let good = std::fs::read(real).expect("the snapshot");
    let mut bad = good.clone();
    // The fields of a page's header and of its first elements, in turn: every page has other ones.
    let fields = [0, 8, 10, 12, 16, 20, 24, 28, 33, 48, 56, 64, 100, 2000];
    for page in 0..good.len() / 4096 {
        for byte in [fields[page % fields.len()], fields[(page * 5 + 3) % fields.len()]] {
            let at = page * 4096 + byte;
            bad[at] ^= 1 << (page % 8);
            if let Ok(reader) = SnapshotReader::open(&bad[..], TrailerPolicy::Skipped) {
                let mut records = reader.records();
                while let Ok(Some(_)) = records.next() {}
            }
            bad[at] = good[at];
        }
    }
}

/// A store of `keys` keys with `versions` versions each, the last ones deleted here and there.
fn large(keys: i64, versions: i64) -> Records {
    let mut records = Vec::new();
    for version in 1..=versions {
        for key in 0..keys {
            let main = 1 + (version - 1) * keys + key + 1;
            let tombstone = version == versions && key % 10 == 0;
            let mut kv = KeyValue { key: format!("k/{key:07}").into(), ..KeyValue::default() };
            if !tombstone {
                let value_len = if key % 1000 == 7 { 20_000 } else { key % 300 };
                kv.value = vec![b'v'; value_len as usize].into();
                (kv.create_revision, kv.mod_revision, kv.version) = (key + 2, main, version);
                kv.lease = if key % 100 == 1 { 77 } else { 0 };
            }
            records.push((RecordKey { main, sub: 0, tombstone }, kv.encode_to_vec()));
        }
    }
    records
}

#[test]
fn etcd_compacts_deletes_and_defragments_what_we_wrote() {
    let dir = Dir::new();
    let records = large(20_000, 5);
    let image = Image {
        meta: Meta { consistent_index: 1, term: 1, storage_version: Some("3.7.0".into()), ..Meta::default() },
        leases: vec![LeaseRecord { id: 77, ttl: 3600, remaining_ttl: 0 }],
        ..Image::default()
    };
    let file = dir.join("large.db");
    write(&file, &image, &records);
    let found = status(&file);
    assert_eq!(found["revision"], 100_001);
    assert_eq!(found["totalKey"], 18_000);

    let etcd = restore(&file, &dir.join("restored"));
    assert_eq!(etcd.content(&[]), latest(&records));
    // From the front, from the middle and in all: every page of the tree is rewritten, merged or freed by bbolt.
    etcd.ctl(&["compact", "30000", "--physical"]);
    etcd.ctl(&["lease", "revoke", "4d"]);
    etcd.ctl(&["del", "k/0005", "--prefix"]);
    etcd.ctl(&["put", "new", "v"]);
    etcd.ctl(&["compact", "100004", "--physical"]);
    let saved = dir.join("saved.db");
    etcd.ctl(&["snapshot", "save", saved.to_str().expect("UTF-8")]);
    status(&saved);
    let (_, records) = read(&saved, TrailerPolicy::Required);
    assert_eq!(latest(&records), etcd.content(&[]));
    etcd.ctl(&["del", "", "--from-key"]);
    etcd.ctl(&["compact", "100005", "--physical"]);
    etcd.ctl(&["defrag"]);
    let empty = dir.join("empty.db");
    etcd.ctl(&["snapshot", "save", empty.to_str().expect("UTF-8")]);
    assert_eq!(status(&empty)["totalKey"], 0);
    let (image, records) = read(&empty, TrailerPolicy::Required);
    assert_eq!(image.leases, []);
    assert_eq!(latest(&records), BTreeMap::new());
    etcd.stop();
}

#[test]
fn a_store_without_keys_is_restored_with_its_alarm() {
    let dir = Dir::new();
    let file = dir.join("empty.db");
    let image = Image { alarms: vec![AlarmMember { member_id: 5, alarm: 1 }], ..Image::default() };
    write(&file, &image, &Vec::new());
    assert_eq!(status(&file)["totalKey"], 0);
    let etcd = restore(&file, &dir.join("restored"));
    assert_eq!(etcd.content(&[]), BTreeMap::new());
    let alarms = etcd.ctl(&["alarm", "list"]);
    assert_eq!(alarms.split_whitespace().collect::<Vec<_>>(), ["memberID:5", "alarm:NOSPACE"]);
    etcd.ctl(&["alarm", "disarm"]);
    etcd.ctl(&["put", "k", "v"]);
    assert_eq!(etcd.content(&[])[&b"k"[..]].mod_revision, 2);
    etcd.stop();
    let (image, _) = read(&dir.join("restored/member/snap/db"), TrailerPolicy::Skipped);
    assert_eq!(image.alarms, []);
}

#[test]
fn a_bumped_revision_is_a_record_without_content() {
    let dir = Dir::new();
    let kv =
        KeyValue { key: "k".into(), create_revision: 2, mod_revision: 2, version: 1, ..KeyValue::default() };
    let len =
        KeyValueLen { key_len: 1, create_revision: 2, mod_revision: 2, version: 1, ..KeyValueLen::default() };
    assert_eq!(len.encoded_len(), kv.encode_to_vec().len());
    let file = dir.join("one.db");
    write(
        &file,
        &Image::default(),
        &vec![(RecordKey { main: 2, sub: 0, tombstone: false }, kv.encode_to_vec())],
    );
    let data_dir = dir.join("restored");
    utl(&[
        "snapshot",
        "restore",
        file.to_str().expect("UTF-8"),
        "--data-dir",
        data_dir.to_str().expect("UTF-8"),
        "--bump-revision",
        "1000",
        "--mark-compacted",
    ]);
    let (image, records) = read(&data_dir.join("member/snap/db"), TrailerPolicy::Skipped);
    assert_eq!(image.meta.scheduled_compact, Some(1002));
    assert_eq!(records.last(), Some(&(RecordKey { main: 1002, sub: 0, tombstone: false }, Vec::new())));
}
