//! What cannot be started says so at once, naming what is wrong; and users are switched or refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use worker::supervise::{
    CgroupUse, ComponentSpec, Host, HostConfig, HostError, SpawnError, StartError, Supervisor, User,
};

use crate::bed::{Bed, line_after, sh, soon};

const NOBODY: u32 = 65534;

async fn refusal(bed: &Bed, spec: ComponentSpec) -> SpawnError {
    match Supervisor::start(spec, &bed.host).await {
        Err(StartError::Spawn(error)) => error,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it started"),
    }
}

fn file(path: &Path, mode: u32, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn missing_executable_is_named() {
    let bed = Bed::new();
    let error = refusal(&bed, ComponentSpec::new("kubelet", "/nowhere/kubelet")).await;
    assert_eq!(error.to_string(), "kubelet: /nowhere/kubelet does not exist");
    let error = refusal(&bed, ComponentSpec::new("kubelet", "kubelet")).await;
    assert!(matches!(error, SpawnError::Relative { .. }), "{error}");
}

#[tokio::test]
async fn executable_without_permission_is_named() {
    let bed = Bed::new();
    let path = bed.path("program");
    file(&path, 0o644, b"#!/bin/sh\n");
    let error = refusal(&bed, ComponentSpec::new("kubelet", &path)).await;
    assert!(matches!(error, SpawnError::Permission { .. }), "{error}");
    let error = refusal(&bed, ComponentSpec::new("kubelet", bed.dir.path())).await;
    assert!(matches!(error, SpawnError::Permission { .. }), "{error}");
}

#[tokio::test]
async fn program_of_another_machine_and_missing_interpreter_are_told_apart() {
    let bed = Bed::new();
    let path = bed.path("program");
    let mut foreign = fs::read("/bin/sh").unwrap();
    foreign[18..20].copy_from_slice(&[0xfe, 0xca]);
    file(&path, 0o755, &foreign);
    let error = refusal(&bed, ComponentSpec::new("kubelet", &path)).await;
    assert!(matches!(error, SpawnError::Format { .. }), "{error}");
    file(&path, 0o755, b"");
    let error = refusal(&bed, ComponentSpec::new("kubelet", &path)).await;
    assert!(matches!(error, SpawnError::Format { .. }), "{error}");
    file(&path, 0o755, b"#!/nowhere/interpreter\n");
    let error = refusal(&bed, ComponentSpec::new("kubelet", &path)).await;
    assert!(matches!(error, SpawnError::InterpreterMissing { .. }), "{error}");
}

#[tokio::test]
async fn working_directory_and_name_are_checked() {
    let bed = Bed::new();
    let mut spec = sh("kubelet", "exit 0");
    spec.working_dir = "/nowhere".into();
    let error = refusal(&bed, spec).await;
    assert_eq!(error.to_string(), "kubelet: working directory /nowhere does not exist or cannot be entered");
    for name in ["", "../x", "Kubelet", "a b", &"x".repeat(65)] {
        let error = Supervisor::start(sh(name, "exit 0"), &bed.host).await.unwrap_err();
        assert!(matches!(error, StartError::Name(_)), "{error}");
    }
}

#[tokio::test]
async fn state_directory_that_cannot_be_made_is_named() {
    let bed = Bed::new();
    fs::write(bed.path("file"), "").unwrap();
    let config = HostConfig { state_dir: bed.path("file/state"), cgroups: CgroupUse::Never };
    let error = Host::open(config).unwrap_err();
    assert!(matches!(&error, HostError::StateDir { dir, .. } if *dir == bed.path("file/state")), "{error}");
}

/// As root the child has exactly the given credentials, and can get no others; anybody else is refused.
#[tokio::test]
async fn user_is_switched_by_root_and_refused_to_others() {
    let bed = Bed::new();
    let mut spec = sh(
        "dropped",
        "grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapEff):' /proc/self/status; echo end; exec sleep 1000",
    );
    spec.user = Some(User { uid: NOBODY, gid: NOBODY, groups: vec![1234, 1235] });
    if !rustix::process::geteuid().is_root() {
        let error = refusal(&bed, spec).await;
        assert!(matches!(error, SpawnError::UserSwitch { uid: NOBODY, .. }), "{error}");
        return;
    }
    let mut supervisor = bed.start(spec).await;
    line_after(&supervisor, "end").await;
    let lines = supervisor.status().last_log_lines;
    let lines: Vec<String> =
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let ids = [NOBODY; 4].map(|id| id.to_string()).join(" ");
    assert_eq!(
        lines,
        [
            format!("Uid: {ids}"),
            format!("Gid: {ids}"),
            "Groups: 1234 1235".to_owned(),
            "CapEff: 0000000000000000".to_owned(),
            "NoNewPrivs: 1".to_owned(),
            "end".to_owned()
        ]
    );
    supervisor.stop(soon()).await.unwrap();
}
