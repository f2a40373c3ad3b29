//! What is on disk, under the real programs: snapshots to and from etcd.
//!
//! Needs `etcd`, `etcdctl` and `etcdutl` in `K0S_TEST_BIN_DIR`.

mod servers;
mod snapshot;
