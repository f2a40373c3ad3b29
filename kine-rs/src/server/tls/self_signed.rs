//! A certificate that nobody signed, for encryption without a CA (`--auto-tls`).

use super::TlsError;
use crate::config::Tls;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Clocks of clients may be behind by this much.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Makes `Tls::made_in(dir)` for these hosts, unless it is there and young enough.
pub fn self_signed(dir: &Path, hosts: Vec<String>, validity: Duration) -> Result<(), TlsError> {
    let tls = Tls::made_in(dir);
    let age = fs::metadata(&tls.cert_file)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|made| SystemTime::now().duration_since(made).ok());
    if tls.key_file.exists() && age.is_some_and(|age| age + BACKDATED < validity) {
        return Ok(());
    }
    let io = |error: std::io::Error| TlsError::SelfSigned { dir: dir.into(), detail: error.to_string() };
    let (certificate, key) = make(hosts, validity)
        .map_err(|error| TlsError::SelfSigned { dir: dir.into(), detail: error.to_string() })?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    // The key first: a certificate is only taken together with its key.
    replace(&tls.key_file, &key).map_err(io)?;
    replace(&tls.cert_file, &certificate).map_err(io)
}

fn make(hosts: Vec<String>, validity: Duration) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.not_before = (SystemTime::now() - BACKDATED).into();
    params.not_after = (SystemTime::now() + validity).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn replace(path: &Path, content: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_again_when_it_is_old() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("fixtures/client");
        let hosts = || vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let made = |validity| {
            self_signed(&dir, hosts(), validity).expect("made");
            fs::read_to_string(Tls::made_in(&dir).cert_file).expect("readable")
        };
        let first = made(year);
        assert_eq!(made(year), first);
        assert_ne!(made(BACKDATED), first);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(dir.join("key.pem")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}
