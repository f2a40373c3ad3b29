//! Numbers a command's author cannot know: the current revision, a key's mod revision, an id the server picked.
//!
//! They are written `head`, `head-3`, `known`, `#1`, `self`, carried inside the wire messages as numbers no server ever
//! gives out, and replaced by [`crate::session::Session`] just before sending. That keeps a program meaningful when
//! commands are removed from it, which is what shrinking does.

use anyhow::{Context, Result};

const BASE: i64 = i64::MIN / 2;
/// Half of the width of each symbol's window.
const REACH: i64 = 1 << 20;
const HEAD: i64 = BASE;
const KNOWN: i64 = BASE + 2 * REACH;
const LEASE: i64 = BASE + 4 * REACH;
/// The member that answers.
pub const SELF: u64 = u64::MAX - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// The revision of the last answer's header, plus an offset.
    Head(i64),
    /// The mod revision this session saw last for the key at hand.
    Known,
    /// The n-th lease whose id the server picked, counted from 1.
    Lease(usize),
}

/// What `number` stands for, if it is a symbol.
pub fn symbol(number: i64) -> Option<Symbol> {
    match number {
        KNOWN => Some(Symbol::Known),
        n if (HEAD - REACH..HEAD + REACH).contains(&n) => Some(Symbol::Head(n - HEAD)),
        n if (LEASE..LEASE + REACH).contains(&n) => Some(Symbol::Lease((n - LEASE) as usize)),
        _ => None,
    }
}

pub fn head(offset: i64) -> i64 {
    HEAD + offset.clamp(1 - REACH, REACH - 1)
}

pub fn known() -> i64 {
    KNOWN
}

pub fn print(number: i64) -> String {
    match symbol(number) {
        Some(Symbol::Head(0)) => "head".into(),
        Some(Symbol::Head(offset)) => format!("head{offset:+}"),
        Some(Symbol::Known) => "known".into(),
        Some(Symbol::Lease(n)) => format!("#{n}"),
        None => number.to_string(),
    }
}

/// # Errors
/// When `text` is neither a number nor a symbol.
pub fn parse(text: &str) -> Result<i64> {
    if text == "known" {
        return Ok(KNOWN);
    }
    if let Some(offset) = text.strip_prefix("head") {
        let offset = if offset.is_empty() { 0 } else { offset.parse().with_context(|| text.to_string())? };
        return Ok(head(offset));
    }
    if let Some(n) = text.strip_prefix('#') {
        return Ok(LEASE + n.parse::<i64>().with_context(|| text.to_string())?);
    }
    text.parse().with_context(|| format!("{text:?} is no number, head, known or #n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_survive_printing_and_parsing() {
        for text in ["head", "head-3", "head+7", "known", "#2", "0", "-1", "9223372036854775807"] {
            assert_eq!(print(parse(text).unwrap()), text);
        }
    }
}
