//! System accounts the components run as, read from `/etc/passwd`.
//!
//! Invariant: an account is looked up, never created here. Name services other than the file are not asked: accounts of
//! system daemons are local, and a start must not hang on a directory server. Called by `run` and `cli`; calls nobody.

use std::path::Path;

/// Who a process runs as and who owns its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    pub const ROOT: Account = Account { uid: 0, gid: 0 };
}

/// The accounts that k0s uses, as its documentation names them.
pub const KUBE_APISERVER: &str = "kube-apiserver";
pub const KUBE_SCHEDULER: &str = "kube-scheduler";

/// Finds `name` among this machine's local accounts.
pub fn find(name: &str) -> std::io::Result<Option<Account>> {
    Ok(find_in(&std::fs::read_to_string(Path::new("/etc/passwd"))?, name))
}

fn find_in(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# comment\nkube:x:7:8::/:/bin/false\nkube-apiserver:x:998:997::/:/sbin/nologin\n";
        assert_eq!(find_in(passwd, "kube-apiserver"), Some(Account { uid: 998, gid: 997 }));
        assert_eq!(find_in(passwd, "kube-scheduler"), None);
        assert_eq!(find_in("broken:x:abc:1::/:/", "broken"), None);
    }
}
