//! Leaves as bytes in a file: as they are in memory, with lengths before them.
//!
//! A leaf is `varint(prefix length), prefix, varint(entries), varint(length) of each entry`, then the entries, which are
//! `varint(suffix length), suffix, record`. Reading takes nothing for granted: what it accepts is a tree that inserts could
//! have made, and no bytes make it panic. Called by `mvcc::image`.

use super::leaf::Leaf;
use super::{Builder, Child, Node, Record, Summary, Tree, put_varint};
use std::slice;
use std::sync::Arc;

/// Bytes that are no leaf, or not the next one.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl<R: Record> Tree<R> {
    pub fn leaves(&self) -> Leaves<'_, R> {
        Leaves { above: vec![slice::from_ref(&self.root).iter()] }
    }
}

/// The leaves of a tree that have entries, in key order.
pub struct Leaves<'a, R: Record> {
    above: Vec<slice::Iter<'a, Child<R>>>,
}

impl<'a, R: Record> Iterator for Leaves<'a, R> {
    type Item = PackedLeaf<'a>;

    fn next(&mut self) -> Option<PackedLeaf<'a>> {
        loop {
            match self.above.last_mut()?.next().map(|child| &*child.node) {
                None => drop(self.above.pop()),
                Some(Node::Branch(branch)) => self.above.push(branch.children.iter()),
                Some(Node::Leaf(leaf)) if leaf.len() == 0 => {}
                Some(Node::Leaf(leaf)) => return Some(PackedLeaf(leaf)),
            }
        }
    }
}

pub struct PackedLeaf<'a>(&'a Leaf);

impl PackedLeaf<'_> {
    pub fn put(&self, out: &mut Vec<u8>) {
        let Leaf { prefix, bytes, starts } = self.0;
        put_varint(out, prefix.len() as u64);
        out.extend_from_slice(prefix);
        put_varint(out, starts.len() as u64);
        let ends = starts.iter().skip(1).copied().chain([bytes.len() as u32]);
        for (start, end) in starts.iter().zip(ends) {
            put_varint(out, u64::from(end - start));
        }
        out.extend_from_slice(bytes);
    }
}

impl<R: Record> Builder<R> {
    /// Takes the leaf at the front of `bytes`; `is_sound` says whether an entry may be there at all.
    pub fn packed(
        &mut self,
        bytes: &mut &[u8],
        is_sound: impl Fn(&[u8], &R) -> bool,
    ) -> Result<(), Malformed> {
        let leaf = unpack(bytes).ok_or(Malformed)?;
        let mut key = leaf.prefix.clone();
        let mut first = Vec::new();
        let mut summary = R::Summary::default();
        for at in 0..leaf.len() {
            let (suffix, record) = entry(&leaf, at).ok_or(Malformed)?;
            let before = &key[leaf.prefix.len()..];
            if (at > 0 && before >= suffix) || !is_record::<R>(record) {
                return Err(Malformed);
            }
            key.truncate(leaf.prefix.len());
            key.extend_from_slice(suffix);
            if at == 0 {
                first.clone_from(&key);
            }
            let record = R::decode(record);
            if !is_sound(&key, &record) {
                return Err(Malformed);
            }
            summary = summary.merge(record.summary());
        }
        let count = leaf.len() as u64;
        let child = Child { node: Arc::new(Node::Leaf(leaf)), count, summary };
        if self.leaf(&first, key, child) { Ok(()) } else { Err(Malformed) }
    }
}

fn unpack(bytes: &mut &[u8]) -> Option<Leaf> {
    let prefix_len = length(bytes)?;
    let prefix = bytes.split_off(..prefix_len)?;
    let entries = length(bytes).filter(|&entries| 0 < entries && entries <= bytes.len())?;
    let mut starts = Vec::with_capacity(entries);
    let mut end = 0;
    for _ in 0..entries {
        starts.push(u32::try_from(end).ok()?);
        end = length(bytes)?.checked_add(end)?;
    }
    let packed = bytes.split_off(..end)?;
    Some(Leaf { prefix: prefix.to_vec(), bytes: packed.to_vec(), starts })
}

/// `Leaf::entry`, but for bytes that may be anything.
fn entry(leaf: &Leaf, at: usize) -> Option<(&[u8], &[u8])> {
    let end = leaf.starts.get(at + 1).map_or(leaf.bytes.len(), |&end| end as usize);
    let mut bytes = leaf.bytes.get(leaf.starts[at] as usize..end)?;
    let suffix_len = length(&mut bytes)?;
    bytes.split_at_checked(suffix_len)
}

fn length(bytes: &mut &[u8]) -> Option<usize> {
    let len = varint_len(bytes)?;
    let value = super::take_varint(bytes);
    debug_assert!(len <= VARINT_BYTES_MAX);
    usize::try_from(value).ok()
}

/// Whether the bytes are the varints of a record and nothing more.
fn is_record<R: Record>(mut bytes: &[u8]) -> bool {
    (0..R::VARINTS).all(|_| varint_len(bytes).and_then(|len| bytes.split_off(..len)).is_some())
        && bytes.is_empty()
}

/// Seven bits a byte: a 64-bit number has at most this many, and `take_varint` reads no further.
const VARINT_BYTES_MAX: usize = 10;

fn varint_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.iter().position(|byte| *byte < 0x80)? + 1;
    (len <= VARINT_BYTES_MAX).then_some(len)
}
