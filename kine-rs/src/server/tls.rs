//! TLS of the client listeners: certificates from files, read again when they change, client certificates when asked for.

use crate::config::Tls;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path}: {error}")]
    Pem { path: PathBuf, error: rustls_pki_types::pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("certificate {cert} with key {key}: {error}")]
    Pair { cert: PathBuf, key: PathBuf, error: rustls::Error },
    #[error("client CA {path}: {detail}")]
    ClientCa { path: PathBuf, detail: String },
}

#[derive(Clone)]
pub struct Acceptor {
    options: Tls,
    current: Arc<Mutex<Loaded>>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamp: Vec<Option<SystemTime>>,
}

impl Acceptor {
    pub fn new(options: &Tls) -> Result<Self, TlsError> {
        let loaded = Loaded { config: load(options)?, stamp: stamp(options) };
        Ok(Acceptor { options: options.clone(), current: Arc::new(Mutex::new(loaded)) })
    }

    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config()).accept(stream).await
    }

    /// The configuration from the files as they are now. Files that can't be used leave the last good one in force.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().expect("no holder of the TLS configuration panics");
        let stamp = stamp(&self.options);
        if stamp != current.stamp {
            match load(&self.options) {
                Ok(config) => *current = Loaded { config, stamp },
                Err(error) => tracing::warn!(%error, "keeping the previous certificates"),
            }
        }
        current.config.clone()
    }
}

fn stamp(options: &Tls) -> Vec<Option<SystemTime>> {
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [Some(&options.cert_file), Some(&options.key_file), options.trusted_ca_file.as_ref()]
        .into_iter()
        .map(|path| path.and_then(modified))
        .collect()
}

fn load(options: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = certificates(&options.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&options.key_file)
        .map_err(|error| TlsError::Pem { path: options.key_file.clone(), error })?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match &options.trusted_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let failed = |detail: String| TlsError::ClientCa { path: path.clone(), detail };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| failed(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| TlsError::Pair {
        cert: options.cert_file.clone(),
        key: options.key_file.clone(),
        error,
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::Pem { path: path.into(), error };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() { Err(TlsError::NoCertificate { path: path.into() }) } else { Ok(all) }
}
