//! Changes a user makes to the manifests k0s renders (`patches` of several sections).

use super::field::{choice, section};
use super::problem::{FieldPath, Report};

section! {
    pub struct Patch {
        target "target": PatchTarget = PatchTarget::default(),
        patch "patch": PatchSpec = PatchSpec::default(),
    }
}

section! {
    pub struct PatchTarget: rules {
        kind "kind" (always): String = String::new(),
        name "name" (always): String = String::new(),
        namespace "namespace": String = String::new(),
    }
}

section! {
    pub struct PatchSpec: rules {
        kind "type": Option<PatchType> = None,
        /// JSON or YAML.
        content "content" (always): String = String::new(),
    }
}

choice! {
    pub enum PatchType {
        Json = "JSON",
        StrategicMerge = "StrategicMergePatch",
        Merge = "MergePatch",
    }
}

impl PatchTarget {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        for (name, value) in [("kind", &self.kind), ("name", &self.name)] {
            if value.is_empty() {
                report.required(&at.child(name), "must be specified");
            }
        }
    }
}

impl PatchSpec {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.kind.is_none() {
            report.required(&at.child("type"), "must be one of JSON, StrategicMergePatch, MergePatch");
        }
    }
}
