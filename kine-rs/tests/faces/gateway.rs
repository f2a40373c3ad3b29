//! The JSON gateway, as clients without gRPC use it.

use crate::server::{Server, ask};
use kine_rs::config::Config;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a test waits for a line of a stream.
const DEADLINE: Duration = Duration::from_secs(20);

fn post(server: &Server, path: &str, body: &str) -> (u16, Value) {
    let answer = server.post(path, body);
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

fn without_header((status, mut body): (u16, Value)) -> (u16, Value) {
    let header = body.as_object_mut().and_then(|body| body.remove("header")).expect("a header");
    assert!(header["cluster_id"].is_string() && header["raft_term"] == "2", "{header}");
    (status, body)
}

#[test]
fn keys_are_put_read_and_deleted() {
    let server = Server::start(Config::default());
    assert_eq!(
        without_header(post(&server, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#)),
        (200, json!({}))
    );
    let kv =
        json!({"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"});
    let found = (200, json!({"kvs": [kv], "count": "1"}));
    assert_eq!(without_header(post(&server, "/v3/kv/range", r#"{"key":"Zm9v"}"#)), found);
    // Unknown names and values are ignored, as etcd does.
    let odd = r#"{"key":"Zm9v","foo":[3],"limit":"1","sortOrder":"DESCEND","sort_target":3}"#;
    assert_eq!(without_header(post(&server, "/v3/kv/range", odd)), found);
    let txn = r#"{"compare":[{"key":"Zm9v","target":"VERSION","version":"1"}],
        "success":[{"request_delete_range":{"key":"Zm9v"}}]}"#;
    let (status, body) = without_header(post(&server, "/v3/kv/txn", txn));
    assert_eq!((status, &body["succeeded"]), (200, &json!(true)));
    assert_eq!(body["responses"][0]["response_delete_range"]["deleted"], "1");
    server.stop();
}

#[test]
fn errors_have_etcds_codes_texts_and_statuses() {
    let server = Server::start(Config::default());
    let error = |code: i32, text: &str| json!({"error": text, "code": code, "message": text});
    let no_key = (400, error(3, "etcdserver: key is not provided"));
    assert_eq!(post(&server, "/v3/kv/range", ""), no_key);
    assert_eq!(post(&server, "/v3/kv/range", "{}"), no_key);
    let no_lease = (404, error(5, "etcdserver: requested lease not found"));
    assert_eq!(post(&server, "/v3/lease/revoke", r#"{"ID":77}"#), no_lease);
    assert_eq!(post(&server, "/v3/kv/lease/revoke", r#"{"ID":"77"}"#), no_lease);
    assert_eq!(post(&server, "/v3/kv/nothing", "{}"), (404, error(5, "Not Found")));
    let future = (400, error(11, "etcdserver: mvcc: required revision is a future revision"));
    assert_eq!(post(&server, "/v3/kv/range", r#"{"key":"YQ==","revision":"99"}"#), future);
    let no_member = (404, error(5, "etcdserver: member not found"));
    assert_eq!(post(&server, "/v3/cluster/member/remove", r#"{"ID":"1234"}"#), no_member);
    assert_eq!(post(&server, "/v3/cluster/member/promote", r#"{"ID":"1234"}"#), no_member);
    let bad_url = (400, error(3, "etcdserver: given member URLs are invalid"));
    assert_eq!(post(&server, "/v3/cluster/member/add", r#"{"peerURLs":["bad"]}"#), bad_url);
    for bad in [r#"{"key":"Zm9"#, r#"{"key":"!!"}"#, r#"{"key":5}"#] {
        let (status, body) = post(&server, "/v3/kv/range", bad);
        assert_eq!((status, &body["code"]), (400, &json!(3)), "{bad}: {body}");
    }
    let get = server.get("/v3/kv/range");
    assert_eq!((get.status, get.body.contains("Method Not Allowed")), (501, true));
    let options = ask(server.address(), "OPTIONS /v3/kv/range HTTP/1.1\r\nHost: localhost\r\n", "");
    assert_eq!(options.status, 200);
    assert!(options.headers.contains("access-control-allow-methods: post"), "{}", options.headers);
    server.stop();
}

#[test]
fn leases_and_members_are_told() {
    let server = Server::start(Config::default());
    let grant = without_header(post(&server, "/v3/lease/grant", r#"{"TTL":60,"ID":"7"}"#));
    assert_eq!(grant, (200, json!({"ID": "7", "TTL": "60"})));
    let (_, left) = without_header(post(&server, "/v3/lease/timetolive", r#"{"ID":7,"keys":true}"#));
    assert_eq!((&left["ID"], &left["grantedTTL"]), (&json!("7"), &json!("60")));
    let alive = server.post("/v3/lease/keepalive", r#"{"ID":7} {"ID":8}"#);
    let lines: Vec<&str> = alive.body.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), 2, "{}", alive.body);
    let first: Value = serde_json::from_str(lines[0]).expect("JSON");
    assert_eq!((&first["result"]["ID"], &first["result"]["TTL"]), (&json!("7"), &json!("60")));
    let (_, members) = post(&server, "/v3/cluster/member/list", "{}");
    assert_eq!(members["members"][0]["clientURLs"], json!(["http://localhost"]), "{members}");
    let (_, status) = without_header(post(&server, "/v3/maintenance/status", "{}"));
    assert_eq!((&status["version"], status["raftIndex"].is_string()), (&json!("3.7.1"), true), "{status}");
    server.stop();
}

#[test]
fn a_watch_goes_on_after_its_request_has_ended() {
    let server = Server::start(Config::default());
    let body = r#"{"create_request":{"key":"Zm9v","prev_kv":true}}"#;
    let mut stream = TcpStream::connect(server.address()).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    write!(
        stream,
        "POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line in time"));
    let mut next = || {
        let line = lines.find(|line| line.starts_with("{\"result\"")).expect("the stream goes on");
        serde_json::from_str::<Value>(&line).expect("JSON")["result"].take()
    };
    assert_eq!(next()["created"], true);
    for revision in ["2", "3"] {
        server.post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
        let event = next()["events"][0].take();
        assert_eq!((&event["kv"]["mod_revision"], event.get("type")), (&json!(revision), None));
    }
    server.post("/v3/kv/deleterange", r#"{"key":"Zm9v"}"#);
    let event = next()["events"][0].take();
    assert_eq!((&event["type"], &event["prev_kv"]["mod_revision"]), (&json!("DELETE"), &json!("3")));
    server.stop();
}
