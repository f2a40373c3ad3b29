//! The Rust client (crate `etcd-client`): every group of its API on ours, and on a real etcd, which holds the test to the
//! truth. Each part has keys of its own; authentication comes last.

use conformance::server::{Flavor, Options, Server};
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, DowngradeOptions,
    Error, Event, EventType, GetOptions, KvClientPrefix, LeaseClientPrefix, LeaseGrantOptions,
    LeaseTimeToLiveOptions, LockOptions, Permission, ProclaimOptions, PutOptions, ResignOptions,
    RoleRevokePermissionOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, UserAddOptions,
    WatchFilterType, WatchOptions, WatchStream,
};
use std::time::Duration;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

async fn check(flavor: Flavor) {
    let server = Server::start(flavor, Options::default()).await.unwrap();
    let mut client = connect(&server, None).await.unwrap();
    kv(&mut client).await;
    transactions(&mut client).await;
    watches(&mut client).await;
    leases(&mut client).await;
    namespaces(&client).await;
    locks(&mut client).await;
    elections(&mut client).await;
    maintenance(&mut client).await;
    membership(&mut client).await;
    authentication(&server, &mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_finds_etcd_as_expected() {
    check(Flavor::Etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_finds_ours_as_expected() {
    check(Flavor::KineAsEtcd).await;
}

async fn connect(server: &Server, user: Option<(&str, &str)>) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_require_leader(true).with_timeout(DEADLINE);
    let options = match user {
        Some((name, password)) => options.with_user(name, password),
        None => options,
    };
    Client::connect([server.endpoint()], Some(options)).await
}

/// The text of a refusal.
fn refusal<T>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::GRpcStatus(status)) => status.message().to_owned(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was allowed"),
    }
}

async fn kv(client: &mut Client) {
    let first = client.put("kv/a", "1", None).await.unwrap().header().unwrap().revision();
    let options = PutOptions::new().with_prev_key();
    let put = client.put("kv/a", "2", Some(options)).await.unwrap();
    assert_eq!(put.prev_key().unwrap().value(), b"1");
    for key in ["kv/b", "kv/c", "kv/d"] {
        client.put(key, "x", None).await.unwrap();
    }
    let options =
        GetOptions::new().with_prefix().with_limit(2).with_sort(SortTarget::Key, SortOrder::Descend);
    let page = client.get("kv/", Some(options)).await.unwrap();
    assert_eq!((page.count(), page.more(), page.kvs()[0].key()), (4, true, &b"kv/d"[..]));
    let old = client.get("kv/a", Some(GetOptions::new().with_revision(first))).await.unwrap();
    assert_eq!((old.kvs()[0].value(), old.kvs()[0].version()), (&b"1"[..], 1));
    let options = GetOptions::new().with_from_key().with_keys_only().with_serializable();
    assert!(client.get("kv/c", Some(options)).await.unwrap().kvs()[0].value().is_empty());
    let options = GetOptions::new().with_prefix().with_count_only().with_min_create_revision(first + 1);
    assert!(client.get("kv/", Some(options)).await.unwrap().kvs().is_empty());

    let mut stream =
        client.kv_client().get_stream("kv/", Some(GetOptions::new().with_prefix())).await.unwrap();
    let mut streamed = 0;
    while let Some(part) = stream.message().await.unwrap() {
        streamed += part.kvs().len();
    }
    assert_eq!(streamed, 4);

    let options = DeleteOptions::new().with_range("kv/c").with_prev_key();
    let deleted = client.delete("kv/a", Some(options)).await.unwrap();
    assert_eq!((deleted.deleted(), deleted.prev_kvs()[1].key()), (2, &b"kv/b"[..]));
    assert_eq!(refusal(client.put("", "", None).await), "etcdserver: key is not provided");
    client.compact(first + 1, None).await.unwrap();
    let gone = client.get("kv/a", Some(GetOptions::new().with_revision(first))).await;
    assert_eq!(refusal(gone), "etcdserver: mvcc: required revision has been compacted");
}

async fn transactions(client: &mut Client) {
    client.put("txn/a", "1", None).await.unwrap();
    let nested = Txn::new()
        .when([Compare::create_revision("txn/b", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("txn/b", "2", None)])
        .or_else([TxnOp::delete("txn/a", None)]);
    let txn = Txn::new()
        .when([
            Compare::value("txn/a", CompareOp::Equal, "1"),
            Compare::version("txn/", CompareOp::Less, 2).with_prefix(),
            Compare::lease("txn/a", CompareOp::Equal, 0),
        ])
        .and_then([TxnOp::get("txn/a", None), TxnOp::txn(nested), TxnOp::put("txn/c", "3", None)])
        .or_else([TxnOp::get("txn/b", None)]);
    let answer = client.txn(txn.clone()).await.unwrap();
    assert!(answer.succeeded());
    let [TxnOpResponse::Get(get), TxnOpResponse::Txn(inner), TxnOpResponse::Put(_)] =
        &answer.op_responses()[..]
    else {
        panic!("{answer:?}")
    };
    assert_eq!(get.kvs()[0].value(), b"1");
    assert!(inner.succeeded());

    client.put("txn/a", "other", None).await.unwrap();
    let answer = client.txn(txn).await.unwrap();
    let [TxnOpResponse::Get(get)] = &answer.op_responses()[..] else { panic!("{answer:?}") };
    assert!(!answer.succeeded());
    assert_eq!(get.kvs()[0].value(), b"2");
}

async fn watches(client: &mut Client) {
    let start = client.put("watch/a", "0", None).await.unwrap().header().unwrap().revision();
    let options =
        WatchOptions::new().with_prefix().with_prev_key().with_watch_id(7).with_start_revision(start);
    let mut stream = client.watch("watch/", Some(options)).await.unwrap();
    let created = stream.message().await.unwrap().unwrap();
    assert!(created.created() && created.watch_id() == 7);
    let options = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoPut]).with_watch_id(8);
    stream.watch("watch/", Some(options)).await.unwrap();
    let (mut all, mut deletions) = (Vec::new(), Vec::new());
    let mut next = async |stream: &mut WatchStream| {
        let response = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        let seen = if response.watch_id() == 7 { &mut all } else { &mut deletions };
        let before = |event: &Event| event.prev_kv().map(|kv| kv.value().to_vec());
        seen.extend(response.events().iter().map(|event| (event.event_type(), before(event))));
        (response.created(), all.len(), deletions.len())
    };
    while !next(&mut stream).await.0 {}
    client.put("watch/a", "1", None).await.unwrap();
    client.delete("watch/a", None).await.unwrap();
    while !matches!(next(&mut stream).await, (_, 3, 1)) {}
    let expected = [
        (EventType::Put, None),
        (EventType::Put, Some(b"0".to_vec())),
        (EventType::Delete, Some(b"1".to_vec())),
    ];
    assert_eq!(all, expected);
    assert_eq!(deletions, [(EventType::Delete, None)]);

    stream.request_progress().await.unwrap();
    let progress = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    assert!(progress.events().is_empty() && progress.header().unwrap().revision() >= start + 2);
    stream.cancel(7).await.unwrap();
    let cancelled = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    assert!(cancelled.canceled() && cancelled.watch_id() == 7);

    client.compact(start + 1, None).await.unwrap();
    let mut stream =
        client.watch("watch/a", Some(WatchOptions::new().with_start_revision(start))).await.unwrap();
    let mut compacted = 0;
    while compacted == 0 {
        let response = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        compacted = response.compact_revision();
    }
    assert_eq!(compacted, start + 1);
}

async fn leases(client: &mut Client) {
    let lease = client.lease_grant(100, Some(LeaseGrantOptions::new().with_id(4711))).await.unwrap();
    assert_eq!((lease.id(), lease.ttl()), (4711, 100));
    client.put("lease/a", "", Some(PutOptions::new().with_lease(4711))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(4711).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 100);
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(4711, Some(options)).await.unwrap();
    assert_eq!((left.granted_ttl(), left.keys()), (100, &[b"lease/a".to_vec()][..]));
    assert!(client.leases().await.unwrap().leases().iter().any(|lease| lease.id() == 4711));
    client.lease_revoke(4711).await.unwrap();
    assert_eq!(client.get("lease/a", None).await.unwrap().count(), 0);
    assert!(client.lease_keep_alive(4711).await.is_err());
    assert_eq!(refusal(client.lease_revoke(4711).await), "etcdserver: requested lease not found");
}

async fn namespaces(client: &Client) {
    let mut inside = KvClientPrefix::new(client.kv_client(), b"namespace/".to_vec());
    let lease = client.lease_client().grant(100, None).await.unwrap().id();
    inside.put("a", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let found = inside.get("a", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!((found.count(), found.kvs()[0].key()), (1, &b"a"[..]));
    let mut leases = LeaseClientPrefix::new(client.lease_client(), b"namespace/".to_vec());
    let options = LeaseTimeToLiveOptions::new().with_keys();
    assert_eq!(leases.time_to_live(lease, Some(options)).await.unwrap().keys(), [b"a".to_vec()]);
    let txn = Txn::new().and_then([TxnOp::delete("a", None)]);
    assert!(inside.txn(txn).await.unwrap().succeeded());
    assert_eq!(client.kv_client().get("namespace/a", None).await.unwrap().count(), 0);
}

async fn locks(client: &mut Client) {
    let held = client.lock("lock", None).await.unwrap();
    let lease = client.lease_grant(100, None).await.unwrap().id();
    let mut waiting = client.clone();
    let waiter =
        tokio::spawn(async move { waiting.lock("lock", Some(LockOptions::new().with_lease(lease))).await });
    while client.get("lock/", Some(GetOptions::new().with_prefix())).await.unwrap().count() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!waiter.is_finished());
    client.unlock(held.key()).await.unwrap();
    let next = timeout(DEADLINE, waiter).await.unwrap().unwrap().unwrap();
    assert_eq!(next.key(), format!("lock/{lease:x}").as_bytes());
    client.lease_revoke(lease).await.unwrap();
    let free = client.lock("lock", None).await.unwrap();
    client.unlock(free.key()).await.unwrap();
}

async fn elections(client: &mut Client) {
    assert_eq!(refusal(client.leader("election").await), "election: no leader");
    let lease = client.lease_grant(100, None).await.unwrap().id();
    let leader = client.campaign("election", "first", lease).await.unwrap().take_leader().unwrap();
    let mut observed = client.observe("election").await.unwrap();
    let mut seen = async || {
        let answer = timeout(DEADLINE, observed.message()).await.unwrap().unwrap().unwrap();
        answer.kv().unwrap().value_str().unwrap().to_owned()
    };
    assert_eq!(seen().await, "first");
    let options = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("second", Some(options.clone())).await.unwrap();
    assert_eq!(seen().await, "second");
    assert_eq!(client.leader("election").await.unwrap().kv().unwrap().key(), leader.key());
    client.resign(Some(ResignOptions::new().with_leader(leader))).await.unwrap();
    assert_eq!(refusal(client.proclaim("third", Some(options)).await), "election: not leader");
}

async fn maintenance(client: &mut Client) {
    let status = client.status().await.unwrap();
    assert_eq!((status.version(), status.storage_version()), ("3.7.1", "3.7.0"));
    assert!(status.db_size() >= status.raft_used_db_size() && status.errors().is_empty());
    let hash = client.hash_kv(0).await.unwrap();
    assert_eq!(client.hash_kv(hash.hash_revision()).await.unwrap().hash(), hash.hash());
    client.hash().await.unwrap();
    client.put("snapshot", "is in the snapshot", None).await.unwrap();
    let mut snapshot = client.snapshot().await.unwrap();
    let mut content = Vec::new();
    while let Some(part) = snapshot.message().await.unwrap() {
        content.extend_from_slice(part.blob());
    }
    assert_eq!(content.len() % 512, 32, "a database file and its digest");
    assert!(content.windows(18).any(|window| window == b"is in the snapshot"));
    client.defragment().await.unwrap();

    client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    assert_eq!(client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap().alarms().len(), 1);
    assert_eq!(refusal(client.put("alarm", "", None).await), "etcdserver: mvcc: database space exceeded");
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.unwrap();
    client.put("alarm", "", None).await.unwrap();

    client.move_leader(status.leader()).await.unwrap();
    let mut downgrades = client.maintenance_client();
    let answer = downgrades.downgrade(DowngradeOptions::Validate("3.6".into())).await.unwrap();
    assert_eq!(answer.version(), "3.7");
}

async fn membership(client: &mut Client) {
    let members = client.member_list().await.unwrap();
    let [member] = members.members() else { panic!("{members:?}") };
    assert_eq!((member.name(), member.is_learner()), ("default", false));
    assert_eq!(
        refusal(client.member_promote(member.id()).await),
        "etcdserver: can only promote a learner member"
    );
    assert_eq!(refusal(client.member_remove(1).await), "etcdserver: member not found");
    assert_eq!(
        refusal(client.member_update(1, ["http://127.0.0.1:1".to_owned()]).await),
        "etcdserver: member not found"
    );
}

async fn authentication(server: &Server, client: &mut Client) {
    for (user, role) in [("root", "root"), ("user", "role")] {
        client.user_add(user, "password", None).await.unwrap();
        client.role_add(role).await.unwrap();
        client.user_grant_role(user, role).await.unwrap();
    }
    client.user_add("nobody", "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
    client.role_grant_permission("role", Permission::read_write("auth/").with_prefix()).await.unwrap();
    client.role_grant_permission("role", Permission::read("single")).await.unwrap();
    let permissions = client.role_get("role").await.unwrap().permissions();
    assert_eq!(permissions, [Permission::read_write("auth/").with_prefix(), Permission::read("single")]);
    let revoked = RoleRevokePermissionOptions::new();
    client.role_revoke_permission("role", "single", Some(revoked)).await.unwrap();
    assert_eq!(client.user_list().await.unwrap().users(), ["nobody", "root", "user"]);
    assert_eq!(client.role_list().await.unwrap().roles(), ["role", "root"]);
    client.auth_enable().await.unwrap();

    assert_eq!(refusal(client.get("auth/a", None).await), "etcdserver: user name is empty");
    let wrong = connect(server, Some(("user", "wrong"))).await;
    assert_eq!(refusal(wrong), "etcdserver: authentication failed, invalid user ID or password");
    let mut user = connect(server, Some(("user", "password"))).await.unwrap();
    user.put("auth/a", "1", None).await.unwrap();
    assert_eq!(refusal(user.get("single", None).await), "etcdserver: permission denied");
    assert_eq!(refusal(user.user_list().await), "etcdserver: permission denied");

    let mut root = connect(server, Some(("root", "password"))).await.unwrap();
    root.user_change_password("user", "other").await.unwrap();
    user.update_user(Some(("user".into(), "other".into()))).await.unwrap();
    assert_eq!(user.get("auth/a", None).await.unwrap().kvs()[0].value(), b"1");
    root.user_revoke_role("user", "role").await.unwrap();
    root.role_delete("role").await.unwrap();
    root.user_delete("nobody").await.unwrap();
    assert!(root.user_get("user").await.unwrap().roles().is_empty());
    root.refresh_token().await.unwrap();
    root.auth_disable().await.unwrap();
    client.put("auth/a", "2", None).await.unwrap();
}
