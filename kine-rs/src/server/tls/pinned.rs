//! A certificate that is itself on the list of trusted ones is taken, though it is a CA's.
//!
//! Who makes one self-signed certificate for everything shows it as a client too. Go takes it; webpki never takes a CA for a
//! client. `clients` says which certificates are on the list.

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Valid now, and for clients if it says for what at all.
pub fn check(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let seconds = i64::try_from(now.as_secs()).map_err(|_| CertificateError::Expired)?;
    let now = ASN1Time::from_timestamp(seconds).map_err(|_| CertificateError::Expired)?;
    if now < certificate.validity().not_before {
        return Err(CertificateError::NotValidYet);
    }
    if now > certificate.validity().not_after {
        return Err(CertificateError::Expired);
    }
    let purposes = certificate.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    match purposes.map(|purposes| purposes.value) {
        Some(purposes) if !purposes.any && !purposes.client_auth => Err(CertificateError::InvalidPurpose),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::clients::Clients;
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
    use rustls::server::WebPkiClientVerifier;
    use rustls::server::danger::ClientCertVerifier;
    use rustls::{Error, RootCertStore};
    use std::sync::Arc;
    use std::time::Duration;

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(trusted: &CertificateDer<'static>, shown: &CertificateDer<'static>) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let pinned =
            Clients { signed, pinned: vec![trusted.clone()], hosts: Vec::new(), common_names: Vec::new() };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        pinned.verify_client_cert(shown, &[], now).map(drop)
    }

    #[test]
    fn a_trusted_ca_may_be_the_client_while_it_is_valid_and_meant_for_clients() {
        let own = |change: fn(&mut CertificateParams)| {
            let certificate = certificate(change);
            verify(&certificate, &certificate)
        };
        assert_eq!(own(|_| {}), Ok(()));
        assert_eq!(
            own(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            Ok(())
        );
        let refused = |reason| Err(Error::InvalidCertificate(reason));
        let server = own(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        assert_eq!(server, refused(CertificateError::InvalidPurpose));
        assert_eq!(
            own(|params| params.not_after = date_time_ymd(2020, 1, 1)),
            refused(CertificateError::Expired)
        );
        assert_eq!(
            own(|params| params.not_before = date_time_ymd(3000, 1, 1)),
            refused(CertificateError::NotValidYet)
        );
    }

    #[test]
    fn another_ca_is_not_the_client() {
        assert!(verify(&certificate(|_| {}), &certificate(|_| {})).is_err());
    }
}
