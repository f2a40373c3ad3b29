//! Moves committed pages from the WAL into the database file, on a thread of its own, so that no commit waits for it.
//!
//! A passive checkpoint blocks neither the writer nor readers. A failed write or fsync stops the process: what is on disk
//! is then unknown.

use super::open::connect;
use rusqlite::{Connection, OpenFlags};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

pub struct Checkpointer {
    /// Holds at most one request: asking again while one waits changes nothing. `None` ends the thread.
    ask: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub fn start(path: PathBuf) -> Self {
        let (ask, asked) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("kine-checkpoint".into())
            .spawn(move || run(&path, &asked))
            .expect("a thread can be started while the process starts");
        Checkpointer { ask: Some(ask), thread: Some(thread) }
    }

    pub fn ask(&self) {
        // A full channel means a request is waiting already; a closed one that the thread has stopped the process.
        if let Some(ask) = &self.ask {
            ask.try_send(()).ok();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the checkpoint thread does not panic");
        }
    }
}

fn run(path: &std::path::Path, asked: &Receiver<()>) {
    let mut connection: Option<Connection> = None;
    while asked.recv().is_ok() {
        let result = match &connection {
            Some(open) => checkpoint(open),
            None => connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(|open| {
                open.pragma_update(None, "synchronous", "FULL")?;
                let result = checkpoint(&open);
                connection = Some(open);
                result
            }),
        };
        if let Err(error) = result
            && error.sqlite_error_code() != Some(rusqlite::ErrorCode::DiskFull)
        {
            crate::backend::stop_process(&format!("the database could not be checkpointed: {error}"));
        }
    }
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
