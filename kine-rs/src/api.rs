//! The gRPC edge: decode, check limits, call the store, encode. No state.
//!
//! One file per service; etcd's error texts and codes are all in `error`. Nothing here knows a backend.

pub mod auth;
pub mod caller;
pub mod cluster;
pub mod contest;
pub mod election;
pub mod error;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
mod read;
pub mod reply;
pub mod slow;
pub mod watch;

use crate::config::Feature;
use crate::store::Store;

/// etcd's defaults.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;
pub const MAX_TXN_OPS: usize = 128;
/// What gRPC may add to a request of the largest size.
pub const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

#[derive(Clone, Debug)]
pub struct Limits {
    pub request_bytes_max: usize,
    pub txn_operations_max: usize,
    /// Size of the database at which writes that grow it are refused and the NOSPACE alarm is raised; 0: no quota.
    pub quota_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { request_bytes_max: MAX_REQUEST_BYTES, txn_operations_max: MAX_TXN_OPS, quota_bytes: 0 }
    }
}

impl Limits {
    /// The largest message gRPC takes in.
    pub fn message_bytes_max(&self) -> usize {
        self.request_bytes_max + GRPC_OVERHEAD_BYTES
    }
}

/// What this server says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// The etcd release whose behaviour is offered.
    pub version: String,
    pub member_name: String,
    /// Empty: the address the client used.
    pub client_urls: Vec<String>,
    /// Features by name, and whether they are on.
    pub features: Vec<Feature>,
}

/// What every service works with.
#[derive(Clone)]
pub struct Api {
    pub store: Store,
    pub limits: Limits,
    pub about: std::sync::Arc<About>,
    pub auth: std::sync::Arc<caller::Authenticator>,
    pub slow: slow::Slow,
}

/// The URL a client used, from its `:authority`; put into the request by the server.
#[derive(Clone, Debug)]
pub struct Authority(pub String);
