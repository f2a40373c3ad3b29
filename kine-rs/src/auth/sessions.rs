//! Logins with simple tokens: who a token stands for, and until when.
//!
//! In memory only: a restart ends all of them. Time is not part of the state machine, so a token is added and dropped by
//! the driver that applied the login or the change that ends it; the clock comes in as an argument. A token lives for the
//! time to live after its last use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// etcd's default of `--auth-token-ttl`.
pub const TTL_DEFAULT: Duration = Duration::from_secs(300);
/// Tokens that are kept before those that have expired are looked for.
const SWEEP_MIN: usize = 1024;

/// Logins that a change of the accounts ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    All,
    /// Those of one user.
    Of(String),
}

/// What an ordered command does to the logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionChange {
    Begin { token: String, user: String },
    End(Ended),
}

pub struct Sessions {
    ttl: Duration,
    /// Whether auth is on: one load for every request.
    enforced: AtomicBool,
    table: Mutex<Table>,
}

struct Table {
    by_token: HashMap<String, Session>,
    sweep_at: usize,
}

struct Session {
    user: Arc<str>,
    until: Instant,
}

impl Sessions {
    pub fn new(ttl: Duration, enforced: bool) -> Self {
        let table = Table { by_token: HashMap::new(), sweep_at: SWEEP_MIN };
        Sessions { ttl, enforced: AtomicBool::new(enforced), table: Mutex::new(table) }
    }

    /// Whether callers have to say who they are.
    pub fn enforced(&self) -> bool {
        self.enforced.load(Ordering::Acquire)
    }

    pub fn enforce(&self, enforced: bool) {
        self.enforced.store(enforced, Ordering::Release);
    }

    pub fn apply(&self, change: SessionChange, now: Instant) {
        match change {
            SessionChange::Begin { token, user } => self.begin(token, &user, now),
            SessionChange::End(ended) => self.end(&ended),
        }
    }

    fn begin(&self, token: String, user: &str, now: Instant) {
        let mut table = self.lock();
        if table.by_token.len() >= table.sweep_at {
            table.by_token.retain(|_, session| session.until > now);
            table.sweep_at = SWEEP_MIN.max(2 * table.by_token.len());
        }
        table.by_token.insert(token, Session { user: user.into(), until: now + self.ttl });
    }

    /// Whose token it is; using it renews it.
    pub fn user(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let mut table = self.lock();
        let session = table.by_token.get_mut(token)?;
        if session.until <= now {
            table.by_token.remove(token);
            return None;
        }
        session.until = now + self.ttl;
        Some(session.user.clone())
    }

    fn end(&self, ended: &Ended) {
        let mut table = self.lock();
        match ended {
            Ended::All => table.by_token.clear(),
            Ended::Of(user) => table.by_token.retain(|_, session| *session.user != **user),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the session table panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_on_while_it_is_used() {
        let sessions = Sessions::new(Duration::from_secs(10), true);
        let start = Instant::now();
        sessions.begin("t".into(), "alice", start);
        for second in [9, 18, 27] {
            assert_eq!(sessions.user("t", start + Duration::from_secs(second)).as_deref(), Some("alice"));
        }
        assert_eq!(sessions.user("t", start + Duration::from_secs(37)), None);
        assert_eq!(sessions.user("other", start), None);
    }

    #[test]
    fn a_change_ends_the_logins_it_names() {
        let sessions = Sessions::new(TTL_DEFAULT, true);
        let now = Instant::now();
        sessions.begin("a1".into(), "alice", now);
        sessions.begin("a2".into(), "alice", now);
        sessions.begin("b".into(), "bob", now);
        sessions.end(&Ended::Of("alice".into()));
        assert_eq!([sessions.user("a1", now), sessions.user("a2", now)], [None, None]);
        assert_eq!(sessions.user("b", now).as_deref(), Some("bob"));
        sessions.end(&Ended::All);
        assert_eq!(sessions.user("b", now), None);
    }

    #[test]
    fn tokens_that_were_forgotten_do_not_pile_up() {
        let sessions = Sessions::new(Duration::from_secs(1), true);
        let start = Instant::now();
        for number in 0..10 * SWEEP_MIN {
            sessions.begin(number.to_string(), "alice", start + Duration::from_millis(10 * number as u64));
        }
        assert!(sessions.lock().by_token.len() <= 2 * SWEEP_MIN);
    }
}
