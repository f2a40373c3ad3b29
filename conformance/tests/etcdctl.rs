//! The real etcdctl and etcdutl on a real etcd and on ours, command by command.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use conformance::shell;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("etcdctl")
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let path = dir().join(stringify!($name)).with_extension("txt");
            if let Err(error) = runtime.block_on(shell::check(&path)) {
                panic!("{error:#}");
            }
        })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scripts! {
    auth check compaction contests endpoints kv lease lease_list members mirror snapshot space txn watch
}

#[test]
fn every_script_is_run() {
    let run: BTreeSet<String> = NAMES.iter().map(ToString::to_string).collect();
    assert_eq!(conformance::names_of_files(&dir()).unwrap(), run);
}
