//! Which software this is: the versions that `k0s version` and the status report.
//!
//! Invariant: the Kubernetes version is the one `xtask/upstream/versions.toml` builds; a test compares them.

use serde::Serialize;

pub const KUBERNETES: &str = "1.36.3";

/// `v<Kubernetes version>+k0s.<n>`.
pub const K0S: &str = "v1.36.3+k0s.0";

/// The datastore is part of this program, so it has this program's version.
pub const KINE: &str = env!("CARGO_PKG_VERSION");

/// What `version --json` prints. Keys are upstream's; parts that this build does not have are left out, as there.
#[derive(Debug, Serialize)]
pub struct Versions {
    pub k0s: &'static str,
    pub kubernetes: &'static str,
    pub kine: &'static str,
}

pub const VERSIONS: Versions = Versions { k0s: K0S, kubernetes: KUBERNETES, kine: KINE };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_version_is_the_one_that_is_built() {
        let data = include_str!("../../xtask/upstream/versions.toml");
        let section = data.split("[groups.kubernetes]").nth(1).unwrap();
        let version = section.lines().find_map(|l| l.strip_prefix("version = ")).unwrap();
        assert_eq!(version.trim_matches('"'), KUBERNETES);
        assert!(K0S.starts_with(&format!("v{KUBERNETES}+k0s.")));
    }
}
