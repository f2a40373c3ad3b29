//! How the command line is read, and what is wrong with it, as upstream's parser (cobra) does and says it: switches take a
//! value (`--debug=true`, as `k0s install` writes it), of a flag given twice the last counts, and errors come in its words.
//!
//! Pure. Called by `cli`; knows no command by name.

use std::ffi::OsString;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

/// The command with upstream's manners, down to its last subcommand.
pub fn as_upstream(command: Command) -> Command {
    command.args_override_self(true).mut_args(switch).mut_subcommands(as_upstream)
}

fn switch(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .value_name("BOOL")
        .value_parser(ValueParser::new(parse_bool))
}

/// Go's spellings.
pub fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false"),
    }
}

/// What is wrong with these arguments, on one line but for suggestions.
pub fn message(error: &clap::Error, root: &Command, arguments: &[OsString]) -> String {
    let invalid = first(error, ContextKind::InvalidArg);
    let (path, command) = called(root, arguments);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = first(error, ContextKind::InvalidSubcommand);
            let similar = all(error, ContextKind::SuggestedSubcommand);
            let suggestions = match similar.is_empty() {
                true => String::new(),
                false => format!("\n\nDid you mean this?\n\t{}\n", similar.join("\n\t")),
            };
            format!("unknown command {name:?} for {path:?}{suggestions}")
        }
        ErrorKind::UnknownArgument => match invalid.strip_prefix('-') {
            Some(long) if long.starts_with('-') => format!("unknown flag: {invalid}"),
            Some(short) => {
                let letter = short.chars().next().unwrap_or_default();
                format!("unknown shorthand flag: {letter:?} in {invalid}")
            }
            None => format!("unknown command {invalid:?} for {path:?}"),
        },
        ErrorKind::MissingRequiredArgument => match long_name(&invalid) {
            Some(name) => format!("required flag(s) {name:?} not set"),
            None => "accepts 1 arg(s), received 0".to_owned(),
        },
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = first(error, ContextKind::InvalidValue);
            match long_name(&invalid) {
                Some(name) if value.is_empty() && error.kind() == ErrorKind::InvalidValue => {
                    format!("flag needs an argument: --{name}")
                }
                Some(name) => {
                    let flag = with_shorthand(name, command);
                    format!("invalid argument {value:?} for {flag:?} flag: {}", detail(error))
                }
                None => format!("invalid argument {value:?} for {path:?}: {}", detail(error)),
            }
        }
        _ => clap_message(error),
    }
}

fn detail(error: &clap::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => format!("must be one of {}", all(error, ContextKind::ValidValue).join(", ")),
    }
}

fn all(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

fn first(error: &clap::Error, kind: ContextKind) -> String {
    all(error, kind).into_iter().next().unwrap_or_default()
}

/// `config` of `--config <FILE>`; a positional argument has none.
fn long_name(arg: &str) -> Option<&str> {
    arg.strip_prefix("--")?.split([' ', '=', '[']).next()
}

/// The subcommand that was called, and its path: `k0s config validate`.
fn called<'a>(root: &'a Command, arguments: &[OsString]) -> (String, &'a Command) {
    let mut path = root.get_name().to_owned();
    let mut command = root;
    for sub in arguments.iter().skip(1) {
        if let Some(sub) = command.find_subcommand(sub) {
            path = format!("{path} {}", sub.get_name());
            command = sub;
        }
    }
    (path, command)
}

/// `-c, --config`, as the command has it.
fn with_shorthand(long: &str, command: &Command) -> String {
    let short = command.get_arguments().find(|arg| arg.get_long() == Some(long)).and_then(Arg::get_short);
    short.map_or_else(|| format!("--{long}"), |short| format!("-{short}, --{long}"))
}

/// clap's own words without the usage text, which upstream does not print with an error either.
fn clap_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let message = text.split("\n\nUsage:").next().unwrap_or(text);
    message.split("\n\nFor more information").next().unwrap_or(message).trim_end().to_owned()
}
