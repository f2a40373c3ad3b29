//! What happens when k0s is killed: components die with it, and those that do not are ended by the next one, by
//! identity. k0s is played by this test binary, started once more as [`another_process`].

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use worker::supervise::{CgroupUse, ComponentSpec, Host, HostConfig, Supervisor, User};

use crate::bed::{Bed, PATIENCE, is_alive, sh, soon, state_dir, until};

const ROLE: &str = "SUPERVISE_TEST_ROLE";
const ROLE_ARGS: [&str; 2] = ["--exact", "survivors::another_process"];
const DIR: &str = "SUPERVISE_TEST_DIR";
const COMPONENT: &str = "component";
const NOBODY: u32 = 65534;

/// Not a test of its own: the other processes of the tests below run it, each in a role.
#[test]
fn another_process() {
    match env::var(ROLE).as_deref() {
        Err(_) => {}
        Ok("component that grows deaf") => grow_deaf(),
        Ok("deaf component") => deaf_component(),
        Ok(role) => k0s(role),
    }
}

/// Gets rid of its death signal. That is a thread's, and not handed on: the thread of this test has none and, by
/// executing the same program, becomes the process.
fn grow_deaf() {
    // In the middle of that the process has no executable to be noted.
    let noted = state_file(Path::new(&env::var(DIR).unwrap()));
    while !noted.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let exe = env::current_exe().unwrap();
    let error = Command::new(exe).args(ROLE_ARGS).env(ROLE, "deaf component").exec();
    panic!("{error}");
}

/// Does not hear that its parent has died, and has a child.
fn deaf_component() {
    let lifetime = PATIENCE.as_secs().to_string();
    let mut child =
        Command::new("/bin/sleep").arg(lifetime).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    fs::write(Path::new(&env::var(DIR).unwrap()).join("deaf"), child.id().to_string()).unwrap();
    child.wait().unwrap();
}

/// Supervises a component until it is killed, or for longer than any test takes.
fn k0s(role: &str) {
    let dir = env::var(DIR).unwrap();
    let (spec, cgroups) = match role {
        "plain" => (sh(COMPONENT, "exec sleep 1000"), CgroupUse::WherePossible),
        "as nobody" => {
            let mut spec = sh(COMPONENT, "exec sleep 1000");
            spec.user = Some(User { uid: NOBODY, gid: NOBODY, groups: Vec::new() });
            (spec, CgroupUse::WherePossible)
        }
        "with a deaf component" => (deaf_spec(&dir), CgroupUse::WherePossible),
        "with a deaf component, no cgroup" => (deaf_spec(&dir), CgroupUse::Never),
        other => panic!("no role {other}"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let host = Host::open(HostConfig { state_dir: state_dir(Path::new(&dir)), cgroups }).unwrap();
        let _supervisor = Supervisor::start(spec, &host).await.unwrap();
        tokio::time::sleep(PATIENCE * 2).await;
    });
}

fn deaf_spec(dir: &str) -> ComponentSpec {
    let mut spec = ComponentSpec::new(COMPONENT, env::current_exe().unwrap());
    spec.args = ROLE_ARGS.map(str::to_owned).to_vec();
    spec.env =
        vec![(ROLE.to_owned(), "component that grows deaf".to_owned()), (DIR.to_owned(), dir.to_owned())];
    spec
}

fn start_k0s(role: &str, dir: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(ROLE_ARGS)
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill_dash_9(mut k0s: Child) {
    k0s.kill().unwrap();
    k0s.wait().unwrap();
}

/// The content of the state file once it is there.
async fn noted(dir: &Path) -> Value {
    let file = state_file(dir);
    until("the state file", || file.exists()).await;
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn state_file(dir: &Path) -> std::path::PathBuf {
    state_dir(dir).join(format!("{COMPONENT}.process.json"))
}

fn pid_of(noted: &Value) -> u32 {
    noted["pid"].as_u64().unwrap() as u32
}

#[tokio::test]
async fn component_dies_with_a_killed_k0s() {
    let mut roles = vec!["plain"];
    if rustix::process::geteuid().is_root() {
        // A change of user resets the death signal, unless the order is right.
        roles.push("as nobody");
    }
    for role in roles {
        let bed = Bed::new();
        let k0s = start_k0s(role, bed.dir.path());
        let pid = pid_of(&noted(bed.dir.path()).await);
        assert!(is_alive(pid), "{role}");
        kill_dash_9(k0s);
        until("the component is dead", || !is_alive(pid)).await;
        let mut next = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
        next.stop(soon()).await.unwrap();
    }
}

#[tokio::test]
async fn survivor_and_its_child_are_ended_before_the_next_start() {
    for (role, cgroups) in [
        ("with a deaf component", CgroupUse::WherePossible),
        ("with a deaf component, no cgroup", CgroupUse::Never),
    ] {
        let bed = Bed::with(cgroups);
        let k0s = start_k0s(role, bed.dir.path());
        until("the component has a child", || {
            fs::read_to_string(bed.path("deaf")).is_ok_and(|pid| !pid.is_empty())
        })
        .await;
        let child: u32 = fs::read_to_string(bed.path("deaf")).unwrap().parse().unwrap();
        let survivor = pid_of(&noted(bed.dir.path()).await);
        kill_dash_9(k0s);
        assert!(is_alive(survivor) && is_alive(child), "{role}");

        let mut next = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
        assert!(!is_alive(survivor), "{role}");
        until("the child is dead too", || !is_alive(child)).await;
        assert_eq!(pid_of(&noted(bed.dir.path()).await), next.status().pid.unwrap());
        next.stop(soon()).await.unwrap();
    }
}

#[tokio::test]
async fn child_left_in_the_cgroup_is_ended_even_if_its_parent_is_gone() {
    let bed = Bed::new();
    let k0s = start_k0s("with a deaf component", bed.dir.path());
    until("the component has a child", || {
        fs::read_to_string(bed.path("deaf")).is_ok_and(|pid| !pid.is_empty())
    })
    .await;
    let child: u32 = fs::read_to_string(bed.path("deaf")).unwrap().parse().unwrap();
    let noted = noted(bed.dir.path()).await;
    kill_dash_9(k0s);
    let survivor = rustix::process::Pid::from_raw(pid_of(&noted) as i32).unwrap();
    rustix::process::kill_process(survivor, Signal::KILL).unwrap();
    until("the parent is gone", || !is_alive(pid_of(&noted))).await;
    assert!(is_alive(child));
    if noted["cgroup"].is_null() {
        // Without a cgroup nothing says that this process was ours, so it is nobody's to end but the test's.
        rustix::process::kill_process(rustix::process::Pid::from_raw(child as i32).unwrap(), Signal::KILL)
            .unwrap();
        return;
    }
    let mut next = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
    assert!(!is_alive(child));
    next.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn stranger_with_the_same_pid_is_left_alone() {
    let bed = Bed::new();
    let mut stranger = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let mut first = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
    let ours = noted(bed.dir.path()).await;
    first.stop(soon()).await.unwrap();
    let stranger_stat = fs::read_to_string(format!("/proc/{}/stat", stranger.id())).unwrap();
    let start_ticks: u64 = stranger_stat.split(' ').nth(21).unwrap().parse().unwrap();

    let mut truth = ours.clone();
    truth["pid"] = json!(stranger.id());
    truth["start_ticks"] = json!(start_ticks);
    truth["cgroup"] = Value::Null;
    let exe = fs::metadata("/bin/sleep").unwrap();
    truth["executable_device"] = json!(std::os::unix::fs::MetadataExt::dev(&exe));
    truth["executable_inode"] = json!(std::os::unix::fs::MetadataExt::ino(&exe));

    // The whole truth about the stranger, with one lie at a time.
    for (field, lie) in [
        ("start_ticks", json!(start_ticks - 1)),
        ("executable_inode", json!(1)),
        ("executable_device", json!(1)),
        ("boot_id", json!("another boot")),
        ("pid", json!(0)),
        ("pid", json!(-1)),
        ("pid", json!(-(i64::from(stranger.id())))),
    ] {
        let mut note = truth.clone();
        note[field] = lie.clone();
        fs::write(state_file(bed.dir.path()), note.to_string()).unwrap();
        let mut next = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
        next.stop(soon()).await.unwrap();
        assert!(is_alive(stranger.id()), "{field} {lie}");
    }

    // And without a lie it would have been ours.
    fs::write(state_file(bed.dir.path()), truth.to_string()).unwrap();
    let mut next = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
    assert!(!is_alive(stranger.id()));
    next.stop(soon()).await.unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn survivor_that_ignores_the_stop_signal_is_killed() {
    let bed = Bed::new();
    let mut spec = sh(COMPONENT, "trap '' TERM; echo up; while :; do sleep 0.1; done");
    spec.stop.grace = Duration::from_millis(100);
    // Two hosts on one directory play a k0s and the next one; the first is still there, so it sees its component crash.
    let first = bed.start(spec.clone()).await;
    crate::bed::line_after(&first, "up").await;
    let pid = first.status().pid.unwrap();
    let host =
        Host::open(HostConfig { state_dir: state_dir(bed.dir.path()), cgroups: CgroupUse::Never }).unwrap();
    spec.name = COMPONENT.to_owned();
    let mut next = Supervisor::start(spec, &host).await.unwrap();
    assert!(!is_alive(pid));
    drop(first);
    next.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn state_file_is_private_and_lives_as_long_as_the_process() {
    let bed = Bed::new();
    let mut supervisor = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
    let file = state_file(bed.dir.path());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(state_dir(bed.dir.path())).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(pid_of(&noted(bed.dir.path()).await), supervisor.status().pid.unwrap());
    supervisor.stop(soon()).await.unwrap();
    assert_eq!(fs::read_dir(state_dir(bed.dir.path())).unwrap().count(), 0);
}

#[tokio::test]
async fn state_file_that_makes_no_sense_does_not_prevent_a_start() {
    let bed = Bed::new();
    for nonsense in ["", "{", "{\"pid\": \"x\"}", "\u{0}\u{0}"] {
        fs::write(state_file(bed.dir.path()), nonsense).unwrap();
        let mut supervisor = bed.start(sh(COMPONENT, "exec sleep 1000")).await;
        supervisor.stop(soon()).await.unwrap();
    }
}
