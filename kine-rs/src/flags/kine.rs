//! kine's flags and `KINE_*` variables.
//!
//! Where kine's defaults would serve metrics to everybody without encryption, ours serve this machine only.

use super::{parse_bool, parse_duration, parse_positive_duration};
use crate::api::Limits;
use crate::auto_compaction::AutoCompaction;
use crate::config::{
    Config, EMULATED_ETCD_VERSION, Http, Listen, Listener, ParseError, Serves, Tls, parse_address,
    parse_endpoint, parse_listen,
};
use crate::metrics::rows::Slow;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const METRICS_ADDRESS: &str = ":8080";

/// kine refuses smaller batches.
const COMPACT_BATCH_SIZE_MIN: u64 = 100;

/// Accepted, but this store has nothing they could change: one connection pool, one batch size, one peer less.
const WITHOUT_MEANING: [&str; 23] = [
    "ca_file",
    "cert_file",
    "key_file",
    "skip_verify",
    "datastore_max_idle_connections",
    "datastore_max_open_connections",
    "datastore_connection_max_lifetime",
    "datastore_connection_max_idle_time",
    "compact_timeout",
    "compact_batch_size",
    "poll_batch_size",
    "peer_bind_address",
    "peer_advertise_address",
    "s3_bucket",
    "s3_folder",
    "s3_endpoint",
    "s3_region",
    "s3_access_key",
    "s3_secret_key",
    "s3_session_token",
    "s3_profile",
    "s3_ca_bundle",
    "schema_migration",
];

/// Serves the etcd v3 API from an SQL database.
#[derive(Debug, Parser)]
#[command(
    name = "kine",
    version = concat!("version v", env!("CARGO_PKG_VERSION"), " (kine-rs)"),
    disable_version_flag = true,
    after_help = "kine snapshot restore makes a database from a snapshot of etcd or of kine: see kine snapshot --help"
)]
pub struct Args {
    /// Where to listen: host:port, tcp://host:port, or unix:///path, with TLS when there is a certificate
    #[arg(long, env = "KINE_LISTEN_ADDRESS", default_value = "0.0.0.0:2379")]
    listen_address: String,
    /// Database: sqlite:///path/to/file (default ./db/state.db), memory://
    #[arg(
        long,
        env = "KINE_ENDPOINT",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    endpoint: String,
    /// Certificate of this server for its clients
    #[arg(long, env = "KINE_SERVER_CERT_FILE", requires = "server_key_file")]
    server_cert_file: Option<PathBuf>,
    /// Key of --server-cert-file
    #[arg(long, env = "KINE_SERVER_KEY_FILE", requires = "server_cert_file")]
    server_key_file: Option<PathBuf>,
    /// Clients must show a certificate signed by this CA
    #[arg(long, env = "KINE_TRUSTED_CA_FILE", requires = "server_cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// Where to serve /metrics, /health and /version; without a host: this machine only, or everywhere with TLS; 0: nowhere
    #[arg(long, env = "KINE_METRICS_BIND_ADDRESS", default_value = METRICS_ADDRESS)]
    metrics_bind_address: String,
    /// Serve metrics without TLS though clients get it
    #[arg(long, env = "KINE_METRICS_IGNORE_TLS_CONFIG", value_parser = parse_bool, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    metrics_ignore_tls_config: bool,
    /// Refused: there is no profiler in this program
    #[arg(long, env = "KINE_METRICS_ENABLE_PROFILING", value_parser = parse_bool, num_args = 0..=1, hide = true,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    metrics_enable_profiling: bool,
    /// Interval of periodic progress notifications
    #[arg(long, env = "KINE_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "5s", value_parser = parse_positive_duration)]
    watch_progress_notify_interval: Duration,
    /// etcd release to report to clients
    #[arg(long, env = "KINE_EMULATED_ETCD_VERSION", default_value = EMULATED_ETCD_VERSION)]
    emulated_etcd_version: String,
    /// Compact to the revision of this long ago, this often; 0: leave it to the clients
    #[arg(long, env = "KINE_COMPACT_INTERVAL", default_value = "0s", value_parser = parse_duration)]
    compact_interval: Duration,
    /// Vary --compact-interval by this many percent either way
    #[arg(long, env = "KINE_COMPACT_INTERVAL_JITTER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    compact_interval_jitter: u32,
    /// Revisions that --compact-interval leaves
    #[arg(long, env = "KINE_COMPACT_MIN_RETAIN", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(0..))]
    compact_min_retain: i64,
    /// Log accesses to the database that take as long; 0 or less: never
    #[arg(long, env = "KINE_SLOW_SQL_THRESHOLD", default_value = "1s", allow_hyphen_values = true,
        value_parser = parse_or_nothing)]
    slow_sql_threshold: Duration,
    /// Warn of accesses to the database that are logged and take as long
    #[arg(long, env = "KINE_SLOW_SQL_WARNING_THRESHOLD", default_value = "5s", allow_hyphen_values = true,
        value_parser = parse_or_nothing)]
    slow_sql_warning_threshold: Duration,
    /// Memory for values that were read or written lately, in MiB
    #[arg(long, env = "KINE_CACHE_MIB", default_value_t = 32)]
    cache_mib: usize,
    /// Size of the database, in bytes, at which writes are refused with NOSPACE; 0: no quota
    #[arg(long, env = "KINE_QUOTA_BACKEND_BYTES", default_value_t = 0)]
    quota_backend_bytes: u64,
    /// Do not wait for the disk: an acknowledged write can be lost. For tests only
    #[arg(long)]
    unsafe_no_fsync: bool,
    /// Log format: plain or json
    #[arg(long, env = "KINE_LOG_FORMAT", default_value = "plain")]
    pub log_format: LogFormat,
    /// Log more
    #[arg(long, env = "KINE_DEBUG", value_parser = parse_bool, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub debug: bool,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
    #[command(flatten)]
    pool: Pool,
}

/// Of databases that are reached over a network, and of stores that are not this one.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted for kine's sake, without effect here")]
struct Pool {
    #[arg(long, env = "KINE_CA_FILE")]
    ca_file: Option<String>,
    #[arg(long, env = "KINE_CERT_FILE")]
    cert_file: Option<String>,
    #[arg(long, env = "KINE_KEY_FILE")]
    key_file: Option<String>,
    #[arg(long, env = "KINE_SKIP_VERIFY", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_verify: Option<String>,
    #[arg(long, env = "KINE_DATASTORE_MAX_IDLE_CONNECTIONS", allow_hyphen_values = true)]
    datastore_max_idle_connections: Option<String>,
    #[arg(long, env = "KINE_DATASTORE_MAX_OPEN_CONNECTIONS", allow_hyphen_values = true)]
    datastore_max_open_connections: Option<String>,
    #[arg(long, env = "KINE_DATASTORE_CONNECTION_MAX_LIFETIME", allow_hyphen_values = true)]
    datastore_connection_max_lifetime: Option<String>,
    #[arg(long, env = "KINE_DATASTORE_CONNECTION_MAX_IDLE_TIME", allow_hyphen_values = true)]
    datastore_connection_max_idle_time: Option<String>,
    #[arg(long, env = "KINE_COMPACT_TIMEOUT")]
    compact_timeout: Option<String>,
    #[arg(long, env = "KINE_COMPACT_BATCH_SIZE", value_parser = clap::value_parser!(u64).range(COMPACT_BATCH_SIZE_MIN..))]
    compact_batch_size: Option<u64>,
    #[arg(long, env = "KINE_POLL_BATCH_SIZE")]
    poll_batch_size: Option<String>,
    #[arg(long, env = "KINE_PEER_BIND_ADDRESS")]
    peer_bind_address: Option<String>,
    #[arg(long, env = "KINE_PEER_ADVERTISE_ADDRESS")]
    peer_advertise_address: Option<String>,
    #[arg(long, env = "KINE_S3_BUCKET")]
    s3_bucket: Option<String>,
    #[arg(long, env = "KINE_S3_FOLDER")]
    s3_folder: Option<String>,
    #[arg(long, env = "KINE_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    #[arg(long)]
    s3_region: Option<String>,
    #[arg(long)]
    s3_access_key: Option<String>,
    #[arg(long, hide = true)]
    s3_secret_key: Option<String>,
    #[arg(long, hide = true)]
    s3_session_token: Option<String>,
    #[arg(long)]
    s3_profile: Option<String>,
    #[arg(long)]
    s3_ca_bundle: Option<String>,
    /// Of PostgreSQL and MySQL
    #[arg(long, env = "KINE_SCHEMA_MIGRATION", hide = true)]
    schema_migration: Option<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    Plain,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("--metrics-bind-address {0:?} is not host:port")]
    MetricsAddress(String),
    #[error("--listen-address {0:?} is to speak TLS, but there is no --server-cert-file")]
    NoCertificate(String),
    #[error("--metrics-enable-profiling: this program has no profiler; leave the flag away and use perf")]
    Profiling,
}

/// What a command line comes to.
pub struct Flags {
    pub args: Args,
    /// Names of the flags given that have no meaning here.
    pub ignored: Vec<String>,
}

impl Flags {
    /// # Errors
    /// What to print instead of serving: help, the version, or what is wrong. As in kine the status is 1 then, not clap's.
    pub fn parse(arguments: Vec<String>) -> Result<Flags, ExitCode> {
        Flags::try_parse(arguments).map_err(|error| {
            // A closed output is no reason to say anything else.
            error.print().ok();
            if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        })
    }

    fn try_parse(arguments: Vec<String>) -> Result<Flags, clap::Error> {
        let matches = Args::command().try_get_matches_from(arguments)?;
        let given =
            |id: &&str| matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
        let flag = |id: &str| format!("--{}", id.replace('_', "-"));
        let ignored = WITHOUT_MEANING.into_iter().filter(given).map(flag).collect();
        Ok(Flags { args: Args::from_arg_matches(&matches)?, ignored })
    }
}

impl Args {
    /// # Errors
    /// A value that no flag of its kind can have.
    pub fn configure(self) -> Result<Config, FlagError> {
        if self.metrics_enable_profiling {
            return Err(FlagError::Profiling);
        }
        let endpoint = parse_endpoint(&self.endpoint)?;
        let endpoint = if self.unsafe_no_fsync { endpoint.without_fsync() } else { endpoint };
        let files = self.server_cert_file.zip(self.server_key_file);
        let tls = files.map(|(cert_file, key_file)| Tls {
            trusted_ca_file: self.trusted_ca_file,
            ..Tls::new(cert_file, key_file)
        });
        // As kine: who watches over this server needs no certificate.
        if self.listen_address.starts_with("unixs://") && tls.is_none() {
            return Err(FlagError::NoCertificate(self.listen_address));
        }
        let metrics_tls = tls.clone().filter(|_| !self.metrics_ignore_tls_config);
        let metrics_tls = metrics_tls.map(|tls| Tls { trusted_ca_file: None, ..tls });
        let metrics = metrics_address(&self.metrics_bind_address, metrics_tls.is_some())?;
        let auto_compaction = (!self.compact_interval.is_zero()).then(|| {
            AutoCompaction::interval(
                self.compact_interval,
                self.compact_interval_jitter,
                self.compact_min_retain,
            )
        });
        let some = |threshold: Duration| (!threshold.is_zero()).then_some(threshold);
        Ok(Config {
            endpoint,
            listen: vec![parse_listen(&self.listen_address)?],
            tls,
            others: metrics
                .map(|address| Listener {
                    at: Listen::Tcp(address),
                    tls: metrics_tls,
                    serves: Serves::Metrics,
                })
                .into_iter()
                .collect(),
            limits: Limits { quota_bytes: self.quota_backend_bytes, ..Limits::default() },
            cache_bytes: self.cache_mib << 20,
            progress_interval: self.watch_progress_notify_interval,
            auto_compaction,
            slow: Slow { info: some(self.slow_sql_threshold), warn: some(self.slow_sql_warning_threshold) },
            // kine never spoke to pages of a browser, and there is no flag to say which may ask.
            http: Http { cors: Vec::new(), ..Http::default() },
            version: self.emulated_etcd_version,
            ..Config::default()
        })
    }
}

/// Go has times below nothing; here they are as good as nothing.
fn parse_or_nothing(text: &str) -> Result<Duration, String> {
    match text.strip_prefix('-') {
        Some(rest) => parse_duration(rest).map(|_| Duration::ZERO),
        None => parse_duration(text),
    }
}

/// An address that names no host is every address when it is encrypted, else this machine's own.
fn metrics_address(text: &str, tls: bool) -> Result<Option<SocketAddr>, FlagError> {
    if text == "0" {
        return Ok(None);
    }
    let text = if text.is_empty() { METRICS_ADDRESS } else { text };
    let mut address = parse_address(text).ok_or_else(|| FlagError::MetricsAddress(text.to_owned()))?;
    if text.starts_with(':') && !tls {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Flags {
        let arguments = ["kine"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
        Flags::try_parse(arguments).expect("the flags are valid")
    }

    #[test]
    fn flags_of_other_databases_are_accepted_and_named() {
        let flags = parse(&[
            "--datastore-max-idle-connections",
            "-1",
            "--poll-batch-size=500",
            "--compact-batch-size=1000",
            "--skip-verify",
        ]);
        assert_eq!(
            flags.ignored,
            [
                "--skip-verify",
                "--datastore-max-idle-connections",
                "--compact-batch-size",
                "--poll-batch-size"
            ]
        );
        assert!(Flags::try_parse(vec!["kine".into(), "--compact-batch-size=99".into()]).is_err());
    }

    #[test]
    fn every_flag_without_meaning_exists() {
        let command = Args::command();
        for id in WITHOUT_MEANING {
            assert!(command.get_arguments().any(|argument| argument.get_id() == id), "{id}");
        }
    }

    #[test]
    fn metrics_without_tls_stay_on_this_machine() {
        let metrics = |flags: &[&str]| parse(flags).args.configure().expect("valid").others;
        let at = |flags: &[&str]| (metrics(flags)[0].at.to_string(), metrics(flags)[0].tls.is_some());
        assert_eq!(at(&[]), ("127.0.0.1:8080".into(), false));
        let tls = ["--server-cert-file=c", "--server-key-file=k"];
        assert_eq!(at(&tls), ("0.0.0.0:8080".into(), true));
        let ignored = [tls[0], tls[1], "--metrics-ignore-tls-config"];
        assert_eq!(at(&ignored), ("127.0.0.1:8080".into(), false));
        assert_eq!(at(&["--metrics-bind-address=10.0.0.1:81"]), ("10.0.0.1:81".into(), false));
        assert!(metrics(&["--metrics-bind-address=0"]).is_empty());
        assert_eq!(at(&["--metrics-bind-address="]), ("127.0.0.1:8080".into(), false));
    }

    #[test]
    fn a_socket_speaks_tls_when_there_is_a_certificate() {
        let configure = |flags: &[&str]| parse(flags).args.configure();
        let tls = [
            "--server-cert-file=c",
            "--server-key-file=k",
            "--trusted-ca-file=a",
            "--listen-address=unix://s",
        ];
        let config = configure(&tls).expect("valid");
        assert_eq!(config.tls.map(|tls| tls.trusted_ca_file.is_some()), Some(true));
        let metrics = config.others[0].tls.as_ref().expect("TLS");
        assert_eq!(metrics.trusted_ca_file, None, "whoever scrapes needs no certificate");
        assert!(matches!(configure(&["--listen-address=unixs://s"]), Err(FlagError::NoCertificate(_))));
    }

    #[test]
    fn the_documentation_names_every_flag_that_differs() {
        let page = include_str!("../../../docs/clients.md");
        let (_, page) = page.split_once("## Flags of kine").expect("a section");
        let (page, _) = page.split_once("\n## ").expect("another section");
        let flag = |id: &str| format!("`--{}`", id.replace('_', "-"));
        let missing: Vec<_> =
            WITHOUT_MEANING.iter().map(|id| flag(id)).filter(|flag| !page.contains(flag)).collect();
        assert_eq!(missing, Vec::<String>::new());
        let command = Args::command();
        let known: Vec<_> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
        for named in page.split("`--").skip(1).filter_map(|rest| rest.split_once('`')).map(|(name, _)| name) {
            assert!(known.contains(&named), "--{named} is documented, but there is no such flag");
        }
    }

    #[test]
    fn an_interval_of_compaction_turns_it_on() {
        let compaction = |flags: &[&str]| parse(flags).args.configure().expect("valid").auto_compaction;
        assert_eq!(compaction(&[]), None);
        let wanted = AutoCompaction::interval(Duration::from_secs(300), 10, 5);
        let flags = ["--compact-interval=5m", "--compact-interval-jitter=10", "--compact-min-retain=5"];
        assert_eq!(compaction(&flags), Some(wanted));
    }
}
