//! Evaluation of KV operations at their place in the order.

use crate::mvcc::range::{KeyRange, Plan, RangeError, Values, is_in_key_order, plan, range};
use crate::mvcc::tree::Span;
use crate::mvcc::{State, Version};
use crate::rows::{Change, Recent, Row};
use bytes::Bytes;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, compare::CompareResult, compare::CompareTarget,
    compare::TargetUnion, request_op::Request, response_op::Response,
};
use proto::mvccpb::KeyValue;
use std::cmp::Ordering;

/// Keys and values that one command may return: its reply is made as a whole, at its place in the order. The same on every
/// member, so not a setting.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EvaluateError<E> {
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    #[error("ignore_value or ignore_lease without an existing key")]
    KeyNotFound,
    #[error("the reply would be too large")]
    ReplyTooLarge,
    #[error(transparent)]
    Range(#[from] RangeError<E>),
    #[error("reading values failed")]
    Load(E),
}

/// What a transaction that only reads answers, before any value is loaded.
pub struct TxnPlan {
    pub succeeded: bool,
    pub responses: Vec<Plan>,
}

/// One mutating command being evaluated. All it changes shares the revision after the state's.
pub struct Transaction<'a, V> {
    state: &'a mut State,
    values: &'a mut V,
    /// The revision of everything this transaction writes.
    revision: i64,
    /// Rows written so far, in order; their values serve later reads of the same transaction.
    rows: Vec<Row>,
    changes: Vec<Change>,
    /// What the reply may still hold.
    reply_bytes_left: usize,
}

impl<'a, V: Values> Transaction<'a, V> {
    pub fn new(state: &'a mut State, values: &'a mut V) -> Self {
        let revision = state.revision + 1;
        let (rows, changes) = (Vec::new(), Vec::new());
        Transaction { state, values, revision, rows, changes, reply_bytes_left: usize::MAX }
    }

    /// The same with a bound on its reply: what would exceed it fails before anything is changed.
    pub fn within(self, reply_bytes_max: usize) -> Self {
        Transaction { reply_bytes_left: reply_bytes_max, ..self }
    }

    /// Ends the transaction: the rows it wrote and the changes it made, in order.
    pub fn finish(self) -> (Vec<Row>, Vec<Change>) {
        (self.rows, self.changes)
    }

    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EvaluateError<V::Error>> {
        self.check_lease(request)?;
        self.check_previous(request)?;
        self.run_put(request)
    }

    pub fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EvaluateError<V::Error>> {
        self.check_deleted(request)?;
        self.run_delete(request)
    }

    fn run_delete(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EvaluateError<V::Error>> {
        let keys = KeyRange::new(&request.key, &request.range_end);
        let found = self.state.select(keys.span(), i64::MAX, usize::MAX, |_| true);
        let (keys, versions) = found.into_parts();
        let deleted = keys.len() as i64;
        let prev_kvs = if request.prev_kv {
            let values = self.load(&versions)?;
            keys.iter()
                .zip(&versions)
                .zip(values)
                .map(|((key, version), value)| version.key_value(key.clone(), value))
                .collect()
        } else {
            Vec::new()
        };
        for key in keys {
            self.delete(key);
        }
        Ok(DeleteRangeResponse { header: self.header(), deleted, prev_kvs })
    }

    /// Deletes keys that exist, in the order given.
    pub fn delete_keys(&mut self, keys: Vec<Bytes>) {
        for key in keys {
            self.delete(key);
        }
    }

    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, EvaluateError<V::Error>> {
        let path = self.take_path(request)?;
        self.check_path(request, &mut path.iter())?;
        let mut response = self.run_path(request, &mut path.iter())?;
        response.header = self.header();
        Ok(response)
    }

    /// Plans a transaction that only reads (see `is_read_only`).
    pub fn plan(&mut self, request: &TxnRequest) -> Result<TxnPlan, EvaluateError<V::Error>> {
        let path = self.take_path(request)?;
        self.check_path(request, &mut path.iter())?;
        let succeeded = path[0];
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let Some(Request::RequestRange(range)) = &op.request else { unreachable!("it only reads") };
            responses.push(plan(self.state, range, self.values)?);
        }
        Ok(TxnPlan { succeeded, responses })
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.state.revision, ..Default::default() })
    }

    /// Which branch each transaction takes, outer before inner, all decided on the state before the first write.
    fn take_path(&mut self, request: &TxnRequest) -> Result<Vec<bool>, EvaluateError<V::Error>> {
        let mut success = true;
        for compare in &request.compare {
            if !self.compare(compare)? {
                success = false;
                break;
            }
        }
        let mut path = vec![success];
        for op in branch(request, success) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                path.extend(self.take_path(nested)?);
            }
        }
        Ok(path)
    }

    fn compare(&mut self, compare: &Compare) -> Result<bool, EvaluateError<V::Error>> {
        let target = CompareTarget::try_from(compare.target).unwrap_or(CompareTarget::Version);
        let absent = target != CompareTarget::Value && holds(compare, target, &KeyValue::default());
        if compare.range_end.is_empty() {
            let Some(version) = self.state.get(&compare.key) else { return Ok(absent) };
            return self.compare_version(compare, target, version);
        }
        let keys = KeyRange::new(&compare.key, &compare.range_end);
        let (_, versions) = self.state.select(keys.span(), i64::MAX, usize::MAX, |_| true).into_parts();
        if versions.is_empty() {
            return Ok(absent);
        }
        for version in versions {
            if !self.compare_version(compare, target, version)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare_version(
        &mut self,
        compare: &Compare,
        target: CompareTarget,
        version: Version,
    ) -> Result<bool, EvaluateError<V::Error>> {
        let value = if target == CompareTarget::Value { self.load_one(version)? } else { Bytes::new() };
        Ok(holds(compare, target, &version.key_value(Bytes::new(), value)))
    }

    /// Checks every operation on the path before any runs.
    fn check_path(
        &mut self,
        request: &TxnRequest,
        path: &mut std::slice::Iter<bool>,
    ) -> Result<(), EvaluateError<V::Error>> {
        let success = *path.next().expect("one decision per transaction on the path");
        for op in branch(request, success) {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    self.check_revision(range.revision)?;
                    self.check_returned(range)?;
                }
                Some(Request::RequestPut(put)) => {
                    self.check_lease(put)?;
                    self.check_previous(put)?;
                }
                Some(Request::RequestTxn(nested)) => self.check_path(nested, path)?,
                Some(Request::RequestDeleteRange(delete)) => self.check_deleted(delete)?,
                None => {}
            }
        }
        Ok(())
    }

    fn check_revision(&self, requested: i64) -> Result<(), RangeError<V::Error>> {
        let (revision, compact_revision) = (self.state.revision, self.state.compact_revision);
        match requested {
            0 => Ok(()),
            _ if requested > revision => Err(RangeError::Future { requested, revision }),
            _ if requested < compact_revision => Err(RangeError::Compacted { requested, compact_revision }),
            _ => Ok(()),
        }
    }

    /// What a range returns must fit into the reply.
    fn check_returned(&mut self, request: &RangeRequest) -> Result<(), EvaluateError<V::Error>> {
        if request.count_only || request.keys_only {
            return Ok(());
        }
        let keys = KeyRange::new(&request.key, &request.range_end);
        let revision = if request.revision > 0 { request.revision } else { i64::MAX };
        // With another order the limit does not say which they are.
        let limit =
            usize::try_from(request.limit).ok().filter(|&limit| limit > 0 && is_in_key_order(request));
        self.check_reply(keys.span(), revision, limit.unwrap_or(usize::MAX))
    }

    fn check_deleted(&mut self, request: &DeleteRangeRequest) -> Result<(), EvaluateError<V::Error>> {
        if !request.prev_kv {
            return Ok(());
        }
        let keys = KeyRange::new(&request.key, &request.range_end);
        self.check_reply(keys.span(), i64::MAX, usize::MAX)
    }

    fn check_reply(
        &mut self,
        span: Span,
        revision: i64,
        mut keys_left: usize,
    ) -> Result<(), EvaluateError<V::Error>> {
        let mut left = Some(self.reply_bytes_left).filter(|&left| left < usize::MAX);
        if left.is_none() {
            return Ok(());
        }
        self.state.walk(span, revision, |key, version| {
            left = left.and_then(|left| left.checked_sub(key.len() + version.value_len as usize));
            keys_left -= 1;
            left.is_some() && keys_left > 0
        });
        self.reply_bytes_left = left.ok_or(EvaluateError::ReplyTooLarge)?;
        Ok(())
    }

    fn check_lease(&self, put: &PutRequest) -> Result<(), EvaluateError<V::Error>> {
        match put.lease {
            0 => Ok(()),
            id if self.state.lease(id).is_some() => Ok(()),
            id => Err(EvaluateError::LeaseNotFound(id)),
        }
    }

    fn check_previous(&self, put: &PutRequest) -> Result<(), EvaluateError<V::Error>> {
        if (put.ignore_value || put.ignore_lease) && self.state.get(&put.key).is_none() {
            return Err(EvaluateError::KeyNotFound);
        }
        Ok(())
    }

    fn run_path(
        &mut self,
        request: &TxnRequest,
        path: &mut std::slice::Iter<bool>,
    ) -> Result<TxnResponse, EvaluateError<V::Error>> {
        let succeeded = *path.next().expect("one decision per transaction on the path");
        let operations = branch(request, succeeded);
        let mut responses = Vec::with_capacity(operations.len());
        for op in operations {
            let response = match &op.request {
                Some(Request::RequestRange(request)) => {
                    let mut values = Recent { rows: &self.rows, stored: self.values };
                    let mut response = range(self.state, request, &mut values)?;
                    response.header = self.header();
                    Some(Response::ResponseRange(response))
                }
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.run_put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.run_delete(delete)?))
                }
                Some(Request::RequestTxn(nested)) => {
                    let mut response = self.run_path(nested, path)?;
                    // As etcd: a nested response has a header, and it is empty.
                    response.header = Some(ResponseHeader::default());
                    Some(Response::ResponseTxn(response))
                }
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: None, succeeded, responses })
    }

    fn run_put(&mut self, put: &PutRequest) -> Result<PutResponse, EvaluateError<V::Error>> {
        let revision = self.revision;
        let old = self.state.get(&put.key);
        let old_value = match old {
            Some(old) if put.prev_kv || put.ignore_value => Some(self.load_one(old)?),
            _ => None,
        };
        let value = if put.ignore_value { old_value.clone().unwrap_or_default() } else { put.value.clone() };
        let lease = if put.ignore_lease { old.map_or(0, |old| old.lease) } else { put.lease };
        let location = self.next_location();
        let version = Version {
            mod_revision: revision,
            create_revision: old.map_or(revision, |old| old.create_revision),
            version: old.map_or(0, |old| old.version) + 1,
            lease,
            location,
            value_len: value.len() as u32,
        };
        self.state.put(&put.key, &version);
        self.record(put.key.clone(), version, value, old);
        let prev_kv = match (put.prev_kv, old, old_value) {
            (true, Some(old), Some(value)) => Some(old.key_value(put.key.clone(), value)),
            _ => None,
        };
        Ok(PutResponse { header: self.header(), prev_kv })
    }

    fn delete(&mut self, key: Bytes) {
        let revision = self.revision;
        let location = self.next_location();
        let old = self.state.delete(&key, revision, location);
        let tombstone = Version {
            mod_revision: revision,
            create_revision: 0,
            version: 0,
            lease: 0,
            location,
            value_len: 0,
        };
        self.record(key, tombstone, Bytes::new(), old);
    }

    fn next_location(&mut self) -> u64 {
        let location = self.state.next_location;
        self.state.next_location += 1;
        location
    }

    fn record(&mut self, key: Bytes, version: Version, value: Bytes, old: Option<Version>) {
        let sub = self.changes.len() as i64;
        // Watchers see the value before the revision, not one that this transaction wrote and replaced itself.
        let old = match old {
            Some(old) if old.mod_revision == self.revision => {
                self.changes.iter().find(|change| change.key == key).and_then(|change| change.old)
            }
            old => old,
        };
        // From the first write on, "latest" inside this transaction means its own revision.
        self.state.revision = self.revision;
        self.rows.push(Row { sub, key: key.clone(), version, value: value.clone() });
        self.changes.push(Change { key, version, value, old });
    }

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, EvaluateError<V::Error>> {
        Recent { rows: &self.rows, stored: self.values }.load(versions).map_err(EvaluateError::Load)
    }

    fn load_one(&mut self, version: Version) -> Result<Bytes, EvaluateError<V::Error>> {
        Ok(self.load(&[version])?.pop().expect("one value for one version"))
    }
}

fn branch(request: &TxnRequest, success: bool) -> &[RequestOp] {
    if success { &request.success } else { &request.failure }
}

fn holds(compare: &Compare, target: CompareTarget, kv: &KeyValue) -> bool {
    // A target that does not match the union counts as zero or empty.
    let ordering = match (target, &compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(wanted))) => kv.version.cmp(wanted),
        (CompareTarget::Version, _) => kv.version.cmp(&0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted))) => kv.create_revision.cmp(wanted),
        (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted))) => kv.mod_revision.cmp(wanted),
        (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (CompareTarget::Value, Some(TargetUnion::Value(wanted))) => kv.value.cmp(wanted),
        (CompareTarget::Value, _) => kv.value.as_ref().cmp(&[]),
        (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => kv.lease.cmp(wanted),
        (CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(CompareResult::Less) => ordering == Ordering::Less,
        // etcd: an unknown result is true.
        Err(_) => true,
    }
}
