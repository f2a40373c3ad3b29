//! `spec.extensions`: Helm charts to install with the cluster.

use super::duration::DurationOrNanos;
use super::field::{choice, section};
use super::problem::{FieldPath, Report, quoted};
use super::secret::Secret;

section! {
    pub struct Extensions {
        helm "helm": Helm = Helm::default(),
        /// Has had no effect upstream since 1.31; accepted for existing files.
        storage "storage": Option<StorageExtension> = None,
    }
}

section! {
    pub struct StorageExtension {
        kind "type": StorageExtensionType = StorageExtensionType::External,
        create_default_storage_class "create_default_storage_class": bool = false,
    }
}

choice! {
    pub enum StorageExtensionType {
        External = "external_storage",
        OpenEbsLocal = "openebs_local_storage",
    }
}

section! {
    pub struct Helm {
        concurrency_level "concurrencyLevel": i32 = 5,
        repositories "repositories": Vec<Repository> = Vec::new(),
        charts "charts": Vec<Chart> = Vec::new(),
    }
}

section! {
    pub struct Repository: rules {
        name "name": String = String::new(),
        url "url": String = String::new(),
        insecure "insecure": Option<bool> = None,
        ca_file "caFile": String = String::new(),
        cert_file "certFile": String = String::new(),
        key_file "keyfile": String = String::new(),
        username "username": String = String::new(),
        password "password": Secret = Secret::default(),
    }
}

section! {
    pub struct Chart: rules {
        name "name": String = String::new(),
        chart_name "chartname": String = String::new(),
        version "version": String = String::new(),
        /// YAML.
        values "values": String = String::new(),
        namespace "namespace": String = String::new(),
        timeout "timeout": DurationOrNanos = DurationOrNanos::default(),
        /// `None` means yes.
        force_upgrade "forceUpgrade": Option<bool> = None,
        order "order": i32 = 0,
    }
}

impl Repository {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        for (name, value) in [("name", &self.name), ("url", &self.url)] {
            if value.is_empty() {
                report.required(&at.child(name), "must be specified");
            }
        }
    }
}

impl Chart {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        for (name, value) in
            [("name", &self.name), ("chartname", &self.chart_name), ("namespace", &self.namespace)]
        {
            if value.is_empty() {
                report.required(&at.child(name), "must be specified");
            }
        }
        if !self.name.is_empty() && !is_release_name(&self.name) {
            let detail = "must be lower case letters, digits, '-' and '.', at most 53 characters";
            report.invalid(&at.child("name"), quoted(&self.name), detail);
        }
    }
}

/// Helm's rule for the name of a release.
fn is_release_name(name: &str) -> bool {
    const NAME_MAX: usize = 53;
    name.len() <= NAME_MAX && name.split('.').all(is_dns_label)
}

/// Lower case letters, digits and `-`, the last not at an end.
pub fn is_dns_label(label: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_ok = |c: Option<&u8>| c.is_some_and(|c| alphanumeric(*c));
    let bytes = label.as_bytes();
    ends_ok(bytes.first()) && ends_ok(bytes.last()) && bytes.iter().all(|c| alphanumeric(*c) || *c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_names_follow_helm() {
        for good in ["a", "prometheus-stack", "a.b-c.9"] {
            assert!(is_release_name(good), "{good:?}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", &"a".repeat(54)] {
            assert!(!is_release_name(bad), "{bad:?}");
        }
    }
}
