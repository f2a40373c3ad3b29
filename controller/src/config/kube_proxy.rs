//! `spec.network.kubeProxy`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::duration::GoDuration;
use super::field::{choice, section};
use super::patches::Patch;
use super::problem::{FieldPath, Report, quoted};

section! {
    pub struct KubeProxy: rules {
        disabled "disabled": bool = false,
        mode "mode": Mode = Mode::Iptables,
        metrics_bind_address "metricsBindAddress": String = "0.0.0.0:10249".to_owned(),
        healthz_bind_address "healthzBindAddress": String = "0.0.0.0:10256".to_owned(),
        iptables "iptables": Iptables = Iptables::default(),
        ipvs "ipvs": Ipvs = Ipvs::default(),
        nftables "nftables": Nftables = Nftables::default(),
        node_port_addresses "nodePortAddresses": Vec<String> = Vec::new(),
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        raw_args "rawArgs": Vec<String> = Vec::new(),
        patches "patches": Vec<Patch> = Vec::new(),
    }
}

choice! {
    pub enum Mode {
        Iptables = "iptables",
        Ipvs = "ipvs",
        Userspace = "userspace",
        Nftables = "nftables",
    }
}

section! {
    pub struct Iptables {
        masquerade_bit "masqueradeBit": Option<i32> = None,
        masquerade_all "masqueradeAll": bool = false,
        localhost_node_ports "localhostNodePorts": Option<bool> = None,
        sync_period "syncPeriod": GoDuration = GoDuration::ZERO,
        min_sync_period "minSyncPeriod": GoDuration = GoDuration::ZERO,
    }
}

section! {
    pub struct Ipvs {
        sync_period "syncPeriod": GoDuration = GoDuration::ZERO,
        min_sync_period "minSyncPeriod": GoDuration = GoDuration::ZERO,
        scheduler "scheduler": String = String::new(),
        exclude_cidrs "excludeCIDRs": Vec<String> = Vec::new(),
        strict_arp "strictARP": bool = false,
        tcp_timeout "tcpTimeout": GoDuration = GoDuration::ZERO,
        tcp_fin_timeout "tcpFinTimeout": GoDuration = GoDuration::ZERO,
        udp_timeout "udpTimeout": GoDuration = GoDuration::ZERO,
    }
}

section! {
    pub struct Nftables {
        sync_period "syncPeriod": GoDuration = GoDuration::ZERO,
        masquerade_bit "masqueradeBit": Option<i32> = None,
        masquerade_all "masqueradeAll": bool = false,
        min_sync_period "minSyncPeriod": GoDuration = GoDuration::ZERO,
    }
}

impl KubeProxy {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.disabled {
            return;
        }
        let addresses = [
            ("metricsBindAddress", &self.metrics_bind_address),
            ("healthzBindAddress", &self.healthz_bind_address),
        ];
        for (name, address) in addresses {
            if !address.is_empty() && address.parse::<SocketAddr>().is_err() {
                report.invalid(&at.child(name), quoted(address), "must be an IP address and a port");
            }
        }
    }
}
