//! etcd's URLs and certificates -> listeners: where, with which TLS, serving what.
//!
//! Clients' listeners and metrics share one set of certificates, members' have their own. Reads no file: a certificate that
//! is to be made (`--auto-tls`) has its paths here and is made by whoever starts the server.

use super::{Flags, VerifyError};
use crate::config::{Listen, Listener, Serves, Tls, TlsVersion, parse_address};
use crate::server::is_cipher_suite;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// No certificate is made for longer.
const YEARS_MAX: u64 = 100;

/// All listeners, the certificates that must be made for them first, and what is odd.
#[derive(Debug)]
pub struct Listeners {
    pub all: Vec<Listener>,
    pub to_make: Vec<SelfSigned>,
    pub warnings: Vec<String>,
}

/// A certificate to be made in a directory, unless a good one is there.
#[derive(Debug, PartialEq, Eq)]
pub struct SelfSigned {
    pub dir: PathBuf,
    pub hosts: Vec<String>,
    pub validity: Duration,
}

/// The flags that say how one kind of client is met.
struct Names {
    cert: &'static str,
    key: &'static str,
    ca: &'static str,
    cert_auth: &'static str,
    crl: &'static str,
    hostnames: &'static str,
    common_names: Option<&'static str>,
    auto: &'static str,
    /// Below the data directory.
    made_in: &'static str,
}

const CLIENTS: Names = Names {
    cert: "cert-file",
    key: "key-file",
    ca: "trusted-ca-file",
    cert_auth: "client-cert-auth",
    crl: "client-crl-file",
    hostnames: "client-cert-allowed-hostname",
    common_names: None,
    auto: "auto-tls",
    made_in: "fixtures/client",
};

const PEERS: Names = Names {
    cert: "peer-cert-file",
    key: "peer-key-file",
    ca: "peer-trusted-ca-file",
    cert_auth: "peer-client-cert-auth",
    crl: "peer-crl-file",
    hostnames: "peer-cert-allowed-hostname",
    common_names: Some("peer-cert-allowed-cn"),
    auto: "peer-auto-tls",
    made_in: "fixtures/peer",
};

impl Listeners {
    /// # Errors
    /// An address that can't be listened on, or a listener that has no certificate.
    pub fn of(flags: &Flags<'_>, data_dir: &Path) -> Result<Listeners, VerifyError> {
        let versions = versions(flags)?;
        let mut listeners = Listeners { all: Vec::new(), to_make: Vec::new(), warnings: Vec::new() };
        let http_apart = !flags.list("listen-client-http-urls").is_empty();
        let clients = if http_apart { Serves::Grpc } else { Serves::Everything };
        listeners.add(
            flags,
            data_dir,
            &CLIENTS,
            versions,
            &[
                ("listen-client-urls", clients),
                ("listen-client-http-urls", Serves::Http),
                ("listen-metrics-urls", Serves::Metrics),
            ],
        )?;
        // There are no members to listen to; whoever names the port expects it to be taken.
        if flags.0.is_given("listen-peer-urls") {
            listeners.add(flags, data_dir, &PEERS, versions, &[("listen-peer-urls", Serves::Peers)])?;
        }
        Ok(listeners)
    }

    fn add(
        &mut self,
        flags: &Flags<'_>,
        data_dir: &Path,
        names: &Names,
        versions: (TlsVersion, TlsVersion),
        urls: &[(&'static str, Serves)],
    ) -> Result<(), VerifyError> {
        let mut wanted: Vec<(Address, Serves)> = Vec::new();
        for (flag, serves) in urls {
            for url in flags.list(flag) {
                let address = Address::parse(flag, &url)?;
                let same = |(other, _): &&(Address, Serves)| {
                    other.at == address.at && other.secure == address.secure
                };
                match wanted.iter().find(same) {
                    None => wanted.push((address, *serves)),
                    Some((_, other)) if other == serves => {}
                    Some(_) => return Err(VerifyError::SharedAddress(url)),
                }
            }
        }
        let secure = wanted.iter().any(|(address, _)| address.secure);
        let tls = if secure { self.tls(flags, data_dir, names, &wanted)? } else { None };
        let given = !flags.0.text(names.cert).is_empty() || !flags.0.text(names.key).is_empty();
        for (Address { at, secure, url }, serves) in wanted {
            let tls = match (secure, &tls) {
                (true, Some(tls)) => {
                    Some(Tls { version_min: versions.0, version_max: versions.1, ..tls.clone() })
                }
                (true, None) if serves == Serves::Metrics => return Err(VerifyError::NoMetricsCertificate),
                (true, None) if serves == Serves::Peers => return Err(VerifyError::NoPeerCertificate(url)),
                (true, None) => return Err(VerifyError::NoCertificate(url)),
                (false, _) => {
                    if given && serves != Serves::Metrics {
                        let text = "scheme is http or unix while key and cert files are present; ignoring key and cert files";
                        self.warnings.push(format!("{text}: {url}"));
                    }
                    None
                }
            };
            self.all.push(Listener { at, tls, serves });
        }
        Ok(())
    }

    /// The certificates of one kind of listeners; `None`: there are none.
    fn tls(
        &mut self,
        flags: &Flags<'_>,
        data_dir: &Path,
        names: &Names,
        listeners: &[(Address, Serves)],
    ) -> Result<Option<Tls>, VerifyError> {
        let path = |flag| Some(flags.0.text(flag)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let pair = match (path(names.cert), path(names.key)) {
            (Some(cert_file), Some(key_file)) => Tls::new(cert_file, key_file),
            (None, None) if flags.bool(names.auto) => {
                let years = flags.uint("self-signed-cert-validity");
                if years == 0 {
                    return Err(VerifyError::NoValidity);
                }
                let dir = data_dir.join(names.made_in);
                let validity = YEAR * years.min(YEARS_MAX) as u32;
                self.to_make.push(SelfSigned { dir: dir.clone(), hosts: hosts(listeners), validity });
                Tls::made_in(&dir)
            }
            (None, None) => return Ok(None),
            (cert, key) => {
                let shown = |path: Option<PathBuf>| path.unwrap_or_default().display().to_string();
                return Err(VerifyError::HalfPair { key: shown(key), cert: shown(cert) });
            }
        };
        let trusted_ca_file = path(names.ca);
        if trusted_ca_file.is_none() && flags.bool(names.cert_auth) {
            return Err(VerifyError::NoClientCa { flag: names.cert_auth, needs: names.ca });
        }
        Ok(Some(Tls {
            trusted_ca_file,
            client_crl_file: path(names.crl),
            client_hostnames: flags.list(names.hostnames),
            client_common_names: names.common_names.map(|flag| flags.list(flag)).unwrap_or_default(),
            cipher_suites: flags.list("cipher-suites"),
            ..pair
        }))
    }
}

fn versions(flags: &Flags<'_>) -> Result<(TlsVersion, TlsVersion), VerifyError> {
    let (min_text, max_text) = (flags.0.text("tls-min-version"), flags.0.text("tls-max-version"));
    let version = |text: &str, otherwise| match text {
        "" => Ok(otherwise),
        "TLS1.2" => Ok(TlsVersion::V1_2),
        "TLS1.3" => Ok(TlsVersion::V1_3),
        other => Err(VerifyError::TlsVersion(other.to_owned())),
    };
    let (min, max) = (version(min_text, TlsVersion::V1_2)?, version(max_text, TlsVersion::V1_3)?);
    if min > max {
        return Err(VerifyError::TlsVersions { min: min_text.to_owned(), max: max_text.to_owned() });
    }
    if let Some(unknown) = flags.list("cipher-suites").into_iter().find(|name| !is_cipher_suite(name)) {
        return Err(VerifyError::CipherSuite(unknown));
    }
    if min == TlsVersion::V1_3 && !flags.list("cipher-suites").is_empty() {
        return Err(VerifyError::CipherSuites);
    }
    Ok((min, max))
}

/// Where a URL says to listen. The form was checked when the text was taken.
struct Address {
    at: Listen,
    secure: bool,
    url: String,
}

impl Address {
    /// `http(s)://address:port`, or `unix(s)://path` with whatever path there is, also `host:port`.
    fn parse(flag: &'static str, url: &str) -> Result<Address, VerifyError> {
        let bad = |reason| VerifyError::Url { flag, url: url.to_owned(), reason };
        let (scheme, rest) = url.split_once(':').ok_or_else(|| bad("it has no scheme"))?;
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let secure = matches!(scheme, "https" | "unixs");
        let at = match scheme {
            "unix" | "unixs" if rest.is_empty() => return Err(bad("it names no socket")),
            "unix" | "unixs" => Listen::Unix(rest.into()),
            _ => {
                let (host, _) = rest.rsplit_once(':').ok_or_else(|| bad("it names no port"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                if host != "localhost" && host.parse::<IpAddr>().is_err() {
                    return Err(VerifyError::NoAddress(url.to_owned()));
                }
                let address = rest.replacen("localhost", "127.0.0.1", 1);
                Listen::Tcp(parse_address(&address).ok_or_else(|| bad("it is not host:port"))?)
            }
        };
        Ok(Address { at, secure, url: url.to_owned() })
    }
}

/// What a certificate for these listeners must be valid for.
fn hosts(listeners: &[(Address, Serves)]) -> Vec<String> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    for (address, _) in listeners {
        if let Listen::Tcp(address) = &address.at
            && !address.ip().is_unspecified()
        {
            hosts.push(address.ip().to_string());
        }
    }
    hosts.sort();
    hosts.dedup();
    hosts
}
