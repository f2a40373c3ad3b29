//! Kubernetes' own tests of its storage on our server. The other suites, and all of them on a real etcd: `cargo xtask suites`.
//! What is in them, what is left out and why: `docs/suites.md`.

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
fn kubernetes_storage_backend_with_its_health_checks_and_tls_works_on_ours() {
    run("factory.test");
}
