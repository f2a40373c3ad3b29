//! What each RPC asks of its caller while auth is on: one table, held against a real etcd and against ours.

use bytes::Bytes;
use conformance::server::{Flavor, Options, Server};
use proto::authpb::{Permission, permission::Type};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::auth_client::AuthClient;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::*;
use proto::v3electionpb::election_client::ElectionClient;
use proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use proto::v3lockpb::lock_client::LockClient;
use proto::v3lockpb::{LockRequest, UnlockRequest};
use std::time::Duration;
use tokio::time::timeout;
use tokio_stream::once;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const NOBODY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
/// Any other error is about the request, not about who sends it.
const REFUSALS: [&str; 4] =
    [NOBODY, DENIED, "etcdserver: invalid auth token", "etcdserver: revision of auth store is old"];
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// Everything that starts with k belongs to the owner.
const KEY: Bytes = Bytes::from_static(b"k");
/// A lease with that key.
const LEASE: i64 = 77;

/// What an RPC asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    AnyUser,
    /// The permission for the keys that are concerned.
    Keys,
    Root,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    /// A user without roles.
    Stranger,
    /// A user who may read and write the key.
    Owner,
    Root,
}

impl Need {
    fn refuses(self, who: Who) -> Option<&'static str> {
        match (self, who) {
            (Need::Nothing, _) | (_, Who::Root) => None,
            (_, Who::Nobody) => Some(NOBODY),
            (Need::AnyUser, _) | (Need::Keys, Who::Owner) => None,
            (Need::Keys | Need::Root, Who::Stranger) | (Need::Root, Who::Owner) => Some(DENIED),
        }
    }
}

/// A caller on a connection.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    token: Option<String>,
}

impl Caller {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }
}

/// Sends one unary request; what comes back is of interest only as far as it refuses the caller.
macro_rules! send {
    ($caller:ident, $client:ident . $method:ident, $message:expr) => {
        $client::new($caller.channel.clone()).$method($caller.request($message)).await.map(drop)
    };
}

macro_rules! table {
    ($($need:ident $name:literal: |$caller:ident| $send:expr;)*) => {
        const RPCS: &[(&str, Need)] = &[$(($name, Need::$need)),*];

        async fn call(rpc: &str, caller: &Caller) -> Result<(), Status> {
            match rpc {
                $($name => { let $caller = caller; $send })*
                _ => unreachable!("{rpc} is in the table"),
            }
        }
    };
}

table! {
    Keys "KV.Range": |c| send!(c, KvClient.range, RangeRequest { key: KEY, ..Default::default() });
    Keys "KV.RangeStream": |c| first(KvClient::new(c.channel.clone()).range_stream(c.request(RangeRequest { key: KEY, ..Default::default() })).await).await;
    Keys "KV.Put": |c| send!(c, KvClient.put, PutRequest { key: KEY, lease: LEASE, ..Default::default() });
    Keys "KV.Put prev_kv": |c| send!(c, KvClient.put, PutRequest { key: KEY, lease: LEASE, prev_kv: true, ..Default::default() });
    Keys "KV.DeleteRange": |c| send!(c, KvClient.delete_range, DeleteRangeRequest { key: "kk".into(), ..Default::default() });
    Keys "KV.Txn": |c| send!(c, KvClient.txn, TxnRequest { failure: vec![put_op()], ..Default::default() });
    Keys "KV.Txn compare": |c| send!(c, KvClient.txn, TxnRequest { compare: vec![Compare { key: KEY, ..Default::default() }], ..Default::default() });
    Nothing "KV.Txn empty": |c| send!(c, KvClient.txn, TxnRequest::default());
    Root "KV.Compact": |c| send!(c, KvClient.compact, CompactionRequest { revision: 1, physical: false });
    Keys "Watch.Watch": |c| watch(c).await;
    AnyUser "Lease.LeaseGrant": |c| send!(c, LeaseClient.lease_grant, LeaseGrantRequest { ttl: 100, id: 0 });
    AnyUser "Lease.LeaseRevoke without keys": |c| send!(c, LeaseClient.lease_revoke, LeaseRevokeRequest { id: 1 });
    Keys "Lease.LeaseKeepAlive": |c| keep_alive(c, LEASE).await;
    AnyUser "Lease.LeaseKeepAlive without keys": |c| keep_alive(c, 1).await;
    AnyUser "Lease.LeaseTimeToLive": |c| send!(c, LeaseClient.lease_time_to_live, LeaseTimeToLiveRequest { id: LEASE, keys: false });
    Keys "Lease.LeaseTimeToLive keys": |c| send!(c, LeaseClient.lease_time_to_live, LeaseTimeToLiveRequest { id: LEASE, keys: true });
    Keys "Lease.LeaseLeases": |c| send!(c, LeaseClient.lease_leases, LeaseLeasesRequest {});
    Root "Cluster.MemberAdd": |c| member_add(c).await;
    Root "Cluster.MemberRemove": |c| send!(c, ClusterClient.member_remove, MemberRemoveRequest { id: 1 });
    Root "Cluster.MemberUpdate": |c| send!(c, ClusterClient.member_update, MemberUpdateRequest { id: 1, peer_ur_ls: vec!["http://127.0.0.1:1".into()] });
    Root "Cluster.MemberPromote": |c| send!(c, ClusterClient.member_promote, MemberPromoteRequest { id: 1 });
    AnyUser "Cluster.MemberList": |c| send!(c, ClusterClient.member_list, MemberListRequest { linearizable: true });
    AnyUser "Maintenance.Alarm get": |c| send!(c, MaintenanceClient.alarm, AlarmRequest::default());
    Root "Maintenance.Alarm": |c| send!(c, MaintenanceClient.alarm, AlarmRequest { action: AlarmAction::Deactivate as i32, member_id: 1, alarm: AlarmType::Nospace as i32 });
    AnyUser "Maintenance.Status": |c| send!(c, MaintenanceClient.status, StatusRequest {});
    Root "Maintenance.Defragment": |c| send!(c, MaintenanceClient.defragment, DefragmentRequest {});
    Root "Maintenance.Hash": |c| send!(c, MaintenanceClient.hash, HashRequest {});
    Root "Maintenance.HashKV": |c| send!(c, MaintenanceClient.hash_kv, HashKvRequest { revision: 0 });
    Root "Maintenance.Snapshot": |c| first(MaintenanceClient::new(c.channel.clone()).snapshot(c.request(SnapshotRequest {})).await).await;
    Root "Maintenance.MoveLeader": |c| send!(c, MaintenanceClient.move_leader, MoveLeaderRequest { target_id: 1 });
    Root "Maintenance.Downgrade": |c| send!(c, MaintenanceClient.downgrade, DowngradeRequest { action: DowngradeAction::Validate as i32, version: "3.6".into() });
    Root "Auth.AuthEnable": |c| send!(c, AuthClient.auth_enable, AuthEnableRequest {});
    Nothing "Auth.AuthStatus": |c| send!(c, AuthClient.auth_status, AuthStatusRequest {});
    Nothing "Auth.Authenticate": |c| send!(c, AuthClient.authenticate, AuthenticateRequest { name: "nothere".into(), password: "x".into() });
    Root "Auth.UserAdd": |c| send!(c, AuthClient.user_add, AuthUserAddRequest { name: "new".into(), password: "x".into(), ..Default::default() });
    Root "Auth.UserGet": |c| send!(c, AuthClient.user_get, AuthUserGetRequest { name: "root".into() });
    Root "Auth.UserList": |c| send!(c, AuthClient.user_list, AuthUserListRequest {});
    Root "Auth.UserDelete": |c| send!(c, AuthClient.user_delete, AuthUserDeleteRequest { name: "nothere".into() });
    Root "Auth.UserChangePassword": |c| send!(c, AuthClient.user_change_password, AuthUserChangePasswordRequest { name: "nothere".into(), password: "x".into(), ..Default::default() });
    Root "Auth.UserGrantRole": |c| send!(c, AuthClient.user_grant_role, AuthUserGrantRoleRequest { user: "nothere".into(), role: "keys".into() });
    Root "Auth.UserRevokeRole": |c| send!(c, AuthClient.user_revoke_role, AuthUserRevokeRoleRequest { name: "nothere".into(), role: "keys".into() });
    Root "Auth.RoleAdd": |c| send!(c, AuthClient.role_add, AuthRoleAddRequest { name: "new".into() });
    Root "Auth.RoleGet": |c| send!(c, AuthClient.role_get, AuthRoleGetRequest { role: "root".into() });
    Keys "Auth.RoleGet of a role they have": |c| send!(c, AuthClient.role_get, AuthRoleGetRequest { role: "keys".into() });
    Root "Auth.RoleList": |c| send!(c, AuthClient.role_list, AuthRoleListRequest {});
    Root "Auth.RoleDelete": |c| send!(c, AuthClient.role_delete, AuthRoleDeleteRequest { role: "nothere".into() });
    Root "Auth.RoleGrantPermission": |c| send!(c, AuthClient.role_grant_permission, AuthRoleGrantPermissionRequest { name: "nothere".into(), perm: Some(permission()) });
    Root "Auth.RoleRevokePermission": |c| send!(c, AuthClient.role_revoke_permission, AuthRoleRevokePermissionRequest { role: "nothere".into(), ..Default::default() });
    Keys "Lock.Lock": |c| send!(c, LockClient.lock, LockRequest { name: "klock".into(), lease: LEASE });
    Keys "Lock.Unlock": |c| send!(c, LockClient.unlock, UnlockRequest { key: "klock".into() });
    Keys "Election.Campaign": |c| send!(c, ElectionClient.campaign, CampaignRequest { name: "kvote".into(), lease: LEASE, value: "v".into() });
    Keys "Election.Proclaim": |c| send!(c, ElectionClient.proclaim, ProclaimRequest { leader: Some(leader()), value: "v".into() });
    Keys "Election.Leader": |c| send!(c, ElectionClient.leader, LeaderRequest { name: "kvote".into() });
    Keys "Election.Resign": |c| send!(c, ElectionClient.resign, ResignRequest { leader: Some(leader()) });
    Keys "Lease.LeaseRevoke": |c| send!(c, LeaseClient.lease_revoke, LeaseRevokeRequest { id: LEASE });
    Root "Auth.AuthDisable": |c| send!(c, AuthClient.auth_disable, AuthDisableRequest {});
}

fn put_op() -> RequestOp {
    let nested = PutRequest { key: KEY, lease: LEASE, ..Default::default() };
    let nested = RequestOp { request: Some(Op::RequestPut(nested)) };
    RequestOp { request: Some(Op::RequestTxn(TxnRequest { success: vec![nested], ..Default::default() })) }
}

fn leader() -> LeaderKey {
    LeaderKey { name: "kvote".into(), key: "kvote/0".into(), rev: 1, lease: LEASE }
}

fn permission() -> Permission {
    Permission { perm_type: Type::Readwrite as i32, key: KEY, range_end: "l".into() }
}

/// A stream says in its first message, or instead of it, whether it is refused.
async fn first<T>(stream: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Result<(), Status> {
    stream?.into_inner().message().await.map(drop)
}

async fn keep_alive(caller: &Caller, id: i64) -> Result<(), Status> {
    let requests = caller.request(once(LeaseKeepAliveRequest { id }));
    first(LeaseClient::new(caller.channel.clone()).lease_keep_alive(requests).await).await
}

async fn watch(caller: &Caller) -> Result<(), Status> {
    let create = WatchCreateRequest { key: KEY, ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = caller.request(tokio_stream::StreamExt::chain(once(create), tokio_stream::pending()));
    let mut answers = WatchClient::new(caller.channel.clone()).watch(requests).await?.into_inner();
    let answer = answers.message().await?.expect("a watch is answered");
    match answer.cancel_reason.split_once(" desc = ") {
        Some((_, text)) => Err(Status::unknown(text)),
        None => Ok(()),
    }
}

/// Adds a member that is there already.
async fn member_add(caller: &Caller) -> Result<(), Status> {
    send!(
        caller,
        ClusterClient.member_add,
        MemberAddRequest { peer_ur_ls: vec!["http://localhost:2380".into()], is_learner: true }
    )
}

async fn login(channel: &Channel, name: &str) -> Caller {
    let request = AuthenticateRequest { name: name.into(), password: name.into() };
    let token = AuthClient::new(channel.clone()).authenticate(request).await.unwrap().into_inner().token;
    Caller { channel: channel.clone(), token: Some(token) }
}

async fn set_up(channel: &Channel) {
    let mut auth = AuthClient::new(channel.clone());
    for role in ["root", "keys"] {
        auth.role_add(AuthRoleAddRequest { name: role.into() }).await.unwrap();
    }
    let grant = AuthRoleGrantPermissionRequest { name: "keys".into(), perm: Some(permission()) };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("owner", "keys"), ("stranger", "")] {
        let add = AuthUserAddRequest { name: user.into(), password: user.into(), ..Default::default() };
        auth.user_add(add).await.unwrap();
        if !role.is_empty() {
            let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
            auth.user_grant_role(grant).await.unwrap();
        }
    }
    let grant = LeaseGrantRequest { ttl: 1000, id: LEASE };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    let put = PutRequest { key: KEY, lease: LEASE, ..Default::default() };
    KvClient::new(channel.clone()).put(put).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn check(flavor: Flavor) {
    let server = Server::start(flavor, Options::default()).await.unwrap();
    let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
    set_up(&channel).await;
    let callers = [
        (Who::Nobody, Caller { channel: channel.clone(), token: None }),
        (Who::Stranger, login(&channel, "stranger").await),
        (Who::Owner, login(&channel, "owner").await),
        (Who::Root, login(&channel, "root").await),
    ];
    let mut wrong = Vec::new();
    for &(rpc, need) in RPCS {
        for (who, caller) in &callers {
            let answer = timeout(ANSWER_DEADLINE, call(rpc, caller)).await;
            let refused = match &answer {
                Ok(Err(status)) if REFUSALS.contains(&status.message()) => Some(status.message()),
                Ok(_) => None,
                Err(_) => Some("no answer"),
            };
            if refused != need.refuses(*who) {
                wrong.push(format!("{rpc} by {who:?}: {refused:?}, should be {:?}", need.refuses(*who)));
            }
        }
    }
    assert!(wrong.is_empty(), "{flavor:?}:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn etcd_asks_what_the_table_says() {
    check(Flavor::Etcd).await;
}

#[tokio::test]
async fn ours_on_sqlite_asks_what_the_table_says() {
    check(Flavor::KineSqlite).await;
}
