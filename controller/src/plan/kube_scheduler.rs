//! kube-scheduler: its arguments and its port.

use super::arguments::{Arguments, Overridden};
use super::{Facts, Process};
use crate::config::ClusterConfig;

pub const NAME: &str = "kube-scheduler";

const SECURE_PORT: u16 = 10259;

pub(super) fn process(
    config: &ClusterConfig,
    facts: &Facts<'_>,
    overridden: &mut Vec<Overridden>,
) -> Process {
    let scheduler = &config.spec.scheduler;
    let mut arguments = Arguments::default();
    for kubeconfig in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        arguments.set(kubeconfig, facts.paths.pki("scheduler.conf").display());
    }
    arguments.set("bind-address", "127.0.0.1");
    arguments.set("leader-elect", facts.many_controllers);
    arguments.set("profiling", false);
    arguments.set("v", facts.log_levels.of(NAME));
    overridden.extend(arguments.override_with(NAME, &scheduler.extra_args, "spec.scheduler.extraArgs"));
    arguments.set_feature_gates(NAME, &config.spec);
    let port = super::loopback_port(NAME, &arguments, SECURE_PORT, "spec.scheduler.extraArgs[secure-port]");
    Process {
        name: NAME,
        argv: arguments.into_argv(&scheduler.raw_args),
        stop_grace: worker::supervise::STOP_GRACE,
        port,
    }
}
