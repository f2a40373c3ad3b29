//! A start that is interrupted leaves nothing behind, and the next one completes it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

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

#[test]
fn a_start_that_waits_answers_and_can_be_stopped() {
    let mut cluster = Cluster::through(&["env", "--default-signal=HUP"]);
    let leftover = DeafLeftover::of(&cluster);
    for stop in [Stop::Command, Stop::Signal("TERM"), Stop::Signal("HUP")] {
        start_until_it_waits(&mut cluster);
        match stop {
            Stop::Command => drop(cluster.k0s(&["stop"])),
            Stop::Signal(signal) => cluster.signal(signal),
        }
        let (status, _) = cluster.wait_until_ended();
        assert!(status.success(), "{stop:?}: {status}\n{}", cluster.log());
        // It did not wait until the leftover was gone.
        assert!(leftover.is_alive(), "{stop:?}\n{}", cluster.log());
        for gone in ["k0s.yaml", "status.sock"] {
            assert!(!cluster.run_dir().join(gone).exists(), "{stop:?}: {gone}");
        }
    }
}

#[test]
fn a_k0s_that_outlives_its_terminal_does_not_stop_with_it() {
    let mut cluster = Cluster::through(&["nohup"]);
    let _leftover = DeafLeftover::of(&cluster);
    start_until_it_waits(&mut cluster);
    cluster.signal("HUP");
    assert!(cluster.k0s(&["status"]).contains(&format!("Process ID: {}", cluster.pid())));
    cluster.k0s(&["stop"]);
    let (status, _) = cluster.wait_until_ended();
    assert!(status.success(), "{status}\n{}", cluster.log());
    assert!(!cluster.log().contains("SIGHUP"), "{}", cluster.log());
}

fn start_until_it_waits(cluster: &mut Cluster) {
    cluster.start();
    until("k0s to find what was left", || {
        cluster.log().contains("found running from an earlier k0s").then_some(())
    });
    assert!(cluster.k0s(&["status"]).contains(&format!("Process ID: {}", cluster.pid())));
}

#[derive(Debug, Clone, Copy)]
enum Stop {
    Command,
    Signal(&'static str),
}

/// A process that passes for what a killed k0s has left of kube-apiserver, and does not end when asked to.
struct DeafLeftover(Child);

impl DeafLeftover {
    fn of(cluster: &Cluster) -> DeafLeftover {
        let mut process = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        let stat = fs::read_to_string(proc.join("stat")).unwrap();
        let start_ticks: u64 = stat.split(' ').nth(21).unwrap().parse().unwrap();
        let executable = fs::metadata(proc.join("exe")).unwrap();
        let identity = serde_json::json!({
            "boot_id": fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim(),
            "pid": process.id(),
            "start_ticks": start_ticks,
            "executable_device": executable.dev(),
            "executable_inode": executable.ino(),
            "cgroup": null,
        });
        let notes = cluster.run_dir().join("processes");
        fs::create_dir_all(&notes).unwrap();
        fs::write(notes.join("kube-apiserver.process.json"), identity.to_string()).unwrap();
        DeafLeftover(process)
    }

    fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }
}

impl Drop for DeafLeftover {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
