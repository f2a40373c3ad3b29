//! Which suites are offered, by the names Go knows.

use super::TlsError;
use crate::config::{Tls, TlsVersion};
use rustls::SupportedCipherSuite;

/// Suites of Go that rustls does not have, as they are not safe any more: asking for them is no mistake, offering them is.
const NOT_OFFERED: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// Whether Go knows a suite by this name.
pub fn is_known(name: &str) -> bool {
    let offered = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
    NOT_OFFERED.contains(&name) || offered.iter().any(|suite| go_name(suite) == full_name(name))
}

/// Leaves the suites of TLS 1.2 that are asked for, and all of TLS 1.3.
pub fn choose(suites: &mut Vec<SupportedCipherSuite>, options: &Tls) -> Result<(), TlsError> {
    if options.cipher_suites.is_empty() {
        return Ok(());
    }
    let mut wanted = Vec::new();
    for name in &options.cipher_suites {
        match suites.iter().find(|suite| go_name(suite) == full_name(name)) {
            Some(suite) => wanted.push(suite.suite()),
            None if NOT_OFFERED.contains(&name.as_str()) => {
                tracing::warn!("TLS cipher suite {name} is not safe any more and not offered");
            }
            None => return Err(TlsError::CipherSuite(name.clone())),
        }
    }
    let has_1_2 = |suites: &[SupportedCipherSuite]| suites.iter().any(|suite| suite.tls13().is_none());
    suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&suite.suite()));
    if !has_1_2(suites) && options.version_min == TlsVersion::V1_2 {
        return Err(TlsError::NoCipherSuite(options.cipher_suites.clone()));
    }
    Ok(())
}

/// rustls calls suites of TLS 1.3 `TLS13_...`.
fn go_name(suite: &SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    name.replacen("TLS13_", "TLS_", 1)
}

/// Go's old names of two suites have no hash.
fn full_name(name: &str) -> String {
    if name.ends_with("_CHACHA20_POLY1305") { format!("{name}_SHA256") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<String>, TlsError> {
        let mut suites = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        let cipher_suites = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&mut suites, &Tls { cipher_suites, ..Tls::new("c", "k") })?;
        Ok(suites.iter().filter(|suite| suite.tls13().is_none()).map(go_name).collect())
    }

    #[test]
    fn suites_are_chosen_by_gos_names() {
        assert_eq!(chosen(&[]).unwrap().len(), 6);
        let old = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305";
        let unsafe_one = "TLS_RSA_WITH_AES_128_GCM_SHA256";
        let names = ["TLS_AES_128_GCM_SHA256", old, unsafe_one];
        assert_eq!(chosen(&names).unwrap(), ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!([is_known(old), is_known(unsafe_one), is_known("X")], [true, true, false]);
        assert!(matches!(chosen(&["X"]), Err(TlsError::CipherSuite(name)) if name == "X"));
        assert!(matches!(chosen(&[unsafe_one]), Err(TlsError::NoCipherSuite(_))));
    }
}
