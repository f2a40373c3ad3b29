//! Symbols to numbers, in every place of a request that can hold one.

use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::{RangeRequest, TxnRequest};

use super::Session;
use crate::symbol::{Symbol, symbol};

impl Session {
    /// `number` as this session would send it; `known` is looked up for `key`.
    pub(super) fn number(&self, number: i64, key: &[u8]) -> i64 {
        match symbol(number) {
            None => number,
            Some(Symbol::Head(offset)) => self.head + offset,
            Some(Symbol::Known) => self.known.get(key).copied().unwrap_or(0),
            // A lease that was never granted has no id; 1 is as good as any that does not exist.
            Some(Symbol::Lease(n)) => {
                n.checked_sub(1).and_then(|n| self.names.leases.get(n)).copied().unwrap_or(1)
            }
        }
    }

    pub(super) fn resolved_range(&self, request: &RangeRequest) -> RangeRequest {
        let mut request = request.clone();
        let number = |value: i64| self.number(value, &request.key);
        let revision = number(request.revision);
        let (min_mod, max_mod) = (number(request.min_mod_revision), number(request.max_mod_revision));
        let (min_create, max_create) =
            (number(request.min_create_revision), number(request.max_create_revision));
        request.revision = revision;
        (request.min_mod_revision, request.max_mod_revision) = (min_mod, max_mod);
        (request.min_create_revision, request.max_create_revision) = (min_create, max_create);
        request
    }

    pub(super) fn resolve_txn(&self, request: &mut TxnRequest) {
        for compare in &mut request.compare {
            let key = compare.key.clone();
            match &mut compare.target_union {
                Some(
                    TargetUnion::Version(value)
                    | TargetUnion::CreateRevision(value)
                    | TargetUnion::ModRevision(value)
                    | TargetUnion::Lease(value),
                ) => *value = self.number(*value, &key),
                Some(TargetUnion::Value(_)) | None => {}
            }
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            match &mut operation.request {
                Some(Operation::RequestRange(range)) => *range = self.resolved_range(range),
                Some(Operation::RequestPut(put)) => put.lease = self.number(put.lease, b""),
                Some(Operation::RequestTxn(txn)) => self.resolve_txn(txn),
                Some(Operation::RequestDeleteRange(_)) | None => {}
            }
        }
    }
}
