//! Commands: `load`, `watch` and `fill` work on any endpoint that runs already, `suite` starts and compares servers itself.
//!
//! Parses, calls the library and prints. All of it runs on one thread: the load generator is to use one core.

mod suite;

use std::time::Duration;

use anyhow::Result;
use benches::endpoint::{Connection, Endpoint};
use benches::fanout;
use benches::load::{self, Caller, Outcome, Pace, Plan};
use benches::process::Process;
use benches::request::{Count, Create, Get, KeepAlive, List, ListAll, Put, Update, Way, fill};
use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "benches", about = "Load generator for any etcd v3 endpoint")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Repeat one kind of request and print throughput, latency and what the server spent
    Load(Load),
    /// Many watchers, a steady writer: time from write to delivery
    Watch(Watch),
    /// Put keys as fast as possible
    Fill(Fill),
    /// Start ours and its peers in turn, measure them and print them beside the goals
    Suite(suite::Options),
}

#[derive(Args)]
struct Target {
    /// http://HOST:PORT or unix:///PATH
    #[arg(long)]
    endpoint: Endpoint,
    /// HTTP/2 connections that the clients share
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Server process on this machine whose CPU time, memory and device writes are read
    #[arg(long)]
    pid: Option<u32>,
    /// Seconds to measure
    #[arg(long, default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Bytes of a value
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Prefix of all keys
    #[arg(long, default_value = "/registry/bench/")]
    prefix: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Transactions of kube-apiserver's create: put if absent
    Create,
    /// Transactions of kube-apiserver's update on 4 hot keys per client
    Update,
    Put,
    /// Linearizable gets of the keys that `fill` has put
    Get,
    /// First page of the prefix
    List,
    /// All of the prefix in one reply, thrown away as it comes
    ListAll,
    /// The same in pages
    ListPages,
    /// The same through RangeStream
    ListStream,
    /// count_only of the prefix
    Count,
    /// Lease renewals over a stream per client
    KeepAlive,
}

#[derive(Args)]
struct Load {
    workload: Workload,
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Requests a second, whether or not the server keeps up; without it each client sends its next when answered
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds before measuring starts
    #[arg(long, default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// Keys that `fill` has put (get, count, list-all, list-pages, list-stream)
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Keys in a page (list, list-pages)
    #[arg(long, default_value_t = 500)]
    limit: i64,
    /// Number of the first key (create, put); give another one to load the same server again
    #[arg(long, default_value_t = 0)]
    first: u64,
}

#[derive(Args)]
struct Watch {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// gRPC streams that the watchers share
    #[arg(long, default_value_t = 50)]
    streams: usize,
    /// Writes a second; each is delivered to every watcher
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
}

#[derive(Args)]
struct Fill {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

impl Cli {
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.command {
                Command::Load(load) => load.run().await,
                Command::Watch(watch) => watch.run().await,
                Command::Fill(fill) => fill.run().await,
                Command::Suite(options) => options.run().await,
            }
        })
    }
}

impl Target {
    async fn connect(&self) -> Result<Vec<Connection>> {
        Ok(self.endpoint.connect_many(self.connections).await?)
    }

    fn process(&self) -> Option<Process> {
        self.pid.map(|pid| Process { pid })
    }

    fn print(&self, outcome: &Outcome) -> Result<()> {
        println!("operations   {} in {:.2?}", outcome.operations, outcome.elapsed);
        if let Some(failure) = &outcome.first_failure {
            println!("failures     {}, the first: {failure}", outcome.failures);
        }
        println!("throughput   {:.0}/s", outcome.per_second());
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            println!("{name:<12} {:.3} ms", outcome.latency_at(quantile).as_secs_f64() * 1e3);
        }
        println!("client CPU   {:.0} % of a core", 100.0 * outcome.client_load());
        if let (Some(cpu), Some(written)) =
            (outcome.server_cpu_per_operation(), outcome.written_bytes_per_operation())
        {
            println!("server CPU   {:.1} us/operation", cpu.as_secs_f64() * 1e6);
            println!("written      {written:.0} bytes/operation");
        }
        if let Some(process) = self.process() {
            let memory = process.memory()?;
            let mb = |bytes: u64| bytes as f64 / 1e6;
            println!(
                "memory       {:.1} MB, {:.1} MB anonymous",
                mb(memory.rss_bytes),
                mb(memory.anonymous_bytes)
            );
        }
        Ok(())
    }
}

impl Load {
    async fn run(self) -> Result<()> {
        let connections = self.target.connect().await?;
        let connection = |client: u64| &connections[client as usize % connections.len()];
        let kv = |client: u64| connection(client).kv();
        let (prefix, value_bytes) = (&self.target.prefix, self.target.value_bytes);
        let clients = 0..self.clients;
        match self.workload {
            Workload::Create => {
                let create = |client| Create {
                    kv: kv(client),
                    prefix: prefix.clone(),
                    value_bytes,
                    next: self.first + client,
                    step: self.clients,
                };
                self.load(clients.map(create).collect()).await
            }
            Workload::Update => {
                let mut callers = Vec::new();
                for client in clients {
                    callers
                        .push(Update::new(kv(client), &format!("{prefix}{client}/"), 4, value_bytes).await?);
                }
                self.load(callers).await
            }
            Workload::Put => {
                let put = |client| {
                    let prefix = format!("{prefix}{client}/");
                    Put { kv: kv(client), prefix, value_bytes, next: self.first }
                };
                self.load(clients.map(put).collect()).await
            }
            Workload::Get => {
                let get = |client| {
                    let next = client * self.keys / self.clients;
                    Get { kv: kv(client), prefix: prefix.clone(), keys: self.keys, next }
                };
                self.load(clients.map(get).collect()).await
            }
            Workload::List => {
                let list = |client| List { kv: kv(client), prefix: prefix.clone(), limit: self.limit };
                self.load(clients.map(list).collect()).await
            }
            workload @ (Workload::ListAll | Workload::ListPages | Workload::ListStream) => {
                let way = match workload {
                    Workload::ListPages => Way::Pages(self.limit),
                    Workload::ListStream => Way::RangeStream,
                    _ => Way::Unary,
                };
                let list = |client| ListAll {
                    connection: connection(client).clone(),
                    prefix: prefix.clone(),
                    way,
                    keys: self.keys,
                    value_bytes,
                };
                self.load(clients.map(list).collect()).await
            }
            Workload::Count => {
                let expected = self.keys as i64;
                let count = |client| Count { kv: kv(client), prefix: prefix.clone(), expected };
                self.load(clients.map(count).collect()).await
            }
            Workload::KeepAlive => {
                let mut callers = Vec::new();
                for client in clients {
                    callers.push(KeepAlive::new(connection(client), 3_600).await?);
                }
                self.load(callers).await
            }
        }
    }

    async fn load<C: Caller>(&self, callers: Vec<C>) -> Result<()> {
        let pace = self.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second });
        let plan = Plan { pace, warm_up: self.warm_up, duration: self.target.duration };
        let outcome = load::run(plan, self.target.process(), callers).await?;
        self.target.print(&outcome)
    }
}

impl Watch {
    async fn run(self) -> Result<()> {
        let connections = self.target.connect().await?;
        let shape = fanout::Shape {
            prefix: self.target.prefix.clone(),
            watchers: self.watchers,
            streams: self.streams,
            events_per_second: self.rate,
            value_bytes: self.target.value_bytes,
        };
        let outcome = fanout::run(&connections, &shape, self.target.duration, self.target.process()).await?;
        self.target.print(&outcome)
    }
}

impl Fill {
    async fn run(self) -> Result<()> {
        let connections = self.target.connect().await?;
        let start = std::time::Instant::now();
        fill(&connections, &self.target.prefix, 0..self.keys, self.target.value_bytes).await?;
        println!("{} keys in {:.2?}", self.keys, start.elapsed());
        Ok(())
    }
}
