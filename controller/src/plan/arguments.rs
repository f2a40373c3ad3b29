//! The arguments of one component: ours, overridden by the user's, in one fixed order.
//!
//! Invariant: sorted by name, so that two plans of the same configuration are equal; `rawArgs` follow as they are. Whatever
//! a user's argument replaces is noted. Filled by the plan's per-component files.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::Spec;

#[derive(Debug, Default)]
pub struct Arguments(BTreeMap<String, String>);

/// An argument the user replaced, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overridden {
    pub component: &'static str,
    pub argument: String,
    pub ours: String,
    pub given_by: String,
}

impl Arguments {
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.0.insert(name.to_owned(), value.to_string());
    }

    pub fn set_default(&mut self, name: &str, value: impl ToString) {
        self.0.entry(name.to_owned()).or_insert_with(|| value.to_string());
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The user's arguments win. `given_by` is where they were written.
    pub fn override_with(
        &mut self,
        component: &'static str,
        given: &BTreeMap<String, String>,
        given_by: &str,
    ) -> Vec<Overridden> {
        let mut overridden = Vec::new();
        for (argument, value) in given {
            if let Some(ours) = self.0.insert(argument.clone(), value.clone())
                && ours != *value
            {
                let given_by = given_by.to_owned();
                overridden.push(Overridden { component, argument: argument.clone(), ours, given_by });
            }
        }
        overridden
    }

    /// The configuration's gates after those the user gave as an argument; the argument is always there, as upstream has it.
    pub fn set_feature_gates(&mut self, component: &str, spec: &Spec) {
        let gates = spec.feature_gates_argument(component, self.value("feature-gates"));
        self.set("feature-gates", gates.unwrap_or_default());
    }

    pub fn into_argv(self, raw: &[String]) -> Vec<String> {
        self.0
            .into_iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .chain(raw.iter().cloned())
            .collect()
    }
}

impl fmt::Display for Overridden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overridden { component, argument, ours, given_by } = self;
        write!(f, "{given_by} replaces --{argument}={ours} of {component}")
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtraArgumentsError {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("{0:?} does not begin with --")]
    NotAFlag(String),
}

/// Arguments given as one string, split as a shell would: `--a=b --c d --switch`.
pub fn parse_extra(text: &str) -> Result<BTreeMap<String, String>, ExtraArgumentsError> {
    let words = shlex::split(text).ok_or(ExtraArgumentsError::OpenQuote)?;
    let mut arguments = BTreeMap::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            return Err(ExtraArgumentsError::NotAFlag(word));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => {
                let value = words.next_if(|next| !next.starts_with("--"));
                (flag.to_owned(), value.unwrap_or_else(|| "true".to_owned()))
            }
        };
        arguments.insert(name, value);
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_arguments_win_and_are_noted_only_where_they_change_something() {
        let mut arguments = Arguments::default();
        arguments.set("b", 1);
        arguments.set("c", true);
        let given =
            BTreeMap::from([("b", "2"), ("c", "true"), ("a", "x y")].map(|(n, v)| (n.into(), v.into())));
        let overridden = arguments.override_with("etcd", &given, "spec.x.extraArgs");
        assert_eq!(overridden.len(), 1);
        assert_eq!((overridden[0].argument.as_str(), overridden[0].ours.as_str()), ("b", "1"));
        assert_eq!(arguments.into_argv(&["--raw".into()]), ["--a=x y", "--b=2", "--c=true", "--raw"]);
    }

    #[test]
    fn one_string_is_split_as_a_shell_would_and_dashes_in_values_survive() {
        let expected = BTreeMap::from(
            [("a", "b--c"), ("d", "e f"), ("switch", "true"), ("n", "-1")].map(|(n, v)| (n.into(), v.into())),
        );
        assert_eq!(parse_extra("--a=b--c --d 'e f' --switch --n -1").unwrap(), expected);
        assert_eq!(parse_extra("").unwrap(), BTreeMap::new());
        assert_eq!(parse_extra("--a 'b").unwrap_err(), ExtraArgumentsError::OpenQuote);
        assert_eq!(parse_extra("a=b").unwrap_err(), ExtraArgumentsError::NotAFlag("a=b".into()));
    }
}
