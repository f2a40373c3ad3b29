//! What the kernel says of this process, under the names Prometheus clients use. A value that can't be read is absent.

use rustix::process::{Resource, getrlimit};
use std::fs;

pub struct Process {
    pub cpu_seconds: f64,
    pub start_time_seconds: f64,
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    /// `u64::MAX`: no limit, as Prometheus' own clients have it.
    pub virtual_bytes_max: Option<u64>,
    /// Received and sent, by all of this network namespace.
    pub network_bytes: Option<(u64, u64)>,
}

/// Fields of `/proc/self/stat` after the command name, counted from 0 (see proc(5)).
const UTIME: usize = 11;
const STIME: usize = 12;
const START_TIME: usize = 19;
const VSIZE: usize = 20;
const RSS: usize = 21;

impl Process {
    pub fn read() -> Option<Process> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let kernel = fs::read_to_string("/proc/stat").ok()?;
        let boot_time: f64 =
            kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(Process {
            cpu_seconds: (field(UTIME)? + field(STIME)?) as f64 / ticks,
            start_time_seconds: boot_time + field(START_TIME)? as f64 / ticks,
            virtual_bytes: field(VSIZE)?,
            resident_bytes: field(RSS)? * rustix::param::page_size() as u64,
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: getrlimit(Resource::Nofile).current,
            virtual_bytes_max: Some(getrlimit(Resource::As).current.unwrap_or(u64::MAX)),
            network_bytes: fs::read_to_string("/proc/self/net/netstat")
                .ok()
                .and_then(|text| network_bytes(&text)),
        })
    }
}

/// The kernel writes two lines for each protocol: names, then numbers.
fn network_bytes(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let number = |wanted: &str| {
        let at = names.split_ascii_whitespace().position(|name| name == wanted)?;
        numbers.split_ascii_whitespace().nth(at)?.parse().ok()
    };
    Some((number("InOctets")?, number("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let process = Process::read().expect("/proc is there");
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes > process.resident_bytes);
        assert!(process.open_fds > Some(2) && process.start_time_seconds > 1.6e9);
    }

    #[test]
    fn bytes_are_found_by_their_names() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 7 8\n";
        assert_eq!(network_bytes(text), Some((7, 8)));
        assert_eq!(network_bytes("IpExt: InOctets\nIpExt: 7\n"), None);
    }
}
