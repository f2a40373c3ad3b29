//! etcd's face: its flags and `ETCD_*` variables -> what this server is to be.
//!
//! `parse` takes the texts as etcd does, `table` knows the flags, `value` their kinds, this file gives them their meaning.
//! What can have none here is named in one warning; what would make a cluster of several members is refused. Whatever etcd
//! refuses is refused, in its words.

mod first_start;
mod gates;
mod help;
mod listeners;
mod logging;
mod parse;
mod table;
mod value;

pub use help::{USAGE, help};
pub use listeners::SelfSigned;
pub use logging::{LogError, Logging};
pub use parse::{ParseError, Values};

use super::{parse_bool, parse_duration};
use crate::api::Limits;
use crate::auth::{self, OptionsError, Tokens};
use crate::auto_compaction::AutoCompaction;
use crate::backend::Endpoint;
use crate::config::{Config, Connections, Feature, Http, SlowRequests};
use first_start::FirstStart;
use gates::Switches;
use listeners::Listeners;
use std::path::PathBuf;
use std::time::Duration;
use table::Effect;

/// etcd's quota when none is given.
const QUOTA_DEFAULT: u64 = 2 << 30;
/// What bcrypt can do.
const BCRYPT_COSTS: std::ops::RangeInclusive<u64> = 4..=31;
const BCRYPT_COST_DEFAULT: u32 = 10;
const ELECTION_MS_MAX: u64 = 50_000;
/// What gRPC enforces when it is told nothing.
const GRPC_PING_INTERVAL_MIN: Duration = Duration::from_secs(5 * 60);
/// How often an idle watch is told of progress where the flag says nothing of use, and at most.
const PROGRESS_INTERVAL_DEFAULT: Duration = Duration::from_secs(10 * 60);
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(60 * 60);
const MEGABYTE: u64 = 1 << 20;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NotAdvertised,
    #[error(
        "--initial-cluster names {0} members, but this store has one; start it with its own member only, \
         or leave the flag away"
    )]
    SeveralMembers(usize),
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NotInCluster(String),
    #[error("--initial-cluster: {0:?} is not name=URL")]
    NoMember(String),
    #[error("--initial-cluster has {name}={missing} but missing from --initial-advertise-peer-urls={given}")]
    NotAdvertisedToPeers { name: String, missing: String, given: String },
    #[error("--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={given}")]
    NotInInitialCluster { missing: String, given: String },
    #[error("both --discovery-token and --discovery-endpoints must be set")]
    HalfDiscovery,
    #[error(
        "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \
         \"discovery-srv\""
    )]
    SeveralBootstraps,
    #[error("--{0} finds other members of a cluster, but this store has one member; leave the flag away")]
    Discovery(&'static str),
    #[error("v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"")]
    Fallback,
    #[error("--{flag} {url:?} can't be listened on: {reason}")]
    Url { flag: &'static str, url: String, reason: &'static str },
    #[error("expected IP in URL for binding ({0})")]
    NoAddress(String),
    #[error("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {0}")]
    SharedAddress(String),
    #[error("--initial-advertise-peer-urls {urls:?} must be \"host:port\" ({reason})")]
    PeerUrls { urls: String, reason: String },
    #[error(
        "--advertise-client-urls {urls:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \
         \"unixs:/path/to/socket\" ({reason})"
    )]
    ClientUrls { urls: String, reason: String },
    #[error("--heartbeat-interval must be >0 (set to 0ms)")]
    Heartbeat,
    #[error("--election-timeout must be >0 (set to 0ms)")]
    Election,
    #[error(
        "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
    )]
    ElectionTooShort { election: u64, heartbeat: u64 },
    #[error("--election-timeout[{0}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms")]
    ElectionTooLong(u64),
    #[error("undefined auto-compaction-mode")]
    NoCompactionMode,
    #[error("unknown auto-compaction-mode {0:?}")]
    CompactionMode(String),
    #[error("error parsing CompactionRetention: time: {0}")]
    CompactionRetention(String),
    #[error("distributed tracing configurition is not valid: (tracing sampling rate must be positive)")]
    SamplingRate,
    #[error("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")]
    Gates,
    #[error("--compact-hash-check-time must be >0 (set to {0})")]
    HashCheckTime(String),
    #[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
    TlsVersion(String),
    #[error("min version ({min}) is greater than max version ({max})")]
    TlsVersions { min: String, max: String },
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    CipherSuites,
    #[error("unexpected TLS cipher suite {0:?}")]
    CipherSuite(String),
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    HalfPair { key: String, cert: String },
    #[error("TLS key/cert (--cert-file, --key-file) must be provided for client url {0} with HTTPS scheme")]
    NoCertificate(String),
    #[error("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")]
    NoMetricsCertificate,
    #[error("--peer-cert-file and --peer-key-file must be provided for peer url {0} with HTTPS scheme")]
    NoPeerCertificate(String),
    #[error("selfSignedCertValidity is invalid,it should be greater than 0")]
    NoValidity,
    #[error("--{flag} needs --{needs}: whom should it trust?")]
    NoClientCa { flag: &'static str, needs: &'static str },
    #[error(
        "{0} holds the log of a real etcd, which can't be read here; take a snapshot with etcdctl and \
         restore it into another --data-dir"
    )]
    ForeignData(PathBuf),
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
    /// Certificates that `config` names and that are to be made first.
    pub to_make: Vec<SelfSigned>,
    /// Keep the process in memory.
    pub lock_memory: bool,
    /// Names of flags given that change nothing here.
    pub ignored: Vec<&'static str>,
    /// What is odd.
    pub warnings: Vec<String>,
    first_start: FirstStart,
}

impl Etcd {
    /// # Errors
    /// What etcd refuses too, and what this store can't be.
    pub fn new(values: &Values) -> Result<Etcd, VerifyError> {
        let flags = Flags(values);
        flags.check_discovery()?;
        flags.check_raft()?;
        let name = values.text("name");
        let data_dir = match values.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            dir => PathBuf::from(dir),
        };
        let Listeners { all, to_make, mut warnings } = Listeners::of(&flags, &data_dir)?;
        flags.check_advertised()?;
        // A file says what it says: only who types the one flag has forgotten the other.
        if values.file().is_none()
            && values.is_given("listen-client-urls")
            && !values.is_given("advertise-client-urls")
        {
            return Err(VerifyError::NotAdvertised);
        }
        let first_start = FirstStart::of(&flags)?;
        let features = flags.features()?;
        let database = first_start.give(Endpoint::sqlite(data_dir.join("member/state.db")));
        let config = Config {
            endpoint: if flags.bool("unsafe-no-fsync") { database.without_fsync() } else { database },
            listen: Vec::new(),
            others: all,
            reuse_port: flags.bool("socket-reuse-port"),
            limits: Limits {
                request_bytes_max: flags.uint("max-request-bytes") as usize,
                txn_operations_max: flags.uint("max-txn-ops") as usize,
                quota_bytes: match flags.int("quota-backend-bytes") {
                    0 => QUOTA_DEFAULT,
                    none if none < 0 => 0,
                    bytes => bytes as u64,
                },
            },
            progress_interval: flags.progress_interval(&mut warnings),
            auth: flags.auth(&mut warnings)?,
            auto_compaction: flags.auto_compaction()?,
            slow_requests: SlowRequests {
                unary: Some(match flags.duration("warning-unary-request-duration") {
                    Duration::ZERO => SlowRequests::UNARY_DEFAULT,
                    duration => duration,
                }),
                apply: Some(flags.duration("warning-apply-duration")),
            },
            defragment_above: match flags.uint("bootstrap-defrag-threshold-megabytes") {
                0 => None,
                megabytes => Some(megabytes * MEGABYTE),
            },
            features,
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
            ..Config::default()
        };
        let ignored =
            values.changed().filter(|flag| flag.effect == Effect::None).map(|flag| flag.name).collect();
        Ok(Etcd {
            config,
            data_dir,
            to_make,
            lock_memory: flags.bool("memory-mlock"),
            ignored,
            warnings,
            first_start,
        })
    }

    /// Makes the directory the database goes to; its files are its owner's alone.
    ///
    /// # Errors
    /// When it can't be made, belongs to a real etcd, or is new and the flags can't begin a cluster.
    pub fn prepare_data_dir(&self) -> Result<(), VerifyError> {
        use std::os::unix::fs::DirBuilderExt;
        let member = self.data_dir.join("member");
        if member.join("wal").exists() {
            return Err(VerifyError::ForeignData(self.data_dir.clone()));
        }
        if !member.join("state.db").exists() {
            self.first_start.check()?;
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&member)
            .map_err(|error| VerifyError::DataDir { path: member, error: error.to_string() })
    }
}

/// The values with their types. The forms were checked when the texts were taken.
struct Flags<'a>(&'a Values);

impl Flags<'_> {
    fn check_discovery(&self) -> Result<(), VerifyError> {
        if self.0.text("discovery-fallback") == "proxy" {
            return Err(VerifyError::Fallback);
        }
        let given = |flag: &&str| !self.0.text(flag).is_empty();
        let ways = ["initial-cluster", "discovery-endpoints", "discovery-srv"];
        if ways.iter().filter(|flag| given(flag)).count() > 1 {
            return Err(VerifyError::SeveralBootstraps);
        }
        if given(&"discovery-token") != given(&"discovery-endpoints") {
            return Err(VerifyError::HalfDiscovery);
        }
        match ["discovery-endpoints", "discovery-srv"].into_iter().find(|flag| given(flag)) {
            Some(flag) => Err(VerifyError::Discovery(flag)),
            None => Ok(()),
        }
    }

    /// There is no raft, but what etcd would not start with is a mistake here too.
    fn check_raft(&self) -> Result<(), VerifyError> {
        let (heartbeat, election) = (self.uint("heartbeat-interval"), self.uint("election-timeout"));
        if heartbeat == 0 {
            return Err(VerifyError::Heartbeat);
        }
        if election == 0 {
            return Err(VerifyError::Election);
        }
        if heartbeat.saturating_mul(5) > election {
            return Err(VerifyError::ElectionTooShort { election, heartbeat });
        }
        if election > ELECTION_MS_MAX {
            return Err(VerifyError::ElectionTooLong(election));
        }
        if self.duration("compact-hash-check-time").is_zero() {
            return Err(VerifyError::HashCheckTime(self.0.text("compact-hash-check-time").to_owned()));
        }
        if self.bool("enable-distributed-tracing") && self.int("distributed-tracing-sampling-rate") < 0 {
            return Err(VerifyError::SamplingRate);
        }
        Ok(())
    }

    fn check_advertised(&self) -> Result<(), VerifyError> {
        if let Some(reason) = self.without_host("initial-advertise-peer-urls") {
            let urls = self.0.text("initial-advertise-peer-urls").to_owned();
            return Err(VerifyError::PeerUrls { urls, reason });
        }
        match self.without_host("advertise-client-urls") {
            None => Ok(()),
            Some(reason) => {
                let urls = self.0.text("advertise-client-urls").to_owned();
                Err(VerifyError::ClientUrls { urls, reason })
            }
        }
    }

    /// The complaint about the first URL that names no host. A socket needs none.
    fn without_host(&self, flag: &str) -> Option<String> {
        let urls = self.list(flag);
        let is_without = |url: &&String| url.contains("://:");
        urls.iter().find(is_without).map(|url| format!("unexpected empty host ({url})"))
    }

    fn features(&self) -> Result<Vec<Feature>, VerifyError> {
        let switches = Switches::parse(self.0.text("feature-gates")).unwrap_or_default();
        if switches.is_on("LeaseCheckpointPersist") && !switches.is_on("LeaseCheckpoint") {
            return Err(VerifyError::Gates);
        }
        let features =
            switches.all().map(|(gate, on)| Feature { name: gate.name, stage: gate.stage.name(), on });
        Ok(features.collect())
    }

    fn auth(&self, warnings: &mut Vec<String>) -> Result<auth::Options, VerifyError> {
        let ttl = Duration::from_secs(self.uint("auth-token-ttl"));
        let cost = self.uint("bcrypt-cost");
        let bcrypt_cost = if BCRYPT_COSTS.contains(&cost) {
            cost as u32
        } else {
            warnings.push(format!("use default bcrypt cost instead of the invalid given cost {cost}"));
            BCRYPT_COST_DEFAULT
        };
        Ok(auth::Options {
            tokens: Tokens::parse(self.0.text("auth-token"), ttl, parse_duration)?,
            bcrypt_cost,
            certificate_names_user: self.bool("client-cert-auth"),
        })
    }

    fn progress_interval(&self, warnings: &mut Vec<String>) -> Duration {
        match self.duration("watch-progress-notify-interval") {
            Duration::ZERO => PROGRESS_INTERVAL_DEFAULT,
            interval if interval < PROGRESS_INTERVAL_MIN => {
                warnings.push("adjusting watch progress notify interval to minimum period".to_owned());
                PROGRESS_INTERVAL_MIN
            }
            interval => interval,
        }
    }

    fn auto_compaction(&self) -> Result<Option<AutoCompaction>, VerifyError> {
        let text = self.0.text("auto-compaction-retention");
        let number = text.parse::<u32>().ok();
        let bad = || {
            let unit = text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
            let what = if unit && !text.is_empty() { "missing unit in" } else { "invalid" };
            VerifyError::CompactionRetention(format!("{what} duration {text:?}"))
        };
        match self.0.text("auto-compaction-mode") {
            "" => Err(VerifyError::NoCompactionMode),
            "revision" => Ok(match number.ok_or_else(bad)? {
                0 => None,
                retain => Some(AutoCompaction::revision(retain.into())),
            }),
            "periodic" => {
                let retention = match number {
                    Some(hours) => HOUR * hours,
                    None => parse_duration(text).map_err(|_| bad())?,
                };
                Ok((!retention.is_zero()).then(|| AutoCompaction::periodic(retention)))
            }
            other => Err(VerifyError::CompactionMode(other.to_owned())),
        }
    }

    fn bool(&self, name: &str) -> bool {
        parse_bool(self.0.text(name)).is_ok_and(|value| value)
    }

    fn int(&self, name: &str) -> i64 {
        value::number(self.0.text(name)).ok().and_then(|number| number.try_into().ok()).unwrap_or_default()
    }

    fn uint(&self, name: &str) -> u64 {
        value::number(self.0.text(name)).ok().and_then(|number| number.try_into().ok()).unwrap_or_default()
    }

    /// Below zero is as good as nothing.
    fn duration(&self, name: &str) -> Duration {
        parse_duration(self.0.text(name)).unwrap_or_default()
    }

    fn list(&self, name: &str) -> Vec<String> {
        let items = self.0.text(name).split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Serves, Tls};

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
        assert_eq!((clients.at.to_string().as_str(), &clients.tls), ("127.0.0.1:2379", &None));
        assert_eq!((etcd.ignored.len(), etcd.config.auto_compaction), (0, None));
    }

    #[test]
    fn progress_is_not_told_without_pause() {
        let told = |interval: &str| {
            let etcd = etcd(&["--watch-progress-notify-interval", interval]).unwrap();
            (etcd.config.progress_interval, etcd.warnings.len())
        };
        assert_eq!(["0s", "-1s"].map(told), [(Duration::from_secs(600), 0); 2]);
        assert_eq!(told("99ms"), (Duration::from_millis(100), 1));
        assert_eq!(told("101ms"), (Duration::from_millis(101), 0));
    }

    #[test]
    fn listeners_are_what_their_urls_say() {
        let etcd = etcd(&[
            "--listen-client-urls=https://0.0.0.0:1,unix://a.sock,unixs://host:5,https://0.0.0.0:1",
            "--advertise-client-urls=https://h:1",
            "--listen-client-http-urls=http://[::1]:2",
            "--listen-metrics-urls=http://127.0.0.1:3",
            "--listen-peer-urls=http://127.0.0.1:4",
            "--cert-file=c",
            "--key-file=k",
        ])
        .unwrap();
        let all: Vec<_> = etcd
            .config
            .others
            .iter()
            .map(|door| (door.at.to_string(), door.tls.is_some(), door.serves))
            .collect();
        let wanted = [
            ("0.0.0.0:1".to_owned(), true, Serves::Grpc),
            ("unix://a.sock".to_owned(), false, Serves::Grpc),
            ("unix://host:5".to_owned(), true, Serves::Grpc),
            ("[::1]:2".to_owned(), false, Serves::Http),
            ("127.0.0.1:3".to_owned(), false, Serves::Metrics),
            ("127.0.0.1:4".to_owned(), false, Serves::Peers),
        ];
        assert_eq!(all, wanted);
        assert_eq!(etcd.config.client_urls, ["https://h:1"]);
        assert_eq!(etcd.warnings.len(), 2, "{:?}", etcd.warnings);
    }

    #[test]
    fn one_member_is_all_there_is() {
        let cluster = |cluster: &str| {
            let url = "--initial-advertise-peer-urls=http://127.0.0.1:2380";
            etcd(&["--name=a", url, "--initial-cluster", cluster]).map(|etcd| etcd.first_start.check())
        };
        assert_eq!(cluster("a=http://127.0.0.1:2380"), Ok(Ok(())));
        assert_eq!(cluster("a=http://localhost:2380"), Ok(Ok(())), "names stand for their addresses");
        assert_eq!(cluster("a=http://x:2380,b=http://y:2380"), Err(VerifyError::SeveralMembers(2)));
        assert_eq!(cluster("b=http://127.0.0.1:2380"), Ok(Err(VerifyError::NotInCluster("a".into()))));
        let other = cluster("a=http://127.0.0.1:9").unwrap().unwrap_err().to_string();
        let text = "--initial-cluster has a=http://127.0.0.1:9 but missing from \
                    --initial-advertise-peer-urls=http://127.0.0.1:2380";
        assert_eq!(other, text);
        let srv = VerifyError::Discovery("discovery-srv");
        assert_eq!(etcd(&["--discovery-srv=x"]).unwrap_err(), srv);
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
    fn members_and_clients_have_certificates_of_their_own() {
        let listen = [
            "--listen-client-urls=https://10.0.0.1:1",
            "--advertise-client-urls=https://x:1",
            "--listen-peer-urls=https://10.0.0.2:2",
            "--auto-tls",
        ];
        let peers = [
            "--peer-cert-file=c",
            "--peer-key-file=k",
            "--peer-trusted-ca-file=a",
            "--peer-cert-allowed-cn=x,y",
        ];
        let etcd = etcd(&[listen.as_slice(), peers.as_slice()].concat()).unwrap();
        let [clients, peers] = etcd.config.others.as_slice() else { panic!("{:?}", etcd.config.others) };
        let made = Tls::made_in("default.etcd/fixtures/client".as_ref());
        assert_eq!(clients.tls, Some(made));
        let wanted = Tls {
            trusted_ca_file: Some("a".into()),
            client_common_names: vec!["x".into(), "y".into()],
            ..Tls::new("c", "k")
        };
        assert_eq!(peers.tls, Some(wanted));
        let [to_make] = etcd.to_make.as_slice() else { panic!("{:?}", etcd.to_make) };
        assert_eq!(to_make.hosts, ["10.0.0.1", "127.0.0.1", "localhost"]);
    }

    #[test]
    fn half_of_tls_is_refused_where_it_is_wanted() {
        let https = ["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://x:1"];
        let error = |flags: &[&str]| etcd(&[https.as_slice(), flags].concat()).unwrap_err().to_string();
        assert_eq!(error(&["--cert-file=c"]), "KeyFile and CertFile must both be present[key: , cert: c]");
        let flags = ["--cert-file=c", "--key-file=k", "--client-cert-auth"];
        assert_eq!(error(&flags), "--client-cert-auth needs --trusted-ca-file: whom should it trust?");
        assert!(etcd(&["--cert-file=c"]).is_ok());
    }
}
