//! What components write: into the log with its level and name, and never more than fits.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;
use worker::supervise::{Backoff, ComponentSpec, State};

use crate::bed::{Bed, sh, soon, until};

const NEVER: Duration = Duration::from_secs(3600);
/// What a flood of 100 MB may leave behind in this process, which runs other tests meanwhile.
const GROWTH_MAX_KIB: u64 = 48 * 1024;

/// Runs to its end once.
fn once(name: &str, script: &str) -> ComponentSpec {
    let mut spec = sh(name, script);
    spec.restart = Backoff { first: NEVER, max: NEVER, ..Backoff::default() };
    spec
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Captured;

    fn make_writer(&self) -> Captured {
        self.clone()
    }
}

#[tokio::test]
async fn lines_are_logged_with_component_stream_and_klog_level() {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(captured.clone()).finish();
    // For this thread, which is the whole runtime of this test.
    let _guard = tracing::subscriber::set_default(subscriber);
    let bed = Bed::new();
    let script =
        "echo 'W0102 03:04:05.6 1 a.go:1] careful'; echo 'E0102 03:04:05.6 1 a.go:2] broken' >&2; echo plain";
    let mut supervisor = bed.start(once("kube-talker", script)).await;
    until("it has ended", || supervisor.status().state == State::Backoff).await;
    supervisor.stop(soon()).await.unwrap();

    let captured = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let find = |text: &str| -> serde_json::Value {
        let line =
            captured.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {captured}"));
        serde_json::from_str(line).unwrap()
    };
    for (text, level, stream) in
        [("careful", "WARN", "stdout"), ("broken", "ERROR", "stderr"), ("plain", "INFO", "stdout")]
    {
        let event = find(text);
        assert_eq!(event["level"], level, "{event}");
        assert_eq!(event["target"], "component", "{event}");
        assert_eq!(event["fields"]["component"], "kube-talker", "{event}");
        assert_eq!(event["fields"]["stream"], stream, "{event}");
    }
}

#[tokio::test]
async fn flood_neither_blocks_the_component_nor_grows_memory() {
    let bed = Bed::new();
    let before = resident_kib();
    // A million lines, and then a line of 100 MB.
    let script = "yes 'I0102 03:04:05.6 1 flood.go:1] again and again and again' | head -n 1000000; \
                  head -c 100000000 /dev/zero | tr '\\0' x; echo; echo done";
    let mut supervisor = bed.start(once("flood", script)).await;
    until("it has written all of it", || supervisor.status().state == State::Backoff).await;
    let lines = supervisor.status().last_log_lines;
    assert_eq!(lines.len(), 20);
    assert_eq!(lines[19], "done");
    assert!(lines[18].ends_with(" bytes cut off)") && lines[18].len() < 20_000, "{}", lines[18].len());
    let growth = resident_kib().saturating_sub(before);
    assert!(growth < GROWTH_MAX_KIB, "grew by {growth} KiB");
    supervisor.stop(soon()).await.unwrap();
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
