//! Arguments, variables and the configuration file -> the text of every flag, as Go's flag package and etcd take them.
//!
//! A flag given beside its variable is refused; a configuration file makes both void. Values have the right form after this.

use super::table::{Flag, Kind};
use super::value::{check, number};
use crate::flags::{parse_bool, parse_duration};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where images of etcd keep their release; it is no flag's variable.
const RELEASE_VARIABLE: &str = "ETCD_VERSION";
/// Flags whose names mean nothing in a file; etcd's own sample has one of them with a value that the flag refuses.
const NOT_IN_A_FILE: [&str; 3] = ["config-file", "discovery-fallback", "version"];

/// The texts of flags; one that was not given has its default.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, String>,
    /// Where they come from when not from the command line.
    file: Option<PathBuf>,
    /// What was odd and is only worth a warning.
    pub warnings: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Help was asked for.
    Help,
    /// The command line is wrong: the text goes out with the usage, the status is 2.
    Usage(String),
    /// The rest is wrong: the text is logged, the status is 1.
    Verify(String),
    /// This variable says what a flag says too.
    Shadowed(String),
}

impl Values {
    pub fn parse(
        arguments: &[String],
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Values, ParseError> {
        let mut values = Values::default();
        values.take_arguments(arguments)?;
        let variables: Vec<_> = variables.filter(|(name, _)| name.starts_with("ETCD_")).collect();
        let mut file = values.text("config-file").to_owned();
        if file.is_empty()
            && let Some((_, path)) = variables.iter().find(|(name, _)| name == "ETCD_CONFIG_FILE")
        {
            path.clone_into(&mut file);
        }
        if values.is_given("version") || file.is_empty() {
            values.take_variables(variables)?;
        } else {
            values = Values::from_file(file.as_ref())?;
        }
        values.warn_of_deprecated();
        Ok(values)
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The configuration file the values come from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// # Panics
    /// For a flag that is not in the table.
    pub fn text(&self, name: &str) -> &str {
        match self.given.get(name) {
            Some(text) => text,
            None => Flag::find(name).expect("flags are asked for by names of the table").default,
        }
    }

    /// What was given and differs from its default.
    pub fn changed(&self) -> impl Iterator<Item = &'static Flag> {
        Flag::all()
            .filter(|flag| self.given.get(flag.name).is_some_and(|text| !same(flag.kind, text, flag.default)))
    }

    fn warn_of_deprecated(&mut self) {
        let given = Flag::all().filter(|flag| self.given.contains_key(flag.name));
        self.warnings.extend(given.filter_map(|flag| flag.deprecated).map(str::to_owned));
    }

    fn take_arguments(&mut self, arguments: &[String]) -> Result<(), ParseError> {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let dashed = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(text) = dashed.filter(|text| !text.is_empty()) else {
                let stray = if argument == "--" { rest.next() } else { Some(argument) };
                return match stray {
                    Some(stray) => Err(ParseError::Verify(format!("{stray:?} is not a valid flag"))),
                    None => Ok(()),
                };
            };
            if text.starts_with(['-', '=']) {
                return Err(ParseError::Usage(format!("bad flag syntax: {argument}")));
            }
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            if matches!(name, "h" | "help") {
                return Err(ParseError::Help);
            }
            let flag = Flag::find(name)
                .ok_or_else(|| ParseError::Usage(format!("flag provided but not defined: -{name}")))?;
            let value = match value {
                Some(value) => value.to_owned(),
                None if matches!(flag.kind, Kind::Bool | Kind::Anything) => "true".to_owned(),
                None => rest
                    .next()
                    .ok_or_else(|| ParseError::Usage(format!("flag needs an argument: -{name}")))?
                    .clone(),
            };
            check(flag.kind, &value).map_err(|problem| {
                ParseError::Usage(match flag.kind {
                    Kind::Bool => format!("invalid boolean value {value:?} for -{name}: {problem}"),
                    _ => format!("invalid value {value:?} for flag -{name}: {problem}"),
                })
            })?;
            self.given.insert(flag.name, value);
        }
        Ok(())
    }

    fn take_variables(&mut self, variables: Vec<(String, String)>) -> Result<(), ParseError> {
        let on_command_line = self.given.clone();
        for (variable, value) in variables {
            if variable == RELEASE_VARIABLE {
                self.warnings.push(format!("{variable} is not the variable of a flag"));
                continue;
            }
            let Some(flag) = Flag::all().find(|flag| flag.variable() == variable) else {
                self.warnings.push(format!("unrecognized environment variable {variable}"));
                continue;
            };
            if on_command_line.contains_key(flag.name) {
                return Err(ParseError::Shadowed(variable));
            }
            if !value.is_empty() {
                check(flag.kind, &value).map_err(|problem| {
                    ParseError::Verify(format!("invalid value {value:?} for {variable}: {problem}"))
                })?;
                self.given.insert(flag.name, value);
            }
        }
        Ok(())
    }

    fn from_file(path: &Path) -> Result<Values, ParseError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ParseError::Verify(format!("open {shown}: {}", in_gos_words(&error))))?;
        let content: Value =
            serde_saphyr::from_str(&text).map_err(|error| ParseError::Verify(format!("{shown}: {error}")))?;
        let mut values = Values { file: Some(path.to_owned()), ..Values::default() };
        let entries = match content {
            Value::Object(entries) => entries,
            Value::Null => serde_json::Map::new(),
            _ => return Err(ParseError::Verify(format!("{shown} is not a list of names and values"))),
        };
        for (key, value) in entries {
            match (key.as_str(), value) {
                (group, Value::Object(inner)) => {
                    for (key, value) in inner {
                        values.take_entry(path, &grouped(group, &key), value)?;
                    }
                }
                (group @ ("client-transport-security" | "peer-transport-security"), value)
                    if !value.is_null() =>
                {
                    return Err(ParseError::Verify(format!("{shown}: invalid {group}")));
                }
                (key, value) => values.take_entry(path, key, value)?,
            }
        }
        Ok(values)
    }

    fn take_entry(&mut self, path: &Path, key: &str, value: Value) -> Result<(), ParseError> {
        let path = path.display();
        let is_taken = |flag: &&Flag| flag.kind != Kind::Anything && !NOT_IN_A_FILE.contains(&flag.name);
        let Some(flag) = Flag::find(key).filter(is_taken) else {
            self.warnings.push(format!("{path}: {key} is not known"));
            return Ok(());
        };
        let text = match value {
            Value::Null => return Ok(()),
            Value::String(text) => text,
            // Go writes durations as whole nanoseconds.
            Value::Number(number) if flag.kind == Kind::Duration => format!("{number}ns"),
            Value::Array(items) => {
                let text = |item: &Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                items.iter().map(text).collect::<Vec<_>>().join(",")
            }
            other => other.to_string(),
        };
        check(flag.kind, &text).map_err(|problem| {
            ParseError::Verify(format!("{path}: invalid value {text:?} for {key}: {problem}"))
        })?;
        self.given.insert(flag.name, text);
        Ok(())
    }
}

fn in_gos_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether two texts, both of this kind, say the same.
fn same(kind: Kind, one: &str, other: &str) -> bool {
    match kind {
        Kind::Bool => parse_bool(one) == parse_bool(other),
        Kind::Int | Kind::Uint | Kind::Uint32 => number(one) == number(other),
        Kind::Duration => parse_duration(one).is_ok() && parse_duration(one) == parse_duration(other),
        _ => one == other,
    }
}

/// The flag that an entry of a group is.
fn grouped(group: &str, key: &str) -> String {
    match (group, key) {
        ("client-transport-security", "allowed-hostname") => "client-cert-allowed-hostname".to_owned(),
        ("client-transport-security", key) => key.to_owned(),
        ("peer-transport-security", "allowed-cn" | "allowed-hostname") => format!("peer-cert-{key}"),
        ("peer-transport-security", key) => format!("peer-{key}"),
        ("socket-options", key) => format!("socket-{key}"),
        ("discovery-config", key) => format!("discovery-{key}"),
        (group, key) => format!("{group}.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Values, ParseError> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Values::parse(&arguments, variables)
    }

    #[test]
    fn flags_come_in_all_forms_and_the_last_one_wins() {
        let values = parse(&["--name=a", "-name", "b", "-client-cert-auth", "--max-txn-ops=5"], &[]).unwrap();
        assert_eq!([values.text("name"), values.text("client-cert-auth")], ["b", "true"]);
        assert_eq!([values.text("max-txn-ops"), values.text("data-dir")], ["5", ""]);
    }

    #[test]
    fn a_value_is_the_default_in_every_spelling() {
        let same = ["--pre-vote=1", "--compact-hash-check-time=60s", "--snapshot-count=0x2710"];
        assert_eq!(parse(&same, &[]).unwrap().changed().count(), 0);
        assert_eq!(parse(&["--compact-hash-check-time=-1m"], &[]).unwrap().changed().count(), 1);
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        let usage = |arguments: &[&str]| match parse(arguments, &[]) {
            Err(ParseError::Usage(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(usage(&["--nope=1"]), "flag provided but not defined: -nope");
        assert_eq!(usage(&["--name"]), "flag needs an argument: -name");
        assert_eq!(usage(&["---name"]), "bad flag syntax: ---name");
        let text = "invalid value \"abc\" for flag -max-txn-ops: parse error";
        assert_eq!(usage(&["--max-txn-ops=abc"]), text);
        let text = "invalid boolean value \"maybe\" for -client-cert-auth: parse error";
        assert_eq!(usage(&["--client-cert-auth=maybe"]), text);
        let text = "invalid value \"foo\" for flag -listen-client-urls: \
                    URL scheme must be http, https, unix, or unixs: foo";
        assert_eq!(usage(&["--listen-client-urls", "foo"]), text);
        let stray = ParseError::Verify("\"extra\" is not a valid flag".into());
        assert_eq!(parse(&["extra"], &[]).unwrap_err(), stray);
        assert_eq!(parse(&["--help"], &[]).unwrap_err(), ParseError::Help);
    }

    #[test]
    fn a_variable_stands_for_a_flag_that_is_not_given() {
        let variables = [("ETCD_MAX_TXN_OPS", "7"), ("ETCD_NOPE", "1"), ("ETCD_VERSION", "3"), ("PATH", "x")];
        let values = parse(&["--name=f"], &variables).unwrap();
        assert_eq!(
            [values.text("name"), values.text("max-txn-ops"), values.text("version")],
            ["f", "7", "false"]
        );
        assert_eq!(values.warnings.len(), 2, "{:?}", values.warnings);
        let both = parse(&["--name=f"], &[("ETCD_NAME", "")]).unwrap_err();
        assert_eq!(both, ParseError::Shadowed("ETCD_NAME".into()));
        let bad = parse(&[], &[("ETCD_MAX_TXN_OPS", "zz")]).unwrap_err();
        assert_eq!(bad, ParseError::Verify("invalid value \"zz\" for ETCD_MAX_TXN_OPS: parse error".into()));
    }

    #[test]
    fn a_configuration_file_makes_flags_void() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let yaml = "name: from-file\nwatch-progress-notify-interval: 5000000000\nlog-outputs: [stderr, /dev/null]\n\
            max-txn-ops: 9\nclient-transport-security:\n  cert-file: c\n  client-cert-auth: true\n\
            peer-transport-security:\n  allowed-cn: [a, b]\nsocket-options:\n  reuse-port: true\n";
        std::fs::write(file.path(), yaml).unwrap();
        let path = file.path().to_str().unwrap();
        let values = parse(&["--name=f", "--config-file", path], &[("ETCD_NAME", "d")]).unwrap();
        assert_eq!([values.text("name"), values.text("data-dir")], ["from-file", ""]);
        assert_eq!([values.text("cert-file"), values.text("client-cert-auth")], ["c", "true"]);
        assert_eq!([values.text("peer-cert-allowed-cn"), values.text("socket-reuse-port")], ["a,b", "true"]);
        assert_eq!(values.file(), Some(path.as_ref()));
        assert_eq!(parse(&[], &[("ETCD_CONFIG_FILE", path)]).unwrap().text("name"), "from-file");
        assert_eq!([values.text("log-outputs"), values.text("max-txn-ops")], ["stderr,/dev/null", "9"]);
        assert_eq!(values.text("watch-progress-notify-interval"), "5000000000ns");
        assert!(matches!(parse(&["--config-file=/nonexistent"], &[]), Err(ParseError::Verify(_))));
    }
}
