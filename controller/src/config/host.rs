//! What the defaults depend on: the addresses of this host.
//!
//! The choice of an address is a pure function of a list of interfaces; only [`Host::detect`] asks the kernel, over
//! netlink because only that tells secondary and temporary addresses apart from the ones to be known by.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// The addresses the defaults are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Default of `spec.api.address`.
    pub address: IpAddr,
    /// Every address others may know this host by; names in the server certificate.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub addresses: Vec<InterfaceAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    /// In the same subnet as an earlier address, or temporary (IPv6 privacy).
    pub is_secondary: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot list this host's addresses: set spec.api.address in the configuration")]
pub struct HostError(#[from] io::Error);

impl Host {
    /// # Errors
    /// If the kernel does not answer.
    pub fn detect() -> Result<Self, HostError> {
        Ok(Self::of(&interfaces()?))
    }

    pub fn of(interfaces: &[Interface]) -> Self {
        let primary: Vec<IpAddr> = interfaces
            .iter()
            .filter(|interface| is_suitable(&interface.name))
            .flat_map(|interface| &interface.addresses)
            .filter(|address| !address.is_secondary)
            .map(|address| address.address)
            .collect();
        let global =
            |ipv6: bool| primary.iter().find(|address| address.is_ipv6() == ipv6 && is_global(**address));
        let address = global(false).or_else(|| global(true)).copied();
        let addresses = interfaces
            .iter()
            // A virtual address for load balancing often sits on lo.
            .filter(|interface| interface.name == "lo" || is_suitable(&interface.name))
            .flat_map(|interface| &interface.addresses)
            .filter(|address| !address.address.is_loopback() && !address.is_temporary())
            .map(|address| address.address)
            .collect();
        Self { address: address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), addresses }
    }
}

impl InterfaceAddress {
    /// An IPv6 privacy address: the kernel marks it as it marks a secondary one, and replaces it every day.
    fn is_temporary(&self) -> bool {
        self.is_secondary && self.address.is_ipv6()
    }
}

/// Interfaces of pod networks and virtual services are not what a host is known by.
fn is_suitable(name: &str) -> bool {
    !["lo", "vxlan.calico", "kube-bridge", "dummyvip0"].contains(&name)
        && !name.starts_with("veth")
        && !name.starts_with("cali")
}

/// Go's "global unicast": private addresses are, link-local ones are not.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_link_local()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    }
}

// Numbers of rtnetlink(7) and netlink(7).
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A request for all objects: NLM_F_REQUEST | NLM_F_DUMP.
const REQUEST_ALL: u16 = 0x301;
const HEADER_LEN: usize = 16;
const IFINFOMSG_LEN: usize = 16;
const IFADDRMSG_LEN: usize = 8;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
/// The local end of a point-to-point link; elsewhere the same as IFA_ADDRESS.
const IFA_LOCAL: u16 = 2;
const IFA_F_SECONDARY: u8 = 1;
/// The kernel fills at most 32 KiB of a reply.
const REPLY_BYTES_MAX: usize = 64 * 1024;

fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces: BTreeMap<u32, Interface> = BTreeMap::new();
    dump(RTM_GETLINK, IFINFOMSG_LEN, |kind, body| {
        if let Some((index, name)) = (kind == RTM_NEWLINK).then(|| link(body)).flatten() {
            interfaces.insert(index, Interface { name, addresses: Vec::new() });
        }
    })?;
    dump(RTM_GETADDR, IFADDRMSG_LEN, |kind, body| {
        let address = (kind == RTM_NEWADDR).then(|| interface_address(body)).flatten();
        let interface = address.and_then(|(index, address)| Some((interfaces.get_mut(&index)?, address)));
        if let Some((interface, address)) = interface {
            interface.addresses.push(address);
        }
    })?;
    Ok(interfaces.into_values().collect())
}

/// Asks for all objects of a kind and hands over type and body of every message that comes back.
fn dump(request: u16, body_len: usize, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut message = vec![0; HEADER_LEN + body_len];
    let message_len = message.len() as u32;
    message[0..4].copy_from_slice(&message_len.to_ne_bytes());
    message[4..6].copy_from_slice(&request.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_ALL.to_ne_bytes());
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; REPLY_BYTES_MAX];
    loop {
        let (received, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if received == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        for (kind, body) in messages(&buffer[..received]) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(netlink_error(body)),
                _ => each(kind, body),
            }
        }
    }
}

fn netlink_error(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Type and body of each message of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([*datagram.get(4)?, *datagram.get(5)?]);
        let body = datagram.get(HEADER_LEN..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const ATTRIBUTE_HEADER_LEN: usize = 4;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Index and name of an interface: `struct ifinfomsg`, then attributes.
fn link(body: &[u8]) -> Option<(u32, String)> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let (_, name) = attributes(body.get(IFINFOMSG_LEN..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some((index, String::from_utf8_lossy(name).into_owned()))
}

/// Interface index and address: `struct ifaddrmsg`, then attributes.
fn interface_address(body: &[u8]) -> Option<(u32, InterfaceAddress)> {
    let flags = *body.get(2)?;
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(body.get(IFADDRMSG_LEN..)?) {
        match kind {
            IFA_LOCAL => local = ip_address(value),
            IFA_ADDRESS => address = ip_address(value),
            _ => {}
        }
    }
    let address =
        InterfaceAddress { address: local.or(address)?, is_secondary: flags & IFA_F_SECONDARY != 0 };
    Some((index, address))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `~` marks a secondary address.
    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let address = |text: &&str| InterfaceAddress {
            address: text.trim_start_matches('~').parse().unwrap(),
            is_secondary: text.starts_with('~'),
        };
        Interface { name: name.to_owned(), addresses: addresses.iter().map(address).collect() }
    }

    fn address_of(interfaces: &[Interface]) -> String {
        Host::of(interfaces).address.to_string()
    }

    #[test]
    fn the_first_global_ipv4_address_is_what_a_host_is_known_by() {
        let hosts = [
            interface("lo", &["127.0.0.1", "192.0.2.99"]),
            interface("veth12", &["10.0.0.1"]),
            interface("cali0", &["10.0.0.2"]),
            interface("kube-bridge", &["10.244.0.1"]),
            interface("eth0", &["169.254.1.1", "2001:db8::1", "~192.0.2.7", "192.0.2.8"]),
            interface("eth1", &["198.51.100.1"]),
        ];
        assert_eq!(address_of(&hosts), "192.0.2.8");
    }

    #[test]
    fn ipv6_is_the_second_choice_and_loopback_the_last() {
        let ipv6 = [
            interface("eth0", &["fe80::1", "~2001:db8::aaaa", "2001:db8::1"]),
            interface("eth1", &["fd00::1"]),
        ];
        assert_eq!(address_of(&ipv6), "2001:db8::1");
        assert_eq!(address_of(&[interface("eth0", &["fe80::1"])]), "127.0.0.1");
        assert_eq!(address_of(&[]), "127.0.0.1");
    }

    #[test]
    fn all_addresses_leave_out_loopback_pod_networks_and_temporary_ones() {
        let hosts = [
            interface("lo", &["127.0.0.1", "::1", "192.0.2.99"]),
            interface("eth0", &["192.0.2.8", "~192.0.2.9", "fe80::1", "~2001:db8::aaaa"]),
            interface("kube-bridge", &["10.244.0.1"]),
        ];
        let expected: Vec<IpAddr> =
            ["192.0.2.99", "192.0.2.8", "192.0.2.9", "fe80::1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(Host::of(&hosts).addresses, expected);
    }

    #[test]
    fn the_kernel_tells_of_the_loopback_interface() {
        let interfaces = interfaces().unwrap();
        let loopback =
            interfaces.iter().find(|interface| interface.name == "lo").expect("every Linux has lo");
        assert!(
            loopback.addresses.iter().any(|address| address.address == Ipv4Addr::LOCALHOST),
            "{loopback:?}"
        );
    }

    #[test]
    fn truncated_messages_are_skipped() {
        assert_eq!(messages(&[0; 3]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[255; 64]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(interface_address(&[0; 7]), None);
        assert_eq!(link(&[0; 20]), None);
    }
}
