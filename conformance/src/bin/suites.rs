//! Runs upstream's test suites on our server or on a real etcd, and prints what they came to; exits 1 unless all is as stated.
//!
//! Called by `cargo xtask suites`, which builds them: `cargo xtask suites --server etcd lease.test --run TestLeaseRevoke`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use conformance::server::{kine_path, upstream_path};
use conformance::suite::{Bench, SUITES, Suite};

#[derive(Parser)]
#[command(about = "Test suites of Kubernetes and etcd on one server")]
struct Arguments {
    #[arg(long, value_enum, default_value = "kine")]
    server: Server,
    /// Only tests whose name matches this
    #[arg(long, value_name = "PATTERN")]
    run: Option<String>,
    /// Names of test binaries [default: all]
    binaries: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Server {
    Kine,
    Etcd,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let suites: Vec<&Suite> = if arguments.binaries.is_empty() {
        SUITES.iter().collect()
    } else {
        let find = |name: &String| Suite::find(name).with_context(|| format!("no suite is called {name}"));
        arguments.binaries.iter().map(find).collect::<Result<_>>()?
    };
    let is_etcd = arguments.server == Server::Etcd;
    let bench = Bench::new(&if is_etcd { upstream_path("etcd")? } else { kine_path()? })?;
    let mut code = ExitCode::SUCCESS;
    for suite in suites {
        let outcome = suite.run(&bench, &suite.excluded(is_etcd), arguments.run.as_deref())?;
        println!("{}", outcome.summary(suite));
        // The numbers are those of whole runs on ours.
        let exact = !is_etcd && arguments.run.is_none();
        if let Err(failure) = if exact { outcome.check(suite) } else { outcome.check_failures(suite) } {
            println!("{failure:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
