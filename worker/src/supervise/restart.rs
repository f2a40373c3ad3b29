//! When a component that ended is started again: pure arithmetic over [`Backoff`].
//!
//! Keeps: the delay never leaves `[first * 3/4, max]`, and a component that was ready once is never given up.
//! The clock and the dice are the caller's.

use std::time::Duration;

use super::spec::Backoff;

/// The largest part of a delay that chance may take away.
const JITTER: f64 = 0.25;

/// The restart history of one component.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: Backoff,
    /// Ends since the component was last healthy.
    in_a_row: u32,
    ever_ready: bool,
}

/// How one incarnation of the process went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub lasted: Duration,
    pub was_ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    RestartIn(Duration),
    GiveUp,
}

impl Restarts {
    pub fn new(policy: Backoff) -> Restarts {
        Restarts { policy, in_a_row: 0, ever_ready: false }
    }

    /// Ends in a row, the last one included.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Decides after a run has ended. `dice` is uniform in `0.0..1.0`.
    pub fn after(&mut self, run: Run, dice: f64) -> Verdict {
        self.ever_ready |= run.was_ready;
        if run.was_ready && run.lasted >= self.policy.healthy_after {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        if !self.ever_ready && self.in_a_row >= self.policy.starts_max {
            return Verdict::GiveUp;
        }
        let doublings = (self.in_a_row - 1).min(31);
        let delay = self.policy.first.saturating_mul(1 << doublings).min(self.policy.max);
        Verdict::RestartIn(delay.mul_f64(1.0 - JITTER * dice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Backoff = Backoff {
        first: Duration::from_millis(100),
        max: Duration::from_secs(1),
        healthy_after: Duration::from_secs(60),
        starts_max: 3,
    };
    const SHORT: Run = Run { lasted: Duration::from_millis(1), was_ready: false };
    const CRASHED_WHEN_READY: Run = Run { lasted: Duration::from_secs(2), was_ready: true };
    const HEALTHY: Run = Run { lasted: Duration::from_secs(61), was_ready: true };

    fn delay_ms(verdict: Verdict) -> u128 {
        match verdict {
            Verdict::RestartIn(delay) => delay.as_millis(),
            Verdict::GiveUp => panic!("gave up"),
        }
    }

    #[test]
    fn delay_doubles_to_its_bound_and_healthy_time_resets_it() {
        let mut restarts = Restarts::new(POLICY);
        let delays: Vec<_> = (0..6).map(|_| delay_ms(restarts.after(CRASHED_WHEN_READY, 0.0))).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay_ms(restarts.after(HEALTHY, 0.0)), 100);
        assert_eq!(delay_ms(restarts.after(SHORT, 0.0)), 200);
    }

    #[test]
    fn jitter_takes_at_most_a_quarter() {
        assert_eq!(delay_ms(Restarts::new(POLICY).after(SHORT, 0.999_999)), 75);
    }

    #[test]
    fn never_ready_component_is_given_up_and_a_once_ready_one_is_not() {
        let mut never = Restarts::new(POLICY);
        let verdicts: Vec<_> = (0..3).map(|_| never.after(SHORT, 0.0)).collect();
        assert_eq!(verdicts[2], Verdict::GiveUp);
        assert!(!verdicts[..2].contains(&Verdict::GiveUp));

        let mut once = Restarts::new(POLICY);
        once.after(CRASHED_WHEN_READY, 0.0);
        assert!((0..10_000).all(|_| once.after(SHORT, 0.5) != Verdict::GiveUp));
    }
}
