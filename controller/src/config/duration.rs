//! A duration as Go spells it: `1h30m`, `8760h0m0s`, `1.5s`, `-2ms`.
//!
//! Kubernetes objects carry durations in this form, so a file that upstream wrote must read back, and what we write must
//! look the same. Invariant: parsing what `Display` wrote gives an equal value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::field::{Field, read_string};
use super::problem::{FieldPath, Report, quoted, rendered};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Unit spellings and their length in nanoseconds.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("h", 3600 * NANOS_PER_SECOND),
];

/// Nanoseconds, at most 292 years either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    nanos: i64,
}

impl GoDuration {
    pub const ZERO: Self = Self { nanos: 0 };

    pub const fn from_hours(hours: u32) -> Self {
        Self { nanos: hours as i64 * (3600 * NANOS_PER_SECOND) as i64 }
    }

    pub const fn from_secs(seconds: u32) -> Self {
        Self { nanos: seconds as i64 * NANOS_PER_SECOND as i64 }
    }

    /// `None` if negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 1h30m or 90s")]
pub struct ParseDurationError;

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, ParseDurationError> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(ParseDurationError);
        }
        let mut nanos: i128 = 0;
        while !rest.is_empty() {
            let number_len =
                rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(ParseDurationError)?;
            let (number, tail) = rest.split_at(number_len);
            let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let (_, unit_nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(ParseDurationError)?;
            nanos = nanos.checked_add(scaled(number, *unit_nanos)?).ok_or(ParseDurationError)?;
            rest = tail;
        }
        let nanos = if negative { -nanos } else { nanos };
        i64::try_from(nanos).map(|nanos| Self { nanos }).map_err(|_| ParseDurationError)
    }
}

/// `number` (digits with at most one point) times `unit_nanos`, cut to whole nanoseconds.
fn scaled(number: &str, unit_nanos: u64) -> Result<i128, ParseDurationError> {
    /// More digits cannot fit in 292 years of nanoseconds.
    const DIGITS_MAX: usize = 20;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > DIGITS_MAX || fraction.contains('.') {
        return Err(ParseDurationError);
    }
    // Digits beyond the eighteenth are less than a nanosecond even of an hour.
    let fraction = &fraction[..fraction.len().min(18)];
    let digits = |text: &str| {
        if text.is_empty() { Ok(0) } else { text.parse::<i128>().map_err(|_| ParseDurationError) }
    };
    let unit = i128::from(unit_nanos);
    Ok(digits(whole)? * unit + digits(fraction)? * unit / 10_i128.pow(fraction.len() as u32))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let point = |f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str| {
            let fraction = format!("{:0width$}", nanos % unit, width = unit.ilog10() as usize);
            let fraction = fraction.trim_end_matches('0');
            let dot = if fraction.is_empty() || unit == 1 { "" } else { "." };
            write!(f, "{}{dot}{}{name}", nanos / unit, if unit == 1 { "" } else { fraction })
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => point(f, nanos, 1, "ns"),
            1_000..1_000_000 => point(f, nanos, 1_000, "µs"),
            1_000_000..NANOS_PER_SECOND => point(f, nanos, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / (60 * NANOS_PER_SECOND);
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                point(f, nanos % (60 * NANOS_PER_SECOND), NANOS_PER_SECOND, "s")
            }
        }
    }
}

impl Field for GoDuration {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        if let Value::Number(_) = node {
            let detail = "must be a duration with its unit, such as 90s";
            return report.invalid(at, rendered(&node), detail);
        }
        let Some(text) = read_string(node, at, report) else { return };
        match text.parse() {
            Ok(duration) => *self = duration,
            Err(error) => report.invalid(at, quoted(&text), ParseDurationError::to_string(&error)),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.to_string())
    }

    // Go leaves no duration out: it is a struct there.
}

/// A duration that older files give as a whole number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationOrNanos(pub GoDuration);

impl Field for DurationOrNanos {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        match node.as_i64() {
            Some(nanos) => self.0 = GoDuration { nanos },
            None => self.0.read(node, at, report),
        }
    }

    fn write(&self) -> Value {
        self.0.write()
    }

    fn is_zero(&self) -> bool {
        self.0 == GoDuration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelt_as_go_spells_them() {
        for (text, shown) in [
            ("0", "0s"),
            ("87600h", "87600h0m0s"),
            ("1h30m", "1h30m0s"),
            ("90s", "1m30s"),
            ("1.5h", "1h30m0s"),
            ("1.5s", "1.5s"),
            (".5s", "500ms"),
            ("1m0.000000001s", "1m0.000000001s"),
            ("250us", "250µs"),
            ("1.5ms", "1.5ms"),
            ("7ns", "7ns"),
            ("-2m3s", "-2m3s"),
            ("+3s", "3s"),
            ("1h0.5ns", "1h0m0s"),
        ] {
            let duration: GoDuration = text.parse().unwrap();
            assert_eq!(duration.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(duration), "{shown}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        let long = "9".repeat(1000) + "h";
        for bad in
            ["", "-", "1", "h", "1d", "1h 2m", "1..5s", ".s", "1e3s", "9999999h9999999999h", &long, "１s"]
        {
            assert_eq!(bad.parse::<GoDuration>(), Err(ParseDurationError), "{bad:?}");
        }
    }

    #[test]
    fn the_longest_durations_are_exact() {
        assert_eq!("2562047h47m16.854775807s".parse(), Ok(GoDuration { nanos: i64::MAX }));
        assert_eq!(GoDuration { nanos: i64::MIN }.to_string().parse(), Ok(GoDuration { nanos: i64::MIN }));
        assert_eq!("2562047h47m16.854775808s".parse::<GoDuration>(), Err(ParseDurationError));
    }
}
