//! `kine`: the datastore as a server of its own. Under the name `etcd` it takes etcd's flags and writes etcd's logs.

use anyhow::Context;
use kine_rs::config::{Config, EMULATED_ETCD_VERSION, NOT_GO, Serves};
use kine_rs::embed::runtime;
use kine_rs::flags::etcd::{Etcd, LogError, Logging, ParseError, SelfSigned, USAGE, Values, help};
use kine_rs::flags::kine::{Flags, LogFormat};
use kine_rs::flags::{double_dashes, snapshot};
use kine_rs::logs::{self, Outputs, Style};
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
    let Flags { args, ignored } = match Flags::parse(double_dashes(arguments)) {
        Ok(flags) => flags,
        Err(status) => return status,
    };
    let style = match args.log_format {
        LogFormat::Plain => Style::Plain,
        LogFormat::Json => Style::Json(logs::KINE),
    };
    let level = if args.debug { Level::DEBUG } else { Level::INFO };
    logs::init(style, level, &Outputs::stderr()).expect("stderr needs no opening");
    if !ignored.is_empty() {
        tracing::warn!("these flags have no effect on this store: {}", ignored.join(", "));
    }
    let listening = |app: &App| {
        for address in app.listening() {
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
            eprintln!("{USAGE}");
            println!("{}", help());
            return ExitCode::SUCCESS;
        }
        Err(ParseError::Usage(problem)) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(USAGE_STATUS);
        }
        Err(ParseError::Verify(problem)) => return unfit(problem),
        Err(ParseError::Shadowed(variable)) => {
            log_to_stderr();
            tracing::error!(
                environment_variable = variable,
                "conflicting environment variable is shadowed by corresponding command-line flag (either unset \
                 environment variable or disable flag))"
            );
            return ExitCode::FAILURE;
        }
    };
    if values.text("version") == "true" {
        print!("{}", version());
        return ExitCode::SUCCESS;
    }
    let logging = match Logging::new(&values) {
        Ok(logging) => logging,
        Err(error @ LogError::Level(_)) => {
            eprintln!("{error}");
            return ExitCode::from(USAGE_STATUS);
        }
        Err(error) => return unfit(error),
    };
    if let Err(problem) = logs::init(logging.style, logging.level, &logging.outputs) {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    tracing::info!(args = ?arguments, "Running: ");
    for warning in &values.warnings {
        tracing::warn!("{warning}");
    }
    let etcd = match Etcd::new(&values) {
        Ok(etcd) => etcd,
        Err(error) => {
            tracing::warn!(%error, "failed to verify flags");
            return ExitCode::FAILURE;
        }
    };
    match serve_etcd(etcd, &values) {
        Ok(signal) => die_by(signal),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "failed to start etcd");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr() {
    logs::init(Style::Json(logs::ETCD), Level::INFO, &Outputs::stderr()).expect("stderr needs no opening");
}

/// Says why these flags are none, before there is a log of their own.
fn unfit(error: impl std::fmt::Display) -> ExitCode {
    log_to_stderr();
    tracing::warn!(%error, "failed to verify flags");
    ExitCode::FAILURE
}

/// The lines of `etcd --version`; what would say with which Go it was built says that it was not.
fn version() -> String {
    let system = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {EMULATED_ETCD_VERSION}\nGit SHA: {NOT_GO}\nGo Version: {NOT_GO}\nGo OS/Arch: {}/{system}\n",
        std::env::consts::OS
    )
}

fn serve_etcd(etcd: Etcd, values: &Values) -> anyhow::Result<SignalKind> {
    if !etcd.ignored.is_empty() {
        tracing::warn!(flags = etcd.ignored.join(","), "these flags have no effect on this store");
    }
    for warning in &etcd.warnings {
        tracing::warn!("{warning}");
    }
    if etcd.lock_memory {
        lock_memory().context("--memory-mlock: this process may not lock its memory; raise RLIMIT_MEMLOCK (ulimit -l) or leave the flag away")?;
    }
    etcd.prepare_data_dir()?;
    for SelfSigned { dir, hosts, validity } in etcd.to_make {
        self_signed(&dir, hosts, validity)?;
    }
    let config = etcd.config;
    let number = |flag| values.text(flag).parse::<u64>().ok();
    tracing::info!(
        etcd_version = config.version,
        name = config.member_name,
        data_dir = %etcd.data_dir.display(),
        snapshot_count = number("snapshot-count"),
        snapshot_catchup_entries = number("snapshot-catchup-entries"),
        advertise_client_urls = ?config.client_urls,
        quota_backend_bytes = config.limits.quota_bytes,
        max_request_bytes = config.limits.request_bytes_max,
        max_txn_ops = config.limits.txn_operations_max,
        max_concurrent_streams = config.connections.concurrent_streams_max,
        auto_compaction_mode = values.text("auto-compaction-mode"),
        auto_compaction_retention = values.text("auto-compaction-retention"),
        // As etcd: whatever was given.
        v2_deprecation = "write-only",
        "starting an etcd server"
    );
    let doors: Vec<_> = config.others.clone();
    run(config, ETCD_DRAIN, move |_| {
        for door in doors {
            let address = door.at.to_string();
            let traffic = match door.serves {
                Serves::Everything => "grpc+http",
                Serves::Grpc => "grpc",
                Serves::Http => "http",
                Serves::Metrics => {
                    tracing::info!(address, "serving metrics");
                    continue;
                }
                Serves::Peers => {
                    tracing::info!(address, "serving peer traffic");
                    continue;
                }
            };
            let how =
                if door.tls.is_some() { "securely" } else { "insecurely; this is strongly discouraged!" };
            tracing::info!(traffic, address, "serving client traffic {how}");
        }
        tracing::info!("ready to serve client requests");
    })
}

/// What is there and what comes, as it is used: stacks nobody uses are not filled.
fn lock_memory() -> std::io::Result<()> {
    use rustix::mm::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(Into::into)
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
