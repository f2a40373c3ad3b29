//! What the server counts and measures, under etcd's and kine's names.
//!
//! Everything that is counted on the way of a request is a handle resolved at start (an atomic); what is a property of the
//! state is read from it when somebody asks (`scrape`). A metric of etcd that has no meaning for this store is absent,
//! never a made-up number. One set belongs to one server.

pub mod grpc;
pub mod requests;
pub mod rows;

mod process;
mod scrape;

use grpc::Grpc;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use proto::etcdserverpb::{ResponseOp, response_op::Response as Reply};
use requests::Requests;
use rows::Rows;

pub struct Metrics {
    registry: Registry,
    pub grpc: Grpc,
    pub requests: Requests,
    pub rows: Rows,
    pub operations: Operations,
    pub leases: Leases,
    pub compactions: Compactions,
    pub upkeep: Upkeep,
    pub proposals_failed: IntCounter,
    pub health: Health,
}

/// Operations on keys, those inside transactions one by one.
pub struct Operations {
    pub ranges: IntCounter,
    pub puts: IntCounter,
    pub deletes: IntCounter,
    pub txns: IntCounter,
    /// Events sent to watchers.
    pub events: IntCounter,
}

/// Work beside requests.
pub struct Upkeep {
    pub snapshot_seconds: Histogram,
    pub hash_seconds: Histogram,
    pub hash_rev_seconds: Histogram,
    /// From a compaction until its rows are gone.
    pub compaction_ms: Histogram,
    /// One step of taking compacted versions out of the index.
    pub index_compaction_pause_ms: Histogram,
}

pub struct Leases {
    pub granted: IntCounter,
    pub revoked: IntCounter,
    pub renewed: IntCounter,
    pub expired: IntCounter,
    pub ttl_seconds: Histogram,
}

/// Compactions by the clock, under kine's name.
pub struct Compactions {
    pub success: IntCounter,
    pub failure: IntCounter,
}

/// Questions after this server's health: at `/health`, and at the probes by check.
pub struct Health {
    pub success: IntCounter,
    pub failure: IntCounter,
    last: IntGaugeVec,
    checks: IntCounterVec,
}

impl Health {
    /// One check of a probe (`livez`, `readyz`) was made.
    pub fn checked(&self, probe: &str, check: &str, success: bool) {
        self.last.with_label_values(&[probe, check]).set(success.into());
        let status = if success { "success" } else { "error" };
        self.checks.with_label_values(&[probe, check, status]).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        // Revisions are given out in order, so an insert never has to be tried again.
        let insert_errors = counters(
            &registry,
            "kine_insert_errors_total",
            "Inserts that found their revision taken",
            &["retriable"],
        );
        for retriable in ["true", "false"] {
            insert_errors.with_label_values(&[retriable]);
        }
        let compactions = counters(
            &registry,
            "kine_compact_total",
            "Compactions by interval and their result",
            &["result"],
        );
        Metrics {
            grpc: Grpc::new(&registry),
            requests: Requests::new(&registry),
            rows: Rows::new(&registry),
            operations: Operations {
                ranges: counter(&registry, "etcd_mvcc_range_total", "Ranges read"),
                puts: counter(&registry, "etcd_mvcc_put_total", "Puts"),
                deletes: counter(&registry, "etcd_mvcc_delete_total", "Deletes of a range"),
                txns: counter(&registry, "etcd_mvcc_txn_total", "Transactions of more than one operation"),
                events: counter(&registry, "etcd_debugging_mvcc_events_total", "Events sent to watchers"),
            },
            upkeep: Upkeep::new(&registry),
            leases: Leases {
                granted: counter(&registry, "etcd_debugging_lease_granted_total", "Leases granted"),
                revoked: counter(&registry, "etcd_debugging_lease_revoked_total", "Leases revoked"),
                renewed: counter(&registry, "etcd_debugging_lease_renewed_total", "Renewals of leases"),
                expired: counter(&registry, "etcd_debugging_server_lease_expired_total", "Leases expired"),
                ttl_seconds: histogram(
                    &registry,
                    "etcd_debugging_lease_ttl_total",
                    "Times to live of granted leases, in seconds",
                    (1.0, 2.0, 24),
                ),
            },
            compactions: Compactions {
                success: compactions.with_label_values(&["success"]),
                failure: compactions.with_label_values(&["error"]),
            },
            proposals_failed: counter(
                &registry,
                "etcd_server_proposals_failed_total",
                "Commands refused before they were ordered",
            ),
            health: Health {
                success: counter(&registry, "etcd_server_health_success", "Health checks that passed"),
                failure: counter(&registry, "etcd_server_health_failures", "Health checks that failed"),
                last: register(
                    &registry,
                    IntGaugeVec::new(
                        Opts::new("etcd_server_healthcheck", "Whether a check passed the last time"),
                        &["type", "name"],
                    )
                    .expect("the names are valid"),
                ),
                checks: counters(
                    &registry,
                    "etcd_server_healthchecks_total",
                    "Checks of the probes and their result",
                    &["type", "name", "status"],
                ),
            },
            registry,
        }
    }
}

impl Upkeep {
    fn new(registry: &Registry) -> Self {
        let histogram = |name, help, buckets| histogram(registry, name, help, buckets);
        Upkeep {
            snapshot_seconds: histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "Time to send a snapshot",
                (0.01, 2.0, 17),
            ),
            hash_seconds: histogram("etcd_mvcc_hash_duration_seconds", "Time of a Hash", (0.01, 2.0, 15)),
            hash_rev_seconds: histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "Time of a HashKV",
                (0.01, 2.0, 15),
            ),
            compaction_ms: histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Time from a compaction until its rows are gone",
                (100.0, 2.0, 14),
            ),
            index_compaction_pause_ms: histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                "Time of one step of taking compacted versions out of the index",
                (0.5, 2.0, 14),
            ),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Metrics")
    }
}

impl Operations {
    /// Counts what a transaction did.
    pub fn count_txn(&self, responses: &[ResponseOp]) {
        if self.count(responses) > 1 {
            self.txns.inc();
        }
    }

    /// Counts a transaction of so many ranges.
    pub fn count_ranges(&self, ranges: usize) {
        self.ranges.inc_by(ranges as u64);
        if ranges > 1 {
            self.txns.inc();
        }
    }

    fn count(&self, responses: &[ResponseOp]) -> usize {
        let one = |counter: &IntCounter| {
            counter.inc();
            1
        };
        responses
            .iter()
            .map(|response| match &response.response {
                Some(Reply::ResponseRange(_)) => one(&self.ranges),
                Some(Reply::ResponsePut(_)) => one(&self.puts),
                Some(Reply::ResponseDeleteRange(_)) => one(&self.deletes),
                Some(Reply::ResponseTxn(nested)) => self.count(&nested.responses),
                None => 0,
            })
            .sum()
    }
}

/// Names are constants of this crate: a registration can only fail when one is used twice, which a test would show.
fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("metric names are unique");
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help).expect("the name is valid"))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the names are valid"))
}

/// Buckets: the first bound, the factor, the count.
fn histogram(registry: &Registry, name: &str, help: &str, buckets: (f64, f64, usize)) -> Histogram {
    register(registry, Histogram::with_opts(histogram_opts(name, help, buckets)).expect("the name is valid"))
}

fn histogram_opts(name: &str, help: &str, (first, factor, count): (f64, f64, usize)) -> HistogramOpts {
    HistogramOpts::new(name, help)
        .buckets(exponential_buckets(first, factor, count).expect("bounds above zero that grow"))
}
