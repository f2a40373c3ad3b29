//! What a server is started with: plain data, parsed and checked before anything is opened.

use crate::api::Limits;
use crate::auth;
use crate::auto_compaction::AutoCompaction;
use crate::backend::Endpoint;
use crate::metrics::rows::Slow;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Budget of the value cache unless told otherwise.
pub const CACHE_BYTES: usize = 32 << 20;
/// Budget of replies that are not small, from their evaluation until they are written.
pub const REPLY_BYTES: usize = 64 << 20;
/// Budget of encoded events that wait for clients.
pub const WATCH_BYTES: usize = 128 << 20;
/// Budget of requests that are not small, while they arrive.
pub const REQUEST_BYTES: usize = 64 << 20;
/// The etcd release whose behaviour we offer and report.
pub const EMULATED_ETCD_VERSION: &str = "3.7.1";
/// Where kine listens when it is told nothing.
const KINE_SOCKET: &str = "unix://kine.sock";
/// Told where etcd tells how it was built.
pub const NOT_GO: &str = concat!("none (kine-rs ", env!("CARGO_PKG_VERSION"), ")");
/// kine's interval of periodic progress; etcd's is 10 minutes.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    pub endpoint: Endpoint,
    /// Everything is served here, with TLS if `tls` is there.
    pub listen: Vec<Listen>,
    pub tls: Option<Tls>,
    /// Listeners beside `listen`, each with a protocol and a part of what is served. Two that differ only in `tls` are one
    /// that speaks both.
    pub others: Vec<Listener>,
    /// Other processes may listen on the same TCP ports.
    pub reuse_port: bool,
    pub limits: Limits,
    pub cache_bytes: usize,
    pub reply_bytes: usize,
    pub watch_bytes: usize,
    pub request_bytes: usize,
    pub progress_interval: Duration,
    pub auth: auth::Options,
    pub auto_compaction: Option<AutoCompaction>,
    pub slow: Slow,
    pub slow_requests: SlowRequests,
    /// Unused bytes of the database above which they are given back before anything is served.
    pub defragment_above: Option<u64>,
    /// Features by name that `/metrics` tells of.
    pub features: Vec<Feature>,
    pub http: Http,
    pub connections: Connections,
    pub version: String,
    pub member_name: String,
    pub client_urls: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(out),
            Listen::Unix(path) => write!(out, "unix://{}", path.display()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub at: Listen,
    pub tls: Option<Tls>,
    pub serves: Serves,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    Everything,
    Grpc,
    /// The JSON gateway, version and what `Metrics` has.
    Http,
    /// Health and metrics.
    Metrics,
    /// What members ask each other before they are members: release and membership.
    Peers,
}

/// Times above which a request, or the applying of a command, is logged; `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowRequests {
    pub unary: Option<Duration>,
    pub apply: Option<Duration>,
}

impl SlowRequests {
    /// etcd's, when none is given.
    pub const UNARY_DEFAULT: Duration = Duration::from_millis(300);
}

/// A feature that etcd switches by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub stage: &'static str,
    pub on: bool,
}

/// What plain HTTP may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub gateway: bool,
    /// Origins whose pages may call; `*`: all.
    pub cors: Vec<String>,
    /// Host names a client without TLS may use; `*`: all.
    pub host_whitelist: Vec<String>,
}

/// etcd's defaults: a ping every two hours, twenty seconds for the answer; clients may ping every five seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    pub concurrent_streams_max: u32,
    /// `None`: never ping.
    pub ping_interval: Option<Duration>,
    pub ping_timeout: Duration,
    /// The least time between two pings of a client with a request under way; `None`: pings are not counted.
    pub client_ping_interval_min: Option<Duration>,
    /// Count pings over TLS too where HTTP is served besides gRPC.
    pub pings_counted_beside_http: bool,
    /// How long a client may leave a reply that holds memory unread.
    pub stall_max: Duration,
}

/// Certificates of the client listeners; read again at a handshake when the files have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Clients must show a certificate signed by one of these.
    pub trusted_ca_file: Option<PathBuf>,
    /// Revoked certificates of clients, PEM or DER.
    pub client_crl_file: Option<PathBuf>,
    /// A client's certificate must be valid for one of these names; empty: any.
    pub client_hostnames: Vec<String>,
    /// A client's certificate must have one of these common names; empty: any.
    pub client_common_names: Vec<String>,
    pub version_min: TlsVersion,
    pub version_max: TlsVersion,
    /// Suites of TLS 1.2, by their IANA names; empty: all we have. Those of TLS 1.3 are not chosen, as in Go.
    pub cipher_suites: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

impl Tls {
    /// The pair that is made in a directory when none is given.
    pub fn made_in(dir: &Path) -> Self {
        Tls::new(dir.join("cert.pem"), dir.join("key.pem"))
    }

    pub fn new(cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Tls {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            trusted_ca_file: None,
            client_crl_file: None,
            client_hostnames: Vec::new(),
            client_common_names: Vec::new(),
            version_min: TlsVersion::V1_2,
            version_max: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Http { gateway: true, cors: vec!["*".to_owned()], host_whitelist: vec!["*".to_owned()] }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Connections {
            concurrent_streams_max: u32::MAX,
            ping_interval: Some(Duration::from_secs(2 * 60 * 60)),
            ping_timeout: Duration::from_secs(20),
            client_ping_interval_min: Some(Duration::from_secs(5)),
            pings_counted_beside_http: true,
            stall_max: Duration::from_secs(60),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            endpoint: Endpoint::sqlite("./db/state.db"),
            listen: vec![Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 2379)))],
            tls: None,
            others: Vec::new(),
            reuse_port: false,
            limits: Limits::default(),
            cache_bytes: CACHE_BYTES,
            reply_bytes: REPLY_BYTES,
            watch_bytes: WATCH_BYTES,
            request_bytes: REQUEST_BYTES,
            progress_interval: PROGRESS_INTERVAL,
            auth: auth::Options::default(),
            auto_compaction: None,
            slow: Slow::default(),
            slow_requests: SlowRequests::default(),
            defragment_above: None,
            features: Vec::new(),
            http: Http::default(),
            connections: Connections::default(),
            version: EMULATED_ETCD_VERSION.to_owned(),
            member_name: "kine".to_owned(),
            client_urls: Vec::new(),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("endpoint {0:?} is not <scheme>://<address>, for example sqlite:///var/lib/kine/state.db")]
    NoScheme(String),
    #[error("endpoint scheme {0:?} is not supported yet; use sqlite:// (or memory:// to try things out)")]
    NotYet(String),
    #[error(
        "endpoint scheme {scheme:?} is not supported: {reason}; use sqlite:// (or memory:// to try things out)"
    )]
    Never { scheme: String, reason: &'static str },
    #[error("endpoint scheme {0:?} is of no driver; use sqlite:// (or memory:// to try things out)")]
    Scheme(String),
    #[error("endpoint: SQLite parameter {name}={value} is not supported: {reason}")]
    Parameter { name: String, value: String, reason: &'static str },
    #[error("listen address {0:?} is neither host:port, tcp://host:port, unix:///path nor unixs:///path")]
    Listen(String),
}

/// Parses kine's `--endpoint`. Never echoes what may hold a password.
pub fn parse_endpoint(text: &str) -> Result<Endpoint, ParseError> {
    if text.is_empty() {
        return Ok(Config::default().endpoint);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(ParseError::NoScheme(text.to_owned()));
    };
    match scheme {
        "" | "sqlite" => sqlite_endpoint(rest),
        "memory" => Ok(Endpoint::Memory),
        "postgres" | "postgresql" | "mysql" => Err(ParseError::NotYet(scheme.to_owned())),
        other => match reason_against(other) {
            Some(reason) => Err(ParseError::Never { scheme: other.to_owned(), reason }),
            None => Err(ParseError::Scheme(other.to_owned())),
        },
    }
}

/// Why there is no such driver here, of those that kine has.
fn reason_against(scheme: &str) -> Option<&'static str> {
    Some(match scheme {
        "litestream" => "Litestream needs a write-ahead log that is left alone, and this one is kept bounded",
        "nats" | "jetstream" => "NATS is no database of this store",
        "t4" => "S3 is no database of this store",
        "http" | "https" | "unix" | "unixs" => "that is a server already: point the clients at it",
        _ => return None,
    })
}

/// `PATH?parameters` as Go-kine takes it. What its parameters ask for is either what we do anyway or refused by name.
fn sqlite_endpoint(rest: &str) -> Result<Endpoint, ParseError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.strip_prefix("file:").unwrap_or(path);
    let Endpoint::Sqlite(default) = Endpoint::sqlite("./db/state.db") else {
        unreachable!("a sqlite endpoint")
    };
    let endpoint = if path.is_empty() { Endpoint::Sqlite(default) } else { Endpoint::sqlite(path) };
    for (name, value) in query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let refuse =
            |reason| Err(ParseError::Parameter { name: name.to_owned(), value: value.to_owned(), reason });
        match (name, value.to_ascii_uppercase().as_str()) {
            ("_journal" | "_journal_mode", "WAL") => {}
            ("_journal" | "_journal_mode", _) => return refuse("the journal is always WAL"),
            ("_sync" | "_synchronous", "FULL" | "EXTRA" | "NORMAL" | "1" | "2" | "3") => {}
            ("_sync" | "_synchronous", _) => {
                return refuse("commits are always durable (FULL); --unsafe-no-fsync turns that off");
            }
            ("_txlock", "IMMEDIATE" | "EXCLUSIVE") => {}
            ("_txlock", _) => return refuse("writes always lock at once"),
            ("cache", "SHARED" | "PRIVATE") => {}
            ("mode", "RWC" | "RW") => {}
            ("_busy_timeout" | "_timeout" | "_stmt_cache_size", _) => {}
            ("_kine_disable_compact_wal_checkpoint" | "_kine_disable_wal_autocheckpoint", _) => {
                return refuse("the WAL is always kept bounded");
            }
            ("_kine_disable_startup_vacuum", _) => {}
            _ => return refuse("unknown parameter"),
        }
    }
    Ok(endpoint)
}

/// Parses kine's `--listen-address`; nothing is kine's socket.
pub fn parse_listen(text: &str) -> Result<Listen, ParseError> {
    let bad = || ParseError::Listen(text.to_owned());
    let text = if text.is_empty() { KINE_SOCKET } else { text };
    if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unixs://")) {
        return if path.is_empty() { Err(bad()) } else { Ok(Listen::Unix(path.into())) };
    }
    let address =
        ["tcp://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    parse_address(address).map(Listen::Tcp).ok_or_else(bad)
}

/// `host:port`; an empty host is every address.
pub fn parse_address(text: &str) -> Option<SocketAddr> {
    use std::net::ToSocketAddrs;
    let text = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    text.to_socket_addrs().ok()?.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kines_default_dsn_is_accepted_and_unknown_parameters_are_named() {
        let dsn = "sqlite:///data/state.db?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_stmt_cache_size=20&cache=shared";
        assert_eq!(parse_endpoint(dsn), Ok(Endpoint::sqlite("/data/state.db")));
        assert_eq!(parse_endpoint("sqlite://rel.db"), Ok(Endpoint::sqlite("rel.db")));
        let error = parse_endpoint("sqlite:///x?_journal=DELETE").unwrap_err().to_string();
        assert!(error.contains("_journal=DELETE"), "{error}");
        let error = parse_endpoint("postgres://user:secret@db/kine").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn every_driver_of_kine_is_one_of_ours_or_refused_by_name() {
        let drivers =
            "sqlite litestream postgres postgresql mysql nats jetstream t4 memory http https unix unixs";
        for scheme in drivers.split(' ') {
            let parsed = parse_endpoint(&format!("{scheme}://x"));
            let known = !matches!(parsed, Err(ParseError::Scheme(_) | ParseError::NoScheme(_)));
            assert!(known, "{scheme}: {parsed:?}");
        }
        assert!(matches!(parse_endpoint("foo://x"), Err(ParseError::Scheme(_))));
    }

    #[test]
    fn listen_addresses_of_every_form_are_understood() {
        assert_eq!(parse_listen("127.0.0.1:0"), Ok(Listen::Tcp(([127, 0, 0, 1], 0).into())));
        assert_eq!(parse_listen("tcp://127.0.0.1:5"), Ok(Listen::Tcp(([127, 0, 0, 1], 5).into())));
        assert_eq!(parse_listen("unix:///run/kine.sock"), Ok(Listen::Unix("/run/kine.sock".into())));
        assert_eq!(parse_listen("unixs://kine.sock"), Ok(Listen::Unix("kine.sock".into())));
        assert_eq!(parse_listen(""), Ok(Listen::Unix("kine.sock".into())));
        assert!(parse_listen("nowhere").is_err());
    }
}
