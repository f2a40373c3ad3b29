//! The command line: k0s' commands and flags by their names.
//!
//! Invariant: a command that is here works in full; what comes later is absent. Every error is `Error: …` on stderr and exit
//! status 1, success is 0. One file per command below `cli/`; each turns flags into one call of the library.

mod config;
mod controller;
mod instance;
mod kubeconfig;
mod kubectl;
mod status;
mod stop;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tracing::Level;

use crate::logs::{self, Console};
use crate::paths::{self, PathChoices};

/// k0s: Kubernetes in one executable, with its own datastore
#[derive(Debug, Parser)]
#[command(name = "k0s", subcommand_required = true, arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a controller: the Kubernetes control plane and its datastore
    #[command(visible_alias = "server")]
    Controller(Box<controller::Controller>),
    /// Run kubectl with the administrator's credentials of the cluster on this machine
    // Its arguments are kubectl's and never come here; it is listed for the help.
    #[command(visible_alias = "kc", disable_help_flag = true)]
    Kubectl,
    /// Print kubeconfig files
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Kubeconfig {
        #[command(subcommand)]
        command: kubeconfig::Kubeconfig,
    },
    /// Print and check configuration files
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: config::Config,
    },
    /// What older tools call `config create`
    #[command(hide = true)]
    DefaultConfig,
    /// What older tools call `config validate`
    #[command(hide = true, subcommand_required = true)]
    Validate {
        #[command(subcommand)]
        command: config::Validate,
    },
    /// Show whether k0s runs, and how
    Status(status::Status),
    /// Stop the k0s that runs on this machine
    Stop(stop::Stop),
    /// Print the version
    Version(version::Version),
    /// Print a completion script for a shell
    Completion { shell: Shell },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

/// Flags that say where a controller keeps what it has.
#[derive(Debug, Clone, Args)]
struct PathFlags {
    /// Directory of everything that must survive a restart
    #[arg(long, value_name = "DIR", help = format!("Directory of everything that must survive a restart [default: {}]", paths::DEFAULT_DATA_DIR))]
    data_dir: Option<PathBuf>,
    /// Directory of sockets and lock files [default: /run/k0s for root, else <data-dir>/run]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Socket on which k0s tells its status [default: <run-dir>/status.sock]
    #[arg(long, value_name = "FILE")]
    status_socket: Option<PathBuf>,
}

impl PathFlags {
    fn choices(self) -> PathChoices {
        let PathFlags { data_dir, run_dir, status_socket } = self;
        PathChoices { data_dir, run_dir, status_socket, bin_dir: None }
    }
}

/// How much of the log a command shows.
#[derive(Debug, Clone, Copy, Args)]
struct LogFlags {
    /// Log at level info
    #[arg(short, long)]
    verbose: bool,
    /// Log at level debug
    #[arg(short, long)]
    debug: bool,
}

/// The same for a command that stays, which is verbose unless told otherwise.
#[derive(Debug, Clone, Copy, Args)]
struct LongRunningLogFlags {
    /// Log at level info; --verbose=false shows warnings and errors only
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    verbose: bool,
    /// Log at level debug
    #[arg(short, long)]
    debug: bool,
}

fn level(verbose: bool, debug: bool) -> Level {
    match (debug, verbose) {
        (true, _) => Level::DEBUG,
        (false, true) => Level::INFO,
        (false, false) => Level::WARN,
    }
}

impl LogFlags {
    fn install(self) {
        logs::install(Console::Short, level(self.verbose, self.debug));
    }
}

impl LongRunningLogFlags {
    fn install(self) {
        logs::install(Console::LongRunning, level(self.verbose, self.debug));
    }
}

pub fn main() -> ExitCode {
    let started = Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match run(arguments, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told when stderr is gone.
            writeln!(std::io::stderr(), "Error: {}", chain(&error)).ok();
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>, started: Instant) -> anyhow::Result<()> {
    if let Some(kubectl_arguments) = kubectl::own_arguments(&arguments) {
        return kubectl::run(kubectl_arguments);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Controller(controller) => controller.run(started),
        Command::Kubectl => unreachable!("these arguments were recognised above"),
        Command::Kubeconfig { command } => command.run(),
        Command::Config { command } => command.run(),
        Command::DefaultConfig => config::Config::Create { include_images: false }.run(),
        Command::Validate { command: config::Validate::Config { config } } => {
            config::Config::Validate { config }.run()
        }
        Command::Status(status) => status.run(),
        Command::Stop(stop) => stop.run(),
        Command::Version(version) => version.run(),
        Command::Completion { shell } => print(&completion(shell)),
    }
}

/// Help that was asked for is output; anything else is an error without the usage text, as k0s prints it.
fn usage(error: &clap::Error) -> anyhow::Result<()> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            writeln!(std::io::stderr(), "{}", text.trim_end())?;
            anyhow::bail!("a command is missing")
        }
        _ => {
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let message = text.split("\n\nUsage:").next().unwrap_or(text);
            let message = message.split("\n\nFor more information").next().unwrap_or(message);
            anyhow::bail!("{}", message.trim_end())
        }
    }
}

fn completion(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Powershell => clap_complete::Shell::PowerShell,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "k0s", &mut script);
    String::from_utf8(script).expect("names of commands and flags are ASCII")
}

/// Output of a short command.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The runtime of a command: one thread is enough, since the datastore brings its own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

/// An error with its causes on one line, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_error(arguments: &[&str]) -> String {
        let error = Cli::try_parse_from(arguments).unwrap_err();
        usage(&error).unwrap_err().to_string()
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_come_without_the_usage_text() {
        assert_eq!(parse_error(&["k0s", "status", "--nope"]), "unexpected argument '--nope' found");
        assert!(Cli::try_parse_from(["k0s", "validate", "config", "--config", "k0s.yaml"]).is_ok());
        let error = parse_error(&["k0s", "config", "validate", "--config"]);
        assert_eq!(error, "a value is required for '--config <FILE>' but none was supplied");
        let error = parse_error(&["k0s", "cotroller"]);
        assert!(error.starts_with("unrecognized subcommand 'cotroller'"), "{error}");
        assert!(!error.contains("Usage"), "{error}");
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in Shell::value_variants() {
            assert!(completion(*shell).contains("kubeconfig"));
        }
    }
}
