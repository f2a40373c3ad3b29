//! Lock and Election, the services: who gets the lock or leads, in which order, and what is left behind.

use bytes::Bytes;
use conformance::server::{Flavor, Options, Server};
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use proto::v3electionpb::election_client::ElectionClient;
use proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ResignRequest,
};
use proto::v3lockpb::lock_client::LockClient;
use proto::v3lockpb::{LockRequest, UnlockRequest};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

const DEADLINE: Duration = Duration::from_secs(30);

struct Client {
    channel: Channel,
    /// Dies with the client.
    _server: Server,
}

impl Client {
    async fn new(flavor: Flavor) -> Self {
        let server = Server::start(flavor, Options::default()).await.unwrap();
        let channel = Endpoint::from_shared(server.endpoint()).unwrap().connect().await.unwrap();
        Client { channel, _server: server }
    }

    async fn lease(&self, id: i64) {
        let request = LeaseGrantRequest { ttl: 1000, id };
        LeaseClient::new(self.channel.clone()).lease_grant(request).await.unwrap();
    }

    async fn revoke(&self, id: i64) {
        LeaseClient::new(self.channel.clone()).lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
    }

    /// The keys that start with `name/`.
    async fn keys(&self, name: &str) -> Vec<String> {
        let (key, range_end) = (format!("{name}/").into(), format!("{name}0").into());
        let request = RangeRequest { key, range_end, ..Default::default() };
        let found = KvClient::new(self.channel.clone()).range(request).await.unwrap().into_inner();
        found.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
    }

    async fn until_keys(&self, name: &str, wanted: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let keys = self.keys(name).await;
            if keys == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{keys:?}, not {wanted:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn lock(&self, lease: i64) -> JoinHandle<Result<Bytes, Status>> {
        let mut client = LockClient::new(self.channel.clone());
        let request = LockRequest { name: "l".into(), lease };
        tokio::spawn(async move { client.lock(request).await.map(|answer| answer.into_inner().key) })
    }

    async fn unlock(&self, key: &str) {
        let request = UnlockRequest { key: key.to_owned().into() };
        LockClient::new(self.channel.clone()).unlock(request).await.unwrap();
    }

    fn campaign(&self, lease: i64, value: &'static str) -> JoinHandle<Result<CampaignResponse, Status>> {
        let mut client = ElectionClient::new(self.channel.clone());
        let request = CampaignRequest { name: "e".into(), lease, value: value.into() };
        tokio::spawn(async move { client.campaign(request).await.map(tonic::Response::into_inner) })
    }

    async fn proclaim(&self, leader: Option<LeaderKey>, value: &'static str) -> Result<(), Status> {
        let request = ProclaimRequest { leader, value: value.into() };
        ElectionClient::new(self.channel.clone()).proclaim(request).await.map(drop)
    }

    async fn resign(&self, leader: Option<LeaderKey>) -> Result<(), Status> {
        ElectionClient::new(self.channel.clone()).resign(ResignRequest { leader }).await.map(drop)
    }

    async fn leader(&self) -> Result<String, Status> {
        let request = LeaderRequest { name: "e".into() };
        ElectionClient::new(self.channel.clone())
            .leader(request)
            .await
            .map(|found| value(&found.into_inner()))
    }

    /// etcd begins its answer with the first leader.
    fn observe(&self) -> JoinHandle<Streaming<LeaderResponse>> {
        let mut client = ElectionClient::new(self.channel.clone());
        let request = LeaderRequest { name: "e".into() };
        tokio::spawn(async move { client.observe(request).await.unwrap().into_inner() })
    }
}

fn value(response: &LeaderResponse) -> String {
    String::from_utf8(response.kv.as_ref().unwrap().value.to_vec()).unwrap()
}

async fn soon<T>(task: JoinHandle<T>) -> T {
    timeout(DEADLINE, task).await.expect("it is done in time").unwrap()
}

async fn next(leaders: &mut Streaming<LeaderResponse>) -> String {
    let response = timeout(DEADLINE, leaders.message()).await.expect("a leader in time").unwrap();
    value(&response.expect("the stream goes on"))
}

fn unknown(text: &str) -> impl Fn(&Status) -> bool {
    move |status| status.code() == Code::Unknown && status.message() == text
}

async fn locks(flavor: Flavor) {
    let client = Client::new(flavor).await;
    for id in [1, 2, 3] {
        client.lease(id).await;
    }
    assert_eq!(soon(client.lock(1)).await.unwrap(), "l/1");
    assert_eq!(soon(client.lock(1)).await.unwrap(), "l/1", "a lease that has the lock gets it again");
    let second = client.lock(2);
    client.until_keys("l", &["l/1", "l/2"]).await;
    let third = client.lock(3);
    client.until_keys("l", &["l/1", "l/2", "l/3"]).await;
    // Whoever stops waiting leaves the queue, and nobody else is woken by it.
    second.abort();
    client.until_keys("l", &["l/1", "l/3"]).await;
    assert!(!third.is_finished());
    client.unlock("l/1").await;
    assert_eq!(soon(third).await.unwrap(), "l/3");
    client.unlock("l/3").await;
    client.unlock("l/none").await;
    assert!(
        soon(client.lock(99))
            .await
            .is_err_and(|error| unknown("etcdserver: requested lease not found")(&error))
    );
    assert_eq!(client.keys("l").await, Vec::<String>::new());
    // A lease of its own.
    let key = soon(client.lock(0)).await.unwrap();
    assert_eq!(client.keys("l").await, [String::from_utf8(key.to_vec()).unwrap()]);
}

async fn a_lease_that_ends_gives_the_lock_away(flavor: Flavor) {
    let client = Client::new(flavor).await;
    for id in [1, 2, 3] {
        client.lease(id).await;
    }
    soon(client.lock(1)).await.unwrap();
    let second = client.lock(2);
    client.until_keys("l", &["l/1", "l/2"]).await;
    let third = client.lock(3);
    client.until_keys("l", &["l/1", "l/2", "l/3"]).await;
    client.revoke(3).await;
    client.revoke(1).await;
    assert_eq!(soon(second).await.unwrap(), "l/2");
    client.unlock("l/2").await;
    assert!(soon(third).await.is_err_and(|error| unknown("mutex: session is expired")(&error)));
}

async fn elections(flavor: Flavor) {
    let client = Client::new(flavor).await;
    for id in [1, 2, 3] {
        client.lease(id).await;
    }
    assert!(client.leader().await.is_err_and(|error| unknown("election: no leader")(&error)));
    let leaders = client.observe();
    let first = soon(client.campaign(1, "one")).await.unwrap();
    let leader = first.leader.clone().unwrap();
    assert_eq!((leader.key.as_ref(), leader.lease), (b"e/1".as_slice(), 1));
    assert_eq!(leader.rev, first.header.unwrap().revision);
    let mut leaders = soon(leaders).await;
    assert_eq!(next(&mut leaders).await, "one");
    assert_eq!(client.leader().await.unwrap(), "one");

    client.proclaim(Some(leader.clone()), "uno").await.unwrap();
    assert_eq!(next(&mut leaders).await, "uno");
    // The same lease again, with another value: that is a proclamation too.
    let again = soon(client.campaign(1, "eins")).await.unwrap();
    assert_eq!(again.leader.unwrap().rev, leader.rev);
    assert_eq!(next(&mut leaders).await, "eins");

    let second = client.campaign(2, "two");
    client.until_keys("e", &["e/1", "e/2"]).await;
    let third = client.campaign(3, "three");
    client.until_keys("e", &["e/1", "e/2", "e/3"]).await;
    second.abort();
    client.until_keys("e", &["e/1", "e/3"]).await;
    assert!(!third.is_finished());
    client.resign(Some(leader.clone())).await.unwrap();
    soon(third).await.unwrap().leader.unwrap();
    assert_eq!(next(&mut leaders).await, "three");

    let late = client.proclaim(Some(leader.clone()), "late").await;
    assert!(late.is_err_and(|error| unknown("election: not leader")(&error)));
    client.resign(Some(leader)).await.unwrap();
    assert_eq!(client.leader().await.unwrap(), "three");
    let missing = unknown("\"leader\" field must be provided");
    assert!(client.proclaim(None, "x").await.is_err_and(|error| missing(&error)));
    assert!(client.resign(None).await.is_err_and(|error| missing(&error)));
    let empty = client.proclaim(Some(LeaderKey::default()), "x").await;
    assert!(empty.is_err_and(|error| unknown("etcdserver: key is not provided")(&error)));
}

macro_rules! flavors {
    ($($module:ident: $flavor:ident),*) => {
        $(mod $module {
            use super::Flavor;

            #[tokio::test]
            async fn a_lock_goes_to_those_who_wait_in_their_order() {
                super::locks(Flavor::$flavor).await;
            }

            #[tokio::test]
            async fn a_lease_that_ends_gives_the_lock_away() {
                super::a_lease_that_ends_gives_the_lock_away(Flavor::$flavor).await;
            }

            #[tokio::test]
            async fn leaders_follow_each_other_and_are_observed() {
                super::elections(Flavor::$flavor).await;
            }
        })*
    };
}

flavors! { etcd: Etcd, kine_sqlite: KineSqlite }
