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
mod usage;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{
    ArgAction, Args, Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
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
    Kubeconfig(kubeconfig::Kubeconfig),
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

/// Flags that say where a controller keeps what it has. They may stand before a subcommand, too.
#[derive(Debug, Clone, Args)]
struct PathFlags {
    #[arg(long, global = true, value_name = "DIR", help = format!("Directory of everything that must survive a restart [default: {}]", paths::DEFAULT_DATA_DIR))]
    data_dir: Option<PathBuf>,
    /// Directory of sockets and lock files [default: /run/k0s for root, else <data-dir>/run]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Socket on which k0s tells its status [default: <run-dir>/status.sock]
    #[arg(long, global = true, value_name = "FILE")]
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
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Log at level debug
    #[arg(short, long, global = true)]
    debug: bool,
}

/// The same for a command that stays, which is verbose unless told otherwise.
#[derive(Debug, Clone, Copy, Args)]
struct LongRunningLogFlags {
    /// Log at level info; --verbose=false shows warnings and errors only
    #[arg(short, long, action = ArgAction::Set, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "true", default_missing_value = "true", value_parser = usage::parse_bool)]
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
    let ended = run(arguments, started);
    logs::flush();
    match ended {
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
    let mut command = usage::as_upstream(Cli::command());
    let cli = match parse(&mut command, &arguments) {
        Ok(cli) => cli,
        Err(error) => return help_or_error(&error, &command, &arguments),
    };
    match cli.command {
        Command::Controller(controller) => controller.run(started),
        Command::Kubectl => unreachable!("these arguments were recognised above"),
        Command::Kubeconfig(kubeconfig) => kubeconfig.run(),
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

fn parse(command: &mut ClapCommand, arguments: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command.try_get_matches_from_mut(arguments)?)
}

/// Help that was asked for is output; anything else is an error without the usage text, as k0s prints it.
fn help_or_error(error: &clap::Error, command: &ClapCommand, arguments: &[OsString]) -> anyhow::Result<()> {
    match error.kind() {
        ErrorKind::DisplayHelp => print(&error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            writeln!(std::io::stderr(), "{}", error.render().to_string().trim_end())?;
            anyhow::bail!("a command is missing")
        }
        _ => anyhow::bail!("{}", usage::message(error, command, arguments)),
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
    clap_complete::generate(shell, &mut usage::as_upstream(Cli::command()), "k0s", &mut script);
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

    fn parsed(line: &str) -> Result<Cli, String> {
        let mut command = usage::as_upstream(Cli::command());
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&mut command, &arguments).map_err(|error| match help_or_error(&error, &command, &arguments) {
            Ok(()) => "help".to_owned(),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn command_line_is_consistent() {
        usage::as_upstream(Cli::command()).debug_assert();
    }

    #[test]
    fn errors_are_in_upstreams_words_and_without_the_usage_text() {
        for (line, expected) in [
            ("k0s status --nope", "unknown flag: --nope"),
            ("k0s status --nope=1", "unknown flag: --nope"),
            ("k0s status -x", "unknown shorthand flag: 'x' in -x"),
            ("k0s stop now", "unknown command \"now\" for \"k0s stop\""),
            ("k0s status nothing", "unknown command \"nothing\" for \"k0s status\""),
            (
                "k0s cotroller",
                "unknown command \"cotroller\" for \"k0s\"\n\nDid you mean this?\n\tcontroller\n",
            ),
            ("k0s config validate", "required flag(s) \"config\" not set"),
            ("k0s config validate --config", "flag needs an argument: --config"),
            ("k0s kubeconfig create", "accepts 1 arg(s), received 0"),
            (
                "k0s status components --max-count x",
                "invalid argument \"x\" for \"--max-count\" flag: invalid digit found in string",
            ),
            (
                "k0s status -o xml",
                "invalid argument \"xml\" for \"-o, --out\" flag: must be one of json, yaml",
            ),
            (
                "k0s stop --debug=maybe",
                "invalid argument \"maybe\" for \"-d, --debug\" flag: must be true or false",
            ),
            (
                "k0s completion tcsh",
                "invalid argument \"tcsh\" for \"k0s completion\": must be one of bash, zsh, fish, powershell",
            ),
        ] {
            assert_eq!(parsed(line).map(|_| ()).unwrap_err(), expected, "{line}");
        }
        assert_eq!(parsed("k0s kubeconfig create --help").map(|_| ()).unwrap_err(), "help");
        assert!(parsed("k0s validate config --config k0s.yaml").is_ok());
    }

    #[test]
    fn switches_take_a_value_and_of_a_flag_given_twice_the_last_counts() {
        let controller = |line: &str| match parsed(line).unwrap().command {
            Command::Controller(controller) => format!("{controller:?}"),
            other => panic!("{other:?}"),
        };
        let shown = controller(
            "k0s server --init-only=true --verbose=false -d --data-dir a -l etcd=debug --data-dir=b \
             --disable-components helm,coredns --disable-components autopilot -l kubelet=2",
        );
        for part in [
            "init_only: true",
            "verbose: false",
            "debug: true",
            "data_dir: Some(\"b\")",
            "coredns",
            "autopilot",
            "component: \"etcd\"",
            "component: \"kubelet\"",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let shown = controller("k0s controller");
        for part in ["init_only: false", "verbose: true", "debug: false"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let shown = controller("k0s controller -vd --init-only --init-only=F");
        for part in ["init_only: false", "verbose: true", "debug: true"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn flags_may_stand_before_a_subcommand() {
        for line in [
            "k0s status --data-dir a -o json components",
            "k0s status components --data-dir a -o json",
            "k0s kubeconfig --data-dir a -v admin",
            "k0s kubeconfig admin --data-dir a -v",
        ] {
            let shown = format!("{:?}", parsed(line).unwrap().command);
            assert!(shown.contains("data_dir: Some(\"a\")"), "{line}: {shown}");
            assert!(shown.contains("out: Some(Json)") || shown.contains("verbose: true"), "{line}: {shown}");
        }
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in Shell::value_variants() {
            assert!(completion(*shell).contains("kubeconfig"));
        }
    }
}
