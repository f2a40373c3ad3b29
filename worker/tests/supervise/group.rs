//! The order of a node's components.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use worker::supervise::{Backoff, ComponentSpec, Group, Readiness, State};

use crate::bed::{Bed, PATIENCE, is_alive, sh, until};

/// Writes to the journal when it has started and when it is asked to stop; ready once its start is in the journal.
fn journaling(name: &str, journal: &Path) -> ComponentSpec {
    let file = journal.display();
    let script = format!(
        "trap 'echo {name} stops >> {file}; exit 0' TERM; echo {name} starts >> {file}; while :; do sleep 0.01; done"
    );
    let mut spec = sh(name, &script);
    let (journal, line) = (journal.to_owned(), format!("{name} starts"));
    spec.readiness = Readiness::probe(move || {
        let started = fs::read_to_string(&journal).unwrap_or_default().contains(&line);
        async move { started.then_some(()).ok_or("not in the journal".to_owned()) }
    });
    spec.stop.grace = PATIENCE;
    spec
}

#[tokio::test]
async fn stages_start_when_the_one_before_is_ready_and_stop_in_reverse() {
    let bed = Bed::new();
    let journal = bed.path("journal");
    let mut group = Group::new(bed.host.clone());
    group.start(journaling("api", &journal)).await.unwrap();
    group.start_stage(vec![journaling("left", &journal), journaling("right", &journal)]).await.unwrap();
    group.start(journaling("last", &journal)).await.unwrap();
    let board = group.board();
    let statuses = board.snapshot();
    assert!(statuses.iter().all(|status| status.state == State::Ready), "{statuses:?}");
    assert_eq!(
        statuses.iter().map(|status| status.name.as_str()).collect::<Vec<_>>(),
        ["api", "left", "right", "last"]
    );
    assert!(group.stop(PATIENCE).await.is_empty());
    assert!(board.snapshot().iter().all(|status| status.state == State::Stopped && status.pid.is_none()));

    let journal = fs::read_to_string(journal).unwrap();
    let mut lines: Vec<&str> = journal.lines().collect();
    // The two of one stage come in either order.
    lines[1..3].sort();
    lines[5..7].sort();
    assert_eq!(
        lines,
        [
            "api starts",
            "left starts",
            "right starts",
            "last starts",
            "last stops",
            "left stops",
            "right stops",
            "api stops"
        ]
    );
}

#[tokio::test]
async fn failed_start_names_the_component_and_the_rest_can_be_stopped() {
    let bed = Bed::new();
    let journal = bed.path("journal");
    let mut group = Group::new(bed.host.clone());
    group.start(journaling("api", &journal)).await.unwrap();
    let mut broken = sh("broken", "echo bad flag; exit 1");
    broken.readiness = Readiness::probe(|| async { Err("connection refused".to_owned()) });
    broken.restart = Backoff { first: Duration::from_millis(1), starts_max: 2, ..Backoff::default() };
    let error = group.start(broken).await.unwrap_err().to_string();
    assert!(error.contains("broken failed") && error.contains("bad flag"), "{error}");
    let error = group.start(ComponentSpec::new("absent", "/nowhere/absent")).await.unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("/nowhere/absent"), "{error}");
    let board = group.board();
    let pid = board.snapshot()[0].pid.unwrap();
    assert!(group.stop(PATIENCE).await.is_empty());
    assert!(!is_alive(pid));
    assert_eq!(board.snapshot()[1].state, State::Failed);
}

#[tokio::test]
async fn start_that_is_given_up_can_be_stopped_and_watched() {
    let bed = Bed::new();
    let mut group = Group::new(bed.host.clone());
    let board = group.board();
    let mut never = sh("never", "exec sleep 1000");
    never.readiness = Readiness::probe(|| async { Err("still asleep".to_owned()) });
    tokio::select! {
        started = group.start(never) => panic!("{started:?}"),
        () = until("the probe's answer", || {
            board.snapshot().iter().any(|status| status.reason.as_deref() == Some("still asleep"))
        }) => {}
    }
    let pid = board.snapshot()[0].pid.unwrap();
    assert!(group.stop(PATIENCE).await.is_empty());
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn stop_of_a_whole_group_is_bounded() {
    let bed = Bed::new();
    let mut group = Group::new(bed.host.clone());
    for name in ["one", "two", "three"] {
        let mut spec = sh(
            name,
            &format!("trap '' TERM; touch {}; while :; do sleep 0.1; done", bed.path(name).display()),
        );
        let deaf = bed.path(name);
        spec.readiness = Readiness::probe(move || {
            let deaf = deaf.exists();
            async move { deaf.then_some(()).ok_or("hears".to_owned()) }
        });
        spec.stop.grace = Duration::from_secs(3600);
        group.start(spec).await.unwrap();
    }
    let pids: Vec<u32> = group.board().snapshot().iter().map(|status| status.pid.unwrap()).collect();
    let asked = Instant::now();
    assert!(group.stop(Duration::from_millis(200)).await.is_empty());
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
}
