//! Repeats requests and times them.
//!
//! A [`Caller`] is one client with its own state; each runs in a task of its own and has one request under way at most. In a
//! closed loop the next request starts when the last has been answered. In an open loop requests have a due time each, whether
//! or not the server keeps up, and latency counts from that time: a server that stalls pays for everyone who had to wait
//! (no coordinated omission). Only requests that start in the measuring window count, and the server's [`Usage`] is taken over
//! the same window. Failed requests count separately and are not fast answers; what they mean is the caller's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use crate::process::{Process, ProcessError, Usage};

/// Longest latency told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(600);
const SIGNIFICANT_DIGITS: u8 = 3;
/// A caller whose requests fail this often in a row gives up: the server is gone or refuses them all.
const FAILURES_IN_A_ROW_MAX: u32 = 100;
/// A due time nearer than this is waited for by yielding: tokio's timer has a grain of 1 ms.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

pub trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

#[derive(Debug, Clone, Copy)]
pub enum Pace {
    Closed,
    Open { per_second: f64 },
}

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub pace: Pace,
    pub warm_up: Duration,
    pub duration: Duration,
}

#[derive(Debug)]
pub struct Outcome {
    /// Requests that succeeded.
    pub operations: u64,
    pub failures: u64,
    pub first_failure: Option<Status>,
    pub elapsed: Duration,
    /// In nanoseconds.
    pub latency: Histogram<u64>,
    /// Of the server, over the measuring window.
    pub usage: Option<Usage>,
    /// Of this process, over the same window: near one core, and it is the client that was measured.
    pub client_cpu: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("a request failed: {} ({:?})", .0.message(), .0.code())]
    Request(Box<Status>),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("no request was answered in {0:?}")]
    Nothing(Duration),
}

impl From<Status> for LoadError {
    fn from(status: Status) -> Self {
        Self::Request(Box::new(status))
    }
}

impl Outcome {
    /// Refuses an outcome with failures: a server that answers errors fast is not fast.
    pub fn flawless(self) -> Result<Self, LoadError> {
        match self.first_failure {
            Some(failure) => Err(failure.into()),
            None => Ok(self),
        }
    }

    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    pub fn latency_at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(quantile))
    }

    pub fn server_cpu_per_operation(&self) -> Option<Duration> {
        Some(self.usage?.cpu.div_f64(self.operations as f64))
    }

    pub fn written_bytes_per_operation(&self) -> Option<f64> {
        Some(self.usage?.written_bytes as f64 / self.operations as f64)
    }

    /// Share of one core that the load generator used.
    pub fn client_load(&self) -> f64 {
        self.client_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, SIGNIFICANT_DIGITS)
        .expect("constant bounds are valid")
}

/// When the measuring window opens and closes, and whose turn it is in an open loop.
struct Schedule {
    pace: Pace,
    start: Instant,
    opens: Instant,
    closes: Instant,
    next: AtomicU64,
}

impl Schedule {
    /// Due time of the caller's next request, or `None` when the window has closed.
    async fn next(&self) -> Option<Instant> {
        let due = match self.pace {
            Pace::Closed => Instant::now(),
            Pace::Open { per_second } => {
                let turn = self.next.fetch_add(1, Ordering::Relaxed);
                self.start + Duration::from_secs_f64(turn as f64 / per_second)
            }
        };
        if due >= self.closes {
            return None;
        }
        wait_until(due).await;
        Some(due)
    }
}

async fn wait_until(due: Instant) {
    if due > Instant::now() + TIMER_GRAIN {
        tokio::time::sleep_until(due - TIMER_GRAIN).await;
    }
    while due > Instant::now() {
        tokio::task::yield_now().await;
    }
}

/// Runs all callers to the end of the plan.
pub async fn run<C: Caller>(
    plan: Plan,
    server: Option<Process>,
    callers: Vec<C>,
) -> Result<Outcome, LoadError> {
    let start = Instant::now();
    let opens = start + plan.warm_up;
    let closes = opens + plan.duration;
    let schedule = Arc::new(Schedule { pace: plan.pace, start, opens, closes, next: AtomicU64::new(0) });

    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn(repeat(caller, schedule.clone()));
    }
    let client = Process { pid: std::process::id() };
    let usage = || server.map(Process::usage).transpose();

    tokio::time::sleep_until(opens).await;
    let (before, client_before) = (usage()?, client.cpu()?);
    tokio::time::sleep_until(closes).await;
    let (after, client_after) = (usage()?, client.cpu()?);
    let elapsed = opens.elapsed();

    let (mut latency, mut failures, mut first_failure) = (new_histogram(), 0, None);
    while let Some(joined) = tasks.join_next().await {
        let part = joined.expect("callers do not panic")?;
        latency.add(part.latency).expect("equal bounds");
        failures += part.failures;
        first_failure = first_failure.or(part.first_failure);
    }
    if latency.is_empty() {
        return Err(LoadError::Nothing(plan.duration));
    }
    let usage = before.zip(after).map(|(before, after)| Usage {
        cpu: after.cpu - before.cpu,
        written_bytes: after.written_bytes - before.written_bytes,
    });
    let (operations, client_cpu) = (latency.len(), client_after - client_before);
    Ok(Outcome { operations, failures, first_failure, elapsed, latency, usage, client_cpu })
}

/// What one caller contributes to the outcome.
struct Part {
    latency: Histogram<u64>,
    failures: u64,
    first_failure: Option<Status>,
}

async fn repeat<C: Caller>(mut caller: C, schedule: Arc<Schedule>) -> Result<Part, Status> {
    let mut part = Part { latency: new_histogram(), failures: 0, first_failure: None };
    let mut failures_in_a_row = 0;
    while let Some(due) = schedule.next().await {
        match caller.call().await {
            Ok(()) => {
                failures_in_a_row = 0;
                if due >= schedule.opens {
                    part.latency.saturating_record(due.elapsed().as_nanos() as u64);
                }
            }
            Err(failure) => {
                failures_in_a_row += 1;
                if failures_in_a_row == FAILURES_IN_A_ROW_MAX {
                    return Err(failure);
                }
                part.failures += 1;
                part.first_failure.get_or_insert(failure);
            }
        }
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers at once, except that the third call takes `stall`.
    struct Stalling {
        calls: u32,
        stall: Duration,
    }

    impl Caller for Stalling {
        async fn call(&mut self) -> Result<(), Status> {
            self.calls += 1;
            if self.calls == 3 {
                tokio::time::sleep(self.stall).await;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_open_loop_charges_a_stall_to_everyone_who_waited() {
        let plan = Plan {
            pace: Pace::Open { per_second: 1000.0 },
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(300),
        };
        let caller = Stalling { calls: 0, stall: Duration::from_millis(150) };
        let outcome = run(plan, None, vec![caller]).await.unwrap();
        assert_eq!(outcome.operations, 300);
        assert!(outcome.latency_at(0.7) > Duration::from_millis(30), "{:?}", outcome.latency_at(0.7));
    }

    /// Fails every n-th call.
    struct Failing {
        calls: u32,
        nth: u32,
    }

    impl Caller for Failing {
        async fn call(&mut self) -> Result<(), Status> {
            self.calls += 1;
            tokio::task::yield_now().await;
            if self.calls.is_multiple_of(self.nth) { Err(Status::unavailable("gone")) } else { Ok(()) }
        }
    }

    const BRIEF: Plan =
        Plan { pace: Pace::Closed, warm_up: Duration::ZERO, duration: Duration::from_millis(20) };

    #[tokio::test]
    async fn failures_are_counted_apart_from_operations() {
        let outcome = run(BRIEF, None, vec![Failing { calls: 0, nth: 2 }]).await.unwrap();
        assert!(outcome.failures.abs_diff(outcome.operations) <= 1, "{outcome:?}");
        assert!(outcome.flawless().unwrap_err().to_string().contains("gone"));
    }

    #[tokio::test]
    async fn a_server_that_fails_every_request_ends_the_run() {
        let failed = run(BRIEF, None, vec![Failing { calls: 0, nth: 1 }]).await.unwrap_err();
        assert!(matches!(failed, LoadError::Request(_)), "{failed}");
    }
}
