//! The account a component runs as, and how it is found by name.
//!
//! Accounts of k0s are local ones, made by `k0s install`, so `/etc/passwd` and `/etc/group` are read directly: a
//! name service that is down must not keep the control plane down.

use std::path::Path;
use std::{fs, io};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; all others are dropped.
    pub groups: Vec<u32>,
}

impl User {
    /// The local account of that name with its groups, or `None` if there is none.
    ///
    /// # Errors
    /// When `/etc/passwd` or `/etc/group` cannot be read.
    pub fn lookup(name: &str) -> Result<Option<User>, LookupError> {
        Ok(find(name, &read(PASSWD)?, &read(GROUP)?))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {file} to find the user of a component")]
pub struct LookupError {
    file: &'static str,
    #[source]
    source: io::Error,
}

fn read(file: &'static str) -> Result<String, LookupError> {
    // Comment fields may hold any bytes; the fields used here are ASCII.
    let bytes = fs::read(Path::new(file)).map_err(|source| LookupError { file, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find(name: &str, passwd: &str, group: &str) -> Option<User> {
    let account = passwd.lines().map(fields).find(|fields| fields[0] == name)?;
    let uid = account.get(2)?.parse().ok()?;
    let gid = account.get(3)?.parse().ok()?;
    let groups = group
        .lines()
        .map(fields)
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
        .filter_map(|fields| fields[2].parse().ok())
        .collect();
    Some(User { uid, gid, groups })
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nkube-apiserver:x:991:985:,\u{fffd}:/var/lib/k0s:/bin/false\n\
                          broken:x:\n";
    const GROUP: &str = "root:x:0:\nssl:x:107:other,kube-apiserver\nkube:x:108:kube-apiserver2\nodd\n";

    #[test]
    fn account_is_found_with_the_groups_that_list_it() {
        let user = find("kube-apiserver", PASSWD, GROUP);
        assert_eq!(user, Some(User { uid: 991, gid: 985, groups: vec![107] }));
    }

    #[test]
    fn unknown_and_malformed_accounts_are_absent() {
        assert_eq!(find("nobody-here", PASSWD, GROUP), None);
        assert_eq!(find("broken", PASSWD, GROUP), None);
        assert_eq!(find("", PASSWD, GROUP), None);
    }
}
