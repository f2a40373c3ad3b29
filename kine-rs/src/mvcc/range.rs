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
    let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let natural = order == SortOrder::None || (order == SortOrder::Ascend && target == SortTarget::Key);
    let wanted_max = usize::try_from(request.limit).ok().filter(|&limit| limit > 0);
    // With another order or a filter the limit applies after them; etcd cuts before sorting when only a target is given.
    let fetch_max = match wanted_max {
        Some(limit) if natural && !has_filters(request) => limit.saturating_add(1),
        _ => usize::MAX,
    };
    let selection = state.select(keys.span(), revision, fetch_max, |version| passes(request, version));
    let (keys, versions) = selection.into_parts();
    let by_value = target == SortTarget::Value;
    let mut found: Vec<(Bytes, Version, Bytes)> = if by_value {
        let loaded = values.load(&versions)?;
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
    if !by_value && !request.keys_only {
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

/// A reply's record. etcd's fast path for `keys_only` never reads the value and so reports no lease.
fn key_value(request: &RangeRequest, key: Bytes, version: Version, value: Bytes) -> KeyValue {
    let fast = request.keys_only && request.sort_target != SortTarget::Value as i32;
    KeyValue { lease: if fast { 0 } else { version.lease }, ..version.key_value(key, value) }
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
