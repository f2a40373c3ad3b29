//! Addresses that are not `http://host:port`: sockets of the file system, with and without TLS, and ports that speak both.

use crate::process::{Ended, Face, Ports, READY, Running, etcdctl, etcds, exchange, kines, same};
use conformance::server::free_port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

/// A CA in `ca.pem` of the program's directory, and a certificate of it for `localhost`.
fn certificates(face: &Face) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = params.self_signed(&key).expect("a CA");
    std::fs::write(face.file("ca.pem"), ca.pem()).expect("written");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    std::fs::write(face.file("server.pem"), certificate.pem()).expect("written");
    std::fs::write(face.file("server.key"), key.serialize_pem()).expect("written");
}

/// Starts an etcd for clients at these URLs.
fn start(face: &Face, urls: &str, flags: &[&str]) -> Running {
    let ports = Ports::new();
    let peer = format!("http://{}", ports.peer());
    let mut all = vec![
        format!("--listen-client-urls={urls}"),
        format!("--advertise-client-urls={urls}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--data-dir=data".to_owned(),
        "--unsafe-no-fsync".to_owned(),
    ];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    face.start_as(&all, READY)
}

/// Puts and gets through a client's URL.
fn works(face: &Face, endpoint: &str, flags: &[&str]) -> String {
    let endpoints = format!("--endpoints={endpoint}");
    let dir = face.file("");
    let run = |command: &[&str]| {
        let all = [&[endpoints.as_str()], flags, command].concat();
        let Ended { status, stdout, stderr } = etcdctl(&dir, &all);
        assert_eq!(status, Some(0), "{} at {endpoint}: {stderr}", face.name);
        stdout
    };
    run(&["put", "greeting", "hello"]);
    run(&["get", "greeting"])
}

#[test]
fn a_socket_is_the_path_of_its_url_also_with_a_port() {
    let faces = etcds();
    for urls in ["unix://localhost:2379", "unix://etcd.sock", "unix:///tmp"] {
        let socket = urls.trim_start_matches("unix://");
        let absolute = urls == "unix:///tmp";
        same(&faces, |face| {
            let path = face.file(if absolute { "absolute.sock" } else { socket });
            let url = if absolute { format!("unix://{}", path.display()) } else { urls.to_owned() };
            // Left by a process that died.
            drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
            let running = start(face, &url, &[]);
            let is_socket = path.metadata().expect("there").file_type().is_socket();
            let got = works(face, &url, &[]);
            let mut stream = UnixStream::connect(&path).expect("it listens");
            let version = exchange(&mut stream, "GET /version HTTP/1.1\r\nHost: x\r\n", "");
            running.end();
            std::fs::remove_dir_all(face.file("data")).expect("removed");
            (is_socket, got, version, path.exists())
        });
    }
}

#[test]
fn a_socket_speaks_tls_when_its_url_says_so() {
    let tls = ["--cert-file=server.pem", "--key-file=server.key"];
    let ca = ["--cacert=ca.pem"];
    let got = same(&etcds(), |face| {
        certificates(face);
        let running = start(face, "unixs://localhost:5", &tls);
        let got = works(face, "unixs://localhost:5", &ca);
        let plain =
            etcdctl(&face.file(""), &["--endpoints=unix://localhost:5", "--command-timeout=1s", "get", "x"]);
        running.end();
        (got, plain.status)
    });
    assert_eq!(got, ("greeting\nhello\n".to_owned(), Some(1)));
}

#[test]
fn a_port_speaks_both_when_it_is_given_with_both_schemes() {
    let port = free_port().expect("a port");
    let (http, https) = (format!("http://127.0.0.1:{port}"), format!("https://127.0.0.1:{port}"));
    let tls = ["--cert-file=server.pem", "--key-file=server.key"];
    same(&etcds(), |face| {
        certificates(face);
        let running = start(face, &format!("{http},{https}"), &tls);
        let got = [works(face, &http, &[]), works(face, &https, &["--cacert=ca.pem"])];
        running.end();
        got
    });
}

#[test]
fn metrics_are_encrypted_where_their_url_says_so() {
    let (port, metrics) = (free_port().expect("a port"), free_port().expect("a port"));
    let https = format!("https://127.0.0.1:{port}");
    let flag = format!("--listen-metrics-urls=https://127.0.0.1:{metrics}");
    same(&etcds(), |face| {
        certificates(face);
        let running = start(face, &https, &["--cert-file=server.pem", "--key-file=server.key", &flag]);
        // It is no etcd that answers there, but it answers, and only with TLS.
        let refused = |scheme: &str| {
            let endpoint = format!("--endpoints={scheme}://127.0.0.1:{metrics}");
            let flags = [endpoint.as_str(), "--cacert=ca.pem", "--command-timeout=2s", "get", "x"];
            let Ended { status, stderr, .. } = etcdctl(&face.file(""), &flags);
            (status, stderr.contains("404"))
        };
        let said = [refused("http"), refused("https")];
        running.end();
        said
    });
}

#[test]
fn a_socket_of_kine_speaks_tls_when_there_is_a_certificate() {
    let flags = [
        "--listen-address=unix://localhost",
        "--metrics-bind-address=0",
        "--server-cert-file=server.pem",
        "--server-key-file=server.key",
    ];
    let got = same(&kines(), |face| {
        certificates(face);
        let running = face.start_kine(&flags);
        let dir = face.file("");
        let get = |endpoint: &str, flags: &[&str]| {
            etcdctl(&dir, &[&[endpoint, "--command-timeout=2s"], flags, &["get", "x"]].concat()).status
        };
        let said = [
            get("--endpoints=unixs://localhost", &["--cacert=ca.pem"]),
            get("--endpoints=unix://localhost", &[]),
        ];
        running.end();
        said
    });
    assert_eq!(got, [Some(0), Some(1)]);
}
