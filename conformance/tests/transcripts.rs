//! Every transcript over a real etcd, which keeps the files honest, and over every backend of ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use conformance::server::Flavor;
use conformance::transcript;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts")
}

fn check(name: &str, flavor: Flavor) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = dir().join(name).with_extension("txt");
    if let Err(error) = runtime.block_on(transcript::check(&path, flavor)) {
        panic!("{error:#}");
    }
}

macro_rules! transcripts {
    ($([$($module:ident: $flavor:ident),*]: $($name:ident)*;)*) => {
        $(transcripts!(@group [$($module: $flavor),*] $($name)*);)*
        const NAMES: &[&str] = &[$($(stringify!($name)),*),*];
    };
    (@group $flavors:tt $($name:ident)*) => { $(transcripts!(@each $name $flavors);)* };
    (@each $name:ident [$($module:ident: $flavor:ident),*]) => {
        mod $name {
            $(#[test]
            fn $module() {
                super::check(stringify!($name), conformance::server::Flavor::$flavor);
            })*
        }
    };
}

transcripts! {
    [etcd: Etcd, sqlite: KineSqlite, memory: KineMemory]:
        alarm compaction compaction_fresh delete errors hash hash_empty kubernetes lease lease_expiry limits maintenance put quota
        range range_sort range_stream restart txn txn_compare txn_duplicate txn_limits txn_nested watch watch_fragment
        watch_ids watch_interval watch_past watch_progress;
    [etcd: Etcd, sqlite: KineSqlite, memory: KineMemory]: auth;
}

#[test]
fn every_file_is_run() {
    let run: BTreeSet<String> = NAMES.iter().map(ToString::to_string).collect();
    assert_eq!(conformance::names_of_files(&dir()).unwrap(), run);
}
