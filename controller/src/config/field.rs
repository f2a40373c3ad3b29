//! How a field of the configuration is read from a document, checked and written back.
//!
//! A section is declared once, with [`section!`]: the Rust name, the name in the file, the type and the default of every
//! field. From that come the struct, its `Default`, reading over defaults, and writing. Invariants: reading never stops at
//! the first problem; a key that no field claims is reported; what is written, read again, gives an equal value.
//!
//! Rules that look at one value live in the value's `read`; rules that look at several fields live in the section's
//! `rules` method, which `check` calls after those of its fields. Nothing here knows any particular section.
//!
//! As upstream (Go's JSON decoder) does it: field names match without regard to case, `null` leaves the default, and
//! a whole number may be spelt with a decimal point.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Number, Value};

use super::problem::{FieldError, FieldPath, Report, quoted, rendered};

/// A value in the configuration.
pub trait Field {
    /// Replaces the value by what the document says, or reports why it cannot.
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report);

    fn write(&self) -> Value;

    /// Whether this is Go's zero value. As a default it is left out when writing, unless the field says `(always)`.
    fn is_zero(&self) -> bool {
        false
    }

    /// Reports broken rules that reading could not see.
    fn check(&self, _at: &FieldPath, _report: &mut Report) {}
}

/// Declares a section: `field "nameInTheFile": Type = default`, where a rule may follow the name: `(always)` is written
/// even when zero, `(zero_is_default)` reads `0` and `""` as "not given". `pub struct Name: rules` calls
/// `Name::rules(&self, at, report)` in `check`.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $(: $rules:ident)? {
            $( $(#[$field_meta:meta])* $field:ident $key:literal $(($mode:ident))? : $type:ty = $default:expr ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::field::Field for $name {
            fn read(
                &mut self,
                node: serde_json::Value,
                at: &$crate::config::problem::FieldPath,
                report: &mut $crate::config::problem::Report,
            ) {
                let mut entries = $crate::config::field::Entries::of(node, &[$( $key ),*], at, report);
                $(
                    if let Some(node) = entries.take($key, $crate::config::field::section!(@mode $($mode)?)) {
                        self.$field.read(node, &at.child($key), report);
                    }
                )*
            }

            fn write(&self) -> serde_json::Value {
                let default = Self::default();
                let mut map = serde_json::Map::new();
                $(
                    let always = $crate::config::field::section!(@mode $($mode)?)
                        == $crate::config::field::Mode::Always;
                    if always || !self.$field.is_zero() || self.$field != default.$field {
                        map.insert($key.to_owned(), self.$field.write());
                    }
                )*
                serde_json::Value::Object(map)
            }

            fn check(
                &self,
                at: &$crate::config::problem::FieldPath,
                report: &mut $crate::config::problem::Report,
            ) {
                $( self.$field.check(&at.child($key), report); )*
                $( self.$rules(at, report); )?
            }
        }
    };
    (@mode) => { $crate::config::field::Mode::Plain };
    (@mode always) => { $crate::config::field::Mode::Always };
    (@mode zero_is_default) => { $crate::config::field::Mode::ZeroIsDefault };
}

/// Declares an enum of strings: `Variant = "spelling"`; the first is the default.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(#[$first_meta:meta])* $first:ident = $first_text:literal
            $(, $(#[$variant_meta:meta])* $variant:ident = $text:literal )* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            #[default]
            $(#[$first_meta])* $first,
            $( $(#[$variant_meta])* $variant, )*
        }

        impl $name {
            pub const ALL: &'static [Self] = &[Self::$first $(, Self::$variant)*];

            pub fn as_str(self) -> &'static str {
                match self {
                    Self::$first => $first_text,
                    $( Self::$variant => $text, )*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::field::Field for $name {
            fn read(
                &mut self,
                node: serde_json::Value,
                at: &$crate::config::problem::FieldPath,
                report: &mut $crate::config::problem::Report,
            ) {
                let names: Vec<&str> = Self::ALL.iter().map(|choice| choice.as_str()).collect();
                if let Some(chosen) = $crate::config::field::read_choice(node, &names, at, report) {
                    *self = Self::ALL[chosen];
                }
            }

            fn write(&self) -> serde_json::Value {
                serde_json::Value::from(self.as_str())
            }
        }
    };
}

pub(crate) use {choice, section};

/// What is special about a field of a section.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Always,
    ZeroIsDefault,
}

/// The entries of a mapping, under the names the section knows them by.
pub struct Entries(Map<String, Value>);

impl Entries {
    /// Reports what is not a mapping, keys that no field claims and keys given twice in different spellings.
    pub fn of(node: Value, known: &[&str], at: &FieldPath, report: &mut Report) -> Self {
        let map = match node {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                report.invalid(at, rendered(&other), "must be a mapping");
                Map::new()
            }
        };
        let mut entries = Map::new();
        for (key, value) in map {
            let exact = known.iter().find(|name| **name == key);
            let Some(name) = exact.or_else(|| known.iter().find(|name| name.eq_ignore_ascii_case(&key)))
            else {
                unknown_field(at, &key, known, report);
                continue;
            };
            if entries.insert((*name).to_owned(), value).is_some() {
                report.duplicate(&at.child(name), &key);
            }
        }
        Self(entries)
    }

    /// The value of a field that was given; `null` counts as not given.
    pub fn take(&mut self, name: &str, mode: Mode) -> Option<Value> {
        let value = self.0.remove(name)?;
        let zero = value == "" || value == 0;
        if value.is_null() || (zero && mode == Mode::ZeroIsDefault) { None } else { Some(value) }
    }
}

/// Fields that upstream once had and still tolerates: files written for it may contain them.
const REMOVED_FIELDS: &[&str] = &["spec.podSecurityPolicy", "spec.telemetry.interval"];

fn unknown_field(at: &FieldPath, key: &str, known: &[&str], report: &mut Report) {
    let path = at.child(key);
    if REMOVED_FIELDS.contains(&path.as_str()) {
        report.warn(format!("{path} has no meaning any more and was not used: remove it"));
        return;
    }
    report.add(FieldError::Unknown { path, suggestion: nearest(key, known).map(str::to_owned) });
}

/// The known name a typing error away, if there is one.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Longer keys are not typing errors of anything.
    const KEY_CHARS_MAX: usize = 64;
    if key.chars().count() > KEY_CHARS_MAX {
        return None;
    }
    let key = key.to_lowercase();
    known
        .iter()
        .map(|name| (distance(&key, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= name.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The place of the string in `names`.
pub fn read_choice(node: Value, names: &[&str], at: &FieldPath, report: &mut Report) -> Option<usize> {
    let text = read_string(node, at, report)?;
    let chosen = names.iter().position(|name| **name == text);
    if chosen.is_none() {
        let supported = names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        report.add(FieldError::Unsupported { path: at.clone(), value: quoted(&text), supported });
    }
    chosen
}

pub fn read_string(node: Value, at: &FieldPath, report: &mut Report) -> Option<String> {
    match node {
        Value::String(text) => Some(text),
        Value::Bool(_) | Value::Number(_) => {
            report.invalid(at, rendered(&node), "must be a string: write it in quotes");
            None
        }
        other => {
            report.invalid(at, rendered(&other), "must be a string");
            None
        }
    }
}

/// A whole number between `min` and `max`.
pub fn read_integer(node: &Value, min: i64, max: i64, at: &FieldPath, report: &mut Report) -> Option<i64> {
    let number = node.as_i64().or_else(|| node.as_f64().and_then(whole));
    match (node, number) {
        (_, Some(number)) if (min..=max).contains(&number) => return number.into(),
        (Value::Number(_), None) if node.as_f64().is_some_and(|number| number.fract() != 0.0) => {
            report.invalid(at, rendered(node), "must be a whole number");
        }
        (Value::Number(_), _) => {
            report.invalid(at, rendered(node), format!("must be between {min} and {max}, inclusive"));
        }
        _ => report.invalid(at, rendered(node), "must be a number"),
    }
    None
}

fn whole(number: f64) -> Option<i64> {
    /// Up to here every whole `f64` is exact.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

impl Field for bool {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        match node {
            Value::Bool(value) => *self = value,
            other => report.invalid(at, rendered(&other), "must be true or false"),
        }
    }

    fn write(&self) -> Value {
        Value::Bool(*self)
    }

    fn is_zero(&self) -> bool {
        !self
    }
}

impl Field for i32 {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        if let Some(number) = read_integer(&node, i32::MIN.into(), i32::MAX.into(), at, report) {
            *self = number as i32;
        }
    }

    fn write(&self) -> Value {
        Value::Number(Number::from(*self))
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl Field for String {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        if let Some(text) = read_string(node, at, report) {
            *self = text;
        }
    }

    fn write(&self) -> Value {
        Value::from(self.as_str())
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Field for IpAddr {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let Some(text) = read_string(node, at, report) else { return };
        match text.parse() {
            Ok(address) => *self = address,
            Err(_) => report.invalid(at, quoted(&text), "invalid IP address"),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// Anything: kept as it is.
impl Field for Value {
    fn read(&mut self, node: Value, _at: &FieldPath, _report: &mut Report) {
        *self = node;
    }

    fn write(&self) -> Value {
        self.clone()
    }

    fn is_zero(&self) -> bool {
        self.is_null()
    }
}

/// `null` and a missing key are `None`.
impl<T: Field + Default> Field for Option<T> {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        self.get_or_insert_default().read(node, at, report);
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::write)
    }

    fn is_zero(&self) -> bool {
        self.is_none()
    }

    fn check(&self, at: &FieldPath, report: &mut Report) {
        if let Some(value) = self {
            value.check(at, report);
        }
    }
}

/// A list replaces the default list.
impl<T: Field + Default> Field for Vec<T> {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let Value::Array(nodes) = node else {
            return report.invalid(at, rendered(&node), "must be a list");
        };
        *self = nodes
            .into_iter()
            .enumerate()
            .map(|(n, node)| {
                let mut item = T::default();
                item.read(node, &at.index(n), report);
                item
            })
            .collect();
    }

    fn write(&self) -> Value {
        self.iter().map(Field::write).collect()
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }

    fn check(&self, at: &FieldPath, report: &mut Report) {
        for (n, item) in self.iter().enumerate() {
            item.check(&at.index(n), report);
        }
    }
}

/// Free keys, as in `extraArgs`.
impl Field for BTreeMap<String, String> {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let Value::Object(entries) = node else {
            return report.invalid(at, rendered(&node), "must be a mapping");
        };
        for (key, node) in entries {
            // A key without a value is an empty text, as it is for Go.
            let node = if node.is_null() { Value::from("") } else { node };
            if let Some(text) = read_string(node, &at.key(&key), report) {
                self.insert(key, text);
            }
        }
    }

    fn write(&self) -> Value {
        self.iter().map(|(key, text)| (key.clone(), Value::from(text.as_str()))).collect()
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    section! {
        pub struct Sample {
            name "name": String = "x".to_owned(),
            enabled "enabled" (always): bool = false,
            port "port" (zero_is_default): i32 = 6443,
            metrics "metrics": i32 = 8080,
            args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
            inner "inner": Option<Inner> = None,
            list "list": Vec<Inner> = Vec::new(),
        }
    }

    section! {
        pub struct Inner: rules {
            weight "weight": i32 = 1,
        }
    }

    impl Inner {
        fn rules(&self, at: &FieldPath, report: &mut Report) {
            if self.weight < 0 {
                report.invalid(&at.child("weight"), self.weight, "must not be negative");
            }
        }
    }

    fn read(node: Value) -> Result<Sample, String> {
        let (mut sample, mut report) = (Sample::default(), Report::default());
        sample.read(node, &FieldPath::root(), &mut report);
        sample.check(&FieldPath::root(), &mut report);
        report.finish().map(|_| sample).map_err(|problems| problems.to_string())
    }

    #[test]
    fn fields_that_are_not_given_keep_their_defaults() {
        assert_eq!(read(json!({})).unwrap(), Sample::default());
        assert_eq!(read(json!({"name": null, "port": 0, "inner": null})).unwrap(), Sample::default());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = read(json!({
            "nane": 1, "enabled": "yes", "port": 1.5, "extraArgs": {"v": 5}, "list": [{"weight": -1}, 7],
        }))
        .unwrap_err();
        assert_eq!(
            problems,
            "nane: unknown field, did you mean \"name\"?\n\
             enabled: Invalid value: \"yes\": must be true or false\n\
             port: Invalid value: 1.5: must be a whole number\n\
             extraArgs[v]: Invalid value: 5: must be a string: write it in quotes\n\
             list[1]: Invalid value: 7: must be a mapping\n\
             list[0].weight: Invalid value: -1: must not be negative"
        );
    }

    #[test]
    fn names_match_without_regard_to_case_but_only_once() {
        assert_eq!(read(json!({"NAME": "y"})).unwrap().name, "y");
        assert_eq!(read(json!({"NAME": "y", "name": "z"})).unwrap_err(), "name: Duplicate value: \"name\"");
    }

    #[test]
    fn zero_values_are_only_written_where_they_say_something() {
        let default = json!({"name": "x", "enabled": false, "port": 6443, "metrics": 8080});
        assert_eq!(Sample::default().write(), default);
        let silent = Sample { metrics: 0, name: String::new(), ..Sample::default() };
        assert_eq!(silent.write(), json!({"name": "", "enabled": false, "port": 6443, "metrics": 0}));
        assert_eq!(read(silent.write()).unwrap(), silent);
    }

    #[test]
    fn numbers_out_of_range_are_reported_not_wrapped() {
        let problem = |value: Value| read(json!({"port": value})).unwrap_err();
        assert_eq!(
            problem(json!(1e26)),
            "port: Invalid value: 1e+26: must be between -2147483648 and 2147483647, inclusive"
        );
        assert!(problem(json!(u64::MAX)).contains("must be between"), "{}", problem(json!(u64::MAX)));
        assert_eq!(read(json!({"port": 7000.0})).unwrap().port, 7000);
    }

    #[test]
    fn suggestions_are_only_made_for_near_misses() {
        assert_eq!(nearest("prot", &["port", "address"]), Some("port"));
        assert_eq!(nearest("extraArg", &["extraArgs", "rawArgs"]), Some("extraArgs"));
        assert_eq!(nearest("completelyDifferent", &["port", "address"]), None);
        assert_eq!(nearest(&"p".repeat(100_000), &["port"]), None);
    }
}
