//! What is on disk, under the real programs: snapshots to and from etcd, databases of the Go kine, and our file.
//!
//! Needs gcc, and `etcd`, `etcdctl`, `etcdutl` and the Go `kine` in `K0S_TEST_BIN_DIR`.

mod go_kine;
mod index;
mod recorded_kine;
mod servers;
mod snapshot;
mod sqlite_file;
