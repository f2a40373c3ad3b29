//! `k0s` itself: the command line, the cluster's configuration and PKI, the plan of what runs on a controller, and running it.
//!
//! What decides is pure (`plan`, `pki::certificate`, `pki::names`, `paths`); what does (`run`, `pki`, `cli`) decides little.
//! Supervision of processes is crate `worker`, the datastore is crate `kine-rs`.

pub mod api_probe;
pub mod cli;
pub mod config;
pub mod datastore;
pub mod durable_file;
pub mod executables;
pub mod kubeconfig;
pub mod logs;
pub mod paths;
pub mod pki;
pub mod plan;
pub mod ports;
pub mod release;
pub mod run;
pub mod runtime_config;
pub mod status;
pub mod vars;
