//! `k0s controller`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::{LongRunningLogFlags, PathFlags};
use crate::config::{self, GoDuration, Host, Overrides, Source, StorageType};
use crate::paths::{PathChoices, Paths};
use crate::plan::Disableable;
use crate::plan::arguments::parse_extra;
use crate::plan::log_levels::{ComponentLevel, LogLevels};
use crate::run::{self, Options};

#[derive(Debug, Args)]
pub struct Controller {
    #[command(flatten)]
    paths: PathFlags,
    #[command(flatten)]
    logs: LongRunningLogFlags,
    /// Configuration file; - is standard input [default: /etc/k0s/k0s.yaml if it exists]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the cluster's state is kept; short for spec.storage.type
    #[arg(long, value_name = "TYPE")]
    storage: Option<StorageType>,
    /// Directory with the Kubernetes executables, looked at before <data-dir>/bin and PATH
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Log levels of the components, such as kube-apiserver=2
    #[arg(short = 'l', long, value_name = "COMPONENT=LEVEL,…", value_delimiter = ',')]
    logging: Vec<ComponentLevel>,
    /// Components not to run
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    disable_components: Vec<Disableable>,
    /// Arguments for kube-controller-manager, in one string
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true)]
    kube_controller_manager_extra_args: String,
    /// Make directories, certificates and kubeconfigs, then exit
    #[arg(long)]
    init_only: bool,
    /// How long kube-apiserver may take to stop
    #[arg(long, value_name = "DURATION")]
    api_server_stop_timeout: Option<GoDuration>,
}

impl Controller {
    pub fn run(self, started: Instant) -> anyhow::Result<()> {
        self.logs.install();
        let init_only = self.init_only;
        let options = self.options(started)?;
        let runtime = super::runtime()?;
        let ended = runtime.block_on(async {
            match init_only {
                true => run::initialise(&options).await,
                false => run::controller(options).await,
            }
        });
        // A start that was interrupted may have left a thread that reads the database: its end is not waited for.
        runtime.shutdown_background();
        Ok(ended?)
    }

    fn options(self, started: Instant) -> anyhow::Result<Options> {
        let choices = PathChoices { bin_dir: self.bin_dir, ..self.paths.choices() };
        let next_command = next_command(&choices);
        let paths = Paths::resolve(choices, super::is_root())?;
        let host = Host::detect()?;
        let source = Source::from_flag(self.config.as_deref());
        let overrides = Overrides { storage: self.storage, data_dir: &paths.data_dir };
        let loaded = config::load(&source, &overrides, &host)?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for obsolete in self.disable_components.iter().filter(|component| component.is_obsolete()) {
            tracing::warn!("--disable-components={} has no effect any more: remove it", obsolete.name());
        }
        Ok(Options {
            datastore: loaded.config.spec.datastore(&paths.data_dir)?,
            config: loaded.config,
            config_source: source.to_string().into(),
            host,
            log_levels: LogLevels::with(self.logging),
            disabled: self.disable_components.into_iter().collect(),
            controller_manager_extra_args: parse_extra(&self.kube_controller_manager_extra_args)
                .context("--kube-controller-manager-extra-args")?,
            api_server_stop_timeout: self.api_server_stop_timeout.map(positive).transpose()?,
            started,
            next_command,
            paths,
        })
    }
}

fn positive(timeout: GoDuration) -> anyhow::Result<Duration> {
    let timeout = timeout.to_std().filter(|timeout| !timeout.is_zero());
    timeout.context("--api-server-stop-timeout must be greater than 0")
}

/// What to type to reach the cluster, with k0s called as it was called now.
fn next_command(choices: &PathChoices) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "k0s".to_owned());
    let mut words = vec![program, "kubectl".to_owned()];
    for (flag, directory) in [("--data-dir", &choices.data_dir), ("--run-dir", &choices.run_dir)] {
        if let Some(directory) = directory {
            words.extend([flag.to_owned(), directory.display().to_string()]);
        }
    }
    words.extend(["get".to_owned(), "ns".to_owned()]);
    let quoted = |word: &String| shlex::try_quote(word).map_or_else(|_| word.clone(), |q| q.into_owned());
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
