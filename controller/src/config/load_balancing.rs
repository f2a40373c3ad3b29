//! `spec.network.nodeLocalLoadBalancing` (NLLB: workers find the controllers) and
//! `spec.network.controlPlaneLoadBalancing` (CPLB: controllers share a virtual address).
//!
//! Upstream fills in defaults of CPLB while validating it; here they are plain defaults.

use std::net::IpAddr;

use serde_json::Value;

use super::address::{Cidr, Port};
use super::duration::GoDuration;
use super::field::{Field, choice, read_integer, section};
use super::images::{Image, PullPolicy};
use super::problem::{FieldPath, Report, quoted};
use super::secret::{HIDDEN, Secret};

section! {
    pub struct NodeLocalLoadBalancing {
        enabled "enabled" (always): bool = false,
        kind "type" (zero_is_default): NodeLocalType = NodeLocalType::EnvoyProxy,
        envoy_proxy "envoyProxy": Option<EnvoyProxy> = Some(EnvoyProxy::default()),
        traefik "traefik": Option<Traefik> = None,
    }
}

choice! {
    pub enum NodeLocalType {
        EnvoyProxy = "EnvoyProxy",
        Traefik = "Traefik",
    }
}

section! {
    pub struct EnvoyProxy {
        image "image": Image = Image::new("quay.io/k0sproject/envoy-distroless", "v1.39.0"),
        /// `None`: `spec.images.default_pull_policy`.
        image_pull_policy "imagePullPolicy" (zero_is_default): Option<PullPolicy> = None,
        api_server_bind_port "apiServerBindPort" (zero_is_default): Port = Port::of(7443),
        konnectivity_server_bind_port "konnectivityServerBindPort": Port = Port::of(7132),
    }
}

section! {
    pub struct Traefik {
        image "image": Image = Image::new("quay.io/k0sproject/traefik", "v3.7.8-k0s.0"),
        /// `None`: `spec.images.default_pull_policy`.
        image_pull_policy "imagePullPolicy" (zero_is_default): Option<PullPolicy> = None,
        api_server_bind_port "apiServerBindPort" (zero_is_default): Port = Port::of(7443),
        konnectivity_server_bind_port "konnectivityServerBindPort": Port = Port::of(7132),
    }
}

section! {
    pub struct ControlPlaneLoadBalancing {
        enabled "enabled": bool = false,
        kind "type" (zero_is_default): ControlPlaneType = ControlPlaneType::Keepalived,
        keepalived "keepalived": Option<Keepalived> = None,
    }
}

choice! {
    pub enum ControlPlaneType {
        Keepalived = "Keepalived",
    }
}

section! {
    pub struct Keepalived: rules {
        vrrp_instances "vrrpInstances": Vec<VrrpInstance> = Vec::new(),
        virtual_servers "virtualServers": Vec<VirtualServer> = Vec::new(),
        user_space_proxy_bind_port "userSpaceProxyBindPort" (zero_is_default): Port = Port::of(6444),
        /// Only the virtual address, without a load balancer.
        disable_load_balancer "disableLoadBalancer": bool = false,
        /// Path of a template for keepalived's VRRP part.
        config_template_vrrp "configTemplateVRRP": String = String::new(),
        /// Path of a template for keepalived's virtual servers.
        config_template_vs "configTemplateVS": String = String::new(),
    }
}

section! {
    pub struct VrrpInstance: rules {
        virtual_ips "virtualIPs": Vec<Cidr> = Vec::new(),
        /// Name or MAC address; empty: the one of the default route.
        interface "interface": String = String::new(),
        /// 0: 51 plus the place in the list.
        virtual_router_id "virtualRouterID": i32 = 0,
        advert_interval_seconds "advertIntervalSeconds" (zero_is_default): i32 = 1,
        auth_pass "authPass": Secret = Secret::default(),
        /// Empty: multicast.
        unicast_peers "unicastPeers": Vec<String> = Vec::new(),
        unicast_source_ip "unicastSourceIP": String = String::new(),
        /// IPv6 only.
        address_label "addressLabel" (zero_is_default): AddressLabel = AddressLabel(10_000),
    }
}

section! {
    pub struct VirtualServer: rules {
        ip_address "ipAddress": String = String::new(),
        /// Precise to the microsecond.
        delay_loop "delayLoop": GoDuration = GoDuration::from_secs(60),
        lb_algo "lbAlgo" (zero_is_default): LbAlgo = LbAlgo::Rr,
        lb_kind "lbKind" (zero_is_default): LbKind = LbKind::Dr,
        persistence_timeout_seconds "persistenceTimeoutSeconds" (zero_is_default): i32 = 360,
    }
}

choice! {
    pub enum LbAlgo {
        Rr = "rr", Wrr = "wrr", Lc = "lc", Wlc = "wlc", Lblc = "lblc", Dh = "dh", Sh = "sh", Sed = "sed", Nq = "nq",
    }
}

choice! {
    pub enum LbKind {
        Dr = "DR",
        Nat = "NAT",
        Tun = "TUN",
    }
}

/// An address label of the kernel: any 32 bits but all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressLabel(pub u32);

impl Field for AddressLabel {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let max = i64::from(u32::MAX) - 1;
        if let Some(label) = read_integer(&node, 0, max, at, report) {
            self.0 = label as u32;
        }
    }

    fn write(&self) -> Value {
        Value::from(self.0)
    }
}

const FIRST_ROUTER_ID: usize = 51;
const ROUTER_ID_MAX: usize = 255;

impl Keepalived {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        for (n, instance) in self.vrrp_instances.iter().enumerate() {
            if instance.virtual_router_id == 0 && FIRST_ROUTER_ID + n > ROUTER_ID_MAX {
                let path = at.child("vrrpInstances").index(n).child("virtualRouterID");
                report.required(&path, "there is no number left to choose automatically");
            }
        }
    }
}

impl VrrpInstance {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        const AUTH_PASS_MAX: usize = 8;
        if self.virtual_ips.is_empty() {
            report.required(&at.child("virtualIPs"), "must have at least one address");
        }
        if !(0..=ROUTER_ID_MAX as i32).contains(&self.virtual_router_id) {
            let detail = "must be between 1 and 255, inclusive";
            report.invalid(&at.child("virtualRouterID"), self.virtual_router_id, detail);
        }
        if self.advert_interval_seconds < 1 {
            report.invalid(
                &at.child("advertIntervalSeconds"),
                self.advert_interval_seconds,
                "must be at least 1",
            );
        }
        match self.auth_pass.reveal().len() {
            0 => report.required(&at.child("authPass"), "must be specified"),
            1..=AUTH_PASS_MAX => {}
            _ => report.invalid(&at.child("authPass"), HIDDEN, "must be 8 characters or less"),
        }
        self.unicast_rules(at, report);
    }

    fn unicast_rules(&self, at: &FieldPath, report: &mut Report) {
        if self.unicast_peers.is_empty() {
            return;
        }
        let source: Option<IpAddr> = self.unicast_source_ip.parse().ok();
        if source.is_none() {
            let detail = "must be an IP address if there are unicastPeers";
            report.invalid(&at.child("unicastSourceIP"), quoted(&self.unicast_source_ip), detail);
        }
        for (n, peer) in self.unicast_peers.iter().enumerate() {
            let path = at.child("unicastPeers").index(n);
            match peer.parse::<IpAddr>() {
                Err(_) => report.invalid(&path, quoted(peer), "invalid IP address"),
                Ok(peer) if Some(peer) == source => {
                    report.invalid(&path, quoted(&peer.to_string()), "must not be unicastSourceIP");
                }
                Ok(_) => {}
            }
        }
    }
}

impl VirtualServer {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        const PERSISTENCE_MAX: i32 = 2_678_400;
        if self.ip_address.parse::<IpAddr>().is_err() {
            report.invalid(&at.child("ipAddress"), quoted(&self.ip_address), "invalid IP address");
        }
        if self.delay_loop.is_negative() {
            report.invalid(&at.child("delayLoop"), quoted(&self.delay_loop.to_string()), "must be positive");
        }
        if !(1..=PERSISTENCE_MAX).contains(&self.persistence_timeout_seconds) {
            let detail = format!("must be between 1 and {PERSISTENCE_MAX}, inclusive");
            report.invalid(&at.child("persistenceTimeoutSeconds"), self.persistence_timeout_seconds, detail);
        }
    }
}
