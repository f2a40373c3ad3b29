//! The command line and the metrics of `kine`, beside a real kine.

use crate::process::{Ended, Face, ask, etcdctl, get, kines, same};
use conformance::server::free_port;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Flags of a help text with their variables.
fn flags(face: &Face) -> BTreeMap<String, Option<String>> {
    let Ended { status, stdout, .. } = face.run(&["--help"]);
    assert_eq!(status, Some(0));
    let mut flags = BTreeMap::<String, Option<String>>::new();
    let mut last = None;
    for line in stdout.lines() {
        let line = line.trim();
        if line.starts_with('-')
            && let Some(name) = line.split("--").nth(1)
        {
            let name: String =
                name.chars().take_while(|part| part.is_ascii_alphanumeric() || *part == '-').collect();
            last = Some(name.clone());
            flags.insert(name, None);
        }
        // kine: `[$KINE_ENDPOINT]`; ours: `[env: KINE_ENDPOINT=]`.
        if let Some(at) = line.find("KINE_")
            && let Some(flag) = last.as_ref().and_then(|last| flags.get_mut(last))
        {
            let variable: String =
                line[at..].chars().take_while(|part| part.is_ascii_uppercase() || *part == '_').collect();
            *flag = Some(variable);
        }
    }
    flags
}

#[test]
fn every_flag_of_kine_is_there_with_its_variable() {
    let faces = kines();
    let [theirs, ours] = [flags(&faces[0]), flags(&faces[1])];
    assert!(theirs.len() > 35, "{theirs:?}");
    // Secrets, and what is refused, are not shown, but taken.
    let hidden = ["metrics-enable-profiling", "s3-secret-key", "s3-session-token"];
    for (name, variable) in &theirs {
        if hidden.contains(&name.as_str()) {
            let Ended { status, stderr, .. } =
                faces[1].run(&[format!("--{name}=false"), "--version".to_owned()]);
            assert_eq!(status, Some(0), "--{name}: {stderr}");
        } else {
            assert_eq!(ours.get(name), Some(variable), "--{name}");
        }
    }
    let own: BTreeSet<_> =
        ours.keys().filter(|name| !theirs.contains_key(*name)).map(String::as_str).collect();
    assert_eq!(own, BTreeSet::from(["cache-mib", "quota-backend-bytes", "unsafe-no-fsync"]));
}

#[test]
fn a_mistake_ends_with_the_same_status() {
    let faces = kines();
    let listen = ["--listen-address=127.0.0.1:0", "--metrics-bind-address=0"];
    for flags in [
        vec!["--nope"],
        vec!["stray"],
        vec!["--listen-address"],
        vec!["--log-format=x"],
        vec!["--compact-interval=x"],
        vec!["--compact-batch-size=5"],
        vec!["--endpoint=nowhere://x"],
        vec!["--endpoint=x"],
        vec!["--version"],
        vec!["--help"],
    ] {
        let flags = [flags.as_slice(), &listen].concat();
        let status = same(&faces, |face| face.run(&flags).status);
        assert!(status.is_some(), "{flags:?}");
    }
    let version = faces.each_ref().map(|face| face.run(&["-v"]).stdout);
    assert!(version.iter().all(|line| line.starts_with("kine version v")), "{version:?}");
}

/// Starts one with metrics; both addresses.
fn start(face: &Face, flags: &[&str]) -> (crate::process::Running, u16, SocketAddr) {
    let (port, metrics) = (free_port().expect("a port"), free_port().expect("a port"));
    let mut all = vec![
        format!("--listen-address=127.0.0.1:{port}"),
        format!("--metrics-bind-address=127.0.0.1:{metrics}"),
    ];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    (face.start_kine(&all), port, ([127, 0, 0, 1], metrics).into())
}

#[test]
fn kines_own_metrics_are_there_after_the_same_load() {
    let families = kines().map(|face| {
        let (running, port, metrics) = start(&face, &["--slow-sql-threshold=-1s"]);
        let endpoint = format!("--endpoints=127.0.0.1:{port}");
        let dir = face.file("");
        let got = etcdctl(&dir, &[&endpoint, "get", "x"]);
        assert_eq!(got.status, Some(0), "{}: {}", face.name, got.stderr);
        let text = get(metrics, "/metrics").body;
        running.end();
        let names = text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.to_owned()));
        names.filter(|name| name.starts_with("kine_")).collect::<BTreeSet<_>>()
    });
    let [theirs, ours] = families;
    assert!(theirs.contains("kine_sql_total counter"), "{theirs:?}");
    assert!(theirs.is_subset(&ours), "left: kine {theirs:?}, right: ours {ours:?}");
    for name in ["kine_compact_total counter", "kine_insert_errors_total counter"] {
        assert!(ours.contains(name), "no {name}");
    }
}

#[test]
fn metrics_are_where_kine_has_them_and_pages_of_others_are_kept_out() {
    let faces = kines();
    let (running, port, metrics) = start(&faces[1], &[]);
    assert_eq!(get(metrics, "/metrics").status, 200);
    assert_eq!(get(metrics, "/v3/kv/range").status, 404);
    let client: SocketAddr = ([127, 0, 0, 1], port).into();
    let websocket = "GET /v3/watch HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answer = ask(client, &format!("{websocket}Connection: Upgrade\r\n"), "");
    assert_eq!(answer.status, 403, "{answer:?}");
    running.end();
}
