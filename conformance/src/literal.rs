//! Keys and values as text: `abc`, `"a b\x00"`, and `x*1048576` for a long run.
//!
//! `parse(print(bytes)) == bytes` for every byte string; used by the parser and the printer of commands and by the
//! renderer of answers.

use anyhow::{Context, Result, bail};
use bytes::Bytes;

/// Words that mean something in a command; a key spelled like one is printed in quotes.
const RESERVED: [&str; 24] = [
    "all",
    "count_only",
    "else",
    "fragment",
    "from",
    "if",
    "ignore_lease",
    "ignore_value",
    "keys",
    "keys_only",
    "known",
    "nodelete",
    "none",
    "noput",
    "nothing",
    "physical",
    "prefix",
    "prev_kv",
    "progress_notify",
    "serializable",
    "then",
    "times",
    "txn",
    "watch",
];

/// A run of one byte at least this long is printed as `x*N`.
const RUN_MIN: usize = 32;

pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

pub fn print(bytes: &[u8]) -> String {
    if bytes.len() >= RUN_MIN && bytes.iter().all(|byte| *byte == bytes[0]) {
        return format!("{}*{}", print_plain(&bytes[..1]), bytes.len());
    }
    print_plain(bytes)
}

fn print_plain(bytes: &[u8]) -> String {
    let bare = |byte: &u8| byte.is_ascii_alphanumeric() || b"/_.-".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(bare) {
        let word = String::from_utf8_lossy(bytes).into_owned();
        if !is_reserved(&word) {
            return word;
        }
    }
    let mut text = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            0x20..0x7f => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}

/// # Errors
/// On an unfinished quote or escape, and on a repeat count that is no number.
pub fn parse(text: &str) -> Result<Bytes> {
    let body_end = if text.starts_with('"') { text.rfind('"').unwrap_or(0) } else { 0 };
    let (body, repeat) = match text[body_end..].rfind('*') {
        Some(at) => {
            let (body, count) = text.split_at(body_end + at);
            (body, count[1..].parse().with_context(|| format!("repeat count in {text:?}"))?)
        }
        None => (text, 1),
    };
    let once = if body.starts_with('"') { unquote(body)? } else { body.as_bytes().to_vec() };
    Ok(Bytes::from(once.repeat(repeat)))
}

fn unquote(quoted: &str) -> Result<Vec<u8>> {
    let inner = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .with_context(|| format!("unfinished quote: {quoted}"))?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match rest {
            [b'x', high, low, tail @ ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).context("escape digits")?;
                bytes.push(u8::from_str_radix(digits, 16).with_context(|| format!("escape \\x{digits}"))?);
                rest = tail;
            }
            [escaped @ (b'"' | b'\\'), tail @ ..] => {
                bytes.push(*escaped);
                rest = tail;
            }
            _ => bail!("an escape is \\xNN, \\\" or \\\\: {quoted}"),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_string_survives_printing_and_parsing() {
        let all: Vec<u8> = (0..=255).collect();
        let cases: [&[u8]; 8] = [b"", b"a", b"/registry/a-b_c.d", b"a b", b"\"\\", b"\0", b"prefix", &all];
        for bytes in cases {
            assert_eq!(parse(&print(bytes)).unwrap(), bytes, "{}", print(bytes));
        }
        for byte in [b'x', b'"', b'*', 0] {
            let run = vec![byte; 1000];
            assert_eq!(parse(&print(&run)).unwrap(), run, "{}", print(&run));
        }
    }

    #[test]
    fn broken_literals_are_refused() {
        for text in ["\"a", "\"a\\\"", "a*b", "\"\\x0\""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
