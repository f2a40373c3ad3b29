//! SQLite's own check of a large file, on a thread beside the first requests.
//!
//! A damaged file stops the process: what it answers could be wrong. Ends early when the store is closed.

use super::open::{check_integrity, connect};
use rusqlite::{InterruptHandle, OpenFlags};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

pub struct IntegrityCheck {
    closing: Arc<AtomicBool>,
    interrupt: Option<InterruptHandle>,
    thread: Option<JoinHandle<()>>,
}

impl IntegrityCheck {
    pub fn start(path: PathBuf) -> Self {
        let closing = Arc::new(AtomicBool::new(false));
        let connection = match connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
            Ok(connection) => connection,
            Err(error) => crate::backend::stop_process(&format!("database {}: {error}", path.display())),
        };
        let interrupt = connection.get_interrupt_handle();
        let told = closing.clone();
        let thread = std::thread::Builder::new()
            .name("kine-check".into())
            .spawn(move || match check_integrity(&path, &connection) {
                Ok(()) => tracing::info!(database = %path.display(), "integrity check passed"),
                Err(_) if told.load(Ordering::Acquire) => {}
                Err(error) => crate::backend::stop_process(&error.to_string()),
            })
            .expect("a thread can be started while the process starts");
        IntegrityCheck { closing, interrupt: Some(interrupt), thread: Some(thread) }
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
