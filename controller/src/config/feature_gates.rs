//! `spec.featureGates`: feature gates of the Kubernetes components.

use super::field::section;
use super::problem::{FieldPath, Report, quoted};

/// Components a gate is for when it names none.
pub const COMPONENTS: [&str; 5] =
    ["kube-apiserver", "kube-controller-manager", "kubelet", "kube-scheduler", "kube-proxy"];

section! {
    pub struct FeatureGate: rules {
        name "name": String = String::new(),
        enabled "enabled" (always): bool = false,
        /// Empty: all of [`COMPONENTS`].
        components "components": Vec<String> = Vec::new(),
    }
}

impl FeatureGate {
    pub fn applies_to(&self, component: &str) -> bool {
        if self.components.is_empty() {
            return COMPONENTS.contains(&component);
        }
        self.components.iter().any(|name| name == component)
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.name.is_empty() {
            report.required(&at.child("name"), "must be specified");
        } else if !self.name.bytes().all(|c| c.is_ascii_alphanumeric()) {
            // It becomes a part of `--feature-gates=Name=true,…`.
            report.invalid(&at.child("name"), quoted(&self.name), "must be letters and digits");
        }
    }
}

/// The value of `--feature-gates` for a component, appended to what `extraArgs` already has; `None` if there is none.
pub fn argument(gates: &[FeatureGate], component: &str, given: Option<&str>) -> Option<String> {
    let given = given.filter(|value| !value.is_empty()).map(str::to_owned);
    let ours = gates.iter().filter(|gate| gate.applies_to(component));
    let all: Vec<String> =
        given.into_iter().chain(ours.map(|gate| format!("{}={}", gate.name, gate.enabled))).collect();
    (!all.is_empty()).then(|| all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(name: &str, enabled: bool, components: &[&str]) -> FeatureGate {
        let components = components.iter().map(|name| (*name).to_owned()).collect();
        FeatureGate { name: name.to_owned(), enabled, components }
    }

    #[test]
    fn gates_become_one_argument_after_what_the_user_gave() {
        let gates = [gate("A", true, &[]), gate("B", false, &["kube-scheduler"])];
        assert_eq!(argument(&gates, "kube-apiserver", None).as_deref(), Some("A=true"));
        assert_eq!(
            argument(&gates, "kube-scheduler", Some("X=true")).as_deref(),
            Some("X=true,A=true,B=false")
        );
        assert_eq!(argument(&gates, "etcd", None), None);
        assert_eq!(argument(&[], "kubelet", Some("")), None);
    }
}
