//! Asks a running k0s over its status socket.
//!
//! Invariant: bounded in time and size. Called by `cli`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens: the usual case.
    #[error("k0s is not running (nothing answers on {socket})")]
    NotRunning { socket: PathBuf },
    #[error("cannot ask k0s over {socket}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error("k0s did not answer on {socket} within {ANSWER_WITHIN:?}")]
    Timeout { socket: PathBuf },
    #[error("k0s answered {path} with {status}: {text}")]
    Refused { path: String, status: StatusCode, text: String },
    #[error("what answers on {socket} is not k0s")]
    Protocol { socket: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The body of a 200 answer.
pub async fn get(socket: &Path, path: &str) -> Result<Bytes, AskError> {
    let stream = connect(socket).await?;
    ask(stream, socket, path).await
}

pub async fn connect(socket: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NotRunning { socket: socket.to_owned() }
        }
        _ => AskError::Connect { socket: socket.to_owned(), source },
    })
}

/// [`get`] on a connection that is there already.
pub async fn ask(stream: UnixStream, socket: &Path, path: &str) -> Result<Bytes, AskError> {
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange(stream, path)).await;
    let (status, body) = answer
        .map_err(|_| AskError::Timeout { socket: socket.to_owned() })?
        .map_err(|source| AskError::Protocol { socket: socket.to_owned(), source })?;
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(AskError::Refused { path: path.to_owned(), status, text });
    }
    Ok(body)
}

async fn exchange(
    stream: UnixStream,
    path: &str,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(hyper::header::HOST, "k0s").body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok((status, body))
    };
    // The connection moves the bytes; it ends when the exchange is over and has dropped its sender. If it fails, so does
    // the exchange, with the same reason.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
