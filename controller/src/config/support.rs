//! What this release does not do yet, in one place.
//!
//! The configuration is parsed and checked in full. A setting whose feature is missing is then refused, never ignored:
//! `not supported yet: spec.konnectivity.agentPort`. Setting it to its default is fine. When a feature arrives, its line
//! here goes. What would have no effect upstream either, or none here for good, is taken with a warning.

use std::path::Path;

use serde_json::Value;

use super::ClusterConfig;
use super::field::Field;
use super::problem::{FieldError, FieldPath, Report};
use super::storage::{Datastore, DatastoreKind, Storage};

/// Fields, or whole sections, that may only have their default value.
const NOT_BUILT: &[&str] = &[
    // The join API.
    "spec.api.k0sApiPort",
    // Settings of the etcd or kine process that upstream starts; our datastore is in this process.
    "spec.storage.kine.extraArgs",
    "spec.storage.kine.rawArgs",
    // Workers, and what runs on them.
    "spec.network.provider",
    "spec.network.kubeProxy",
    "spec.network.kuberouter",
    "spec.network.coreDNS",
    "spec.network.nodeLocalLoadBalancing.enabled",
    "spec.network.controlPlaneLoadBalancing.enabled",
    "spec.workerProfiles",
    "spec.images",
    "spec.extensions.helm.repositories",
    "spec.extensions.helm.charts",
    "spec.konnectivity",
    "spec.metricsServer",
];

/// Fields that are taken because existing files have them, and what is said when they ask for something.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("spec.telemetry.enabled", "nothing is ever sent anywhere"),
    ("spec.installConfig.users.etcdUser", "the datastore is in the k0s process"),
    ("spec.installConfig.users.kineUser", "the datastore is in the k0s process"),
    ("spec.installConfig.users.konnectivityUser", "there is no konnectivity server yet"),
    ("spec.extensions.storage", "as in upstream k0s since 1.31"),
    ("spec.extensions.helm.concurrencyLevel", "as in upstream k0s"),
];

/// Datastores that can be used.
const BUILT_DATASTORES: &[DatastoreKind] = &[DatastoreKind::Sqlite];

/// Reports every setting whose feature is missing.
pub fn check(config: &ClusterConfig, default: &ClusterConfig, data_dir: &Path, report: &mut Report) {
    let (actual, usual) = (config.write(), default.write());
    let changed = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        let mut changed = Vec::new();
        differences(FieldPath::from(path), actual.pointer(&pointer), usual.pointer(&pointer), &mut changed);
        changed
    };
    for path in NOT_BUILT.iter().flat_map(|path| changed(path)) {
        not_built(path, "", report);
    }
    for (path, why) in WITHOUT_EFFECT {
        if !changed(path).is_empty() {
            report.warn(format!("{path} has no effect: {why}"));
        }
    }
    let network = &config.spec.network;
    let at = FieldPath::from("spec.network");
    for (name, cidr) in [("podCIDR", network.pod_cidr), ("serviceCIDR", network.service_cidr)] {
        if cidr.is_ipv6() && !network.dual_stack.enabled {
            not_built(at.child(name), "IPv6 without IPv4", report);
        }
    }
    // Storage that nobody chose is refused only when it is to be used: `config create` writes it into every file.
    let storage = &config.spec.storage;
    let chosen = storage.kind != default.spec.storage.kind || storage.etcd.external_cluster.is_some();
    if let Some(error) = chosen.then(|| datastore(storage, data_dir).err()).flatten() {
        report.add(error);
    }
}

/// The datastore to run.
///
/// # Errors
/// If the data source is not understood, or the datastore is not built yet.
pub fn datastore(storage: &Storage, data_dir: &Path) -> Result<Datastore, FieldError> {
    let datastore = storage.datastore(data_dir)?;
    if BUILT_DATASTORES.contains(&datastore.kind()) {
        return Ok(datastore);
    }
    let detail = format!("{}; use --storage=sqlite", datastore.kind());
    Err(FieldError::NotBuilt { path: FieldPath::from("spec.storage.type"), detail })
}

/// Collects the deepest fields that differ. An empty section is as good as none.
fn differences(at: FieldPath, actual: Option<&Value>, default: Option<&Value>, found: &mut Vec<FieldPath>) {
    let is_filled = |value: &&Value| value.as_object().is_none_or(|map| !map.is_empty());
    let (actual, default) = (actual.filter(is_filled), default.filter(is_filled));
    match (actual, default) {
        (Some(Value::Object(actual)), Some(Value::Object(default))) => {
            let removed = default.keys().filter(|key| !actual.contains_key(*key));
            for key in actual.keys().chain(removed) {
                differences(at.child(key), actual.get(key), default.get(key), found);
            }
        }
        (actual, default) if actual == default => {}
        _ => found.push(at),
    }
}

fn not_built(path: FieldPath, detail: &str, report: &mut Report) {
    report.add(FieldError::NotBuilt { path, detail: detail.to_owned() });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against a line that outlives a renaming, and so refuses nothing.
    #[test]
    fn every_line_names_a_field_that_exists() {
        for path in NOT_BUILT.iter().chain(WITHOUT_EFFECT.iter().map(|(path, _)| path)) {
            let (mut config, mut report) = (ClusterConfig::default(), Report::default());
            // A list is a wrong value for a section and a string; for a list, its item is wrong.
            let node =
                path.rsplit('.').fold(serde_json::json!([7]), |node, key| serde_json::json!({ key: node }));
            config.read(node, &FieldPath::root(), &mut report);
            let problems = report.finish().unwrap_err().to_string();
            assert!(problems.starts_with(path) && !problems.contains("unknown field"), "{path}: {problems}");
        }
    }

    #[test]
    fn defaults_are_supported() {
        let (config, mut report) = (ClusterConfig::default(), Report::default());
        check(&config, &config, Path::new("/data"), &mut report);
        assert_eq!(report.finish(), Ok(Vec::new()));
    }

    #[test]
    fn a_datastore_that_is_not_built_says_which_is() {
        let error = datastore(&Storage::default(), Path::new("/data")).unwrap_err();
        assert_eq!(error.to_string(), "not supported yet: spec.storage.type (raft; use --storage=sqlite)");
    }
}
