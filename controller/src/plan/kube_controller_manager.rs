//! kube-controller-manager: its arguments and its port.

use super::arguments::{Arguments, Overridden};
use super::{Facts, Process};
use crate::config::{Cidr, ClusterConfig};

pub const NAME: &str = "kube-controller-manager";

const SECURE_PORT: u16 = 10257;
const NODE_MASK_IPV4: u8 = 24;
const NODE_MASK_IPV6: u8 = 117;

pub(super) fn process(
    config: &ClusterConfig,
    facts: &Facts<'_>,
    overridden: &mut Vec<Overridden>,
) -> Process {
    let spec = &config.spec;
    let mut arguments = arguments(config, facts);
    // The command line's arguments come first, so that the configuration has the last word, as in k0s.
    let from_flag = &facts.controller_manager_extra_args;
    overridden.extend(arguments.override_with(NAME, from_flag, "--kube-controller-manager-extra-args"));
    set_node_masks(&mut arguments, &spec.pod_cidrs());
    let extra = &spec.controller_manager.extra_args;
    overridden.extend(arguments.override_with(NAME, extra, "spec.controllerManager.extraArgs"));
    arguments.set_feature_gates(NAME, spec);
    let port =
        super::loopback_port(NAME, &arguments, SECURE_PORT, "spec.controllerManager.extraArgs[secure-port]");
    Process {
        name: NAME,
        argv: arguments.into_argv(&spec.controller_manager.raw_args),
        stop_grace: worker::supervise::STOP_GRACE,
        port,
    }
}

fn arguments(config: &ClusterConfig, facts: &Facts<'_>) -> Arguments {
    let pki = |file: &str| facts.paths.pki(file).display().to_string();
    let mut set = Arguments::default();
    for kubeconfig in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        set.set(kubeconfig, pki("ccm.conf"));
    }
    set.set("client-ca-file", pki("ca.crt"));
    set.set("root-ca-file", pki("ca.crt"));
    set.set("cluster-signing-cert-file", pki("ca.crt"));
    set.set("cluster-signing-key-file", pki("ca.key"));
    set.set("requestheader-client-ca-file", pki("front-proxy-ca.crt"));
    set.set("service-account-private-key-file", pki("sa.key"));
    set.set("cluster-cidr", super::joined(&config.spec.pod_cidrs()));
    set.set("service-cluster-ip-range", super::joined(&config.spec.service_cidrs()));
    set.set("allocate-node-cidrs", true);
    set.set("bind-address", "127.0.0.1");
    set.set("cluster-name", "k0s");
    set.set("controllers", "*,bootstrapsigner,tokencleaner");
    set.set("leader-elect", facts.many_controllers);
    set.set("use-service-account-credentials", true);
    set.set("terminated-pod-gc-threshold", 12500);
    set.set("profiling", false);
    set.set("v", facts.log_levels.of(NAME));
    set
}

fn set_node_masks(set: &mut Arguments, pod_cidrs: &[Cidr]) {
    match pod_cidrs {
        [only] if only.is_ipv6() => set.set("node-cidr-mask-size", NODE_MASK_IPV6),
        [_] => set.set("node-cidr-mask-size", NODE_MASK_IPV4),
        _ => {
            set.set("node-cidr-mask-size-ipv4", NODE_MASK_IPV4);
            set.set("node-cidr-mask-size-ipv6", NODE_MASK_IPV6);
        }
    }
}
