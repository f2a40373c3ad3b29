//! Text that must not appear in a log or an error message: passwords, and data sources that contain them.
//!
//! Invariant: neither `Debug` nor a problem report shows it. It is only written where the whole configuration is.

use std::fmt;

use serde_json::Value;

use super::field::Field;
use super::problem::{FieldPath, Report};

/// What stands for a secret in a message.
pub const HIDDEN: &str = "<hidden>";

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { HIDDEN })
    }
}

impl Field for Secret {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        match node {
            Value::String(text) => self.0 = text,
            _ => report.invalid(at, HIDDEN, "must be a string: write it in quotes"),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.0.as_str())
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let (mut secret, mut report) = (Secret::default(), Report::default());
        secret.read(Value::from("hunter2"), &FieldPath::root(), &mut report);
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(format!("{secret:?}"), "<hidden>");
        secret.read(Value::from(12345), &FieldPath::from("password"), &mut report);
        let problems = report.finish().unwrap_err().to_string();
        assert!(!problems.contains("12345"), "{problems}");
    }
}
