//! Whether a value is one of its flag's kind; if not, why, in the words of Go and of etcd.

use super::gates::Switches;
use super::table::Kind;
use crate::flags::{parse_bool, parse_duration};

/// What Go's flag package says of every number, time and truth value it can't read.
const PARSE_ERROR: &str = "parse error";
const OUT_OF_RANGE: &str = "value out of range";

/// # Errors
/// What is wrong with the value.
pub fn check(kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Text | Kind::Anything => Ok(()),
        Kind::Bool => parse_bool(value).map(drop).map_err(|_| PARSE_ERROR.to_owned()),
        Kind::Int => number(value).and_then(fits::<i64>).map(drop),
        Kind::Uint => number(value).and_then(fits::<u64>).map(drop),
        Kind::Uint32 => number(value).and_then(fits::<u32>).map(drop).map_err(|error| {
            let error = if error == PARSE_ERROR { "invalid syntax" } else { error.as_str() };
            format!("strconv.ParseUint: parsing {value:?}: {error}")
        }),
        Kind::Duration => parse_duration(value.strip_prefix('-').unwrap_or(value))
            .map(drop)
            .map_err(|_| PARSE_ERROR.to_owned()),
        Kind::Urls if value.is_empty() => Ok(()),
        Kind::Origins if value == "*" => Ok(()),
        Kind::Urls | Kind::Origins => value.split(',').try_for_each(|url| check_url(url.trim())),
        Kind::Gates => Switches::parse(value).map(drop),
        Kind::OneOf(values) if values.contains(&value) => Ok(()),
        Kind::OneOf(_) => Err("invalid value".to_owned()),
        Kind::SomeOf(values) => match value.split(',').find(|value| !values.contains(value)) {
            None => Ok(()),
            Some(value) => Err(format!("invalid value {value:?}")),
        },
    }
}

/// A whole number in one of Go's notations: `10`, `0x1f`, `0o17`, `017`, `0b1`.
///
/// # Errors
/// When it is none, or far too large.
pub fn number(text: &str) -> Result<i128, String> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(PARSE_ERROR.to_owned());
    }
    let number = i128::from_str_radix(digits, radix).map_err(|_| OUT_OF_RANGE.to_owned())?;
    Ok(if negative { -number } else { number })
}

fn fits<T: TryFrom<i128>>(number: i128) -> Result<T, String> {
    // Go's unsigned numbers have no sign to read.
    let problem = if number < 0 && T::try_from(-1).is_err() { PARSE_ERROR } else { OUT_OF_RANGE };
    T::try_from(number).map_err(|_| problem.to_owned())
}

fn check_url(url: &str) -> Result<(), String> {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    match scheme {
        "http" | "https" => {
            let rest = rest.strip_prefix("//").unwrap_or("");
            let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            if !is_host_and_port(host) {
                return Err(format!("URL address does not have the form \"host:port\": {url}"));
            }
            if path.starts_with('/') {
                return Err(format!("URL must not contain a path: {url}"));
            }
            Ok(())
        }
        "unix" | "unixs" => Ok(()),
        scheme if scheme.starts_with(|first: char| first.is_ascii_digit()) => {
            Err(format!("parse {url:?}: first path segment in URL cannot contain colon"))
        }
        _ => Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
    }
}

/// Whether Go splits it: the colon after the brackets, or the only one.
fn is_host_and_port(text: &str) -> bool {
    match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(after) => after.is_some_and(|(_, port)| port.starts_with(':')),
        None => text.matches(':').count() == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_gos() {
        assert_eq!(["10", "0x1F", "017", "0b11", "-5"].map(number), [10, 31, 15, 3, -5].map(Ok));
        let error = |kind, value| check(kind, value).unwrap_err();
        assert_eq!([error(Kind::Uint, "x"), error(Kind::Uint, "-1"), error(Kind::Int, "")], [PARSE_ERROR; 3]);
        assert_eq!(error(Kind::Uint, "99999999999999999999"), OUT_OF_RANGE);
        assert_eq!(error(Kind::Uint32, "-1"), "strconv.ParseUint: parsing \"-1\": invalid syntax");
        let text = "strconv.ParseUint: parsing \"4294967296\": value out of range";
        assert_eq!(error(Kind::Uint32, "4294967296"), text);
    }

    #[test]
    fn urls_are_hosts_with_ports_or_sockets() {
        for good in [
            "http://h:1",
            "https://[::1]:2",
            "unix://a:1",
            "unix:/run/a",
            "unixs://a",
            "",
            "http://a:1, http://b:2",
        ] {
            assert_eq!(check(Kind::Urls, good), Ok(()), "{good}");
        }
        let error = |url| check(Kind::Urls, url).unwrap_err();
        assert_eq!(error("http://h"), "URL address does not have the form \"host:port\": http://h");
        assert_eq!(error("http://h:1/x"), "URL must not contain a path: http://h:1/x");
        assert_eq!(error("h:1"), "URL scheme must be http, https, unix, or unixs: h:1");
        let text = "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon";
        assert_eq!(error("127.0.0.1:1"), text);
        assert_eq!(check(Kind::Origins, "*"), Ok(()));
        assert!(check(Kind::Origins, "nowhere").is_err());
    }
}
