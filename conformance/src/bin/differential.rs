//! Runs random programs on two servers and reports the first difference, made small, as a transcript.
//!
//! `cargo run -p conformance --bin differential -- --ops 100000 --seed 7 --right sqlite`; exits 1 on a difference.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use conformance::differential::{self, Difference};
use conformance::generate::{Generator, Weights};
use conformance::server::Flavor;
use conformance::transcript::Transcript;
use conformance::{command::Command, shrink};

#[derive(Parser)]
#[command(about = "Random programs on two servers, compared answer by answer")]
struct Arguments {
    /// Commands to run altogether
    #[arg(long, default_value_t = 50_000)]
    ops: usize,
    /// First seed; every program takes the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Commands per program; each program starts on fresh servers
    #[arg(long, default_value_t = 5_000)]
    length: usize,
    /// Go on until something differs
    #[arg(long)]
    endless: bool,
    /// The server to believe: etcd, sqlite or memory
    #[arg(long, default_value = "etcd", value_parser = flavor)]
    left: Flavor,
    /// The server to doubt
    #[arg(long, default_value = "sqlite", value_parser = flavor)]
    right: Flavor,
    /// How often a kind of command is chosen, such as `watch=0` or `alarm=5`
    #[arg(long = "weight", value_name = "KIND=N")]
    weights: Vec<String>,
    /// Run the commands of this transcript instead
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Where the transcript of a difference goes
    #[arg(long, default_value = "difference.txt", value_name = "FILE")]
    output: PathBuf,
}

fn flavor(name: &str) -> Result<Flavor> {
    Ok(match name {
        "etcd" => Flavor::Etcd,
        "sqlite" => Flavor::KineSqlite,
        "memory" => Flavor::KineMemory,
        other => bail!("{other} is not etcd, sqlite or memory"),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let flavors = (arguments.left, arguments.right);
    if let Some(path) = &arguments.replay {
        let program = Transcript::read(path)?.commands();
        return report(differential::run_fresh(&program, flavors).await?, &program, &arguments);
    }
    let mut weights = Weights::default();
    for weight in &arguments.weights {
        let (name, value) = weight.split_once('=').with_context(|| format!("{weight} is not KIND=N"))?;
        *weights.named(name).with_context(|| format!("no kind of command is called {name}"))? =
            value.parse()?;
    }
    let started = Instant::now();
    let mut done = 0;
    for seed in arguments.seed.. {
        let program = Generator::new(seed, weights.clone()).program(arguments.length);
        let mut sides = differential::start(flavors).await?;
        if let Some(difference) = differential::run(&program, &mut sides).await? {
            drop(sides);
            println!("seed {seed}: {}", differential::place(&program, &difference));
            let program = program[..=difference.index].to_vec();
            let fails = async |candidate: &[Command]| {
                anyhow::Ok(differential::run_fresh(candidate, flavors).await?.is_some())
            };
            let small = shrink::shrink(program.clone(), fails).await?;
            return match differential::run_fresh(&small, flavors).await? {
                Some(difference) => report(Some(difference), &small, &arguments),
                None => report(Some(difference), &program, &arguments),
            };
        }
        done += program.len();
        let rate = done as f64 / started.elapsed().as_secs_f64();
        println!("seed {seed}: {done} commands, {rate:.0}/s, no difference");
        if done >= arguments.ops && !arguments.endless {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn report(difference: Option<Difference>, program: &[Command], arguments: &Arguments) -> Result<ExitCode> {
    let Some(difference) = difference else {
        println!("no difference");
        return Ok(ExitCode::SUCCESS);
    };
    let text = differential::transcript(program, &difference, (arguments.left, arguments.right));
    std::fs::write(&arguments.output, &text).with_context(|| arguments.output.display().to_string())?;
    println!("{text}\nwritten to {}; run it again with --replay", arguments.output.display());
    Ok(ExitCode::FAILURE)
}
