//! `spec.network.kuberouter` and `spec.network.calico`: settings of the pod network providers.

use std::collections::BTreeMap;

use super::field::{choice, section};
use super::patches::Patch;

choice! {
    /// Cannot be changed once the cluster has one.
    pub enum Provider {
        KubeRouter = "kuberouter",
        Calico = "calico",
        /// The user installs one.
        Custom = "custom",
    }
}

section! {
    pub struct KubeRouter {
        auto_mtu "autoMTU" (always): bool = true,
        /// Used only without `autoMTU`.
        mtu "mtu": i32 = 0,
        /// 0 turns metrics off.
        metrics_port "metricsPort": i32 = 8080,
        hairpin "hairpin": Hairpin = Hairpin::Enabled,
        /// Deprecated for `hairpin`.
        hairpin_mode "hairpinMode": bool = false,
        ip_masq "ipMasq": bool = false,
        /// Deprecated for `extraArgs`.
        peer_router_asns "peerRouterASNs": String = String::new(),
        /// Deprecated for `extraArgs`.
        peer_router_ips "peerRouterIPs": String = String::new(),
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        raw_args "rawArgs": Vec<String> = Vec::new(),
        patches "patches": Vec<Patch> = Vec::new(),
    }
}

choice! {
    pub enum Hairpin {
        Enabled = "Enabled",
        Allowed = "Allowed",
        Disabled = "Disabled",
        /// Whatever `hairpinMode` says.
        Legacy = "",
    }
}

section! {
    pub struct Calico {
        mode "mode": CalicoMode = CalicoMode::Vxlan,
        overlay "overlay": Overlay = Overlay::Always,
        vxlan_port "vxlanPort" (always): i32 = 4789,
        vxlan_vni "vxlanVNI" (always): i32 = 4096,
        mtu "mtu" (always): i32 = 1450,
        wireguard "wireguard" (always): bool = false,
        flex_volume_driver_path "flexVolumeDriverPath" (always): String =
            "/usr/libexec/k0s/kubelet-plugins/volume/exec/nodeagent~uds".to_owned(),
        ip_autodetection_method "ipAutodetectionMethod": String = String::new(),
        /// Falls back to the IPv4 one.
        ipv6_autodetection_method "ipV6AutodetectionMethod": String = String::new(),
        env_vars "envVars": BTreeMap<String, String> = BTreeMap::new(),
        patches "patches": Vec<Patch> = Vec::new(),
    }
}

choice! {
    pub enum CalicoMode {
        Vxlan = "vxlan",
        Bird = "bird",
        /// Deprecated name of `bird`.
        Ipip = "ipip",
    }
}

choice! {
    pub enum Overlay {
        Always = "Always",
        Never = "Never",
        CrossSubnet = "CrossSubnet",
    }
}
