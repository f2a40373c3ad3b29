//! `kine`: the datastore as a server of its own.

use anyhow::Context;
use kine_rs::config::Config;
use kine_rs::embed::runtime;
use kine_rs::flags::double_dashes;
use kine_rs::flags::kine::{Flags, LogFormat};
use kine_rs::server::App;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests under way may take after a stop, as in kine.
const DRAIN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("snapshot") {
        return done(kine_rs::flags::snapshot::run(std::env::args()).map_err(Into::into));
    }
    let Flags { args, ignored } = Flags::parse(double_dashes(std::env::args()));
    log(args.log_format, args.debug);
    if !ignored.is_empty() {
        tracing::warn!("these flags have no effect on this store: {}", ignored.join(", "));
    }
    done(args.configure().map_err(Into::into).and_then(run))
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

fn run(config: Config) -> anyhow::Result<()> {
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

fn log(format: LogFormat, debug: bool) {
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let logs = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match format {
        LogFormat::Plain => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
