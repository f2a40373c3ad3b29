//! Lines on their way to a console that may not be read: a terminal that was stopped, a pipe that is full.
//!
//! A thread writes them in order. Whoever logs hands a line over and goes on, so that neither the datastore nor a component
//! whose output is passed on ever waits for a reader. Two bounds: of lines that wait, beyond which lines are lost and their
//! number is told as soon as there is a reader again; and of the time that a line of level error waits for itself to be
//! written, as the process may end right after it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Of a hundred bytes or two, as a rule: a minute of a busy control plane, in a megabyte.
const LINES_MAX: usize = 4096;
/// A console that takes longer is not read.
const WRITTEN_MAX: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Queue {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

struct Line {
    bytes: Vec<u8>,
    /// Dropped once the line is written, for whoever waits for that.
    _written: Option<SyncSender<()>>,
}

impl Queue {
    pub fn start(output: impl Write + Send + 'static) -> Self {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let untold = lost.clone();
        std::thread::Builder::new()
            .name("k0s-console".into())
            .spawn(move || write_all(&waiting, output, &untold))
            .expect("a thread can be started while the process starts");
        Queue { lines, lost }
    }

    fn push(&self, bytes: Vec<u8>) -> bool {
        self.send(Line { bytes, _written: None })
    }

    fn push_and_wait(&self, bytes: Vec<u8>) {
        let (written, is_written) = sync_channel(0);
        if self.send(Line { bytes, _written: Some(written) }) {
            is_written.recv_timeout(WRITTEN_MAX).ok();
        }
    }

    fn send(&self, line: Line) -> bool {
        let sent = self.lines.try_send(line).is_ok();
        if !sent {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Waits for everything before to be written.
    pub fn flush(&self) {
        self.push_and_wait(Vec::new());
    }
}

/// A console that went away must not take k0s with it: there is nobody left to tell.
fn write_all(waiting: &Receiver<Line>, mut output: impl Write, lost: &AtomicU64) {
    while let Ok(line) = waiting.recv() {
        output.write_all(&line.bytes).and_then(|()| output.flush()).ok();
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            writeln!(output, "k0s: the console was not read, so {lost} log lines were lost").ok();
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer { queue: self, waits: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Writer<'a> {
        Writer { queue: self, waits: *metadata.level() == Level::ERROR }
    }
}

/// Takes whole lines: `tracing_subscriber` writes an event at once.
pub struct Writer<'a> {
    queue: &'a Queue,
    waits: bool,
}

impl Write for Writer<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.waits {
            self.queue.push_and_wait(line.to_vec());
        } else {
            self.queue.push(line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_is_not_read_holds_nobody_up_and_is_told_what_it_missed() {
        let (reader, writer) = std::io::pipe().unwrap();
        let queue = Queue::start(writer);
        // More than the queue and a pipe (64 KiB) hold together.
        let sent = 3 * LINES_MAX;
        let taken = (0..sent).filter(|number| queue.push(format!("{number:<99}\n").into_bytes())).count();
        assert!(taken < sent);
        let read = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
        let mut late = 0;
        while !queue.push(b"last\n".to_vec()) {
            late += 1;
        }
        // The thread ends with the queue, and so does the pipe.
        drop(queue);
        let text = read.join().unwrap();
        let (notices, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("k0s: "));
        let told = notices.iter().map(|notice| {
            let number = notice.split(' ').find_map(|word| word.parse::<usize>().ok());
            number.expect("a number")
        });
        assert_eq!(told.sum::<usize>(), sent - taken + late);
        let (last, numbers) = lines.split_last().unwrap();
        let numbers: Vec<usize> = numbers.iter().map(|line| line.trim().parse().unwrap()).collect();
        assert_eq!((*last, numbers.len(), numbers.is_sorted()), ("last", taken, true));
    }

    #[test]
    fn what_was_logged_is_written_when_a_flush_returns() {
        let (reader, writer) = std::io::pipe().unwrap();
        let queue = Queue::start(writer);
        queue.push(b"one\n".to_vec());
        queue.flush();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(4));
        queue.push_and_wait(b"two\n".to_vec());
        assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(4));
    }
}
