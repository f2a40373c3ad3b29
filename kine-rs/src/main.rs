//! `kine`: the datastore as a server of its own. Under the name `etcd` it takes etcd's flags and writes etcd's logs.

use anyhow::Context;
use kine_rs::config::{Config, EMULATED_ETCD_VERSION, Listen, Serves};
use kine_rs::embed::runtime;
use kine_rs::flags::etcd::{Etcd, FLAGS, ParseError, Values};
use kine_rs::flags::kine::{Flags, LogFormat};
use kine_rs::flags::{double_dashes, snapshot};
use kine_rs::logs::{self, Style};
use kine_rs::server::{App, self_signed};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;

/// How long requests under way may take after a stop, as in kine.
const KINE_DRAIN: Duration = Duration::from_secs(2);
/// etcd is gone within a second and a half.
const ETCD_DRAIN: Duration = Duration::from_secs(1);
/// etcd's status for a command line it can't read.
const USAGE_STATUS: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == "etcd") {
        etcd(&arguments[1..])
    } else if arguments.get(1).is_some_and(|word| word == "snapshot") {
        done(snapshot::run(arguments.into_iter()).map_err(Into::into))
    } else {
        kine(arguments)
    }
}

fn kine(arguments: Vec<String>) -> ExitCode {
    let Flags { args, ignored } = Flags::parse(double_dashes(arguments));
    let style = match args.log_format {
        LogFormat::Plain => Style::Plain,
        LogFormat::Json => Style::Json(logs::KINE),
    };
    let level = if args.debug { Level::DEBUG } else { Level::INFO };
    logs::init(style, level, &["stderr"]).expect("stderr needs no opening");
    if !ignored.is_empty() {
        tracing::warn!("these flags have no effect on this store: {}", ignored.join(", "));
    }
    let listening = |app: &App| {
        for address in app.addresses() {
            tracing::info!("listening on {address}");
        }
    };
    let served = args.configure().map_err(Into::into).and_then(|config| run(config, KINE_DRAIN, listening));
    done(served.map(drop))
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn etcd(arguments: &[String]) -> ExitCode {
    if let Some(command @ ("gateway" | "grpc-proxy")) = arguments.first().map(String::as_str) {
        eprintln!("etcd {command} is not a part of this program: it serves one store");
        return ExitCode::FAILURE;
    }
    let values = match Values::parse(arguments, std::env::vars()) {
        Ok(values) => values,
        Err(ParseError::Help) => {
            print!("{}", usage());
            return ExitCode::SUCCESS;
        }
        Err(ParseError::Usage(problem)) => {
            eprintln!("{problem}\n{}", usage());
            return ExitCode::from(USAGE_STATUS);
        }
        Err(ParseError::Verify(problem)) => {
            logs::init(Style::Json(logs::ETCD), Level::INFO, &["stderr"]).expect("stderr needs no opening");
            tracing::warn!(error = problem, "failed to verify flags");
            return ExitCode::FAILURE;
        }
    };
    if values.text("version") == "true" {
        println!("etcd Version: {EMULATED_ETCD_VERSION}\nkine-rs Version: {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if let Err(problem) = etcd_logs(&values) {
        eprintln!("{problem}");
        return ExitCode::from(USAGE_STATUS);
    }
    for warning in &values.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(args = ?arguments, "Running: ");
    let etcd = match Etcd::new(&values) {
        Ok(etcd) => etcd,
        Err(error) => {
            tracing::warn!(%error, "failed to verify flags");
            return ExitCode::FAILURE;
        }
    };
    match serve_etcd(etcd) {
        Ok(signal) => die_by(signal),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "failed to start etcd");
            ExitCode::FAILURE
        }
    }
}

fn etcd_logs(values: &Values) -> Result<(), String> {
    let level = match values.text("log-level") {
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" => Level::WARN,
        "error" | "dpanic" | "panic" | "fatal" => Level::ERROR,
        other => return Err(format!("unrecognized level: {other:?}")),
    };
    let style = match values.text("log-format") {
        "json" => Style::Json(logs::ETCD),
        "console" => Style::Console,
        other => return Err(format!("unknown log format: {other:?}")),
    };
    let outputs: Vec<&str> = values.text("log-outputs").split(',').collect();
    logs::init(style, level, &outputs)
}

fn serve_etcd(etcd: Etcd) -> anyhow::Result<SignalKind> {
    if !etcd.ignored.is_empty() {
        tracing::warn!(flags = etcd.ignored.join(","), "these flags have no effect on this store");
    }
    etcd.prepare_data_dir()?;
    let mut config = etcd.config;
    if let Some(auto_tls) = etcd.auto_tls {
        config.tls = Some(self_signed(&auto_tls.dir, auto_tls.hosts, auto_tls.validity)?);
    }
    tracing::info!(
        etcd_version = config.version,
        name = config.member_name,
        data_dir = %etcd.data_dir.display(),
        advertise_client_urls = ?config.client_urls,
        quota_backend_bytes = config.limits.quota_bytes,
        max_request_bytes = config.limits.request_bytes_max,
        max_txn_ops = config.limits.txn_operations_max,
        auto_compaction = ?config.auto_compaction,
        "starting an etcd server"
    );
    let doors: Vec<_> = config.others.clone();
    run(config, ETCD_DRAIN, move |_| {
        for door in doors {
            let traffic = match door.serves {
                Serves::Everything => "grpc+http",
                Serves::Grpc => "grpc",
                Serves::Http => "http",
                Serves::Metrics => "metrics",
            };
            let secure = door.tls || matches!(door.at, Listen::Unix(_));
            let how = if secure { "securely" } else { "insecurely; this is strongly discouraged!" };
            tracing::info!(traffic, address = %door.at, "serving client traffic {how}");
        }
        tracing::info!("ready to serve client requests");
    })
}

fn usage() -> String {
    let mut text = String::from(
        "Usage:\n\n  etcd [flags]\n    Start an etcd server.\n\n  etcd --version\n    Show the version of etcd.\n\n\
         Flags, also as variables ETCD_NAME_OF_FLAG:\n",
    );
    for flag in FLAGS {
        text += &format!("  --{} '{}'\n", flag.name, flag.default);
    }
    text
}

/// Serves until a signal comes, which it returns.
fn run(config: Config, drain: Duration, started: impl FnOnce(&App)) -> anyhow::Result<SignalKind> {
    runtime().block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be handled")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be handled")?;
        let app = App::bind(config).await?;
        started(&app);
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "the init daemon could not be told");
        }
        let (caught, which) = tokio::sync::oneshot::channel();
        let stop = async move {
            let (kind, name) = tokio::select! {
                _ = terminate.recv() => (SignalKind::terminate(), "terminated"),
                _ = interrupt.recv() => (SignalKind::interrupt(), "interrupt"),
            };
            tracing::info!(signal = name, "received signal; shutting down");
            caught.send(kind).expect("its receiver waits below");
        };
        app.serve(stop, || drain).await;
        tracing::info!("stopped serving");
        Ok(which.await.expect("serving ends after a signal"))
    })
}

/// Ends as etcd does: by the signal that stopped it.
fn die_by(signal: SignalKind) -> ExitCode {
    let number = signal.as_raw_value();
    // SAFETY: resets a signal to its default action and raises it; no handler of ours has state that could suffer.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
    unreachable!("the default action of a stop signal ends the process")
}
