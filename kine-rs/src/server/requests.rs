//! Requests being answered: how many there are, on a connection and altogether, and how many there may be.
//!
//! A request counts from its arrival until its response has been handed over for good, or dropped. Called by `service` for
//! every request; the number of a connection is what `pings` goes by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way on all connections, streams among them; one more is refused. Each costs a few kilobytes.
pub const REQUESTS_MAX: usize = 64 << 10;

/// Requests of all connections.
pub type All = Arc<AtomicUsize>;

/// One client connection.
#[derive(Default)]
pub struct Connection {
    all: All,
    requests: AtomicUsize,
    /// Those of its responses that hold memory of the budget of replies.
    holding: AtomicUsize,
}

impl Connection {
    pub fn new(all: All) -> Arc<Self> {
        Arc::new(Connection { all, requests: AtomicUsize::new(0), holding: AtomicUsize::new(0) })
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether one of its responses holds memory of the budget.
    pub fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Relaxed) > 0
    }

    /// Counts a request in; `None`: there are too many.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted { connection: self.clone(), holding: false };
        (self.all.fetch_add(1, Ordering::Relaxed) < REQUESTS_MAX).then_some(admitted)
    }
}

/// A request that counts until this is dropped.
pub struct Admitted {
    connection: Arc<Connection>,
    holding: bool,
}

impl Admitted {
    /// Its response holds memory from here on.
    pub fn hold(&mut self) {
        if !std::mem::replace(&mut self.holding, true) {
            self.connection.holding.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.holding {
            self.connection.holding.fetch_sub(1, Ordering::Relaxed);
        }
        self.connection.requests.fetch_sub(1, Ordering::Relaxed);
        self.connection.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_beyond_the_bound_are_not_admitted() {
        let all = All::default();
        let (one, other) = (Connection::new(all.clone()), Connection::new(all.clone()));
        let mut admitted: Vec<_> = (0..REQUESTS_MAX).map(|_| one.admit().expect("below the bound")).collect();
        assert!(other.admit().is_none() && one.admit().is_none());
        assert_eq!((one.requests(), other.requests()), (REQUESTS_MAX, 0));
        admitted.pop();
        assert!(other.admit().is_some());
        drop(admitted);
        assert_eq!((one.requests(), all.load(Ordering::Relaxed)), (0, 0));
    }
}
