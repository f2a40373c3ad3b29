//! `benches suite`, which `cargo xtask bench` calls with the paths of everything it has built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use benches::controller::Controller;
use benches::goals;
use benches::report::{self, Report};
use benches::scenario::Effort;
use benches::server::{Kind, Program};
use benches::suite::Suite;
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// Our kine
    #[arg(long)]
    kine: PathBuf,
    /// Our k0s
    #[arg(long)]
    k0s: PathBuf,
    /// Directory with etcd, kine (the Go one) and the Kubernetes binaries
    #[arg(long)]
    upstream: PathBuf,
    /// One short round
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// Rows of the goals to measure, for example 7,8,9 [default: all, and some figures without a row]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<u32>,
    /// Servers to measure [default: all]; a row needs both sides
    #[arg(long, value_delimiter = ',')]
    servers: Vec<Kind>,
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Where servers keep their data while they are measured
    #[arg(long)]
    work_dir: PathBuf,
    /// Directory for <date>.md and <date>.csv [default: print only]
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    pub async fn run(self) -> Result<()> {
        let effort = if self.quick { Effort::QUICK } else { Effort::FULL };
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        ensure!(rounds > 0, "--rounds must be at least 1");
        let program = |kind, path| Program { kind, path, cores: Vec::new() };
        let mut programs = vec![
            program(Kind::Ours, self.kine.clone()),
            program(Kind::Etcd, self.upstream.join("etcd")),
            program(Kind::Kine, self.upstream.join("kine")),
        ];
        programs.retain(|program| self.servers.is_empty() || self.servers.contains(&program.kind));
        let header = self.header(&programs, rounds)?;
        let suite = Suite {
            programs,
            controller: Controller { k0s: self.k0s.clone(), upstream: self.upstream.clone() },
            server_core: self.server_core,
            client_core: self.client_core,
            effort,
            rounds,
            rows: self.rows.clone(),
            work_dir: self.work_dir.clone(),
        };
        let samples = suite.run().await?;
        let document = format!("{header}\n{}", Report::new(&samples).markdown(goals::rows(&self.rows)));
        println!("{document}");
        match &self.out {
            Some(out) => write_files(out, &document, &report::csv(&samples)),
            None => Ok(()),
        }
    }

    /// What a reader needs to repeat the run.
    fn header(&self, programs: &[Program], rounds: u32) -> Result<String> {
        let mut text = format!(
            "# Benchmarks, {}\n\n`cargo xtask bench`: {rounds} round(s) a server, interleaved, fresh directories. Figures are medians of the \
             rounds, ratios medians of the rounds' own ratios: bigger is better for us. Server pinned to core {}, load generator \
             to core {}.\nPeers at their own defaults; kine-sqlite's is \
             `synchronous=NORMAL` (may lose its last writes at a power cut), ours and etcd sync every commit.\n\n",
            date()?,
            self.server_core,
            self.client_core,
        );
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        text +=
            &format!("- machine: {}, Linux {}\n", model.trim_start_matches([' ', '\t', ':']), kernel.trim());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        text += &format!(
            "- load average at the start (0 is best): {}\n",
            load.split(' ').next().unwrap_or("unknown")
        );
        for program in programs {
            text += &format!("- {}: {}\n", program.kind.name(), release(&program.path)?);
        }
        Ok(text)
    }
}

fn date() -> Result<String> {
    let output = Command::new("date").args(["--utc", "+%F"]).output().context("cannot run date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// First line of what `--version` prints.
fn release(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned())
}

fn write_files(dir: &Path, document: &str, csv: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let date = date()?;
    for (extension, content) in [("md", document), ("csv", csv)] {
        let path = dir.join(format!("{date}.{extension}"));
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
