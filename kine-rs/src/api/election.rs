//! Election: a contest of keys whose values are proclaimed. Whoever has the oldest key leads.

use super::Api;
use super::contest::{Contender, Contest, created_at, get, operation, put, revision, unknown};
use super::error::{LEADER_MISSING, NO_LEADER, NOT_LEADER};
use crate::auth::Caller;
use crate::watch::Create;
use bytes::Bytes;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{ResponseHeader, TxnRequest, TxnResponse};
use proto::mvccpb::KeyValue;
use proto::mvccpb::event::EventType;
use proto::v3electionpb::election_server::Election;
use proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use std::pin::Pin;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Election for Api {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        self.run_for_leader(request).await.map(Response::new).map_err(unknown)
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let caller = self.caller(&request).map_err(|refusal| unknown(refusal.into()))?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(LEADER_MISSING))?;
        let contest = Contest::new(self, caller, &leader.name);
        let contender = Contender { key: leader.key, create_revision: leader.rev };
        let header = proclaim(&contest, &contender, value, leader.lease).await.map_err(unknown)?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let caller = self.caller(&request).map_err(|refusal| unknown(refusal.into()))?;
        let contest = Contest::new(self, caller, &request.get_ref().name);
        let found = contest.read(contest.first()).await.map_err(unknown)?;
        let kv = found.kvs.into_iter().next().ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse { header: found.header, kv: Some(kv) }))
    }

    type ObserveStream = Pin<Box<dyn futures::Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.caller(&request).map_err(|refusal| unknown(refusal.into()))?;
        let name = request.into_inner().name;
        Ok(Response::new(Box::pin(self.clone().observe_leaders(caller, name))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let caller = self.caller(&request).map_err(|refusal| unknown(refusal.into()))?;
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(LEADER_MISSING))?;
        let contest = Contest::new(self, caller, &leader.name);
        let contender = Contender { key: leader.key, create_revision: leader.rev };
        let resigned = contest.run(contender.delete()).await.map_err(unknown)?;
        Ok(Response::new(ResignResponse { header: resigned.header }))
    }
}

impl Api {
    async fn run_for_leader(&self, request: Request<CampaignRequest>) -> Result<CampaignResponse, Status> {
        let caller = self.caller(&request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let contest = Contest::new(self, caller, &name);
        let lease = contest.lease(lease).await?;
        let key = contest.key(lease);
        let entered = contest
            .run(TxnRequest {
                compare: vec![created_at(&key, 0)],
                success: vec![put(&key, value.clone(), lease)],
                failure: vec![operation(Op::RequestRange(get(&key)))],
            })
            .await?;
        // The key is there already when the lease runs, or leads, by another call: then its value is the newer one.
        let mine = found(&entered);
        let create_revision = mine.map_or(revision(&entered.header), |kv| kv.create_revision);
        let contender = Contender { key: key.clone(), create_revision };
        if mine.is_some_and(|kv| kv.value != value) {
            proclaim(&contest, &contender, value, lease).await?;
        }
        contest.wait(&contender).await?;
        let leader = LeaderKey { name, key, rev: create_revision, lease };
        Ok(CampaignResponse { header: entered.header, leader: Some(leader) })
    }

    /// The value of the leader, every value it proclaims, then the same of the next one.
    fn observe_leaders(
        self,
        caller: Caller,
        name: Bytes,
    ) -> impl futures::Stream<Item = Result<LeaderResponse, Status>> + Send {
        async_stream::try_stream! {
            let contest = Contest::new(&self, caller, &name);
            'leaders: loop {
                let now = contest.read(contest.first()).await.map_err(unknown)?;
                let (header, kv) = match now.kvs.into_iter().next() {
                    Some(kv) => (now.header, kv),
                    None => match first_put(&contest, revision(&now.header) + 1).await.map_err(unknown)? {
                        Some(put) => put,
                        None => continue 'leaders,
                    },
                };
                let mut changes = self.follow(Create {
                    start_revision: revision(&header) + 1,
                    ..Create::of(&kv.key, &[])
                });
                yield LeaderResponse { header, kv: Some(kv) };
                while let Some(response) = changes.next().await.map_err(unknown)? {
                    for event in response.events {
                        if event.r#type == EventType::Delete as i32 {
                            continue 'leaders;
                        }
                        yield LeaderResponse { header: response.header, kv: event.kv };
                    }
                }
            }
        }
    }
}

/// Waits for the first contender; `None`: look again.
async fn first_put(
    contest: &Contest<'_>,
    start_revision: i64,
) -> Result<Option<(Option<ResponseHeader>, KeyValue)>, Status> {
    let (key, range_end) = contest.range();
    let create = Create { start_revision, no_delete: true, ..Create::of(&key, &range_end) };
    let Some(response) = contest.api.follow(create).next().await? else { return Ok(None) };
    let put = response.events.into_iter().find_map(|event| event.kv);
    // The response may tell of later changes too: what is followed next starts behind this one.
    Ok(put.map(|kv| {
        let header = response.header.map(|header| ResponseHeader { revision: kv.mod_revision, ..header });
        (header, kv)
    }))
}

/// Gives the contender's key another value.
async fn proclaim(
    contest: &Contest<'_>,
    contender: &Contender,
    value: Bytes,
    lease: i64,
) -> Result<Option<ResponseHeader>, Status> {
    let proclaimed = contest
        .run(TxnRequest {
            compare: vec![created_at(&contender.key, contender.create_revision)],
            success: vec![put(&contender.key, value, lease)],
            failure: Vec::new(),
        })
        .await?;
    if proclaimed.succeeded { Ok(proclaimed.header) } else { Err(Status::unknown(NOT_LEADER)) }
}

/// What the read of the own key found, where the key existed.
fn found(response: &TxnResponse) -> Option<&KeyValue> {
    match &response.responses.first()?.response {
        Some(Answer::ResponseRange(range)) => range.kvs.first(),
        _ => None,
    }
}
