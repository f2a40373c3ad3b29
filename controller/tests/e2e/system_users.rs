//! A cluster of root on a machine that has the system users of k0s: who runs what, and who owns which file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, send, until};

const API_SERVER: u32 = 64_001;
const SCHEDULER: u32 = 64_002;

/// `<data>` as upstream k0s was observed to leave it (`files.txt` of the observation), for what this release has, and with
/// the differences of docs/differences.md.
const EXPECTED: &str = "\
755 root .
755 root bin
700 root db
755 root manifests
751 root pki
600 root pki/admin.conf
644 root pki/admin.crt
640 root pki/admin.key
644 kube-apiserver pki/apiserver-kubelet-client.crt
640 kube-apiserver pki/apiserver-kubelet-client.key
644 root pki/ca.crt
640 kube-apiserver pki/ca.key
600 kube-apiserver pki/ccm.conf
644 kube-apiserver pki/ccm.crt
640 kube-apiserver pki/ccm.key
644 root pki/front-proxy-ca.crt
640 root pki/front-proxy-ca.key
644 kube-apiserver pki/front-proxy-client.crt
640 kube-apiserver pki/front-proxy-client.key
640 kube-apiserver pki/sa.key
644 kube-apiserver pki/sa.pub
600 kube-scheduler pki/scheduler.conf
644 kube-scheduler pki/scheduler.crt
640 kube-scheduler pki/scheduler.key
644 kube-apiserver pki/server.crt
640 kube-apiserver pki/server.key
";

#[test]
fn components_run_as_their_system_users_and_own_what_they_read() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can become another user.
        return;
    }
    if !Command::new("unshare").args(["--mount", "true"]).status().unwrap().success() {
        eprintln!("not shown here: root may not make a mount namespace");
        return;
    }
    // The users exist only for this cluster: in a mount namespace with another /etc/passwd.
    let passwd_dir = tempfile::tempdir().unwrap();
    let passwd = passwd_dir.path().join("passwd");
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let account = |name: &str, id: u32| format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
    let users = [account("kube-apiserver", API_SERVER), account("kube-scheduler", SCHEDULER)].concat();
    fs::write(&passwd, accounts + &users).unwrap();
    let bind = format!("mount --bind {} /etc/passwd && exec \"$@\"", passwd.display());
    let mut cluster = Cluster::through(&["unshare", "--mount", "sh", "-c", &bind, "sh"]);
    cluster.use_executables_others_can_reach();

    cluster.start();
    cluster.wait_until_up();
    assert!(!cluster.log().contains("system users not found"));
    let running: BTreeMap<String, u32> = cluster
        .processes()
        .into_iter()
        .map(|(pid, name)| (name, fs::metadata(format!("/proc/{pid}")).unwrap().uid()))
        .collect();
    let expected = [
        ("kube-apiserver", API_SERVER),
        ("kube-controller-manager", API_SERVER),
        ("kube-scheduler", SCHEDULER),
    ];
    assert_eq!(running, expected.map(|(name, uid)| (name.to_owned(), uid)).into());
    assert!(cluster.kubectl(&["get", "namespaces"]).contains("kube-system"));

    let mut found = Vec::new();
    list(cluster.data_dir(), cluster.data_dir(), &mut found);
    found.sort_by(|a, b| a.split(' ').nth(2).cmp(&b.split(' ').nth(2)));
    assert_eq!(found.concat(), EXPECTED);
    let socket_dir = fs::metadata(cluster.run_dir().join("kine")).unwrap();
    assert_eq!((socket_dir.mode() & 0o777, socket_dir.uid()), (0o700, API_SERVER));

    a_second_signal_does_not_wait(&mut cluster);
}

fn a_second_signal_does_not_wait(cluster: &mut Cluster) {
    let (api_server, _, _) = cluster.component("kube-apiserver").unwrap();
    send("STOP", api_server);
    cluster.signal("INT");
    until("kube-apiserver to be asked to stop", || {
        cluster.log().contains("kube-apiserver: stopping").then_some(())
    });
    cluster.signal("INT");
    let (status, took) = cluster.wait_until_ended();
    assert_eq!(status.code(), Some(1), "{}", cluster.log());
    // It would have been given 20 seconds.
    assert!(took < Duration::from_secs(10), "{took:?}");
    until("what was left to be killed", || cluster.processes().is_empty().then_some(()));
}

/// Mode, owner and path, without the run directory and the database's files.
fn list(root: &Path, path: &Path, found: &mut Vec<String>) {
    let relative = path.strip_prefix(root).unwrap().to_str().unwrap();
    if relative.starts_with("db/") || relative.starts_with("run") {
        return;
    }
    let metadata = fs::symlink_metadata(path).unwrap();
    let owner = match metadata.uid() {
        0 => "root",
        API_SERVER => "kube-apiserver",
        SCHEDULER => "kube-scheduler",
        _ => "somebody else",
    };
    let shown = if relative.is_empty() { "." } else { relative };
    found.push(format!("{:o} {owner} {shown}\n", metadata.mode() & 0o777));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            list(root, &entry.unwrap().path(), found);
        }
    }
}
