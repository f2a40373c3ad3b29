//! Runs scenarios on ours and the peers, interleaved, round after round.
//!
//! One server runs at a time, on one core, while the load generator has another to itself (or they share both). Servers take turns within
//! a round (A-B-A-B), so that a machine that gets slower does so for all of them. Directories are fresh each time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::goals::{self, Metric};
use crate::scenario::{Effort, Scenario};
use crate::server::{Kind, Program, pin};

#[derive(Debug, Clone)]
pub struct Suite {
    pub programs: Vec<Program>,
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
        for scenario in Scenario::ALL.into_iter().filter(|&scenario| self.wants(scenario)) {
            let shared = [self.server_core, self.client_core];
            let (server, client) = match scenario.shares_cores() {
                true => (&shared[..], &shared[..]),
                false => (&shared[..1], &shared[1..]),
            };
            pin(client)
                .with_context(|| format!("cannot use the cores {client:?}: a comparison needs two"))?;
            for round in 1..=self.rounds {
                for program in
                    self.programs.iter().filter(|program| scenario.servers().contains(&program.kind))
                {
                    samples.extend(self.once(scenario, round, program, server).await?);
                }
            }
        }
        Ok(samples)
    }

    fn wants(&self, scenario: Scenario) -> bool {
        goals::rows(&self.rows).any(|row| scenario.measures(row.metric))
    }

    async fn once(
        &self,
        scenario: Scenario,
        round: u32,
        program: &Program,
        cores: &[usize],
    ) -> Result<Vec<Sample>> {
        let name = program.kind.name();
        let dir = fresh_dir(&self.work_dir, name)?;
        eprint!("{scenario:?} round {round}/{} {name}:", self.rounds);
        let ran = scenario.run(&program.on(cores), dir.path(), &self.effort).await;
        let figures = match ran {
            Ok(figures) => figures,
            Err(error) => {
                let kept = dir.keep();
                return Err(error
                    .context(format!("{scenario:?} on {name}; its directory is kept: {}", kept.display())));
            }
        };
        for (metric, value) in &figures {
            eprint!(" {metric:?}={value:.3}{}", metric.unit());
        }
        eprintln!();
        let sample = |(metric, value)| Sample { server: program.kind, round, metric, value };
        Ok(figures.into_iter().map(sample).collect())
    }
}

fn fresh_dir(parent: &Path, name: &str) -> Result<tempfile::TempDir> {
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let dir = tempfile::Builder::new().prefix(name).tempdir_in(parent);
    dir.with_context(|| format!("cannot create a directory in {}", parent.display()))
}
