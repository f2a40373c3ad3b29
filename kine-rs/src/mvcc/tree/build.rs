//! Building a tree from sorted entries, or leaves, in one pass.

use super::leaf::{Leaf, common};
use super::{BRANCH_CHILDREN_MAX, Branch, Child, LEAF_BYTES_MAX, LEAF_ENTRIES_MAX, Node, Record, Tree};

/// Builds the packed leaves left to right, then the levels above them.
pub struct Builder<R: Record> {
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
    pub(super) fn push(&mut self, key: &[u8], record: &R) {
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
        let mut leaf = Leaf { prefix: first[..shared].to_vec(), ..Leaf::default() };
        leaf.bytes.reserve_exact(self.bytes.len());
        leaf.starts.reserve_exact(self.ends.len());
        for at in 0..=last_at {
            let (key, record) = entry(at);
            leaf.push(&key[shared..], record);
        }
        leaf.bytes.shrink_to_fit();
        let (first, last) = (first.to_vec(), last.to_vec());
        let in_order = self.leaf(&first, last, Child::of(Node::Leaf(leaf)));
        debug_assert!(in_order, "entries ascend");
        self.bytes.clear();
        self.ends.clear();
    }

    /// Appends a finished leaf of the keys `first` to `last`; false if it is not above all before it.
    pub(super) fn leaf(&mut self, first: &[u8], last: Vec<u8>, child: Child<R>) -> bool {
        let separator = if self.leaves.is_empty() {
            Vec::new()
        } else if *self.last < *first {
            first[..common(&self.last, first) + 1].to_vec()
        } else {
            return false;
        };
        self.leaves.push((separator, child));
        self.last = last;
        true
    }

    pub fn finish(mut self) -> Tree<R> {
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
