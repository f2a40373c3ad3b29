//! The load generator's command line: one load on a running endpoint, or the whole comparison.

mod cli;

use anyhow::Result;
use clap::Parser;

fn main() -> Result<()> {
    cli::Cli::parse().run()
}
