//! Load generator for any etcd v3 endpoint, and the comparison that `cargo xtask bench` runs.
//!
//! A server is reached by its endpoint and, for what the kernel knows of it, by its pid; nothing of ours is linked, so that
//! ours and its peers are measured the same way. From the bottom up: [`endpoint`] connects, [`request`] says what
//! kube-apiserver says, [`load`] repeats it and times it, [`process`] reads what the server spent, [`server`] starts one in
//! a fresh directory, [`scenario`] is one experiment on one server, [`controller`] the one on all of k0s, [`suite`] interleaves them and [`report`] judges the result by
//! [`goals`].

pub mod controller;
pub mod endpoint;
pub mod fanout;
pub mod goals;
pub mod load;
pub mod process;
pub mod report;
pub mod request;
pub mod scenario;
pub mod server;
pub mod suite;
