//! Runs scenarios on ours and the peers, interleaved, round after round.
//!
//! One server runs at a time, on one core, while the load generator has another to itself (or they share both). Servers take
//! turns within a round (A-B-A-B), so that a machine that gets slower does so for all of them. Directories are fresh each
//! time; that of a failed run is kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::controller::Controller;
use crate::goals::{self, Metric};
use crate::scenario::{Effort, Figures, Scenario};
use crate::server::{Kind, Program, pin};

#[derive(Debug, Clone)]
pub struct Suite {
    pub programs: Vec<Program>,
    pub controller: Controller,
    pub server_core: usize,
    pub client_core: usize,
    pub effort: Effort,
    pub rounds: u32,
    /// Rows of the goals to measure; empty for all.
    pub rows: Vec<u32>,
    /// On the disk to be measured.
    pub work_dir: PathBuf,
}

#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub server: Kind,
    pub round: u32,
    pub metric: Metric,
    pub value: f64,
}

impl Suite {
    pub async fn run(&self) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        let both = [self.server_core, self.client_core];
        for scenario in Scenario::ALL {
            if !self.wants(|metric| scenario.measures(metric)) {
                continue;
            }
            let (server, client) =
                if scenario.shares_cores() { (&both[..], &both[..]) } else { (&both[..1], &both[1..]) };
            pin_client(client)?;
            for round in 1..=self.rounds {
                for program in &self.programs {
                    if scenario.servers().contains(&program.kind) {
                        let figures = self.scenario(scenario, round, program.on(server)).await?;
                        samples.extend(report(program.kind, round, figures));
                    }
                }
            }
        }
        if self.wants(Controller::measures) {
            pin_client(&both)?;
            for round in 1..=self.rounds {
                samples.extend(self.controller(round).await?);
            }
        }
        Ok(samples)
    }

    fn wants(&self, measures: impl Fn(Metric) -> bool) -> bool {
        goals::rows(&self.rows).any(|row| measures(row.metric))
    }

    async fn scenario(&self, scenario: Scenario, round: u32, program: Program) -> Result<Figures> {
        let name = program.kind.name();
        eprint!("{scenario:?} {round}/{} ", self.rounds);
        let dir = fresh_dir(&self.work_dir, name)?;
        let figures = scenario.run(&program, dir.path(), &self.effort).await;
        figures.or_else(|error| keep(dir, error)).with_context(|| format!("{scenario:?} on {name}"))
    }

    async fn controller(&self, round: u32) -> Result<Vec<Sample>> {
        let dir = fresh_dir(&self.work_dir, "controller")?;
        let measured = self.controller.run(dir.path(), self.effort.idle).await;
        let measured = measured.or_else(|error| keep(dir, error)).context("the controller")?;
        let mut samples = Vec::new();
        for (kind, figures) in measured {
            eprint!("Controller {round}/{} ", self.rounds);
            samples.extend(report(kind, round, figures));
        }
        Ok(samples)
    }
}

fn pin_client(cores: &[usize]) -> Result<()> {
    pin(cores).with_context(|| format!("cannot run on the cores {cores:?}: a comparison needs two"))
}

/// Prints the figures of a run as they come.
fn report(server: Kind, round: u32, figures: Figures) -> impl Iterator<Item = Sample> {
    eprint!("{}:", server.name());
    for (metric, value) in &figures {
        eprint!(" {metric:?}={value:.3}{}", metric.unit());
    }
    eprintln!();
    figures.into_iter().map(move |(metric, value)| Sample { server, round, metric, value })
}

fn fresh_dir(parent: &Path, name: &str) -> Result<TempDir> {
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let dir = tempfile::Builder::new().prefix(name).tempdir_in(parent);
    dir.with_context(|| format!("cannot create a directory in {}", parent.display()))
}

fn keep<T>(dir: TempDir, error: anyhow::Error) -> Result<T> {
    let kept = dir.keep();
    Err(error.context(format!("failed; the directory is kept: {}", kept.display())))
}
