//! Cluster: the members of a store with one member, whose peer URLs can be changed. Changes of membership come with the
//! raft backend.

use super::error::{
    MEMBER_NOT_FOUND, MEMBER_URL_EXISTS, MEMBER_URLS_INVALID, NO_LEARNER, NOT_ENOUGH_STARTED,
};
use super::{Api, Authority};
use crate::apply::{Command, Reply};
use proto::etcdserverpb::cluster_server::Cluster;
use proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse, ResponseHeader,
};
use tonic::{Request, Response, Status};

const ONE_MEMBER: &str = "etcdserver: this store has one member and its membership can't be changed";

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        self.known_caller(&request)?;
        Ok(Response::new(MemberListResponse {
            header: self.header_without_revision(),
            members: self.members(&request),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let urls = &request.get_ref().peer_ur_ls;
        // As in etcd, before it is looked at who asks.
        if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url)) {
            return Err(Status::invalid_argument(MEMBER_URLS_INVALID));
        }
        self.root_caller(&request)?;
        let view = self.store.view();
        let known = view.peer_urls.as_deref().unwrap_or_default();
        if urls.iter().any(|url| known.contains(url)) {
            return Err(Status::failed_precondition(MEMBER_URL_EXISTS));
        }
        Err(Status::unimplemented(ONE_MEMBER))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.root_caller(&request)?;
        self.check_member(request.get_ref().id)?;
        // As etcd for its last member, and without a code of its own there.
        Err(Status::unknown(NOT_ENOUGH_STARTED))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let caller = self.root_caller(&request)?;
        let MemberUpdateRequest { id, peer_ur_ls } = request.get_ref();
        self.check_member(*id)?;
        // As etcd: its clients look at the form of the URLs, the server takes any text, and none at all.
        match self.store.propose(caller, Command::PeerUrls(peer_ur_ls.as_slice().into())).await? {
            Reply::PeerUrls => tracing::info!(member = format!("{id:x}"), ?peer_ur_ls, "updated member"),
            other => unreachable!("peer URLs are answered with peer URLs, not {other:?}"),
        }
        Ok(Response::new(MemberUpdateResponse {
            header: self.header_without_revision(),
            members: self.members(&request),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.root_caller(&request)?;
        self.check_member(request.get_ref().id)?;
        Err(Status::failed_precondition(NO_LEARNER))
    }
}

impl Api {
    /// As etcd: no revision in the headers of this service.
    fn header_without_revision(&self) -> Option<ResponseHeader> {
        Some(self.store.identity().header(0))
    }

    /// The one member there is. What nobody has said of it is where this client found it.
    fn members<T>(&self, request: &Request<T>) -> Vec<Member> {
        let used = || request.extensions().get::<Authority>().map(|Authority(url)| url.clone());
        let client_urls = &self.about.client_urls;
        vec![Member {
            id: self.store.identity().member_id,
            name: self.about.member_name.clone(),
            peer_ur_ls: match &self.store.view().peer_urls {
                Some(urls) => urls.to_vec(),
                None => Vec::from_iter(used()),
            },
            client_ur_ls: if client_urls.is_empty() { Vec::from_iter(used()) } else { client_urls.clone() },
            is_learner: false,
        }]
    }

    fn check_member(&self, id: u64) -> Result<(), Status> {
        if id == self.store.identity().member_id { Ok(()) } else { Err(Status::not_found(MEMBER_NOT_FOUND)) }
    }
}

/// `http://host:port` without a path, or a Unix socket of any form, each with or without TLS.
fn is_peer_url(url: &str) -> bool {
    let url = url.trim();
    match url.split_once(':') {
        Some(("unix" | "unixs", _)) => true,
        Some(("http" | "https", address)) => {
            let has_path = address.trim_start_matches('/').contains('/');
            !has_path && url.parse::<http::Uri>().is_ok_and(|url| url.port_u16().is_some())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_reached_at_a_port_or_a_socket() {
        for url in ["http://h:2380", " https://[::1]:1", "unix://127.0.0.1:2100112345", "unixs:///run/a.sock"]
        {
            assert!(is_peer_url(url), "{url}");
        }
        for url in ["", "h:2380", "http://h", "http://h:2380/", "http://h:2380/path", "ftp://h:1"] {
            assert!(!is_peer_url(url), "{url}");
        }
    }
}
