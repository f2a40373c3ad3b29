//! A backend's writer and reader, measured: the same rows, with every access timed and what a commit held counted.
//!
//! Wrapped around a backend where the store opens it, so that no backend counts anything itself. Slow accesses are logged.

use super::{Metrics, counter, counters, histogram, histogram_opts, register};
use crate::mvcc::Version;
use crate::rows::{Batch, Bucket, CommitError, ReadError, Row, RowReader, RowWriter, ScanFrom, Size};
use bytes::Bytes;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// etcd's and kine's bounds of times on disk: 1 ms to 8 s.
const DISK_BUCKETS: (f64, f64, usize) = (0.001, 2.0, 14);

/// Accesses longer than this are logged; `None`: never.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    pub info: Option<Duration>,
    pub warn: Option<Duration>,
}

impl Default for Slow {
    /// kine's thresholds.
    fn default() -> Self {
        Slow { info: Some(Duration::from_secs(1)), warn: Some(Duration::from_secs(5)) }
    }
}

pub struct Rows {
    commit_seconds: Histogram,
    fsync_seconds: Histogram,
    defragment_seconds: Histogram,
    defragments: IntGauge,
    compaction_pause_ms: Histogram,
    reads: IntGauge,
    put_bytes: IntGauge,
    compacted_rows: IntCounter,
    last_compaction: IntGauge,
    commit: Access,
    load: Access,
    scan: Access,
    release: Access,
    defragment: Access,
}

/// One kind of access under kine's names.
struct Access {
    name: &'static str,
    succeeded: IntCounter,
    seconds: Histogram,
    totals: IntCounterVec,
    times: HistogramVec,
}

impl Rows {
    pub(super) fn new(registry: &Registry) -> Self {
        let labels = ["error_code", "name"];
        let totals = counters(registry, "kine_sql_total", "Accesses to the database", &labels);
        let times = histogram_opts("kine_sql_time_seconds", "Time of accesses to the database", DISK_BUCKETS);
        let times = register(registry, HistogramVec::new(times, &labels).expect("the names are valid"));
        let access = |name| Access {
            name,
            succeeded: totals.with_label_values(&["", name]),
            seconds: times.with_label_values(&["", name]),
            totals: totals.clone(),
            times: times.clone(),
        };
        let gauge = |name, help| register(registry, IntGauge::new(name, help).expect("the name is valid"));
        Rows {
            commit_seconds: histogram(
                registry,
                "etcd_disk_backend_commit_duration_seconds",
                "Time to make a batch of commands durable",
                DISK_BUCKETS,
            ),
            // The commit is both of etcd's points of durability: what watches over either finds it.
            fsync_seconds: histogram(
                registry,
                "etcd_disk_wal_fsync_duration_seconds",
                "Time to make a batch of commands durable",
                DISK_BUCKETS,
            ),
            defragments: gauge("etcd_disk_defrag_inflight", "Whether unused space is being given back"),
            compaction_pause_ms: histogram(
                registry,
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "Time of a commit that drops compacted rows",
                (1.0, 2.0, 13),
            ),
            reads: gauge("etcd_mvcc_db_open_read_transactions", "Reads of the database under way"),
            defragment_seconds: histogram(
                registry,
                "etcd_disk_backend_defrag_duration_seconds",
                "Time to give unused space back",
                (0.1, 2.0, 13),
            ),
            put_bytes: gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of keys and values put since the start",
            ),
            compacted_rows: counter(
                registry,
                "etcd_debugging_mvcc_db_compaction_keys_total",
                "Rows dropped by compaction",
            ),
            last_compaction: gauge(
                "etcd_debugging_mvcc_db_compaction_last",
                "When compaction last dropped rows, in seconds since 1970",
            ),
            commit: access("commit"),
            load: access("load"),
            scan: access("scan"),
            release: access("release_space"),
            defragment: access("defragment"),
        }
    }
}

impl Access {
    /// Runs an access; an error is counted under the code `code` gives it.
    fn run<T, E>(
        &self,
        slow: &Slow,
        code: fn(&E) -> &'static str,
        access: impl FnOnce() -> Result<T, E>,
    ) -> (Result<T, E>, Duration) {
        let started = Instant::now();
        let result = access();
        let took = started.elapsed();
        match &result {
            Ok(_) => {
                self.succeeded.inc();
                self.seconds.observe(took.as_secs_f64());
            }
            Err(error) => {
                let labels = [code(error), self.name];
                self.totals.with_label_values(&labels).inc();
                self.times.with_label_values(&labels).observe(took.as_secs_f64());
            }
        }
        // kine's line: people search for its words.
        let over = |limit: Option<Duration>| limit.is_some_and(|limit| took >= limit);
        if over(slow.info) {
            let (name, started) = (self.name, crate::logs::time((SystemTime::now() - took).into()));
            if over(slow.warn) {
                tracing::warn!(name, duration = ?took, started, "Slow SQL: {name}");
            } else {
                tracing::info!(name, duration = ?took, started, "Slow SQL: {name}");
            }
        }
        (result, took)
    }
}

fn commit_code(error: &CommitError) -> &'static str {
    match error {
        CommitError::Full => "full",
        CommitError::Fatal(_) => "io",
    }
}

fn read_code(error: &ReadError) -> &'static str {
    match error {
        ReadError::Gone(_) => "gone",
        ReadError::Io(_) => "io",
    }
}

pub struct MeasuredWriter {
    pub rows: Box<dyn RowWriter>,
    pub metrics: Arc<Metrics>,
    pub slow: Slow,
}

impl MeasuredWriter {
    fn count(&self, batch: &Batch) {
        let Metrics { rows, leases, .. } = &*self.metrics;
        let put = batch.rows.iter().filter(|row| !row.version.is_tombstone());
        rows.put_bytes.add(put.map(|row| (row.key.len() + row.value.len()) as i64).sum());
        if !batch.removed.is_empty() {
            rows.compacted_rows.inc_by(batch.removed.len() as u64);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            rows.last_compaction.set(now.as_secs() as i64);
        }
        for record in batch.records.iter().filter(|record| record.bucket == Bucket::Lease) {
            match record.value.as_deref().map(<[u8; 8]>::try_from) {
                Some(Ok(ttl)) => {
                    leases.granted.inc();
                    leases.ttl_seconds.observe(i64::from_be_bytes(ttl) as f64);
                }
                Some(Err(_)) => {}
                None => leases.revoked.inc(),
            }
        }
    }
}

impl RowWriter for MeasuredWriter {
    fn commit(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let metrics = self.metrics.clone();
        let (result, took) = metrics.rows.commit.run(&self.slow, commit_code, || self.rows.commit(batch));
        if result.is_ok() {
            metrics.rows.commit_seconds.observe(took.as_secs_f64());
            metrics.rows.fsync_seconds.observe(took.as_secs_f64());
            if !batch.removed.is_empty() {
                metrics.rows.compaction_pause_ms.observe(took.as_secs_f64() * 1e3);
            }
            self.count(batch);
        }
        result
    }

    fn load(&mut self, versions: &[Version]) -> Result<Vec<Bytes>, ReadError> {
        self.metrics.rows.load.run(&self.slow, read_code, || self.rows.load(versions)).0
    }

    fn release_space(&mut self) -> Result<bool, CommitError> {
        self.metrics.rows.release.run(&self.slow, commit_code, || self.rows.release_space()).0
    }

    fn defragment(&mut self) -> Result<(), CommitError> {
        self.metrics.rows.defragments.inc();
        let (result, took) =
            self.metrics.rows.defragment.run(&self.slow, commit_code, || self.rows.defragment());
        self.metrics.rows.defragments.dec();
        self.metrics.rows.defragment_seconds.observe(took.as_secs_f64());
        result
    }

    fn size(&self) -> Size {
        self.rows.size()
    }
}

pub struct MeasuredReader {
    pub rows: Arc<dyn RowReader>,
    pub metrics: Arc<Metrics>,
    pub slow: Slow,
}

impl MeasuredReader {
    fn run<T>(&self, access: &Access, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        self.metrics.rows.reads.inc();
        let (result, _) = access.run(&self.slow, read_code, read);
        self.metrics.rows.reads.dec();
        result
    }
}

impl RowReader for MeasuredReader {
    fn visit(&self, versions: &[Version], each: &mut dyn FnMut(usize, &[u8])) -> Result<(), ReadError> {
        self.run(&self.metrics.rows.load, || self.rows.visit(versions, each))
    }

    fn scan(&self, from: ScanFrom, rows_max: usize, bytes_max: usize) -> Result<Vec<Row>, ReadError> {
        self.run(&self.metrics.rows.scan, || self.rows.scan(from, rows_max, bytes_max))
    }

    fn scan_heads(&self, from: ScanFrom, rows_max: usize) -> Result<Vec<Row>, ReadError> {
        self.run(&self.metrics.rows.scan, || self.rows.scan_heads(from, rows_max))
    }
}
