//! TLS of the client listeners: certificates from files, read again when they change, client certificates when asked for.

mod ciphers;
mod clients;
mod pinned;
mod self_signed;

pub use ciphers::is_known as is_cipher_suite;
pub use self_signed::self_signed;

use crate::api::caller::CertificateName;
use crate::config::{Tls, TlsVersion};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

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
    #[error("client host name {0:?} is not a name a certificate can have")]
    Hostname(String),
    #[error("unexpected TLS cipher suite {0:?}")]
    CipherSuite(String),
    #[error("none of the TLS cipher suites given is offered here, and TLS 1.3 is not allowed: {0:?}")]
    NoCipherSuite(Vec<String>),
    #[error("no TLS version is allowed: the lowest is above the highest")]
    NoVersion,
    #[error("a certificate for {dir} could not be made: {detail}")]
    SelfSigned { dir: PathBuf, detail: String },
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

    pub async fn accept<S>(&self, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
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

/// The common name of the client's certificate, if it showed one that has one.
pub fn certificate_name<S>(stream: &TlsStream<S>) -> Option<CertificateName> {
    let (_, connection) = stream.get_ref();
    Some(CertificateName(common_name(connection.peer_certificates()?.first()?)?.into()))
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned())
}

fn stamp(options: &Tls) -> Vec<Option<SystemTime>> {
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Tls { cert_file, key_file, trusted_ca_file, client_crl_file, .. } = options;
    [Some(cert_file), Some(key_file), trusted_ca_file.as_ref(), client_crl_file.as_ref()]
        .into_iter()
        .map(|path| path.and_then(modified))
        .collect()
}

fn load(options: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let versions = versions(options)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    ciphers::choose(&mut provider.cipher_suites, options)?;
    let provider = Arc::new(provider);
    let chain = certificates(&options.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&options.key_file)
        .map_err(|error| TlsError::Pem { path: options.key_file.clone(), error })?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .expect("a suite is left for every version");
    let builder = match &options.trusted_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(clients::verifier(options, path, provider)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| TlsError::Pair {
        cert: options.cert_file.clone(),
        key: options.key_file.clone(),
        error,
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn versions(options: &Tls) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let allowed = |version: &TlsVersion| (options.version_min..=options.version_max).contains(version);
    let versions: Vec<_> = [(TlsVersion::V1_3, &version::TLS13), (TlsVersion::V1_2, &version::TLS12)]
        .into_iter()
        .filter(|(version, _)| allowed(version))
        .map(|(_, supported)| supported)
        .collect();
    if versions.is_empty() { Err(TlsError::NoVersion) } else { Ok(versions) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::Pem { path: path.into(), error };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() { Err(TlsError::NoCertificate { path: path.into() }) } else { Ok(all) }
}
