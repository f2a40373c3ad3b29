//! Checks that take too long to hold up the first requests, on a thread beside them: SQLite's own of a large file, and of
//! an index that was read from its image, whether it is that of the rows.
//!
//! What is damaged stops the process: what it answers could be wrong. Ends early when the store is closed.

use super::index::{IndexFiles, Unusable, compare};
use super::open::{check_integrity, connect};
use crate::backend::{background, stop_process};
use crate::mvcc::State;
use rusqlite::{Connection, InterruptHandle, OpenFlags};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// All pages of the file are to be checked.
pub(super) struct Pages;

/// The index as it was read, and where its image is.
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) files: IndexFiles,
}

pub struct IntegrityCheck {
    closing: Arc<AtomicBool>,
    interrupt: Option<InterruptHandle>,
    thread: Option<JoinHandle<()>>,
}

impl IntegrityCheck {
    /// `None` when there is nothing to check.
    pub(super) fn start(path: PathBuf, pages: Option<Pages>, index: Option<Loaded>) -> Option<Self> {
        if pages.is_none() && index.is_none() {
            return None;
        }
        let closing = Arc::new(AtomicBool::new(false));
        let connection = match connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
            Ok(connection) => connection,
            Err(error) => stop_process(&format!("database {}: {error}", path.display())),
        };
        let interrupt = connection.get_interrupt_handle();
        let told = closing.clone();
        let run = move || {
            background::yield_to_others();
            let stop = |reason: &str| {
                if !told.load(Ordering::Acquire) {
                    stop_process(reason);
                }
            };
            if let Some(Pages) = pages {
                match check_integrity(&path, &connection) {
                    Ok(()) => tracing::info!(database = %path.display(), "integrity check passed"),
                    Err(error) => return stop(&error.to_string()),
                }
            }
            if let Some(index) = index {
                check_index(&connection, &index, stop);
            }
        };
        let thread = std::thread::Builder::new()
            .name("kine-check".into())
            .spawn(run)
            .expect("a thread can be started while the process starts");
        Some(IntegrityCheck { closing, interrupt: Some(interrupt), thread: Some(thread) })
    }
}

/// The next start must not find an image that is wrong.
fn check_index(connection: &Connection, index: &Loaded, stop: impl Fn(&str)) {
    let Loaded { state, files } = index;
    let file = files.path().display();
    match compare(connection, state) {
        Ok(()) => tracing::info!(%file, "the index is that of the rows"),
        Err(Unusable::Sqlite(error)) => stop(&format!("index {file} can't be checked: {error}")),
        Err(why) => {
            files.tidy(false);
            stop(&format!("index {file}: {why}; it was removed, and the next start reads all rows"));
        }
    }
}

impl Drop for IntegrityCheck {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        if let Some(interrupt) = self.interrupt.take() {
            interrupt.interrupt();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the integrity check does not panic");
        }
    }
}
