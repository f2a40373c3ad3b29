//! Meaning of a transaction: what a request must satisfy before it is ordered, and what it does at its place in the order.
//!
//! `check` needs only the request. `Transaction` works on the writer's own `State`: every compare, nested ones too, sees the
//! state before the transaction; then all operations of the taken path are checked; then they run, sharing one revision.
//! A check that fails leaves the state untouched. No clock, no randomness, no I/O but loading values.

mod check;
mod evaluate;

pub use check::{
    RequestError, check_delete, check_put, check_range, check_txn, is_read_only, is_serializable,
};
pub use evaluate::{EvaluateError, REPLY_BYTES_MAX, Transaction, TxnPlan};
