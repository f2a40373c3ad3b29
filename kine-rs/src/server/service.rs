//! One service for everything a client port answers: gRPC by service name, the rest to the plain endpoints.

use super::http::plain;
use crate::api::watch::WatchServer;
use crate::api::{Api, Authority};
use ::http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use proto::etcdserverpb::cluster_server::ClusterServer;
use proto::etcdserverpb::kv_server::KvServer;
use proto::etcdserverpb::lease_server::LeaseServer;
use proto::etcdserverpb::maintenance_server::MaintenanceServer;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

#[derive(Clone)]
pub struct Faces {
    api: Api,
    kv: KvServer<Api>,
    watch: WatchServer,
    lease: LeaseServer<Api>,
    cluster: ClusterServer<Api>,
    maintenance: MaintenanceServer<Api>,
    grpc: bool,
}

impl Faces {
    pub fn new(api: Api) -> Self {
        let decode_max = api.limits.message_bytes_max();
        let encode_max = usize::MAX;
        Faces {
            kv: KvServer::new(api.clone())
                .max_decoding_message_size(decode_max)
                .max_encoding_message_size(encode_max),
            watch: WatchServer::new(api.clone()),
            lease: LeaseServer::new(api.clone())
                .max_decoding_message_size(decode_max)
                .max_encoding_message_size(encode_max),
            cluster: ClusterServer::new(api.clone()).max_decoding_message_size(decode_max),
            maintenance: MaintenanceServer::new(api.clone()).max_decoding_message_size(decode_max),
            api,
            grpc: true,
        }
    }

    /// The same without gRPC: for the metrics listener.
    pub fn plain_only(&self) -> Self {
        Faces { grpc: false, ..self.clone() }
    }

    fn grpc(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service);
        match service {
            "etcdserverpb.KV" => checked(self.kv.clone().call(request)),
            "etcdserverpb.Watch" => checked(self.watch.clone().call(request)),
            "etcdserverpb.Lease" => checked(self.lease.clone().call(request)),
            "etcdserverpb.Maintenance" => checked(self.maintenance.clone().call(request)),
            "etcdserverpb.Cluster" => {
                let mut request = request;
                if let Some(authority) = request.uri().authority() {
                    let authority = Authority(authority.to_string());
                    request.extensions_mut().insert(authority);
                }
                checked(self.cluster.clone().call(request))
            }
            service => {
                let status = Status::new(Code::Unimplemented, format!("unknown service {service}"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// tonic's text for a message over the limit, put into grpc-go's words and code: clients know only those.
fn checked(answer: impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static) -> Answer {
    const TOO_LARGE: &str = "Error, decoded message length too large: found ";
    Box::pin(async move {
        let response = answer.await?;
        if response.headers().contains_key("grpc-status")
            && let Some(status) = Status::from_header_map(response.headers())
            && let Some(rest) = status.message().strip_prefix(TOO_LARGE)
        {
            let mut numbers =
                rest.split(|character: char| !character.is_ascii_digit()).filter(|part| !part.is_empty());
            let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
            let text = format!("grpc: received message larger than max ({found} vs. {limit})");
            return Ok(Status::resource_exhausted(text).into_http());
        }
        Ok(response)
    })
}

impl hyper::service::Service<Request<Incoming>> for Faces {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if is_grpc && self.grpc {
            return self.grpc(request);
        }
        if is_grpc {
            return Box::pin(async { Ok(status_only(StatusCode::NOT_FOUND)) });
        }
        let api = self.api.clone();
        Box::pin(async move { Ok(plain(&api, request).await) })
    }
}

fn status_only(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
