//! Asks kube-apiserver whether it is ready, as the administrator.
//!
//! Invariant: a yes means that the server with our certificate answered `/readyz` with 200. One connection per question: a
//! restarted server is a new server. Given to the supervisor by `run`; bounded in time by it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use worker::supervise::Probe;

/// The verbose answer lists every check on a line; there are less than a hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub struct ApiProbe {
    address: SocketAddr,
    tls: TlsConnector,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiProbeError {
    #[error("cannot read {path}")]
    Pem { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("the administrator's certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

impl ApiProbe {
    /// Reads `ca.crt` and `admin.{crt,key}` below `pki`.
    pub fn new(pki: &Path, address: IpAddr, port: u16) -> Result<ApiProbe, ApiProbeError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&pki.join("ca.crt"))? {
            roots.add(certificate)?;
        }
        let key_path = pki.join("admin.key");
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|source| ApiProbeError::Pem { path: key_path, source })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pki.join("admin.crt"))?, key)?;
        Ok(ApiProbe { address: SocketAddr::new(address, port), tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn ask(&self) -> Result<(), String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => format!("it does not listen on {} yet", self.address),
            _ => format!("cannot connect to {}: {error}", self.address),
        })?;
        let name = ServerName::from(self.address.ip());
        let stream = self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
        match exchange(stream).await {
            Ok((StatusCode::OK, _)) => Ok(()),
            Ok((status, body)) => Err(format!("/readyz answers {status}: {}", failed_checks(&body))),
            Err(error) => Err(format!("/readyz: {error}")),
        }
    }
}

impl Probe for ApiProbe {
    fn probe(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.ask())
    }
}

async fn exchange(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz?verbose")
        .header(hyper::header::HOST, "kubernetes")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok((status, body))
    };
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

/// The checks that a verbose answer marks as failed: `[-]poststarthook/x failed: reason withheld`.
fn failed_checks(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let failed: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("[-]")?.split_whitespace().next()).collect();
    match failed.as_slice() {
        [] => text.lines().next().unwrap_or_default().to_owned(),
        failed => failed.join(", "),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ApiProbeError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| ApiProbeError::Pem { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_checks_are_named() {
        let verbose = b"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]poststarthook/x failed: reason withheld\nreadyz check failed\n";
        assert_eq!(failed_checks(verbose), "etcd, poststarthook/x");
        assert_eq!(failed_checks(b"Unauthorized\n"), "Unauthorized");
    }
}
