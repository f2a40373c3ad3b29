//! One service for everything a client port answers: gRPC by service name, the rest to the plain endpoints.

use super::gateway::{gateway, is_gateway, websocket};
use super::http::{self, allow_origin, metrics, peers, plain, preflight, refuse_host};
use super::measured::{Arrivals, Received, Sent};
use super::requests::{Admitted, Connection};
use crate::api::caller::CertificateName;
use crate::api::error::TOO_MANY_REQUESTS;
use crate::api::reply::{Held, LongBody};
use crate::api::slow::Slow;
use crate::api::watch::WatchServer;
use crate::api::{Api, Authority};
use crate::config::{Http, Serves};
use crate::metrics::grpc::{Call, Method, OfVersion};
use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_TYPE,
};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use prometheus::IntCounter;
use proto::etcdserverpb::auth_server::AuthServer;
use proto::etcdserverpb::cluster_server::ClusterServer;
use proto::etcdserverpb::kv_server::KvServer;
use proto::etcdserverpb::lease_server::LeaseServer;
use proto::etcdserverpb::maintenance_server::MaintenanceServer;
use proto::v3electionpb::election_server::ElectionServer;
use proto::v3lockpb::lock_server::LockServer;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service;

/// Where etcd's clients say of which version they are.
const CLIENT_VERSION: HeaderName = HeaderName::from_static("client-api-version");

/// What goes on with a connection that has left HTTP, given what is done when the server stops.
type Session = Box<dyn FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send>;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Sent>, Infallible>> + Send>>;

/// What a call's answer carries until it is sent.
#[derive(Default)]
struct Attached {
    /// The call, if it is measured, and where the bytes of its answer are counted.
    measure: Option<(Call, IntCounter)>,
    /// Its place among the requests under way; a call through the gateway has the gateway's.
    admitted: Option<Admitted>,
}

#[derive(Clone)]
pub struct Faces {
    api: Api,
    kv: KvServer<Api>,
    watch: WatchServer,
    lease: LeaseServer<Api>,
    cluster: ClusterServer<Api>,
    maintenance: MaintenanceServer<Api>,
    auth: AuthServer<Api>,
    lock: LockServer<Api>,
    election: ElectionServer<Api>,
    /// Always "serving": a server that can't serve is gone.
    health: HealthServer<HealthService>,
    http: Arc<Http>,
    serves: Serves,
    arrivals: Arrivals,
    client: Arc<Client>,
    taken_over: TakenOver,
}

/// Who is at the other end of a connection.
#[derive(Default)]
pub struct Client {
    /// Its address, as logs have it.
    pub remote: Arc<str>,
    /// The connection is encrypted.
    pub secure: bool,
    /// The common name of the client's certificate.
    pub certificate_name: Option<CertificateName>,
    /// The version its first request said it is, and where its requests are counted.
    pub version: OnceLock<(Option<HeaderValue>, OfVersion)>,
    pub connection: Arc<Connection>,
}

/// The session a connection is to become when its last answer is out.
#[derive(Clone, Default)]
pub struct TakenOver(Arc<Mutex<Option<Session>>>);

impl TakenOver {
    pub fn take(&self) -> Option<Session> {
        self.0.lock().expect("no holder of a session panics").take()
    }
}

impl Faces {
    pub fn new(api: Api, http: Arc<Http>, arrivals: Arrivals) -> Self {
        let decode_max = arrivals.message_bytes_max;
        let encode_max = usize::MAX;
        Faces {
            kv: kv_server(&api),
            watch: WatchServer::new(api.clone()),
            lease: LeaseServer::new(api.clone())
                .max_decoding_message_size(decode_max)
                .max_encoding_message_size(encode_max),
            cluster: ClusterServer::new(api.clone()).max_decoding_message_size(decode_max),
            maintenance: MaintenanceServer::new(api.clone()).max_decoding_message_size(decode_max),
            auth: AuthServer::new(api.clone()).max_decoding_message_size(decode_max),
            lock: LockServer::new(api.clone()).max_decoding_message_size(decode_max),
            election: ElectionServer::new(api.clone()).max_decoding_message_size(decode_max),
            health: HealthServer::new(HealthService::from_health_reporter(HealthReporter::new())),
            api,
            http,
            serves: Serves::Everything,
            arrivals,
            client: Arc::default(),
            taken_over: TakenOver::default(),
        }
    }

    /// The same for a listener that serves this much.
    pub fn serving(&self, serves: Serves) -> Self {
        Faces { serves, ..self.clone() }
    }

    pub fn are_for_peers(&self) -> bool {
        self.serves == Serves::Peers
    }

    /// Whether plain HTTP is answered where gRPC is.
    pub fn are_all(&self) -> bool {
        self.serves == Serves::Everything
    }

    /// The same for one connection, and where its session is when it leaves HTTP.
    pub fn of_client(self, client: Client) -> (Self, TakenOver) {
        let taken_over = TakenOver::default();
        let slow = Slow { remote: client.remote.clone(), ..self.api.slow };
        let api = Api { slow, ..self.api };
        let kv = kv_server(&api);
        (Faces { api, kv, client: Arc::new(client), taken_over: taken_over.clone(), ..self }, taken_over)
    }

    /// Leaves a session with the connection of the request being answered. It is not of that connection any more.
    pub fn take_over<S>(&self, session: impl FnOnce(Faces, BoxFuture<'static, ()>) -> S + Send + 'static)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let faces = Faces { taken_over: TakenOver::default(), ..self.clone() };
        let session: Session = Box::new(move |stop| Box::pin(session(faces, stop)));
        *self.taken_over.0.lock().expect("no holder of a session panics") = Some(session);
    }

    /// Answers one gRPC call, counted and measured.
    pub fn grpc(&self, request: Request<Received>, admitted: Option<Admitted>) -> Answer {
        let grpc = &self.api.store.metrics().grpc;
        match grpc.method(request.uri().path()) {
            Some(method) => {
                self.count_version(request.headers(), method);
                let request = request.map(|body| body.counted(method.clone(), grpc, &self.arrivals));
                let measure = Some((Call::start(method.clone()), grpc.sent_bytes.clone()));
                let answer = self.route(request, Attached { measure, admitted });
                if method.is_unary_beside_keys() { self.timed(method.clone(), answer) } else { answer }
            }
            None => self.route(request, Attached { measure: None, admitted }),
        }
    }

    /// Counts a request in that comes in another way than through `call`.
    pub fn admit(&self) -> Option<Admitted> {
        self.client.connection.admit()
    }

    /// A client says the same in all its requests: looked up once in a connection.
    fn count_version(&self, headers: &HeaderMap, method: &Method) {
        let said = headers.get(&CLIENT_VERSION);
        let grpc = &self.api.store.metrics().grpc;
        let find = || grpc.version(said.and_then(|version| version.to_str().ok()));
        let (first, of_version) = self.client.version.get_or_init(|| (said.cloned(), find()));
        if first.as_ref() == said { of_version.count(method) } else { find().count(method) }
    }

    /// The answer of a unary method that logs nothing itself, logged when it was slow.
    fn timed(&self, method: Arc<Method>, answer: Answer) -> Answer {
        let (slow, started) = (self.api.slow.clone(), Instant::now());
        Box::pin(async move {
            let response = answer.await;
            slow.unary(method.path(), started.elapsed());
            response
        })
    }

    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn http(&self, request: Request<Body>, admitted: Admitted) -> Answer {
        let faces = self.clone();
        Box::pin(async move {
            let response = match faces.serves {
                Serves::Metrics => metrics(&faces.api, &request.map(drop)).await,
                Serves::Peers => peers(&faces.api, &request.map(drop)),
                Serves::Everything | Serves::Grpc | Serves::Http => faces.client_http(request).await,
            };
            Ok(attach(response, Attached { measure: None, admitted: Some(admitted) }))
        })
    }

    /// What clients may ask for, if they may ask.
    async fn client_http(&self, request: Request<Body>) -> Response<Body> {
        let asked = request.headers().clone();
        let to_gateway = self.http.gateway && is_gateway(request.uri().path());
        if let Some(refusal) = self.refuse(&request, to_gateway) {
            return refusal;
        }
        let mut response = match preflight(&self.http, &request) {
            Some(response) => response,
            None if to_gateway && websocket::is_wanted(&asked) => {
                websocket::accept(self, request, &self.http)
            }
            None if to_gateway => gateway(self, request).await,
            None => plain(&self.api, &request.map(drop)).await,
        };
        allow_origin(&self.http, &asked, response.headers_mut());
        response
    }

    fn refuse(&self, request: &Request<Body>, to_gateway: bool) -> Option<Response<Body>> {
        if !self.client.secure {
            return refuse_host(&self.http, request);
        }
        let named = self.client.certificate_name.is_some() && self.api.auth.certificate_names_user();
        (to_gateway && named && self.api.store.sessions().enforced()).then(|| {
            let text = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
            http::text(StatusCode::BAD_REQUEST, text)
        })
    }

    fn route(&self, request: Request<Received>, attached: Attached) -> Answer {
        let path = request.uri().path();
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service);
        match service {
            "etcdserverpb.KV" => answer(self.kv.clone().call(request), attached),
            "etcdserverpb.Watch" => answer(self.watch.clone().call(request), attached),
            "etcdserverpb.Lease" => answer(self.lease.clone().call(request), attached),
            "etcdserverpb.Auth" => answer(self.auth.clone().call(request), attached),
            "v3lockpb.Lock" => answer(self.lock.clone().call(request), attached),
            "v3electionpb.Election" => answer(self.election.clone().call(request), attached),
            "etcdserverpb.Maintenance" => answer(self.maintenance.clone().call(request), attached),
            "etcdserverpb.Cluster" => {
                let mut request = request;
                if let Some(authority) = request.uri().authority() {
                    let scheme = if self.client.secure { "https" } else { "http" };
                    let authority = Authority(format!("{scheme}://{authority}"));
                    request.extensions_mut().insert(authority);
                }
                answer(self.cluster.clone().call(request), attached)
            }
            "grpc.health.v1.Health" => answer(self.health.clone().call(request), attached),
            service => {
                let status = Status::new(Code::Unimplemented, format!("unknown service {service}"));
                Box::pin(async move { Ok(status.into_http::<Body>().map(Sent::from)) })
            }
        }
    }
}

fn kv_server(api: &Api) -> KvServer<Api> {
    KvServer::new(api.clone())
        .max_decoding_message_size(api.limits.message_bytes_max())
        .max_encoding_message_size(usize::MAX)
}

/// Awaits a service's answer.
fn answer(
    answer: impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    attached: Attached,
) -> Answer {
    Box::pin(async move { Ok(attach(reworded(answer.await?), attached)) })
}

/// A response with what it carries until it is sent, and with the body that came beside it.
fn attach(mut response: Response<Body>, attached: Attached) -> Response<Sent> {
    let Attached { measure, admitted } = attached;
    let extensions = response.extensions_mut();
    let (held, long) = if extensions.is_empty() {
        (None, None)
    } else {
        (extensions.remove::<Held>(), extensions.remove::<LongBody>().and_then(|long| long.take()))
    };
    if let Some(long) = long {
        *response.body_mut() = Body::new(long);
    }
    Sent::response(response, measure).map(|body| body.admitted(admitted).holding(held))
}

/// tonic's text for a message over the limit, put into grpc-go's words and code: clients know only those.
fn reworded(response: Response<Body>) -> Response<Body> {
    const TOO_LARGE: &str = "Error, decoded message length too large: found ";
    if response.headers().contains_key("grpc-status")
        && let Some(status) = Status::from_header_map(response.headers())
        && let Some(rest) = status.message().strip_prefix(TOO_LARGE)
    {
        let mut numbers =
            rest.split(|character: char| !character.is_ascii_digit()).filter(|part| !part.is_empty());
        let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
        let text = format!("grpc: received message larger than max ({found} vs. {limit})");
        return Status::resource_exhausted(text).into_http();
    }
    response
}

impl hyper::service::Service<Request<Incoming>> for Faces {
    type Response = Response<Sent>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let is_grpc = request.version() == Version::HTTP_2
            && request
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let Some(admitted) = self.admit() else { return too_many(is_grpc) };
        match (is_grpc, self.serves) {
            (true, Serves::Everything | Serves::Grpc) => {
                let mut request = request.map(Received::from);
                // Not through the gateway: there the certificate says nothing of who asks.
                if let Some(name) = &self.client.certificate_name {
                    request.extensions_mut().insert(name.clone());
                }
                self.grpc(request, Some(admitted))
            }
            (true, _) | (false, Serves::Grpc) => Box::pin(async { Ok(status_only(StatusCode::NOT_FOUND)) }),
            (false, _) => self.http(request.map(Body::new), admitted),
        }
    }
}

/// One request more than are answered at a time.
fn too_many(is_grpc: bool) -> Answer {
    let refusal = if is_grpc {
        Status::resource_exhausted(TOO_MANY_REQUESTS).into_http::<Body>().map(Sent::from)
    } else {
        status_only(StatusCode::TOO_MANY_REQUESTS)
    };
    Box::pin(async move { Ok(refusal) })
}

fn status_only(status: StatusCode) -> Response<Sent> {
    let mut response = Response::new(Sent::from(Body::empty()));
    *response.status_mut() = status;
    response
}
