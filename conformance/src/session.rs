//! One client of one server: runs commands in order and turns each answer into text.
//!
//! Symbols are replaced here from what this session has seen itself, so two sessions that get the same answers send the
//! same requests. Before anything whose effect on a lagging watch is a matter of timing (a compaction, a cancellation)
//! the session waits until its streams have caught up.

mod auth;
mod resolve;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use proto::etcdserverpb::auth_client::AuthClient;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::{
    DefragmentRequest, HashKvRequest, HashRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest, MemberListRequest, MoveLeaderRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, StatusRequest, TxnRequest,
    TxnResponse, WatchCreateRequest, response_op,
};
use proto::mvccpb::KeyValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::command::{Command, StreamCommand};
use crate::render::{self, Names};
use crate::server;
use crate::streams::{ANSWER_DEADLINE, Caught, Stream};
use crate::symbol;

pub struct Session {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    auth: AuthClient<Channel>,
    names: Names,
    head: i64,
    known: HashMap<Bytes, i64>,
    token: Option<MetadataValue<Ascii>>,
    streams: BTreeMap<String, Stream>,
    keepalives: Option<KeepAlives>,
}

struct KeepAlives {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
}

impl Session {
    /// # Errors
    /// When the server cannot be reached or does not answer Status.
    pub async fn connect(endpoint: &str) -> Result<Self> {
        let mut session = Self::on(server::connect(endpoint).await?);
        let status = session.maintenance.status(StatusRequest {}).await.context("the first Status")?;
        let header = status.into_inner().header.context("Status without a header")?;
        session.names.cluster_id = header.cluster_id;
        session.names.member_id = header.member_id;
        session.head = header.revision;
        Ok(session)
    }

    /// Goes on with a restarted server: its streams are gone, everything seen is remembered, also who it was.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn reconnect(&mut self, endpoint: &str) -> Result<()> {
        let fresh = Self::on(server::connect(endpoint).await?);
        *self = Self {
            names: std::mem::take(&mut self.names),
            head: self.head,
            known: std::mem::take(&mut self.known),
            token: self.token.take(),
            ..fresh
        };
        Ok(())
    }

    fn on(channel: Channel) -> Self {
        let unlimited = usize::MAX;
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(unlimited),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(unlimited),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            auth: AuthClient::new(channel),
            names: Names::default(),
            head: 0,
            known: HashMap::new(),
            token: None,
            streams: BTreeMap::new(),
            keepalives: None,
        }
    }

    /// The answer to `command` as text. Restarting is not a session's business.
    pub async fn run(&mut self, command: &Command) -> String {
        match timeout(2 * ANSWER_DEADLINE, self.answer(command)).await {
            Ok(Ok(Ok(text))) => text,
            Ok(Ok(Err(status))) => render::error(&status),
            Ok(Err(error)) => format!("failed: {error:#}"),
            Err(_) => format!("no answer within {:?}", 2 * ANSWER_DEADLINE),
        }
    }

    async fn answer(&mut self, command: &Command) -> Result<Result<String, Status>> {
        Ok(match command {
            Command::Stream(command) => Ok(self.stream(command).await?),
            Command::Compact(_) => {
                self.catch_up().await?;
                self.unary(command).await
            }
            Command::Restart | Command::Kill => bail!("only a transcript can restart its server"),
            _ => self.unary(command).await,
        })
    }

    async fn unary(&mut self, command: &Command) -> Result<String, Status> {
        match command {
            Command::Range(request) => self.range(request).await,
            Command::RangeStream(request) => self.range_stream(request).await,
            Command::Put(request) => self.put(request).await,
            Command::Delete(request) => {
                let request = self.request(request.clone());
                let response = self.kv.delete_range(request).await?.into_inner();
                self.saw(response.header.as_ref());
                Ok(self.names.delete(&response))
            }
            Command::Txn(request) => self.txn(request).await,
            Command::Compact(request) => {
                let mut request = *request;
                request.revision = self.number(request.revision, b"");
                let request = self.request(request);
                let response = self.kv.compact(request).await?.into_inner();
                self.saw(response.header.as_ref());
                Ok(self.names.header(response.header.as_ref()))
            }
            Command::LeaseGrant(request) => self.lease_grant(request).await,
            Command::LeaseRevoke(id) => {
                let request = self.request(LeaseRevokeRequest { id: self.number(*id, b"") });
                let response = self.lease.lease_revoke(request).await?.into_inner();
                self.saw(response.header.as_ref());
                Ok(self.names.header(response.header.as_ref()))
            }
            Command::LeaseKeepAlive(id) => self.keep_alive(self.number(*id, b"")).await,
            Command::LeaseTimeToLive(request) => {
                let mut request = *request;
                request.id = self.number(request.id, b"");
                let request = self.request(request);
                let response = self.lease.lease_time_to_live(request).await?.into_inner();
                Ok(self.names.lease_time(&response))
            }
            Command::LeaseList => {
                let request = self.request(LeaseLeasesRequest {});
                let response = self.lease.lease_leases(request).await?.into_inner();
                Ok(self.names.lease_list(&response))
            }
            Command::Auth(command) => self.auth(command).await,
            _ => self.maintain(command).await,
        }
    }

    async fn maintain(&mut self, command: &Command) -> Result<String, Status> {
        match command {
            Command::Status => {
                let request = self.request(StatusRequest {});
                Ok(self.names.status(&self.maintenance.status(request).await?.into_inner()))
            }
            Command::Hash => {
                let request = self.request(HashRequest {});
                let response = self.maintenance.hash(request).await?.into_inner();
                Ok(format!("{} hash=*", self.names.header(response.header.as_ref())))
            }
            Command::HashKv(revision) => {
                let request = self.request(HashKvRequest { revision: self.number(*revision, b"") });
                let response = self.maintenance.hash_kv(request).await?.into_inner();
                Ok(format!(
                    "{} hash={:08x} compact_revision={} hash_revision={}",
                    self.names.header(response.header.as_ref()),
                    response.hash,
                    response.compact_revision,
                    response.hash_revision
                ))
            }
            Command::Alarm(request) => {
                let mut request = *request;
                request.member_id = self.member(request.member_id);
                let request = self.request(request);
                Ok(self.names.alarm(&self.maintenance.alarm(request).await?.into_inner()))
            }
            Command::Defragment => {
                let request = self.request(DefragmentRequest {});
                let response = self.maintenance.defragment(request).await?.into_inner();
                Ok(self.names.header(response.header.as_ref()))
            }
            Command::MoveLeader(target) => {
                let request = self.request(MoveLeaderRequest { target_id: self.member(*target) });
                let response = self.maintenance.move_leader(request).await?.into_inner();
                Ok(self.names.header(response.header.as_ref()))
            }
            Command::Downgrade(request) => {
                let request = self.request(request.clone());
                let response = self.maintenance.downgrade(request).await?.into_inner();
                Ok(format!("{} version={}", self.names.header(response.header.as_ref()), response.version))
            }
            Command::MemberList { linearizable } => {
                let request = self.request(MemberListRequest { linearizable: *linearizable });
                Ok(self.names.members(&self.cluster.member_list(request).await?.into_inner()))
            }
            _ => Err(Status::internal("not a maintenance command")),
        }
    }

    async fn range(&mut self, request: &RangeRequest) -> Result<String, Status> {
        let request = self.request(self.resolved_range(request));
        let response = self.kv.range(request).await?.into_inner();
        self.saw(response.header.as_ref());
        self.saw_keys(&response.kvs);
        Ok(self.names.range(&response))
    }

    /// Shows the whole stream as one answer, as a client that collects it does.
    async fn range_stream(&mut self, request: &RangeRequest) -> Result<String, Status> {
        let request = self.request(self.resolved_range(request));
        let mut chunks = self.kv.range_stream(request).await?.into_inner();
        let mut whole = RangeResponse::default();
        while let Some(chunk) = chunks.message().await? {
            let chunk = chunk.range_response.unwrap_or_default();
            if whole.header.is_some() {
                return Err(Status::internal("a chunk after the one with the header"));
            }
            whole.kvs.extend(chunk.kvs);
            whole = RangeResponse { kvs: whole.kvs, ..chunk };
        }
        self.saw(whole.header.as_ref());
        Ok(self.names.range(&whole))
    }

    async fn put(&mut self, request: &PutRequest) -> Result<String, Status> {
        let mut request = request.clone();
        request.lease = self.number(request.lease, b"");
        let key = request.key.clone();
        let request = self.request(request);
        let response = self.kv.put(request).await?.into_inner();
        self.saw(response.header.as_ref());
        self.known.insert(key, self.head);
        Ok(self.names.put(&response))
    }

    async fn txn(&mut self, request: &TxnRequest) -> Result<String, Status> {
        let mut request = request.clone();
        self.resolve_txn(&mut request);
        let request = self.request(request);
        let asked = request.get_ref().clone();
        let response = self.kv.txn(request).await?.into_inner();
        self.saw(response.header.as_ref());
        self.saw_txn(&asked, &response);
        Ok(self.names.txn(&response))
    }

    fn saw_txn(&mut self, request: &TxnRequest, response: &TxnResponse) {
        let branch: &[RequestOp] = if response.succeeded { &request.success } else { &request.failure };
        for (operation, answer) in branch.iter().zip(&response.responses) {
            match (&operation.request, &answer.response) {
                (Some(Operation::RequestPut(put)), _) => {
                    self.known.insert(put.key.clone(), self.head);
                }
                (_, Some(response_op::Response::ResponseRange(range))) => self.saw_keys(&range.kvs),
                (
                    Some(Operation::RequestTxn(request)),
                    Some(response_op::Response::ResponseTxn(response)),
                ) => {
                    self.saw_txn(request, response);
                }
                _ => {}
            }
        }
    }

    async fn lease_grant(&mut self, request: &LeaseGrantRequest) -> Result<String, Status> {
        let mut request = *request;
        request.id = self.number(request.id, b"");
        let picked_by_server = request.id == 0;
        let request = self.request(request);
        let response = self.lease.lease_grant(request).await?.into_inner();
        self.saw(response.header.as_ref());
        if picked_by_server && response.id > 0 {
            self.names.leases.push(response.id);
        }
        let error =
            if response.error.is_empty() { String::new() } else { format!(" error={:?}", response.error) };
        let (header, id) = (self.names.header(response.header.as_ref()), self.names.lease(response.id));
        Ok(format!("{header} id={id} ttl={}{error}", response.ttl))
    }

    async fn keep_alive(&mut self, id: i64) -> Result<String, Status> {
        let result = self.keep_alive_once(id).await;
        if result.is_err() {
            self.keepalives = None;
        }
        let response = result?;
        let (header, id) = (self.names.header(response.header.as_ref()), self.names.lease(response.id));
        Ok(format!("{header} id={id} ttl={}", response.ttl))
    }

    async fn keep_alive_once(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let ended = || Status::internal("the keepalive stream ended");
        let request = LeaseKeepAliveRequest { id };
        let keepalives = match self.keepalives.take() {
            Some(keepalives) => {
                keepalives.requests.send(request).await.map_err(|_| ended())?;
                keepalives
            }
            None => {
                let (requests, outgoing) = mpsc::channel(1);
                requests.send(request).await.map_err(|_| ended())?;
                let outgoing = self.request(ReceiverStream::new(outgoing));
                KeepAlives { requests, responses: self.lease.lease_keep_alive(outgoing).await?.into_inner() }
            }
        };
        let keepalives = self.keepalives.insert(keepalives);
        keepalives.responses.message().await?.ok_or_else(ended)
    }

    async fn stream(&mut self, command: &StreamCommand) -> Result<String> {
        match command {
            StreamCommand::Watch { stream, request } => return self.open_watch(stream, request).await,
            StreamCommand::Sync => return self.sync().await,
            StreamCommand::Cancel { stream, .. } if self.catch_up().await?.contains(stream) => {
                return Ok("not cancelled: the stream waits for the future".into());
            }
            _ => {}
        }
        let name = command.stream().context("only sync has no stream")?;
        let names = &self.names;
        let Some(stream) = self.streams.get_mut(name) else { return Ok(format!("no stream {name}")) };
        match command {
            StreamCommand::Cancel { id, .. } => stream.cancel(*id, names).await,
            StreamCommand::Progress { .. } => stream.progress().await,
            StreamCommand::Expect { responses, .. } => Ok(stream.expect(*responses, names).await),
            StreamCommand::Events { events, .. } => Ok(stream.events(*events, names).await),
            StreamCommand::Close { .. } => {
                self.streams.remove(name);
                Ok("closed".into())
            }
            StreamCommand::Watch { .. } | StreamCommand::Sync => bail!("answered above"),
        }
    }

    async fn open_watch(&mut self, name: &str, request: &WatchCreateRequest) -> Result<String> {
        let mut request = request.clone();
        request.start_revision = self.number(request.start_revision, b"");
        let (client, token) = (&self.watch, &self.token);
        let open = || Stream::open(client.clone(), |outgoing| with_token(token.clone(), outgoing));
        let stream = self.streams.entry(name.to_string()).or_insert_with(open);
        stream.watch(request, &self.names).await
    }

    /// Waits for what every stream still has to deliver; gives the streams that cannot be waited for.
    async fn catch_up(&mut self) -> Result<BTreeSet<String>> {
        let mut waiting = BTreeSet::new();
        for (name, stream) in &mut self.streams {
            let caught = stream.catch_up(self.head).await.with_context(|| format!("stream {name}"))?;
            if caught == Caught::WaitsForTheFuture {
                waiting.insert(name.clone());
            }
        }
        Ok(waiting)
    }

    async fn sync(&mut self) -> Result<String> {
        let waiting = self.catch_up().await?;
        let mut lines = vec!["synced".to_string()];
        for (name, stream) in &mut self.streams {
            if waiting.contains(name) {
                lines.push(format!("  {name}: waits for the future"));
                continue;
            }
            let pending = stream.take_pending(&self.names);
            lines.extend(pending.lines().map(|line| format!("  {name}: {line}")));
        }
        Ok(lines.join("\n"))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        with_token(self.token.clone(), message)
    }

    fn saw(&mut self, header: Option<&ResponseHeader>) {
        if let Some(header) = header {
            self.head = self.head.max(header.revision);
        }
    }

    fn saw_keys(&mut self, kvs: &[KeyValue]) {
        for kv in kvs {
            self.known.insert(kv.key.clone(), kv.mod_revision);
        }
    }

    fn member(&self, id: u64) -> u64 {
        if id == symbol::SELF { self.names.member_id } else { id }
    }
}

fn with_token<T>(token: Option<MetadataValue<Ascii>>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}
