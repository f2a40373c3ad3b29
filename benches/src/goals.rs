//! What is measured, and the floor, goal and moonshot of each row of the project's goals.
//!
//! Ratios are written so that bigger is better for us. Below the floor we do not ship.

use crate::server::Kind;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// With the load generator on the server's cores; the metrics below are with a core for each.
    SharedCreateThroughput,
    SharedCreateP99,
    CreateThroughput,
    CreateP99,
    CreateWritten,
    CreateCpu,
    UpdateThroughput,
    UpdateCpu,
    PutP50,
    GetThroughput,
    GetCpu,
    List1kP50,
    List100kP50,
    List1mP50,
    ListGrowth,
    CountP50,
    PagesOf10k,
    UnaryList,
    PagedList,
    StreamedList,
    ListsPeak,
    GetP99,
    PutP99Growth,
    WatcherBytes,
    FanoutCpu,
    FanoutP99,
    KeepAliveThroughput,
    KeepAliveCpu,
    IdleRss,
    LoadedAnonymous,
    IdleCpu,
    Restart,
    ColdStart,
    ControllerRss,
    BinarySize,
    /// With certificates and keys in place, which the peer has too.
    ReadyzAfter,
    /// In an empty directory.
    FirstReadyzAfter,
    ClientLoad,
}

impl Metric {
    pub fn unit(self) -> &'static str {
        match self {
            Self::SharedCreateThroughput
            | Self::CreateThroughput
            | Self::UpdateThroughput
            | Self::GetThroughput
            | Self::KeepAliveThroughput => "/s",
            Self::CreateCpu | Self::UpdateCpu | Self::GetCpu | Self::FanoutCpu | Self::KeepAliveCpu => "us",
            Self::SharedCreateP99 | Self::CreateP99 | Self::PutP50 | Self::FanoutP99 | Self::GetP99 => "ms",
            Self::PagesOf10k | Self::UnaryList | Self::PagedList | Self::StreamedList => "ms",
            Self::List1kP50 | Self::List100kP50 | Self::List1mP50 | Self::CountP50 => "ms",
            Self::Restart | Self::ColdStart | Self::ReadyzAfter | Self::FirstReadyzAfter => "ms",
            Self::CreateWritten | Self::WatcherBytes => "B",
            Self::IdleRss | Self::LoadedAnonymous | Self::ControllerRss | Self::BinarySize => "MB",
            Self::ListsPeak => "MB",
            Self::IdleCpu | Self::ClientLoad => "%",
            Self::ListGrowth | Self::PutP99Growth => "x",
        }
    }

    fn more_is_better(self) -> bool {
        self.unit() == "/s"
    }

    /// How much better `ours` is than `peer`.
    pub fn ratio(self, ours: f64, peer: f64) -> f64 {
        if self.more_is_better() { ours / peer } else { peer / ours }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Against {
    /// Measured in the same run.
    Peer(Kind),
    /// A figure of the goals: the peer cannot be run here.
    Figure(f64),
    /// No peer: our own value is to be small.
    Absolute,
}

#[derive(Debug, Clone, Copy)]
pub struct Targets {
    pub floor: f64,
    pub goal: f64,
    pub moonshot: f64,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Number in the project's goals; `None` for a figure that is only reported.
    pub number: Option<u32>,
    pub what: &'static str,
    pub metric: Metric,
    pub against: Against,
    pub targets: Option<Targets>,
}

const fn row(number: u32, what: &'static str, metric: Metric, against: Against, targets: [f64; 3]) -> Row {
    let [floor, goal, moonshot] = targets;
    Row { number: Some(number), what, metric, against, targets: Some(Targets { floor, goal, moonshot }) }
}

const fn shown(what: &'static str, metric: Metric, against: Kind) -> Row {
    Row { number: None, what, metric, against: Against::Peer(against), targets: None }
}

use Against::{Absolute, Figure, Peer};
use Kind::{Etcd, Kine};

/// Row 28's moonshot is an idle CPU of 0.01 %, written as the ratio to etcd's 0.35 %; row 36's peer is upstream k0s (30 MB)
/// with etcd (41 MB).
const ROWS: &[Row] = &[
    row(
        7,
        "create, 64 clients, 1 KiB, shared cores: throughput",
        Metric::SharedCreateThroughput,
        Peer(Kine),
        [3.0, 6.0, 10.0],
    ),
    row(8, "create, 64 clients, shared cores: p99", Metric::SharedCreateP99, Peer(Kine), [5.0, 15.0, 30.0]),
    row(9, "device bytes per 1 KiB create", Metric::CreateWritten, Peer(Kine), [4.0, 10.0, 15.0]),
    shown("create, a core each: throughput", Metric::CreateThroughput, Kine),
    shown("create, a core each: p99", Metric::CreateP99, Kine),
    shown("create: server CPU per operation", Metric::CreateCpu, Kine),
    shown("create, a core each: throughput", Metric::CreateThroughput, Etcd),
    shown("create: server CPU per operation", Metric::CreateCpu, Etcd),
    shown("update of hot keys, 500 B: throughput", Metric::UpdateThroughput, Kine),
    shown("update of hot keys, 500 B: throughput", Metric::UpdateThroughput, Etcd),
    shown("update: server CPU per operation", Metric::UpdateCpu, Etcd),
    shown("put, 1 client: p50", Metric::PutP50, Etcd),
    row(12, "linearizable get: throughput", Metric::GetThroughput, Peer(Etcd), [1.4, 2.0, 2.9]),
    shown("get: server CPU per operation", Metric::GetCpu, Etcd),
    row(13, "linearizable get while 64 writers saturate: p99", Metric::GetP99, Peer(Etcd), [3.0, 10.0, 50.0]),
    shown("list limit=500 of 1 k keys: p50", Metric::List1kP50, Etcd),
    shown("list limit=500 of 100 k keys: p50", Metric::List100kP50, Etcd),
    row(14, "list limit=500 of 1 M keys: p50", Metric::List1mP50, Peer(Etcd), [20.0, 200.0, 500.0]),
    row(15, "the same, from 1 k to 1 M keys: growth", Metric::ListGrowth, Absolute, [5.0, 2.0, 1.3]),
    row(16, "count_only of 1 M keys: p50", Metric::CountP50, Peer(Etcd), [20.0, 200.0, 1000.0]),
    row(17, "list of 1 M keys in pages of 10 k", Metric::PagesOf10k, Peer(Etcd), [8.0, 14.0, 20.0]),
    row(18, "list of 46 MB: one reply", Metric::UnaryList, Peer(Etcd), [1.5, 2.2, 3.0]),
    row(18, "list of 46 MB: pages of 500", Metric::PagedList, Peer(Etcd), [1.5, 4.0, 5.0]),
    row(18, "list of 46 MB: RangeStream", Metric::StreamedList, Peer(Etcd), [1.5, 2.5, 4.0]),
    shown("watch, 1,000 watchers: server CPU per delivered 1 KiB event", Metric::FanoutCpu, Etcd),
    shown("watch, 1,000 watchers x 100 events/s: p99", Metric::FanoutP99, Etcd),
    row(22, "put p99, 10,000 idle watchers to none", Metric::PutP99Growth, Absolute, [1.5, 1.2, 1.05]),
    shown("memory of an idle watcher", Metric::WatcherBytes, Etcd),
    shown("lease keepalive: throughput", Metric::KeepAliveThroughput, Etcd),
    shown("lease keepalive: server CPU per operation", Metric::KeepAliveCpu, Etcd),
    row(25, "idle RSS, empty store", Metric::IdleRss, Peer(Etcd), [1.5, 2.0, 2.7]),
    row(26, "anonymous RSS, 1 M keys x 512 B", Metric::LoadedAnonymous, Peer(Etcd), [3.0, 5.0, 8.0]),
    row(27, "8 lists of 46 MB at once: peak of extra RSS", Metric::ListsPeak, Peer(Etcd), [3.0, 10.0, 30.0]),
    row(28, "idle CPU, 2,000 keys, 10 watchers", Metric::IdleCpu, Peer(Etcd), [4.0, 10.0, 35.0]),
    row(
        31,
        "kill -9 with 1 M keys to first linearizable read",
        Metric::Restart,
        Peer(Etcd),
        [3.0, 8.0, 15.0],
    ),
    row(32, "cold start, empty store", Metric::ColdStart, Peer(Etcd), [5.0, 10.0, 20.0]),
    row(36, "k0s process, RSS beside its children", Metric::ControllerRss, Figure(71.0), [1.3, 2.3, 3.5]),
    row(37, "k0s binary (peers: etcd and kine together)", Metric::BinarySize, Peer(Etcd), [2.0, 4.0, 8.0]),
    row(38, "exec to /readyz (peer: etcd, kube-apiserver)", Metric::ReadyzAfter, Peer(Etcd), [1.0, 1.3, 2.0]),
    Row {
        number: None,
        what: "the same, first start: certificates are made (figure: upstream k0s)",
        metric: Metric::FirstReadyzAfter,
        against: Figure(3_900.0),
        targets: None,
    },
];

/// Rows with the numbers in `wanted`, or all of them where it is empty.
pub fn rows(wanted: &[u32]) -> impl Iterator<Item = &'static Row> {
    ROWS.iter()
        .filter(move |row| wanted.is_empty() || row.number.is_some_and(|number| wanted.contains(&number)))
}
