//! Deadlines of leases: who decides when a lease has expired.
//!
//! Time is not part of the state machine. The `Lessor` holds a deadline per lease in memory, renews it on keepalive without
//! any write, and names the leases that are due; the driver then orders an ordinary revoke for each. After a restart every
//! lease starts with its full time to live. No I/O; the clock comes in as an argument.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// etcd's bounds: 1.5 election timeouts rounded up, and its `MaxLeaseTTL`.
pub const TTL_MIN_SECONDS: i64 = 2;
pub const TTL_MAX_SECONDS: i64 = 9_000_000_000;

/// Most leases named by one `due`, so that a pile of expiries does not hold up other commands.
const DUE_MAX: usize = 512;
/// When a due lease is named again if its revoke has not been applied by then.
const RETRY_AFTER: Duration = Duration::from_secs(3);

#[derive(Default)]
pub struct Lessor {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    leases: HashMap<i64, Deadline>,
    by_deadline: BTreeSet<(Instant, i64)>,
    closed: bool,
}

struct Deadline {
    ttl: i64,
    at: Instant,
    expired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    pub granted: i64,
    /// Whole seconds left, at least 0.
    pub seconds: i64,
}

impl Lessor {
    pub fn grant(&self, id: i64, ttl: i64, now: Instant) {
        let mut table = self.lock();
        table.remove(id);
        let at = now + Duration::from_secs(ttl as u64);
        table.leases.insert(id, Deadline { ttl, at, expired: false });
        table.by_deadline.insert((at, id));
        if table.by_deadline.first() == Some(&(at, id)) {
            self.changed.notify_one();
        }
    }

    pub fn revoke(&self, id: i64) {
        self.lock().remove(id);
    }

    /// Renews a lease; its time to live, or `None` when it does not exist or has expired.
    pub fn renew(&self, id: i64, now: Instant) -> Option<i64> {
        let mut table = self.lock();
        let lease = table.leases.get_mut(&id).filter(|lease| !lease.expired)?;
        let (ttl, before) = (lease.ttl, lease.at);
        lease.at = now + Duration::from_secs(ttl as u64);
        let after = lease.at;
        table.by_deadline.remove(&(before, id));
        table.by_deadline.insert((after, id));
        Some(ttl)
    }

    pub fn remaining(&self, id: i64, now: Instant) -> Option<Remaining> {
        let table = self.lock();
        let lease = table.leases.get(&id)?;
        let left = if lease.expired { Duration::ZERO } else { lease.at.saturating_duration_since(now) };
        Some(Remaining { granted: lease.ttl, seconds: left.as_secs() as i64 })
    }

    /// All leases, the next to expire first.
    pub fn ids(&self) -> Vec<i64> {
        self.lock().by_deadline.iter().map(|(_, id)| *id).collect()
    }

    /// Blocks until leases are due and names them; `None` after `close`. A lease named once can't be renewed any more.
    pub fn wait_due(&self) -> Option<Vec<i64>> {
        let mut table = self.lock();
        loop {
            if table.closed {
                return None;
            }
            let now = Instant::now();
            let due = table.take_due(now);
            if !due.is_empty() {
                return Some(due);
            }
            table = match table.by_deadline.first() {
                Some((at, _)) => {
                    let wait = at.saturating_duration_since(now);
                    self.changed.wait_timeout(table, wait).expect("no holder of the lease table panics").0
                }
                None => self.changed.wait(table).expect("no holder of the lease table panics"),
            };
        }
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the lease table panics")
    }
}

impl Table {
    fn remove(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.by_deadline.remove(&(lease.at, id));
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<i64> {
        let mut due = Vec::new();
        while due.len() < DUE_MAX
            && let Some(&(at, id)) = self.by_deadline.first()
            && at <= now
        {
            self.by_deadline.pop_first();
            let lease = self.leases.get_mut(&id).expect("the order lists what the table holds");
            lease.expired = true;
            lease.at = now + RETRY_AFTER;
            self.by_deadline.insert((lease.at, id));
            due.push(id);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_due_at_its_deadline_and_not_before() {
        let lessor = Lessor::default();
        let start = Instant::now();
        lessor.grant(7, 10, start);
        assert_eq!(lessor.lock().take_due(start + Duration::from_secs(9)), Vec::<i64>::new());
        assert_eq!(lessor.renew(7, start + Duration::from_secs(9)), Some(10));
        assert_eq!(lessor.lock().take_due(start + Duration::from_secs(18)), Vec::<i64>::new());
        assert_eq!(lessor.lock().take_due(start + Duration::from_secs(19)), vec![7]);
    }

    #[test]
    fn an_expired_lease_cannot_be_renewed_and_is_named_again_until_revoked() {
        let lessor = Lessor::default();
        let start = Instant::now();
        lessor.grant(7, 2, start);
        let later = start + Duration::from_secs(2);
        assert_eq!(lessor.lock().take_due(later), vec![7]);
        assert_eq!(lessor.renew(7, later), None);
        assert_eq!(lessor.lock().take_due(later), Vec::<i64>::new());
        assert_eq!(lessor.lock().take_due(later + RETRY_AFTER), vec![7]);
        lessor.revoke(7);
        assert_eq!(lessor.lock().take_due(later + 2 * RETRY_AFTER), Vec::<i64>::new());
        assert_eq!(lessor.remaining(7, later), None);
    }
}
