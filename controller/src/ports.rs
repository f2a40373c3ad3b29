//! Asking before a start whether the ports are free, and who has them if not.
//!
//! Invariant: nothing stays bound. The answer is a courtesy: another process may still come first, and then the component
//! itself reports it. Called by `run`; reads `/proc`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

/// A port that a component is about to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortClaim {
    pub component: &'static str,
    /// `None` is every address of the machine.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// How the user chooses another one.
    pub configured_by: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "port {port} of {component} is in use{holder}: stop that process or choose another port ({configured_by})",
    port = claim.port, component = claim.component, configured_by = claim.configured_by,
    holder = holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default()
)]
pub struct PortInUse {
    pub claim: PortClaim,
    /// `name (pid 123)`, where `/proc` shows it to us.
    pub holder: Option<String>,
}

/// The first claim that somebody else holds.
pub fn check(claims: &[PortClaim]) -> Result<(), PortInUse> {
    for claim in claims {
        if is_taken(claim) {
            return Err(PortInUse { claim: claim.clone(), holder: holder_of(claim.port) });
        }
    }
    Ok(())
}

fn is_taken(claim: &PortClaim) -> bool {
    let address = claim.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    match TcpListener::bind(SocketAddr::new(address, claim.port)) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => true,
        // No IPv6 on this machine: the wildcard is IPv4's then.
        Err(_) if claim.address.is_none() => {
            TcpListener::bind(("0.0.0.0", claim.port)).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
        }
        // No right to bind a low port, or no such address: not this check's business.
        Err(_) => false,
    }
}

fn holder_of(port: u16) -> Option<String> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let pid = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| holds_any(*pid, &inodes))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", name.trim_end()))
}

/// Socket inodes that listen on `port` in a table of `/proc/net/tcp`'s format.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local_port = fields.get(1)?.rsplit(':').next()?;
        let matches = u16::from_str_radix(local_port, 16).ok()? == port && *fields.get(3)? == LISTEN;
        matches.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds_any(pid: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let Ok(target) = fs::read_link(descriptor.path()) else { return false };
        let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(address: Option<&str>, port: u16) -> PortClaim {
        PortClaim {
            component: "kube-apiserver",
            address: address.map(|a| a.parse().unwrap()),
            port,
            configured_by: "spec.api.port",
        }
    }

    #[test]
    fn taken_port_names_its_holder_on_loopback_and_on_every_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in [None, Some("127.0.0.1")] {
            let error = check(&[claim(address, port)]).unwrap_err();
            let holder = error.holder.as_deref().unwrap();
            assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
            assert!(error.to_string().ends_with("choose another port (spec.api.port)"), "{error}");
        }
        drop(listener);
        check(&[claim(None, port), claim(Some("127.0.0.1"), port)]).unwrap();
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
            1: 0100007F:192B 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n\
            2: 0100007F:192C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0\n";
        assert_eq!(listeners(table, 6443), [4711]);
    }
}
