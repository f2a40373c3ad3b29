//! An ordered map from byte keys to small records: a persistent B+tree with packed leaves and counts per subtree.
//!
//! Invariants: keys are unique and in byte order; every child carries the exact number of entries below it and a
//! summary that covers them (possibly a little too wide after removals elsewhere, never too narrow). `Clone` is O(1) and
//! the clone is frozen: the writer copies the path it changes (`Arc::make_mut`), readers keep what they hold.
//!
//! A leaf is one run of bytes: the prefix all its keys share is stored once, then each entry as `varint(suffix length),
//! suffix, record`. A million Kubernetes keys fit in about 40 MB that way, and copying a leaf is two `memcpy`s.
//!
//! Called by `mvcc`; knows nothing of revisions or leases, and does no I/O.

mod build;
mod cursor;
mod leaf;
mod packed;

pub use build::Builder;
pub use cursor::Cursor;
pub use packed::{Malformed, PackedLeaf};

use bytes::Bytes;
use leaf::Leaf;
use std::fmt;
use std::sync::Arc;

/// Most entries of a leaf before it splits.
const LEAF_ENTRIES_MAX: usize = 64;
/// A leaf of more bytes than this splits as soon as it has two entries (keys may be as long as a request).
const LEAF_BYTES_MAX: usize = 16 << 10;
/// Most children of a branch before it splits.
const BRANCH_CHILDREN_MAX: usize = 64;
/// A node smaller than this is merged with a neighbour when both fit in one.
const NODE_ENTRIES_MIN: usize = 16;

/// What a leaf stores for a key, in packed form.
pub trait Record: Clone {
    type Summary: Summary;
    /// What `encode` writes is this many varints.
    const VARINTS: usize;
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what `encode` wrote; `bytes` ends with the record.
    fn decode(bytes: &[u8]) -> Self;
    fn summary(&self) -> Self::Summary;
}

/// What a subtree knows of its records; lets a scan skip subtrees.
pub trait Summary: Copy + Default + PartialEq {
    fn merge(self, other: Self) -> Self;
}

impl Summary for () {
    fn merge(self, (): Self) {}
}

impl Record for () {
    type Summary = ();
    const VARINTS: usize = 0;
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(_: &[u8]) {}
    fn summary(&self) {}
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

/// A half-open range of keys; `end: None` is open ended.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    pub start: &'a [u8],
    pub end: Option<&'a [u8]>,
}

impl Span<'_> {
    pub const ALL: Span<'static> = Span { start: &[], end: None };

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start && self.end.is_none_or(|end| key < end)
    }

    fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }
}

pub struct Tree<R: Record> {
    root: Child<R>,
}

impl<R: Record> Clone for Tree<R> {
    fn clone(&self) -> Self {
        Tree { root: self.root.clone() }
    }
}

impl<R: Record + fmt::Debug> fmt::Debug for Tree<R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = out.debug_map();
        let mut cursor = self.iter(Span::ALL);
        while let Some(record) = cursor.next() {
            map.entry(&Bytes::copy_from_slice(cursor.key()), &record);
        }
        map.finish()
    }
}

impl<R: Record> Default for Tree<R> {
    fn default() -> Self {
        Tree {
            root: Child {
                node: Arc::new(Node::Leaf(Leaf::default())),
                count: 0,
                summary: R::Summary::default(),
            },
        }
    }
}

impl<R: Record> Tree<R> {
    /// Builds a tree from entries in strictly ascending key order, in one pass.
    pub fn from_sorted<K: AsRef<[u8]>>(entries: impl Iterator<Item = (K, R)>) -> Self {
        let mut builder = Builder::default();
        for (key, record) in entries {
            builder.push(key.as_ref(), &record);
        }
        builder.finish()
    }

    pub fn len(&self) -> u64 {
        self.root.count
    }

    pub fn is_empty(&self) -> bool {
        self.root.count == 0
    }

    pub fn get(&self, key: &[u8]) -> Option<R> {
        let mut node = &*self.root.node;
        loop {
            match node {
                Node::Branch(branch) => node = &branch.children[branch.child_of(key)].node,
                Node::Leaf(leaf) => return leaf.search(key).ok().map(|at| leaf.record(at)),
            }
        }
    }

    /// Inserts or replaces; returns what was there.
    pub fn insert(&mut self, key: &[u8], record: &R) -> Option<R> {
        let (old, split) = self.root.insert(key, record);
        if let Some((separator, right)) = split {
            let left = std::mem::replace(&mut self.root, Child::empty());
            self.root = Child::of(Node::Branch(Branch::pair(left, &separator, right)));
        }
        old
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<R> {
        self.get(key)?;
        let old = self.root.remove(key);
        self.collapse_root();
        old
    }

    /// Removes up to `limit` entries that `unwanted` names, looking only into subtrees that `may_contain` allows.
    /// Returns them in key order; fewer than `limit` means none are left.
    pub fn extract(
        &mut self,
        limit: usize,
        may_contain: &dyn Fn(&R::Summary) -> bool,
        unwanted: &dyn Fn(&R) -> bool,
    ) -> Vec<R> {
        let mut out = Vec::new();
        if may_contain(&self.root.summary) {
            self.root.extract(limit, may_contain, unwanted, &mut out);
            self.collapse_root();
        }
        out
    }

    /// How many entries lie in the range: O(log n).
    pub fn count(&self, span: Span) -> u64 {
        if span.is_empty() {
            return 0;
        }
        let upto_end = span.end.map_or(self.root.count, |end| self.rank(end));
        upto_end - self.rank(span.start)
    }

    /// How many entries of the range satisfy `wanted`, looking only into subtrees that `may_contain` allows.
    pub fn count_where(
        &self,
        span: Span,
        may_contain: impl Fn(&R::Summary) -> bool,
        wanted: impl Fn(&R) -> bool,
    ) -> u64 {
        let mut cursor = self.scan(span, may_contain);
        let mut count = 0;
        while let Some(record) = cursor.next() {
            count += u64::from(wanted(&record));
        }
        count
    }

    pub fn iter<'a>(&'a self, span: Span<'a>) -> Cursor<'a, R, impl Fn(&R::Summary) -> bool> {
        self.scan(span, |_| true)
    }

    /// Walks the range in order, skipping subtrees that `may_contain` rules out.
    pub fn scan<'a, F: Fn(&R::Summary) -> bool>(
        &'a self,
        span: Span<'a>,
        may_contain: F,
    ) -> Cursor<'a, R, F> {
        let mut cursor =
            Cursor { stack: Vec::new(), leaf: None, end: span.end, key: Vec::new(), may_contain };
        if !span.is_empty() && (cursor.may_contain)(&self.root.summary) {
            cursor.seek(&self.root.node, span.start);
        }
        cursor
    }

    /// The entry that has `before` entries before it.
    pub fn nth(&self, mut before: u64) -> Option<(Vec<u8>, R)> {
        if before >= self.root.count {
            return None;
        }
        let mut node = &*self.root.node;
        loop {
            match node {
                Node::Branch(branch) => {
                    let within = branch.children.iter().find(|child| {
                        let is_here = before < child.count;
                        before -= if is_here { 0 } else { child.count };
                        is_here
                    });
                    node = &within.expect("counts are exact").node;
                }
                Node::Leaf(leaf) => return Some((leaf.key(before as usize), leaf.record(before as usize))),
            }
        }
    }

    /// Entries below `key`.
    fn rank(&self, key: &[u8]) -> u64 {
        let mut node = &*self.root.node;
        let mut before = 0;
        loop {
            match node {
                Node::Branch(branch) => {
                    let at = branch.child_of(key);
                    before += branch.children[..at].iter().map(|child| child.count).sum::<u64>();
                    node = &branch.children[at].node;
                }
                Node::Leaf(leaf) => return before + leaf.search(key).unwrap_or_else(|at| at) as u64,
            }
        }
    }

    fn collapse_root(&mut self) {
        while let Node::Branch(branch) = &*self.root.node {
            match branch.children.as_slice() {
                [] => self.root = Child::empty(),
                [only] => self.root = only.clone(),
                _ => return,
            }
        }
    }
}

struct Child<R: Record> {
    node: Arc<Node<R>>,
    count: u64,
    summary: R::Summary,
}

impl<R: Record> Clone for Child<R> {
    fn clone(&self) -> Self {
        Child { node: self.node.clone(), count: self.count, summary: self.summary }
    }
}

type Split<R> = Option<(Vec<u8>, Child<R>)>;

impl<R: Record> Child<R> {
    fn empty() -> Self {
        Child { node: Arc::new(Node::Leaf(Leaf::default())), count: 0, summary: R::Summary::default() }
    }

    fn of(node: Node<R>) -> Self {
        let mut child = Child { node: Arc::new(node), count: 0, summary: R::Summary::default() };
        child.measure();
        child
    }

    /// Recomputes count and summary from what is directly below.
    fn measure(&mut self) {
        (self.count, self.summary) = match &*self.node {
            Node::Leaf(leaf) => (leaf.len() as u64, leaf.summary::<R>()),
            Node::Branch(branch) => branch
                .children
                .iter()
                .fold((0, R::Summary::default()), |(n, s), c| (n + c.count, s.merge(c.summary))),
        };
    }

    fn insert(&mut self, key: &[u8], record: &R) -> (Option<R>, Split<R>) {
        let (old, split) = match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => {
                let old = leaf.insert(key, record);
                let split = leaf
                    .split_if_full(key)
                    .map(|(separator, right)| (separator, Child::of(Node::Leaf(right))));
                (old, split)
            }
            Node::Branch(branch) => {
                let at = branch.child_of(key);
                let (old, split) = branch.children[at].insert(key, record);
                if let Some((separator, right)) = split {
                    branch.insert_child(at + 1, &separator, right);
                }
                let split = branch
                    .split_if_full()
                    .map(|(separator, right)| (separator, Child::of(Node::Branch(right))));
                (old, split)
            }
        };
        if split.is_some() {
            self.measure();
        } else {
            self.count += u64::from(old.is_none());
            self.summary =
                if self.count == 1 { record.summary() } else { self.summary.merge(record.summary()) };
        }
        (old, split)
    }

    fn remove(&mut self, key: &[u8]) -> Option<R> {
        let old = match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => leaf.remove(key),
            Node::Branch(branch) => {
                let at = branch.child_of(key);
                let old = branch.children[at].remove(key);
                branch.rebalance(at);
                old
            }
        };
        self.measure();
        old
    }

    fn extract(
        &mut self,
        limit: usize,
        may_contain: &dyn Fn(&R::Summary) -> bool,
        unwanted: &dyn Fn(&R) -> bool,
        out: &mut Vec<R>,
    ) {
        match Arc::make_mut(&mut self.node) {
            Node::Leaf(leaf) => {
                let keep: Vec<bool> = (0..leaf.len())
                    .map(|at| {
                        let record = leaf.record::<R>(at);
                        let keep = out.len() >= limit || !unwanted(&record);
                        if !keep {
                            out.push(record);
                        }
                        keep
                    })
                    .collect();
                if keep.contains(&false) {
                    *leaf = leaf.rebuild((0..leaf.len()).filter(|&at| keep[at]));
                }
            }
            Node::Branch(branch) => {
                let mut at = 0;
                while at < branch.children.len() && out.len() < limit {
                    if may_contain(&branch.children[at].summary) {
                        branch.children[at].extract(limit, may_contain, unwanted, out);
                    }
                    at += 1;
                }
                let mut at = branch.children.len();
                while at > 0 {
                    at -= 1;
                    branch.rebalance(at);
                }
            }
        }
        self.measure();
    }
}

enum Node<R: Record> {
    Leaf(Leaf),
    Branch(Branch<R>),
}

impl<R: Record> Clone for Node<R> {
    fn clone(&self) -> Self {
        match self {
            Node::Leaf(leaf) => Node::Leaf(leaf.clone()),
            Node::Branch(branch) => Node::Branch(branch.clone()),
        }
    }
}

/// Children in order; the separator before child `i` is above every key of child `i - 1` and not above any of child `i`.
struct Branch<R: Record> {
    children: Vec<Child<R>>,
    separators: Vec<u8>,
    /// End of each separator in `separators`; one fewer than children.
    ends: Vec<u32>,
}

impl<R: Record> Clone for Branch<R> {
    fn clone(&self) -> Self {
        Branch {
            children: self.children.clone(),
            separators: self.separators.clone(),
            ends: self.ends.clone(),
        }
    }
}

impl<R: Record> Branch<R> {
    fn pair(left: Child<R>, separator: &[u8], right: Child<R>) -> Self {
        Branch {
            children: vec![left, right],
            separators: separator.to_vec(),
            ends: vec![separator.len() as u32],
        }
    }

    fn separator(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.separators[start..self.ends[at] as usize]
    }

    fn child_of(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.separator(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Inserts `child` at `at > 0` with the separator that stands before it.
    fn insert_child(&mut self, at: usize, separator: &[u8], child: Child<R>) {
        let start = if at == 1 { 0 } else { self.ends[at - 2] as usize };
        self.separators.splice(start..start, separator.iter().copied());
        self.ends.insert(at - 1, start as u32);
        for end in &mut self.ends[at - 1..] {
            *end += separator.len() as u32;
        }
        self.children.insert(at, child);
    }

    /// Removes the separator between children `at` and `at + 1`.
    fn remove_separator(&mut self, at: usize) {
        let length = self.separator(at).len();
        let start = self.ends[at] as usize - length;
        self.separators.drain(start..start + length);
        self.ends.remove(at);
        for end in &mut self.ends[at..] {
            *end -= length as u32;
        }
    }

    fn split_if_full(&mut self) -> Option<(Vec<u8>, Branch<R>)> {
        if self.children.len() <= BRANCH_CHILDREN_MAX {
            return None;
        }
        let middle = self.children.len() / 2;
        let separator = self.separator(middle - 1).to_vec();
        let base = self.ends[middle - 1];
        let right = Branch {
            children: self.children.split_off(middle),
            separators: self.separators[base as usize..].to_vec(),
            ends: self.ends[middle..].iter().map(|end| end - base).collect(),
        };
        self.ends.truncate(middle - 1);
        self.separators.truncate(base as usize - separator.len());
        Some((separator, right))
    }

    /// Drops child `at` when empty, merges it with a neighbour when small.
    fn rebalance(&mut self, at: usize) {
        if self.children[at].count == 0 {
            self.children.remove(at);
            if !self.ends.is_empty() {
                self.remove_separator(at.min(self.ends.len() - 1).min(at.saturating_sub(1)));
            }
            return;
        }
        if self.children[at].node.len() >= NODE_ENTRIES_MIN || self.children.len() < 2 {
            return;
        }
        let left = if at + 1 < self.children.len() { at } else { at - 1 };
        let merged = match (&*self.children[left].node, &*self.children[left + 1].node) {
            (Node::Leaf(a), Node::Leaf(b))
                if a.len() + b.len() <= LEAF_ENTRIES_MAX
                    && a.bytes.len() + b.bytes.len() <= LEAF_BYTES_MAX =>
            {
                Node::Leaf(a.concat(b))
            }
            (Node::Branch(a), Node::Branch(b))
                if a.children.len() + b.children.len() <= BRANCH_CHILDREN_MAX =>
            {
                let mut merged = a.clone();
                merged.separators.extend_from_slice(self.separator(left));
                merged.ends.push(merged.separators.len() as u32);
                let base = merged.separators.len() as u32;
                merged.separators.extend_from_slice(&b.separators);
                merged.ends.extend(b.ends.iter().map(|end| end + base));
                merged.children.extend(b.children.iter().cloned());
                Node::Branch(merged)
            }
            _ => return,
        };
        self.children[left] = Child::of(merged);
        self.children.remove(left + 1);
        self.remove_separator(left);
    }
}

impl<R: Record> Node<R> {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Branch(branch) => branch.children.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Number(u64);

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Max(u64);

    impl Summary for Max {
        fn merge(self, other: Self) -> Self {
            Max(self.0.max(other.0))
        }
    }

    impl Record for Number {
        type Summary = Max;
        const VARINTS: usize = 1;
        fn encode(&self, out: &mut Vec<u8>) {
            put_varint(out, self.0);
        }
        fn decode(mut bytes: &[u8]) -> Self {
            Number(take_varint(&mut bytes))
        }
        fn summary(&self) -> Max {
            Max(self.0)
        }
    }

    fn check(tree: &Tree<Number>, model: &BTreeMap<Vec<u8>, u64>) {
        assert_eq!(tree.len(), model.len() as u64);
        let mut cursor = tree.iter(Span::ALL);
        for (key, value) in model {
            assert_eq!(cursor.next(), Some(Number(*value)));
            assert_eq!(cursor.key(), key.as_slice());
        }
        assert_eq!(cursor.next(), None);
    }

    #[test]
    fn a_clone_does_not_change_with_the_original() {
        let mut tree = Tree::default();
        for n in 0..1000u64 {
            tree.insert(format!("/registry/pods/{n:05}").as_bytes(), &Number(n));
        }
        let frozen = tree.clone();
        for n in 0..1000u64 {
            tree.remove(format!("/registry/pods/{n:05}").as_bytes());
        }
        assert!(tree.is_empty());
        assert_eq!(frozen.len(), 1000);
        assert_eq!(frozen.get(b"/registry/pods/00999"), Some(Number(999)));
    }

    #[test]
    fn a_tree_built_in_one_pass_equals_one_built_by_inserts() {
        let keys: Vec<String> = (0..5000).map(|n| format!("/registry/{}/{n:06}", n % 7)).collect();
        let mut sorted: Vec<_> =
            keys.iter().enumerate().map(|(n, key)| (key.clone(), Number(n as u64))).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let tree = Tree::from_sorted(sorted.iter().map(|(key, n)| (key.as_bytes(), *n)));
        let model = sorted.iter().map(|(key, n)| (key.as_bytes().to_vec(), n.0)).collect();
        check(&tree, &model);
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 255]), 0..6),
            (0..400u32).prop_map(|n| format!("/registry/pods/ns-{}/pod-{n}", n % 5).into_bytes()),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Vec<u8>, u64),
        Remove(Vec<u8>),
        ExtractBelow(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (key(), 0..1000u64).prop_map(|(key, n)| Step::Insert(key, n)),
            3 => key().prop_map(Step::Remove),
            1 => (0..300u64).prop_map(Step::ExtractBelow),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_an_ordered_map(steps in prop::collection::vec(step(), 1..800), from in key(), to in key()) {
            let (mut tree, mut model) = (Tree::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(key, n) => {
                        prop_assert_eq!(tree.insert(&key, &Number(n)).map(|n| n.0), model.insert(key, n));
                    }
                    Step::Remove(key) => prop_assert_eq!(tree.remove(&key).map(|n| n.0), model.remove(&key)),
                    // Values below the bound go; a summary knows only the maximum, so nothing may be skipped wrongly.
                    Step::ExtractBelow(bound) => {
                        let gone = tree.extract(usize::MAX, &|_| true, &|n| n.0 < bound);
                        let before = model.len();
                        model.retain(|_, n| *n >= bound);
                        prop_assert_eq!(gone.len(), before - model.len());
                    }
                }
            }
            check(&tree, &model);
            let inside: Vec<_> = model.iter().filter(|(k, _)| **k >= from && **k < to).collect();
            let span = Span { start: &from, end: Some(&to) };
            prop_assert_eq!(tree.count(span), inside.len() as u64);
            let mut cursor = tree.scan(span, |max| max.0 >= 500);
            let mut seen = Vec::new();
            while let Some(n) = cursor.next() {
                if n.0 >= 500 {
                    seen.push((cursor.key().to_vec(), n.0));
                }
            }
            let expected: Vec<_> = inside.into_iter().filter(|(_, n)| **n >= 500).map(|(k, n)| (k.clone(), *n)).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
