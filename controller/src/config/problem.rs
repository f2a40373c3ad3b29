//! What is wrong with a configuration, and where.
//!
//! Errors are phrased as Kubernetes phrases field errors (`spec.api.port: Invalid value: 0: must be …`), so a user who
//! knows one knows the other. Invariant: a [`Report`] keeps the first problem of every field, up to [`PROBLEMS_MAX`]
//! fields, in the order they were found; it never decides what is a problem. Filled by `field` and by the sections' rules; printed by the
//! command line.

use std::fmt;

use serde_json::Value;

/// Problems kept and printed; the rest is counted. A hostile file of a mebibyte could otherwise fill a terminal for hours.
const PROBLEMS_MAX: usize = 100;
/// Characters of an offending value that are repeated in its message.
const VALUE_CHARS_MAX: usize = 80;

/// Where in the document: `spec.api.sans[0]`, `spec.api.extraArgs[v]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(clipped(name)) } else { Self(format!("{}.{}", self.0, clipped(name))) }
    }

    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{}]", self.0, clipped(key)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for FieldPath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "the document" } else { &self.0 })
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// `value` is already rendered, so that secrets can be left out.
    #[error("{path}: Invalid value: {value}: {detail}")]
    Invalid { path: FieldPath, value: String, detail: String },
    #[error("{path}: Required value: {detail}")]
    Required { path: FieldPath, detail: String },
    #[error("{path}: Unsupported value: {value}: supported values: {supported}")]
    Unsupported { path: FieldPath, value: String, supported: String },
    #[error("{path}: Forbidden: {detail}")]
    Forbidden { path: FieldPath, detail: String },
    #[error("{path}: Duplicate value: {value}")]
    Duplicate { path: FieldPath, value: String },
    #[error("{path}: unknown field{}", did_you_mean(.suggestion))]
    Unknown { path: FieldPath, suggestion: Option<String> },
    #[error("not supported yet: {path}{}", parenthesised(.detail))]
    NotBuilt { path: FieldPath, detail: String },
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

fn parenthesised(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// Everything found wrong with one configuration, and everything worth telling about it.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<FieldError>,
    /// Number of errors beyond [`PROBLEMS_MAX`].
    omitted: usize,
    warnings: Vec<String>,
}

impl FieldError {
    pub fn path(&self) -> &FieldPath {
        match self {
            Self::Invalid { path, .. }
            | Self::Required { path, .. }
            | Self::Unsupported { path, .. }
            | Self::Forbidden { path, .. }
            | Self::Duplicate { path, .. }
            | Self::Unknown { path, .. }
            | Self::NotBuilt { path, .. } => path,
        }
    }
}

impl Report {
    /// A field that could not be read still has its default, so what follows for it is not worth telling.
    pub fn add(&mut self, error: FieldError) {
        if self.errors.iter().any(|earlier| earlier.path() == error.path()) {
            return;
        }
        if self.errors.len() < PROBLEMS_MAX {
            self.errors.push(error);
        } else {
            self.omitted += 1;
        }
    }

    pub fn invalid(&mut self, path: &FieldPath, value: impl fmt::Display, detail: impl Into<String>) {
        self.add(FieldError::Invalid { path: path.clone(), value: value.to_string(), detail: detail.into() });
    }

    pub fn required(&mut self, path: &FieldPath, detail: impl Into<String>) {
        self.add(FieldError::Required { path: path.clone(), detail: detail.into() });
    }

    pub fn forbidden(&mut self, path: &FieldPath, detail: impl Into<String>) {
        self.add(FieldError::Forbidden { path: path.clone(), detail: detail.into() });
    }

    pub fn duplicate(&mut self, path: &FieldPath, value: &str) {
        self.add(FieldError::Duplicate { path: path.clone(), value: quoted(value) });
    }

    pub fn warn(&mut self, warning: impl Into<String>) {
        if self.warnings.len() < PROBLEMS_MAX {
            self.warnings.push(warning.into());
        }
    }

    /// The warnings if nothing is wrong, else everything that is.
    pub fn finish(self) -> Result<Vec<String>, Problems> {
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        Err(Problems { errors: self.errors, omitted: self.omitted })
    }
}

/// At least one [`FieldError`], printed one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub errors: Vec<FieldError>,
    /// Number of errors beyond those in `errors`.
    pub omitted: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.errors.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A string as it appears in a message: in quotes, escaped, clipped.
pub fn quoted(text: &str) -> String {
    format!("{:?}", clipped(text))
}

/// A value as it appears in a message.
pub fn rendered(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_in_kubernetes() {
        let path = FieldPath::root().child("spec").child("api").child("sans").index(2);
        assert_eq!(path.as_str(), "spec.api.sans[2]");
        assert_eq!(FieldPath::from("spec.api.extraArgs").key("v").as_str(), "spec.api.extraArgs[v]");
    }

    #[test]
    fn a_report_keeps_the_first_problems_and_counts_the_rest() {
        let mut report = Report::default();
        for n in 0..PROBLEMS_MAX + 7 {
            report.invalid(&FieldPath::from("a").index(n), n, "wrong");
        }
        let problems = report.finish().unwrap_err();
        assert_eq!(problems.errors.len(), PROBLEMS_MAX);
        assert!(problems.to_string().ends_with("\nand 7 more"), "{problems}");
    }

    #[test]
    fn a_field_is_complained_about_once() {
        let mut report = Report::default();
        report.invalid(&FieldPath::from("a"), 1, "wrong");
        report.required(&FieldPath::from("a"), "must be specified");
        assert_eq!(report.finish().unwrap_err().to_string(), "a: Invalid value: 1: wrong");
    }

    #[test]
    fn a_long_value_is_clipped_in_its_message() {
        let shown = quoted(&"é".repeat(10_000));
        assert!(shown.chars().count() < VALUE_CHARS_MAX + 5, "{shown}");
    }
}
