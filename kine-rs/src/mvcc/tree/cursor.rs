//! Walking a range of a tree in key order.

use super::leaf::Leaf;
use super::{Branch, Node, Record};

/// A walk over a range. `next` moves, `key` is that of the record it returned last.
pub struct Cursor<'a, R: Record, F> {
    pub(super) stack: Vec<(&'a Branch<R>, usize)>,
    pub(super) leaf: Option<(&'a Leaf, usize)>,
    pub(super) end: Option<&'a [u8]>,
    pub(super) key: Vec<u8>,
    pub(super) may_contain: F,
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

    pub(super) fn seek(&mut self, mut node: &'a Node<R>, start: &[u8]) {
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
