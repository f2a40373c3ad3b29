//! Which watchers a key concerns: by key, by prefix, by any other range.
//!
//! A range that is a prefix (nearly all are) costs one hash look-up per distinct prefix length, however many watchers there
//! are; only the rest are looked through one by one.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A watched range: `end: None` is open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    Key(Bytes),
    Range { start: Bytes, end: Option<Bytes> },
}

impl Watched {
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Watched::Key(watched) => watched == key,
            Watched::Range { start, end } => {
                key >= start.as_ref() && end.as_ref().is_none_or(|end| key < end.as_ref())
            }
        }
    }

    /// The prefix this range means, if it is one.
    fn prefix(&self) -> Option<&Bytes> {
        match self {
            Watched::Range { start, end: Some(end) } if is_prefix_end(start, end) => Some(start),
            _ => None,
        }
    }
}

/// Whether `end` is `start` with its last byte (after dropping 0xff) counted up.
fn is_prefix_end(start: &[u8], end: &[u8]) -> bool {
    let Some((last, head)) = end.split_last() else { return false };
    let rest = start.len().checked_sub(end.len());
    rest.is_some()
        && start.starts_with(head)
        && start[end.len() - 1].checked_add(1) == Some(*last)
        && start[end.len()..].iter().all(|&byte| byte == 0xff)
}

/// Watchers by what they watch. `W` identifies a watcher.
#[derive(Default)]
pub struct Index {
    keys: Map<Bytes, Vec<usize>>,
    prefixes: Map<Bytes, Vec<usize>>,
    /// How many distinct prefixes have each length.
    lengths: BTreeMap<usize, usize>,
    others: Map<Watched, Vec<usize>>,
}

impl Index {
    pub fn insert(&mut self, watched: &Watched, watcher: usize) {
        if let Watched::Key(key) = watched {
            self.keys.entry(key.clone()).or_default().push(watcher);
        } else if let Some(prefix) = watched.prefix() {
            let watchers = self.prefixes.entry(prefix.clone()).or_default();
            if watchers.is_empty() {
                *self.lengths.entry(prefix.len()).or_default() += 1;
            }
            watchers.push(watcher);
        } else {
            self.others.entry(watched.clone()).or_default().push(watcher);
        }
    }

    pub fn remove(&mut self, watched: &Watched, watcher: usize) {
        if let Watched::Key(key) = watched {
            take(&mut self.keys, key, watcher);
        } else if let Some(prefix) = watched.prefix() {
            if take(&mut self.prefixes, prefix, watcher)
                && let Some(count) = self.lengths.get_mut(&prefix.len())
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        } else {
            take(&mut self.others, watched, watcher);
        }
    }

    /// Calls `each` with every watcher of `key`.
    pub fn matching(&self, key: &[u8], mut each: impl FnMut(usize)) {
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().copied().for_each(&mut each);
        }
        for &length in self.lengths.keys().take_while(|&&length| length <= key.len()) {
            if let Some(watchers) = self.prefixes.get(&key[..length]) {
                watchers.iter().copied().for_each(&mut each);
            }
        }
        for (watched, watchers) in &self.others {
            if watched.contains(key) {
                watchers.iter().copied().for_each(&mut each);
            }
        }
    }
}

/// Removes one watcher of an entry; true when it was the last.
fn take<K: std::hash::Hash + Eq>(map: &mut Map<K, Vec<usize>>, key: &K, watcher: usize) -> bool {
    let Some(watchers) = map.get_mut(key) else { return false };
    watchers.retain(|&other| other != watcher);
    let last = watchers.is_empty();
    if last {
        map.remove(key);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static [u8], end: &'static [u8]) -> Watched {
        Watched::Range { start: Bytes::from_static(start), end: Some(Bytes::from_static(end)) }
    }

    fn found(index: &Index, key: &[u8]) -> Vec<usize> {
        let mut all = Vec::new();
        index.matching(key, |watcher| all.push(watcher));
        all.sort_unstable();
        all
    }

    #[test]
    fn every_kind_of_range_finds_its_keys_and_no_others() {
        let mut index = Index::default();
        let watched = [
            Watched::Key(Bytes::from_static(b"/a/x")),
            range(b"/a/", b"/a0"),
            range(b"/a/\xff", b"/a0"),
            range(b"/a/b", b"/a/m"),
            Watched::Range { start: Bytes::from_static(b"/b"), end: None },
        ];
        for (watcher, watched) in watched.iter().enumerate() {
            index.insert(watched, watcher);
        }
        for key in [&b"/a/x"[..], b"/a/", b"/a/c", b"/a0", b"/b", b"/zz", b"/", b"/a/\xff\x01", b"/a/m"] {
            let expected: Vec<usize> = (0..watched.len()).filter(|&at| watched[at].contains(key)).collect();
            assert_eq!(found(&index, key), expected, "{key:?}");
        }
        for (watcher, watched) in watched.iter().enumerate() {
            index.remove(watched, watcher);
        }
        assert_eq!(found(&index, b"/a/x"), Vec::<usize>::new());
        assert!(index.lengths.is_empty());
    }
}
