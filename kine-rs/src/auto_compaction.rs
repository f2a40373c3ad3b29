//! Compaction by the clock: when to compact, and to which revision.
//!
//! kine and etcd have three ways; all are one: every `tick` the current revision is noted; every `every` ticks the store is
//! compacted to the revision noted `window` ticks ago, but never into the newest `retain` revisions. `Plan` decides and has
//! no clock; `run` drives it and proposes ordinary compactions. What the store says to a compaction is final: no retries.

use crate::apply::Command;
use crate::auth::Caller;
use crate::store::{ProposeError, Store};
use std::collections::VecDeque;
use std::time::Duration;

/// etcd's pace when a number of revisions is kept.
const REVISION_TICK: Duration = Duration::from_secs(5 * 60);
/// etcd compacts at least this often when a time is kept.
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);
/// etcd notes the revision this often within a period.
const TICKS_PER_PERIOD: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutoCompaction {
    tick: Duration,
    /// By how much a tick varies, in percent either way.
    jitter_percent: u32,
    window: usize,
    every: usize,
    retain: i64,
}

impl AutoCompaction {
    /// kine: every interval to the revision at the interval before, keeping the newest `retain`.
    pub fn interval(interval: Duration, jitter_percent: u32, retain: i64) -> Self {
        AutoCompaction { tick: interval, jitter_percent, window: 1, every: 1, retain }
    }

    /// etcd's mode `periodic`: history of this much time is kept.
    pub fn periodic(retention: Duration) -> Self {
        let tick = retention.min(PERIOD_MAX) / TICKS_PER_PERIOD as u32;
        let window = (retention.as_nanos() / tick.as_nanos().max(1)) as usize;
        AutoCompaction { tick, jitter_percent: 0, window, every: TICKS_PER_PERIOD, retain: 0 }
    }

    /// etcd's mode `revision`: this many revisions are kept.
    pub fn revision(retain: i64) -> Self {
        AutoCompaction { tick: REVISION_TICK, jitter_percent: 0, window: 0, every: 1, retain }
    }

    fn next_tick(&self) -> Duration {
        let jitter = f64::from(self.jitter_percent) / 100.0;
        self.tick.mul_f64(1.0 + jitter * rand::random_range(-1.0..=1.0))
    }
}

/// Compacts until the store stops.
pub async fn run(options: AutoCompaction, store: Store) {
    let mut plan = Plan::new(&options);
    let compactions = &store.metrics().compactions;
    loop {
        tokio::time::sleep(options.next_tick()).await;
        let view = store.view();
        let Some(revision) = plan.tick(view.revision, view.compact_revision) else { continue };
        drop(view);
        match store.propose(Caller::Server, Command::Compact { revision }).await {
            Ok(_) => {
                compactions.success.inc();
                tracing::info!(revision, "finished auto compaction");
            }
            Err(ProposeError::Stopped) => return,
            Err(error) => {
                compactions.failure.inc();
                tracing::warn!(revision, %error, "auto compaction failed");
            }
        }
    }
}

struct Plan {
    /// Revisions of the last ticks, the oldest first; at most `window + 1`.
    noted: VecDeque<i64>,
    ticks_to_go: usize,
    window: usize,
    every: usize,
    retain: i64,
}

impl Plan {
    fn new(options: &AutoCompaction) -> Self {
        Plan {
            noted: VecDeque::new(),
            ticks_to_go: 0,
            window: options.window,
            every: options.every,
            retain: options.retain,
        }
    }

    /// One tick at `current`; the revision to compact to when it is time and there is something to compact.
    fn tick(&mut self, current: i64, compacted: i64) -> Option<i64> {
        self.noted.push_back(current);
        self.ticks_to_go = self.ticks_to_go.saturating_sub(1);
        if self.noted.len() <= self.window {
            return None;
        }
        if self.noted.len() > self.window + 1 {
            self.noted.pop_front();
        }
        if self.ticks_to_go > 0 {
            return None;
        }
        let target = self.noted[0].min(current - self.retain);
        if target <= compacted.max(0) {
            return None;
        }
        self.ticks_to_go = self.every;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_compacts_to_the_revision_of_the_tick_before_and_retains_the_newest() {
        let mut plan = Plan::new(&AutoCompaction::interval(Duration::from_secs(1), 0, 10));
        assert_eq!(plan.tick(100, 0), None);
        assert_eq!(plan.tick(105, 0), Some(95));
        assert_eq!(plan.tick(300, 95), Some(105));
        assert_eq!(plan.tick(300, 105), Some(290));
        assert_eq!(plan.tick(300, 290), None);
    }

    #[test]
    fn a_period_keeps_history_for_its_whole_time() {
        let options = AutoCompaction::periodic(Duration::from_secs(100));
        assert_eq!(options.tick, Duration::from_secs(10));
        let mut plan = Plan::new(&options);
        let targets: Vec<_> = (1..=21).map(|tick| plan.tick(tick * 10, 0)).collect();
        assert_eq!(targets[..10], [None; 10]);
        assert_eq!(targets[10], Some(10));
        assert_eq!(targets[11..20], [None; 9]);
        assert_eq!(targets[20], Some(110));
    }

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut plan = Plan::new(&AutoCompaction::revision(1000));
        assert_eq!(plan.tick(900, 0), None);
        assert_eq!(plan.tick(1500, 0), Some(500));
    }
}
