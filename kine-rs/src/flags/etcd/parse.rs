//! Arguments, variables and the configuration file -> the text of every flag, as Go's flag package and etcd take them.
//!
//! A flag given wins over its variable; a configuration file makes both void. Values have the right form after this.

use super::table::{FLAGS, Flag, Kind};
use crate::flags::{parse_bool, parse_duration};
use serde_json::Value;
use std::collections::BTreeMap;

/// The texts of flags; one that was not given has its default.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, String>,
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
}

impl Values {
    pub fn parse(
        arguments: &[String],
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Values, ParseError> {
        let mut values = Values::default();
        values.take_arguments(arguments)?;
        values.take_variables(variables)?;
        match values.given.get("config-file").cloned() {
            Some(path) if !path.is_empty() => Values::from_file(&path),
            _ => Ok(values),
        }
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// # Panics
    /// For a flag that is not in the table.
    pub fn text(&self, name: &str) -> &str {
        match self.given.get(name) {
            Some(text) => text,
            None => Flag::find(name).expect("flags are asked for by names of the table").default,
        }
    }

    /// The names of what was given and differs from its default.
    pub fn changed(&self) -> impl Iterator<Item = &'static Flag> {
        FLAGS.iter().filter(|flag| self.given.get(flag.name).is_some_and(|text| text != flag.default))
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
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            if matches!(name, "h" | "help") {
                return Err(ParseError::Help);
            }
            let flag = Flag::find(name)
                .ok_or_else(|| ParseError::Usage(format!("flag provided but not defined: -{name}")))?;
            let value = match value {
                Some(value) => value.to_owned(),
                None if flag.kind == Kind::Bool => "true".to_owned(),
                None => rest
                    .next()
                    .ok_or_else(|| ParseError::Usage(format!("flag needs an argument: -{name}")))?
                    .clone(),
            };
            check(flag, &value).map_err(|problem| {
                ParseError::Usage(match flag.kind {
                    Kind::Bool => format!("invalid boolean value {value:?} for -{name}: {problem}"),
                    _ => format!("invalid value {value:?} for flag -{name}: {problem}"),
                })
            })?;
            self.given.insert(flag.name, value);
        }
        Ok(())
    }

    fn take_variables(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ParseError> {
        let ours = variables.filter(|(variable, _)| variable.starts_with("ETCD_"));
        for (variable, value) in ours {
            let Some(flag) = FLAGS.iter().find(|flag| flag.variable() == variable) else {
                self.warnings.push(format!("unrecognized environment variable {variable}"));
                continue;
            };
            if self.given.contains_key(flag.name) {
                self.warnings.push(format!("{variable} is shadowed by --{}", flag.name));
            } else if !value.is_empty() {
                check(flag, &value).map_err(|problem| {
                    ParseError::Verify(format!("invalid value {value:?} for {variable}: {problem}"))
                })?;
                self.given.insert(flag.name, value);
            }
        }
        Ok(())
    }

    fn from_file(path: &str) -> Result<Values, ParseError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ParseError::Verify(format!("open {path}: {error}")))?;
        let content: Value =
            serde_saphyr::from_str(&text).map_err(|error| ParseError::Verify(format!("{path}: {error}")))?;
        let mut values = Values::default();
        let Value::Object(entries) = content else {
            return Err(ParseError::Verify(format!("{path} is not a list of names and values")));
        };
        for (key, value) in entries {
            match (key.as_str(), value) {
                ("client-transport-security", Value::Object(inner)) => {
                    for (key, value) in inner {
                        values.take_entry(path, &key, value)?;
                    }
                }
                ("peer-transport-security", Value::Object(inner)) => {
                    for (key, value) in inner {
                        values.take_entry(path, &format!("peer-{key}"), value)?;
                    }
                }
                (key, value) => values.take_entry(path, key, value)?,
            }
        }
        Ok(values)
    }

    fn take_entry(&mut self, path: &str, key: &str, value: Value) -> Result<(), ParseError> {
        let Some(flag) = Flag::find(key) else {
            self.warnings.push(format!("{path}: {key} is not known"));
            return Ok(());
        };
        let text = match value {
            Value::Null => return Ok(()),
            Value::String(text) => text,
            // Go writes durations as whole nanoseconds.
            Value::Number(number) if flag.kind == Kind::Duration => format!("{number}ns"),
            Value::Array(items) => {
                let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                items.join(",")
            }
            other => other.to_string(),
        };
        check(flag, &text).map_err(|problem| {
            ParseError::Verify(format!("{path}: invalid value {text:?} for {key}: {problem}"))
        })?;
        self.given.insert(flag.name, text);
        Ok(())
    }
}

fn check(flag: &Flag, value: &str) -> Result<(), String> {
    const PARSE_ERROR: &str = "parse error";
    let parsed = match flag.kind {
        Kind::Text => true,
        Kind::Bool => parse_bool(value).is_ok(),
        Kind::Int => value.parse::<i64>().is_ok(),
        Kind::Uint => value.parse::<u64>().is_ok(),
        Kind::Duration => parse_duration(value).is_ok(),
        Kind::Urls => {
            for url in value.split(',').filter(|url| !url.is_empty()) {
                let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
                if !matches!(scheme, "http" | "https" | "unix" | "unixs") {
                    return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
                }
            }
            true
        }
    };
    if parsed { Ok(()) } else { Err(PARSE_ERROR.to_owned()) }
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
    fn mistakes_are_told_in_gos_words() {
        let usage = |arguments: &[&str]| match parse(arguments, &[]) {
            Err(ParseError::Usage(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(usage(&["--nope=1"]), "flag provided but not defined: -nope");
        assert_eq!(usage(&["--name"]), "flag needs an argument: -name");
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
    fn variables_stand_behind_flags() {
        let variables = [("ETCD_NAME", "v"), ("ETCD_MAX_TXN_OPS", "7"), ("ETCD_NOPE", "1"), ("PATH", "x")];
        let values = parse(&["--name=f"], &variables).unwrap();
        assert_eq!([values.text("name"), values.text("max-txn-ops")], ["f", "7"]);
        assert_eq!(values.warnings.len(), 2, "{:?}", values.warnings);
        let bad = parse(&[], &[("ETCD_MAX_TXN_OPS", "zz")]).unwrap_err();
        assert_eq!(bad, ParseError::Verify("invalid value \"zz\" for ETCD_MAX_TXN_OPS: parse error".into()));
    }

    #[test]
    fn a_configuration_file_makes_flags_void() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let yaml = "name: from-file\nwatch-progress-notify-interval: 5000000000\nlog-outputs: [stderr, /dev/null]\n\
            max-txn-ops: 9\nclient-transport-security:\n  cert-file: c\n  client-cert-auth: true\n";
        std::fs::write(file.path(), yaml).unwrap();
        let path = file.path().to_str().unwrap();
        let values = parse(&["--name=f", "--config-file", path], &[("ETCD_DATA_DIR", "d")]).unwrap();
        assert_eq!([values.text("name"), values.text("data-dir")], ["from-file", ""]);
        assert_eq!([values.text("cert-file"), values.text("client-cert-auth")], ["c", "true"]);
        assert_eq!([values.text("log-outputs"), values.text("max-txn-ops")], ["stderr,/dev/null", "9"]);
        assert_eq!(values.text("watch-progress-notify-interval"), "5000000000ns");
        assert!(matches!(parse(&["--config-file=/nonexistent"], &[]), Err(ParseError::Verify(_))));
    }
}
