//! The small sections of `spec`: controllerManager, scheduler, konnectivity, telemetry, installConfig, metricsServer.

use std::collections::BTreeMap;

use super::address::{HostPort, Port};
use super::field::section;
use super::patches::Patch;

section! {
    pub struct ControllerManager {
        /// Flags of kube-controller-manager without their dashes; they win over ours.
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        /// Appended as they are.
        raw_args "rawArgs": Vec<String> = Vec::new(),
    }
}

section! {
    pub struct Scheduler {
        /// Flags of kube-scheduler without their dashes; they win over ours.
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        /// Appended as they are.
        raw_args "rawArgs": Vec<String> = Vec::new(),
    }
}

section! {
    pub struct Konnectivity {
        agent_port "agentPort": Port = Port::of(8132),
        admin_port "adminPort": Port = Port::of(8133),
        /// What agents dial instead of the API's address.
        external_address "externalAddress" (zero_is_default): Option<HostPort> = None,
    }
}

section! {
    /// Accepted for the sake of existing files; nothing is ever sent anywhere.
    pub struct Telemetry {
        enabled "enabled" (always): bool = false,
    }
}

section! {
    pub struct InstallConfig {
        users "users": SystemUsers = SystemUsers::default(),
    }
}

section! {
    /// Accounts the components run under.
    pub struct SystemUsers {
        etcd "etcdUser" (zero_is_default): String = "etcd".to_owned(),
        kine "kineUser" (zero_is_default): String = "kube-apiserver".to_owned(),
        konnectivity "konnectivityUser" (zero_is_default): String = "konnectivity-server".to_owned(),
        kube_apiserver "kubeAPIserverUser" (zero_is_default): String = "kube-apiserver".to_owned(),
        kube_scheduler "kubeSchedulerUser" (zero_is_default): String = "kube-scheduler".to_owned(),
    }
}

section! {
    pub struct MetricsServer {
        patches "patches": Vec<Patch> = Vec::new(),
    }
}
