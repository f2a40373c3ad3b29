//! The names and addresses the API server is reached by, as its certificate lists them.
//!
//! Invariant: pure and bounded; two calls with the same facts give the same set. Host names are not resolved: a start must
//! not wait for DNS, and every address of this machine is in the facts already. Called by `plan` and `cli`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A machine with thousands of addresses must not make a certificate that no handshake can carry.
pub const SERVER_NAMES_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    Dns(String),
    Ip(IpAddr),
}

impl Name {
    pub fn parse(text: &str) -> Name {
        match text.parse() {
            Ok(address) => Name::Ip(address),
            Err(_) => Name::Dns(text.to_owned()),
        }
    }

    /// An address as a certificate holds it: 4 or 16 bytes.
    pub fn from_octets(octets: &[u8]) -> Option<Name> {
        match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok().map(|o| Name::Ip(o.into())),
            16 => <[u8; 16]>::try_from(octets).ok().map(|o| Name::Ip(o.into())),
            _ => None,
        }
    }
}

/// Where the names come from.
#[derive(Debug, Clone, Default)]
pub struct ServerNameFacts<'a> {
    pub cluster_domain: &'a str,
    /// What the user calls the API: `spec.api.{address, externalAddress, sans}`.
    pub configured: &'a [String],
    /// The API service's address in each service CIDR.
    pub service_addresses: &'a [IpAddr],
    pub local_addresses: &'a [IpAddr],
}

/// Everything configured comes first, so that a bound on the number can only cost local addresses.
pub fn server_names(facts: &ServerNameFacts<'_>) -> BTreeSet<Name> {
    let domain = facts.cluster_domain;
    let fixed = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        .map(|name| Name::Dns(name.to_owned()))
        .into_iter()
        .chain([
            Name::Dns(format!("kubernetes.default.svc.{domain}")),
            Name::Dns(format!("kubernetes.default.svc.{domain}.")),
            Name::Ip(Ipv4Addr::LOCALHOST.into()),
            Name::Ip(Ipv6Addr::LOCALHOST.into()),
        ]);
    let configured = facts.configured.iter().map(|name| Name::parse(name));
    let addresses = facts.service_addresses.iter().chain(facts.local_addresses).copied().map(Name::Ip);
    let mut names = BTreeSet::new();
    for name in fixed.chain(configured).chain(addresses) {
        if names.len() == SERVER_NAMES_MAX {
            break;
        }
        names.insert(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_k0s_puts_into_its_server_certificate() {
        let local: Vec<IpAddr> =
            ["10.199.0.2", "fe80::a893:25ff:feb0:9604"].map(|a| a.parse().unwrap()).into();
        let names = server_names(&ServerNameFacts {
            cluster_domain: "cluster.local",
            configured: &["10.199.0.2".to_owned()],
            service_addresses: &["10.96.0.1".parse().unwrap()],
            local_addresses: &local,
        });
        let expected = "kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local \
            kubernetes.default.svc.cluster.local. localhost 127.0.0.1 10.199.0.2 ::1 fe80::a893:25ff:feb0:9604 10.96.0.1";
        assert_eq!(names, expected.split_whitespace().map(Name::parse).collect());
    }

    #[test]
    fn too_many_local_addresses_do_not_push_out_configured_names() {
        let local: Vec<IpAddr> = (0..500u32).map(|n| Ipv4Addr::from(n + 1).into()).collect();
        let configured = ["api.example.com".to_owned()];
        let facts =
            ServerNameFacts { configured: &configured, local_addresses: &local, ..Default::default() };
        let names = server_names(&facts);
        assert_eq!(names.len(), SERVER_NAMES_MAX);
        assert!(names.contains(&Name::parse("api.example.com")));
    }
}
