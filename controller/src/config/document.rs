//! From bytes to one untyped value and back: YAML as Go's tools read and write it, or JSON, which is YAML too.
//!
//! Kubernetes configuration is YAML 1.1 in practice (`yes`, `on`, `0777`), so that is what is accepted. Invariant:
//! whatever the bytes are, time and memory stay bounded by the constants below; anything beyond is an error.

use serde_json::{Map, Value};
use serde_saphyr::{Error, Options, budget, options};

/// The largest file that is read. etcd, where the configuration may live, takes 1.5 MiB.
pub const BYTES_MAX: usize = 1024 * 1024;
/// Collections within collections; the deepest real field is nine deep.
const DEPTH_MAX: usize = 48;
/// Values, those that aliases repeat included.
const NODES_MAX: usize = 100_000;
const ALIASES_MAX: usize = 1_000;

/// The first document of the input.
#[derive(Debug)]
pub struct Document {
    /// `null` if there is none.
    pub root: Value,
    /// More documents follow, which nobody reads.
    pub is_followed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("is larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("is not UTF-8 at byte {0}")]
    NotUtf8(usize),
    #[error(
        "is nested or repeats itself too much: at most {DEPTH_MAX} levels, {NODES_MAX} values and {ALIASES_MAX} aliases"
    )]
    TooComplex,
    #[error("line {line}, column {column}: field {key:?} is given twice")]
    DuplicateKey { line: u64, column: u64, key: String },
    #[error("line {line}, column {column}: number out of range")]
    NumberOutOfRange { line: u64, column: u64 },
    #[error("is not valid YAML: {0}")]
    Syntax(String),
}

/// Reads the first document.
///
/// # Errors
/// If it is not valid or exceeds the limits. What follows the first document is only looked at enough to see that
/// something does.
pub fn parse(bytes: &[u8]) -> Result<Document, DocumentError> {
    if bytes.len() > BYTES_MAX {
        return Err(DocumentError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| DocumentError::NotUtf8(error.valid_up_to()))?;
    let mut reader = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options::<_, Value>(&mut reader, limits());
    let root = documents.next().transpose().map_err(|error| reworded(&error))?.unwrap_or_default();
    let is_followed = documents.next().is_some();
    Ok(Document { root, is_followed })
}

fn limits() -> Options {
    options! {
        budget: budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
        },
        legacy_octal_numbers: true,
        // A snippet could carry a password into a log.
        with_snippet: false,
    }
}

fn reworded(error: &Error) -> DocumentError {
    match error {
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => DocumentError::TooComplex,
        Error::DuplicateMappingKey { key: Some(key), location } => {
            DocumentError::DuplicateKey { line: location.line(), column: location.column(), key: key.clone() }
        }
        Error::NonFiniteFloat { location, .. } => {
            DocumentError::NumberOutOfRange { line: location.line(), column: location.column() }
        }
        Error::AliasError { error, .. } => reworded(error),
        _ => DocumentError::Syntax(error.to_string()),
    }
}

/// Writes a mapping as Go's tools do: keys sorted, lists not indented, plain text wherever it reads back as the same.
pub fn write(root: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_mapping(root, 0, &mut text);
    text
}

fn write_mapping(map: &Map<String, Value>, indent: usize, text: &mut String) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    for (n, (key, value)) in entries.into_iter().enumerate() {
        if n > 0 {
            text.extend(std::iter::repeat_n(' ', indent));
        }
        text.push_str(&scalar(&Value::from(key.as_str())));
        text.push(':');
        write_value(value, indent, text);
    }
}

/// What follows `key:` or `-`, up to and with the end of the line; `indent` is that of the key.
fn write_value(value: &Value, indent: usize, text: &mut String) {
    const STEP: usize = 2;
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent + STEP));
            write_mapping(map, indent + STEP, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                text.extend(std::iter::repeat_n(' ', indent));
                text.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        text.push(' ');
                        write_mapping(map, indent + STEP, text);
                    }
                    item => write_value(item, indent + STEP, text),
                }
            }
        }
        scalar_or_empty => {
            text.push(' ');
            text.push_str(&scalar(scalar_or_empty));
            text.push('\n');
        }
    }
}

/// On one line: plain text if nothing takes it for something else, else in double quotes.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    let word = |c: char| c.is_ascii_alphanumeric() || "./_~-+@:".contains(c);
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && !text.ends_with(':')
        && text.chars().all(word)
        // YAML 1.1 takes 1:30 for a number in base 60.
        && !(text.contains(':') && text.chars().all(|c| c.is_ascii_digit() || c == ':'))
        && parse(text.as_bytes()).is_ok_and(|document| document.root == *value);
    if is_plain { text.clone() } else { double_quoted(text) }
}

fn double_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' => {
                quoted.push(c)
            }
            _ => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn root(text: &str) -> Value {
        parse(text.as_bytes()).unwrap().root
    }

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn scalars_mean_what_go_takes_them_for() {
        assert_eq!(
            root("[yes, on, y, True, no, off, n, FALSE]"),
            json!([true, true, true, true, false, false, false, false])
        );
        assert_eq!(
            root("[0777, 0x1f, 0b11, 1_000, +5, 1e3, 6443.0]"),
            json!([511, 31, 3, 1000, 5, 1e3, 6443.0])
        );
        assert_eq!(root("[~, null, Null, NULL, '']"), json!([null, null, null, null, ""]));
        assert_eq!(
            root("['yes', \"0777\", 1:30, 2001-01-01, 10.0.0.0/8]"),
            json!(["yes", "0777", "1:30", "2001-01-01", "10.0.0.0/8"])
        );
    }

    #[test]
    fn json_crlf_bom_and_merge_keys_are_fine() {
        assert_eq!(root("{\"a\": {\"b\": [1, \"x\"]}}"), json!({"a": {"b": [1, "x"]}}));
        assert_eq!(root("\u{feff}a: 1\r\nb: |\r\n  x\r\n  y\r\n"), json!({"a": 1, "b": "x\ny\n"}));
        assert_eq!(
            root("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}"),
            json!({"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}})
        );
    }

    #[test]
    fn only_the_first_document_is_read() {
        for (text, is_followed) in
            [("a: 1", false), ("a: 1\n---\n", false), ("---\na: 1\n...\n", false), ("a: 1\n---\nb: 2", true)]
        {
            let document = parse(text.as_bytes()).unwrap();
            assert_eq!((document.root, document.is_followed), (json!({"a": 1}), is_followed), "{text:?}");
        }
        for empty in ["", "# nothing\n", "---\n", "null", "---\n---\n", "\u{feff}"] {
            assert_eq!(root(empty), Value::Null, "{empty:?}");
        }
    }

    #[test]
    fn broken_yaml_is_refused_with_its_place() {
        assert_eq!(error("a:\n  b: 1\n  b: 2\n"), "line 3, column 3: field \"b\" is given twice");
        assert!(error("a:\n\tb: 1\n").contains("line 2"), "{}", error("a:\n\tb: 1\n"));
        for bad in [
            "a: [1",
            "a: *nobody",
            "a: &a [*a]",
            "a: .inf",
            "a: 'x",
            "[1, 2]: x",
            "a: b: c",
            "{a: 1",
            "%FOO\n%\n",
            "\u{0}",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(parse(b"a: \xff").unwrap_err().to_string(), "is not UTF-8 at byte 3");
    }

    #[test]
    fn what_is_written_looks_like_gos_output() {
        let value = json!({
            "address": "192.0.2.10", "cidr": "10.0.0.0/8", "bind": "0.0.0.0:10249", "ip": "::1", "ipv6": "2001:db8::1", "path": "/a/b~c",
            "empty": "", "yes": "yes", "y": "n", "octal": "0777", "float": "1e3", "base60": "1:30", "null": "null",
            "date": "2001-01-01", "comment": "a # b", "map": "a: b", "lines": "a\nb\n", "star": "*x", "number": 7, "on": true,
            "list": ["a", {"b": 1, "c": {"d": []}}, [1, [2]], {}], "nothing": {},
        });
        let text = write(value.as_object().unwrap());
        assert_eq!(root(&text), value, "{text}");
        for line in [
            "address: 192.0.2.10",
            "bind: 0.0.0.0:10249",
            "cidr: 10.0.0.0/8",
            "\"yes\": \"yes\"",
            "nothing: {}",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} in\n{text}");
        }
        assert!(text.contains("\nlist:\n- a\n- b: 1\n  c:\n    d: []\n"), "{text}");
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            laughs += &format!("a{n}: &a{n} [{aliases}]\n");
        }
        assert!(matches!(parse(laughs.as_bytes()), Err(DocumentError::TooComplex)));
        let stairs: String = (0..500).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(matches!(parse(stairs.as_bytes()), Err(DocumentError::TooComplex)));
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse("{a: ".repeat(50_000).as_bytes()).is_err());
        assert!(parse("- ".repeat(100_000).as_bytes()).is_err());
        assert!(matches!(parse(&vec![b'#'; BYTES_MAX + 1]), Err(DocumentError::TooLarge)));
        assert!(matches!(parse("- x\n".repeat(200_000).as_bytes()), Err(DocumentError::TooComplex)));
    }
}
