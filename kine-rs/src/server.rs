//! The server: `Config` -> `App` (store open, sockets bound, nothing served) -> `serve` -> drained and closed.
//!
//! One listener speaks gRPC and HTTP: HTTP/2 requests with a gRPC content type go to the services, everything else to the
//! plain endpoints. Every connection is a task of one set; a stop ends accepting, asks connections to finish, and closes
//! the store last.

mod frames;
mod gateway;
mod http;
mod measured;
mod pings;
mod requests;
mod service;
mod stalls;
mod tls;

use crate::api::caller::Authenticator;
use crate::api::reply::SEND_BUFFER_BYTES;
use crate::api::{About, Api};
use crate::auth::Tokens;
use crate::auth::jwt::JwtError;
use crate::auth::sessions;
use crate::auto_compaction::{self, AutoCompaction};
use crate::backend::OpenError;
use crate::budget::Budget;
use crate::config::{Config, Connections, Http, Listen, Listener, Serves};
use crate::metrics::Metrics;
use crate::store::{Options, Store, Threads};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use measured::Arrivals;
use pings::Policed;
use requests::Connection;
use service::{Client, Faces};
use stalls::{Draining, Tasks};
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tls::Acceptor;
pub use tls::{TlsError, self_signed};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections served at once; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 32 << 10;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows large enough that a list is not held up by round trips.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Streams that a client may reset before hyper has taken them on, and those that are reset for its mistakes: with more, the
/// connection ends ("rapid reset", CVE-2023-44487 and its kin). Many more than one burst of cancelled requests has.
const RESETS_PENDING_MAX: usize = 1024;
const RESETS_FOR_ERRORS_MAX: usize = 1024;
/// Headers of one request, as they are decoded; also bounds how many CONTINUATION frames they may come in.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    AuthToken(#[from] JwtError),
    #[error("no listen address is given")]
    NoListener,
    #[error("{0} is to speak TLS, but no certificate is given")]
    NoCertificate(String),
}

pub struct App {
    api: Api,
    threads: Threads,
    doors: Vec<Door>,
    auto_compaction: Option<AutoCompaction>,
    http: Arc<Http>,
    connections: Connections,
    request_bytes: usize,
}

/// A bound listener, what it speaks and what it serves.
struct Door {
    bound: Bound,
    tls: Option<Acceptor>,
    serves: Serves,
}

enum Bound {
    Tcp(TcpListener),
    /// Its file is removed when the listener goes.
    Unix(UnixListener, PathBuf),
}

impl App {
    /// Opens the store and binds the sockets. Blocks while the store is opened.
    pub async fn bind(config: Config) -> Result<App, StartError> {
        if config.listen.is_empty() && config.others.is_empty() {
            return Err(StartError::NoListener);
        }
        let auth = Arc::new(Authenticator::load(&config.auth)?);
        let tls = config.tls.as_ref().map(Acceptor::new).transpose()?;
        let mut wanted: Vec<Listener> = Vec::new();
        for at in &config.listen {
            let tls = tls.is_some() && matches!(at, Listen::Tcp(_));
            wanted.push(Listener { at: at.clone(), tls, serves: Serves::Everything });
        }
        wanted.extend(config.others);
        // Sockets before the store: a port in use is the cheaper mistake to find.
        let mut doors = Vec::new();
        for listener in wanted {
            let tls = match (listener.tls, &tls) {
                (true, Some(acceptor)) => Some(acceptor.clone()),
                (true, None) => return Err(StartError::NoCertificate(listener.at.to_string())),
                (false, _) => None,
            };
            let bound = Bound::listen(&listener.at).await?;
            doors.push(Door { bound, tls, serves: listener.serves });
        }
        let options = Options {
            cache_bytes: config.cache_bytes,
            reply_bytes: config.reply_bytes,
            watch_bytes: config.watch_bytes,
            progress_interval: config.progress_interval,
            metrics: Arc::new(Metrics::default()),
            slow: config.slow,
            session_ttl: match config.auth.tokens {
                Tokens::Simple { ttl } => ttl,
                Tokens::Jwt(_) => sessions::TTL_DEFAULT,
            },
        };
        let endpoint = config.endpoint.clone();
        let (store, threads) = tokio::task::spawn_blocking(move || Store::open(&endpoint, &options))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let about = Arc::new(About {
            version: config.version,
            member_name: config.member_name,
            client_urls: config.client_urls,
            peer_urls: config.peer_urls,
        });
        Ok(App {
            api: Api { store, limits: config.limits, about, auth },
            threads,
            doors,
            auto_compaction: config.auto_compaction,
            http: Arc::new(config.http),
            connections: config.connections,
            request_bytes: config.request_bytes,
        })
    }

    /// The TCP addresses clients use: tells the port where the configuration said 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors
            .iter()
            .filter(|door| matches!(door.serves, Serves::Everything | Serves::Grpc))
            .filter_map(|door| match &door.bound {
                Bound::Tcp(listener) => listener.local_addr().ok(),
                Bound::Unix(..) => None,
            })
            .collect()
    }

    /// Serves until `stop` is done; then lets requests under way finish for at most `grace` (asked at that moment), and
    /// closes the store.
    pub async fn serve(self, stop: impl Future<Output = ()>, grace: impl FnOnce() -> Duration) {
        let App { api, threads, doors, auto_compaction, http, connections, request_bytes } = self;
        let (closing, closed) = watch::channel(false);
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let requests = requests::All::default();
        let mut background = JoinSet::new();
        if let Some(options) = auto_compaction {
            background.spawn(auto_compaction::run(options, api.store.clone()));
        }
        let arrivals = Arrivals {
            // A message that does not fit is refused: one that waited would hold what has come of it.
            budget: Budget::new(request_bytes, 0),
            message_bytes_max: api.limits.message_bytes_max(),
            stall_max: connections.stall_max,
        };
        let faces = Faces::new(api.clone(), http, arrivals);
        let mut acceptors = JoinSet::new();
        for Door { bound, tls, serves } in doors {
            let faces = faces.serving(serves, tls.is_some());
            let mut connections = connections;
            if tls.is_some() && serves == Serves::Everything && !connections.pings_counted_beside_http {
                connections.client_ping_interval_min = None;
            }
            let (slots, requests, closed) = (slots.clone(), requests.clone(), closed.clone());
            let accept = Accept { faces, tls, connections, slots, requests, closed };
            acceptors.spawn(accept.run(bound));
        }
        stop.await;
        let grace = grace();
        // Watches end first: they would hold their connections until the grace is over.
        api.store.hub().close().await;
        closing.send_replace(true);
        let drained = async { while acceptors.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, drained).await.is_err() {
            tracing::info!("closing connections that are still busy after {grace:?}");
        }
        acceptors.shutdown().await;
        background.shutdown().await;
        tokio::task::spawn_blocking(|| threads.stop())
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    }
}

impl Bound {
    async fn listen(listen: &Listen) -> Result<Bound, StartError> {
        match listen {
            Listen::Tcp(address) => Ok(Bound::Tcp(bind_tcp(*address).await?)),
            Listen::Unix(path) => {
                let failed =
                    |error| StartError::Listen { address: format!("unix://{}", path.display()), error };
                let listener = bind_unix(path).map_err(failed)?;
                Ok(Bound::Unix(listener, path.clone()))
            }
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Bound::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(&*path)
        {
            tracing::debug!(path = %path.display(), %error, "socket file was gone already");
        }
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen { address: address.to_string(), error })
}

/// A socket only its owner can use. A file left by a process that died is replaced; one that answers is not.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another process listens there"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts connections of one listener until closed, and waits for those it has.
struct Accept {
    faces: Faces,
    tls: Option<Acceptor>,
    connections: Connections,
    slots: Arc<tokio::sync::Semaphore>,
    requests: requests::All,
    closed: watch::Receiver<bool>,
}

impl Accept {
    async fn run(mut self, listener: Bound) {
        let options = self.connections;
        let mut connections = JoinSet::new();
        loop {
            let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            tokio::select! {
                accepted = accept(&listener) => match accepted {
                    Ok(Accepted::Tcp(stream)) => match &self.tls {
                        Some(acceptor) => {
                            let (faces, closed, acceptor) = (self.faces.clone(), self.closed.clone(), acceptor.clone());
                            let requests = self.requests.clone();
                            connections.spawn(async move {
                                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                                    Ok(Ok(stream)) => {
                                        let faces = faces.of_client(tls::certificate_name(&stream));
                                        serve(stream, faces, options, requests, closed).await;
                                    }
                                    Ok(Err(error)) => {
                                        tracing::warn!(%error, "rejected connection on client endpoint");
                                    }
                                    Err(_) => tracing::warn!("rejected connection on client endpoint: TLS handshake timed out"),
                                }
                                drop(slot);
                            });
                        }
                        None => {
                            connections.spawn(with_slot(slot, serve(stream, self.faces.clone(), options, self.requests.clone(), self.closed.clone())));
                        }
                    },
                    Ok(Accepted::Unix(stream)) => {
                        connections.spawn(with_slot(slot, serve(stream, self.faces.clone(), options, self.requests.clone(), self.closed.clone())));
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: serve what is there and try again when something ends.
                        tracing::warn!(%error, "accepting a connection failed");
                        if connections.join_next().await.is_none() {
                            tokio::task::yield_now().await;
                        }
                    }
                },
                Some(finished) = connections.join_next() => drop(finished),
                () = is_true(&mut self.closed) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Waits for the flag; its sender outlives all who wait.
async fn is_true(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending().await
    }
}

async fn with_slot(slot: tokio::sync::OwnedSemaphorePermit, connection: impl Future<Output = ()>) {
    connection.await;
    drop(slot);
}

enum Accepted {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &Bound) -> std::io::Result<Accepted> {
    match listener {
        Bound::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream))
        }
        Bound::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
    }
}

/// Serves one connection until it ends; after `closed`, until what is under way is done.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    faces: Faces,
    options: Connections,
    requests: requests::All,
    mut closed: watch::Receiver<bool>,
) {
    let client = Connection::new(requests);
    let stream = Draining::new(stream, client.clone(), options.stall_max);
    let stream = Policed::new(stream, client.clone(), options.client_ping_interval_min);
    let mut builder = Builder::new(Tasks { stall_max: options.stall_max });
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.concurrent_streams_max)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_FOR_ERRORS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(options.ping_interval)
        .keep_alive_timeout(options.ping_timeout);
    // As Go writes them: scripts compare names of headers as they are.
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    let service = Client { faces, connection: client };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = is_true(&mut closed) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
