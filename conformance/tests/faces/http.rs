//! Plain HTTP on the three kinds of listeners: the same statuses, headers and bodies.

use crate::process::{Answer, Face, Ports, ask, etcds, get, post, same};
use conformance::server::{STORAGE_VERSION_UNSETTLED, free_port};
use std::net::SocketAddr;

fn request(address: SocketAddr, line: &str, headers: &str) -> Answer {
    let mut answer = ask(address, &format!("{line} HTTP/1.1\r\nHost: localhost\r\n{headers}"), "");
    // etcd reports its checks in any order.
    if answer.body.starts_with("[+]") {
        let mut lines: Vec<_> = answer.body.lines().collect();
        lines.sort_unstable();
        answer.body = lines.join("\n");
    }
    answer
}

/// Asks both the same of a listener.
fn compare(flags: &[&str], listener: impl Fn(Ports) -> SocketAddr, requests: &[(&str, &str)]) -> Vec<Answer> {
    let ports = Ports::new();
    same(&etcds(), |face| {
        let running = face.start(ports, flags);
        // etcd gives its storage the cluster's version a moment after it serves.
        let unsettled = format!(r#""storage":"{STORAGE_VERSION_UNSETTLED}""#);
        while get(listener(ports), "/version").body.contains(&unsettled) {
            std::thread::yield_now();
        }
        let answers: Vec<_> =
            requests.iter().map(|(line, headers)| request(listener(ports), line, headers)).collect();
        running.end();
        answers
    })
}

#[test]
fn the_client_port_answers_the_same() {
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answers = compare(
        &[],
        |ports| ports.client(),
        &[
            ("GET /version", ""),
            ("GET /health", ""),
            ("GET /health?serializable=true", ""),
            ("POST /health", ""),
            ("GET /livez", ""),
            ("GET /livez?verbose", ""),
            ("GET /readyz?verbose", ""),
            ("GET /readyz/linearizable_read?verbose", ""),
            ("GET /readyz?verbose&exclude=non_learner", ""),
            ("GET /nope", ""),
            ("GET /debug/pprof/", ""),
            ("GET /debug/requests", ""),
            ("GET /debug/events", ""),
            ("OPTIONS /v3/kv/range", "Origin: http://a\r\n"),
            ("OPTIONS /nope", ""),
            (
                "GET /version",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ),
            ("POST /etcdserverpb.KV/Range", "Content-Type: application/grpc\r\n"),
            ("GET /v3/watch", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            ("GET /v3/watch", &websocket.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
            ("GET /v3/watch", &websocket.replace("13", "8")),
            ("POST /v3/watch", websocket),
            ("GET /version", websocket),
        ],
    );
    assert_eq!(answers[0].body, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#);
    assert_eq!(answers[18].status, 400);
}

#[test]
fn the_gateway_refuses_the_same() {
    // Ours tells old clients the text a second time.
    let ports = Ports::new();
    same(&etcds(), |face| {
        let running = face.start(ports, &[]);
        let answers: Vec<_> = ["GET /v3/kv/range", "POST /v3/nope", "GET /v3/", "POST /v3beta/nope"]
            .iter()
            .map(|line| {
                let answer = request(ports.client(), line, "");
                let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
                (answer.status, answer.headers, body["code"].clone(), body["message"].clone())
            })
            .collect();
        running.end();
        answers
    });
}

#[test]
fn debugging_says_nothing_of_this_process() {
    // etcd tells its command line here, to anybody.
    let (ports, faces) = (Ports::new(), etcds());
    let _running = faces[1].start(ports, &["--enable-pprof", "--log-level=debug"]);
    let variables: serde_json::Value =
        serde_json::from_str(&get(ports.client(), "/debug/vars").body).expect("JSON");
    let told: Vec<&String> = variables.as_object().expect("an object").keys().collect();
    assert_eq!(told, ["file_descriptor_limit"]);
    for path in ["/debug/pprof/", "/debug/pprof/cmdline", "/debug/requests"] {
        assert_eq!(get(ports.client(), path).status, 404, "{path}");
    }
}

#[test]
fn origins_and_hosts_are_allowed_as_the_flags_say() {
    let flags = ["--cors=http://a:1,http://b:1", "--host-whitelist=localhost"];
    let answers = compare(
        &flags,
        |ports| ports.client(),
        &[
            ("GET /version", "Origin: http://a:1\r\n"),
            ("GET /version", "Origin: http://c\r\n"),
            ("GET /version", ""),
            ("OPTIONS /version", "Origin: http://b:1\r\n"),
            ("OPTIONS /version", "Origin: http://c\r\n"),
        ],
    );
    assert!(answers[0].headers.iter().any(|header| header == "Access-Control-Allow-Origin: http://a:1"));
    let ports = Ports::new();
    let statuses = same(&etcds(), |face: &Face| {
        let running = face.start(ports, &flags);
        let of = |host: &str| ask(ports.client(), &format!("GET /version HTTP/1.1\r\nHost: {host}\r\n"), "");
        let statuses = ["localhost", "localhost:1", "127.0.0.1", "evil.example:1"].map(|host| {
            let answer = of(host);
            (answer.status, answer.headers)
        });
        running.end();
        statuses
    });
    assert_eq!(statuses.map(|(status, _)| status), [200, 200, 421, 421]);
}

#[test]
fn the_peer_port_tells_the_release_and_the_members() {
    let answers = compare(
        &["--name=default"],
        |ports| ports.peer(),
        &[
            ("GET /version", ""),
            ("GET /members", ""),
            ("POST /members", ""),
            ("GET /health", ""),
            ("GET /metrics", ""),
            ("GET /v3/kv/range", ""),
            ("GET /", ""),
            ("OPTIONS /nope", "Origin: http://a\r\n"),
        ],
    );
    assert!(answers[1].body.contains("\"peerURLs\""), "{}", answers[1].body);
}

#[test]
fn the_metrics_port_tells_health_and_metrics_alone() {
    let metrics = free_port().expect("a port");
    let flag = format!("--listen-metrics-urls=http://127.0.0.1:{metrics}");
    let requests = [
        ("GET /health", ""),
        ("GET /livez", ""),
        ("GET /readyz?verbose", ""),
        ("GET /version", ""),
        ("GET /members", ""),
        ("GET /debug/vars", ""),
        ("POST /v3/kv/range", ""),
        ("OPTIONS /nope", "Origin: http://a\r\n"),
    ];
    let answers =
        compare(&[&flag, "--host-whitelist=nobody"], |_| ([127, 0, 0, 1], metrics).into(), &requests);
    assert_eq!(answers[0].status, 200);
}

#[test]
fn http_apart_from_grpc_is_all_there_is_on_its_port() {
    let http = free_port().expect("a port");
    let address: SocketAddr = ([127, 0, 0, 1], http).into();
    let flag = format!("--listen-client-http-urls=http://{address}");
    let requests =
        [("GET /version", ""), ("GET /health", ""), ("POST /x", "Content-Type: application/grpc\r\n")];
    compare(&[&flag], |_| address, &requests);
    let ports = Ports::new();
    same(&etcds(), |face| {
        let running = face.start(ports, &[&flag]);
        let put = post(address, "/v3/kv/put", r#"{"key":"YQ==","value":"Yg=="}"#);
        running.end();
        put
    });
}
