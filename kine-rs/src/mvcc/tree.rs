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

use std::cmp::Ordering;
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

/// Entries as packed bytes; see the module's header.
#[derive(Clone, Default)]
struct Leaf {
    prefix: Vec<u8>,
    bytes: Vec<u8>,
    /// Start of each entry in `bytes`.
    starts: Vec<u32>,
}

impl Leaf {
    fn len(&self) -> usize {
        self.starts.len()
    }

    fn entry(&self, at: usize) -> (&[u8], &[u8]) {
        let end = self.starts.get(at + 1).map_or(self.bytes.len(), |&end| end as usize);
        let mut bytes = &self.bytes[self.starts[at] as usize..end];
        let length = take_varint(&mut bytes) as usize;
        bytes.split_at(length)
    }

    fn suffix(&self, at: usize) -> &[u8] {
        self.entry(at).0
    }

    fn record<R: Record>(&self, at: usize) -> R {
        R::decode(self.entry(at).1)
    }

    fn key(&self, at: usize) -> Vec<u8> {
        [self.prefix.as_slice(), self.suffix(at)].concat()
    }

    fn summary<R: Record>(&self) -> R::Summary {
        (0..self.len()).fold(R::Summary::default(), |sum, at| sum.merge(self.record::<R>(at).summary()))
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let length = self.prefix.len();
        let head = &key[..key.len().min(length)];
        match self.prefix.as_slice().cmp(head) {
            Ordering::Less => return Err(self.len()),
            // `head` may be a proper prefix of `prefix`: then the key is below every entry.
            Ordering::Greater => return Err(0),
            Ordering::Equal => {}
        }
        let suffix = &key[length..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.suffix(middle).cmp(suffix) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    fn insert<R: Record>(&mut self, key: &[u8], record: &R) -> Option<R> {
        if self.starts.is_empty() {
            self.prefix = key.to_vec();
        } else if !key.starts_with(&self.prefix) {
            self.shorten_prefix(common(&self.prefix, key));
        }
        let place = self.search(key);
        let mut entry = Vec::with_capacity(key.len() - self.prefix.len() + 40);
        put_entry(&mut entry, &key[self.prefix.len()..], record);
        match place {
            Ok(at) => {
                let old = self.record(at);
                self.splice(at, at + 1, &entry);
                Some(old)
            }
            Err(at) => {
                let start = self.starts.get(at).map_or(self.bytes.len(), |&start| start as usize);
                self.starts.insert(at, start as u32);
                self.bytes.splice(start..start, entry.iter().copied());
                for later in &mut self.starts[at + 1..] {
                    *later += entry.len() as u32;
                }
                None
            }
        }
    }

    fn remove<R: Record>(&mut self, key: &[u8]) -> Option<R> {
        let at = self.search(key).ok()?;
        let old = self.record(at);
        self.splice(at, at + 1, &[]);
        self.starts.remove(at);
        Some(old)
    }

    /// Replaces the bytes of entries `from..to` and moves the starts of all that follow.
    fn splice(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let start = self.starts[from] as usize;
        let end = self.starts.get(to).map_or(self.bytes.len(), |&end| end as usize);
        if end - start == bytes.len() {
            self.bytes[start..end].copy_from_slice(bytes);
            return;
        }
        self.bytes.splice(start..end, bytes.iter().copied());
        for later in &mut self.starts[to..] {
            *later = (*later as usize + bytes.len() - (end - start)) as u32;
        }
    }

    fn shorten_prefix(&mut self, length: usize) {
        let moved = self.prefix.split_off(length);
        let mut bytes = Vec::with_capacity(self.bytes.len() + self.len() * (moved.len() + 1));
        let mut starts = Vec::with_capacity(self.len());
        for at in 0..self.len() {
            let (suffix, record) = self.entry(at);
            starts.push(bytes.len() as u32);
            put_varint(&mut bytes, (moved.len() + suffix.len()) as u64);
            bytes.extend_from_slice(&moved);
            bytes.extend_from_slice(suffix);
            bytes.extend_from_slice(record);
        }
        (self.bytes, self.starts) = (bytes, starts);
    }

    /// A leaf of some of this one's entries, with the longest prefix they share.
    fn rebuild(&self, entries: impl Iterator<Item = usize> + Clone) -> Leaf {
        let mut ends = entries.clone();
        let Some(first) = ends.next() else { return Leaf::default() };
        let last = ends.last().unwrap_or(first);
        let shared = common(self.suffix(first), self.suffix(last));
        let mut leaf =
            Leaf { prefix: self.key(first)[..self.prefix.len() + shared].to_vec(), ..Leaf::default() };
        for at in entries {
            let (suffix, record) = self.entry(at);
            leaf.push(&suffix[shared..], record);
        }
        leaf.bytes.shrink_to_fit();
        leaf.starts.shrink_to_fit();
        leaf
    }

    fn push(&mut self, suffix: &[u8], record: &[u8]) {
        self.starts.push(self.bytes.len() as u32);
        put_varint(&mut self.bytes, suffix.len() as u64);
        self.bytes.extend_from_slice(suffix);
        self.bytes.extend_from_slice(record);
    }

    fn concat(&self, right: &Leaf) -> Leaf {
        let shared = common(&self.prefix, &right.prefix);
        let mut merged = self.clone();
        merged.shorten_prefix(shared);
        let moved = &right.prefix[shared..];
        for at in 0..right.len() {
            let (suffix, record) = right.entry(at);
            merged.push(&[moved, suffix].concat(), record);
        }
        merged.rebuild(0..merged.len())
    }

    fn split_if_full(&mut self, inserted: &[u8]) -> Option<(Vec<u8>, Leaf)> {
        let count = self.len();
        if count <= LEAF_ENTRIES_MAX && (self.bytes.len() <= LEAF_BYTES_MAX || count < 2) {
            return None;
        }
        // Keys that arrive in order would leave every leaf half empty: split at the end for them.
        let ascending = self.suffix(count - 1) == &inserted[self.prefix.len()..];
        let middle = if ascending { count - 1 } else { count / 2 };
        let (last, first) = (self.key(middle - 1), self.key(middle));
        let separator = first[..common(&last, &first) + 1].to_vec();
        let right = self.rebuild(middle..count);
        *self = self.rebuild(0..middle);
        Some((separator, right))
    }
}

fn put_entry<R: Record>(out: &mut Vec<u8>, suffix: &[u8], record: &R) {
    put_varint(out, suffix.len() as u64);
    out.extend_from_slice(suffix);
    record.encode(out);
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Builds the packed leaves left to right, then the levels above them.
struct Builder<R: Record> {
    /// Finished leaves, each with the separator before it.
    leaves: Vec<(Vec<u8>, Child<R>)>,
    /// Keys and records of the leaf being filled, one after the other, and where each key and each record ends.
    bytes: Vec<u8>,
    ends: Vec<(usize, usize)>,
    /// The last key of the last finished leaf.
    last: Vec<u8>,
}

impl<R: Record> Default for Builder<R> {
    fn default() -> Self {
        Builder { leaves: Vec::new(), bytes: Vec::new(), ends: Vec::new(), last: Vec::new() }
    }
}

impl<R: Record> Builder<R> {
    fn push(&mut self, key: &[u8], record: &R) {
        // Leave an eighth free, so that the first insert after a restart does not split every leaf it meets.
        if self.ends.len() == LEAF_ENTRIES_MAX * 7 / 8 || self.bytes.len() > LEAF_BYTES_MAX * 7 / 8 {
            self.close_leaf();
        }
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        record.encode(&mut self.bytes);
        self.ends.push((key_end, self.bytes.len()));
    }

    fn close_leaf(&mut self) {
        let Some(last_at) = self.ends.len().checked_sub(1) else { return };
        let entry = |at: usize| {
            let start = if at == 0 { 0 } else { self.ends[at - 1].1 };
            let (key_end, end) = self.ends[at];
            (&self.bytes[start..key_end], &self.bytes[key_end..end])
        };
        let (first, last) = (entry(0).0, entry(last_at).0);
        let shared = common(first, last);
        let separator =
            if self.leaves.is_empty() { Vec::new() } else { first[..common(&self.last, first) + 1].to_vec() };
        let mut leaf = Leaf { prefix: first[..shared].to_vec(), ..Leaf::default() };
        leaf.bytes.reserve_exact(self.bytes.len());
        leaf.starts.reserve_exact(self.ends.len());
        for at in 0..=last_at {
            let (key, record) = entry(at);
            leaf.push(&key[shared..], record);
        }
        leaf.bytes.shrink_to_fit();
        let last = last.to_vec();
        self.leaves.push((separator, Child::of(Node::Leaf(leaf))));
        self.last = last;
        self.bytes.clear();
        self.ends.clear();
    }

    fn finish(mut self) -> Tree<R> {
        self.close_leaf();
        let mut level = self.leaves;
        while level.len() > 1 {
            let mut above: Vec<(Vec<u8>, Child<R>)> = Vec::new();
            let mut nodes = level.into_iter().peekable();
            while let Some((separator, first)) = nodes.next() {
                let mut branch = Branch { children: vec![first], separators: Vec::new(), ends: Vec::new() };
                while branch.children.len() < BRANCH_CHILDREN_MAX * 7 / 8
                    && let Some((separator, child)) = nodes.next()
                {
                    branch.insert_child(branch.children.len(), &separator, child);
                }
                above.push((separator, Child::of(Node::Branch(branch))));
            }
            level = above;
        }
        Tree { root: level.pop().map_or_else(Child::empty, |(_, root)| root) }
    }
}

/// A walk over a range. `next` moves, `key` is that of the record it returned last.
pub struct Cursor<'a, R: Record, F> {
    stack: Vec<(&'a Branch<R>, usize)>,
    leaf: Option<(&'a Leaf, usize)>,
    end: Option<&'a [u8]>,
    key: Vec<u8>,
    may_contain: F,
}

impl<'a, R: Record, F: Fn(&R::Summary) -> bool> Cursor<'a, R, F> {
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The next record of the range, in key order.
    #[expect(clippy::should_implement_trait, reason = "an Iterator could not lend the key")]
    pub fn next(&mut self) -> Option<R> {
        loop {
            let (leaf, at) = self.leaf.as_mut()?;
            if *at < leaf.len() {
                let (suffix, record) = leaf.entry(*at);
                *at += 1;
                self.key.clear();
                self.key.extend_from_slice(&leaf.prefix);
                self.key.extend_from_slice(suffix);
                if self.end.is_some_and(|end| self.key.as_slice() >= end) {
                    self.leaf = None;
                    return None;
                }
                return Some(R::decode(record));
            }
            self.next_leaf();
        }
    }

    fn seek(&mut self, mut node: &'a Node<R>, start: &[u8]) {
        loop {
            match node {
                Node::Branch(branch) => {
                    let at = branch.child_of(start);
                    self.stack.push((branch, at + 1));
                    if !(self.may_contain)(&branch.children[at].summary) {
                        return self.next_leaf();
                    }
                    node = &branch.children[at].node;
                }
                Node::Leaf(leaf) => {
                    self.leaf = Some((leaf, leaf.search(start).unwrap_or_else(|at| at)));
                    return;
                }
            }
        }
    }

    fn next_leaf(&mut self) {
        self.leaf = None;
        while let Some((branch, at)) = self.stack.pop() {
            let Some(child) = branch.children.get(at) else { continue };
            // Everything from here on lies beyond the range.
            if at > 0 && self.end.is_some_and(|end| branch.separator(at - 1) >= end) {
                self.stack.clear();
                return;
            }
            self.stack.push((branch, at + 1));
            if !(self.may_contain)(&child.summary) {
                continue;
            }
            match &*child.node {
                Node::Branch(branch) => self.stack.push((branch, 0)),
                Node::Leaf(leaf) => {
                    self.leaf = Some((leaf, 0));
                    return;
                }
            }
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
