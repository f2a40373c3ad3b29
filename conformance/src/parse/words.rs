//! A line cut into words, and taking them one by one.
//!
//! Quotes and parentheses hold a word together; `{ } ; ,` are words of their own.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::{literal, symbol};

#[derive(Clone, Debug)]
pub struct Words(VecDeque<String>);

impl Words {
    /// # Errors
    /// On an unfinished quote or parenthesis.
    pub fn of(text: &str) -> Result<Self> {
        let mut words = VecDeque::new();
        let mut word = String::new();
        let (mut quoted, mut escaped, mut depth) = (false, false, 0_usize);
        for letter in text.chars() {
            let holds = quoted || depth > 0;
            if quoted {
                quoted = escaped || letter != '"';
                escaped = !escaped && letter == '\\';
            } else {
                match letter {
                    '"' => quoted = true,
                    '(' => depth += 1,
                    ')' => depth = depth.checked_sub(1).context("a closing parenthesis too many")?,
                    _ => {}
                }
            }
            if !holds && letter.is_whitespace() {
                flush(&mut words, &mut word);
            } else if !holds && "{};,".contains(letter) {
                flush(&mut words, &mut word);
                words.push_back(letter.to_string());
            } else {
                word.push(letter);
            }
        }
        flush(&mut words, &mut word);
        if quoted || depth > 0 {
            bail!("unfinished quote or parenthesis in {text:?}");
        }
        Ok(Self(words))
    }

    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// When words are left.
    pub fn expect_done(&self) -> Result<()> {
        match self.0.front() {
            Some(word) => bail!("unexpected {word:?}"),
            None => Ok(()),
        }
    }

    pub fn peek(&self) -> Option<&str> {
        self.0.front().map(String::as_str)
    }

    /// # Errors
    /// At the end of the line.
    pub fn next(&mut self, what: &str) -> Result<String> {
        self.0.pop_front().with_context(|| format!("{what} is missing"))
    }

    pub fn take_if(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        if found {
            self.0.pop_front();
        }
        found
    }

    /// # Errors
    /// When the next word is another one.
    pub fn take(&mut self, word: &str) -> Result<()> {
        if self.take_if(word) {
            Ok(())
        } else {
            bail!("expected {word:?}, found {:?}", self.peek().unwrap_or("the end"))
        }
    }

    /// The next word when it has the form `name=value`.
    pub fn option(&mut self) -> Option<(String, String)> {
        let (name, value) = self.peek()?.split_once('=')?;
        let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if !named {
            return None;
        }
        let option = (name.to_string(), value.to_string());
        self.0.pop_front();
        Some(option)
    }

    /// Whether the next word can be a key or a value.
    pub fn at_literal(&self) -> bool {
        self.peek().is_some_and(|word| {
            let is_option = !word.starts_with('"') && word.contains('=');
            !is_option && !literal::is_reserved(word) && !["{", "}", ";", ","].contains(&word)
        })
    }

    /// # Errors
    /// At the end and on a broken literal.
    pub fn literal(&mut self, what: &str) -> Result<Bytes> {
        literal::parse(&self.next(what)?)
    }

    /// # Errors
    /// As [`Self::literal`], and when it is not UTF-8.
    pub fn text(&mut self, what: &str) -> Result<String> {
        Ok(String::from_utf8(self.literal(what)?.to_vec())?)
    }

    /// # Errors
    /// When the next word is no count.
    pub fn number(&mut self, what: &str) -> Result<u32> {
        let word = self.next(what)?;
        word.parse().with_context(|| format!("{what}: {word:?} is no number"))
    }

    /// # Errors
    /// When the next word is no integer.
    pub fn integer(&mut self, what: &str) -> Result<i64> {
        let word = self.next(what)?;
        word.parse().with_context(|| format!("{what}: {word:?} is no number"))
    }

    /// A number that may be a symbol.
    ///
    /// # Errors
    /// When the next word is neither.
    pub fn revision(&mut self, what: &str) -> Result<i64> {
        symbol::parse(&self.next(what)?).with_context(|| what.to_string())
    }

    /// # Errors
    /// When the next word is neither `self` nor an id.
    pub fn member(&mut self) -> Result<u64> {
        if self.take_if("self") { Ok(symbol::SELF) } else { Ok(u64::from(self.number("the member")?)) }
    }

    /// The words up to the end of an operation, `count` times, with `%` counting.
    ///
    /// # Errors
    /// When there is nothing to repeat.
    pub fn repeated(&mut self, count: usize) -> Result<Vec<Words>> {
        let mut template = Vec::new();
        while self.peek().is_some_and(|word| ![";", "}"].contains(&word)) {
            template.push(self.next("a word")?);
        }
        if template.is_empty() {
            bail!("times: nothing to repeat");
        }
        let numbered = |n: usize| template.iter().map(|word| word.replace('%', &format!("{n:03}"))).collect();
        Ok((0..count).map(|n| Words(numbered(n))).collect())
    }
}

fn flush(words: &mut VecDeque<String>, word: &mut String) {
    if !word.is_empty() {
        words.push_back(std::mem::take(word));
    }
}
