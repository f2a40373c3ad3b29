//! Which certificates of clients are taken: signed by a trusted CA, not revoked, valid for an allowed name.

use super::{TlsError, certificates, common_name, pinned};
use crate::config::Tls;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::Arc;

pub fn verifier(
    options: &Tls,
    ca_file: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let failed = |detail: String| TlsError::ClientCa { path: ca_file.into(), detail };
    let mut roots = RootCertStore::empty();
    let trusted = certificates(ca_file)?;
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(path) = &options.client_crl_file {
        // Of a certificate whose issuer has no list here nothing is known, and it is taken, as etcd does.
        builder = builder
            .with_crls(revocations(path)?)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
    }
    let signed = builder.build().map_err(|error| failed(error.to_string()))?;
    // While revocations are checked the list alone does not count.
    let pinned = if options.client_crl_file.is_none() { trusted } else { Vec::new() };
    let name =
        |name: &String| ServerName::try_from(name.clone()).map_err(|_| TlsError::Hostname(name.clone()));
    let hosts = options.client_hostnames.iter().map(name).collect::<Result<_, _>>()?;
    Ok(Arc::new(Clients { signed, pinned, hosts, common_names: options.client_common_names.clone() }))
}

/// Lists in PEM, or one in DER.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = std::fs::read(path).map_err(|error| TlsError::Io { path: path.into(), error })?;
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem { path: path.into(), error })?;
    Ok(if lists.is_empty() { vec![CertificateRevocationListDer::from(bytes)] } else { lists })
}

/// What is signed, or is pinned itself, must also be valid for one of the hosts, and have one of the common names; none
/// listed: any.
#[derive(Debug)]
pub struct Clients {
    pub signed: Arc<dyn ClientCertVerifier>,
    pub pinned: Vec<CertificateDer<'static>>,
    pub hosts: Vec<ServerName<'static>>,
    pub common_names: Vec<String>,
}

impl Clients {
    fn allows(&self, end_entity: &CertificateDer<'_>) -> Result<bool, Error> {
        if self.hosts.is_empty() && self.common_names.is_empty() {
            return Ok(true);
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let valid_for = |name| verify_server_name(&certificate, name).is_ok();
        let named = || common_name(end_entity).is_some_and(|name| self.common_names.contains(&name));
        Ok((self.hosts.is_empty() || self.hosts.iter().any(valid_for))
            && (self.common_names.is_empty() || named()))
    }
}

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = if self.pinned.contains(end_entity) {
            pinned::check(end_entity, now).map_err(Error::InvalidCertificate)?;
            ClientCertVerified::assertion()
        } else {
            self.signed.verify_client_cert(end_entity, intermediates, now)?
        };
        if self.allows(end_entity)? {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
