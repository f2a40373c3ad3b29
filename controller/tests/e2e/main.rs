//! End to end: the real k0s with the real Kubernetes executables.
//!
//! `K0S_TEST_BIN_DIR` is the directory with kube-apiserver, kube-controller-manager, kube-scheduler and kubectl; `make test`
//! sets it. A start costs seconds of CPU, so what can share a cluster does: one test is the life of one cluster.

mod cluster;
mod interrupted;
mod life;
mod ordinary_user;
mod refusals;
mod system_users;
mod takeover;
