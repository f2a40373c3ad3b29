//! What a component says: read from its pipes, passed on to `tracing`, and its last lines kept.
//!
//! The invariant: memory is bounded whatever the child writes (line length, lines kept, nothing queued), and a
//! flooding child is neither blocked nor allowed to drown the log: above a rate its lines are counted, not logged.
//! The supervisor starts one [`pump`] per pipe; it ends with the pipe.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt};
use tracing::Level;

/// What of a longer line is passed on; the rest is cut off and counted.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines kept per component to explain a failure.
const LINES_KEPT_MAX: usize = 20;
/// One read: small, because each pipe of each component keeps such a buffer for ever.
const READ_BYTES: usize = 4 * 1024;
/// Lines of one stream logged per [`RATE_WINDOW`]; above, they are dropped and counted. Kubernetes at its chattiest
/// useful verbosity stays below.
const LINES_PER_WINDOW_MAX: u32 = 5_000;
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// The last lines of a component, over restarts.
#[derive(Clone, Debug, Default)]
pub(super) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_KEPT_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Oldest first.
    pub fn snapshot(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Which of its two pipes a component writes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Passes on what comes out of a pipe until it ends.
pub(super) async fn pump(
    component: String,
    stream: Stream,
    mut pipe: impl AsyncRead + Unpin,
    last: LastLines,
) {
    let mut buffer = vec![0; READ_BYTES].into_boxed_slice();
    let mut lines = Lines::default();
    let mut rate = Rate::new(Instant::now());
    let mut pass_on = |line: String| {
        match rate.admit(Instant::now()) {
            Admitted::Yes => log(&component, stream, &line),
            Admitted::After(dropped) => {
                warn_dropped(&component, stream, dropped);
                log(&component, stream, &line);
            }
            Admitted::No => {}
        }
        last.push(line);
    };
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => lines.feed(&buffer[..read], &mut pass_on),
            Err(error) => {
                tracing::warn!(component, ?stream, %error, "the output of the component can no longer be read");
                break;
            }
        }
    }
    lines.finish(&mut pass_on);
    if rate.dropped > 0 {
        warn_dropped(&component, stream, rate.dropped);
    }
}

fn log(component: &str, stream: Stream, line: &str) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    match level(line) {
        Level::ERROR => tracing::error!(target: "component", component, stream, "{line}"),
        Level::WARN => tracing::warn!(target: "component", component, stream, "{line}"),
        _ => tracing::info!(target: "component", component, stream, "{line}"),
    }
}

fn warn_dropped(component: &str, stream: Stream, dropped: u64) {
    tracing::warn!(component, ?stream, dropped, "the component writes too fast: lines were not logged");
}

/// The severity in front of a klog line (`E0102 15:04:05.678901 ...`); any other line is informational.
fn level(line: &str) -> Level {
    let [severity, month_and_day @ .., b' '] = line.as_bytes().get(..6).unwrap_or_default() else {
        return Level::INFO;
    };
    match severity {
        _ if !month_and_day.iter().all(u8::is_ascii_digit) => Level::INFO,
        b'E' | b'F' => Level::ERROR,
        b'W' => Level::WARN,
        _ => Level::INFO,
    }
}

/// Cuts a stream of bytes into lines. Empty lines are left out.
#[derive(Debug, Default)]
struct Lines {
    /// The line so far, up to [`LINE_BYTES_MAX`].
    line: Vec<u8>,
    /// Bytes of the line beyond that.
    cut: u64,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.extend(&bytes[..end]);
            self.finish(emit);
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(LINE_BYTES_MAX - self.line.len());
        self.line.extend_from_slice(&bytes[..kept]);
        self.cut += (bytes.len() - kept) as u64;
    }

    /// Emits what there is of a line.
    fn finish(&mut self, emit: &mut impl FnMut(String)) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end();
        match self.cut {
            0 if text.is_empty() => {}
            0 => emit(text.to_owned()),
            cut => emit(format!("{text}... ({cut} bytes cut off)")),
        }
        self.cut = 0;
        self.line.clear();
        // One long line must not hold its memory for the life of the component.
        self.line.shrink_to(READ_BYTES);
    }
}

/// How many lines may be logged now.
#[derive(Debug)]
struct Rate {
    window: Instant,
    admitted: u32,
    /// Not logged, and not reported yet.
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Admitted {
    Yes,
    /// As the first one after so many were dropped.
    After(u64),
    No,
}

impl Rate {
    fn new(now: Instant) -> Rate {
        Rate { window: now, admitted: 0, dropped: 0 }
    }

    fn admit(&mut self, now: Instant) -> Admitted {
        if now.duration_since(self.window) >= RATE_WINDOW {
            self.window = now;
            self.admitted = 0;
        }
        if self.admitted == LINES_PER_WINDOW_MAX {
            self.dropped += 1;
            return Admitted::No;
        }
        self.admitted += 1;
        match std::mem::take(&mut self.dropped) {
            0 => Admitted::Yes,
            dropped => Admitted::After(dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, &mut |line| out.push(line));
        }
        lines.finish(&mut |line| out.push(line));
        out
    }

    #[test]
    fn lines_are_joined_over_reads_and_the_last_needs_no_end() {
        assert_eq!(lines(&[b"one\r\ntw", b"o\n\n \nthr", b"ee"]), ["one", "two", "three"]);
        assert_eq!(lines(&[b"caf\xc3", b"\xa9 \xff\n"]), ["café \u{fffd}"]);
        assert_eq!(lines(&[b"", b"\n"]), [""; 0]);
    }

    #[test]
    fn long_line_is_cut_and_the_next_is_whole() {
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 5];
        let out = lines(&[&long, b"y\nnext\n"]);
        assert_eq!(out.len(), 2);
        assert!(
            out[0].ends_with(&format!("x... ({} bytes cut off)", LINE_BYTES_MAX + 6)),
            "{}",
            out[0].len()
        );
        assert_eq!(out[1], "next");
    }

    #[test]
    fn klog_severity_is_the_level_and_other_lines_are_informational() {
        for (line, expected) in [
            ("I0102 15:04:05.000000       1 a.go:1] fine", Level::INFO),
            ("W0102 15:04:05.000000       1 a.go:1] hm", Level::WARN),
            ("E1231 15:04:05.000000       1 a.go:1] bad", Level::ERROR),
            ("F0102 15:04:05.000000       1 a.go:1] worse", Level::ERROR),
            ("Error: unknown flag", Level::INFO),
            ("E01x2 no date", Level::INFO),
            ("E0102", Level::INFO),
            ("", Level::INFO),
            ("Ümläut", Level::INFO),
        ] {
            assert_eq!(level(line), expected, "{line}");
        }
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let last = LastLines::default();
        (0..LINES_KEPT_MAX + 3).for_each(|n| last.push(n.to_string()));
        let kept = last.snapshot();
        assert_eq!(kept.len(), LINES_KEPT_MAX);
        assert_eq!((kept[0].as_str(), kept[LINES_KEPT_MAX - 1].as_str()), ("3", "22"));
    }

    #[test]
    fn lines_above_the_rate_are_dropped_and_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert!((0..LINES_PER_WINDOW_MAX).all(|_| rate.admit(start) == Admitted::Yes));
        assert_eq!(rate.admit(start), Admitted::No);
        assert_eq!(rate.admit(start), Admitted::No);
        assert_eq!(rate.admit(start + RATE_WINDOW), Admitted::After(2));
        assert_eq!(rate.admit(start + RATE_WINDOW), Admitted::Yes);
    }
}
