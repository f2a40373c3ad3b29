//! Requests and commands by kind, timed where etcd times them: from the door to the answer, and while applied.
//!
//! Handles are resolved at the first use of a kind; on the way of a request there is one look at the clock before and one
//! after, and one histogram.

use super::{Metrics, counter, histogram_opts, register};
use crate::apply::{ApplyError, Command, Reply};
use crate::auth::Change;
use crate::describe;
use prometheus::{Histogram, HistogramVec, IntCounter, Registry};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// etcd's bounds: 1 ms to 8 s, and 0.1 ms to 52 s.
const REQUEST_BUCKETS: (f64, f64, usize) = (0.001, 2.0, 14);
const APPLY_BUCKETS: (f64, f64, usize) = (0.0001, 2.0, 20);

/// Kinds by etcd's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Range,
    ReadonlyTxn,
    Put,
    DeleteRange,
    Txn,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    Alarm,
    Authenticate,
    AuthEnable,
    AuthDisable,
    AuthUserAdd,
    AuthUserDelete,
    AuthUserChangePassword,
    AuthUserGrantRole,
    AuthUserRevokeRole,
    AuthRoleAdd,
    AuthRoleDelete,
    AuthRoleGrantPermission,
    AuthRoleRevokePermission,
    DowngradeInfoSet,
}

const KINDS: usize = Kind::DowngradeInfoSet as usize + 1;

impl Kind {
    /// `None`: a change of membership, which etcd does not time.
    pub fn of(command: &Command) -> Option<Kind> {
        Some(match command {
            Command::PeerUrls(_) => return None,
            Command::Put(_) => Kind::Put,
            Command::DeleteRange(_) => Kind::DeleteRange,
            Command::Txn(_) => Kind::Txn,
            Command::Compact { .. } => Kind::Compaction,
            Command::LeaseGrant { .. } => Kind::LeaseGrant,
            Command::LeaseRevoke { .. } => Kind::LeaseRevoke,
            Command::Alarm(_) => Kind::Alarm,
            Command::Authenticate { .. } => Kind::Authenticate,
            Command::Downgrade { .. } => Kind::DowngradeInfoSet,
            Command::Accounts(change) => match change {
                Change::Enable => Kind::AuthEnable,
                Change::Disable => Kind::AuthDisable,
                Change::AddUser { .. } => Kind::AuthUserAdd,
                Change::DeleteUser { .. } => Kind::AuthUserDelete,
                Change::ChangePassword { .. } => Kind::AuthUserChangePassword,
                Change::GrantRole { .. } => Kind::AuthUserGrantRole,
                Change::RevokeRole { .. } => Kind::AuthUserRevokeRole,
                Change::AddRole { .. } => Kind::AuthRoleAdd,
                Change::DeleteRole { .. } => Kind::AuthRoleDelete,
                Change::GrantPermission { .. } => Kind::AuthRoleGrantPermission,
                Change::RevokePermission { .. } => Kind::AuthRoleRevokePermission,
            },
        })
    }
}

/// A histogram for each kind and outcome.
struct Durations {
    family: HistogramVec,
    /// Before the kind, among the labels.
    version: Option<&'static str>,
    cells: [[OnceLock<Histogram>; 2]; KINDS],
}

impl Durations {
    fn new(family: HistogramVec, version: Option<&'static str>) -> Self {
        Durations { family, version, cells: Default::default() }
    }

    fn observe(&self, kind: Kind, success: bool, took: Duration) {
        let resolve = || {
            let kind = format!("{kind:?}");
            let outcome = if success { "true" } else { "false" };
            let labels: Vec<&str> = self.version.into_iter().chain([kind.as_str(), outcome]).collect();
            self.family.with_label_values(&labels)
        };
        let cell = &self.cells[kind as usize][usize::from(success)];
        cell.get_or_init(resolve).observe(took.as_secs_f64());
    }
}

pub struct Requests {
    served: Durations,
    applied: Durations,
    ranges: [Histogram; 2],
    slow_applies: IntCounter,
}

impl Requests {
    pub(super) fn new(registry: &Registry) -> Self {
        let family = |name, help, buckets, labels: &[&str]| {
            let family = HistogramVec::new(histogram_opts(name, help, buckets), labels);
            register(registry, family.expect("the names are valid"))
        };
        let served = family(
            "etcd_server_request_duration_seconds",
            "Time until a request was answered, by its kind",
            REQUEST_BUCKETS,
            &["type", "success"],
        );
        let applied = family(
            "etcd_server_apply_duration_seconds",
            "Time to apply a command, by its kind",
            APPLY_BUCKETS,
            &["version", "op", "success"],
        );
        let ranges =
            family("etcd_server_range_duration_seconds", "Time to read a range", APPLY_BUCKETS, &["success"]);
        Requests {
            served: Durations::new(served, None),
            applied: Durations::new(applied, Some("v3")),
            ranges: ["false", "true"].map(|success| ranges.with_label_values(&[success])),
            slow_applies: counter(
                registry,
                "etcd_server_slow_apply_total",
                "Commands whose applying took longer than --warning-apply-duration",
            ),
        }
    }

    /// A request was answered.
    pub fn observe(&self, kind: Kind, success: bool, took: Duration) {
        self.served.observe(kind, success, took);
        if kind == Kind::Range {
            self.ranges[usize::from(success)].observe(took.as_secs_f64());
        }
    }

    /// Something took longer to apply than it should.
    pub fn count_slow(&self) {
        self.slow_applies.inc();
    }
}

/// Where the writer tells how long it took to apply a command.
pub struct Applied {
    pub metrics: Arc<Metrics>,
    /// Above this it is logged; `None`: never.
    pub slow: Option<Duration>,
}

impl Applied {
    pub fn observe(&self, command: &Command, result: &Result<Reply, ApplyError>, took: Duration) {
        let requests = &self.metrics.requests;
        // As etcd: a compaction that comes too late has lost nothing.
        let success = matches!(result, Ok(_) | Err(ApplyError::Compacted { .. }));
        if let Some(kind) = Kind::of(command) {
            requests.applied.observe(kind, success, took);
        }
        if let Some(expected) = self.slow.filter(|slow| took > *slow) {
            requests.count_slow();
            let error = result.as_ref().err().map(|error| error.to_string());
            tracing::warn!(
                ?took,
                expected_duration = ?expected,
                prefix = "",
                request = describe::command(command),
                error,
                "apply request took too long"
            );
        }
    }
}
