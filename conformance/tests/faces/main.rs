//! The faces of the datastore as programs: under the name `etcd` beside a real etcd, as `kine` beside a real kine.
//!
//! Each test asks both the same and compares what they say; where they differ on purpose, the difference is named in the
//! test with its reason.

mod flags;
mod http;
mod kine;
mod logs;
mod metrics;
mod process;
mod sockets;
mod websocket;
