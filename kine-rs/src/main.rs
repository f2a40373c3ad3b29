//! `kine`: the datastore as a server of its own, with kine's flags and environment variables.

use anyhow::Context;
use clap::Parser;
use kine_rs::api::Limits;
use kine_rs::config::{Config, EMULATED_ETCD_VERSION, Tls, parse_address, parse_endpoint, parse_listen};
use kine_rs::embed::runtime;
use kine_rs::server::App;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests under way may take after a stop, as in kine.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves the etcd v3 API from an SQL database.
#[derive(Debug, Parser)]
#[command(name = "kine", version, disable_version_flag = true)]
struct Args {
    /// Where to listen: host:port, tcp://host:port or unix:///path
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
    /// Where to serve /metrics, /health and /version; 0 turns it off
    #[arg(long, env = "KINE_METRICS_BIND_ADDRESS", default_value = "127.0.0.1:8080")]
    metrics_bind_address: String,
    /// Interval of periodic progress notifications
    #[arg(long, env = "KINE_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "5s", value_parser = parse_duration)]
    watch_progress_notify_interval: Duration,
    /// etcd release to report to clients
    #[arg(long, env = "KINE_EMULATED_ETCD_VERSION", default_value = EMULATED_ETCD_VERSION)]
    emulated_etcd_version: String,
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
    log_format: LogFormat,
    /// Log more
    #[arg(long, env = "KINE_DEBUG")]
    debug: bool,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: (),
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Plain,
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    log(&args);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = configure(args)?;
    runtime().block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
        let app = App::bind(config).await?;
        for address in app.addresses() {
            tracing::info!("listening on {address}");
        }
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        };
        app.serve(stop, || DRAIN).await;
        Ok(())
    })
}

fn configure(args: Args) -> anyhow::Result<Config> {
    let endpoint = parse_endpoint(&args.endpoint)?;
    let endpoint = if args.unsafe_no_fsync { endpoint.without_fsync() } else { endpoint };
    let tls = args.server_cert_file.zip(args.server_key_file).map(|(cert_file, key_file)| Tls {
        cert_file,
        key_file,
        trusted_ca_file: args.trusted_ca_file,
    });
    let metrics = match args.metrics_bind_address.as_str() {
        "0" | "" => None,
        address => Some(
            parse_address(address)
                .with_context(|| format!("--metrics-bind-address {address:?} is not host:port"))?,
        ),
    };
    Ok(Config {
        endpoint,
        listen: vec![parse_listen(&args.listen_address)?],
        tls,
        metrics,
        limits: Limits { quota_bytes: args.quota_backend_bytes, ..Limits::default() },
        cache_bytes: args.cache_mib << 20,
        progress_interval: args.watch_progress_notify_interval,
        version: args.emulated_etcd_version,
        ..Config::default()
    })
}

/// Go's durations: a number with a unit, several in a row (`1m30s`).
fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 500ms, 5s or 1m30s");
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        rest = tail;
    }
    if total.is_zero() { Err(bad()) } else { Ok(total) }
}

fn log(args: &Args) {
    let level = if args.debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let logs = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Plain => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
