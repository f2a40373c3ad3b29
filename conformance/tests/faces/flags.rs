//! The command line of `etcd`: which flags there are, what is refused and how, and what the flags come to.

use crate::process::{Ended, Face, Ports, READY, Running, ask, etcdctl, etcds, get, post, same};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;

/// A flag in a help text: the heading it is under, its name, its default if it shows one.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    heading: String,
    name: String,
    default: Option<String>,
}

/// Shown by etcd's help, but taken no more.
const ONLY_SHOWN: [&str; 2] = ["discovery", "discovery-proxy"];

fn help(face: &Face) -> Vec<Listed> {
    let Ended { status, stdout, stderr } = face.run(&["--help"]);
    assert_eq!(status, Some(0), "{stderr}");
    let mut listed = Vec::new();
    let mut heading = "";
    for line in stdout.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            heading = name;
        } else if let Some(flag) = line.strip_prefix("  --") {
            let (name, default) =
                flag.split_once(' ').map_or((flag, None), |(name, rest)| (name, Some(rest)));
            let default = default.map(|default| default.trim_matches('\'').to_owned());
            listed.push(Listed { heading: heading.to_owned(), name: name.to_owned(), default });
        }
    }
    listed
}

/// What a program says of why it does not start: its status, and the line about flags or the error it logged last.
fn refusal(face: &Face, flags: &[&str]) -> (Option<i32>, String) {
    let Ended { status, stderr, .. } = face.run(flags);
    let logged = stderr.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let error = logged.filter_map(|line| Some(line["error"].as_str()?.to_owned())).next();
    let text = match status {
        Some(2) => stderr.lines().next().unwrap_or_default().to_owned(),
        Some(_) => error.unwrap_or_else(|| panic!("{} says nothing: {stderr}", face.name)),
        None => format!("{} starts", face.name),
    };
    (status, text)
}

#[test]
fn the_help_has_the_same_headings_flags_and_defaults() {
    let faces = etcds();
    let [theirs, ours] = [help(&faces[0]), help(&faces[1])];
    let known: Vec<_> = theirs.iter().filter(|flag| !ONLY_SHOWN.contains(&flag.name.as_str())).collect();
    let place = |flag: &Listed| (flag.heading.clone(), flag.name.clone());
    let [their_places, our_places]: [Vec<_>; 2] =
        [known.iter().map(|flag| place(flag)).collect(), ours.iter().map(place).collect()];
    assert_eq!(their_places, our_places);
    // etcd shows a name of Go's for one default, and an empty text for another that is not empty.
    let differ = ["max-concurrent-streams", "backend-batch-interval"];
    for (their, our) in known.iter().zip(&ours).filter(|(their, _)| !differ.contains(&their.name.as_str())) {
        if their.default.is_some() {
            assert_eq!(their.default, our.default, "--{}", their.name);
        }
    }
}

#[test]
fn every_flag_is_taken_by_both_and_gone_ones_by_none() {
    let faces = etcds();
    let value = |flag: &Listed| match (flag.name.as_str(), &flag.default) {
        ("data-dir", _) => "x".to_owned(),
        (_, default) => default.clone().unwrap_or_default(),
    };
    let mut flags: Vec<String> =
        help(&faces[1]).iter().map(|flag| format!("--{}={}", flag.name, value(flag))).collect();
    flags.extend(
        ["--v", "--snapshot", "--test.outputdir=x", "--cluster-active-size=9", "--version"].map(String::from),
    );
    same(&faces, |face| face.run(&flags).status);
    let gone = [
        "--discovery=x",
        "--discovery-proxy=x",
        "--experimental-max-learners=1",
        "--enable-v2",
        "--proxy=off",
    ];
    for flag in gone {
        let said = same(&faces, |face| refusal(face, &[flag]));
        assert_eq!(said.0, Some(2), "{said:?}");
    }
}

#[test]
fn the_version_has_the_same_lines() {
    let names = |face: &Face| {
        let Ended { status, stdout, .. } = face.run(&["--version"]);
        let names: Vec<_> =
            stdout.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect();
        let of = |name: &str| stdout.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        (status, names, of("etcd Version"), of("Go OS/Arch"))
    };
    same(&etcds(), names);
}

#[test]
fn what_is_refused_is_refused_in_the_same_words_and_with_the_same_status() {
    let faces = etcds();
    // Never the ports of another etcd on this machine.
    let peer = "--listen-peer-urls=http://127.0.0.1:0";
    let client = "--listen-client-urls=http://127.0.0.1:0";
    let c = "--advertise-client-urls=http://127.0.0.1:1";
    let cases: &[&[&str]] = &[
        &["--nope"],
        &["---name"],
        &["--name"],
        &["extra"],
        &["--max-txn-ops=x"],
        &["--max-txn-ops=-1"],
        &["--quota-backend-bytes=99999999999999999999"],
        &["--max-concurrent-streams=x"],
        &["--max-concurrent-streams=4294967296"],
        &["--client-cert-auth=maybe"],
        &["--grpc-keepalive-interval=5"],
        &["--initial-cluster-state=old"],
        &["--discovery-fallback=x"],
        &["--discovery-fallback=proxy"],
        &["--v2-deprecation=not-yet"],
        &["--feature-gates=Nope=true"],
        &["--feature-gates=LeaseCheckpoint"],
        &["--feature-gates=LeaseCheckpoint=x"],
        &["--feature-gates=LeaseCheckpointPersist=true"],
        &["--listen-client-urls=127.0.0.1:1"],
        &["--listen-client-urls=localhost:1"],
        &["--listen-client-urls=http://127.0.0.1"],
        &["--listen-client-urls=http://127.0.0.1:1/x"],
        &["--listen-client-urls=http://127.0.0.1:1,"],
        &["--cors=nowhere"],
        &["--cors="],
        &["--listen-client-urls=http://name:1", c],
        &["--listen-client-urls=http://:1", c],
        &["--listen-client-urls=http://127.0.0.1:0"],
        &["--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://:1"],
        &["--initial-advertise-peer-urls=http://:1"],
        &["--listen-client-urls=https://127.0.0.1:0", c],
        &["--listen-client-urls=unixs://socket", c],
        &["--listen-client-urls=http://127.0.0.1:0", c, "--listen-client-http-urls=http://127.0.0.1:0"],
        &["--heartbeat-interval=0"],
        &["--election-timeout=0"],
        &["--heartbeat-interval=500"],
        &["--election-timeout=60000"],
        &["--compact-hash-check-time=0s"],
        &["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=-1"],
        &["--auto-compaction-mode="],
        &["--auto-compaction-mode=x"],
        &["--auto-compaction-retention=x", client, c],
        &["--auto-compaction-retention=-1", client, c],
        &["--tls-min-version=TLS1.1"],
        &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        &["--cipher-suites=x"],
        &["--discovery-token=x"],
        &["--discovery-endpoints=x", "--initial-cluster=a=http://127.0.0.1:1"],
        &["--discovery-srv=x.invalid", "--initial-cluster=a=http://127.0.0.1:1"],
        &["--initial-cluster=a=http://127.0.0.1:1", client, c],
        &["--logger=x"],
        &["--logger=capnslog"],
        &["--log-format=x"],
        &["--log-outputs=default,stderr"],
        &["--enable-log-rotation"],
        &["--enable-log-rotation", "--log-outputs=a,b"],
        &["--config-file=/nonexistent"],
    ];
    for case in cases {
        let case = [&[peer], *case].concat();
        let said = same(&faces, |face| refusal(face, &case));
        assert!(said.0.is_some(), "{case:?}: {said:?}");
    }
    // The same beginning, and another parser's or our own words about the rest.
    let rotation = "--log-rotation-config-json";
    let begin = [
        (
            vec!["--enable-log-rotation", "--log-outputs=a", rotation, "{"],
            "improperly formatted log rotation config: ",
        ),
        (
            vec!["--enable-log-rotation", "--log-outputs=a", rotation, r#"{"maxsize":"a"}"#],
            "invalid log rotation config: ",
        ),
        (
            vec!["--initial-cluster=default=http://127.0.0.1:1", peer, client, c],
            "--initial-cluster has default=http://127.0.0.1:1 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380",
        ),
    ];
    for (flags, beginning) in begin {
        for face in &faces {
            let said = refusal(face, &flags);
            assert!(said.0 == Some(1) && said.1.starts_with(beginning), "{}: {said:?}", face.name);
        }
    }
    let level = same(&faces, |face| face.run(&["--log-level=x"]).status);
    assert_eq!(level, Some(2));
}

#[test]
fn a_variable_beside_its_flag_is_refused_and_a_wrong_one_too() {
    let faces = etcds();
    let said = |face: &Face, variable: &str, value: &str, flags: &[&str]| {
        let mut command = face.command(flags);
        command.env(variable, value);
        let Ended { status, stderr, .. } = face.run_command(command);
        let lines: Vec<Value> = stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let shadowed =
            lines.iter().find(|line| !line["environment-variable"].is_null() && line["level"] != "warn");
        let error = lines.iter().rev().find_map(|line| line["error"].as_str().map(str::to_owned));
        (status, shadowed.map(|line| line["msg"].clone()), error)
    };
    let shadowed = same(&faces, |face| said(face, "ETCD_NAME", "x", &["--name=y"]));
    assert!(shadowed.0 == Some(1) && shadowed.1.is_some(), "{shadowed:?}");
    let wrong = same(&faces, |face| said(face, "ETCD_MAX_TXN_OPS", "x", &[]));
    assert_eq!(wrong.2.as_deref(), Some("invalid value \"x\" for ETCD_MAX_TXN_OPS: parse error"));
    // Images of etcd set it; it is no flag.
    let version = same(&faces, |face| said(face, "ETCD_VERSION", "v3", &["--logger=x"]));
    assert_eq!(version.2.as_deref(), Some("unknown logger option \"x\""));
}

fn members(running: &Running, ports: Ports) -> Value {
    let members = post(ports.client(), "/v3/cluster/member/list", "{}");
    assert!(members["members"].is_array(), "{members}: {}", running.log());
    members
}

#[test]
fn the_same_flags_make_the_same_ids_which_stay() {
    let ports = Ports::new();
    let first = ["--name=default", "--initial-cluster-token=mine"];
    let answers = same(&etcds(), |face| {
        let mut all = Vec::new();
        // Flags of the first start are nothing to the second.
        for flags in [
            first.as_slice(),
            &["--initial-cluster-token=other", "--initial-cluster=x=http://127.0.0.1:1"],
            &["--force-new-cluster"],
        ] {
            let running = face.start(ports, flags);
            all.push(members(&running, ports));
            all.push(post(ports.client(), "/v3/kv/put", r#"{"key":"YQ==","value":"Yg=="}"#));
            running.end();
        }
        all
    });
    assert_eq!(answers[0]["members"], answers[4]["members"]);
    assert_eq!(answers[5]["header"]["revision"], json!("4"), "force-new-cluster keeps what is there");
}

#[test]
fn peer_urls_are_those_of_the_first_start_until_they_are_updated() {
    let ports = Ports::new();
    let moved = "--initial-advertise-peer-urls=http://127.0.0.1:1";
    // What both take as URLs of a member: the form is the clients' to check.
    let updates = [
        json!([format!("http://{}", ports.peer())]),
        json!(["http://b:2", "http://a:1"]),
        json!(["b", ""]),
        json!([]),
    ];
    let answers = same(&etcds(), |face| {
        let mut all = Vec::new();
        let mut running = face.start(ports, &[]);
        let id = members(&running, ports)["members"][0]["ID"].clone();
        // Which forbids no update.
        let alarm = json!({ "action": "ACTIVATE", "alarm": "NOSPACE", "memberID": id });
        post(ports.client(), "/v3/maintenance/alarm", &alarm.to_string());
        for urls in &updates {
            // Flags of a later start change nothing, neither before the first update nor after one.
            running.end();
            running = face.start(ports, &[moved]);
            all.push(members(&running, ports));
            let update = |id: &Value| {
                let update = json!({ "ID": id, "peerURLs": urls }).to_string();
                post(ports.client(), "/v3/cluster/member/update", &update)
            };
            all.push(update(&json!("1"))["message"].clone());
            all.push(update(&id));
            all.push(members(&running, ports));
            all.push(get(ports.peer(), "/members").body.into());
            all.push(post(ports.client(), "/v3/kv/range", r#"{"key":"YQ=="}"#)["header"]["revision"].clone());
            // No URLs are null there, and an empty list here.
            let in_snapshot =
                *urls == json!([]) || snapshot_has(face, ports, &format!("\"peerURLs\":{urls},"));
            all.push(in_snapshot.into());
        }
        running.end();
        running = face.start(ports, &[moved]);
        all.push(members(&running, ports));
        all.push(get(ports.peer(), "/members").body.into());
        all
    });
    assert_eq!(answers[0]["members"][0]["peerURLs"], updates[0]);
    assert_eq!(answers[1], json!("etcdserver: member not found"));
    assert_eq!(answers[2]["members"], answers[3]["members"]);
    assert_eq!((&answers[5], &answers[6]), (&json!("1"), &json!(true)), "the revision, the snapshot");
    assert_eq!(answers[14]["members"][0]["peerURLs"], updates[1], "kept over a restart");
}

/// Whether this text is in a snapshot of it.
fn snapshot_has(face: &Face, ports: Ports, text: &str) -> bool {
    let (endpoint, file) = (format!("--endpoints={}", ports.client()), face.file("snapshot.db"));
    let saved = etcdctl(file.parent().expect("a directory"), &[&endpoint, "snapshot", "save", "snapshot.db"]);
    assert_eq!(saved.status, Some(0), "{}", saved.stderr);
    let content = std::fs::read(file).expect("saved");
    content.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn other_flags_make_other_ids() {
    let id = |flags: &[&str]| {
        let (ports, faces) = (Ports::new(), etcds());
        let running = faces[1].start(ports, flags);
        members(&running, ports)["header"]["cluster_id"].clone()
    };
    assert_ne!(id(&["--initial-cluster-token=a"]), id(&["--initial-cluster-token=b"]));
}

#[test]
fn a_configuration_file_says_the_same_to_both() {
    let ports = Ports::new();
    let (client, peer) = (format!("http://{}", ports.client()), format!("http://{}", ports.peer()));
    let content = format!(
        "name: from-file\ndata-dir: data\nunsafe-no-fsync: true\nlisten-client-urls: {client}\n\
         advertise-client-urls: {client}\nlisten-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\n\
         initial-cluster: from-file={peer}\nmax-txn-ops: 1\nwatch-progress-notify-interval: 600000000000\n\
         log-outputs: [stderr]\nsocket-options:\n  reuse-port: true\n\
         client-transport-security:\n  client-cert-auth: false\nunknown-key: 5\n\
         discovery-fallback: proxy\nversion: true\nconfig-file: none\n"
    );
    let two_puts = r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"Yg=="}}]}"#;
    same(&etcds(), |face| {
        std::fs::write(face.file("etcd.yaml"), &content).expect("written");
        let running = face.start_as(&["--name=ignored", "--config-file=etcd.yaml"], READY);
        (members(&running, ports), post(ports.client(), "/v3/kv/txn", two_puts)["code"].clone())
    });
}

#[test]
fn a_port_is_shared_when_both_who_want_it_say_so() {
    let ports = Ports::new();
    let other = |face: &Face, flag: &[&str]| {
        let url = format!("http://{}", ports.client());
        let mut flags = vec![
            "--data-dir=other".to_owned(),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls=http://127.0.0.1:{}", Ports::new().peer),
        ];
        flags.extend(flag.iter().map(|flag| (*flag).to_owned()));
        let Ended { status, stderr, .. } = face.run(&flags);
        (status, stderr.to_lowercase().contains("address already in use"))
    };
    let said = same(&etcds(), |face| {
        let shared = ["--socket-reuse-port"];
        let running = face.start(ports, &shared);
        let alone = other(face, &[]);
        let together = other(face, &shared);
        drop(running);
        (alone, together.1)
    });
    assert_eq!(said, ((Some(1), true), false));
}

#[test]
fn a_peer_port_that_is_given_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let peer = format!("--listen-peer-urls=http://{}", taken.local_addr().expect("an address"));
    same(&etcds(), |face| {
        let Ended { status, stderr, .. } = face.run(&[
            peer.as_str(),
            "--listen-client-urls=http://127.0.0.1:0",
            "--advertise-client-urls=http://x:1",
        ]);
        (status, stderr.to_lowercase().contains("address already in use"))
    });
}

#[test]
fn flags_without_effect_are_named_in_one_warning() {
    let (ports, faces) = (Ports::new(), etcds());
    let flags = [
        "--snapshot-count=5",
        "--max-learners=2",
        "--feature-gates=StopGRPCServiceOnDefrag=true",
        "--pre-vote=true",
    ];
    let running = faces[1].start(ports, &flags);
    let warned: Vec<_> = running.lines().into_iter().filter(|line| !line["flags"].is_null()).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert_eq!(warned[0]["flags"], "snapshot-count,feature-gates,max-learners");
    let gates = get(ports.client(), "/metrics").body;
    let gate = "etcd_server_feature_enabled{name=\"StopGRPCServiceOnDefrag\",stage=\"ALPHA\"} 1";
    assert!(gates.lines().any(|line| line == gate), "{gates}");
}

#[test]
fn flags_that_etcd_will_drop_are_told_wherever_they_are_given() {
    let (ports, faces) = (Ports::new(), etcds());
    let told = |running: Running| {
        let lines = running.lines().into_iter().map(|line| (line["level"].clone(), line["msg"].clone()));
        let is_told = |text: &Value| text.as_str().is_some_and(|text| text.contains("is deprecated"));
        let mut told: Vec<_> = lines.filter(|(_, text)| is_told(text)).collect();
        // etcd has them in no order.
        told.sort_by_key(|(_, text)| text.to_string());
        told
    };
    // A default is as good as any value.
    let flags =
        same(&faces, |face| told(face.start(ports, &["--max-snapshots=5", "--v2-deprecation=write-only"])));
    assert_eq!(flags.len(), 2);
    let (client, peer) = (format!("http://{}", ports.client()), format!("http://{}", ports.peer()));
    let content = format!(
        "data-dir: data\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n\
         listen-peer-urls: {peer}\nmax-snapshots: 7\n"
    );
    let in_file = same(&faces, |face| {
        std::fs::write(face.file("etcd.yaml"), &content).expect("written");
        told(face.start_as(&["--config-file=etcd.yaml"], READY))
    });
    assert_eq!(in_file.len(), 1);
    assert_eq!(same(&faces, |face| told(face.start(ports, &["--max-wals=7"]))), []);
}

#[test]
fn an_interval_of_progress_that_is_too_short_is_told() {
    let ports = Ports::new();
    let told = |face: &Face| {
        let running = face.start(ports, &["--watch-progress-notify-interval=1ms"]);
        running.wait_for(|line| line.contains("adjusting watch progress notify interval to minimum period"))
    };
    assert!(same(&etcds(), told));
}

/// `VmLck` of a process, in kB.
fn locked(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(':')).collect();
    fields["VmLck"].trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn memory_is_locked_or_the_start_refused() {
    let (ports, faces) = (Ports::new(), etcds());
    let Ended { status, stderr, .. } = faces[1].run(&[
        "--memory-mlock",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://x:1",
    ]);
    if status.is_some() && stderr.contains("RLIMIT_MEMLOCK") {
        return;
    }
    let running = faces[1].start(ports, &["--memory-mlock", "--data-dir=locked"]);
    assert!(locked(running.pid()) > 0);
    drop(running);
    let running = faces[1].start(ports, &["--data-dir=not-locked"]);
    assert_eq!(locked(running.pid()), 0);
}

#[test]
fn unused_space_is_given_back_before_serving() {
    let (ports, faces) = (Ports::new(), etcds());
    let ours = &faces[1];
    let said = |flag: &str| {
        let running = ours.start(ports, &[flag]);
        let logged = running.log();
        let kept = logged.contains("Skipping defragmentation");
        let given = logged.contains("unused space of the database was given back");
        ask(ports.client(), "GET /health HTTP/1.1\r\nHost: localhost\r\n", "");
        running.end();
        (kept, given)
    };
    assert_eq!(said("--bootstrap-defrag-threshold-megabytes=1"), (true, false));
    assert_eq!(said("--bootstrap-defrag-threshold-megabytes=0"), (false, false));
}
