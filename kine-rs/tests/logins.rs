//! Who a server takes its callers for: signed tokens, simple ones, and the names in their certificates.

use kine_rs::auth::jwt::{JwtOptions, TTL_DEFAULT};
use kine_rs::auth::{Options, Tokens};
use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen, Tls};
use kine_rs::embed::Datastore;
use proto::etcdserverpb::auth_client::AuthClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    RangeRequest,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint as Address};
use tonic::{Code, Request, Status};

/// A server in this process that is stopped with the test.
struct Server(Option<Datastore>);

impl Server {
    fn start(config: Config) -> Self {
        let listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        let config = Config { endpoint: Endpoint::Memory, listen, ..config };
        Server(Some(Datastore::start(config).expect("the server starts")))
    }

    fn port(&self) -> u16 {
        self.0.as_ref().expect("it is stopped only by drop").addresses()[0].port()
    }

    async fn connect(&self) -> Channel {
        let address = format!("http://127.0.0.1:{}", self.port());
        Address::from_shared(address).unwrap().connect().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.take().expect("dropped once").stop(Duration::ZERO);
    }
}

/// Root with its role, auth on.
async fn enable(channel: &Channel) {
    let mut auth = AuthClient::new(channel.clone());
    let add = AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(add).await.unwrap();
    let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn login(channel: &Channel) -> String {
    let request = AuthenticateRequest { name: "root".into(), password: "secret".into() };
    AuthClient::new(channel.clone()).authenticate(request).await.unwrap().into_inner().token
}

fn with<T>(message: T, header: &'static str, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(header, token.parse().unwrap());
    request
}

async fn read(channel: &Channel, header: &'static str, token: &str) -> Result<(), Status> {
    let range = RangeRequest { key: "a".into(), ..Default::default() };
    KvClient::new(channel.clone()).range(with(range, header, token)).await.map(drop)
}

#[tokio::test]
async fn a_token_is_taken_from_either_header_with_or_without_bearer() {
    let server = Server::start(Config::default());
    let channel = server.connect().await;
    enable(&channel).await;
    let token = login(&channel).await;
    for (header, value) in [
        ("token", token.clone()),
        ("authorization", token.clone()),
        ("authorization", format!("Bearer {token}")),
    ] {
        read(&channel, header, &value).await.unwrap();
    }
    let refused = read(&channel, "authorization", "Bearer x").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "etcdserver: invalid auth token")
    );
}

#[tokio::test]
async fn a_signed_token_is_old_after_a_change_of_roles() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let jwt =
        JwtOptions { method: "ES256".into(), public_key: None, private_key: Some(key), ttl: TTL_DEFAULT };
    let auth = Options { tokens: Tokens::Jwt(jwt), ..Options::default() };
    let server = Server::start(Config { auth, ..Config::default() });
    let channel = server.connect().await;
    enable(&channel).await;
    let token = login(&channel).await;
    assert_eq!(token.split('.').count(), 3);
    read(&channel, "token", &token).await.unwrap();
    let add = AuthRoleAddRequest { name: "new".into() };
    AuthClient::new(channel.clone()).role_add(with(add, "token", &token)).await.unwrap();
    let refused = read(&channel, "token", &token).await.unwrap_err();
    let old = (Code::InvalidArgument, "etcdserver: revision of auth store is old");
    assert_eq!((refused.code(), refused.message()), old);
    read(&channel, "token", &login(&channel).await).await.unwrap();
}

/// A CA, a server's certificate, and one of the user root.
fn certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
    let ca = Issuer::new(ca, key);
    for name in ["localhost", "root"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

struct Etcdctl {
    dir: PathBuf,
    port: u16,
}

impl Etcdctl {
    /// What it printed, and whether it succeeded.
    fn run(&self, arguments: &[&str]) -> (String, bool) {
        let bin = std::env::var_os("K0S_TEST_BIN_DIR").expect("K0S_TEST_BIN_DIR has etcdctl");
        let file = |name: &str| self.dir.join(name);
        let output = Command::new(Path::new(&bin).join("etcdctl"))
            .arg(format!("--endpoints=https://localhost:{}", self.port))
            .arg("--cacert")
            .arg(file("ca.pem"))
            .arg("--cert")
            .arg(file("root.pem"))
            .arg("--key")
            .arg(file("root.key"))
            .args(arguments)
            .output()
            .expect("etcdctl runs");
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8_lossy(&text).into_owned(), output.status.success())
    }
}

fn with_client_certificates(certificate_names_user: bool) -> (Server, Etcdctl, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let tls = Tls {
        trusted_ca_file: Some(file("ca.pem")),
        ..Tls::new(file("localhost.pem"), file("localhost.key"))
    };
    let auth = Options { certificate_names_user, ..Options::default() };
    let server = Server::start(Config { tls: Some(tls), auth, ..Config::default() });
    let etcdctl = Etcdctl { dir: dir.path().to_path_buf(), port: server.port() };
    for arguments in [
        &["user", "add", "root", "--no-password"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        let (text, success) = etcdctl.run(arguments);
        assert!(success, "{arguments:?}: {text}");
    }
    (server, etcdctl, dir)
}

#[test]
fn the_common_name_of_a_client_certificate_is_its_user() {
    let (_server, etcdctl, _dir) = with_client_certificates(true);
    let (text, success) = etcdctl.run(&["user", "list"]);
    assert!(success && text == "root\n", "{text}");
}

#[test]
fn a_client_certificate_names_nobody_unless_it_is_to() {
    let (_server, etcdctl, _dir) = with_client_certificates(false);
    let (text, success) = etcdctl.run(&["user", "list"]);
    assert!(!success && text.contains("etcdserver: user name is empty"), "{text}");
}
