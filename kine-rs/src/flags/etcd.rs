//! etcd's face: its flags and `ETCD_*` variables -> what this server is to be.
//!
//! `parse` takes the texts as etcd does, `table` knows the flags, this file gives them their meaning. What can have none
//! here is named in one warning; what would make a cluster of several members is refused.

mod parse;
mod table;

pub use parse::{ParseError, Values};
pub use table::FLAGS;

use super::{parse_bool, parse_duration};
use crate::api::Limits;
use crate::auth::{self, OptionsError, Tokens};
use crate::auto_compaction::AutoCompaction;
use crate::backend::Endpoint;
use crate::config::{Config, Connections, Http, Listen, Listener, Serves, Tls, TlsVersion, parse_address};
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Effect;

/// etcd's quota when none is given.
const QUOTA_DEFAULT: u64 = 2 << 30;
/// What bcrypt can do.
const BCRYPT_COSTS: (u64, u64) = (4, 31);
/// What gRPC enforces when it is told nothing.
const GRPC_PING_INTERVAL_MIN: Duration = Duration::from_secs(5 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NotAdvertised,
    #[error(
        "--initial-cluster names {0} members, but this store has one; start it with its own member only, \
         or leave the flag away"
    )]
    SeveralMembers(usize),
    #[error("couldn't find local name {name:?} in the initial cluster configuration {cluster:?}")]
    NotInCluster { name: String, cluster: String },
    #[error("--{0} finds other members of a cluster, but this store has one member; leave the flag away")]
    Discovery(&'static str),
    #[error("--{flag} {url:?} can't be listened on: {reason}")]
    Url { flag: &'static str, url: String, reason: &'static str },
    #[error("unknown auto-compaction-mode {0:?}")]
    CompactionMode(String),
    #[error("error parsing CompactionRetention: {0:?} is neither a number nor a duration")]
    CompactionRetention(String),
    #[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
    TlsVersion(String),
    #[error("--cert-file and --key-file belong together")]
    HalfPair,
    #[error("--client-cert-auth needs --trusted-ca-file: whom should it trust?")]
    NoClientCa,
    #[error("--initial-cluster-state is \"new\" or \"existing\", not {0:?}")]
    ClusterState(String),
    #[error(
        "{0} holds the log of a real etcd, which can't be read here; take a snapshot with etcdctl and \
         restore it into another --data-dir"
    )]
    ForeignData(PathBuf),
    #[error("--{flag} must be between {min} and {max}")]
    Range { flag: &'static str, min: u64, max: u64 },
    #[error("--auth-token: {0}")]
    AuthToken(#[from] OptionsError),
    #[error("data directory {path}: {error}")]
    DataDir { path: PathBuf, error: String },
}

/// What the flags come to.
#[derive(Debug)]
pub struct Etcd {
    pub config: Config,
    pub data_dir: PathBuf,
    /// Make a certificate in the data directory when `config` has none but needs one.
    pub auto_tls: Option<AutoTls>,
    /// Names of flags given that change nothing here.
    pub ignored: Vec<&'static str>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct AutoTls {
    pub dir: PathBuf,
    pub hosts: Vec<String>,
    pub validity: Duration,
}

impl Etcd {
    /// # Errors
    /// What etcd refuses too, and what this store can't be.
    pub fn new(values: &Values) -> Result<Etcd, VerifyError> {
        let flags = Flags(values);
        flags.check_cluster()?;
        if values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
            return Err(VerifyError::NotAdvertised);
        }
        let name = values.text("name");
        let data_dir = match values.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            dir => PathBuf::from(dir),
        };
        let others = flags.listeners()?;
        let (tls, auto_tls) = flags.tls(&data_dir, &others)?;
        let database = Endpoint::sqlite(data_dir.join("member/state.db"));
        let config = Config {
            endpoint: if flags.bool("unsafe-no-fsync") { database.without_fsync() } else { database },
            listen: Vec::new(),
            tls,
            others,
            limits: Limits {
                request_bytes_max: flags.uint("max-request-bytes") as usize,
                txn_operations_max: flags.uint("max-txn-ops") as usize,
                quota_bytes: match flags.int("quota-backend-bytes") {
                    0 => QUOTA_DEFAULT,
                    none if none < 0 => 0,
                    bytes => bytes as u64,
                },
            },
            progress_interval: flags.duration("watch-progress-notify-interval"),
            auth: flags.auth()?,
            auto_compaction: flags.auto_compaction()?,
            http: Http {
                gateway: flags.bool("enable-grpc-gateway"),
                cors: flags.list("cors"),
                host_whitelist: flags.list("host-whitelist"),
            },
            connections: Connections {
                concurrent_streams_max: flags.uint("max-concurrent-streams").min(u32::MAX.into()) as u32,
                ping_interval: Some(flags.duration("grpc-keepalive-interval"))
                    .filter(|interval| !interval.is_zero()),
                ping_timeout: match flags.duration("grpc-keepalive-timeout") {
                    Duration::ZERO => Connections::default().ping_timeout,
                    timeout => timeout,
                },
                client_ping_interval_min: Some(match flags.duration("grpc-keepalive-min-time") {
                    Duration::ZERO => GRPC_PING_INTERVAL_MIN,
                    interval => interval,
                }),
                // There etcd has Go's HTTP server in front of gRPC, which does not count.
                pings_counted_beside_http: false,
                ..Connections::default()
            },
            member_name: name.to_owned(),
            client_urls: flags.list("advertise-client-urls"),
            peer_urls: flags.list("initial-advertise-peer-urls"),
            ..Config::default()
        };
        let ignored =
            values.changed().filter(|flag| flag.effect == Effect::None).map(|flag| flag.name).collect();
        Ok(Etcd { config, data_dir, auto_tls, ignored })
    }

    /// Makes the directory the database goes to; its files are its owner's alone.
    ///
    /// # Errors
    /// When it can't be made, or belongs to a real etcd.
    pub fn prepare_data_dir(&self) -> Result<(), VerifyError> {
        use std::os::unix::fs::DirBuilderExt;
        let member = self.data_dir.join("member");
        if member.join("wal").exists() {
            return Err(VerifyError::ForeignData(self.data_dir.clone()));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&member)
            .map_err(|error| VerifyError::DataDir { path: member, error: error.to_string() })
    }
}

struct Flags<'a>(&'a Values);

impl Flags<'_> {
    fn check_cluster(&self) -> Result<(), VerifyError> {
        for flag in ["discovery", "discovery-endpoints", "discovery-srv"] {
            if !self.0.text(flag).is_empty() {
                return Err(VerifyError::Discovery(flag));
            }
        }
        let state = self.0.text("initial-cluster-state");
        if !matches!(state, "new" | "existing") {
            return Err(VerifyError::ClusterState(state.to_owned()));
        }
        let cluster = self.0.text("initial-cluster");
        let mut names: Vec<_> = self
            .list("initial-cluster")
            .into_iter()
            .filter_map(|member| Some(member.split_once('=')?.0.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        let name = self.0.text("name");
        match names.as_slice() {
            [] if cluster.is_empty() => Ok(()),
            [only] if only == name => Ok(()),
            [_] | [] => Err(VerifyError::NotInCluster { name: name.to_owned(), cluster: cluster.to_owned() }),
            several => Err(VerifyError::SeveralMembers(several.len())),
        }
    }

    fn listeners(&self) -> Result<Vec<Listener>, VerifyError> {
        let http_apart = !self.0.text("listen-client-http-urls").is_empty();
        let clients = if http_apart { Serves::Grpc } else { Serves::Everything };
        let mut listeners = Vec::new();
        for (flag, serves) in [
            ("listen-client-urls", clients),
            ("listen-client-http-urls", Serves::Http),
            ("listen-metrics-urls", Serves::Metrics),
        ] {
            for url in self.list(flag) {
                listeners.push(listener(flag, &url, serves)?);
            }
        }
        Ok(listeners)
    }

    fn tls(
        &self,
        data_dir: &Path,
        listeners: &[Listener],
    ) -> Result<(Option<Tls>, Option<AutoTls>), VerifyError> {
        let path = |flag| Some(self.0.text(flag)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let version = |text: &str| match text {
            "TLS1.2" => Ok(TlsVersion::V1_2),
            "" | "TLS1.3" => Ok(TlsVersion::V1_3),
            other => Err(VerifyError::TlsVersion(other.to_owned())),
        };
        let (version_min, version_max) =
            (version(self.0.text("tls-min-version"))?, version(self.0.text("tls-max-version"))?);
        let (cert_file, key_file) = match (path("cert-file"), path("key-file")) {
            (Some(cert_file), Some(key_file)) => (cert_file, key_file),
            (None, None) if self.bool("auto-tls") && listeners.iter().any(|listener| listener.tls) => {
                let auto_tls = AutoTls {
                    dir: data_dir.join("fixtures/client"),
                    hosts: hosts(listeners),
                    validity: YEAR * self.uint("self-signed-cert-validity").clamp(1, 100) as u32,
                };
                return Ok((None, Some(auto_tls)));
            }
            (None, None) => return Ok((None, None)),
            _ => return Err(VerifyError::HalfPair),
        };
        let trusted_ca_file = path("trusted-ca-file");
        if trusted_ca_file.is_none() && self.bool("client-cert-auth") {
            return Err(VerifyError::NoClientCa);
        }
        let tls = Tls {
            trusted_ca_file,
            client_crl_file: path("client-crl-file"),
            client_hostnames: self.list("client-cert-allowed-hostname"),
            version_min,
            version_max,
            cipher_suites: self.list("cipher-suites"),
            ..Tls::new(cert_file, key_file)
        };
        Ok((Some(tls), None))
    }

    fn auth(&self) -> Result<auth::Options, VerifyError> {
        let ttl = Duration::from_secs(self.uint("auth-token-ttl"));
        let cost = self.uint("bcrypt-cost");
        let (min, max) = BCRYPT_COSTS;
        Ok(auth::Options {
            tokens: Tokens::parse(self.0.text("auth-token"), ttl, parse_duration)?,
            bcrypt_cost: u32::try_from(cost)
                .ok()
                .filter(|_| (min..=max).contains(&cost))
                .ok_or(VerifyError::Range { flag: "bcrypt-cost", min, max })?,
            certificate_names_user: self.bool("client-cert-auth"),
        })
    }

    fn auto_compaction(&self) -> Result<Option<AutoCompaction>, VerifyError> {
        let text = self.0.text("auto-compaction-retention");
        let bad = || VerifyError::CompactionRetention(text.to_owned());
        let number = text.parse::<u32>().ok();
        match self.0.text("auto-compaction-mode") {
            "revision" => Ok(match number.ok_or_else(bad)? {
                0 => None,
                retain => Some(AutoCompaction::revision(retain.into())),
            }),
            "periodic" | "" => {
                let retention = match number {
                    Some(hours) => HOUR * hours,
                    None => parse_duration(text).map_err(|_| bad())?,
                };
                Ok((!retention.is_zero()).then(|| AutoCompaction::periodic(retention)))
            }
            other => Err(VerifyError::CompactionMode(other.to_owned())),
        }
    }

    // The forms were checked when the texts were taken.

    fn bool(&self, name: &str) -> bool {
        parse_bool(self.0.text(name)).is_ok_and(|value| value)
    }

    fn int(&self, name: &str) -> i64 {
        self.0.text(name).parse().unwrap_or_default()
    }

    fn uint(&self, name: &str) -> u64 {
        self.0.text(name).parse().unwrap_or_default()
    }

    fn duration(&self, name: &str) -> Duration {
        parse_duration(self.0.text(name)).unwrap_or_default()
    }

    fn list(&self, name: &str) -> Vec<String> {
        let items = self.0.text(name).split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }
}

/// `http(s)://address:port` or `unix://path`.
fn listener(flag: &'static str, url: &str, serves: Serves) -> Result<Listener, VerifyError> {
    let bad = |reason| VerifyError::Url { flag, url: url.to_owned(), reason };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
    let tls = scheme == "https";
    match scheme {
        "unix" => Ok(Listener { at: Listen::Unix(rest.into()), tls: false, serves }),
        "http" | "https" => {
            let rest = rest.trim_end_matches('/');
            let (host, _) = rest.rsplit_once(':').ok_or_else(|| bad("it names no port"))?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let is_address = host.parse::<std::net::IpAddr>().is_ok();
            if !is_address && !matches!(host, "localhost" | "") {
                return Err(bad("expected an IP address, as names may change"));
            }
            let rest = rest.replacen("localhost", "127.0.0.1", 1);
            let address = parse_address(&rest).ok_or_else(|| bad("it is not host:port"))?;
            Ok(Listener { at: Listen::Tcp(address), tls, serves })
        }
        _ => Err(bad("a Unix socket is guarded by its mode: use unix://, or https:// for TLS")),
    }
}

fn hosts(listeners: &[Listener]) -> Vec<String> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    for listener in listeners {
        if let Listen::Tcp(address) = &listener.at
            && !address.ip().is_unspecified()
        {
            hosts.push(address.ip().to_string());
        }
    }
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(arguments: &[&str]) -> Result<Etcd, VerifyError> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Etcd::new(&Values::parse(&arguments, std::iter::empty()).expect("the form is right"))
    }

    #[test]
    fn defaults_are_etcds() {
        let etcd = etcd(&[]).unwrap();
        assert_eq!(etcd.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(etcd.config.limits.quota_bytes, 2 << 30);
        assert_eq!(etcd.config.progress_interval, Duration::from_secs(600));
        let [clients] = etcd.config.others.as_slice() else { panic!("{:?}", etcd.config.others) };
        assert_eq!((clients.at.to_string().as_str(), clients.tls), ("127.0.0.1:2379", false));
        assert_eq!((etcd.ignored.len(), etcd.config.auto_compaction), (0, None));
    }

    #[test]
    fn listeners_are_what_their_urls_say() {
        let etcd = etcd(&[
            "--listen-client-urls=https://0.0.0.0:1,unix://a.sock",
            "--advertise-client-urls=https://h:1",
            "--listen-client-http-urls=http://[::1]:2",
            "--listen-metrics-urls=http://127.0.0.1:3",
            "--cert-file=c",
            "--key-file=k",
        ])
        .unwrap();
        let all: Vec<_> =
            etcd.config.others.iter().map(|door| (door.at.to_string(), door.tls, door.serves)).collect();
        let wanted = [
            ("0.0.0.0:1".to_owned(), true, Serves::Grpc),
            ("unix://a.sock".to_owned(), false, Serves::Grpc),
            ("[::1]:2".to_owned(), false, Serves::Http),
            ("127.0.0.1:3".to_owned(), false, Serves::Metrics),
        ];
        assert_eq!(all, wanted);
        assert_eq!(etcd.config.client_urls, ["https://h:1"]);
    }

    #[test]
    fn one_member_is_all_there_is() {
        let cluster = |cluster: &str| etcd(&["--name=a", "--initial-cluster", cluster]).map(|_| ());
        assert_eq!(cluster("a=http://x:2380"), Ok(()));
        assert_eq!(cluster("a=http://x:2380,a=http://y:2380"), Ok(()));
        assert_eq!(cluster("a=http://x:2380,b=http://y:2380"), Err(VerifyError::SeveralMembers(2)));
        assert!(matches!(cluster("b=http://x:2380"), Err(VerifyError::NotInCluster { .. })));
        assert_eq!(etcd(&["--discovery=http://x"]).unwrap_err(), VerifyError::Discovery("discovery"));
    }

    #[test]
    fn retention_is_a_time_or_a_number() {
        let compaction = |flags: &[&str]| etcd(flags).map(|etcd| etcd.config.auto_compaction);
        assert_eq!(
            compaction(&["--auto-compaction-retention=2"]),
            Ok(Some(AutoCompaction::periodic(HOUR * 2)))
        );
        let minutes = Ok(Some(AutoCompaction::periodic(Duration::from_secs(600))));
        assert_eq!(compaction(&["--auto-compaction-retention=10m"]), minutes);
        let flags = ["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"];
        assert_eq!(compaction(&flags), Ok(Some(AutoCompaction::revision(1000))));
        let unknown = Err(VerifyError::CompactionMode("foo".into()));
        assert_eq!(compaction(&["--auto-compaction-mode=foo"]), unknown);
        assert!(compaction(&["--auto-compaction-retention=x"]).is_err());
    }

    #[test]
    fn the_least_time_between_pings_is_never_none() {
        let least = |flags: &[&str]| etcd(flags).unwrap().config.connections.client_ping_interval_min;
        assert_eq!(least(&[]), Some(Duration::from_secs(5)));
        assert_eq!(least(&["--grpc-keepalive-min-time=30s"]), Some(Duration::from_secs(30)));
        assert_eq!(least(&["--grpc-keepalive-min-time=0"]), Some(Duration::from_secs(300)));
    }

    #[test]
    fn what_changes_nothing_is_named_only_when_it_was_changed() {
        let etcd = etcd(&["--snapshot-count=10000", "--heartbeat-interval=200", "--name=x"]).unwrap();
        assert_eq!(etcd.ignored, ["heartbeat-interval"]);
    }

    #[test]
    fn half_of_tls_is_refused() {
        assert_eq!(etcd(&["--cert-file=c"]).unwrap_err(), VerifyError::HalfPair);
        let flags = ["--cert-file=c", "--key-file=k", "--client-cert-auth"];
        assert_eq!(etcd(&flags).unwrap_err(), VerifyError::NoClientCa);
        let old = VerifyError::TlsVersion("TLS1.1".into());
        assert_eq!(etcd(&["--tls-min-version=TLS1.1"]).unwrap_err(), old);
        let listen = ["--listen-client-urls=https://10.0.0.1:1", "--advertise-client-urls=https://x:1"];
        let auto = etcd(&[listen[0], listen[1], "--auto-tls"]).unwrap().auto_tls.unwrap();
        assert_eq!(auto.hosts, ["10.0.0.1", "127.0.0.1", "localhost"]);
    }
}
