//! `spec.network`: address ranges, cluster domain, and the settings of everything that moves packets.
//!
//! Read by the plan: service and pod ranges become arguments of kube-apiserver and kube-controller-manager, the first
//! service address a name in the server certificate.

use std::net::{IpAddr, Ipv4Addr};

use super::address::{Cidr, is_dns_name};
use super::cni::{Calico, CalicoMode, KubeRouter, Provider};
use super::field::{choice, section};
use super::kube_proxy::KubeProxy;
use super::load_balancing::{ControlPlaneLoadBalancing, NodeLocalLoadBalancing, NodeLocalType, Traefik};
use super::patches::Patch;
use super::problem::{FieldPath, Report, quoted};

/// kube-apiserver refuses service ranges with more host bits.
const SERVICE_HOST_BITS_MAX: u8 = 20;

section! {
    pub struct Network: rules {
        provider "provider" (zero_is_default): Provider = Provider::KubeRouter,
        pod_cidr "podCIDR" (zero_is_default): Cidr = Cidr::v4(Ipv4Addr::new(10, 244, 0, 0), 16),
        service_cidr "serviceCIDR" (zero_is_default): Cidr = Cidr::v4(Ipv4Addr::new(10, 96, 0, 0), 12),
        cluster_domain "clusterDomain" (zero_is_default): String = "cluster.local".to_owned(),
        /// `None`: the family of the address the API is known by.
        primary_address_family "primaryAddressFamily" (zero_is_default): Option<AddressFamily> = None,
        dual_stack "dualStack": DualStack = DualStack::default(),
        kube_proxy "kubeProxy": KubeProxy = KubeProxy::default(),
        /// Means nothing with another provider.
        kube_router "kuberouter": KubeRouter = KubeRouter::default(),
        /// There is one with that provider; means nothing with another.
        calico "calico": Option<Calico> = None,
        core_dns "coreDNS": Option<CoreDns> = None,
        node_local_load_balancing "nodeLocalLoadBalancing": NodeLocalLoadBalancing =
            NodeLocalLoadBalancing::default(),
        control_plane_load_balancing "controlPlaneLoadBalancing": Option<ControlPlaneLoadBalancing> = None,
    }
}

choice! {
    pub enum AddressFamily {
        Ipv4 = "IPv4",
        Ipv6 = "IPv6",
    }
}

section! {
    pub struct DualStack {
        enabled "enabled" (always): bool = false,
        ipv6_pod_cidr "IPv6podCIDR" (zero_is_default): Option<Cidr> = None,
        ipv6_service_cidr "IPv6serviceCIDR" (zero_is_default): Option<Cidr> = None,
    }
}

section! {
    pub struct CoreDns {
        patches "patches": Vec<Patch> = Vec::new(),
    }
}

/// The service range is too small for a well-known address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.network.serviceCIDR: {cidr} has no room for the address of {purpose}")]
pub struct ServiceCidrTooSmall {
    pub cidr: Cidr,
    pub purpose: &'static str,
}

impl Network {
    /// Pod ranges, the primary family first.
    pub fn pod_cidrs(&self, primary: AddressFamily) -> Vec<Cidr> {
        self.ordered(primary, self.pod_cidr, self.dual_stack.ipv6_pod_cidr)
    }

    /// Service ranges, the primary family first.
    pub fn service_cidrs(&self, primary: AddressFamily) -> Vec<Cidr> {
        self.ordered(primary, self.service_cidr, self.dual_stack.ipv6_service_cidr)
    }

    fn ordered(&self, primary: AddressFamily, cidr: Cidr, ipv6: Option<Cidr>) -> Vec<Cidr> {
        let mut cidrs = vec![cidr];
        cidrs.extend(ipv6.filter(|_| self.dual_stack.enabled));
        if primary == AddressFamily::Ipv6 {
            cidrs.reverse();
        }
        cidrs
    }

    /// The address of service `kubernetes` in every family: the first of each service range.
    pub fn api_service_addresses(&self, primary: AddressFamily) -> Result<Vec<IpAddr>, ServiceCidrTooSmall> {
        self.service_cidrs(primary)
            .into_iter()
            .map(|cidr| cidr.nth(1).ok_or(ServiceCidrTooSmall { cidr, purpose: "the API service" }))
            .collect()
    }

    /// The address of the cluster's DNS: the tenth of the service range, the second of a very small one.
    pub fn dns_address(&self) -> Result<IpAddr, ServiceCidrTooSmall> {
        let cidr = self.service_cidr;
        let n = if cidr.host_bits() <= 3 { 2 } else { 10 };
        cidr.nth(n).ok_or(ServiceCidrTooSmall { cidr, purpose: "cluster DNS" })
    }

    /// Gives the chosen provider and load balancer their defaults.
    pub(super) fn settle(&mut self) {
        if self.provider == Provider::Calico && self.calico.is_none() {
            self.calico = Some(Calico::default());
        }
        let local = &mut self.node_local_load_balancing;
        if local.kind == NodeLocalType::Traefik && local.traefik.is_none() {
            local.traefik = Some(Traefik::default());
        }
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.calico.is_some() && self.provider != Provider::Calico {
            report.warn(format!("{} is not used with provider {}", at.child("calico"), self.provider));
        }
        if !is_dns_name(&self.cluster_domain) {
            report.invalid(&at.child("clusterDomain"), quoted(&self.cluster_domain), "invalid DNS name");
        }
        if self.pod_cidr.is_ipv6() != self.service_cidr.is_ipv6() {
            let detail = format!("must be of the same address family as serviceCIDR ({})", self.service_cidr);
            report.invalid(&at.child("podCIDR"), quoted(&self.pod_cidr.to_string()), detail);
        }
        service_range_rules(self.service_cidr, &at.child("serviceCIDR"), report);
        if self.dns_address().is_err() {
            let detail = "must have room for the address of cluster DNS";
            report.invalid(&at.child("serviceCIDR"), quoted(&self.service_cidr.to_string()), detail);
        }
        if self.dual_stack.enabled {
            self.dual_stack_rules(at, report);
        }
    }

    fn dual_stack_rules(&self, at: &FieldPath, report: &mut Report) {
        let calico_mode =
            self.calico.as_ref().map(|calico| calico.mode).filter(|_| self.provider == Provider::Calico);
        if calico_mode.is_some_and(|mode| mode == CalicoMode::Vxlan) {
            report.forbidden(
                &at.child("calico").child("mode"),
                "dual-stack for calico is only supported for mode `bird`",
            );
        }
        for (name, cidr) in [("podCIDR", self.pod_cidr), ("serviceCIDR", self.service_cidr)] {
            if cidr.is_ipv6() {
                report.invalid(
                    &at.child(name),
                    quoted(&cidr.to_string()),
                    "must be IPv4 if dual-stack is enabled",
                );
            }
        }
        let at = at.child("dualStack");
        let ranges = [
            ("IPv6podCIDR", self.dual_stack.ipv6_pod_cidr),
            ("IPv6serviceCIDR", self.dual_stack.ipv6_service_cidr),
        ];
        for (name, cidr) in ranges {
            match cidr {
                None => report.required(&at.child(name), "must be specified if dual-stack is enabled"),
                Some(cidr) if !cidr.is_ipv6() => {
                    report.invalid(&at.child(name), quoted(&cidr.to_string()), "must be IPv6");
                }
                Some(_) => {}
            }
        }
        if let Some(cidr) = self.dual_stack.ipv6_service_cidr {
            service_range_rules(cidr, &at.child("IPv6serviceCIDR"), report);
        }
    }
}

fn service_range_rules(cidr: Cidr, at: &FieldPath, report: &mut Report) {
    let shown = quoted(&cidr.to_string());
    if cidr.is_ipv6() && cidr.host_bits() > SERVICE_HOST_BITS_MAX {
        let detail = format!("prefix length must be at least {}", 128 - SERVICE_HOST_BITS_MAX);
        report.invalid(at, shown, detail);
    } else if cidr.nth(1).is_none() {
        report.invalid(at, shown, "must have room for the address of the API service");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(service_cidr: &str) -> Network {
        Network { service_cidr: service_cidr.parse().unwrap(), ..Network::default() }
    }

    fn dual() -> Network {
        let dual_stack = DualStack {
            enabled: true,
            ipv6_pod_cidr: Some("fd00::/108".parse().unwrap()),
            ipv6_service_cidr: Some("fd01::/108".parse().unwrap()),
        };
        Network { dual_stack, ..Network::default() }
    }

    fn shown(cidrs: Vec<Cidr>) -> String {
        cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn ranges_come_with_the_primary_family_first() {
        assert_eq!(shown(Network::default().service_cidrs(AddressFamily::Ipv6)), "10.96.0.0/12");
        assert_eq!(shown(dual().service_cidrs(AddressFamily::Ipv4)), "10.96.0.0/12,fd01::/108");
        assert_eq!(shown(dual().service_cidrs(AddressFamily::Ipv6)), "fd01::/108,10.96.0.0/12");
        assert_eq!(shown(dual().pod_cidrs(AddressFamily::Ipv6)), "fd00::/108,10.244.0.0/16");
    }

    #[test]
    fn well_known_service_addresses_are_counted_from_the_network() {
        let addresses = dual().api_service_addresses(AddressFamily::Ipv4).unwrap();
        assert_eq!(addresses, ["10.96.0.1".parse::<IpAddr>().unwrap(), "fd01::1".parse().unwrap()]);
        assert_eq!(Network::default().dns_address().unwrap().to_string(), "10.96.0.10");
        assert_eq!(network("10.0.0.0/29").dns_address().unwrap().to_string(), "10.0.0.2");
        assert_eq!(network("10.0.0.0/28").dns_address().unwrap().to_string(), "10.0.0.10");
        let error = network("10.0.0.0/31").dns_address().unwrap_err();
        assert_eq!(
            error.to_string(),
            "spec.network.serviceCIDR: 10.0.0.0/31 has no room for the address of cluster DNS"
        );
    }
}
