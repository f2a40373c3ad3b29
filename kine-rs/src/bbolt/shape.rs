//! The shape of a bucket's tree: which entries share a page and which number the page gets, from lengths alone.
//!
//! Pages are filled left to right and numbered in the order they are complete, so a file can be written front to back.
//! Invariant: every page but a lone root leaf has an entry, and every branch has two or more: bbolt panics when it
//! deletes below a branch with one child. So a full branch page is closed only once two entries wait for the next one,
//! and the last page of a level takes one back from its neighbour if it would be left with a single child.
//!
//! The planner and the writer both drive a `Shape`; it holds no bytes of any record.

use super::{ELEMENT_LEN, PAGE_HEADER_LEN, PAGE_SIZE};

/// Entries that a leaf page has at least.
const LEAF_ENTRIES_MIN: usize = 1;
/// Entries that a branch page has at least.
const BRANCH_ENTRIES_MIN: usize = 2;

/// A tree in construction.
#[derive(Debug)]
pub(super) struct Shape {
    /// From the leaves up.
    levels: Vec<Level>,
    next_page: u64,
}

/// A page that is complete: the oldest `entries` entries of its level that are not on a page yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    /// 0 is the leaves.
    pub level: usize,
    pub entries: usize,
    /// Number of its first page.
    pub page: u64,
    /// Length of the run, overflow included.
    pub pages: u64,
}

impl Shape {
    /// A tree without entries whose first page will be `next_page`.
    pub fn new(next_page: u64) -> Self {
        Self { levels: vec![Level::new(LEAF_ENTRIES_MIN)], next_page }
    }

    /// Adds a record. Pages completed by it are told to `on_close` from the leaves up; the record itself is on none of
    /// them. Each also adds an entry to the level above.
    pub fn push<E>(
        &mut self,
        key_len: usize,
        value_len: usize,
        on_close: &mut impl FnMut(Closed) -> Result<(), E>,
    ) -> Result<(), E> {
        self.push_at(0, Entry { key_len, value_len }, on_close)
    }

    /// Completes all pages, starts an empty tree after them and returns the root's page number. The root's entry in
    /// the level above it has no meaning.
    pub fn finish<E>(&mut self, on_close: &mut impl FnMut(Closed) -> Result<(), E>) -> Result<u64, E> {
        let mut level = 0;
        let root = loop {
            let (first, second) = self.levels[level].drain();
            let page = self.close(level, first, on_close)?;
            if let Some(group) = second {
                self.close(level, group, on_close)?;
            }
            if self.levels[level].closed == 1 {
                break page;
            }
            level += 1;
        };
        *self = Self::new(self.next_page);
        Ok(root)
    }

    /// The number the next page will have: all pages below it are complete.
    pub fn next_page(&self) -> u64 {
        self.next_page
    }

    fn push_at<E>(
        &mut self,
        level: usize,
        entry: Entry,
        on_close: &mut impl FnMut(Closed) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.levels[level].push(entry) {
            Some(group) => self.close(level, group, on_close).map(drop),
            None => Ok(()),
        }
    }

    fn close<E>(
        &mut self,
        level: usize,
        group: Group,
        on_close: &mut impl FnMut(Closed) -> Result<(), E>,
    ) -> Result<u64, E> {
        let (page, pages) = (self.next_page, (PAGE_HEADER_LEN + group.bytes).div_ceil(PAGE_SIZE) as u64);
        self.next_page += pages;
        self.levels[level].closed += 1;
        on_close(Closed { level, entries: group.count, page, pages })?;
        if level + 1 == self.levels.len() {
            self.levels.push(Level::new(BRANCH_ENTRIES_MIN));
        }
        self.push_at(level + 1, Entry { key_len: group.first_key_len, value_len: 0 }, on_close)?;
        Ok(page)
    }
}

/// Lengths of a record, or of a branch entry (which has no value).
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key_len: usize,
    value_len: usize,
}

impl Entry {
    fn bytes(self) -> usize {
        ELEMENT_LEN + self.key_len + self.value_len
    }
}

/// Neighbouring entries that go onto one page.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    count: usize,
    bytes: usize,
    first_key_len: usize,
}

impl Group {
    fn add(&mut self, entry: Entry) {
        if self.count == 0 {
            self.first_key_len = entry.key_len;
        }
        self.count += 1;
        self.bytes += entry.bytes();
    }
}

/// The entries of one level that are not on a page yet.
#[derive(Debug)]
struct Level {
    entries_min: usize,
    /// Becomes the next page.
    filling: Group,
    /// Last entry of `filling`.
    last: Entry,
    /// Does not fit there, and is less than `entries_min`.
    waiting: Group,
    /// Pages completed so far.
    closed: u64,
}

impl Level {
    fn new(entries_min: usize) -> Self {
        Self {
            entries_min,
            filling: Group::default(),
            last: Entry::default(),
            waiting: Group::default(),
            closed: 0,
        }
    }

    /// Returns the entries of a page that is complete. An entry longer than a page gets a run of pages.
    fn push(&mut self, entry: Entry) -> Option<Group> {
        let fits = PAGE_HEADER_LEN + self.filling.bytes + entry.bytes() <= PAGE_SIZE;
        if self.waiting.count == 0 && (fits || self.filling.count < self.entries_min) {
            self.filling.add(entry);
            self.last = entry;
            return None;
        }
        self.waiting.add(entry);
        if self.waiting.count < self.entries_min {
            return None;
        }
        let complete = std::mem::replace(&mut self.filling, std::mem::take(&mut self.waiting));
        self.last = entry;
        Some(complete)
    }

    /// The last page of the level, or its last two.
    fn drain(&mut self) -> (Group, Option<Group>) {
        let (mut filling, mut waiting) =
            (std::mem::take(&mut self.filling), std::mem::take(&mut self.waiting));
        if waiting.count == 0 {
            return (filling, None);
        }
        // Branches only: here one entry waits, and two are wanted on a page.
        if filling.count > self.entries_min {
            filling.count -= 1;
            filling.bytes -= self.last.bytes();
            waiting.first_key_len = self.last.key_len;
            waiting.count += 1;
            waiting.bytes += self.last.bytes();
            return (filling, Some(waiting));
        }
        filling.count += waiting.count;
        filling.bytes += waiting.bytes;
        (filling, None)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Pages of a tree with these records, and its root.
    fn build(records: &[(usize, usize)]) -> (Vec<Closed>, u64) {
        let (mut shape, mut pages) = (Shape::new(3), Vec::new());
        let mut note = |closed| -> Result<(), Infallible> {
            pages.push(closed);
            Ok(())
        };
        for (key_len, value_len) in records {
            shape.push(*key_len, *value_len, &mut note).expect("infallible");
        }
        let root = shape.finish(&mut note).expect("infallible");
        (pages, root)
    }

    #[test]
    fn an_empty_tree_is_one_empty_leaf() {
        assert_eq!(build(&[]), (vec![Closed { level: 0, entries: 0, page: 3, pages: 1 }], 3));
    }

    #[test]
    fn a_record_longer_than_a_page_gets_a_run_of_its_own() {
        let (pages, root) = build(&[(17, 10), (17, 10_000), (17, 10)]);
        assert_eq!(
            pages,
            [
                Closed { level: 0, entries: 1, page: 3, pages: 1 },
                Closed { level: 0, entries: 1, page: 4, pages: 3 },
                Closed { level: 0, entries: 1, page: 7, pages: 1 },
                Closed { level: 1, entries: 3, page: 8, pages: 1 },
            ]
        );
        assert_eq!(root, 8);
    }

    proptest! {
        #[test]
        fn pages_are_consecutive_and_no_branch_has_a_single_child(
            records in prop::collection::vec((1usize..9000, 0usize..9000), 0..400)
        ) {
            let (pages, root) = build(&records);
            let mut next = 3;
            let top = pages.iter().map(|page| page.level).max().expect("a root");
            let mut below = records.len();
            for level in 0..=top {
                let of_level: Vec<_> = pages.iter().filter(|page| page.level == level).collect();
                prop_assert_eq!(of_level.iter().map(|page| page.entries).sum::<usize>(), below);
                prop_assert!(level == 0 || of_level.iter().all(|page| page.entries >= 2));
                below = of_level.len();
            }
            prop_assert_eq!(below, 1);
            for page in &pages {
                prop_assert_eq!(page.page, next);
                next += page.pages;
            }
            prop_assert_eq!(pages.last().map(|page| page.page), Some(root));
        }
    }
}
