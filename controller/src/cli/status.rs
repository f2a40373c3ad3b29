//! `k0s status` and `k0s status components`.

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::instance;
use super::{LogFlags, PathFlags};
use crate::status::{self, client};

#[derive(Debug, Args)]
pub struct Status {
    #[command(subcommand)]
    command: Option<StatusCommand>,
    #[command(flatten)]
    paths: PathFlags,
    #[command(flatten)]
    logs: LogFlags,
    /// Output format; plain text without it
    #[arg(short, long, value_name = "FORMAT")]
    out: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum StatusCommand {
    /// Show the health of every component
    Components {
        #[command(flatten)]
        paths: PathFlags,
        /// Entries to show for each component
        #[arg(long, default_value_t = 1)]
        max_count: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

impl Status {
    pub fn run(self) -> anyhow::Result<()> {
        self.logs.install();
        match self.command {
            Some(StatusCommand::Components { paths, max_count }) => components(paths, max_count),
            None => node(self.paths, self.out),
        }
    }
}

fn node(paths: PathFlags, format: Option<Format>) -> anyhow::Result<()> {
    let socket = instance::locate(paths.choices())?.paths.status_socket;
    let answer = super::runtime()?.block_on(client::get(&socket, "/status"))?;
    let status: status::Status = serde_json::from_slice(&answer).context("k0s answered nonsense")?;
    super::print(&match format {
        None => plain(&status),
        Some(Format::Json) => indented(&status)?,
        Some(Format::Yaml) => serde_saphyr::to_string(&status).context("cannot write the status as YAML")?,
    })
}

fn plain(status: &status::Status) -> String {
    format!(
        "Version: {}\nProcess ID: {}\nRole: {}\nWorkloads: {}\nSingleNode: {}\n",
        status.version, status.pid, status.role, status.workloads, status.single_node
    )
}

fn components(paths: PathFlags, max_count: usize) -> anyhow::Result<()> {
    let socket = instance::locate(paths.choices())?.paths.status_socket;
    let path = format!("/components?maxCount={max_count}");
    let answer = super::runtime()?.block_on(client::get(&socket, &path))?;
    let components: status::Components = serde_json::from_slice(&answer).context("k0s answered nonsense")?;
    super::print(&serde_saphyr::to_string(&components).context("cannot write the components as YAML")?)
}

/// JSON as k0s prints it: indented by three blanks.
pub fn indented(document: &impl Serialize) -> anyhow::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    text.push(b'\n');
    Ok(String::from_utf8(text)?)
}
