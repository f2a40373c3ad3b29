//! Connections to an etcd v3 endpoint, `http://HOST:PORT` or `unix:///PATH`.
//!
//! One [`Connection`] is one HTTP/2 connection that many clients may share. It hands requests straight to hyper: tonic's own
//! `Channel` puts a queue and a reconnecting task in between, and then the client is what gets measured. A connection that
//! breaks stays broken; whoever measures a restart dials again.

use std::io;
use std::str::FromStr;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::watch_client::WatchClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

/// Receive window of a stream and of a connection. Large enough that flow control is never what limits a list.
const WINDOW_BYTES: u32 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(String),
    Unix(String),
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an endpoint: expected http://HOST:PORT or unix:///PATH")]
pub struct NotAnEndpoint(String);

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let refused = || NotAnEndpoint(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.to_owned())) } else { Err(refused()) };
        }
        let address = text.strip_prefix("http://").ok_or_else(refused)?.trim_end_matches('/');
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_some() { Ok(Self::Tcp(address.to_owned())) } else { Err(refused()) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect to {endpoint:?}")]
    Dial { endpoint: Endpoint, source: io::Error },
    #[error("{endpoint:?} does not speak HTTP/2")]
    Handshake { endpoint: Endpoint, source: hyper::Error },
}

impl Endpoint {
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        let dial = |source| ConnectError::Dial { endpoint: self.clone(), source };
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(dial)?;
                stream.set_nodelay(true).map_err(dial)?;
                self.handshake(stream).await
            }
            Self::Unix(path) => self.handshake(UnixStream::connect(path).await.map_err(dial)?).await,
        }
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Connection, ConnectError> {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectError::Handshake { endpoint: self.clone(), source })?;
        // Ends when the last clone of the connection is dropped; why it broke earlier is in the error of the request.
        tokio::spawn(connection.map(drop));
        Ok(Connection { requests })
    }

    /// `count` connections, which clients share round-robin.
    pub async fn connect_many(&self, count: usize) -> Result<Vec<Connection>, ConnectError> {
        futures::future::try_join_all((0..count).map(|_| self.connect())).await
    }
}

#[derive(Debug, Clone)]
pub struct Connection {
    requests: SendRequest<Body>,
}

impl Connection {
    pub fn kv(&self) -> KvClient<Self> {
        KvClient::with_origin(self.clone(), origin()).max_decoding_message_size(usize::MAX)
    }

    pub fn watch(&self) -> WatchClient<Self> {
        WatchClient::with_origin(self.clone(), origin()).max_decoding_message_size(usize::MAX)
    }

    pub fn lease(&self) -> LeaseClient<Self> {
        LeaseClient::with_origin(self.clone(), origin())
    }

    /// Calls a method and shows the bytes of the answer as they come. What decoding all of it costs is not the server's.
    pub async fn call_raw(
        &mut self,
        path: &'static str,
        message: &impl Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Status> {
        let encoded = message.encode_to_vec();
        let framed = [&[0][..], &(encoded.len() as u32).to_be_bytes(), &encoded].concat();
        let request = Request::post(Uri::from_static(path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::new(Full::from(framed)))
            .expect("the request is valid");
        let failed = |error: hyper::Error| Status::unavailable(error.to_string());
        let mut body = self.requests.send_request(request).await.map_err(failed)?.into_body();
        let mut status = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(failed)?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
            status = status.or_else(|| frame.trailers_ref().and_then(Status::from_header_map));
        }
        match status {
            Some(status) if status.code() == Code::Ok => Ok(()),
            Some(status) => Err(status),
            None => Err(Status::unknown("the call ended without a status")),
        }
    }
}

/// Scheme and authority of every request; servers don't route by it, not even on Unix sockets.
fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.requests.send_request(request).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_tcp_with_a_port_or_absolute_unix_paths() {
        assert_eq!(
            "http://127.0.0.1:2379".parse::<Endpoint>().unwrap(),
            Endpoint::Tcp("127.0.0.1:2379".into())
        );
        assert_eq!("http://[::1]:2379/".parse::<Endpoint>().unwrap(), Endpoint::Tcp("[::1]:2379".into()));
        assert_eq!(
            "unix:///run/kine.sock".parse::<Endpoint>().unwrap(),
            Endpoint::Unix("/run/kine.sock".into())
        );
        for wrong in ["127.0.0.1:2379", "http://localhost", "unix://kine.sock", "https://a:1", ""] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
