//! What k0s does not do, and how it says so: on stderr, beginning with `Error:`, with exit status 1, leaving nothing running.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE, bin_dir, k0s};

/// Runs what must fail and answers what it said.
fn error_of(mut command: Command) -> String {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            process.kill().unwrap();
            panic!("{command:?} runs, although it should refuse to");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut error = String::new();
    process.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.starts_with("Error: "), "{error}");
    error
}

#[test]
fn a_port_in_use_names_its_holder() {
    let cluster = Cluster::new();
    let _listener = TcpListener::bind(("0.0.0.0", cluster.port)).unwrap();
    let error = error_of(cluster.controller(&[]));
    let expected = format!("Error: port {} of kube-apiserver is in use by ", cluster.port);
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(error.contains("spec.api.port"), "{error}");
    assert_eq!(cluster.process_names(), [""; 0]);
}

#[test]
fn a_bad_configuration_is_told_with_every_field() {
    let cluster = Cluster::new();
    fs::write(cluster.config(), "spec: {api: {port: 99999, adress: 1.2.3.4}, network: {podCIDR: x}}")
        .unwrap();
    let error = error_of(cluster.controller(&[]));
    for part in ["k0s.yaml", "spec.api.port", "spec.api.adress", "spec.network.podCIDR"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!cluster.data_dir().exists());

    let mut missing = Command::new(k0s());
    missing.args(["controller", "--config", "/nonexistent/k0s.yaml"]);
    assert!(error_of(missing).contains("/nonexistent/k0s.yaml"));
}

#[test]
fn a_storage_that_is_not_built_is_named() {
    let cluster = Cluster::new();
    let mut command = cluster.command(&["controller"]);
    command.arg("--config").arg(cluster.config()).arg("--bin-dir").arg(bin_dir());
    let error = error_of(command);
    assert!(error.contains("not supported yet: spec.storage.type"), "{error}");
    assert!(error.contains("--storage=sqlite"), "{error}");
}

#[test]
fn a_missing_executable_is_told_with_the_ways_to_get_it() {
    let cluster = Cluster::new();
    let empty = cluster.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = cluster.command(&["controller", "--storage=sqlite"]);
    command.arg("--config").arg(cluster.config()).arg("--bin-dir").arg(&empty).env("PATH", &empty);
    let error = error_of(command);
    assert!(error.starts_with("Error: kube-apiserver was not found in "), "{error}");
    assert!(error.contains("--bin-dir DIR") && error.contains("cargo xtask kubernetes"), "{error}");
}

#[test]
fn a_component_that_cannot_start_says_why() {
    let cluster = Cluster::new();
    let config = fs::read_to_string(cluster.config()).unwrap();
    fs::write(cluster.config(), config.replace("api: {", "api: {extraArgs: {no-such-flag: x}, ")).unwrap();
    let error = error_of(cluster.controller(&[]));
    assert!(error.starts_with("Error: kube-apiserver failed: exited with code 1"), "{error}");
    assert!(error.contains("unknown flag: --no-such-flag"), "{error}");
    assert_eq!(cluster.process_names(), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_its_flag() {
    let is_root = rustix::process::geteuid().is_root();
    let mut cluster = match is_root {
        // Root may write everywhere, so somebody else tries.
        true => Cluster::through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]),
        false => Cluster::new(),
    };
    cluster.use_executables_others_can_reach();
    fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o555)).unwrap();
    let error = error_of(cluster.controller(&[]));
    fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(error.contains("choose another directory with --data-dir"), "{error}");
    assert!(error.contains("Permission denied"), "{error}");
}

#[test]
fn a_corrupt_database_is_named_and_left_alone() {
    let cluster = Cluster::new();
    let database = cluster.data_dir().join("db/state.db");
    fs::create_dir_all(database.parent().unwrap()).unwrap();
    let nonsense = b"this is no database ".repeat(1000);
    fs::write(&database, &nonsense).unwrap();
    let error = error_of(cluster.controller(&[]));
    assert!(error.contains("db/state.db"), "{error}");
    assert_eq!(fs::read(&database).unwrap(), nonsense);
    assert_eq!(cluster.process_names(), [""; 0]);
}

#[test]
fn commands_without_a_running_k0s_say_so() {
    let cluster = Cluster::new();
    assert!(error_of(cluster.command(&["status"])).contains("k0s is not running"));
    assert_eq!(error_of(cluster.command(&["stop"])), "Error: already stopped\n");
    let error = error_of(cluster.command(&["kubeconfig", "admin"]));
    assert!(error.contains("pki/ca.crt"), "{error}");
}
