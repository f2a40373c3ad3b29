//! What is logged of requests that are slow, and where logs go.

use crate::process::{DEADLINE, Face, Ports, READY, ask, etcds, post, same};
use serde_json::{Value, json};
use std::time::Instant;

/// Requests of every kind that says something of itself, and one that does not.
fn requests(ports: Ports) {
    for (path, body) in [
        ("/v3/kv/put", r#"{"key":"Zm9v","value":"c2VjcmV0"}"#),
        ("/v3/kv/put", r#"{"key":"Zm9v/w==","value":"eA=="}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","limit":"5","sort_order":"DESCEND"}"#),
        (
            "/v3/kv/txn",
            r#"{"compare":[{"key":"Zm9v","target":"MOD","result":"GREATER","mod_revision":"1"},
                {"key":"Zm9v","target":"VALUE","value":"c2VjcmV0"}],
                "success":[{"request_put":{"key":"Zm9v","value":"c2VjcmV0"}},{"request_range":{"key":"Zm9v"}}],
                "failure":[{"request_delete_range":{"key":"Zm9v"}}]}"#,
        ),
        ("/v3/kv/txn", r#"{"success":[{"request_range":{"key":"Zm9v"}}]}"#),
        ("/v3/kv/deleterange", r#"{"key":"Zm9v"}"#),
        ("/v3/lease/grant", r#"{"TTL":"100","ID":"7"}"#),
    ] {
        let answer = post(ports.client(), path, body);
        assert!(answer["code"].is_null(), "{path}: {answer}");
    }
}

/// The lines of one message without what is never the same; the texts of Go's protobuf have gaps of any length.
fn lines(face: &Face, ports: Ports, flag: &str, message: &str, drop: &[&str]) -> Vec<Value> {
    let running = face.start(ports, &[flag]);
    requests(ports);
    let of_clients = |line: &Value| {
        let kind = line["response type"].as_str().or(line["request"].as_str()).unwrap_or_default();
        !kind.contains("Status") && !kind.contains("cluster_") && !kind.contains("member")
    };
    // etcd logs a request after its answer: all is said at the end.
    let (_, log) = running.end();
    let objects = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let mut lines: Vec<Value> =
        objects.filter(|line: &Value| line["msg"] == message && of_clients(line)).collect();
    for line in &mut lines {
        let line = line.as_object_mut().expect("an object");
        for field in drop {
            assert!(line.contains_key(*field), "{}: no {field} in {line:?}", face.name);
            line.remove(*field);
        }
        for field in ["request content", "request"] {
            if let Some(text) = line.get(field).and_then(Value::as_str) {
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(" >", ">");
                line.insert(field.to_owned(), text.into());
            }
        }
    }
    lines
}

#[test]
fn a_slow_request_is_logged_with_etcds_fields() {
    let ports = Ports::new();
    let differ = ["ts", "caller", "start time", "time spent", "remote"];
    let logged = same(&etcds(), |face| {
        lines(face, ports, "--warning-unary-request-duration=1ns", "request stats", &differ)
    });
    assert_eq!(logged.len(), 7, "{logged:#?}");
    assert!(!format!("{logged:?}").contains("secret"), "{logged:#?}");
}

#[test]
fn a_command_that_is_slow_to_apply_is_logged_with_etcds_fields() {
    let ports = Ports::new();
    let names = |face: &Face| {
        let flag = "--warning-apply-duration=1ns";
        let lines = lines(face, ports, flag, "apply request took too long", &["ts", "caller", "took"]);
        // etcd has the id of its raft request and the size of the reply besides.
        let known =
            |line: &Value| (line["level"].clone(), line["prefix"].clone(), line["expected-duration"].clone());
        lines.iter().map(known).collect::<Vec<_>>()
    };
    let logged = same(&etcds(), names);
    assert_eq!(logged.len(), 7, "{logged:#?}");
}

#[test]
fn nothing_is_logged_of_requests_that_are_not_slow() {
    let (ports, faces) = (Ports::new(), etcds());
    let running =
        faces[1].start(ports, &["--warning-unary-request-duration=1h", "--warning-apply-duration=1h"]);
    requests(ports);
    let (_, log) = running.end();
    assert!(!log.contains("request stats") && !log.contains("took too long"), "{log}");
}

#[test]
fn a_full_log_is_put_aside_and_compressed() {
    let ports = Ports::new();
    same(&etcds(), |face| {
        let config = r#"--log-rotation-config-json={"maxsize":1,"maxbackups":1,"compress":true}"#;
        let flags = [
            "--log-outputs=server.log,stderr",
            "--log-level=debug",
            "--enable-log-rotation",
            "--data-dir=data",
            config,
        ];
        let urls = [
            format!("--listen-client-urls=http://{}", ports.client()),
            format!("--advertise-client-urls=http://{}", ports.client()),
            format!("--listen-peer-urls=http://{}", ports.peer()),
        ];
        let all: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).chain(urls).collect();
        let running = face.start_as(&all, READY);
        let old = || {
            let names = std::fs::read_dir(face.file("")).expect("listed");
            let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
            names.filter(|name| name.starts_with("server-")).collect::<Vec<_>>()
        };
        // At the level debug every request is a line; the text of its key makes it a long one.
        let body = format!(r#"{{"key":"{}"}}"#, "A".repeat(400));
        let deadline = Instant::now() + DEADLINE;
        while !old().iter().any(|name| name.ends_with(".log.gz")) {
            assert!(Instant::now() < deadline, "{}: {:?}", face.name, old());
            for _ in 0..50 {
                ask(ports.client(), "POST /v3/kv/range HTTP/1.1\r\nHost: localhost\r\n", &body);
            }
        }
        let size = face.file("server.log").metadata().expect("there").len();
        running.end();
        let compressed: Vec<_> = old().into_iter().filter(|name| name.ends_with(".gz")).collect();
        // `server-2006-01-02T15-04-05.000.log.gz`
        (
            size <= 1 << 20,
            compressed.iter().all(|name| name.len() == "server-2006-01-02T15-04-05.000.log.gz".len()),
        )
    });
}

#[test]
fn an_alarm_is_logged_once_when_it_is_raised() {
    // etcd raises it without a word.
    let (ports, faces) = (Ports::new(), etcds());
    let running = faces[1].start(ports, &["--quota-backend-bytes=4096"]);
    for _ in 0..2 {
        let answer = post(ports.client(), "/v3/kv/put", r#"{"key":"Zm9v","value":"eA=="}"#);
        assert_eq!(answer["message"], "etcdserver: mvcc: database space exceeded");
    }
    assert!(running.wait_for(|line| line.contains("alarm raised")), "{}", running.log());
    let members = post(ports.client(), "/v3/cluster/member/list", "{}");
    let member: u64 = members["members"][0]["ID"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    let lines: Vec<Value> =
        running.lines().into_iter().filter(|line| line["msg"] == "alarm raised").collect();
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(
        [&line["level"], &line["alarm"], &line["from"], &line["quota-size-bytes"]],
        [&json!("warn"), &json!("NOSPACE"), &json!(format!("{member:x}")), &json!(4096)]
    );
    assert!(line["size-bytes"].as_u64() > Some(0), "{line}");
    running.end();
}
