//! What flags say of a cluster's first start: who its members are, and the ids that follow from that.
//!
//! Ids are derived as etcd derives them, so the same flags give the same ids: whoever keeps one somewhere (a backup's name, a
//! dashboard, a script that expects the id of a test) finds it again, and two clusters are told apart by their token, as
//! etcd's manual says. To a database that has its ids and peer URLs all of this is nothing.

use super::{Flags, VerifyError};
use crate::backend::{Endpoint, Ids};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};

#[derive(Debug)]
pub struct FirstStart {
    name: String,
    /// URLs of this member for the others.
    peer_urls: Vec<String>,
    token: String,
    /// `--initial-cluster`: one member and its URLs; `None`: this one and those above.
    member: Option<(String, Vec<String>)>,
}

impl FirstStart {
    /// # Errors
    /// When there are several members.
    pub fn of(flags: &Flags<'_>) -> Result<FirstStart, VerifyError> {
        let mut members = BTreeMap::<String, Vec<String>>::new();
        for member in flags.list("initial-cluster") {
            let (name, url) = member.split_once('=').ok_or_else(|| VerifyError::NoMember(member.clone()))?;
            members.entry(name.trim().to_owned()).or_default().push(url.trim().to_owned());
        }
        if members.len() > 1 {
            return Err(VerifyError::SeveralMembers(members.len()));
        }
        Ok(FirstStart {
            name: flags.0.text("name").to_owned(),
            peer_urls: flags.list("initial-advertise-peer-urls"),
            token: flags.0.text("initial-cluster-token").to_owned(),
            member: members.pop_first(),
        })
    }

    /// Who a new store at `endpoint` is.
    pub fn give(&self, endpoint: Endpoint) -> Endpoint {
        endpoint.with_member(self.ids(), &self.peer_urls)
    }

    /// A member is its peer URLs and the token; a cluster is the ids of its first members, of which there is one here.
    fn ids(&self) -> Ids {
        let mut urls: Vec<&str> = self.peer_urls.iter().map(String::as_str).collect();
        urls.sort_unstable();
        let member_id = hash(&[urls.concat().as_bytes(), self.token.as_bytes()].concat());
        Ids { member_id, cluster_id: hash(&member_id.to_be_bytes()) }
    }

    /// Whether this is the member of the cluster: by its name, and by its URLs or the addresses they stand for. Resolves
    /// names only where the URLs are not the same.
    ///
    /// # Errors
    /// How it is not.
    pub fn check(&self) -> Result<(), VerifyError> {
        let Some((name, urls)) = &self.member else { return Ok(()) };
        if *name != self.name {
            return Err(VerifyError::NotInCluster(self.name.clone()));
        }
        let missing = |from: &[String], of: &[String]| of.iter().find(|url| !from.contains(*url)).cloned();
        let difference = match (missing(&self.peer_urls, urls), missing(urls, &self.peer_urls)) {
            (None, None) => return Ok(()),
            (Some(missing), _) => VerifyError::NotAdvertisedToPeers {
                name: name.clone(),
                missing,
                given: self.peer_urls.join(","),
            },
            (None, Some(missing)) => {
                let given: Vec<_> = urls.iter().map(|url| format!("{name}={url}")).collect();
                VerifyError::NotInInitialCluster { missing, given: given.join(",") }
            }
        };
        match (resolved(urls), resolved(&self.peer_urls)) {
            (Some(here), Some(there)) if here == there => Ok(()),
            _ => Err(difference),
        }
    }
}

/// Scheme and address of each URL, in order; `None` when a name can't be resolved.
fn resolved(urls: &[String]) -> Option<Vec<(String, SocketAddr)>> {
    let mut all = Vec::new();
    for url in urls {
        let (scheme, host) = url.split_once("://")?;
        all.push((scheme.to_owned(), host.to_socket_addrs().ok()?.next()?));
    }
    all.sort();
    Some(all)
}

fn hash(bytes: &[u8]) -> u64 {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
    u64::from_be_bytes(hash.as_ref()[..8].try_into().expect("eight bytes of twenty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(peer_urls: &[&str], token: &str) -> Ids {
        let peer_urls = peer_urls.iter().map(|url| (*url).to_owned()).collect();
        FirstStart { name: "x".into(), peer_urls, token: token.to_owned(), member: None }.ids()
    }

    #[test]
    fn ids_are_those_of_etcd() {
        // What `etcd` without flags says of itself.
        let ids = ids(&["http://localhost:2380"], "etcd-cluster");
        assert_eq!(format!("{:x} {:x}", ids.member_id, ids.cluster_id), "8e9e05c52164694d cdf818194e3a8c32");
    }

    #[test]
    fn the_order_of_urls_is_nothing_and_the_token_is_something() {
        let one = ids(&["http://a:1", "http://b:2"], "t");
        assert_eq!(ids(&["http://b:2", "http://a:1"], "t"), one);
        assert_ne!(ids(&["http://a:1", "http://b:2"], "u"), one);
    }
}
