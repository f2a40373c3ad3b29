//! Metrics, health, version, and the rules of who may ask.

use crate::server::{Server, ask};
use kine_rs::config::{Config, Http, Listen, Listener, Serves};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::{AlarmRequest, AlarmType, PutRequest, alarm_request::AlarmAction};
use std::net::TcpListener;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The value of a sample, by its name with its labels.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_clients_did() {
    let server = Server::start(Config::default());
    let mut kv = KvClient::connect(server.url()).await.expect("connected");
    for key in ["a", "b", "c"] {
        kv.put(PutRequest { key: key.into(), value: "value".into(), ..Default::default() })
            .await
            .expect("put");
    }
    kv.put(PutRequest::default()).await.expect_err("a put without a key");
    let metrics = server.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.headers.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.headers);
    let value = |name: &str| sample(&metrics.body, name);
    let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    assert_eq!(value(&format!("grpc_server_started_total{{{put}}}")), Some(4.0));
    assert_eq!(value(&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}}")), Some(3.0));
    assert_eq!(
        value(&format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{put}}}")),
        Some(1.0)
    );
    assert_eq!(value(&format!("grpc_server_handling_seconds_count{{{put}}}")), Some(4.0));
    assert_eq!(value(&format!("grpc_server_msg_received_total{{{put}}}")), Some(4.0));
    assert_eq!(value(&format!("grpc_server_msg_sent_total{{{put}}}")), Some(3.0));
    assert_eq!(value("etcd_mvcc_put_total"), Some(3.0));
    assert_eq!(value("etcd_debugging_mvcc_keys_total"), Some(3.0));
    assert_eq!(value("etcd_debugging_mvcc_current_revision"), Some(4.0));
    assert_eq!(value("etcd_debugging_mvcc_total_put_size_in_bytes"), Some(18.0));
    assert_eq!(value("etcd_debugging_auth_revision"), Some(1.0));
    assert_eq!(value("etcd_server_has_leader"), Some(1.0));
    assert_eq!(value("etcd_server_version{server_version=\"3.7.1\"}"), Some(1.0));
    assert!(value("etcd_disk_backend_commit_duration_seconds_count") >= Some(1.0));
    assert!(value("kine_sql_total{error_code=\"\",name=\"commit\"}") >= Some(1.0));
    assert!(value("etcd_network_client_grpc_received_bytes_total") > Some(20.0));
    assert!(value("process_resident_memory_bytes") > Some(1e6));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_alarms() {
    let server = Server::start(Config::default());
    assert_eq!(server.get("/health").body, r#"{"health":"true","reason":""}"#);
    assert_eq!(server.get("/readyz").body, "ok\n");
    let verbose =
        "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert_eq!(server.get("/readyz?verbose").body, verbose);
    assert_eq!(server.get("/livez/serializable_read").status, 200);
    assert_eq!(server.get("/livez/non_learner").status, 404);

    let mut maintenance = MaintenanceClient::connect(server.url()).await.expect("connected");
    for alarm in [AlarmType::Nospace, AlarmType::Corrupt] {
        let activate =
            AlarmRequest { action: AlarmAction::Activate as i32, alarm: alarm as i32, member_id: 1 };
        maintenance.alarm(activate).await.expect("raised");
    }
    let health = server.get("/health");
    assert_eq!(
        (health.status, health.body.as_str()),
        (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#)
    );
    assert_eq!(server.get("/health?exclude=NOSPACE").body, r#"{"health":"false","reason":"ALARM CORRUPT"}"#);
    assert_eq!(server.get("/health?exclude=NOSPACE&exclude=CORRUPT").status, 200);
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-]data_corruption failed: alarm activated: CORRUPT\n"), "{}", ready.body);
    assert_eq!(server.get("/readyz?exclude=data_corruption").status, 200);
    let metrics = server.get("/metrics").body;
    let alarm = "etcd_debugging_server_alarms{alarm_type=\"CORRUPT\",server_id=\"1\"}";
    assert_eq!(sample(&metrics, alarm), Some(1.0), "{metrics}");
    server.stop();
}

#[test]
fn paths_and_methods_are_answered_as_etcd_does() {
    let server = Server::start(Config::default());
    let version = server.get("/version");
    assert_eq!(version.body, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#);
    assert!(version.headers.contains("access-control-allow-origin: *"), "{}", version.headers);
    assert_eq!(server.get("/debug/pprof/").status, 404);
    let post = ask(server.address(), "POST /health HTTP/1.1\r\nHost: localhost\r\n", "");
    assert_eq!((post.status, post.body.as_str()), (405, "Method Not Allowed\n"));
    assert!(post.headers.contains("allow: get"), "{}", post.headers);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grpc_health_service_says_that_it_serves() {
    let server = Server::start(Config::default());
    let channel = tonic::transport::Endpoint::from_shared(server.url()).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let answer = health.check(HealthCheckRequest::default()).await.expect("answered").into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    server.stop();
}

#[test]
fn a_metrics_listener_serves_no_data_and_a_host_list_is_kept() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let metrics = Listener { at: Listen::Tcp(free), tls: None, serves: Serves::Metrics };
    let http = Http { host_whitelist: vec!["good".into()], ..Http::default() };
    let server = Server::start(Config { others: vec![metrics], http, ..Config::default() });
    let path = |path: &str| ask(free, &format!("GET {path} HTTP/1.1\r\nHost: good:1\r\n"), "").status;
    assert_eq!(
        [path("/metrics"), path("/health"), path("/version"), path("/v3/kv/range")],
        [200, 200, 404, 404]
    );
    assert_eq!(server.get("/version").status, 421);
    server.stop();
}
