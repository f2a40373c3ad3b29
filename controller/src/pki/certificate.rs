//! One certificate with its key: how it is issued and how one found on disk is judged.
//!
//! Invariant: `defect` accepts exactly what `issue` would produce for the same wish, until it nears its end. No files, no
//! clock: text in, text out. Called by `pki`; calls rcgen and x509-parser.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, Pem, X509Certificate, X509Name};

use super::names::Name;

/// Clocks of a cluster's machines differ a little; what was issued just now is valid on all of them.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// A leaf is renewed at the first start after two thirds of its life.
const RENEWED_BELOW_FRACTION: i32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organization: Option<String>,
}

/// What a leaf must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafWish {
    pub subject: Subject,
    pub names: BTreeSet<Name>,
    pub lifetime: Duration,
}

/// PEM texts, in the form they have on disk.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifiedKey {
    pub certificate: String,
    pub key: String,
}

impl fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertifiedKey")
    }
}

/// A CA that can sign.
pub struct Authority {
    pub pem: CertifiedKey,
    issuer: Issuer<'static, KeyPair>,
    subject_der: Vec<u8>,
    not_after: OffsetDateTime,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make a key or certificate")]
    Generate(#[from] rcgen::Error),
    #[error("it is not a PEM certificate")]
    NotACertificate,
    #[error("its key is not a PEM private key")]
    NotAKey(#[source] rustls_pki_types::pem::Error),
    #[error("its key cannot be used: it must be RSA, ECDSA or Ed25519")]
    UnusableKey(#[source] rcgen::Error),
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    #[error("it is not a CA certificate")]
    NotAnAuthority,
    #[error("it is not valid before {0}: is this machine's clock right?")]
    AuthorityNotYetValid(OffsetDateTime),
    #[error(
        "it expired on {0}: is this machine's clock right? If so, put a new one and its key there, or remove both to have \
         a new one made; everything that trusts it must then trust the new one"
    )]
    AuthorityExpired(OffsetDateTime),
    #[error("its subject has an attribute twice, which is not supported for a CA that k0s signs with")]
    AmbiguousSubject,
}

/// Why a leaf found on disk is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    Missing,
    Unreadable,
    KeyMismatch,
    OtherAuthority,
    OtherSubject,
    OtherNames,
    OtherUsage,
    ValidLongerThanConfigured,
    NotYetValid,
    NearItsEnd(OffsetDateTime),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Missing => f.write_str("it did not exist"),
            Defect::Unreadable => f.write_str("it could not be read"),
            Defect::KeyMismatch => f.write_str("its key did not belong to it"),
            Defect::OtherAuthority => f.write_str("it was signed by another CA"),
            Defect::OtherSubject => f.write_str("its subject changed"),
            Defect::OtherNames => f.write_str("the names and addresses it is for changed"),
            Defect::OtherUsage => f.write_str("its usages were others"),
            Defect::ValidLongerThanConfigured => f.write_str("it was valid for longer than configured"),
            Defect::NotYetValid => f.write_str("it was not valid yet"),
            Defect::NearItsEnd(end) => write!(f, "it was valid only until {end}"),
        }
    }
}

/// RSA 2048, as k0s uses everywhere.
pub fn generate_key() -> Result<KeyPair, CertificateError> {
    Ok(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?)
}

/// The first private key in a PEM text, in any of the forms openssl writes: PKCS#8, PKCS#1, SEC1.
pub fn read_key(pem: &str) -> Result<KeyPair, CertificateError> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(CertificateError::NotAKey)?;
    KeyPair::try_from(&key).map_err(CertificateError::UnusableKey)
}

impl Authority {
    /// Signs a new CA with the key, whose text is kept as it is. The key may be older: a CA whose certificate file was lost
    /// before it reached the disk is completed, and what it signed stays valid.
    pub fn create(
        common_name: &str,
        key_pem: String,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<Authority, CertificateError> {
        let key = read_key(&key_pem)?;
        let subject = Subject { common_name: common_name.to_owned(), organization: None };
        let mut params = params(&subject, now, now + lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Self::load(CertifiedKey { certificate, key: key_pem }, now)
    }

    /// Reads a CA that k0s or its user made.
    pub fn load(pem: CertifiedKey, now: OffsetDateTime) -> Result<Authority, CertificateError> {
        let key = read_key(&pem.key)?;
        let der = certificate_der(&pem.certificate).ok_or(CertificateError::NotACertificate)?;
        let parsed = parse(&der).ok_or(CertificateError::NotACertificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CertificateError::KeyMismatch);
        }
        if !parsed.is_ca() {
            return Err(CertificateError::NotAnAuthority);
        }
        let not_before = parsed.validity().not_before.to_datetime();
        if not_before > now {
            return Err(CertificateError::AuthorityNotYetValid(not_before));
        }
        let not_after = parsed.validity().not_after.to_datetime();
        if not_after <= now {
            return Err(CertificateError::AuthorityExpired(not_after));
        }
        if has_repeated_attribute(parsed.subject()) {
            return Err(CertificateError::AmbiguousSubject);
        }
        let subject_der = parsed.subject().as_raw().to_vec();
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key)?;
        Ok(Authority { pem, issuer, subject_der, not_after })
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs `key` for `wish`. A leaf never outlives its CA.
    pub fn issue(
        &self,
        wish: &LeafWish,
        key: &KeyPair,
        now: OffsetDateTime,
    ) -> Result<CertifiedKey, CertificateError> {
        let mut params = params(&wish.subject, now, self.not_after.min(now + wish.lifetime));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = wish.names.iter().map(alternative_name).collect::<Result<_, _>>()?;
        let certificate = params.signed_by(key, &self.issuer)?.pem();
        Ok(CertifiedKey { certificate, key: key.serialize_pem() })
    }

    /// What is wrong with a leaf found on disk, or `None` if it serves the wish until the next start or longer.
    pub fn defect(&self, found: &CertifiedKey, wish: &LeafWish, now: OffsetDateTime) -> Option<Defect> {
        let Some(der) = certificate_der(&found.certificate) else { return Some(Defect::Unreadable) };
        let Some(leaf) = parse(&der) else { return Some(Defect::Unreadable) };
        match read_key(&found.key) {
            Err(_) => return Some(Defect::Unreadable),
            Ok(key) if key.subject_public_key_info() != leaf.public_key().raw => {
                return Some(Defect::KeyMismatch);
            }
            Ok(_) => {}
        }
        if !self.signed(&leaf) {
            return Some(Defect::OtherAuthority);
        }
        if subject_of(leaf.subject()) != Some(wish.subject.clone()) {
            return Some(Defect::OtherSubject);
        }
        if names_of(&leaf) != Some(wish.names.clone()) {
            return Some(Defect::OtherNames);
        }
        if !has_leaf_usage(&leaf) {
            return Some(Defect::OtherUsage);
        }
        self.validity_defect(&leaf, wish, now)
    }

    fn signed(&self, leaf: &X509Certificate<'_>) -> bool {
        let Some(ca_der) = certificate_der(&self.pem.certificate) else { return false };
        let Some(ca) = parse(&ca_der) else { return false };
        leaf.issuer().as_raw() == self.subject_der && leaf.verify_signature(Some(ca.public_key())).is_ok()
    }

    fn validity_defect(
        &self,
        leaf: &X509Certificate<'_>,
        wish: &LeafWish,
        now: OffsetDateTime,
    ) -> Option<Defect> {
        let not_before = leaf.validity().not_before.to_datetime();
        let not_after = leaf.validity().not_after.to_datetime();
        if not_before > now {
            Some(Defect::NotYetValid)
        } else if not_after > now + wish.lifetime {
            Some(Defect::ValidLongerThanConfigured)
        } else if not_after - now < (not_after - not_before) / RENEWED_BELOW_FRACTION
            && not_after < self.not_after
        {
            // A leaf that ends with its CA gains nothing from being issued again.
            Some(Defect::NearItsEnd(not_after))
        } else {
            None
        }
    }
}

fn params(subject: &Subject, now: OffsetDateTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut distinguished_name = DistinguishedName::new();
    if let Some(organization) = &subject.organization {
        distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name;
    params.not_before = now - BACKDATED;
    params.not_after = not_after;
    params
}

fn alternative_name(name: &Name) -> Result<SanType, rcgen::Error> {
    Ok(match name {
        Name::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        Name::Ip(address) => SanType::IpAddress(*address),
    })
}

fn certificate_der(pem: &str) -> Option<Vec<u8>> {
    let block = Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?;
    (block.label == "CERTIFICATE").then_some(block.contents)
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn has_repeated_attribute(name: &X509Name<'_>) -> bool {
    let mut seen = BTreeSet::new();
    name.iter_attributes().any(|attribute| !seen.insert(attribute.attr_type().to_id_string()))
}

fn subject_of(name: &X509Name<'_>) -> Option<Subject> {
    if name.iter_attributes().count() > 2 {
        return None;
    }
    let common_name = name.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organization = match name.iter_organization().next() {
        Some(attribute) => Some(attribute.as_str().ok()?.to_owned()),
        None => None,
    };
    Some(Subject { common_name, organization })
}

fn names_of(leaf: &X509Certificate<'_>) -> Option<BTreeSet<Name>> {
    let Some(extension) = leaf.subject_alternative_name().ok()? else { return Some(BTreeSet::new()) };
    extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
            GeneralName::IPAddress(bytes) => Name::from_octets(bytes),
            _ => None,
        })
        .collect()
}

fn has_leaf_usage(leaf: &X509Certificate<'_>) -> bool {
    let key_usage = leaf.key_usage().ok().flatten();
    let extended = leaf.extended_key_usage().ok().flatten();
    key_usage.is_some_and(|usage| usage.value.digital_signature() && usage.value.key_encipherment())
        && extended.is_some_and(|usage| usage.value.server_auth && usage.value.client_auth)
        && !leaf.is_ca()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn wish() -> LeafWish {
        LeafWish {
            subject: Subject { common_name: "kubernetes".into(), organization: Some("kubernetes".into()) },
            names: ["localhost", "127.0.0.1", "::1", "kubernetes.default.svc.cluster.local."]
                .iter()
                .map(|n| Name::parse(n))
                .collect(),
            lifetime: 900 * HOUR,
        }
    }

    fn key_pem() -> String {
        KeyPair::generate().unwrap().serialize_pem()
    }

    fn authority(common_name: &str) -> Authority {
        Authority::create(common_name, key_pem(), 9000 * HOUR, now()).unwrap()
    }

    #[test]
    fn issued_leaf_has_no_defect_until_a_third_of_its_life_is_left() {
        let ca = authority("kubernetes-ca");
        let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
        assert_eq!(ca.defect(&leaf, &wish(), now()), None);
        assert_eq!(ca.defect(&leaf, &wish(), now() + 599 * HOUR), None);
        assert!(matches!(ca.defect(&leaf, &wish(), now() + 601 * HOUR), Some(Defect::NearItsEnd(_))));
        assert_eq!(ca.defect(&leaf, &wish(), now() - HOUR), Some(Defect::NotYetValid));
    }

    #[test]
    fn every_difference_from_the_wish_is_a_defect() {
        let ca = authority("kubernetes-ca");
        let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
        let mut other = wish();
        other.names.insert(Name::parse("10.0.0.1"));
        assert_eq!(ca.defect(&leaf, &other, now()), Some(Defect::OtherNames));
        let mut other = wish();
        other.subject.organization = None;
        assert_eq!(ca.defect(&leaf, &other, now()), Some(Defect::OtherSubject));
        let mut other = wish();
        other.lifetime = HOUR;
        assert_eq!(ca.defect(&leaf, &other, now()), Some(Defect::ValidLongerThanConfigured));
        // The same name, another key: what a user's CA rotation looks like.
        assert_eq!(authority("kubernetes-ca").defect(&leaf, &wish(), now()), Some(Defect::OtherAuthority));
        let strange = CertifiedKey { key: key_pem(), ..leaf.clone() };
        assert_eq!(ca.defect(&strange, &wish(), now()), Some(Defect::KeyMismatch));
        let cut = CertifiedKey { certificate: leaf.certificate[..100].to_owned(), ..leaf };
        assert_eq!(ca.defect(&cut, &wish(), now()), Some(Defect::Unreadable));
    }

    #[test]
    fn leaf_never_outlives_its_authority_and_is_then_left_alone() {
        let ca = Authority::create("ca", key_pem(), 10 * HOUR, now()).unwrap();
        let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
        assert_eq!(ca.defect(&leaf, &wish(), now() + 9 * HOUR), None);
    }

    #[test]
    fn authority_made_again_from_its_key_accepts_what_it_signed() {
        let ca = authority("kubernetes-ca");
        let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
        let again =
            Authority::create("kubernetes-ca", ca.pem.key.clone(), 9000 * HOUR, now() + HOUR).unwrap();
        assert_eq!(again.defect(&leaf, &wish(), now() + HOUR), None);
        assert_eq!(again.pem.key, ca.pem.key);
    }

    /// As `openssl ecparam -genkey -name prime256v1` and `openssl genrsa -traditional` write them.
    #[test]
    fn keys_in_the_older_forms_of_openssl_sign_and_are_kept_as_they_are() {
        for key in [include_str!("testdata/sec1.key"), include_str!("testdata/pkcs1.key")] {
            let ca = Authority::create("Our Company", key.to_owned(), 9000 * HOUR, now()).unwrap();
            assert_eq!(ca.pem.key, key);
            let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
            assert_eq!(ca.defect(&leaf, &wish(), now()), None);
        }
    }

    #[test]
    fn unusable_authorities_are_told_apart() {
        let ca = authority("ca");
        let leaf = ca.issue(&wish(), &KeyPair::generate().unwrap(), now()).unwrap();
        let load = |certificate: &str, key: &str, at| {
            Authority::load(CertifiedKey { certificate: certificate.into(), key: key.into() }, at)
                .err()
                .unwrap()
        };
        assert!(matches!(load("", &ca.pem.key, now()), CertificateError::NotACertificate));
        assert!(matches!(load(&ca.pem.certificate, "", now()), CertificateError::NotAKey(_)));
        let cut =
            ca.pem.key.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, line)| format!("{line}\n"));
        let cut: String = cut.collect();
        assert!(matches!(load(&ca.pem.certificate, &cut, now()), CertificateError::UnusableKey(_)));
        assert!(matches!(load(&ca.pem.certificate, &leaf.key, now()), CertificateError::KeyMismatch));
        assert!(matches!(load(&leaf.certificate, &leaf.key, now()), CertificateError::NotAnAuthority));
        let early = now() - HOUR;
        assert!(matches!(
            load(&ca.pem.certificate, &ca.pem.key, early),
            CertificateError::AuthorityNotYetValid(_)
        ));
        let late = now() + 9001 * HOUR;
        assert!(matches!(
            load(&ca.pem.certificate, &ca.pem.key, late),
            CertificateError::AuthorityExpired(_)
        ));
    }
}
