//! Encrypted listeners: who gets in, and what a change of files does.

use crate::server::Server;
use kine_rs::config::{Config, Listen, Listener, Serves, Tls, TlsVersion};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Files of a CA and of a server and clients that have its certificates.
struct Pki {
    dir: TempDir,
    ca: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Pki {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a CA");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("written");
        let pki = Pki { dir, ca: Issuer::new(params, key) };
        pki.issue("server", "localhost", 1);
        pki
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, host: &str, serial: u64) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).expect("written");
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    /// Two lists written in one tick of the file system's clock must differ too.
    fn revoke(&self, serials: &[u64], age: Duration) {
        let now = SystemTime::now();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.ca).expect("a list");
        fs::write(self.file("crl.pem"), list.pem().expect("PEM")).expect("written");
        self.age("crl.pem", age);
    }

    fn age(&self, name: &str, age: Duration) {
        let file = fs::File::options().append(true).open(self.file(name)).expect("opened");
        file.set_modified(SystemTime::now() - age).expect("a time");
    }

    fn tls(&self) -> Tls {
        Tls::new(self.file("server.pem"), self.file("server.key"))
    }

    /// The status of `/health` and the serial number of the server's certificate, as a client with this certificate.
    fn ask(&self, address: SocketAddr, client: Option<&str>) -> Result<String, String> {
        self.ask_with(address, client, rustls::DEFAULT_VERSIONS)
    }

    fn ask_with(
        &self,
        address: SocketAddr,
        client: Option<&str>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<String, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("ca.pem")).expect("PEM")).expect("a CA");
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .expect("versions")
                .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain =
                    vec![CertificateDer::from_pem_file(self.file(&format!("{name}.pem"))).expect("PEM")];
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let name = "localhost".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address).expect("it listens"));
        let mut text = String::new();
        let exchange = stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut text));
        exchange.map_err(|error| error.to_string())?;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let certificate = &stream.conn.peer_certificates().expect("the server has one")[0];
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
        Ok(certificate.raw_serial_as_string())
    }
}

fn start(tls: Tls) -> Server {
    Server::start(Config { tls: Some(tls), ..Config::default() })
}

#[test]
fn a_new_certificate_is_used_without_a_restart() {
    let pki = Pki::new();
    pki.age("server.pem", Duration::from_secs(60));
    let server = start(pki.tls());
    assert_eq!(pki.ask(server.address(), None).as_deref(), Ok("01"));
    pki.issue("server", "localhost", 2);
    assert_eq!(pki.ask(server.address(), None).as_deref(), Ok("02"));
    // A pair that does not fit leaves the last good one in force.
    fs::write(pki.file("server.key"), "no key").expect("written");
    assert_eq!(pki.ask(server.address(), None).as_deref(), Ok("02"));
    server.stop();
}

#[test]
fn clients_need_a_certificate_that_is_signed_and_not_revoked() {
    let pki = Pki::new();
    pki.issue("good", "client", 10);
    pki.issue("bad", "client", 11);
    pki.revoke(&[11], Duration::from_secs(60));
    let strangers = Pki::new();
    strangers.issue("stranger", "client", 12);
    for suffix in ["pem", "key"] {
        let name = format!("stranger.{suffix}");
        fs::copy(strangers.file(&name), pki.file(&name)).expect("copied");
    }
    let server = start(Tls {
        trusted_ca_file: Some(pki.file("ca.pem")),
        client_crl_file: Some(pki.file("crl.pem")),
        ..pki.tls()
    });
    let gets_in = |name: Option<&str>| pki.ask(server.address(), name).is_ok();
    assert_eq!(["good", "bad", "stranger"].map(|name| gets_in(Some(name))), [true, false, false]);
    assert!(!gets_in(None));
    pki.revoke(&[10], Duration::ZERO);
    assert_eq!(["good", "bad"].map(|name| gets_in(Some(name))), [false, true]);
    server.stop();
}

#[test]
fn clients_need_a_certificate_for_an_allowed_name() {
    let pki = Pki::new();
    pki.issue("good", "api.example", 10);
    pki.issue("bad", "other.example", 11);
    let client_hostnames = vec!["unused.example".to_owned(), "api.example".to_owned()];
    let server = start(Tls { trusted_ca_file: Some(pki.file("ca.pem")), client_hostnames, ..pki.tls() });
    assert!(pki.ask(server.address(), Some("good")).is_ok());
    assert!(pki.ask(server.address(), Some("bad")).is_err());
    server.stop();
}

#[test]
fn versions_below_the_lowest_are_refused() {
    let pki = Pki::new();
    let server = start(Tls { version_min: TlsVersion::V1_3, ..pki.tls() });
    let with = |version| pki.ask_with(server.address(), None, &[version]).is_ok();
    assert_eq!([with(&rustls::version::TLS12), with(&rustls::version::TLS13)], [false, true]);
    server.stop();
}

#[test]
fn a_client_needs_one_of_the_common_names() {
    let pki = Pki::new();
    pki.issue("client", "localhost", 2);
    let ask = |common_name: &str| {
        let client_common_names = vec!["nobody".to_owned(), common_name.to_owned()];
        let tls = Tls { trusted_ca_file: Some(pki.file("ca.pem")), client_common_names, ..pki.tls() };
        let server = start(tls);
        let answer = pki.ask(server.address(), Some("client"));
        server.stop();
        answer.is_ok()
    };
    // The name rcgen gives when it is told none.
    assert_eq!([ask("rcgen self signed cert"), ask("rcgen")], [true, false]);
}

#[test]
fn one_port_can_be_plain_and_encrypted() {
    let pki = Pki::new();
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let listener = |tls| Listener { at: Listen::Tcp(free), tls, serves: Serves::Everything };
    let others = vec![listener(None), listener(Some(pki.tls()))];
    let server = Server::start_at(Vec::new(), Config { others, ..Config::default() });
    assert_eq!(server.addresses(), [free]);
    assert!(pki.ask(free, None).is_ok());
    assert_eq!(server.get("/health").status, 200);
    // A client that says nothing and goes is nobody's trouble.
    drop(TcpStream::connect(free).expect("it listens"));
    assert_eq!(server.get("/health").status, 200);
    server.stop();
}

#[test]
fn plain_encrypted_and_unix_listeners_live_side_by_side() {
    let pki = Pki::new();
    let socket = pki.file("etcd.sock");
    let listener = |at, tls| Listener { at, tls, serves: Serves::Everything };
    let tcp = || Listen::Tcp(([127, 0, 0, 1], 0).into());
    let server = Server::start_at(
        Vec::new(),
        Config {
            others: vec![
                listener(tcp(), Some(pki.tls())),
                listener(tcp(), None),
                listener(Listen::Unix(socket.clone()), None),
            ],
            ..Config::default()
        },
    );
    let [encrypted, plain] = server.addresses() else { panic!("two addresses: {:?}", server.addresses()) };
    assert!(pki.ask(*encrypted, None).is_ok());
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut streams: Vec<Box<dyn Duplex>> = vec![
        Box::new(TcpStream::connect(plain).expect("it listens")),
        Box::new(UnixStream::connect(&socket).expect("it listens")),
    ];
    for stream in &mut streams {
        let mut text = String::new();
        stream.write_all(request).and_then(|()| stream.read_to_string(&mut text)).expect("answered");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }
    server.stop();
    assert!(!socket.exists());
}

trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}
