//! Snapshots in both directions: what one saved, the other serves, with the same hash.

use crate::servers::{Dir, Server, binary, free_url, run, stderr, text};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

fn utl(args: &[&str]) -> String {
    run(Command::new(binary("etcdutl")).args(args))
}

fn status(file: &Path) -> Value {
    serde_json::from_str(&utl(&["snapshot", "status", text(file), "-w", "json"])).expect("JSON")
}

fn restore(file: &Path, database: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kine"))
        .args(["snapshot", "restore", text(file), "--endpoint", &format!("sqlite://{}", database.display())])
        .args(options)
        .output()
        .expect("kine runs")
}

fn restored(file: &Path, database: &Path, options: &[&str]) -> Server {
    let output = restore(file, database, options);
    assert!(output.status.success(), "{}", stderr(&output));
    Server::kine(database)
}

fn restored_etcd(file: &Path, data_dir: &Path) -> Server {
    let peer_url = free_url();
    utl(&[
        "snapshot",
        "restore",
        text(file),
        "--data-dir",
        text(data_dir),
        "--name",
        "m1",
        "--initial-cluster",
        &format!("m1={peer_url}"),
        "--initial-advertise-peer-urls",
        &peer_url,
    ]);
    Server::etcd(data_dir, &peer_url)
}

/// Something of everything: history, deleted keys, several changes in a revision, a compaction, a lease, an alarm.
fn populate(server: &Server) {
    for round in 0..5 {
        for key in ["a", "b/1", "b/2", "c"] {
            server.ctl(&["put", key, &format!("{key} {round}")]);
        }
    }
    server.ctl(&["put", "large", &"x".repeat(100_000)]);
    server.ctl(&["del", "b/", "--prefix"]);
    server.ctl(&["put", "b/2", "back"]);
    let id = server.json(&["lease", "grant", "3600"])["ID"].as_i64().expect("a lease");
    server.ctl(&["put", "leased", "v", "--lease", &format!("{id:x}")]);
    // In the middle of the history of `c`, and of a deleted key's.
    server.ctl(&["compact", "9"]);
    server.ctl(&["del", "a"]);
}

/// That both have the same content, now and before, the same leases and the same hash.
fn assert_same(one: &Server, other: &Server) {
    let revision = one.json(&["get", "x"])["header"]["revision"].as_i64().expect("a revision");
    assert_eq!(other.json(&["get", "x"])["header"]["revision"], revision);
    for at in [9, 15, 21, 22, 23, revision] {
        assert_eq!(one.content(at), other.content(at), "revision {at}");
        // Of the compacted revision itself etcd may still know the hash from before.
        if at > 9 {
            assert_eq!(one.hash(at), other.hash(at), "hash of revision {at}");
        }
    }
    for server in [one, other] {
        let old = stderr(&server.try_ctl(&["get", "c", "--rev", "8"]));
        assert!(old.contains("required revision has been compacted"), "{old}");
    }
    let events = one.watch(&["", "--prefix"], 10, "DELETE\na\n");
    assert_eq!(events, other.watch(&["", "--prefix"], 10, "DELETE\na\n"));
    assert!(events.contains("DELETE\nb/1"), "{events}");
    let leases = |server: &Server| server.json(&["lease", "list"])["leases"].clone();
    assert_eq!(leases(one), leases(other));
    let lease = leases(one)[0].as_object().and_then(|lease| lease.values().next()?.as_i64());
    let id = format!("{:x}", lease.expect("a lease"));
    for server in [one, other] {
        let lease = server.ctl(&["lease", "timetolive", &id, "--keys"]);
        assert!(lease.contains("granted with TTL(3600s)") && lease.contains("leased"), "{lease}");
    }
}

#[test]
fn etcd_serves_what_we_saved() {
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    populate(&ours);
    let file = dir.join("snapshot.db");
    ours.ctl(&["snapshot", "save", text(&file)]);
    let found = status(&file);
    assert_eq!(found["revision"], ours.json(&["get", "x"])["header"]["revision"]);
    assert_eq!(found["totalKey"], 4);
    assert_eq!(found["version"], "3.7.0");
    let theirs = restored_etcd(&file, &dir.join("etcd"));
    assert_same(&ours, &theirs);
    theirs.ctl(&["put", "after", "v"]);
    theirs.stop();
    ours.stop();
}

#[test]
fn we_serve_what_etcd_saved() {
    let dir = Dir::new();
    let theirs = Server::etcd(&dir.join("etcd"), &free_url());
    populate(&theirs);
    let file = dir.join("snapshot.db");
    theirs.ctl(&["snapshot", "save", text(&file)]);
    let database = dir.join("state.db");
    let ours = restored(&file, &database, &[]);
    assert_same(&theirs, &ours);
    ours.kill();
    let ours = Server::kine(&database);
    assert_same(&theirs, &ours);
    ours.stop();

    // Never over something, and not without the digest unless told so.
    let before = std::fs::read(&database).expect("the database");
    let refused = stderr(&restore(&file, &database, &[]));
    assert!(refused.contains("is not empty") && refused.contains(text(&database)), "{refused}");
    assert!(std::fs::read(&database).expect("the database") == before);
    let bytes = std::fs::read(&file).expect("the snapshot");
    let bare = dir.join("bare.db");
    std::fs::write(&bare, &bytes[..bytes.len() - 32]).expect("a file");
    let refused = stderr(&restore(&bare, &dir.join("bare-state.db"), &[]));
    assert!(refused.contains("no SHA-256"), "{refused}");
    let ours = restored(&bare, &dir.join("bare-state.db"), &["--skip-hash-check"]);
    assert_same(&theirs, &ours);
    theirs.stop();
}

#[test]
fn users_and_roles_travel_with_the_keys() {
    const ROOT: [&str; 2] = ["--user", "root:secret"];
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    for args in [
        &["put", "a", "of alice"][..],
        &["put", "b", "of nobody"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "a"],
        &["role", "add", "root"],
        &["user", "add", "root:secret"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:pw"],
        &["user", "grant-role", "alice", "reader"],
        &["auth", "enable"],
    ] {
        ours.ctl(args);
    }
    let file = dir.join("snapshot.db");
    let save = |server: &Server, file: &Path| {
        server.ctl(&[&ROOT[..], &["snapshot", "save", text(file)]].concat());
    };
    save(&ours, &file);
    ours.stop();
    let check = |server: &Server| {
        assert!(stderr(&server.try_ctl(&["get", "a"])).contains("user name is empty"));
        let alice = |key| server.try_ctl(&["--user", "alice:pw", "get", key, "--print-value-only"]);
        assert_eq!(alice("a").stdout, b"of alice\n");
        assert!(stderr(&alice("b")).contains("permission denied"));
    };
    let theirs = restored_etcd(&file, &dir.join("etcd"));
    check(&theirs);
    let back = dir.join("back.db");
    save(&theirs, &back);
    theirs.stop();
    let ours = restored(&back, &dir.join("restored.db"), &[]);
    check(&ours);
    ours.stop();
}

#[test]
fn a_damaged_snapshot_leaves_nothing_behind() {
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    populate(&ours);
    let file = dir.join("snapshot.db");
    ours.ctl(&["snapshot", "save", text(&file)]);
    let mut bytes = std::fs::read(&file).expect("the snapshot");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 20].fill(0xff);
    std::fs::write(&file, &bytes).expect("a file");
    let database = dir.join("restored.db");
    let refused = stderr(&restore(&file, &database, &[]));
    assert!(refused.contains("SHA-256"), "{refused}");
    assert!(!database.exists());
}

#[test]
fn a_bumped_revision_hides_the_history() {
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    populate(&ours);
    let file = dir.join("snapshot.db");
    ours.ctl(&["snapshot", "save", text(&file)]);
    let content = ours.content(0);
    let revision = ours.json(&["get", "x"])["header"]["revision"].as_i64().expect("a revision");
    ours.stop();
    let half = stderr(&restore(&file, &dir.join("half.db"), &["--bump-revision", "1000"]));
    assert!(half.contains("--mark-compacted"), "{half}");

    let database = dir.join("bumped.db");
    let bumped = restored(&file, &database, &["--bump-revision", "1000", "--mark-compacted"]);
    assert_eq!(bumped.content(0), content);
    assert_eq!(bumped.json(&["get", "x"])["header"]["revision"], revision + 1000);
    let old = stderr(&bumped.try_ctl(&["get", "c", "--rev", &revision.to_string()]));
    assert!(old.contains("required revision has been compacted"), "{old}");
    // No row says so, but what is saved from it does not go back either.
    bumped.stop();
    let bumped = Server::kine(&database);
    let again = dir.join("again.db");
    bumped.ctl(&["snapshot", "save", text(&again)]);
    let theirs = restored_etcd(&again, &dir.join("etcd"));
    assert_eq!(theirs.json(&["get", "x"])["header"]["revision"], revision + 1000);
    assert_eq!(theirs.content(0), content);
    assert_eq!(theirs.hash(0), bumped.hash(0));
    theirs.stop();
    bumped.stop();
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn snapshots_are_whole_while_keys_change_and_history_goes() {
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an assertion fails.
        let end = End(&done);
        scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                for key in 0..10 {
                    ours.ctl(&["put", &format!("key/{key}"), &"v".repeat(20_000 + round)]);
                }
                let revision = ours.json(&["get", "x"])["header"]["revision"].to_string();
                ours.ctl(&["compact", &revision]);
            }
        });
        ours.ctl(&["put", "key/0", "first"]);
        for n in 0..6 {
            let file = dir.join(&format!("snapshot-{n}.db"));
            ours.ctl(&["snapshot", "save", text(&file)]);
            let (theirs, database) = (status(&file), dir.join(&format!("restored-{n}.db")));
            let copy = restored(&file, &database, &[]);
            assert_eq!(copy.json(&["get", "x"])["header"]["revision"], theirs["revision"]);
            assert_eq!(copy.content(0).as_array().map_or(0, Vec::len) as u64, theirs["totalKey"]);
            copy.stop();
        }
        drop(end);
    });
    ours.stop();
}

#[test]
fn leadership_and_downgrades_are_answered_as_by_an_etcd_of_one_member() {
    let dir = Dir::new();
    let ours = Server::kine(&dir.join("state.db"));
    let theirs = Server::etcd(&dir.join("etcd"), &free_url());
    for args in [
        &["downgrade", "validate", "3.6"][..],
        &["downgrade", "validate", "3.6.2"],
        &["downgrade", "validate", "3.5"],
        &["downgrade", "validate", "3.7"],
        &["downgrade", "validate", "abc"],
        &["downgrade", "validate", "3"],
        &["downgrade", "cancel"],
        &["downgrade", "enable", "3.5"],
        &["downgrade", "enable", "3.6"],
        &["downgrade", "enable", "3.6"],
        &["move-leader", "1234"],
    ] {
        let answer = |server: &Server| {
            let output = server.try_ctl(args);
            let error = stderr(&output).lines().rfind(|line| line.starts_with("Error:")).map(str::to_owned);
            (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"), error)
        };
        assert_eq!(answer(&ours), answer(&theirs), "{args:?}");
    }
    theirs.stop();
    // It outlives a restart, and ends.
    let info = |server: &Server| server.json(&["endpoint", "status"])[0]["Status"]["downgradeInfo"].clone();
    assert_eq!(info(&ours)["targetVersion"], "3.6.0");
    ours.kill();
    let ours = Server::kine(&dir.join("state.db"));
    assert_eq!(info(&ours)["enabled"], true);
    ours.ctl(&["downgrade", "cancel"]);
    assert_eq!(info(&ours)["enabled"], Value::Null);
    let leader = ours.json(&["endpoint", "status"])[0]["Status"]["leader"].as_u64().expect("an id");
    // etcdctl itself asks nobody when the target leads.
    let moved = ours.ctl(&["move-leader", &format!("{leader:x}")]);
    assert!(moved.contains("already the leader") || moved.contains("transferred"), "{moved}");
    ours.stop();
}
