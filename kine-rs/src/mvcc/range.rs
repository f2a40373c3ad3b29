//! A Range request against one state: which keys, in which order, how many.
//!
//! Selects, filters, sorts and counts on the index alone; values are loaded last, only those that are returned (sorting by
//! value loads all). Used alike by reads, by transactions and by compares, so a range means the same everywhere.

use super::{State, Version, tree::Span};
use bytes::Bytes;
use proto::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, range_request::SortOrder, range_request::SortTarget,
};
use proto::mvccpb::KeyValue;

/// Loads the values of versions, in their order.
pub trait Values {
    type Error;
    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, Self::Error>;
}

#[derive(Debug, thiserror::Error)]
pub enum RangeError<E> {
    #[error("revision {requested} is below the compact revision {compact_revision}")]
    Compacted { requested: i64, compact_revision: i64 },
    #[error("revision {requested} is above the current revision {revision}")]
    Future { requested: i64, revision: i64 },
    #[error("reading values failed")]
    Load(E),
}

/// The keys an etcd (key, range_end) pair means: no end is one key, an end of one zero byte is open.
pub struct KeyRange<'a> {
    start: &'a [u8],
    end: End<'a>,
}

enum End<'a> {
    Single(Vec<u8>),
    Bound(&'a [u8]),
    Open,
}

impl<'a> KeyRange<'a> {
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        let end = match range_end {
            [] => End::Single([key, &[0]].concat()),
            [0] => End::Open,
            end => End::Bound(end),
        };
        KeyRange { start: key, end }
    }

    pub fn span(&self) -> Span<'_> {
        let end = match &self.end {
            End::Single(end) => Some(end.as_slice()),
            End::Bound(end) => Some(*end),
            End::Open => None,
        };
        Span { start: self.start, end }
    }
}

/// Answers `request` on `state`. The response's header carries only the state's revision.
pub fn range<V: Values>(
    state: &State,
    request: &RangeRequest,
    values: &mut V,
) -> Result<RangeResponse, RangeError<V::Error>> {
    let revision = read_revision(state, request.revision)?;
    let keys = KeyRange::new(&request.key, &request.range_end);
    let header = Some(ResponseHeader { revision: state.revision, ..Default::default() });
    if request.range_end.is_empty() && request.limit <= 1 && !has_filters(request) && !request.count_only {
        let found = state.get_at(&request.key, revision);
        let kvs = match found {
            Some(version) => vec![one(request, version, values).map_err(RangeError::Load)?],
            None => Vec::new(),
        };
        return Ok(RangeResponse { header, count: kvs.len() as i64, kvs, more: false });
    }
    let count = state.count(keys.span(), revision) as i64;
    if request.count_only {
        return Ok(RangeResponse { header, count, kvs: Vec::new(), more: false });
    }
    let (kvs, more) = select(state, request, &keys, revision, values).map_err(RangeError::Load)?;
    Ok(RangeResponse { header, kvs, more, count })
}

/// The revision a request reads at: not above the state's, not below its compact revision.
pub fn read_revision<E>(state: &State, requested: i64) -> Result<i64, RangeError<E>> {
    if requested > state.revision {
        return Err(RangeError::Future { requested, revision: state.revision });
    }
    if requested <= 0 {
        return Ok(state.revision);
    }
    if requested < state.compact_revision {
        return Err(RangeError::Compacted { requested, compact_revision: state.compact_revision });
    }
    Ok(requested)
}

fn one<V: Values>(request: &RangeRequest, version: Version, values: &mut V) -> Result<KeyValue, V::Error> {
    let value = if request.keys_only {
        Bytes::new()
    } else {
        values.load(&[version])?.pop().expect("one value for one version")
    };
    Ok(key_value(request, request.key.clone(), version, value))
}

fn select<V: Values>(
    state: &State,
    request: &RangeRequest,
    keys: &KeyRange,
    revision: i64,
    values: &mut V,
) -> Result<(Vec<KeyValue>, bool), V::Error> {
    let (mut found, more) = arrange(state, request, keys, revision, |versions| values.load(versions))?;
    if !is_by_value(request) && !request.keys_only {
        let versions: Vec<Version> = found.iter().map(|(_, version, _)| *version).collect();
        for ((_, _, value), loaded) in found.iter_mut().zip(values.load(&versions)?) {
            *value = loaded;
        }
    }
    let kvs = found
        .into_iter()
        .map(|(key, version, value)| {
            let value = if request.keys_only { Bytes::new() } else { value };
            key_value(request, key, version, value)
        })
        .collect();
    Ok((kvs, more))
}

/// Keys with their versions, and their values where those were needed.
type Found = Vec<(Bytes, Version, Bytes)>;

/// The versions a request returns, in its order, and whether there are more. Only an order by value needs the values.
fn arrange<E>(
    state: &State,
    request: &RangeRequest,
    keys: &KeyRange,
    revision: i64,
    load: impl FnOnce(&[Version]) -> Result<Vec<Bytes>, E>,
) -> Result<(Found, bool), E> {
    let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let wanted_max = limit(request);
    // With another order or a filter the limit applies after them; etcd cuts before sorting when only a target is given.
    let cut_first = order == SortOrder::None || is_in_key_order(request);
    let fetch_max = match wanted_max {
        Some(limit) if cut_first && !has_filters(request) => limit.saturating_add(1),
        _ => usize::MAX,
    };
    let selection = state.select(keys.span(), revision, fetch_max, |version| passes(request, version));
    let (keys, versions) = selection.into_parts();
    let mut found: Found = if is_by_value(request) {
        let loaded = load(&versions)?;
        keys.into_iter()
            .zip(versions)
            .zip(loaded)
            .map(|((key, version), value)| (key, version, value))
            .collect()
    } else {
        keys.into_iter().zip(versions).map(|(key, version)| (key, version, Bytes::new())).collect()
    };
    match target {
        SortTarget::Key => {}
        SortTarget::Version => found.sort_by_key(|(_, version, _)| version.version),
        SortTarget::Create => found.sort_by_key(|(_, version, _)| version.create_revision),
        SortTarget::Mod => found.sort_by_key(|(_, version, _)| version.mod_revision),
        SortTarget::Value => found.sort_by(|a, b| a.2.cmp(&b.2)),
    }
    if order == SortOrder::Descend {
        reverse_stable(&mut found, target);
    }
    let more = wanted_max.is_some_and(|limit| found.len() > limit);
    found.truncate(wanted_max.unwrap_or(usize::MAX));
    Ok((found, more))
}

/// Memory it takes to plan the answer to `request`: none in key order, else every version of the range is looked at at once.
pub fn planning_bytes(state: &State, request: &RangeRequest) -> usize {
    if is_in_key_order(request) || request.count_only {
        return 0;
    }
    let keys = KeyRange::new(&request.key, &request.range_end);
    let Ok(revision) = read_revision::<std::convert::Infallible>(state, request.revision) else { return 0 };
    let mut bytes = 0;
    state.walk(keys.span(), revision, |key, version| {
        bytes += key.len() + size_of::<(Bytes, Version, Bytes)>();
        bytes += if is_by_value(request) { version.value_len as usize } else { 0 };
        true
    });
    bytes
}

/// What a request returns, before any value is loaded: the values can follow in pieces, in this order.
pub struct Plan {
    /// The state's.
    pub revision: i64,
    pub count: i64,
    pub more: bool,
    pub versions: Versions,
}

/// The versions of a plan.
pub enum Versions {
    /// In key order: found again, piece by piece, when they are written.
    Walked(Walk),
    Listed(RangeRequest, std::vec::IntoIter<(Bytes, Version)>),
}

/// A walk over the versions of a range that a request returns, which can be left and gone on with.
#[derive(Clone)]
pub struct Walk {
    /// What is left of the request: its key moves on.
    request: RangeRequest,
    revision: i64,
    left: usize,
}

/// Plans the answer to `request` on `state`. Values are loaded only for an order by value, and dropped again.
pub fn plan<V: Values>(
    state: &State,
    request: &RangeRequest,
    values: &mut V,
) -> Result<Plan, RangeError<V::Error>> {
    let revision = read_revision(state, request.revision)?;
    let keys = KeyRange::new(&request.key, &request.range_end);
    let count = state.count(keys.span(), revision) as i64;
    let plan = |more, versions| Plan { revision: state.revision, count, more, versions };
    if request.count_only {
        return Ok(plan(false, Versions::Listed(request.clone(), Vec::new().into_iter())));
    }
    if is_in_key_order(request) {
        let left = limit(request).unwrap_or(usize::MAX);
        let mut passing = 0;
        if has_filters(request) {
            state.walk(keys.span(), revision, |_, version| {
                passing += usize::from(passes(request, &version));
                passing <= left
            });
        } else {
            passing = count as usize;
        }
        return Ok(plan(passing > left, Versions::Walked(Walk { request: request.clone(), revision, left })));
    }
    let arranged = arrange(state, request, &keys, revision, |versions| values.load(versions));
    let (found, more) = arranged.map_err(RangeError::Load)?;
    let listed: Vec<_> = found.into_iter().map(|(key, version, _)| (key, version)).collect();
    Ok(plan(more, Versions::Listed(request.clone(), listed.into_iter())))
}

impl Versions {
    /// Shows each version once, in order, without using it up.
    pub fn each(&self, state: &State, mut visit: impl FnMut(&[u8], &Version)) {
        match self {
            Versions::Walked(walk) => walk.each(state, |key, version| {
                visit(key, &version);
                true
            }),
            Versions::Listed(_, listed) => {
                listed.as_slice().iter().for_each(|(key, version)| visit(key, version))
            }
        }
    }

    /// Uses the next versions up, until `took` did not take one: that one comes first the next time.
    pub fn take(&mut self, state: &State, mut took: impl FnMut(&[u8], &Version) -> bool) {
        match self {
            Versions::Walked(walk) => walk.take(state, took),
            Versions::Listed(_, listed) => {
                let taken = listed.as_slice().iter().take_while(|(key, version)| took(key, version)).count();
                listed.by_ref().take(taken).for_each(drop);
            }
        }
    }

    pub fn shown(&self) -> Shown {
        shown(self.request())
    }

    /// Memory of what is listed.
    pub fn held_bytes(&self) -> usize {
        match self {
            Versions::Walked(_) => 0,
            Versions::Listed(_, listed) => {
                let listed = listed.as_slice();
                size_of_val(listed) + listed.iter().map(|(key, _)| key.len()).sum::<usize>()
            }
        }
    }

    fn request(&self) -> &RangeRequest {
        match self {
            Versions::Walked(walk) => &walk.request,
            Versions::Listed(request, _) => request,
        }
    }
}

impl Walk {
    fn each(&self, state: &State, mut visit: impl FnMut(&[u8], Version) -> bool) {
        let keys = KeyRange::new(&self.request.key, &self.request.range_end);
        let mut left = self.left;
        if left > 0 {
            state.walk(keys.span(), self.revision, |key, version| {
                if !passes(&self.request, &version) {
                    return true;
                }
                left -= 1;
                visit(key, version) && left > 0
            });
        }
    }

    fn take(&mut self, state: &State, mut took: impl FnMut(&[u8], &Version) -> bool) {
        let (mut taken, mut next) = (0, None);
        self.each(state, |key, version| {
            let took = took(key, &version);
            if took {
                taken += 1;
            } else {
                next = Some(Bytes::copy_from_slice(key));
            }
            took
        });
        match next {
            Some(key) => {
                self.left -= taken;
                self.request.key = key;
            }
            None => self.left = 0,
        }
    }
}

/// Descending, with equal entries left in key order.
fn reverse_stable(found: &mut [(Bytes, Version, Bytes)], target: SortTarget) {
    match target {
        SortTarget::Key => found.reverse(),
        SortTarget::Version => found.sort_by_key(|(_, version, _)| std::cmp::Reverse(version.version)),
        SortTarget::Create => found.sort_by_key(|(_, version, _)| std::cmp::Reverse(version.create_revision)),
        SortTarget::Mod => found.sort_by_key(|(_, version, _)| std::cmp::Reverse(version.mod_revision)),
        SortTarget::Value => found.sort_by(|a, b| b.2.cmp(&a.2)),
    }
}

pub fn is_in_key_order(request: &RangeRequest) -> bool {
    request.sort_order != SortOrder::Descend as i32 && request.sort_target == SortTarget::Key as i32
}

fn is_by_value(request: &RangeRequest) -> bool {
    request.sort_target == SortTarget::Value as i32
}

fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|&limit| limit > 0)
}

fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, version: &Version) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(version.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(version.create_revision, request.min_create_revision, request.max_create_revision)
}

/// What a reply tells of a version besides its key and its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub value: bool,
    pub lease: bool,
}

/// etcd's fast path for `keys_only` never reads the value and so reports no lease.
fn shown(request: &RangeRequest) -> Shown {
    Shown { value: !request.keys_only, lease: !request.keys_only || is_by_value(request) }
}

/// A reply's record.
fn key_value(request: &RangeRequest, key: Bytes, version: Version, value: Bytes) -> KeyValue {
    let lease = if shown(request).lease { version.lease } else { 0 };
    KeyValue { lease, ..version.key_value(key, value) }
}

impl Version {
    pub fn key_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}
