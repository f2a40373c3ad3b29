//! Kubernetes' own tests of its storage, and etcd's own tests of its API, on our server. A test a binary, so that they run side
//! by side. What is in them, what is left out and why: `docs/suites.md`; all of it, or on a real etcd: the `suites` program.

use conformance::server::kine_path;
use conformance::suite::{Bench, Suite};

fn run(binary: &str) {
    let suite = Suite::find(binary).expect("one of the list");
    let bench = Bench::new(&kine_path().unwrap()).unwrap();
    let outcome = suite.run(&bench, &suite.excluded(false), None).unwrap();
    println!("{}", outcome.summary(suite));
    outcome.check(suite).unwrap_or_else(|failure| panic!("{failure:#}"));
}

#[test]
fn kubernetes_storage_on_etcd_works_on_ours() {
    run("etcd3.test");
}

#[test]
fn kubernetes_watch_cache_works_on_ours() {
    run("cacher.test");
}

#[test]
fn kubernetes_registry_works_on_ours() {
    run("registry.test");
}

#[test]
fn kubernetes_storage_backend_with_its_health_checks_and_tls_works_on_ours() {
    run("factory.test");
}

#[test]
fn etcds_tests_of_leases_work_on_ours() {
    run("lease.test");
}

#[test]
fn etcds_tests_of_watches_work_on_ours() {
    run("watch.test");
}

#[test]
fn etcds_tests_of_sessions_mutexes_and_elections_work_on_ours() {
    run("concurrency.test");
    run("recipes.test");
    run("naming.test");
}

#[test]
fn etcds_tests_of_its_client_work_on_ours() {
    run("connectivity.test");
    run("clientv3.test");
}

#[test]
fn etcds_tests_of_its_server_work_on_ours() {
    run("integration.test");
}
