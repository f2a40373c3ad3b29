//! An etcd v3 service in a library: one deterministic state machine, durable through a backend, served over gRPC.
//!
//! The way of a write: `api` checks the request -> `store` queues a command -> the backend's writer applies it (`apply`,
//! `txn`, `mvcc`) and commits a whole batch -> the new state is published, `watch` fans out, replies go. The way of a read:
//! `api` takes the published state and answers from it. Calls go down this list, changesets come out, nothing calls up.
//!
//! Front doors: `embed::Datastore` (in another process's life), `server::App` (in an async program), the `kine` binary.

pub mod api;
pub mod apply;
pub mod auth;
pub mod auto_compaction;
pub mod backend;
pub mod bbolt;
pub mod budget;
pub mod config;
pub mod embed;
pub mod flags;
pub mod lease;
pub mod logs;
pub mod metrics;
pub mod mvcc;
pub mod rows;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod txn;
pub mod watch;

mod cache;
mod describe;
