//! What is on disk, under the real programs: snapshots to and from etcd, and databases of the Go kine.
//!
//! Needs `etcd`, `etcdctl`, `etcdutl` and the Go `kine` in `K0S_TEST_BIN_DIR`.

mod go_kine;
mod servers;
mod snapshot;
