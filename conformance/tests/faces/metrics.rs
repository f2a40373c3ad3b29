//! Series of `/metrics`: everything a real etcd has after the same requests, and what is there makes sense.

use crate::process::{Face, Ports, etcdctl, etcds, get, post, same};
use std::collections::{BTreeMap, BTreeSet};

/// Series of etcd that are absent here, by how they begin, and why.
const ABSENT: &[(&str, &str)] = &[
    ("go_", "there is no Go"),
    ("promhttp_", "nor its client of Prometheus"),
    ("etcd_grpc_proxy_", "of another program"),
    ("etcd_snap_", "raft's snapshots"),
    ("etcd_debugging_snap_", "raft's snapshots"),
    ("etcd_debugging_disk_backend_commit_", "phases of bbolt's commit"),
    ("etcd_disk_wal_write_", "SQLite writes and syncs its log in one"),
    ("etcd_debugging_server_watch_send_loop_", "phases of etcd's loop"),
];

/// What the alert rules of etcd's mixin and of kube-prometheus ask for, and the boards on top of them, of one member.
const WATCHED: &[&str] = &[
    "etcd_cluster_version",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_disk_backend_commit_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_txn_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_apply_duration_seconds_bucket",
    "etcd_server_has_leader",
    "etcd_server_health_failures",
    "etcd_server_health_success",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_id",
    "etcd_server_is_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_version",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds_bucket",
    "grpc_server_started_total",
    "os_fd_limit",
    "os_fd_used",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
];

/// A scrape: families with their types, samples by name and labels.
struct Scrape {
    families: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape { families: BTreeMap::new(), samples: BTreeMap::new() };
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').expect("a name and a type");
                scrape.families.insert(name.to_owned(), kind.to_owned());
            } else if let Some((name, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                scrape.samples.insert(name.to_owned(), value.parse().expect("a number"));
            }
        }
        scrape
    }

    /// The sum over all labels.
    fn sum(&self, name: &str) -> f64 {
        let of_name = |sample: &str| {
            sample == name || sample.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
        };
        self.samples.iter().filter(|(sample, _)| of_name(sample)).map(|(_, value)| value).sum()
    }

    /// The samples of a name that are not zero, by their labels.
    fn counted(&self, name: &str) -> BTreeMap<&str, f64> {
        let samples = self.samples.iter().filter(|(_, value)| **value != 0.0);
        let labelled = samples.filter_map(|(sample, value)| Some((sample.strip_prefix(name)?, *value)));
        labelled.filter(|(labels, _)| labels.starts_with('{')).collect()
    }

    /// Names of labels by family.
    fn labels(&self, name: &str) -> BTreeSet<String> {
        let labelled = self.samples.keys().filter_map(|sample| sample.strip_prefix(name)?.strip_prefix('{'));
        let labels = labelled.flat_map(|labels| {
            labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
        });
        labels.collect()
    }
}

/// A bit of everything, by gRPC and by HTTP.
fn load(face: &Face, ports: Ports) {
    let endpoints = format!("--endpoints=127.0.0.1:{}", ports.client);
    let run = |command: &[&str]| {
        let ended = etcdctl(&face.file(""), &[&[endpoints.as_str()], command].concat());
        assert_eq!(ended.status, Some(0), "{} {command:?}: {}", face.name, ended.stderr);
        ended.stdout
    };
    for key in ["k1", "k1", "k2", "k3", "k4"] {
        run(&["put", key, "value"]);
    }
    run(&["get", "k", "--prefix"]);
    run(&["del", "k4"]);
    let granted = run(&["lease", "grant", "100"]);
    let lease = granted.split(' ').nth(1).expect("an id");
    run(&["put", "k5", "value", "--lease", lease]);
    run(&["lease", "keep-alive", "--once", lease]);
    run(&["lease", "timetolive", lease]);
    run(&["lease", "revoke", lease]);
    for body in [
        r#"{"compare":[{"key":"azE=","target":"VERSION","version":"1"}],
            "success":[{"request_put":{"key":"YQ==","value":"Yg=="}},{"request_range":{"key":"YQ=="}}]}"#,
        r#"{"success":[{"request_range":{"key":"YQ=="}}]}"#,
    ] {
        let answer = post(ports.client(), "/v3/kv/txn", body);
        assert_eq!(answer["code"], serde_json::Value::Null, "{answer}");
    }
    run(&["compact", "5", "--physical"]);
    run(&["defrag"]);
    run(&["snapshot", "save", "snapshot.db"]);
    run(&["endpoint", "hashkv"]);
    run(&["endpoint", "status"]);
    run(&["alarm", "list"]);
    run(&["member", "list"]);
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(get(ports.client(), path).status, 200);
    }
}

fn scrapes() -> [Scrape; 2] {
    etcds().map(|face| {
        let ports = Ports::new();
        let running = face.start(ports, &["--metrics=extensive"]);
        load(&face, ports);
        let text = get(ports.client(), "/metrics").body;
        running.end();
        Scrape::parse(&text)
    })
}

#[test]
fn every_series_of_etcd_is_there_and_counts_the_same() {
    let [theirs, ours] = scrapes();
    let absent = |name: &str| ABSENT.iter().any(|(beginning, _)| name.starts_with(beginning));
    let wanted: BTreeMap<_, _> = theirs.families.iter().filter(|(name, _)| !absent(name)).collect();
    let missing: Vec<_> =
        wanted.iter().filter(|(name, kind)| ours.families.get(**name) != Some(kind)).collect();
    assert!(missing.is_empty(), "missing, or of another type: {missing:#?}");
    for (beginning, _) in ABSENT {
        assert!(
            !ours.families.keys().any(|name| name.starts_with(beginning)),
            "{beginning} is there: say so"
        );
    }
    for name in wanted.keys() {
        let suffix = if wanted[name].as_str() == "histogram" { "_count" } else { "" };
        let name = format!("{name}{suffix}");
        assert!(theirs.labels(&name).is_subset(&ours.labels(&name)), "{name}: {:?}", ours.labels(&name));
    }
    // What the requests did. Ranges are left out: etcd counts those of its own health checks too.
    for name in [
        "etcd_mvcc_put_total",
        "etcd_mvcc_txn_total",
        "etcd_debugging_mvcc_keys_total",
        "etcd_debugging_mvcc_current_revision",
        "etcd_debugging_mvcc_compact_revision",
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "etcd_debugging_lease_granted_total",
        "etcd_debugging_lease_revoked_total",
        "etcd_debugging_lease_renewed_total",
        "etcd_debugging_lease_ttl_total_sum",
        "etcd_debugging_server_lease_expired_total",
        "etcd_debugging_auth_revision",
        "etcd_debugging_store_expires_total",
        "etcd_debugging_mvcc_watcher_total",
        "etcd_debugging_mvcc_slow_watcher_total",
        "etcd_debugging_mvcc_pending_events_total",
        "etcd_disk_backend_defrag_duration_seconds_count",
        "etcd_disk_backend_snapshot_duration_seconds_count",
        "etcd_disk_defrag_inflight",
        "etcd_mvcc_hash_rev_duration_seconds_count",
        "etcd_network_known_peers",
        "etcd_server_has_leader",
        "etcd_server_is_leader",
        "etcd_server_is_learner",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_heartbeat_send_failures_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "etcd_server_slow_apply_total",
        "etcd_server_slow_read_indexes_total",
        "etcd_server_health_success",
        "etcd_server_health_failures",
        "etcd_server_healthchecks_total",
        "etcd_server_healthcheck",
        "etcd_server_feature_enabled",
        "etcd_server_client_requests_total",
        "etcd_server_id",
        "etcd_server_version",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"ReadonlyTxn\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Txn\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"DeleteRange\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Compaction\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"LeaseGrant\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"LeaseRevoke\"}",
        "etcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"}",
        "etcd_server_apply_duration_seconds_count{op=\"Txn\",success=\"true\",version=\"v3\"}",
        "etcd_server_apply_duration_seconds_count{op=\"LeaseRevoke\",success=\"true\",version=\"v3\"}",
    ] {
        assert_eq!(theirs.sum(name), ours.sum(name), "{name}: left: etcd, right: ours");
    }
    for name in [
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds_count",
        "grpc_server_msg_received_total",
    ] {
        // etcd's library counts the end of a client's stream as one more message. Whether the end of the stream or its
        // cancelling arrives first when etcdctl is done with it is chance, and decides about the code.
        let by_chance = ["grpc_server_msg_received_total", "grpc_server_handled_total"]
            .contains(&name)
            .then_some("bidi_stream");
        let [theirs, ours] = [&theirs, &ours].map(|scrape| {
            let mut counted = scrape.counted(name);
            counted.retain(|labels, _| by_chance.is_none_or(|by_chance| !labels.contains(by_chance)));
            counted
        });
        assert_eq!(theirs, ours, "{name}: left: etcd, right: ours");
    }
}

#[test]
fn what_dashboards_and_alerts_ask_for_is_there_and_sane() {
    let [_, ours] = scrapes();
    for name in WATCHED {
        assert!(ours.samples.keys().any(|sample| sample.split('{').next() == Some(*name)), "no {name}");
    }
    for name in [
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count",
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_count",
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds_count",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_range_duration_seconds_count",
        "process_network_receive_bytes_total",
        "process_open_fds",
    ] {
        assert!(ours.sum(name) > 0.0, "{name} is {}", ours.sum(name));
    }
    let fsync = ours.sum("etcd_disk_wal_fsync_duration_seconds_count");
    assert_eq!(fsync, ours.sum("etcd_disk_backend_commit_duration_seconds_count"));
    let (in_use, allocated) =
        (ours.sum("etcd_mvcc_db_total_size_in_use_in_bytes"), ours.sum("etcd_mvcc_db_total_size_in_bytes"));
    assert!(in_use <= allocated, "{in_use} of {allocated}");
}

#[test]
fn watchers_and_their_events_are_counted() {
    let counted = same(&etcds(), |face| {
        let ports = Ports::new();
        let running = face.start(ports, &["--metrics=extensive"]);
        let (runtime, address) = (tokio::runtime::Runtime::new().expect("a runtime"), ports.client());
        let counted = runtime.block_on(async {
            use proto::etcdserverpb::watch_client::WatchClient;
            use proto::etcdserverpb::watch_request::RequestUnion;
            use proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
            let channel =
                conformance::server::connect(&format!("http://{address}")).await.expect("connected");
            let create = |key: &'static str| WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                    key: key.into(),
                    ..Default::default()
                })),
            };
            let (to_server, requests) = tokio::sync::mpsc::channel(8);
            let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
            // The head of the answer comes with the first of them, so that has to be asked for before.
            for key in ["a", "b"] {
                to_server.send(create(key)).await.expect("sent");
            }
            let mut answers = WatchClient::new(channel).watch(requests).await.expect("a stream").into_inner();
            for _ in ["a", "b"] {
                assert!(answers.message().await.expect("answered").expect("created").created);
            }
            let put =
                |key: &str| post(address, "/v3/kv/put", &format!(r#"{{"key":"{key}","value":"eA=="}}"#));
            put("YQ==");
            put("YQ==");
            put("Yg==");
            for _ in 0..3 {
                let answer = answers.message().await.expect("answered").expect("an event");
                assert_eq!(answer.events.len(), 1);
            }
            let scrape = Scrape::parse(&get(address, "/metrics").body);
            [
                "etcd_debugging_mvcc_watch_stream_total",
                "etcd_debugging_mvcc_watcher_total",
                "etcd_debugging_mvcc_events_total",
            ]
            .map(|name| scrape.sum(name))
        });
        running.end();
        counted
    });
    assert_eq!(counted, [1.0, 2.0, 3.0]);
}
