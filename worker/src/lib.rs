//! What it takes to run things on a node, whatever role the node has.
//!
//! [`supervise`] starts, watches, restarts and stops the processes of a k0s node. This crate knows no datastore and
//! no cluster configuration: `controller` decides what runs, this crate keeps it running.

pub mod supervise;
