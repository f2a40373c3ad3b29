//! What a request needs its caller to be allowed.
//!
//! A transaction needs the rights of every operation of both branches and of its compares, nested ones too, whichever runs.
//! A lease belongs to whoever may write all keys attached to it.

use super::{Access, Caller, Refusal};
use crate::mvcc::State;
use bytes::Bytes;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

const ONE_KEY: Bytes = Bytes::new();

pub fn range(state: &State, caller: &Caller, request: &RangeRequest) -> Result<(), Refusal> {
    state.auth.check_keys(caller, Access::Read, &request.key, &request.range_end)
}

pub fn put(state: &State, caller: &Caller, request: &PutRequest) -> Result<(), Refusal> {
    state.auth.check_keys(caller, Access::Write, &request.key, &ONE_KEY)?;
    if request.lease != 0 {
        // Otherwise they could attach a key to a lease that they can't revoke.
        lease(state, caller, Access::Write, request.lease)?;
    }
    if request.prev_kv {
        state.auth.check_keys(caller, Access::Read, &request.key, &ONE_KEY)?;
    }
    Ok(())
}

pub fn delete_range(state: &State, caller: &Caller, request: &DeleteRangeRequest) -> Result<(), Refusal> {
    state.auth.check_keys(caller, Access::Write, &request.key, &request.range_end)?;
    if request.prev_kv {
        state.auth.check_keys(caller, Access::Read, &request.key, &request.range_end)?;
    }
    Ok(())
}

pub fn txn(state: &State, caller: &Caller, request: &TxnRequest) -> Result<(), Refusal> {
    if !state.auth.enabled {
        return Ok(());
    }
    for compare in &request.compare {
        state.auth.check_keys(caller, Access::Read, &compare.key, &compare.range_end)?;
    }
    for RequestOp { request } in request.success.iter().chain(&request.failure) {
        match request {
            Some(Request::RequestRange(request)) => range(state, caller, request)?,
            Some(Request::RequestPut(request)) => put(state, caller, request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(state, caller, request)?,
            Some(Request::RequestTxn(request)) => txn(state, caller, request)?,
            None => {}
        }
    }
    Ok(())
}

/// All keys attached to a lease. One without keys, or that does not exist, is anybody's.
pub fn lease(state: &State, caller: &Caller, access: Access, id: i64) -> Result<(), Refusal> {
    if state.auth.check_root(caller).is_ok() {
        return Ok(());
    }
    state.lease_keys(id).iter().try_for_each(|key| state.auth.check_keys(caller, access, key, &ONE_KEY))
}
