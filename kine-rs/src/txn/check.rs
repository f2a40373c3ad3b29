//! What can be refused by looking at a request alone, in etcd's order of checks.

use bytes::Bytes;
use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request::SortOrder,
    range_request::SortTarget, request_op::Request,
};
use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("key is empty")]
    EmptyKey,
    #[error("ignore_value with a value")]
    ValueProvided,
    #[error("ignore_lease with a lease")]
    LeaseProvided,
    #[error("unknown sort order or target")]
    InvalidSortOption,
    #[error("an operation of the transaction has no request")]
    EmptyOperation,
    #[error("too many operations in one transaction")]
    TooManyOperations,
    #[error("a transaction changes one key twice")]
    DuplicateKey,
}

pub fn check_range(request: &RangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(RequestError::InvalidSortOption);
    }
    Ok(())
}

pub fn check_put(request: &PutRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(RequestError::LeaseProvided);
    }
    Ok(())
}

pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

pub fn check_txn(request: &TxnRequest, operations_max: usize) -> Result<(), RequestError> {
    check_shape(request, operations_max)?;
    // After the shape, so that the comparison of keys works on a bounded number of operations.
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

fn check_shape(request: &TxnRequest, operations_max: usize) -> Result<(), RequestError> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    if operations > operations_max {
        return Err(RequestError::TooManyOperations);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(RequestError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_shape(txn, operations_max - operations)?,
            None => return Err(RequestError::EmptyOperation),
        }
    }
    Ok(())
}

/// What a list of operations may change: keys put, and intervals deleted.
#[derive(Default)]
struct Changes<'a> {
    puts: HashSet<&'a Bytes>,
    deletes: Vec<&'a DeleteRangeRequest>,
}

impl<'a> Changes<'a> {
    fn put(&mut self, key: &'a Bytes) -> Result<(), RequestError> {
        if self.deletes.iter().any(|delete| covers(delete, key)) || !self.puts.insert(key) {
            return Err(RequestError::DuplicateKey);
        }
        Ok(())
    }
}

/// Plain interval comparison as etcd's: an open end (one zero byte) covers nothing here.
fn covers(delete: &DeleteRangeRequest, key: &Bytes) -> bool {
    if delete.range_end.is_empty() {
        delete.key == key
    } else {
        delete.key <= *key && *key < delete.range_end
    }
}

/// Collects the changes of one level and those nested in it. The order of the checks is etcd's, so that the same
/// requests pass: puts of a nested transaction are held against the deletes of this level and of earlier siblings only.
fn changes(operations: &[RequestOp]) -> Result<Changes<'_>, RequestError> {
    let mut all = Changes::default();
    for op in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push(delete);
        }
    }
    for op in operations {
        let Some(Request::RequestTxn(txn)) = &op.request else { continue };
        let (success, failure) = (changes(&txn.success)?, changes(&txn.failure)?);
        for key in &success.puts {
            all.put(key)?;
        }
        // Both branches may put the same key: only one of them runs.
        for key in failure.puts.difference(&success.puts) {
            all.put(key)?;
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in operations {
        if let Some(Request::RequestPut(put)) = &op.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

/// Whether neither branch can change anything. A nested transaction counts as a write even when it only reads.
pub fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether every operation is a serializable range; vacuously true without operations.
pub fn is_serializable(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|range| range.serializable))
}

fn ranges(request: &TxnRequest) -> impl Iterator<Item = Option<&RangeRequest>> {
    request.success.iter().chain(&request.failure).map(|op| match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}
