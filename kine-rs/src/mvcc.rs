//! The MVCC state: which version of which key is visible at which revision.
//!
//! `State` is a value: cloning it is O(1) and the clone is a consistent view (`ReadView`) that no later write changes.
//! Values themselves are not here; a `Version` carries the location of its row in the backend.
//!
//! Invariants: a key is in `live` iff it exists now; a superseded version or a tombstone is in `history` until compaction
//! passes it; over both, at most one version of a key is visible at a revision. `revision` never decreases. Every row of
//! the backend is in `live`, `history` or `buried`.
//!
//! Called by `txn` and `apply` (writes, on the writer's own copy) and by everything that reads. No clock, no I/O.

pub mod hash;
pub mod image;
pub mod range;
mod rebuild;
pub mod tree;

pub use rebuild::{Rebuild, Replay};

use bytes::{Bytes, BytesMut};
use tree::{Record, Span, Summary, Tree, put_varint, take_varint};

/// Where a row is in the backend's order; rows are appended with ascending locations.
pub type Location = u64;

/// No store counts so far. A file that claims more is damaged: its next revisions would overflow.
pub const REVISION_MAX: i64 = 1 << 62;

/// One stored version of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub mod_revision: i64,
    pub create_revision: i64,
    /// Puts since creation, from 1; 0 marks a tombstone.
    pub version: i64,
    pub lease: i64,
    pub location: Location,
    pub value_len: u32,
}

impl Version {
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.mod_revision as u64);
        put_varint(out, (self.mod_revision - self.create_revision) as u64);
        put_varint(out, self.version as u64);
        put_varint(out, self.lease as u64);
        put_varint(out, self.location);
        put_varint(out, u64::from(self.value_len));
    }

    fn decode(bytes: &mut &[u8]) -> Self {
        let mod_revision = take_varint(bytes) as i64;
        Version {
            mod_revision,
            create_revision: mod_revision.wrapping_sub(take_varint(bytes) as i64),
            version: take_varint(bytes) as i64,
            lease: take_varint(bytes) as i64,
            location: take_varint(bytes),
            value_len: take_varint(bytes) as u32,
        }
    }
}

/// The newest create revision below a node: counts at an older revision look only where something was created since.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Newest {
    create_revision: i64,
    mod_revision: i64,
}

impl Summary for Newest {
    fn merge(self, other: Self) -> Self {
        Newest {
            create_revision: self.create_revision.max(other.create_revision),
            mod_revision: self.mod_revision.max(other.mod_revision),
        }
    }
}

impl Record for Version {
    type Summary = Newest;
    const VARINTS: usize = 6;

    fn encode(&self, out: &mut Vec<u8>) {
        Version::encode(self, out);
    }

    fn decode(mut bytes: &[u8]) -> Self {
        Version::decode(&mut bytes)
    }

    fn summary(&self) -> Newest {
        Newest { create_revision: self.create_revision, mod_revision: self.mod_revision }
    }
}

/// A version that is no longer the newest: visible at revisions `mod_revision..end`. A tombstone keeps the create
/// revision of the generation it ends, is visible nowhere, and has `end = mod_revision + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    pub version: Version,
    pub end: i64,
}

impl Past {
    fn visible_at(&self, revision: i64) -> bool {
        !self.version.is_tombstone() && self.version.mod_revision <= revision && revision < self.end
    }

    /// Whether this tombstone ended a generation that was alive at `revision`.
    fn ended_life_at(&self, revision: i64) -> bool {
        self.version.is_tombstone()
            && self.version.create_revision <= revision
            && revision < self.version.mod_revision
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    min: i64,
    max: i64,
    max_tombstone: i64,
}

impl Default for Ends {
    fn default() -> Self {
        Ends { min: i64::MAX, max: 0, max_tombstone: 0 }
    }
}

impl Summary for Ends {
    fn merge(self, other: Self) -> Self {
        Ends {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            max_tombstone: self.max_tombstone.max(other.max_tombstone),
        }
    }
}

impl Record for Past {
    type Summary = Ends;
    const VARINTS: usize = Version::VARINTS + 1;

    fn encode(&self, out: &mut Vec<u8>) {
        self.version.encode(out);
        put_varint(out, (self.end - self.version.mod_revision) as u64);
    }

    fn decode(mut bytes: &[u8]) -> Self {
        let version = Version::decode(&mut bytes);
        Past { version, end: version.mod_revision.wrapping_add(take_varint(&mut bytes) as i64) }
    }

    fn summary(&self) -> Ends {
        let tombstone = if self.version.is_tombstone() { self.version.mod_revision } else { 0 };
        Ends { min: self.end, max: self.end, max_tombstone: tombstone }
    }
}

/// The time to live a lease was granted, in seconds. Deadlines are not state: they belong to `lease::Lessor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub ttl: i64,
}

impl Record for Granted {
    type Summary = ();
    const VARINTS: usize = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ttl as u64);
    }

    fn decode(mut bytes: &[u8]) -> Self {
        Granted { ttl: take_varint(&mut bytes) as i64 }
    }

    fn summary(&self) {}
}

/// Everything the store is at one revision.
#[derive(Clone, Debug)]
pub struct State {
    pub revision: i64,
    /// Reads below it are refused; -1 before the first compaction.
    pub compact_revision: i64,
    /// Location of the next row.
    pub next_location: Location,
    live: Tree<Version>,
    history: Tree<Past>,
    /// Lease id (8 bytes, big endian) followed by the key it is attached to.
    attached: Tree<()>,
    /// Locations (8 bytes, big endian) of tombstones that compaction has passed and whose rows must stay for now.
    buried: Tree<()>,
    leases: Tree<Granted>,
    /// Raised alarms as (member id, `AlarmType`).
    pub alarms: std::sync::Arc<std::collections::BTreeSet<(u64, i32)>>,
    /// Users and roles.
    pub auth: std::sync::Arc<crate::auth::Accounts>,
    /// Where a downgrade that was enabled goes to.
    pub downgrade: Option<Release>,
    /// Where other members would reach this one, as the first start or the last update said; `None`: nobody has said it.
    pub peer_urls: Option<std::sync::Arc<[String]>>,
}

/// A minor release of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl Release {
    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.major) << 32 | u64::from(self.minor)).to_be_bytes()
    }

    pub fn decode(bytes: [u8; 8]) -> Self {
        let both = u64::from_be_bytes(bytes);
        Release { major: (both >> 32) as u32, minor: both as u32 }
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

/// A consistent view at one revision; it does not hold up the writer.
pub type ReadView = std::sync::Arc<State>;

impl Default for State {
    /// A fresh store is at revision 1 and has never been compacted.
    fn default() -> Self {
        State {
            revision: 1,
            compact_revision: -1,
            next_location: 1,
            live: Tree::default(),
            history: Tree::default(),
            attached: Tree::default(),
            buried: Tree::default(),
            leases: Tree::default(),
            alarms: std::sync::Arc::default(),
            auth: std::sync::Arc::default(),
            downgrade: None,
            peer_urls: None,
        }
    }
}

impl State {
    pub fn get(&self, key: &[u8]) -> Option<Version> {
        self.live.get(key)
    }

    pub fn keys(&self) -> u64 {
        self.live.len()
    }

    /// The version of `key` that was visible at `revision`, which is not compacted.
    pub fn get_at(&self, key: &[u8], revision: i64) -> Option<Version> {
        match self.live.get(key) {
            Some(live) if live.mod_revision <= revision => return Some(live),
            None if revision >= self.revision => return None,
            _ => {}
        }
        self.past_of(key, |past| past.visible_at(revision))
    }

    /// The version that the change of `key` at `revision` replaced, while compaction has not passed it.
    pub fn before(&self, key: &[u8], revision: i64) -> Option<Version> {
        // What the same revision wrote and replaced was never visible.
        let replaced = |past: &Past| past.end == revision && past.version.mod_revision < revision;
        self.past_of(key, |past| replaced(past) && !past.version.is_tombstone())
    }

    fn past_of(&self, key: &[u8], wanted: impl Fn(&Past) -> bool) -> Option<Version> {
        let (start, end) = history_span(key);
        let mut cursor = self.history.iter(Span { start: &start, end: Some(&end) });
        while let Some(past) = cursor.next() {
            if wanted(&past) {
                return Some(past.version);
            }
        }
        None
    }

    /// Keys of the range that existed at `revision`, without walking the range: the count now, less what was created
    /// since, plus what was deleted since.
    pub fn count(&self, span: Span, revision: i64) -> u64 {
        let now = self.live.count(span);
        if revision >= self.revision {
            return now;
        }
        let created = self.live.count_where(
            span,
            |newest| newest.create_revision > revision,
            |version| version.create_revision > revision,
        );
        let (start, end) = (history_bound(span.start), span.end.map(history_bound));
        let deleted = self.history.count_where(
            Span { start: &start, end: end.as_deref() },
            |ends| ends.max_tombstone > revision,
            |past| past.ended_life_at(revision),
        );
        now - created + deleted
    }

    /// Up to `limit` versions visible at `revision` that `wanted` keeps, in key order.
    pub fn select(
        &self,
        span: Span,
        revision: i64,
        limit: usize,
        wanted: impl Fn(&Version) -> bool,
    ) -> Selection {
        let mut selection = Selection::default();
        if limit > 0 {
            self.walk(span, revision, |key, version| {
                if wanted(&version) {
                    selection.push(key, version);
                }
                selection.versions.len() < limit
            });
        }
        selection
    }

    /// Shows the versions visible at `revision`, in key order, for as long as `visit` wants more.
    pub fn walk(&self, span: Span, revision: i64, mut visit: impl FnMut(&[u8], Version) -> bool) {
        let mut live = self.live.iter(span);
        if revision >= self.revision {
            while let Some(version) = live.next() {
                if !visit(live.key(), version) {
                    return;
                }
            }
            return;
        }
        let (start, end) = (history_bound(span.start), span.end.map(history_bound));
        let mut past =
            self.history.scan(Span { start: &start, end: end.as_deref() }, |ends| ends.max > revision);
        let mut next_past = |key: &mut Vec<u8>| {
            loop {
                let found = past.next()?;
                if found.visible_at(revision) {
                    history_key_into(past.key(), key);
                    return Some(found.version);
                }
            }
        };
        let mut past_key = Vec::new();
        let mut old = next_past(&mut past_key);
        let mut new = live.next();
        loop {
            if let Some(version) = new
                && version.mod_revision > revision
            {
                new = live.next();
                continue;
            }
            let take_old = match (&old, &new) {
                (None, None) => return,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(_), Some(_)) => past_key.as_slice() < live.key(),
            };
            if take_old && let Some(version) = old {
                if !visit(&past_key, version) {
                    return;
                }
                old = next_past(&mut past_key);
            } else if let Some(version) = new {
                if !visit(live.key(), version) {
                    return;
                }
                new = live.next();
            }
        }
    }

    pub fn lease(&self, id: i64) -> Option<Granted> {
        self.leases.get(&id.to_be_bytes())
    }

    pub fn lease_ids(&self) -> Vec<(i64, Granted)> {
        let mut cursor = self.leases.iter(Span::ALL);
        let mut all = Vec::new();
        while let Some(granted) = cursor.next() {
            all.push((lease_of(cursor.key()), granted));
        }
        all
    }

    /// Keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let start = id.to_be_bytes();
        let end = (id as u64).checked_add(1).map(u64::to_be_bytes);
        let mut cursor =
            self.attached.iter(Span { start: &start, end: end.as_ref().map(<[u8; 8]>::as_slice) });
        let mut keys = Vec::new();
        while cursor.next().is_some() {
            keys.push(Bytes::copy_from_slice(&cursor.key()[8..]));
        }
        keys
    }

    pub fn grant(&mut self, id: i64, granted: Granted) {
        self.leases.insert(&id.to_be_bytes(), &granted);
    }

    pub fn forget_lease(&mut self, id: i64) {
        self.leases.remove(&id.to_be_bytes());
    }

    /// Makes `version` the newest of `key`; returns what it replaces.
    pub fn put(&mut self, key: &[u8], version: &Version) -> Option<Version> {
        let old = self.live.insert(key, version);
        if let Some(old) = old {
            self.supersede(key, old, version.mod_revision);
        }
        let old_lease = old.map_or(0, |old| old.lease);
        if old_lease != version.lease {
            self.detach(key, old_lease);
            if version.lease != 0 {
                self.attached.insert(&attachment(version.lease, key), &());
            }
        }
        old
    }

    /// Ends the life of `key` at `revision` with a tombstone row at `location`; returns what it deletes.
    pub fn delete(&mut self, key: &[u8], revision: i64, location: Location) -> Option<Version> {
        let old = self.live.remove(key)?;
        self.supersede(key, old, revision);
        self.detach(key, old.lease);
        self.bury(key, revision, old.create_revision, location);
        Some(old)
    }

    /// Remembers a tombstone.
    fn bury(&mut self, key: &[u8], revision: i64, create_revision: i64, location: Location) {
        let version =
            Version { mod_revision: revision, create_revision, version: 0, lease: 0, location, value_len: 0 };
        self.history.insert(&history_key(key, location), &Past { version, end: revision + 1 });
    }

    fn supersede(&mut self, key: &[u8], old: Version, end: i64) {
        self.history.insert(&history_key(key, old.location), &Past { version: old, end });
    }

    fn detach(&mut self, key: &[u8], lease: i64) {
        if lease != 0 {
            self.attached.remove(&attachment(lease, key));
        }
    }

    /// Takes up to `limit` versions out of the history that no read at or above revision `upto` can see, which is compacted.
    /// Tombstones at or above `covered` stay stored until it has passed them: without its tombstone, a key of an older image
    /// of the index would live again.
    pub fn take_garbage(&mut self, limit: usize, upto: i64, covered: Location) -> Garbage {
        let taken = self.history.extract(limit, &|ends| ends.min <= upto, &|past| past.end <= upto);
        let mut room = limit - taken.len();
        let mut rows = Vec::with_capacity(taken.len());
        for Past { version, .. } in taken {
            if version.is_tombstone() && version.location >= covered {
                self.buried.insert(&version.location.to_be_bytes(), &());
            } else {
                rows.push(version.location);
            }
        }
        let freed = self.buried_below(covered, room);
        room -= freed.len();
        for location in &freed {
            self.buried.remove(&location.to_be_bytes());
        }
        rows.extend(freed);
        Garbage { rows, more: room == 0 }
    }

    fn buried_below(&self, covered: Location, limit: usize) -> Vec<Location> {
        let end = covered.to_be_bytes();
        let mut cursor = self.buried.iter(Span { start: &[], end: Some(&end) });
        let mut found = Vec::new();
        while found.len() < limit && cursor.next().is_some() {
            found.push(location_of(cursor.key()));
        }
        found
    }

    /// Versions known, live and past.
    pub fn versions(&self) -> u64 {
        self.live.len() + self.history.len()
    }

    /// A live key that has `before` keys before it.
    pub fn nth(&self, before: u64) -> Option<(Vec<u8>, Version)> {
        self.live.nth(before)
    }

    /// What the index has of a row.
    pub fn known(&self, key: &[u8], location: Location) -> Option<Known> {
        if let Some(live) = self.live.get(key).filter(|live| live.location == location) {
            return Some(Known::Live(live));
        }
        if let Some(past) = self.history.get(&history_key(key, location)) {
            return Some(Known::Past(past));
        }
        self.buried.get(&location.to_be_bytes()).map(|()| Known::Buried)
    }

    /// Past versions that a read at or above `revision` can see.
    pub fn past_from(&self, revision: i64) -> u64 {
        self.history.count_where(Span::ALL, |ends| ends.max > revision, |past| past.end > revision)
    }
}

/// Rows that compaction lets go.
#[derive(Debug)]
pub struct Garbage {
    pub rows: Vec<Location>,
    /// There may be more of it.
    pub more: bool,
}

/// What a row is to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Live(Version),
    Past(Past),
    /// A tombstone that only waits to be dropped.
    Buried,
}

/// Versions found by a range, with their keys in one shared buffer.
#[derive(Default)]
pub struct Selection {
    keys: BytesMut,
    ends: Vec<usize>,
    pub versions: Vec<Version>,
}

impl Selection {
    fn push(&mut self, key: &[u8], version: Version) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.versions.push(version);
    }

    /// The keys, each a slice of one allocation.
    pub fn into_parts(self) -> (Vec<Bytes>, Vec<Version>) {
        let all = self.keys.freeze();
        let mut start = 0;
        let keys = self
            .ends
            .into_iter()
            .map(|end| {
                let key = all.slice(start..end);
                start = end;
                key
            })
            .collect();
        (keys, self.versions)
    }
}

fn attachment(lease: i64, key: &[u8]) -> Vec<u8> {
    [&lease.to_be_bytes(), key].concat()
}

fn lease_of(key: &[u8]) -> i64 {
    i64::from_be_bytes(key[..8].try_into().expect("a lease key starts with eight bytes"))
}

fn location_of(key: &[u8]) -> Location {
    Location::from_be_bytes(key.try_into().expect("a location has eight bytes"))
}

/// A key of `history`: the key with 0x00 written as 0x00 0xff, then 0x00 0x01, then the location. It sorts by key, then age.
fn history_key(key: &[u8], location: Location) -> Vec<u8> {
    let mut out = history_bound(key);
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&location.to_be_bytes());
    out
}

/// Below every history key of `key` and of all keys above it; above those of all keys below it.
fn history_bound(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 10);
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out
}

fn history_span(key: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut start = history_bound(key);
    let mut end = start.clone();
    start.extend_from_slice(&[0, 1]);
    end.extend_from_slice(&[0, 2]);
    (start, end)
}

fn history_key_into(encoded: &[u8], key: &mut Vec<u8>) {
    key.clear();
    let body = &encoded[..encoded.len() - 10];
    let mut escaped = false;
    for &byte in body {
        if !std::mem::take(&mut escaped) {
            key.push(byte);
            escaped = byte == 0;
        }
    }
}
