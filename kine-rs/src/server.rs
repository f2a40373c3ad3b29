//! The server: `Config` -> `App` (store open, sockets bound, nothing served) -> `serve` -> drained and closed.
//!
//! One listener speaks gRPC and HTTP: HTTP/2 requests with a gRPC content type go to the services, everything else to the
//! plain endpoints. Every connection is a task of one set; a stop ends accepting, asks connections to finish, and closes
//! the store last.

mod frames;
pub mod gateway;
mod http;
pub mod measured;
mod pings;
mod requests;
mod service;
mod stalls;
mod tls;

use crate::api::caller::Authenticator;
use crate::api::reply::SEND_BUFFER_BYTES;
use crate::api::slow::Slow;
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
use service::{Client, Faces};
use stalls::{Draining, Tasks};
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tls::Acceptor;
pub use tls::{TlsError, is_cipher_suite, self_signed};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections served at once, those taken over by WebSockets among them; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 32 << 10;
/// Connections that may wait in the kernel's queue: tokio's own choice.
const BACKLOG: u32 = 1024;
/// How a client of a Unix socket is called: it has no address. As Go writes it.
const UNIX_CLIENT: &str = "@";
/// How long a client may take for its TLS handshake, or to say what it speaks.
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
    security: Security,
    serves: Serves,
}

/// What a door speaks.
#[derive(Clone)]
enum Security {
    Plain,
    Tls(Acceptor),
    /// Whatever a client begins with.
    Either(Acceptor),
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
        let mut wanted: Vec<Listener> = Vec::new();
        for at in &config.listen {
            wanted.push(Listener { at: at.clone(), tls: config.tls.clone(), serves: Serves::Everything });
        }
        wanted.extend(config.others);
        // Sockets before the store: a port in use is the cheaper mistake to find.
        let doors = open(wanted, config.reuse_port)?;
        let options = Options {
            cache_bytes: config.cache_bytes,
            reply_bytes: config.reply_bytes,
            watch_bytes: config.watch_bytes,
            progress_interval: config.progress_interval,
            metrics: Arc::new(Metrics::default()),
            slow: config.slow,
            quota_bytes: config.limits.quota_bytes,
            slow_apply: config.slow_requests.apply,
            session_ttl: match config.auth.tokens {
                Tokens::Simple { ttl } => ttl,
                Tokens::Jwt(_) => sessions::TTL_DEFAULT,
            },
        };
        let endpoint = config.endpoint.clone();
        let (store, threads) = tokio::task::spawn_blocking(move || Store::open(&endpoint, &options))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        if let Some(above) = config.defragment_above {
            give_back(&store, above).await;
        }
        let about = Arc::new(About {
            version: config.version,
            member_name: config.member_name,
            client_urls: config.client_urls,
            features: config.features,
        });
        let slow = Slow { limits: config.slow_requests, remote: Arc::from("") };
        Ok(App {
            api: Api { store, limits: config.limits, about, auth, slow },
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

    /// Where all listeners are, as `addresses` with their ports.
    pub fn listening(&self) -> Vec<Listen> {
        let at = |door: &Door| match &door.bound {
            Bound::Tcp(listener) => listener.local_addr().ok().map(Listen::Tcp),
            Bound::Unix(_, path) => Some(Listen::Unix(path.clone())),
        };
        self.doors.iter().filter_map(at).collect()
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
        for Door { bound, security, serves } in doors {
            let (faces, requests, closed) = (faces.serving(serves), requests.clone(), closed.clone());
            let reception = Reception { faces, security, options: connections, requests, closed };
            let accept = Accept { reception, slots: slots.clone() };
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

/// Gives unused space back before anything is served, if there is so much of it.
async fn give_back(store: &Store, above: u64) {
    let Ok(size) = store.size().await else { return };
    let unused = size.allocated.saturating_sub(size.in_use);
    if unused < above {
        tracing::info!(
            current_db_size_bytes = size.allocated,
            current_db_size_in_use_bytes = size.in_use,
            bootstrap_defrag_threshold_bytes = above,
            "Skipping defragmentation"
        );
        return;
    }
    match store.defragment().await {
        Ok(()) => tracing::info!(unused, above, "unused space of the database was given back"),
        Err(error) => tracing::warn!(%error, "unused space of the database stays"),
    }
}

/// Binds what is wanted; two listeners that differ only in TLS become one door for both.
fn open(mut wanted: Vec<Listener>, reuse_port: bool) -> Result<Vec<Door>, StartError> {
    let mut doors = Vec::new();
    while !wanted.is_empty() {
        let Listener { at, tls, serves } = wanted.remove(0);
        let shared = matches!(at, Listen::Tcp(address) if address.port() != 0);
        let is_twin = |other: &Listener| {
            shared && (&other.at, other.serves) == (&at, serves) && other.tls.is_some() != tls.is_some()
        };
        let twin = wanted.iter().position(is_twin).map(|twin| wanted.remove(twin));
        let security = match (tls, twin) {
            (None, None) => Security::Plain,
            (Some(tls), None) => Security::Tls(Acceptor::new(&tls)?),
            (Some(tls), Some(_)) | (None, Some(Listener { tls: Some(tls), .. })) => {
                Security::Either(Acceptor::new(&tls)?)
            }
            (None, Some(Listener { tls: None, .. })) => unreachable!("twins differ in TLS"),
        };
        let failed = |error| StartError::Listen { address: at.to_string(), error };
        let bound = match &at {
            Listen::Tcp(address) => Bound::Tcp(bind_tcp(*address, reuse_port).map_err(failed)?),
            Listen::Unix(path) => Bound::Unix(bind_unix(path).map_err(failed)?, path.clone()),
        };
        doors.push(Door { bound, security, serves });
    }
    Ok(doors)
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Always: a server that was just stopped leaves connections behind that hold its port.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
    reception: Reception,
    slots: Arc<tokio::sync::Semaphore>,
}

impl Accept {
    async fn run(self, listener: Bound) {
        let mut closed = self.reception.closed.clone();
        let mut connections = JoinSet::new();
        loop {
            let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            tokio::select! {
                accepted = accept(&listener) => match accepted {
                    Ok(accepted) => {
                        connections.spawn(with_slot(slot, self.reception.clone().run(accepted)));
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
                () = is_true(&mut closed) => break,
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
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

async fn accept(listener: &Bound) -> std::io::Result<Accepted> {
    match listener {
        Bound::Tcp(listener) => {
            let (stream, remote) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream, remote))
        }
        Bound::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
    }
}

/// How the connections of a door are served.
#[derive(Clone)]
struct Reception {
    faces: Faces,
    security: Security,
    options: Connections,
    requests: requests::All,
    closed: watch::Receiver<bool>,
}

impl Reception {
    async fn run(self, accepted: Accepted) {
        match accepted {
            Accepted::Tcp(stream, remote) => {
                let acceptor = match &self.security {
                    Security::Plain => None,
                    Security::Tls(acceptor) => Some(acceptor.clone()),
                    Security::Either(acceptor) => match begins_with_tls(&stream).await {
                        Some(tls) => tls.then(|| acceptor.clone()),
                        None => return,
                    },
                };
                self.secured(stream, acceptor, remote.to_string().into()).await;
            }
            Accepted::Unix(stream) => {
                let acceptor = match &self.security {
                    Security::Plain => None,
                    Security::Tls(acceptor) | Security::Either(acceptor) => Some(acceptor.clone()),
                };
                self.secured(stream, acceptor, UNIX_CLIENT.into()).await;
            }
        }
    }

    async fn secured<S>(self, stream: S, acceptor: Option<Acceptor>, remote: Arc<str>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(acceptor) = acceptor else {
            let client = Client { remote, ..self.client() };
            return self.serve(stream, client).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let certificate_name = tls::certificate_name(&stream);
                let client = Client { remote, secure: true, certificate_name, ..self.client() };
                self.serve(stream, client).await;
            }
            Ok(Err(error)) => self.rejected(&remote, &error),
            Err(_) => self.rejected(&remote, &std::io::ErrorKind::TimedOut.into()),
        }
    }

    fn client(&self) -> Client {
        Client { connection: requests::Connection::new(self.requests.clone()), ..Client::default() }
    }

    fn rejected(&self, remote: &str, error: &std::io::Error) {
        let who = if self.faces.are_for_peers() { "peer" } else { "client" };
        // Probes of load balancers connect and leave: nothing to warn of.
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            tracing::debug!(remote_addr = remote, %error, "rejected connection on {who} endpoint");
        } else {
            tracing::warn!(remote_addr = remote, %error, "rejected connection on {who} endpoint");
        }
    }

    /// The least time between two pings of a client; `None`: they are not counted.
    fn ping_interval_min(&self, secure: bool) -> Option<Duration> {
        let beside_http = secure && self.faces.are_all();
        let counted = self.options.pings_counted_beside_http || !beside_http;
        self.options.client_ping_interval_min.filter(|_| counted)
    }

    /// Serves a connection until it ends; after `closed`, until what is under way is done.
    async fn serve<S>(mut self, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let options = self.options;
        let stream = Draining::new(stream, client.connection.clone(), options.stall_max);
        let stream = Policed::new(stream, client.connection.clone(), self.ping_interval_min(client.secure));
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
        builder
            .http1()
            .title_case_headers(true)
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_TIMEOUT);
        let (faces, taken_over) = self.faces.of_client(client);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), faces);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = is_true(&mut self.closed) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
        if let Some(session) = taken_over.take() {
            session(Box::pin(async move { is_true(&mut self.closed).await })).await;
        }
    }
}

/// What a client begins with; `None`: nothing, it has gone.
async fn begins_with_tls(stream: &TcpStream) -> Option<bool> {
    /// A record of TLS that holds a handshake.
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    let peeked = tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await;
    matches!(peeked, Ok(Ok(1))).then_some(first[0] == HANDSHAKE)
}
