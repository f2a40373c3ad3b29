//! Answers on the status socket.
//!
//! Invariant: reads a snapshot for each answer and changes nothing; whoever may open the socket (its owner) may know all of
//! it. Spawned by `run`; ends when its task is dropped, and then the socket file is gone.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use time::OffsetDateTime;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use worker::supervise::ComponentStatus;

use super::{Components, Status};

/// As upstream's socket; only the owner may write to it, which connecting needs.
const MODE: u32 = 0o755;
/// Clients at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// For a request to arrive: an idle client must not keep a place.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// After an accept that failed (no file descriptors): the next one would fail at once, too.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Entries for each component where the request names no number, as upstream.
const ENTRIES_DEFAULT: usize = 1;

/// Where the answers come from.
pub struct StatusSource {
    pub status: Status,
    pub components: Box<dyn Fn() -> Vec<ComponentStatus> + Send + Sync>,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusServerError {
    #[error("{path} is there and is not a socket: remove it or choose another --status-socket")]
    NotASocket { path: PathBuf },
    #[error("another process answers on {path}: choose another --status-socket")]
    InUse { path: PathBuf },
    #[error("cannot listen on {path}")]
    Bind { path: PathBuf, source: io::Error },
}

/// Bound, and answering once it is run.
#[derive(Debug)]
pub struct StatusServer {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.0.display(), %error, "cannot remove the status socket");
        }
    }
}

impl StatusServer {
    /// Replaces the socket that an earlier k0s left.
    pub fn bind(path: &Path) -> Result<StatusServer, StatusServerError> {
        let failed = |source| StatusServerError::Bind { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(StatusServerError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(StatusServerError::InUse { path: path.to_owned() });
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        Ok(StatusServer { listener, file })
    }

    /// Runs until it is dropped.
    pub async fn run(self, source: StatusSource) {
        let _removed_at_the_end = self.file;
        let source = Arc::new(source);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the status socket");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let source = Arc::clone(&source);
            connections.spawn(async move {
                let _place = place;
                let service = service_fn(|request| {
                    let source = Arc::clone(&source);
                    async move { Ok::<_, std::convert::Infallible>(answer(&request, &source)) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_WITHIN)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a client of the status socket went away");
                }
            });
        }
    }
}

fn answer(request: &Request<Incoming>, source: &StatusSource) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/status" => json(&source.status),
        "/components" => {
            let Some(entries) = entries_max(request.uri().query()) else {
                return plain(StatusCode::BAD_REQUEST, "maxCount must be a number\n");
            };
            json(&Components::new((source.components)(), OffsetDateTime::now_utc(), entries))
        }
        _ => plain(StatusCode::NOT_FOUND, "known are /status and /components\n"),
    }
}

fn entries_max(query: Option<&str>) -> Option<usize> {
    let value = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("maxCount="));
    value.map_or(Some(ENTRIES_DEFAULT), |number| number.parse().ok())
}

fn json(document: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(document).expect("the documents have string keys and plain values only");
    let mut response = Response::new(Full::new(body.into()));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{PathChoices, Paths};
    use crate::status::client;
    use crate::vars::K0sVars;

    fn source(paths: &Paths) -> StatusSource {
        let status = Status {
            version: "v1.36.3+k0s.0".into(),
            pid: std::process::id(),
            parent_pid: 1,
            role: "controller".into(),
            sys_init: String::new(),
            stub_file: String::new(),
            output: String::new(),
            workloads: false,
            single_node: false,
            args: vec!["k0s".into()],
            worker_to_api: Default::default(),
            cluster_config: serde_json::json!({"spec": {}}),
            k0s_vars: K0sVars::new(paths, "id".into(), Path::new("-")),
        };
        StatusSource { status, components: Box::new(Vec::new) }
    }

    #[tokio::test]
    async fn socket_answers_with_upstreams_keys_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        let choices = PathChoices { run_dir: Some(dir.path().to_owned()), ..Default::default() };
        let paths = Paths::resolve(choices, true).unwrap();
        // What a killed k0s leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&paths.status_socket).unwrap());

        let server = StatusServer::bind(&paths.status_socket).unwrap();
        let task = tokio::spawn(server.run(source(&paths)));
        let answer = client::get(&paths.status_socket, "/status").await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys.join(" "),
            "Args ClusterConfig K0sVars Output PPid Pid Role SingleNode StubFile SysInit Version \
             WorkerToAPIConnectionStatus Workloads"
        );
        let components = client::get(&paths.status_socket, "/components?maxCount=2").await.unwrap();
        assert_eq!(components, br#"{"healthProbes":{},"events":{},"components":[]}"#.as_slice());
        for (path, code) in [("/nothing", "404"), ("/components?maxCount=x", "400")] {
            let error = client::get(&paths.status_socket, path).await.unwrap_err();
            assert!(error.to_string().contains(code), "{error}");
        }

        let error = StatusServer::bind(&paths.status_socket).unwrap_err();
        assert!(matches!(error, StatusServerError::InUse { .. }), "{error}");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!paths.status_socket.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(StatusServer::bind(&path), Err(StatusServerError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}
