//! Stopping: politely, with force, and with everything that a component has started.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use worker::supervise::{Backoff, CgroupUse, Descendants, Exit, Readiness, State, Supervisor};

use crate::bed::{Bed, is_alive, line_after, sh, soon, until};

const NEVER: Duration = Duration::from_secs(3600);
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

#[tokio::test]
async fn stop_signal_comes_first_and_the_last_words_are_heard() {
    let bed = Bed::new();
    // The shell waits in `wait`, which a signal interrupts; a foreground child it would wait for first.
    let mut spec = sh("polite", "trap 'echo bye; exit 7' INT; echo up; sleep 3600 & wait");
    spec.stop.signal = Signal::INT;
    spec.stop.grace = NEVER;
    let mut supervisor = bed.start(spec).await;
    line_after(&supervisor, "up").await;
    supervisor.stop(soon()).await.unwrap();
    let status = supervisor.status();
    assert_eq!((status.state, status.last_exit, status.pid), (State::Stopped, Some(Exit::Code(7)), None));
    assert_eq!(status.last_log_lines, ["up", "bye"]);
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn component_that_ignores_the_stop_signal_is_killed_after_its_grace() {
    let bed = Bed::new();
    let mut spec = sh("stubborn", STUBBORN);
    spec.stop.grace = Duration::from_millis(200);
    let mut supervisor = bed.start(spec).await;
    line_after(&supervisor, "up").await;
    let pid = supervisor.status().pid.unwrap();
    let asked = Instant::now();
    supervisor.stop(soon()).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(200));
    assert_eq!(supervisor.status().last_exit, Some(Exit::Signal(9)));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn deadline_cuts_the_grace_short() {
    let bed = Bed::new();
    let mut spec = sh("stubborn", STUBBORN);
    spec.stop.grace = NEVER;
    let mut supervisor = bed.start(spec).await;
    line_after(&supervisor, "up").await;
    supervisor.stop(tokio::time::Instant::now() + Duration::from_millis(50)).await.unwrap();
    assert_eq!(supervisor.status().last_exit, Some(Exit::Signal(9)));
}

#[tokio::test]
async fn stop_does_not_wait_for_back_off_or_readiness() {
    let bed = Bed::new();
    let mut crashing = sh("crashing", "exit 1");
    crashing.restart = Backoff { first: NEVER, max: NEVER, ..Backoff::default() };
    let mut crashing = bed.start(crashing).await;
    until("it backs off", || crashing.status().state == State::Backoff).await;
    crashing.stop(soon()).await.unwrap();
    assert_eq!(crashing.status().state, State::Stopped);

    let mut silent = sh("silent", "exec sleep 1000");
    silent.readiness = Readiness::probe(std::future::pending);
    let mut silent = bed.start(silent).await;
    silent.stop(soon()).await.unwrap();
    assert_eq!(silent.status().state, State::Stopped);
}

/// Starts a component with a child that stays in its session and, where cgroups see that, one that leaves it.
async fn with_descendants(bed: &Bed, cgroups: CgroupUse, descendants: Descendants) -> (Supervisor, Vec<u32>) {
    let script = match cgroups {
        CgroupUse::WherePossible if cgroups_work() => {
            "sleep 1000 & echo child $!; setsid sleep 1000 & sleep 1001 & echo second $!; wait"
        }
        _ => "sleep 1000 & echo child $!; sleep 1001 & echo second $!; wait",
    };
    let mut spec = sh("parent", script);
    spec.stop.descendants = descendants;
    spec.restart = Backoff { first: NEVER, max: NEVER, ..Backoff::default() };
    let supervisor = bed.start(spec).await;
    let first = line_after(&supervisor, "child ").await.parse().unwrap();
    let second = line_after(&supervisor, "second ").await.parse().unwrap();
    (supervisor, vec![first, second])
}

fn cgroups_work() -> bool {
    std::path::Path::new("/sys/fs/cgroup/unified/cgroup.kill").exists()
        && rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn descendants_end_when_their_component_is_stopped_or_crashes() {
    for cgroups in [CgroupUse::WherePossible, CgroupUse::Never] {
        let bed = Bed::with(cgroups);
        let (mut supervisor, descendants) = with_descendants(&bed, cgroups, Descendants::Kill).await;
        supervisor.stop(soon()).await.unwrap();
        assert!(!descendants.iter().any(|pid| is_alive(*pid)), "{cgroups:?}");

        let (mut supervisor, descendants) = with_descendants(&bed, cgroups, Descendants::Kill).await;
        let pid = supervisor.status().pid.unwrap();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        until("the crash is noticed", || supervisor.status().state == State::Backoff).await;
        assert!(!descendants.iter().any(|pid| is_alive(*pid)), "{cgroups:?}");
        supervisor.stop(soon()).await.unwrap();
    }
}

#[tokio::test]
async fn descendants_go_on_where_the_policy_keeps_them() {
    for cgroups in [CgroupUse::WherePossible, CgroupUse::Never] {
        let bed = Bed::with(cgroups);
        let (mut supervisor, descendants) = with_descendants(&bed, cgroups, Descendants::Keep).await;
        supervisor.stop(soon()).await.unwrap();
        assert!(descendants.iter().all(|pid| is_alive(*pid)), "{cgroups:?}");

        // The same cgroup takes the next process, whose policy then ends them all.
        let (mut next, next_descendants) = with_descendants(&bed, cgroups, Descendants::Kill).await;
        next.stop(soon()).await.unwrap();
        assert!(!next_descendants.iter().any(|pid| is_alive(*pid)), "{cgroups:?}");
        for pid in descendants.into_iter().filter(|pid| is_alive(*pid)) {
            assert!(cgroups == CgroupUse::Never || !cgroups_work());
            kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        }
    }
}

#[tokio::test]
async fn dropped_supervisor_takes_its_process_with_it() {
    let bed = Bed::new();
    let supervisor = bed.start(sh("dropped", STUBBORN)).await;
    line_after(&supervisor, "up").await;
    let pid = supervisor.status().pid.unwrap();
    drop(supervisor);
    until("it is dead", || !is_alive(pid)).await;
    // And the next one does not mind.
    let mut next = bed.start(sh("dropped", "exec sleep 1000")).await;
    next.stop(soon()).await.unwrap();
}
