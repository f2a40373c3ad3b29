//! A leaf: keys and records packed into one run of bytes, their common prefix stored once.

use super::{LEAF_BYTES_MAX, LEAF_ENTRIES_MAX, Record, Summary, put_varint, take_varint};
use std::cmp::Ordering;

/// Entries as packed bytes; see the module's header.
#[derive(Clone, Default)]
pub(super) struct Leaf {
    pub(super) prefix: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    /// Start of each entry in `bytes`.
    pub(super) starts: Vec<u32>,
}

impl Leaf {
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn entry(&self, at: usize) -> (&[u8], &[u8]) {
        let end = self.starts.get(at + 1).map_or(self.bytes.len(), |&end| end as usize);
        let mut bytes = &self.bytes[self.starts[at] as usize..end];
        let length = take_varint(&mut bytes) as usize;
        bytes.split_at(length)
    }

    fn suffix(&self, at: usize) -> &[u8] {
        self.entry(at).0
    }

    pub(super) fn record<R: Record>(&self, at: usize) -> R {
        R::decode(self.entry(at).1)
    }

    pub(super) fn key(&self, at: usize) -> Vec<u8> {
        [self.prefix.as_slice(), self.suffix(at)].concat()
    }

    pub(super) fn summary<R: Record>(&self) -> R::Summary {
        (0..self.len()).fold(R::Summary::default(), |sum, at| sum.merge(self.record::<R>(at).summary()))
    }

    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
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

    pub(super) fn insert<R: Record>(&mut self, key: &[u8], record: &R) -> Option<R> {
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

    pub(super) fn remove<R: Record>(&mut self, key: &[u8]) -> Option<R> {
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
    pub(super) fn rebuild(&self, entries: impl Iterator<Item = usize> + Clone) -> Leaf {
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

    pub(super) fn push(&mut self, suffix: &[u8], record: &[u8]) {
        self.starts.push(self.bytes.len() as u32);
        put_varint(&mut self.bytes, suffix.len() as u64);
        self.bytes.extend_from_slice(suffix);
        self.bytes.extend_from_slice(record);
    }

    pub(super) fn concat(&self, right: &Leaf) -> Leaf {
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

    pub(super) fn split_if_full(&mut self, inserted: &[u8]) -> Option<(Vec<u8>, Leaf)> {
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

pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
