//! Random programs on a real etcd and on ours, answer by answer. A difference is made small by the `differential` binary,
//! with the seed that the failure names; longer runs and other weights are its business too.

use conformance::differential;
use conformance::generate::{Generator, Weights};
use conformance::server::Flavor;

/// Programs are independent lives, so a seed alone repeats a failure.
fn check(flavor: Flavor, name: &str, seeds: std::ops::Range<u64>, length: usize, weights: &Weights) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for seed in seeds {
        let program = Generator::new(seed, weights.clone()).program(length);
        let found = runtime.block_on(differential::run_fresh(&program, (Flavor::Etcd, flavor)));
        if let Some(difference) = found.unwrap_or_else(|error| panic!("seed {seed}: {error:#}")) {
            let place = differential::place(&program, &difference);
            panic!(
                "seed {seed}, length {length}, {weights:?}: {place}\n\
                 make it small: cargo run -p conformance --bin differential -- --right {name} --seed {seed} --length {length}"
            );
        }
    }
}

#[test]
fn fifty_thousand_commands_on_sqlite_are_answered_as_by_etcd() {
    check(Flavor::KineSqlite, "sqlite", 1..11, 5_000, &Weights::default());
}

#[test]
fn alarms_auth_and_streams_are_answered_as_by_etcd() {
    let everything = Weights { range_stream: 50, alarm: 3, auth: 30, ..Weights::default() };
    check(Flavor::KineMemory, "memory", 1000..1003, 2_000, &everything);
}

#[test]
fn what_a_stop_or_a_kill_leaves_is_what_etcd_leaves() {
    let restarts = Weights { restart: 6, ..Weights::default() };
    check(Flavor::KineSqlite, "sqlite", 2000..2002, 1_000, &restarts);
}
