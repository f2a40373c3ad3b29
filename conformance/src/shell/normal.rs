//! What two servers may say differently, by name. Everything else has to be equal.
//!
//! Pure. Each rule is one reason why two correct servers differ, and hides only the value it is about.

use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;

/// Words that stand for something of one server: its ids, its addresses, the leases it made.
#[derive(Default)]
pub struct Names {
    /// What the server says, and the name for it.
    known: Vec<(String, String)>,
    leases: usize,
}

/// The new lease in the formats of `lease grant`.
static GRANTED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"lease (?<hexadecimal>[0-9a-f]+) granted|"ID" ?: ?(?<decimal>\d+)"#));

/// Locks and elections make a lease and a key that ends in its id.
static KEY_OF_LEASE: LazyLock<Regex> = LazyLock::new(|| pattern(r"/(?<hexadecimal>[0-9a-f]{14,16})\b"));

struct Rule {
    pattern: Regex,
    replacement: &'static str,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    [
        // Raft's term and log: etcd has elected itself and written more than the clients' commands.
        (r#"("raft_?term" ?: ?)\d+"#, "${1}TERM"),
        (r#"("raft_?(?:applied_?)?index" ?: ?)\d+"#, "${1}INDEX"),
        // How big the database file is, and the part of it in use: bbolt has pages of its own.
        (r#"("db_?size(?:_?in_?use)?" ?: ?)\d+"#, "${1}SIZE"),
        (r#"("(?:current-db-)?size[-a-z]*" ?: ?)(?:-?\d+|"[^"]*")"#, "${1}SIZE"),
        // The same in a snapshot, and the hash of the whole file, in which there are ids.
        (r#"("(?:hash|totalSize)":)\d+(,"revision"|,"version")"#, "${1}*${2}"),
        (r"(?m)^[0-9a-f]{1,8}(, \d+, \d+), [^,]+(, [\d.]+)$", "HASH${1}, SIZE${2}"),
        (r#"("Hash" : )\d+(\n"Revision" : \d+\n"Keys" : )"#, "${1}HASH${2}"),
        (r"sha256 \[[\d ]+\], got \[[\d ]+\]", "sha256 [DIGEST], got [DIGEST]"),
        // Go's text form of a message has one space or two between fields, by the build.
        (r"(memberID:MEMBER)  (alarm:)", "${1} ${2}"),
        // `endpoint status` on one line: size, in use, not in use; term and indices.
        (
            r"(?m)^((?:http://)?ENDPOINT, MEMBER, [^,]+, [^,]+), [^,]+, [^,]+, \d+%(, [^,]+, \w+, \w+), \d+, \d+, \d+,",
            "${1}, SIZE, SIZE, %${2}, TERM, INDEX, INDEX,",
        ),
        // How long it took.
        (r#"(?i)(took(?: ?=|" ?:)? ?"?)[\d.]+(?:ns|µs|ms|s)"#, "${1}TIME"),
        // Seconds that a lease has left.
        (r#"(?i)(remaining\(|"ttl" ?: ?)\d+"#, "${1}LEFT"),
        // The memory of the server, as `check datascale` finds it.
        (r"(memory used : )[\d.]+ MB", "${1}MEMORY"),
        // etcdctl's logs: when, which object, and its own end of the connection.
        (r#""ts":"[^"]*""#, r#""ts":"WHEN""#),
        (r"(?m)^20\d\d-[-0-9T:]+Z\t", "WHEN\t"),
        (r"0x[0-9a-f]{8,}", "POINTER"),
        (r"LocalAddr: '127.0.0.1:\d+'", "LocalAddr: 'LOCAL'"),
    ]
    .into_iter()
    .map(|(text, replacement)| Rule { pattern: pattern(&format!("(?i){text}")), replacement })
    .collect()
});

/// Columns of tables with values as in [`RULES`].
const HIDDEN_COLUMNS: [&str; 8] = [
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "TOOK",
    "TOTAL SIZE",
];

/// In a message of protobuf: the term in the header, which is the first field of every answer.
static HEADER_TERM: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(\{1:\{[^{}]*\b4:)\d+"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of this file")
}

impl Names {
    /// An id of 64 bits, which is written in hexadecimal digits, with zeros before them or not, and in decimal ones.
    /// Commands take the first.
    pub fn id(&mut self, id: u64, name: &str) {
        for text in [format!("{id:x}"), format!("{id:016x}"), id.to_string()] {
            self.text(&text, name);
        }
    }

    pub fn text(&mut self, text: &str, name: &str) {
        self.known.push((text.to_owned(), name.to_owned()));
    }

    /// Takes note of the leases that a command has made.
    pub fn learn(&mut self, words: &[String], printed: &str) {
        let shown = if words.iter().any(|word| word == "grant") { &GRANTED } else { &KEY_OF_LEASE };
        for found in shown.captures_iter(printed) {
            let id = match found.name("hexadecimal") {
                Some(digits) => u64::from_str_radix(digits.as_str(), 16),
                None => found["decimal"].parse(),
            };
            let Ok(id) = id else { continue };
            if !self.known.iter().any(|(known, _)| *known == id.to_string()) {
                self.leases += 1;
                self.id(id, &format!("LEASE{}", self.leases));
            }
        }
    }

    /// `$LEASE1` and the like in a command.
    pub fn fill(&self, word: &str) -> String {
        self.known.iter().fold(word.to_owned(), |word, (text, name)| word.replace(&format!("${name}"), text))
    }

    pub fn printed(&self, bytes: &[u8]) -> String {
        let named = self.named(&String::from_utf8_lossy(bytes));
        let text = RULES
            .iter()
            .fold(named, |text, rule| rule.pattern.replace_all(&text, rule.replacement).into_owned());
        tables(&text)
    }

    /// A message as its field numbers and values: as bytes nothing could be told apart.
    pub fn message(&self, bytes: &[u8]) -> String {
        let Some(text) = message(bytes) else { return self.printed(bytes) };
        HEADER_TERM.replace(&self.named(&text), "${1}TERM").into_owned()
    }

    fn named(&self, text: &str) -> String {
        self.known.iter().fold(text.to_owned(), |text, (known, name)| replace_whole(&text, known, name))
    }
}

/// Replaces `known` where it is not a part of a longer word.
fn replace_whole(text: &str, known: &str, name: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(known) {
        let (before, after) = (&rest[..at], &rest[at + known.len()..]);
        let inside = before.ends_with(|c: char| c.is_ascii_alphanumeric())
            || after.starts_with(|c: char| c.is_ascii_alphanumeric());
        replaced.push_str(before);
        replaced.push_str(if inside { known } else { name });
        rest = after;
    }
    replaced + rest
}

/// Tables without their borders and the width of their columns, which follow the longest value.
fn tables(text: &str) -> String {
    let mut hidden: Option<Vec<bool>> = None;
    let mut printed = String::with_capacity(text.len());
    for line in text.lines() {
        match line.chars().next() {
            Some('┌') => hidden = None,
            Some('├' | '└') => {}
            Some('│') => {
                let mut cells: Vec<&str> = line.trim_matches('│').split('│').map(str::trim).collect();
                match &hidden {
                    None => hidden = Some(cells.iter().map(|cell| is_hidden(cell, &cells)).collect()),
                    Some(hidden) => {
                        let hide = |(cell, hide): (&mut &str, &bool)| {
                            if *hide {
                                *cell = "*"
                            }
                        };
                        cells.iter_mut().zip(hidden).for_each(hide);
                    }
                }
                printed.push_str(&cells.join(" │ "));
                printed.push('\n');
            }
            _ => {
                printed.push_str(line);
                printed.push('\n');
            }
        }
    }
    printed
}

/// `HASH` is the hash of keys and values, but beside `TOTAL SIZE` that of a file.
fn is_hidden(column: &&str, all: &[&str]) -> bool {
    HIDDEN_COLUMNS.contains(column) || (*column == "HASH" && all.contains(&"TOTAL SIZE"))
}

/// `{1:{1:12 2:"a"} 3:4}`, or nothing if the bytes are not a message.
fn message(mut bytes: &[u8]) -> Option<String> {
    let mut text = String::from("{");
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        if text.len() > 1 {
            text.push(' ');
        }
        write!(text, "{}:", tag >> 3).ok()?;
        match tag & 7 {
            0 => write!(text, "{}", varint(&mut bytes)?).ok()?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                match std::str::from_utf8(value) {
                    Ok(value) if !value.chars().any(char::is_control) => write!(text, "{value:?}").ok()?,
                    _ => text.push_str(&message(value).unwrap_or_else(|| format!("{value:?}"))),
                }
            }
            _ => return None,
        }
    }
    text.push('}');
    Some(text)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_replaced_only_where_they_are_whole() {
        let mut names = Names::default();
        names.id(0x12, "MEMBER");
        assert_eq!(names.printed(b"12, 18, 123, a12 \"12\""), "MEMBER, MEMBER, 123, a12 \"MEMBER\"\n");
        assert_eq!(names.fill("/$MEMBER/"), "/12/");
    }

    #[test]
    fn leases_are_numbered_as_they_come() {
        let mut names = Names::default();
        let grant = ["grant".to_owned()];
        names.learn(&grant, "lease 094d9ee7f0b7d604 granted with TTL(10s)\n");
        names.learn(&[], "name/694d9ee7f0b7d605\n");
        names.learn(&grant, "\"ID\" : 7587887643912345092\n");
        let printed = names.printed(b"94d9ee7f0b7d604 x/694d9ee7f0b7d605 7587887643912345092");
        assert_eq!(printed, "LEASE1 x/LEASE2 LEASE3\n");
    }

    #[test]
    fn tables_keep_their_values_but_those_that_must_differ() {
        let table = "┌───┬─────────┐\n│ A │ DB SIZE │\n├───┼─────────┤\n│ x │   20 kB │\n└───┴─────────┘\n";
        assert_eq!(Names::default().printed(table.as_bytes()), "A │ DB SIZE\nx │ *\n");
    }

    #[test]
    fn messages_show_fields_and_hide_the_term() {
        let bytes = [0x0a, 4, 0x18, 5, 0x20, 2, 0x12, 1, b'a'];
        assert_eq!(Names::default().message(&bytes), "{1:{3:5 4:TERM} 2:\"a\"}");
    }
}
