//! `spec.api`: where kube-apiserver listens, and what names it answers to.
//!
//! Read by the plan (arguments of kube-apiserver), by the certificates (names) and by the kubeconfigs (URLs).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::address::{HostPort, Port, is_host, join_host_port};
use super::duration::GoDuration;
use super::field::section;
use super::problem::{FieldPath, Report, quoted};

section! {
    pub struct Api: rules {
        /// Advertised to the cluster. By default the host's first public address.
        address "address" (zero_is_default): IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST),
        /// Listen on `address` only; the cluster's own clients then use it instead of localhost.
        only_bind_to_address "onlyBindToAddress": bool = false,
        /// A load balancer or name in front of all controllers.
        external_address "externalAddress" (zero_is_default): Option<HostPort> = None,
        port "port" (zero_is_default): Port = Port::of(6443),
        /// Port of the join API.
        k0s_api_port "k0sApiPort" (zero_is_default): Port = Port::of(9443),
        /// Further names and addresses for the server certificate.
        sans "sans": Vec<String> = Vec::new(),
        /// Flags of kube-apiserver without their dashes; they win over ours.
        extra_args "extraArgs": BTreeMap<String, String> = BTreeMap::new(),
        /// Arguments of kube-apiserver, appended as they are.
        raw_args "rawArgs": Vec<String> = Vec::new(),
        ca "ca": CertificateAuthority = CertificateAuthority::default(),
    }
}

section! {
    /// How long a certificate authority and what it signs are valid.
    pub struct CertificateAuthority: rules {
        expires_after "expiresAfter": GoDuration = GoDuration::from_hours(87_600),
        certificates_expire_after "certificatesExpireAfter": GoDuration = GoDuration::from_hours(8_760),
    }
}

impl Api {
    /// What the cluster is called from outside: the external address if there is one.
    pub fn public_host(&self) -> String {
        self.external_address
            .as_ref()
            .map_or_else(|| self.address.to_string(), |external| external.host().to_owned())
    }

    /// URL for clients outside this host.
    pub fn url(&self) -> String {
        let port = self.external_address.as_ref().and_then(HostPort::port).unwrap_or(self.port.get());
        format!("https://{}", join_host_port(self.public_host(), port))
    }

    /// URL for clients on this host.
    pub fn local_url(&self) -> String {
        if self.only_bind_to_address {
            return format!("https://{}", join_host_port(self.address, self.port.get()));
        }
        format!("https://localhost:{}", self.port)
    }

    /// Every name the user gave for the API, each once: `address`, `externalAddress`, `sans`.
    pub fn names(&self) -> Vec<String> {
        let external = self.external_address.iter().map(|external| external.host().to_owned());
        let mut names = Vec::new();
        for name in std::iter::once(self.address.to_string()).chain(external).chain(self.sans.iter().cloned())
        {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn rules(&self, at: &FieldPath, report: &mut Report) {
        if self.address.is_unspecified() {
            report.invalid(
                &at.child("address"),
                quoted(&self.address.to_string()),
                "must not be the any-address",
            );
        }
        for (n, name) in self.sans.iter().enumerate() {
            if !is_host(name) {
                report.invalid(&at.child("sans").index(n), quoted(name), "invalid IP address / DNS name");
            }
        }
    }
}

impl CertificateAuthority {
    fn rules(&self, at: &FieldPath, report: &mut Report) {
        let lifetimes = [
            ("expiresAfter", self.expires_after),
            ("certificatesExpireAfter", self.certificates_expire_after),
        ];
        for (name, lifetime) in lifetimes {
            if lifetime <= GoDuration::ZERO {
                report.invalid(&at.child(name), quoted(&lifetime.to_string()), "must be greater than 0");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(address: &str, external: &str) -> Api {
        let external_address = (!external.is_empty()).then(|| external.parse().unwrap());
        Api { address: address.parse().unwrap(), external_address, ..Api::default() }
    }

    #[test]
    fn urls_name_the_external_address_first() {
        assert_eq!(api("192.0.2.1", "").url(), "https://192.0.2.1:6443");
        assert_eq!(api("2001:db8::1", "").url(), "https://[2001:db8::1]:6443");
        assert_eq!(api("192.0.2.1", "lb.example.com").url(), "https://lb.example.com:6443");
        assert_eq!(api("192.0.2.1", "lb.example.com:443").url(), "https://lb.example.com:443");
    }

    #[test]
    fn local_clients_use_localhost_unless_only_the_address_is_bound() {
        assert_eq!(api("192.0.2.1", "lb").local_url(), "https://localhost:6443");
        let bound = Api { only_bind_to_address: true, ..api("2001:db8::1", "lb") };
        assert_eq!(bound.local_url(), "https://[2001:db8::1]:6443");
    }

    #[test]
    fn names_are_listed_once() {
        let mut api = api("192.0.2.1", "lb.example.com:443");
        api.sans = vec!["192.0.2.1".into(), "k.example.com".into(), "lb.example.com".into()];
        assert_eq!(api.names(), ["192.0.2.1", "lb.example.com", "k.example.com"]);
    }
}
