//! Which controller a command is about: the one that runs, or the one that would run with the same flags.
//!
//! Invariant: a running instance is believed over defaults, never over a flag. Called by the other commands.

use std::path::PathBuf;

use anyhow::Context;

use crate::config::{self, ClusterConfig, Host, Overrides, Source};
use crate::paths::{PathChoices, Paths};
use crate::runtime_config::{self, Instance, RuntimeConfigSpec};
use crate::status::client::AskError;

pub struct Located {
    pub paths: Paths,
    /// What the running instance was started with.
    running: Option<Box<RuntimeConfigSpec>>,
    /// Lock file of an instance that another user may have running at the usual place.
    pub hidden: Option<PathBuf>,
}

/// Looks where the flags point to; without flags, at the usual places.
pub fn locate(choices: PathChoices) -> anyhow::Result<Located> {
    let given = Paths::resolve(choices.clone(), super::is_root())?;
    let mut hidden = None;
    for run_dir in run_dirs(&choices, &given) {
        let candidate = Paths { run_dir, ..given.clone() };
        let running = match runtime_config::of_running_instance(&candidate)? {
            Instance::Running(running) => running,
            Instance::NotRunning => continue,
            Instance::Hidden { lock } => {
                // With a data directory given, it is about that one, which may well be another cluster's.
                hidden = hidden.or(choices.data_dir.is_none().then_some(lock));
                continue;
            }
        };
        let paths = running.k0s_vars.paths();
        if choices.data_dir.is_some() && paths.data_dir != given.data_dir {
            // Another cluster's.
            continue;
        }
        let status_socket =
            if choices.status_socket.is_some() { given.status_socket } else { paths.status_socket };
        let paths = Paths { status_socket, ..paths };
        return Ok(Located { paths, running: Some(running), hidden: None });
    }
    Ok(Located { paths: given, running: None, hidden })
}

/// An ordinary user's controller has its run directory below its data directory, also when root asks.
fn run_dirs(choices: &PathChoices, given: &Paths) -> Vec<PathBuf> {
    if choices.run_dir.is_some() {
        return vec![given.run_dir.clone()];
    }
    let mut dirs = vec![given.run_dir.clone()];
    for other in [crate::paths::ROOT_RUN_DIR.into(), given.data_dir.join("run")] {
        if !dirs.contains(&other) {
            dirs.push(other);
        }
    }
    dirs
}

impl Located {
    /// Why nobody answers, as far as we may know.
    pub fn unanswered(&self, error: AskError) -> anyhow::Error {
        match (&self.hidden, &error) {
            (Some(lock), AskError::NotRunning { .. }) => anyhow::anyhow!(
                "{error}, but {} belongs to another user: ask as the one who runs k0s",
                lock.display()
            ),
            _ => error.into(),
        }
    }

    /// The configuration the instance runs with; without one, what the file or the defaults say.
    pub fn config(&self, source: &Source) -> anyhow::Result<ClusterConfig> {
        let host = Host::detect()?;
        let overrides = Overrides { storage: None, data_dir: &self.paths.data_dir };
        if let Some(running) = &self.running {
            let document =
                serde_json::to_vec(&running.node_config).context("cannot copy the configuration")?;
            let loaded = config::parse(&document, &overrides, &host)
                .context("the configuration of the running k0s cannot be read")?;
            return Ok(loaded.config);
        }
        Ok(config::load(source, &overrides, &host)?.config)
    }
}
