//! The datastore inside another program's process: its own threads, started and stopped by plain calls.

use crate::config::Config;
use crate::server::{App, StartError};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A running datastore. Dropping it without `stop` leaves it running until the process ends, and loses nothing.
pub struct Datastore {
    addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl Datastore {
    /// Opens the store and serves it; on return the sockets accept. Blocks while the index is rebuilt.
    ///
    /// # Errors
    /// Whatever keeps the store from opening or the sockets from binding; nothing runs then.
    pub fn start(config: Config) -> Result<Datastore, StartError> {
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("kine".into())
            .spawn(move || {
                let runtime = runtime();
                runtime.block_on(async move {
                    let app = match App::bind(config).await {
                        Ok(app) => app,
                        Err(error) => return report(&started, Err(error)),
                    };
                    report(&started, Ok(app.addresses()));
                    let (grace, wanted) = tokio::sync::watch::channel(Duration::ZERO);
                    let stop = async move {
                        // A handle that was dropped never stops the store.
                        match stopped.await {
                            Ok(wanted) => grace.send_replace(wanted),
                            Err(_) => std::future::pending().await,
                        };
                    };
                    let bound = wanted.clone();
                    app.serve(stop, move || *bound.borrow()).await;
                });
            })
            .expect("a thread can be started while the process starts");
        let addresses = outcome.recv().expect("the datastore thread reports before it ends")?;
        Ok(Datastore { addresses, stop, thread })
    }

    /// TCP addresses it listens on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether it has ended without being asked to.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops accepting, lets requests under way finish for at most `grace`, closes the database. Blocks.
    pub fn stop(self, grace: Duration) {
        // An error means it has ended already.
        self.stop.send(grace).ok();
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn report<T>(started: &std::sync::mpsc::SyncSender<T>, outcome: T) {
    started.send(outcome).expect("the caller waits for the outcome");
}

/// The threads that serve requests. Blocking work is reading values from disk: a few threads are enough.
pub fn runtime() -> tokio::runtime::Runtime {
    /// Threads for reads that go to the disk or take long; more requests wait.
    const BLOCKING_THREADS_MAX: usize = 8;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("kine-serve")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .expect("a runtime can be built while the process starts")
}
