//! Network names in the configuration: ports, CIDR blocks, DNS names, and host with optional port.
//!
//! Invariant: a value of these types is valid. They accept what upstream accepts (Go's `net.ParseCIDR`, Kubernetes' port
//! rule, the DNS names of Go's validators) and keep what the user wrote, so `10.244.1.5/16` is passed on as it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::Value;

use super::field::{Field, read_integer, read_string};
use super::problem::{FieldPath, Report, quoted};

/// A TCP port, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(u16);

impl Port {
    /// # Panics
    /// If `port` is 0; meant for constants.
    pub const fn of(port: u16) -> Self {
        assert!(port != 0, "0 is no port");
        Self(port)
    }

    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Field for Port {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        if let Some(port) = read_integer(&node, 1, u16::MAX.into(), at, report) {
            self.0 = port as u16;
        }
    }

    fn write(&self) -> Value {
        Value::from(self.0)
    }
}

/// An address block as the user wrote it: the address may have host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    pub const fn v4(address: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix <= 32, "an IPv4 prefix has at most 32 bits");
        Self { address: IpAddr::V4(address), prefix }
    }

    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    pub fn host_bits(&self) -> u8 {
        (if self.is_ipv6() { 128 } else { 32 }) - self.prefix
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The `n`-th address, counted from the network address, if the block has that many.
    pub fn nth(&self, n: u32) -> Option<IpAddr> {
        if u32::from(self.host_bits()) < u32::BITS && n >> self.host_bits() != 0 {
            return None;
        }
        Some(match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(self.host_bits().into()).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits((address.to_bits() & mask) | n))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(self.host_bits().into()).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits((address.to_bits() & mask) | u128::from(n)))
            }
        })
    }
}

/// The block without a single known bit; only there to be read over.
impl Default for Cidr {
    fn default() -> Self {
        Self::v4(Ipv4Addr::UNSPECIFIED, 0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address")]
pub struct ParseCidrError;

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let (address, prefix) = text.split_once('/').ok_or(ParseCidrError)?;
        let address: IpAddr = address.parse().map_err(|_| ParseCidrError)?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(ParseCidrError);
        }
        let prefix: u8 = prefix.parse().map_err(|_| ParseCidrError)?;
        let bits = if address.is_ipv6() { 128 } else { 32 };
        if prefix > bits { Err(ParseCidrError) } else { Ok(Self { address, prefix }) }
    }
}

impl Field for Cidr {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let Some(text) = read_string(node, at, report) else { return };
        match text.parse() {
            Ok(block) => *self = block,
            Err(error) => report.invalid(at, quoted(&text), error.to_string()),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// `host` or `host:port`; the host is an IP address or a DNS name, and never "any address".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets. Empty only in the default, which is read over.
    host: String,
    port: Option<u16>,
}

impl HostPort {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => f.write_str(&join_host_port(&self.host, port)),
            None => f.write_str(&self.host),
        }
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NO_HOST: &str = "must be an IP address or DNS name, optionally followed by a port";
        if is_any_address(text) {
            return Err("must not be the any-address");
        }
        if is_host(text) {
            return Ok(Self { host: text.to_owned(), port: None });
        }
        let (host, port) = text.rsplit_once(':').ok_or(NO_HOST)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(bracketed) => bracketed.parse::<Ipv6Addr>().map(|_| bracketed).map_err(|_| NO_HOST)?,
            None if host.contains(':') || !is_host(host) => return Err(NO_HOST),
            None => host,
        };
        if port.is_empty() || !port.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(NO_HOST);
        }
        if is_any_address(host) {
            return Err("must not be the any-address");
        }
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { host: host.to_owned(), port: Some(port) }),
            _ => Err("port must be between 1 and 65535, inclusive"),
        }
    }
}

impl Field for HostPort {
    fn read(&mut self, node: Value, at: &FieldPath, report: &mut Report) {
        let Some(text) = read_string(node, at, report) else { return };
        match text.parse() {
            Ok(address) => *self = address,
            Err(detail) => report.invalid(at, quoted(&text), detail),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn join_host_port(host: impl fmt::Display, port: u16) -> String {
    let host = host.to_string();
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub fn is_any_address(text: &str) -> bool {
    text.parse().is_ok_and(|address: IpAddr| address.is_unspecified())
}

/// Whether this is an IP address or a DNS name.
pub fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_dns_name(text)
}

/// A DNS name as upstream's validator knows it: underscores are fine, one dot may end it, an IP address is none.
pub fn is_dns_name(text: &str) -> bool {
    const NAME_MAX: usize = 255;
    const LABEL_MAX: usize = 63;
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_ok = |label: &str| {
        let starts_well = label.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let chars_ok = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
        label.len() <= LABEL_MAX && starts_well && chars_ok
    };
    name.len() <= NAME_MAX && name.parse::<IpAddr>().is_err() && name.split('.').all(label_ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn cidr_blocks_are_accepted_as_go_accepts_them() {
        for good in ["10.96.0.0/12", "10.244.1.5/16", "0.0.0.0/0", "1.2.3.4/32", "fd00::/108", "::/128"] {
            assert_eq!(cidr(good).to_string(), good);
        }
        for bad in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            "fd00::/129",
            "010.0.0.0/8",
            "10.0.0/8",
            "x/8",
            "10.0.0.0/99999999999",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(ParseCidrError), "{bad:?}");
        }
    }

    #[test]
    fn the_nth_address_is_counted_from_the_network_and_stays_inside() {
        assert_eq!(cidr("10.96.7.7/12").nth(1), Some("10.96.0.1".parse().unwrap()));
        assert_eq!(cidr("fd00::ff00/108").nth(10), Some("fd00::a".parse().unwrap()));
        assert_eq!(cidr("10.0.0.0/30").nth(3), Some("10.0.0.3".parse().unwrap()));
        assert_eq!(cidr("10.0.0.0/30").nth(4), None);
        assert_eq!(cidr("10.0.0.1/32").nth(0), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(cidr("10.0.0.1/32").nth(1), None);
        assert_eq!(cidr("0.0.0.0/0").nth(u32::MAX), Some("255.255.255.255".parse().unwrap()));
    }

    #[test]
    fn external_addresses_may_carry_a_port() {
        let parsed =
            |text: &str| text.parse::<HostPort>().map(|a| (a.host().to_owned(), a.port(), a.to_string()));
        let same = |host: &str, port, text: &str| Ok((host.to_owned(), port, text.to_owned()));
        assert_eq!(parsed("lb.example.com"), same("lb.example.com", None, "lb.example.com"));
        assert_eq!(parsed("lb.example.com:443"), same("lb.example.com", Some(443), "lb.example.com:443"));
        assert_eq!(parsed("192.0.2.1:6443"), same("192.0.2.1", Some(6443), "192.0.2.1:6443"));
        assert_eq!(parsed("2001:db8::1"), same("2001:db8::1", None, "2001:db8::1"));
        assert_eq!(parsed("[2001:db8::1]:443"), same("2001:db8::1", Some(443), "[2001:db8::1]:443"));
        for bad in [
            "",
            ":443",
            "a:b:c",
            "lb:0",
            "lb:65536",
            "lb:x",
            "0.0.0.0",
            "::",
            "[::]:443",
            "https://lb",
            "a b",
            "[lb]:443",
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dns_names_follow_upstreams_rule() {
        for good in ["cluster.local", "a", "foo_bar.example.com", "example.com.", "1.example"] {
            assert!(is_dns_name(good), "{good:?}");
        }
        let long_label = "a".repeat(64);
        let long_name = ["a"; 129].join(".");
        for bad in ["", ".", "a..b", "-a", "a b", "10.0.0.1", "a/b", &long_label, &long_name] {
            assert!(!is_dns_name(bad), "{bad:?}");
        }
    }
}
