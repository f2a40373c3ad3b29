//! Memory that many share: bytes are taken before they are filled, and given back once they are free again.
//!
//! Whoever finds too little left waits in line, and where the line is full is refused. What has been made already and can't
//! be refused any more is owed: the debt is paid before anybody gets more. Counts bytes only; whose they are is its users'
//! business.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// What is smaller is not worth counting: the number of requests bounds it.
pub const UNCOUNTED_BYTES_MAX: usize = 16 << 10;

pub struct Budget {
    bytes_max: usize,
    free: Semaphore,
    /// Bytes given out beyond `bytes_max`.
    owed: AtomicUsize,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// Bytes of a budget, given back when dropped.
pub struct Taken {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Nothing is left, and too many wait for it already; or it is more than there ever is.
#[derive(Debug, thiserror::Error)]
#[error("the memory set aside for this is in use")]
pub struct Exhausted;

impl Budget {
    pub fn new(bytes_max: usize, waiting_max: usize) -> Arc<Self> {
        Arc::new(Budget {
            bytes_max,
            free: Semaphore::new(bytes_max),
            owed: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_max,
        })
    }

    /// All there is; more than this is never had.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Taken> {
        self.free.try_acquire_many(u32::try_from(bytes).ok()?).ok()?.forget();
        Some(Taken { budget: self.clone(), bytes })
    }

    /// Waits for its turn.
    pub async fn take(self: &Arc<Self>, bytes: usize) -> Result<Taken, Exhausted> {
        if let Some(taken) = self.try_take(bytes) {
            return Ok(taken);
        }
        let wanted = u32::try_from(bytes).ok().filter(|_| bytes <= self.bytes_max).ok_or(Exhausted)?;
        let _place = Place::in_line(self).ok_or(Exhausted)?;
        self.free.acquire_many(wanted).await.expect("the semaphore is never closed").forget();
        Ok(Taken { budget: self.clone(), bytes })
    }

    /// Takes what has been filled already, whether or not it is left.
    pub fn owe(self: &Arc<Self>, bytes: usize) -> Taken {
        let found = self.free.forget_permits(bytes);
        self.owed.fetch_add(bytes - found, Ordering::Relaxed);
        Taken { budget: self.clone(), bytes }
    }

    /// Whether more was given out than there is.
    pub fn is_overdrawn(&self) -> bool {
        self.owed.load(Ordering::Relaxed) > 0
    }

    fn give_back(&self, bytes: usize) {
        let pay = |owed: usize| Some(owed.saturating_sub(bytes));
        let owed =
            self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).unwrap_or_else(|owed| owed);
        self.free.add_permits(bytes - owed.min(bytes));
    }
}

impl Taken {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is above `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        self.budget.give_back(spare);
    }

    /// Owes what is missing to `bytes`.
    pub fn grow(&mut self, bytes: usize) {
        let mut more = self.budget.owe(bytes.saturating_sub(self.bytes));
        self.bytes += std::mem::take(&mut more.bytes);
    }
}

/// Memory that grows with what it is for; what is small is not counted.
#[derive(Default)]
pub struct Covered(Option<Taken>);

impl Covered {
    /// Whether it is more than what is small.
    pub fn is_counted(&self) -> bool {
        self.0.is_some()
    }

    /// Takes what is missing to `bytes`.
    pub fn cover(&mut self, budget: &Arc<Budget>, bytes: usize) -> Result<(), Exhausted> {
        let covered = self.0.as_ref().map_or(UNCOUNTED_BYTES_MAX, |taken| taken.bytes);
        if bytes <= covered {
            return Ok(());
        }
        let had = self.0.as_ref().map_or(0, |taken| taken.bytes);
        let mut more = budget.try_take(bytes - had).ok_or(Exhausted)?;
        more.bytes += self.0.as_mut().map_or(0, |taken| std::mem::take(&mut taken.bytes));
        self.0 = Some(more);
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// One who waits.
struct Place<'a>(&'a Budget);

impl<'a> Place<'a> {
    fn in_line(budget: &'a Budget) -> Option<Self> {
        let place = Place(budget);
        (budget.waiting.fetch_add(1, Ordering::Relaxed) < budget.waiting_max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_does_not_fit_waits_in_line_and_a_full_line_refuses() {
        let budget = Budget::new(100, 1);
        let first = budget.try_take(60).expect("there is enough");
        assert!(budget.try_take(41).is_none());
        let mut second = pin!(budget.take(50));
        assert!(poll(second.as_mut()).is_pending());
        assert!(matches!(poll(pin!(budget.take(50))), Poll::Ready(Err(Exhausted))));
        assert!(budget.try_take(10).is_none(), "nobody jumps the line");
        drop(first);
        assert!(matches!(poll(second), Poll::Ready(Ok(_))));
        assert!(matches!(poll(pin!(budget.take(101))), Poll::Ready(Err(Exhausted))));
        assert!(budget.try_take(100).is_some(), "all was given back");
    }

    #[test]
    fn a_debt_is_paid_before_anybody_gets_more() {
        let budget = Budget::new(100, 1);
        let (first, owed) = (budget.try_take(60).expect("there is enough"), budget.owe(70));
        assert!(budget.is_overdrawn());
        drop(first);
        assert!(!budget.is_overdrawn());
        assert!(budget.try_take(31).is_none());
        assert!(budget.try_take(30).is_some());
        drop(owed);
        assert!(budget.try_take(100).is_some());
    }

    #[test]
    fn what_is_taken_can_change() {
        let budget = Budget::new(100, 1);
        let mut taken = budget.try_take(80).expect("there is enough");
        taken.shrink(30);
        let other = budget.try_take(70).expect("the rest was given back");
        taken.grow(50);
        assert!(budget.is_overdrawn());
        drop(taken);
        assert!(budget.try_take(30).is_some() && !budget.is_overdrawn());
        drop(other);
        assert!(budget.try_take(100).is_some());
    }

    #[test]
    fn what_grows_is_counted_from_where_it_is_no_longer_small() {
        let budget = Budget::new(2 * UNCOUNTED_BYTES_MAX, 1);
        let mut covered = Covered::default();
        covered.cover(&budget, UNCOUNTED_BYTES_MAX).expect("it is small");
        assert!(budget.try_take(2 * UNCOUNTED_BYTES_MAX).is_some());
        covered.cover(&budget, UNCOUNTED_BYTES_MAX + 1).expect("there is enough");
        covered.cover(&budget, 2 * UNCOUNTED_BYTES_MAX).expect("there is just enough");
        assert!(budget.try_take(1).is_none());
        assert!(covered.cover(&budget, 2 * UNCOUNTED_BYTES_MAX + 1).is_err());
        drop(covered);
        assert!(budget.try_take(2 * UNCOUNTED_BYTES_MAX).is_some());
    }

    #[test]
    fn whoever_gives_up_waiting_leaves_the_line() {
        let budget = Budget::new(10, 1);
        let all = budget.try_take(10).expect("there is enough");
        for _ in 0..3 {
            assert!(poll(pin!(budget.take(10))).is_pending());
        }
        drop(all);
        assert!(budget.try_take(10).is_some());
    }
}
