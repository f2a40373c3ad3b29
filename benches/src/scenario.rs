//! The experiments: each runs on one server in one fresh directory and yields figures.
//!
//! What a scenario does must not depend on whose server it is, except where a peer lacks the call (Go kine has no plain puts
//! and no lease keepalive; under load it answers some requests "database is locked", and is measured by the others). The order within one is part of it: the idle figures come before any load.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::endpoint::Connection;
use crate::fanout::{self, Watchers};
use crate::goals::Metric;
use crate::load::{self, Caller, Outcome, Pace, Plan};
use crate::process::Process;
use crate::request::{Count, Create, Get, KeepAlive, List, ListAll, Put, Update, Way, fill};
use crate::server::{Kind, Program, Server};

pub type Figures = Vec<(Metric, f64)>;

/// Names in the order in which a suite runs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Idle,
    SharedWrite,
    Write,
    Read,
    Lists,
    Watched,
    Fanout,
    KeepAlive,
    Million,
}

/// How long and how much. The sizes that rows name (1 M keys, 64 clients) are the same in both.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub warm_up: Duration,
    pub duration: Duration,
    pub idle: Duration,
    pub keys: u64,
}

impl Effort {
    pub const FULL: Self = Self {
        warm_up: Duration::from_secs(2),
        duration: Duration::from_secs(8),
        idle: Duration::from_secs(20),
        keys: 1_000_000,
    };
    pub const QUICK: Self = Self {
        warm_up: Duration::from_secs(1),
        duration: Duration::from_secs(3),
        idle: Duration::from_secs(5),
        keys: 1_000_000,
    };

    fn closed(&self) -> Plan {
        Plan { pace: Pace::Closed, warm_up: self.warm_up, duration: self.duration }
    }

    /// For what varies little and would otherwise take most of the time.
    fn brief(&self) -> Plan {
        Plan { pace: Pace::Closed, warm_up: self.warm_up / 4, duration: self.duration / 4 }
    }
}

const CLIENTS: u64 = 64;
const CONNECTIONS: usize = 8;
const CREATE_BYTES: usize = 1024;
const HOT_BYTES: usize = 500;
const HOT_KEYS_PER_CLIENT: u64 = 4;
const READ_KEYS: u64 = 10_000;
const MILLION_BYTES: usize = 512;
const LIST_LIMIT: i64 = 500;
const PAGE_OF_A_MILLION: i64 = 10_000;
/// 46 MB of values.
const LISTED_KEYS: u64 = 45_000;
const WATCHERS: usize = 10_000;
const WATCH_STREAMS: usize = 100;
/// Well below what saturates any of them: what is asked is how long a put takes, not how many there are.
const PUTS_PER_SECOND: f64 = 1_000.0;
const IDLE_KEYS: u64 = 2_000;
const IDLE_WATCHERS: usize = 10;
/// For what the start left behind (Go's first garbage collections, a first checkpoint).
const SETTLE: Duration = Duration::from_secs(2);
const FANOUT: (usize, usize, f64) = (1_000, 50, 100.0);
const LEASES: usize = 64;
const LEASE_SECONDS: i64 = 3_600;
const CREATE_RETRIES_MAX: u32 = 20;
const CREATE_RETRY_AFTER: Duration = Duration::from_millis(20);

impl Scenario {
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::SharedWrite,
        Self::Write,
        Self::Read,
        Self::Lists,
        Self::Watched,
        Self::Fanout,
        Self::KeepAlive,
        Self::Million,
    ];

    /// Whether the server and the load generator may use each other's cores, as in the rows that compare with Go kine: its
    /// writers contend for SQLite's lock, and on one core they cannot.
    pub fn shares_cores(self) -> bool {
        self == Self::SharedWrite
    }

    pub fn servers(self) -> &'static [Kind] {
        match self {
            Self::Idle | Self::SharedWrite | Self::Write => &[Kind::Ours, Kind::Etcd, Kind::Kine],
            Self::Read | Self::Lists | Self::Watched => &[Kind::Ours, Kind::Etcd],
            Self::Fanout | Self::KeepAlive | Self::Million => &[Kind::Ours, Kind::Etcd],
        }
    }

    pub fn measures(self, metric: Metric) -> bool {
        let scenario = match metric {
            Metric::IdleRss | Metric::IdleCpu | Metric::ColdStart => Self::Idle,
            Metric::SharedCreateThroughput | Metric::SharedCreateP99 => Self::SharedWrite,
            Metric::CreateThroughput | Metric::CreateP99 | Metric::CreateWritten | Metric::CreateCpu => {
                Self::Write
            }
            Metric::UpdateThroughput | Metric::UpdateCpu | Metric::PutP50 => Self::Write,
            Metric::GetThroughput | Metric::GetCpu | Metric::GetP99 => Self::Read,
            Metric::UnaryList | Metric::PagedList | Metric::StreamedList | Metric::ListsPeak => Self::Lists,
            Metric::PutP99Growth | Metric::WatcherBytes => Self::Watched,
            Metric::FanoutCpu | Metric::FanoutP99 => Self::Fanout,
            Metric::KeepAliveThroughput | Metric::KeepAliveCpu => Self::KeepAlive,
            Metric::List1kP50 | Metric::List100kP50 | Metric::List1mP50 | Metric::ListGrowth => Self::Million,
            Metric::CountP50 | Metric::PagesOf10k | Metric::LoadedAnonymous | Metric::Restart => {
                Self::Million
            }
            Metric::ControllerRss | Metric::BinarySize | Metric::ClientLoad => return false,
            Metric::ReadyzAfter | Metric::FirstReadyzAfter => return false,
        };
        scenario == self
    }

    pub async fn run(self, program: &Program, dir: &Path, effort: &Effort) -> Result<Figures> {
        let server = program.start(dir).await?;
        let connections = server.connections(CONNECTIONS).await?;
        let bench = Bench { kind: program.kind, server, connections, effort };
        match self {
            Self::Idle => bench.idle().await,
            Self::SharedWrite => bench.shared_write().await,
            Self::Write => bench.write().await,
            Self::Read => bench.read().await,
            Self::Lists => bench.lists().await,
            Self::Watched => bench.watched().await,
            Self::Fanout => bench.fanout().await,
            Self::KeepAlive => bench.keep_alive().await,
            Self::Million => bench.million(program, dir).await,
        }
    }
}

struct Bench<'a> {
    kind: Kind,
    server: Server,
    connections: Vec<Connection>,
    effort: &'a Effort,
}

impl Bench<'_> {
    fn process(&self) -> Process {
        self.server.process()
    }

    fn connection(&self, client: usize) -> &Connection {
        &self.connections[client % self.connections.len()]
    }

    async fn load<C: Caller>(&self, plan: Plan, callers: Vec<C>) -> Result<Outcome> {
        let outcome = load::run(plan, Some(self.process()), callers).await?;
        if self.kind == Kind::Kine { Ok(outcome) } else { Ok(outcome.flawless()?) }
    }

    async fn idle(self) -> Result<Figures> {
        let mut figures = vec![(Metric::ColdStart, ms(self.server.ready_after))];
        sleep(SETTLE).await;
        figures.push((Metric::IdleRss, mb(self.process().memory()?.rss_bytes)));

        create_keys(&self.connections, "/registry/idle/", IDLE_KEYS, MILLION_BYTES).await?;
        let shape = fanout::Shape {
            prefix: "/registry/idle/".into(),
            watchers: IDLE_WATCHERS,
            streams: IDLE_WATCHERS,
            events_per_second: 0.0,
            value_bytes: 0,
        };
        let watchers = Watchers::open(&self.connections, &shape, Instant::now()).await?;
        sleep(SETTLE).await;
        let before = self.process().cpu()?;
        sleep(self.effort.idle).await;
        let used = self.process().cpu()? - before;
        drop(watchers);
        figures.push((Metric::IdleCpu, 100.0 * used.as_secs_f64() / self.effort.idle.as_secs_f64()));
        self.server.stop().await?;
        Ok(figures)
    }

    async fn create(&self) -> Result<Outcome> {
        let create = |client: u64| Create {
            kv: self.connection(client as usize).kv(),
            prefix: "/registry/create/".into(),
            value_bytes: CREATE_BYTES,
            next: client,
            step: CLIENTS,
        };
        self.load(self.effort.closed(), (0..CLIENTS).map(create).collect()).await
    }

    async fn shared_write(self) -> Result<Figures> {
        let created = self.create().await?;
        self.server.stop().await?;
        Ok(vec![
            (Metric::SharedCreateThroughput, created.per_second()),
            (Metric::SharedCreateP99, ms(created.latency_at(0.99))),
        ])
    }

    async fn write(self) -> Result<Figures> {
        let created = self.create().await?;
        let mut figures = vec![
            (Metric::CreateThroughput, created.per_second()),
            (Metric::CreateP99, ms(created.latency_at(0.99))),
            (Metric::CreateWritten, created.written_bytes_per_operation().context("no usage")?),
            (Metric::CreateCpu, us(created.server_cpu_per_operation().context("no usage")?)),
            (Metric::ClientLoad, 100.0 * created.client_load()),
        ];

        let mut updaters = Vec::new();
        for client in 0..CLIENTS {
            let prefix = format!("/registry/update/{client}/");
            let kv = self.connection(client as usize).kv();
            updaters.push(Update::new(kv, &prefix, HOT_KEYS_PER_CLIENT, HOT_BYTES).await?);
        }
        let updated = self.load(self.effort.closed(), updaters).await?;
        figures.push((Metric::UpdateThroughput, updated.per_second()));
        figures.push((Metric::UpdateCpu, us(updated.server_cpu_per_operation().context("no usage")?)));

        if self.kind != Kind::Kine {
            let prefix = "/registry/put/".to_owned();
            let alone = Put { kv: self.connection(0).kv(), prefix, value_bytes: CREATE_BYTES, next: 0 };
            let put = self.load(self.effort.brief(), vec![alone]).await?;
            figures.push((Metric::PutP50, ms(put.latency_at(0.5))));
        }
        self.server.stop().await?;
        Ok(figures)
    }

    async fn read(self) -> Result<Figures> {
        let prefix = "/registry/get/";
        create_keys(&self.connections, prefix, READ_KEYS, CREATE_BYTES).await?;
        let get = |client: u64| Get {
            kv: self.connection(client as usize).kv(),
            prefix: prefix.into(),
            keys: READ_KEYS,
            next: client * READ_KEYS / CLIENTS,
        };
        let got = self.load(self.effort.closed(), (0..CLIENTS).map(get).collect()).await?;
        let creating = self.create();
        let reader = load::run(self.effort.closed(), None, vec![get(0)]);
        let (_, beside) =
            futures::future::try_join(creating, async { Ok(reader.await?.flawless()?) }).await?;
        self.server.stop().await?;
        Ok(vec![
            (Metric::GetThroughput, got.per_second()),
            (Metric::GetCpu, us(got.server_cpu_per_operation().context("no usage")?)),
            (Metric::ClientLoad, 100.0 * got.client_load()),
            (Metric::GetP99, ms(beside.latency_at(0.99))),
        ])
    }

    async fn lists(self) -> Result<Figures> {
        let prefix = "/registry/lists/";
        fill(&self.connections, prefix, 0..LISTED_KEYS, CREATE_BYTES).await?;
        let list = |client: usize, way| ListAll {
            connection: self.connection(client).clone(),
            prefix: prefix.into(),
            way,
            keys: LISTED_KEYS,
            value_bytes: CREATE_BYTES,
        };
        let mut figures = Vec::new();
        for (metric, way) in [
            (Metric::UnaryList, Way::Unary),
            (Metric::PagedList, Way::Pages(LIST_LIMIT)),
            (Metric::StreamedList, Way::RangeStream),
        ] {
            let listed = self.load(self.effort.brief(), vec![list(0, way)]).await?;
            figures.push((metric, ms(listed.latency_at(0.5))));
        }
        // What the lists above left behind is not these lists' own.
        sleep(SETTLE).await;
        let before = self.process().memory()?.rss_bytes;
        self.process().forget_peak()?;
        let at_once = (0..CONNECTIONS).map(|client| async move {
            let mut list = list(client, Way::Unary);
            list.call().await
        });
        futures::future::try_join_all(at_once).await?;
        figures.push((Metric::ListsPeak, mb(self.process().peak_rss_bytes()?.saturating_sub(before))));
        self.server.stop().await?;
        Ok(figures)
    }

    /// The same puts without watchers and with many of other keys.
    async fn watched(self) -> Result<Figures> {
        let puts = async || {
            let put = |client: u64| {
                let prefix = format!("/registry/put/{client}/");
                let kv = self.connection(client as usize).kv();
                Put { kv, prefix, value_bytes: CREATE_BYTES, next: 0 }
            };
            let plan = Plan { pace: Pace::Open { per_second: PUTS_PER_SECOND }, ..self.effort.closed() };
            anyhow::Ok(self.load(plan, (0..CLIENTS).map(put).collect()).await?.latency_at(0.99))
        };
        let alone = puts().await?;
        sleep(SETTLE).await;
        let before = self.process().memory()?.rss_bytes;
        let shape = fanout::Shape {
            prefix: "/registry/watched/".into(),
            watchers: WATCHERS,
            streams: WATCH_STREAMS,
            events_per_second: 0.0,
            value_bytes: 0,
        };
        let watchers = Watchers::open(&self.connections, &shape, Instant::now()).await?;
        let grown = self.process().memory()?.rss_bytes.saturating_sub(before);
        let watched = puts().await?;
        drop(watchers);
        self.server.stop().await?;
        Ok(vec![
            (Metric::PutP99Growth, watched.as_secs_f64() / alone.as_secs_f64()),
            (Metric::WatcherBytes, grown as f64 / WATCHERS as f64),
        ])
    }

    async fn fanout(self) -> Result<Figures> {
        let (watchers, streams, events_per_second) = FANOUT;
        let prefix = "/registry/fanout/".to_owned();
        let shape = fanout::Shape { prefix, watchers, streams, events_per_second, value_bytes: CREATE_BYTES };
        let seen = fanout::run(&self.connections, &shape, self.effort.duration, Some(self.process())).await?;
        self.server.stop().await?;
        Ok(vec![
            (Metric::FanoutCpu, us(seen.server_cpu_per_operation().context("no usage")?)),
            (Metric::FanoutP99, ms(seen.latency_at(0.99))),
            (Metric::ClientLoad, 100.0 * seen.client_load()),
        ])
    }

    async fn keep_alive(self) -> Result<Figures> {
        let mut callers = Vec::new();
        for lease in 0..LEASES {
            callers.push(KeepAlive::new(self.connection(lease), LEASE_SECONDS).await?);
        }
        let renewed = self.load(self.effort.closed(), callers).await?;
        self.server.stop().await?;
        Ok(vec![
            (Metric::KeepAliveThroughput, renewed.per_second()),
            (Metric::KeepAliveCpu, us(renewed.server_cpu_per_operation().context("no usage")?)),
            (Metric::ClientLoad, 100.0 * renewed.client_load()),
        ])
    }

    async fn million(self, program: &Program, dir: &Path) -> Result<Figures> {
        let prefix = "/registry/million/";
        let list = || List { kv: self.connection(0).kv(), prefix: prefix.into(), limit: LIST_LIMIT };
        let (small, medium, all) = (self.effort.keys / 1_000, self.effort.keys / 10, self.effort.keys);

        fill(&self.connections, prefix, 0..small, MILLION_BYTES).await?;
        let of_1k = self.load(self.effort.brief(), vec![list()]).await?.latency_at(0.5);
        fill(&self.connections, prefix, small..medium, MILLION_BYTES).await?;
        let of_100k = self.load(self.effort.brief(), vec![list()]).await?.latency_at(0.5);
        fill(&self.connections, prefix, medium..all, MILLION_BYTES).await?;
        sleep(SETTLE).await;
        let anonymous = self.process().memory()?.anonymous_bytes;
        let of_1m = self.load(self.effort.brief(), vec![list()]).await?.latency_at(0.5);
        let mut pages = ListAll {
            connection: self.connection(0).clone(),
            prefix: prefix.into(),
            way: Way::Pages(PAGE_OF_A_MILLION),
            keys: all,
            value_bytes: MILLION_BYTES,
        };
        // One takes longer than others are repeated for.
        let begun = Instant::now();
        pages.call().await.context("cannot list all in pages")?;
        let in_pages = begun.elapsed();
        let count = Count { kv: self.connection(0).kv(), prefix: prefix.into(), expected: all as i64 };
        let counted = self.load(self.effort.brief(), vec![count]).await?.latency_at(0.5);

        self.server.kill()?;
        let restarted = program.start(dir).await.context("after kill -9")?;
        let restart = restarted.ready_after;
        restarted.stop().await?;
        Ok(vec![
            (Metric::List1kP50, ms(of_1k)),
            (Metric::List100kP50, ms(of_100k)),
            (Metric::List1mP50, ms(of_1m)),
            (Metric::ListGrowth, of_1m.as_secs_f64() / of_1k.as_secs_f64()),
            (Metric::CountP50, ms(counted)),
            (Metric::PagesOf10k, ms(in_pages)),
            (Metric::LoadedAnonymous, mb(anonymous)),
            (Metric::Restart, ms(restart)),
        ])
    }
}

/// Creates `keys` objects one by one, as a cluster does (and as Go kine, which has no other way, understands).
async fn create_keys(connections: &[Connection], prefix: &str, keys: u64, value_bytes: usize) -> Result<()> {
    let creators = (0..CLIENTS).map(|client| {
        let kv = connections[client as usize % connections.len()].kv();
        let create = Create { kv, prefix: prefix.into(), value_bytes, next: client, step: CLIENTS };
        create_up_to(create, keys)
    });
    futures::future::try_join_all(creators).await.context("cannot create the keys to measure with")?;
    Ok(())
}

async fn create_up_to(mut create: Create, keys: u64) -> Result<(), Status> {
    let mut retries = 0;
    while create.next < keys {
        match create.call().await {
            Ok(()) => retries = 0,
            // The answer to an attempt that had failed as far as we know.
            Err(failure) if failure.code() == Code::AlreadyExists && retries > 0 => retries = 0,
            Err(_) if retries < CREATE_RETRIES_MAX => {
                retries += 1;
                create.next -= create.step;
                sleep(CREATE_RETRY_AFTER).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Megabytes of 1,000,000 bytes, as the goals count.
pub fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
