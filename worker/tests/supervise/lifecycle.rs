//! Starting, becoming ready, crashing, being started again.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use worker::supervise::{Backoff, ComponentSpec, Exit, Readiness, StartError, State};

use crate::bed::{Bed, is_alive, line_after, sh, soon, until};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn crash_is_reported_and_restarted_with_growing_delay() {
    let bed = Bed::new();
    let starts = bed.path("starts");
    let mut spec = sh("crashing", &format!("date +%s%N >> {}; exit 3", starts.display()));
    spec.restart =
        Backoff { first: Duration::from_millis(40), max: Duration::from_millis(160), ..Backoff::default() };
    let mut supervisor = bed.start(spec).await;
    until("four restarts", || supervisor.status().restarts >= 4).await;
    until("its last exit", || supervisor.status().last_exit.is_some()).await;
    let status = supervisor.status();
    assert_eq!(status.last_exit, Some(Exit::Code(3)));
    supervisor.stop(soon()).await.unwrap();
    assert_eq!(supervisor.status().state, State::Stopped);

    let starts = fs::read_to_string(starts).unwrap();
    let starts: Vec<u64> = starts.lines().map(|line| line.parse().unwrap()).collect();
    let gaps_ms: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    for (gap, least) in gaps_ms.iter().zip([30, 60, 120, 120]) {
        assert!(*gap >= least, "{gaps_ms:?}");
    }
}

#[tokio::test]
async fn killed_component_is_healed_again_and_again() {
    const ROUNDS: u32 = 100;
    let bed = Bed::new();
    let mut spec = sh("victim", "exec sleep 1000");
    spec.restart =
        Backoff { first: Duration::from_millis(1), max: Duration::from_millis(1), ..Backoff::default() };
    let mut supervisor = bed.start(spec).await;
    for round in 0..ROUNDS {
        until("it is ready", || {
            let status = supervisor.status();
            status.state == State::Ready && status.restarts == round
        })
        .await;
        kill(supervisor.status().pid.unwrap());
    }
    until("the last restart", || supervisor.status().restarts == ROUNDS).await;
    assert_eq!(supervisor.status().last_exit, Some(Exit::Signal(9)));
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn probe_decides_about_readiness_and_its_answers_are_shown_ever_after() {
    let bed = Bed::new();
    let door = bed.path("door");
    let mut spec = sh("probed", "exec sleep 1000");
    spec.check_every = Duration::from_millis(5);
    spec.readiness = Readiness::probe({
        let door = door.clone();
        move || {
            let open = door.exists();
            async move { if open { Ok(()) } else { Err("the door is shut".to_owned()) } }
        }
    });
    let mut supervisor = bed.start(spec).await;
    until("the reason", || supervisor.status().reason.as_deref() == Some("the door is shut")).await;
    assert_eq!(supervisor.status().state, State::Starting);
    fs::write(&door, "").unwrap();
    supervisor.ready().await.unwrap();
    let status = supervisor.status();
    assert_eq!((status.state, status.reason, status.restarts), (State::Ready, None, 0));
    assert!(status.started_at_unix_seconds.unwrap() > 1_700_000_000);
    assert!(is_alive(status.pid.unwrap()));

    fs::remove_file(&door).unwrap();
    until("the shut door to be noticed", || supervisor.status().reason.is_some()).await;
    let status = supervisor.status();
    assert_eq!((status.state, status.reason.as_deref()), (State::Ready, Some("the door is shut")));
    assert_eq!(status.checks.last().unwrap().error, status.reason);
    fs::write(&door, "").unwrap();
    until("the open door to be noticed", || supervisor.status().reason.is_none()).await;
    assert_eq!(supervisor.status().restarts, 0);
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn waiting_for_readiness_is_bounded_and_says_what_is_missing() {
    let bed = Bed::new();
    let mut spec = sh("slow", "echo warming up; exec sleep 1000");
    spec.readiness = Readiness::probe(|| async { Err("connection refused".to_owned()) });
    spec.ready_within = Duration::from_millis(300);
    let mut supervisor = bed.start(spec).await;
    let error = supervisor.ready().await.unwrap_err();
    assert!(matches!(error, StartError::NotReady { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("slow is not ready")
            && text.contains("connection refused")
            && text.contains("warming up"),
        "{text}"
    );
    assert_eq!(supervisor.status().state, State::Starting);
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn component_that_never_becomes_ready_fails_and_says_why() {
    let bed = Bed::new();
    let mut spec = sh("broken", "echo 'E0102 03:04:05.000000 1 main.go:1] no such flag' >&2; exit 2");
    spec.readiness = Readiness::probe(|| async { Err("connection refused".to_owned()) });
    spec.restart = Backoff { first: Duration::from_millis(1), starts_max: 3, ..Backoff::default() };
    let mut supervisor = bed.start(spec).await;
    let text = supervisor.ready().await.unwrap_err().to_string();
    for part in ["broken failed", "exited with code 2", "3 times", "main.go:1] no such flag"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let status = supervisor.status();
    assert_eq!((status.state, status.restarts, status.pid), (State::Failed, 2, None));
    assert_eq!(status.last_log_lines.len(), 3);
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn executable_that_vanishes_is_tried_again_until_it_is_back() {
    let bed = Bed::new();
    let program = bed.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut spec = ComponentSpec::new("vanishing", &program);
    spec.args = vec!["1000".to_owned()];
    spec.readiness = Readiness::RunningFor(Duration::ZERO);
    spec.restart =
        Backoff { first: Duration::from_millis(1), max: Duration::from_millis(20), ..Backoff::default() };
    let mut supervisor = bed.start(spec).await;
    supervisor.ready().await.unwrap();
    fs::rename(&program, bed.path("away")).unwrap();
    kill(supervisor.status().pid.unwrap());
    until("the reason", || {
        supervisor.status().reason.is_some_and(|reason| reason.contains("does not exist"))
    })
    .await;
    fs::rename(bed.path("away"), &program).unwrap();
    until("it is back", || supervisor.status().state == State::Ready).await;
    supervisor.stop(soon()).await.unwrap();
}

#[tokio::test]
async fn child_gets_its_own_session_and_only_its_own_environment() {
    let bed = Bed::new();
    let mut spec = sh(
        "clean",
        "tr '\\0' ' ' < /proc/self/environ; echo; echo stat $(cat /proc/$$/stat); readlink /proc/$$/fd/0; \
         ls /proc/self/fd | tr '\\n' ' '; pwd; echo end; exec sleep 1000",
    );
    spec.env.push(("GREETING".to_owned(), "hello".to_owned()));
    spec.working_dir = bed.dir.path().to_owned();
    let mut supervisor = bed.start(spec).await;
    line_after(&supervisor, "end").await;
    let status = supervisor.status();
    let lines: Vec<&str> = status.last_log_lines.iter().map(String::as_str).collect();
    let mut names: Vec<&str> =
        lines[0].split(' ').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name).collect();
    names.sort();
    // PWD and OLDPWD are the shell's own additions.
    names.retain(|name| !["PWD", "OLDPWD", "_", "SHLVL"].contains(name));
    assert_eq!(names, ["GREETING", "PATH"]);
    let pid = status.pid.unwrap().to_string();
    let stat: Vec<&str> = lines[1].split(' ').collect();
    assert_eq!((stat[1], stat[5], stat[6]), (pid.as_str(), pid.as_str(), pid.as_str()), "{stat:?}");
    assert_eq!(lines[2], "/dev/null");
    // The third is the directory that `ls` reads.
    assert_eq!(lines[3], format!("0 1 2 3 {}", bed.dir.path().display()));
    supervisor.stop(soon()).await.unwrap();
}
