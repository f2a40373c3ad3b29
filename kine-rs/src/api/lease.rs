//! Lease: grant and revoke are ordered commands; keepalive and the remaining time are the lessor's, in memory.

use super::Api;
use super::caller::Credentials;
use super::read::holding;
use crate::apply::{ApplyError, Command, Reply};
use crate::auth::{Access, Caller, permit};
use crate::budget::Exhausted;
use crate::lease::TTL_MIN_SECONDS;
use crate::store::ProposeError;
use bytes::Bytes;
use proto::etcdserverpb::lease_server::Lease;
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use std::pin::Pin;
use std::time::Instant;
use tonic::{Request, Response, Status, Streaming};

/// What etcd reckons a lease to cost.
const LEASE_COST_BYTES: u64 = 64;

#[tonic::async_trait]
impl Lease for Api {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let caller = self.known_caller(&request)?;
        self.grant_lease(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let caller = self.known_caller(&request)?;
        match self.store.propose(caller, Command::LeaseRevoke { id: request.into_inner().id }).await? {
            Reply::LeaseRevoke(response) => Ok(Response::new(response)),
            other => unreachable!("a revoke is answered with a revoke, not {other:?}"),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn futures::Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let credentials = Credentials::of(&request);
        let mut requests = request.into_inner();
        let api = self.clone();
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            while let Some(LeaseKeepAliveRequest { id }) = requests.message().await? {
                let view = api.store.view();
                if view.auth.enabled {
                    let caller = api.identify(&credentials)?;
                    view.auth.check_known(&caller)?;
                    permit::lease(&view, &caller, Access::Write, id)?;
                }
                // The header first: it must not be newer than the renewal.
                let header = Some(api.store.identity().header(view.revision));
                let ttl = api.store.lessor().renew(id, Instant::now()).unwrap_or(0);
                if ttl > 0 {
                    api.store.metrics().leases.renewed.inc();
                }
                yield LeaseKeepAliveResponse { header, id, ttl };
            }
        })))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let caller = self.known_caller(&request)?;
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let view = self.store.view();
        if keys && view.auth.enabled {
            permit::lease(&view, &caller, Access::Read, id)?;
        }
        let header = Some(self.store.identity().header(view.revision));
        let response = match self.store.lessor().remaining(id, Instant::now()) {
            Some(remaining) => LeaseTimeToLiveResponse {
                header,
                id,
                ttl: remaining.seconds,
                granted_ttl: remaining.granted,
                keys: if keys { view.lease_keys(id) } else { Vec::new() },
            },
            None => LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
        };
        let taken = self.counted(response.keys.iter().map(Bytes::len).sum()).ok_or(Exhausted)?;
        Ok(holding(response, taken))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let caller = self.known_caller(&request)?;
        let view = self.store.view();
        let ids = self.store.lessor().ids();
        if view.auth.enabled {
            ids.iter().try_for_each(|id| permit::lease(&view, &caller, Access::Read, *id))?;
        }
        let header = Some(self.store.identity().header(view.revision));
        let leases: Vec<LeaseStatus> = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        let taken = self.counted(size_of_val(leases.as_slice())).ok_or(Exhausted)?;
        Ok(holding(LeaseLeasesResponse { header, leases }, taken))
    }
}

impl Api {
    pub(super) async fn grant_lease(
        &self,
        caller: &Caller,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        let LeaseGrantRequest { ttl, id } = request;
        let ttl = ttl.max(TTL_MIN_SECONDS);
        self.check_quota(LEASE_COST_BYTES).await?;
        loop {
            let wanted = if id == 0 { rand::random_range(1..=i64::MAX) } else { id };
            match self.store.propose(caller.clone(), Command::LeaseGrant { id: wanted, ttl }).await {
                Ok(Reply::LeaseGrant(response)) => return Ok(response),
                Ok(other) => unreachable!("a grant is answered with a grant, not {other:?}"),
                // A random id that is taken: draw again.
                Err(ProposeError::Apply(ApplyError::LeaseExists(_))) if id == 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
