//! `spec.workerProfiles`: named kubelet configurations.

use serde_json::{Map, Value};

use super::extensions::is_dns_label;
use super::field::section;
use super::problem::{FieldPath, Report, quoted, rendered};

section! {
    pub struct WorkerProfile: rules {
        name "name": String = String::new(),
        /// A KubeletConfiguration, or a part of one.
        values "values": Value = Value::Null,
    }
}

/// What k0s itself decides, so a profile must not.
const LOCKED: [&str; 3] = ["clusterDNS", "clusterDomain", "staticPodURL"];
/// What a profile may only repeat.
const FIXED: [(&str, &str); 2] =
    [("apiVersion", "kubelet.config.k8s.io/v1beta1"), ("kind", "KubeletConfiguration")];

impl WorkerProfile {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        const NAME_MAX: usize = 63;
        if self.name.is_empty() {
            report.required(&at.child("name"), "must be specified");
        } else if self.name.len() > NAME_MAX || !is_dns_label(&self.name) {
            let detail = "must be lower case letters, digits and '-', at most 63 characters";
            report.invalid(&at.child("name"), quoted(&self.name), detail);
        }
        let at = at.child("values");
        match &self.values {
            Value::Null => {}
            Value::Object(values) => values_rules(values, &at, report),
            other => report.invalid(&at, rendered(other), "must be a mapping"),
        }
    }
}

fn values_rules(values: &Map<String, Value>, at: &FieldPath, report: &mut Report) {
    for name in LOCKED {
        if values.contains_key(name) {
            report.forbidden(&at.child(name), "is decided by k0s and cannot be set in a worker profile");
        }
    }
    for (name, fixed) in FIXED {
        if let Some(value) = values.get(name).filter(|value| **value != fixed) {
            report.invalid(&at.child(name), rendered(value), format!("must be {fixed:?} if given"));
        }
    }
}
