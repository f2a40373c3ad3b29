//! A cluster of somebody who is not root: everything below the data directory, under one user, stopped by `k0s stop`.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;

use crate::cluster::{Cluster, k0s};

const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_runs_a_cluster() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test shows it.
        return;
    }
    let mut cluster = Cluster::through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    chown(cluster.dir(), Some(NOBODY), Some(NOBODY)).unwrap();
    cluster.use_executables_others_can_reach();

    cluster.start();
    cluster.wait_until_up();
    let line = cluster.log().lines().find(|line| line.contains("not root")).unwrap().to_owned();
    assert!(line.contains("every component runs as uid 65534"), "{line}");
    for (pid, name) in cluster.processes() {
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), NOBODY, "{name}");
    }
    assert!(cluster.kubectl(&["get", "namespaces"]).contains("kube-system"));
    // Root asks about it, too, by its data directory only.
    let output = Command::new(k0s()).args(["status", "--data-dir"]).arg(cluster.data_dir()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("Role: controller"), "{output:?}");

    cluster.k0s(&["stop"]);
    let (status, _) = cluster.wait_until_ended();
    assert!(status.success(), "{status}\n{}", cluster.log());
    assert_eq!(cluster.process_names(), [""; 0]);
}
