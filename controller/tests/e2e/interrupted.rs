//! A start that is interrupted leaves nothing behind, and the next one completes it.

use crate::cluster::{Cluster, until};

#[test]
fn a_start_can_be_interrupted() {
    let mut cluster = Cluster::new();
    cluster.start();
    until("kube-apiserver to be started", || (!cluster.processes().is_empty()).then_some(()));
    cluster.signal("TERM");
    let (status, _) = cluster.wait_until_ended();
    assert!(status.success(), "{status}\n{}", cluster.log());
    assert!(!cluster.log().contains("the Kubernetes API is ready"), "{}", cluster.log());
    assert_eq!(cluster.process_names(), [""; 0]);

    // Killed where it hurts: with certificates half made, perhaps.
    cluster.start();
    cluster.kill();
    cluster.start();
    cluster.wait_until_up();
    assert!(cluster.kubectl(&["get", "namespaces"]).contains("kube-system"));
}
