//! `k0s status` and `k0s status components`.

use anyhow::Context;
use bytes::Bytes;
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
    /// Output format; without it plain text, of components YAML
    #[arg(short, long, value_name = "FORMAT", global = true)]
    out: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum StatusCommand {
    /// Show the health of every component
    Components {
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
            Some(StatusCommand::Components { max_count }) => components(self.paths, self.out, max_count),
            None => node(self.paths, self.out),
        }
    }
}

fn node(paths: PathFlags, format: Option<Format>) -> anyhow::Result<()> {
    let answer = ask(paths, "/status")?;
    let status: status::Status = serde_json::from_slice(&answer).context("k0s answered nonsense")?;
    super::print(&match format {
        None => plain(&status),
        Some(format) => format.write(&status)?,
    })
}

fn ask(paths: PathFlags, path: &str) -> anyhow::Result<Bytes> {
    let located = instance::locate(paths.choices())?;
    let answer = super::runtime()?.block_on(client::get(&located.paths.status_socket, path));
    answer.map_err(|error| located.unanswered(error))
}

fn plain(status: &status::Status) -> String {
    format!(
        "Version: {}\nProcess ID: {}\nRole: {}\nWorkloads: {}\nSingleNode: {}\n",
        status.version, status.pid, status.role, status.workloads, status.single_node
    )
}

fn components(paths: PathFlags, format: Option<Format>, max_count: usize) -> anyhow::Result<()> {
    let answer = ask(paths, &format!("/components?maxCount={max_count}"))?;
    let components: status::Components = serde_json::from_slice(&answer).context("k0s answered nonsense")?;
    super::print(&format.unwrap_or(Format::Yaml).write(&components)?)
}

impl Format {
    fn write(self, document: &impl Serialize) -> anyhow::Result<String> {
        match self {
            Format::Json => indented(document),
            Format::Yaml => serde_saphyr::to_string(document).context("cannot write YAML"),
        }
    }
}

/// JSON as k0s prints it: indented by three blanks.
pub fn indented(document: &impl Serialize) -> anyhow::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    text.push(b'\n');
    Ok(String::from_utf8(text)?)
}
