//! Sets of keys as unions of ranges.
//!
//! Invariant: the ranges are sorted, not empty, and neither overlap nor touch.

use bytes::Bytes;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    ranges: Vec<Range>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: Bytes,
    end: End,
}

/// Ordered: an open end is behind every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl Range {
    /// A range as requests and permissions give it: without an end it is one key, with the end `\0` it is open.
    fn new(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => End::Before([key.as_ref(), &[0]].concat().into()),
            [0] => End::Open,
            _ => End::Before(range_end.clone()),
        };
        Range { start: key.clone(), end }
    }

    fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// Whether the range reaches up to `key` or beyond.
    fn reaches(&self, key: &Bytes) -> bool {
        match &self.end {
            End::Before(end) => end >= key,
            End::Open => true,
        }
    }
}

impl Intervals {
    pub fn union<'a>(ranges: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut all: Vec<Range> =
            ranges.map(|(key, end)| Range::new(key, end)).filter(|range| !range.is_empty()).collect();
        all.sort_by(|one, other| one.start.cmp(&other.start));
        let mut ranges: Vec<Range> = Vec::with_capacity(all.len());
        for range in all {
            match ranges.last_mut() {
                Some(last) if last.reaches(&range.start) => last.end = range.end.max(last.end.clone()),
                _ => ranges.push(range),
            }
        }
        Intervals { ranges }
    }

    /// Whether every key of the range is in the set. A range that ends before it starts is covered where it starts.
    pub fn cover(&self, key: &Bytes, range_end: &Bytes) -> bool {
        let wanted = Range::new(key, range_end);
        let behind = self.ranges.partition_point(|range| range.start <= wanted.start);
        let Some(range) = behind.checked_sub(1).map(|at| &self.ranges[at]) else { return false };
        let holds_start = match &range.end {
            End::Before(end) => wanted.start < *end,
            End::Open => true,
        };
        holds_start && wanted.end <= range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(&'static str, &'static str)]) -> Intervals {
        let ranges: Vec<(Bytes, Bytes)> =
            ranges.iter().map(|(key, end)| ((*key).into(), (*end).into())).collect();
        Intervals::union(ranges.iter().map(|(key, end)| (key, end)))
    }

    fn covers(set: &Intervals, key: &'static str, end: &'static str) -> bool {
        set.cover(&key.into(), &end.into())
    }

    #[test]
    fn ranges_that_overlap_or_touch_cover_together_what_none_covers_alone() {
        let set = set(&[("a", "c"), ("c", "e"), ("d", "f"), ("x", "")]);
        assert!(covers(&set, "a", "f"));
        assert!(covers(&set, "b", ""));
        assert!(!covers(&set, "a", "g"));
        assert!(!covers(&set, "f", ""), "the end is not in the range");
        assert!(covers(&set, "x", ""));
        assert!(covers(&set, "x", "x\0"));
        assert!(!covers(&set, "x", "y"));
        assert!(!covers(&set, "a", "\0"));
    }

    #[test]
    fn an_open_end_covers_everything_behind() {
        let set = set(&[("m", "\0"), ("z", "")]);
        assert!(covers(&set, "m", "\0"));
        assert!(covers(&set, "zz", "\0"));
        assert!(covers(&set, "n", "o"));
        assert!(!covers(&set, "a", "\0"));
        assert!(!covers(&set, "a", "n"));
    }

    #[test]
    fn single_keys_that_follow_each_other_make_a_range() {
        assert!(covers(&set(&[("a", ""), ("a\0", "")]), "a", "a\0\0"));
        assert!(!covers(&set(&[("a", ""), ("b", "")]), "a", "b\0"));
    }

    #[test]
    fn a_range_that_ends_before_it_starts_needs_its_start() {
        let set = set(&[("b", "d")]);
        assert!(covers(&set, "c", "a"));
        assert!(!covers(&set, "d", "a"));
        assert!(!covers(&set, "a", "a"));
    }

    #[test]
    fn nothing_covers_nothing() {
        assert!(!covers(&set(&[]), "a", ""));
        assert!(!covers(&set(&[("c", "a")]), "c", ""));
    }
}
